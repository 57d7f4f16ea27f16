"""Every metric against values worked out by hand and against the program the benchmark uses, and against broken copies.

The oracles are rewritten here slowly from their descriptions, or are the packages rouge-score and rouge where they are
installed. The mutants at the end are the scoring bugs that such code has had: each must be noticed by some case here.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import marshal
import tempfile
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.errors import MissingExtra

words = importlib.import_module("longctx.pipelines.metrics.words")
rouge = importlib.import_module("longctx.pipelines.metrics.rouge")
choices = importlib.import_module("longctx.pipelines.metrics.choices")
counts = importlib.import_module("longctx.pipelines.metrics.counts")
chinese = importlib.import_module("longctx.pipelines.metrics.chinese")
scoring = importlib.import_module("longctx.pipelines.scoring")
cases = importlib.import_module("longctx.pipelines.cases")

# metric -> (answer, reference, value worked out by hand)
KNOWN: dict[str, list[tuple[str, str, float]]] = {
    "token_f1": [
        ("the cat sat", "a cat sat down", 4 / 5),  # cat, sat of 2 and 3 words
        ("The Cat, sat!", "cat sat", 1.0),
        ("cat cat cat", "cat dog", 2 / 5),  # one cat is shared, not three
        ("cat cat", "cat cat dog", 4 / 5),
        ("the an a", "cat", 0.0),
        ("", "cat", 0.0),
        ("it is 1,000", "1000", 2 / 4),
        ("theatre", "atre", 0.0),  # articles are words, not letters
    ],
    "exact_match": [("The  Cat.", "cat", 1.0), ("a cat", "cats", 0.0), ("cat", "cat cat", 0.0)],
    "contains": [
        ("It was the Cat, I think.", "a cat", 1.0),
        ("It was I", "cat", 0.0),
        ("cat", "the cat sat", 0.0),  # the reference is looked for in the answer, not the other way round
        ("anything", "the", 0.0),  # nothing is left of the reference
        ("It was 1984.", "9", 0.0),  # a number is looked for as a whole
        ("It was 9.", "9", 1.0),
        ("Version 3.5", "5", 0.0),
        ("It cost 1,000 or so", "1000", 1.0),
        ("It cost 1000.", "1,000", 1.0),
        ("It cost 12 dollars", "$12.", 1.0),
        ("It was 12 May 1984", "May 19", 1.0),  # a reference with words is text
    ],
    "substring": [("It is ABC-12.", "abc-12", 1.0), ("It is ABC12.", "abc-12", 0.0), ("x", "", 0.0)],
    "whole_number": [
        ("In 2012.", "2012", 1.0),
        ("In 20123", "2012", 0.0),
        ("It is 2012.5", "2012", 0.0),
        ("It is 3,2012", "2012", 0.0),
        ("(2012)", "2012", 1.0),
        ("about 5%", "5", 1.0),
        ("45", "5", 0.0),
        ("5.3", "5", 0.0),
        ("Version 3.5", "5", 0.0),
        ("It is 1.5.", "1.5", 1.0),
    ],
    "first_number": [("It is <00423>.", "423", 1.0), ("line 7 holds 423", "423", 0.0), ("none", "1", 0.0)],
    "rouge_1": [
        ("a b c", "a b d", 2 / 3),
        ("a a a", "a b", 2 / 5),
        ("a a", "A a", 1.0),
        ("", "a", 0.0),
        ("don't", "don t", 1.0),
    ],
    "rouge_2": [("a b c", "a b d", 1 / 2), ("a b a b", "a b", 2 / 4), ("a", "a", 0.0)],
    "rouge_l": [
        ("police kill the gunman", "police killed the gunman", 3 / 4),  # Lin (2004), section 3
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("the police", "police killed a gunman", 2 / 6),
        ("", "a", 0.0),
    ],
    "longbench_rouge_l": [
        ("a b c", "a b d", 2 / 3),
        ("a a b", "a b", 1.0),  # a word counts once
        ("b c. a b", "a b c", 1.0),  # the union over the answer's sentences
        ("A b", "a b", 1 / 2),  # case counts
        ("", "a", 0.0),
        ("...", "a", 0.0),
    ],
    "loogle_rouge_l": [("a b c d", "a b", 1.0), ("a", "a b", 1 / 2), ("", "a", 0.0)],
    "option": [
        ("The correct answer is (B).", "B", 1.0),
        ("The correct answer is **B**.", "B", 1.0),
        ("The correct answer is (C), not (B)", "B", 0.0),
        ("B", "B", 0.0),  # without the words there is no point, as published
        ("", "A", 0.0),
        ("The correct answer is A or B? The correct answer is (B).", "B", 1.0),  # a letter in brackets goes first
        ("The correct answer is A or B? The correct answer is (B).", "A", 0.0),
        ("The correct answer is (Berlin)", "B", 0.0),
        ("The correct answer is (A or B)", "A", 0.0),
        ("The correct answer is (C: foo)", "C", 0.0),
        ("The correct answer is Berlin", "B", 1.0),  # as published
    ],
    "lone_option": [
        ("B", "B", 1.0),
        ("(C) because A", "C", 1.0),
        ("Alas, D", "D", 1.0),
        ("ABC", "A", 0.0),
        ("The correct answer is A or B? The correct answer is (B).", "B", 1.0),
        ("The correct answer is (Berlin)", "B", 0.0),
        ("The correct answer is (C: foo)", "C", 1.0),
    ],
    "exam_option": [
        ("B", "(B) The cat", 1.0),
        ("The answer: C", "(C) x", 1.0),
        ("Because C", "(C) x", 0.0),  # the first capital A to D counts, even in a word
        ("no", "(A) x", 1.0),  # where there is none, the published rule says A
        ("AB", "(A) x", 0.0),
        ("  ", "(A) x", 0.0),
    ],
    "exam_options": [
        ("AB", "AB", 1.0),
        ("BA", "AB", 1.0),
        ("A", "AB", 0.25),
        ("AC", "AB", 0.0),
        ("ABC", "AB", 0.0),
        ("A. and C. are right", "AC", 1.0),
        ("C. and A. are right", "AC", 1.0),
        ("The answer is C", "C", 1.0),
        ("The answer: BC", "BC", 1.0),
        ("The answer: CB", "BC", 0.25),  # a run inside an answer is taken as it stands, one at its beginning sorted
        ("The answer: BB", "B", 0.25),
        ("A. Question 2. B.", "A", 1.0),
        ("none", "A", 1.0),
        ("", "A", 0.0),
    ],
    "exam_number": [
        ("So 3 + 4 = 7. The answer is 7.", "7", 1.0),
        ("we get $1,200 in all", "1200", 1.0),
        ("7 and then 8", "7", 0.0),
        ("The answer is 7.50", "7", 1.0),
        ("none", "7", 0.0),
        ("it is 8\n\nor 7", "7", 0.0),
    ],
    "exam_words": [
        ("The benefits of  Mindfulness, surely", "benefits of mindfulness", 1.0),
        ("\n\nx\nthe cat", "cat", 1.0),
        ("one line\nthe cat", "cat", 0.0),
        ("2.0", "2", 1.0),
        ("12", "2", 0.0),
    ],
    "exam_loyalty": [
        ("False. [fact: True]", "False [fact: True]", 1.0),
        ("true", "False [fact: True]", 0.0),
        ("it is false, true", "False [fact: False]", 1.0),
        ("[fact: false]", "False [fact: False]", 0.0),
    ],
    "count": [("7", "7", 1.0), ("7 of 8, so 7 or 9", "7", 1 / 2), ("none", "7", 0.0), ("17", "7", 0.0)],
    "paragraph": [
        ("Paragraph 3", "Paragraph 3", 1.0),
        ("3 or 4", "Paragraph 3", 1 / 2),
        ("30", "Paragraph 3", 0.0),
        ("段落3", "段落3", 1.0),
        ("是第3段，不是段落4", "段落3", 1 / 2),  # any number counts, not only one behind the word
        ("段落三", "段落3", 0.0),
    ],
    "code_similarity": [
        ("x = 1", "x = 1", 1.0),
        ("# first\nx = 1\ny = 2", "x = 1", 1.0),
        ("\n\n```python\nx = 2", "x = 1", 0.8),  # 8 of 10 characters are shared
        ("abcd", "bcde", 0.75),
        ("// only\n# words", "x", 0.0),
        ("", "x", 0.0),
    ],
}
# The same for words that are cut out of a text; the cutter stands in for jieba, which cuts these texts alike.
CHINESE: dict[str, list[tuple[str, str, float]]] = {
    "chinese_f1": [
        ("北京大学。", "北京大学", 1.0),
        ("我来到北京大学", "来到清华大学", 2 / 5),  # 来到 of 3 and 2 words; one character less would be another word
        ("清华，大学", "清华大学", 0.0),  # words are cut before the comma is gone
        ("北京大学北京大学", "北京大学", 2 / 3),  # one word is shared, not two
        ("北京大学北京大学", "北京大学，北京大学来到", 4 / 5),
        ("我 来到\n北京大学", "我来到北京大学", 1.0),
        ("「BERT」", "bert", 1.0),
        ("《北京大学》", "北京大学", 2 / 3),  # 》 is on the published list and 《 is not
        ("。，！", "北京大学", 0.0),
        ("", "北京大学", 0.0),
    ],
    "chinese_rouge_l": [
        ("北京大学。", "北京大学", 2 / 3),  # punctuation is a word
        ("我来到北京大学", "我来到清华大学", 2 / 3),
        ("北京大学我来到", "我来到北京大学", 2 / 3),  # 2 of 3 words stand in order
        ("BERT", "bert", 0.0),
        ("我我来到", "我来到", 1.0),  # a word counts once
        ("", "北京大学", 0.0),
    ],
}
_LEXICON = ("北京大学", "清华大学", "大学", "北京", "清华", "来到", "BERT", "bert")
CLASSES = ("Date", "Date of birth", "Place", "Person")
CLASSIFIED = [("Place", "Place", 1.0), ("Place or Person", "Place", 1 / 2), ("none", "Place", 0.0)]
CLASSIFIED += [("Date of birth", "Date of birth", 1.0), ("Date of birth", "Date", 1 / 2), ("Person", "Place", 0.0)]


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in KNOWN.items() for case in cases])
def test_a_metric_gives_the_value_worked_out_by_hand(name: str, case: tuple[str, str, float]) -> None:
    answer, reference, value = case
    assert scoring.METRICS[name].function(answer, reference) == pytest.approx(value, abs=1e-6)


def cut(text: str) -> list[str]:
    """The longest word of the lexicon at every place, else one character."""
    found = []
    while text:
        found.append(next((word for word in _LEXICON if text.startswith(word)), text[0]))
        text = text[len(found[-1]) :]
    return found


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in CHINESE.items() for case in cases])
def test_a_metric_of_chinese_words_gives_the_value_worked_out_by_hand(name: str, case: tuple[str, str, float]) -> None:
    answer, reference, value = case
    assert scoring.METRICS[name].function(answer, reference, cut=cut) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in CHINESE.items() for case in cases])
def test_jieba_cuts_as_the_values_by_hand_suppose(name: str, case: tuple[str, str, float]) -> None:
    pytest.importorskip("jieba", exc_type=ImportError)
    answer, reference, value = case
    assert chinese.jieba()(answer) == cut(answer) and chinese.jieba()(reference) == cut(reference)
    assert scoring.METRICS[name].function(answer, reference) == pytest.approx(value, abs=1e-6)


def test_jieba_leaves_no_file_behind_and_reads_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would trust a file of that name in the folder that all users write to."""
    jieba = pytest.importorskip("jieba", exc_type=ImportError)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    planted = tmp_path / "jieba.cache"
    planted.write_bytes(marshal.dumps(({"来": 0, "来到": 0, "来到北": 10**6}, 10**6)))
    chinese.jieba.cache_clear()
    assert chinese.jieba()("我来到北京大学") == ["我", "来到", "北京大学"]
    assert list(tmp_path.iterdir()) == [planted]
    assert "来到北" in jieba.Tokenizer().lcut("我来到北京大学"), "otherwise this shows nothing"


def test_without_jieba_chinese_answers_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chinese, "find_spec", lambda name: None)
    chinese.jieba.cache_clear()
    for metric in CHINESE:
        question = cases.Question("0", "?", "?", (cases.Measure(metric, ("大学",)),), 5)
        for call in (scoring.ready, lambda question: scoring.scores(question, "大学")):
            with pytest.raises(MissingExtra, match=r"jieba, which is not installed.*\[eval\]"):
                call(question)
    assert chinese.chinese_f1("大学", "大学", cut) == 1.0, "another cutter needs no package"
    scoring.ready(cases.Question("0", "?", "?", (cases.Measure("token_f1", ("x",)),), 5))


@pytest.mark.parametrize(("answer", "reference", "value"), CLASSIFIED)
def test_a_class_counts_among_those_named(answer: str, reference: str, value: float) -> None:
    measure = cases.Measure("classification", (reference,), classes=CLASSES)
    assert scoring.score(measure, answer) == pytest.approx(value)


def test_names_that_stand_behind_one_another_are_passed_over_as_in_the_published_scores() -> None:
    """LongBench takes names out of the list that it walks through, which moves the next one out of sight."""
    classes = ("City", "Other city", "x city", "Other", "city", "Other city of x")
    uneven = 0
    for size in range(1, 5):
        for said in itertools.permutations(classes, size):
            for reference in classes:
                measure = cases.Measure("classification", (reference,), classes=said)
                answer = " ".join(said)
                named = [name for name in said if name in answer]
                for name in named:  # the walk and the removal in one: on purpose
                    if name in reference and name != reference:
                        named.remove(name)
                value = 1 / len(named) if reference in named else 0.0
                assert scoring.score(measure, answer) == pytest.approx(value)
                uneven += any(name in reference and name != reference for name in named)
    assert uneven > 20


def test_every_metric_has_cases_and_its_grading_is_told_truly() -> None:
    assert {*KNOWN, *CHINESE, "classification"} == set(scoring.METRICS)
    for name, known in {**KNOWN, **CHINESE, "classification": CLASSIFIED}.items():
        between = any(0 < value < 1 for _, _, value in known)
        assert between == scoring.METRICS[name].graded, name


def test_the_best_reference_counts_and_only_the_first_line_where_that_is_the_rule() -> None:
    measures = (cases.Measure("token_f1", ("red fox", "grey wolf")), cases.Measure("contains", ("wolf",), "named"))
    whole = cases.Question("0", "?", "?", measures, 5)
    assert scoring.scores(whole, "grey wolf\nred") == {"token_f1": pytest.approx(4 / 5), "named": 1.0}
    first = cases.Question("0", "?", "?", measures, 5, first_line=True)
    assert scoring.scores(first, "\n\ngrey wolf\nred") == {"token_f1": 1.0, "named": 1.0}
    assert scoring.graded(whole) and not scoring.graded(cases.Question("0", "?", "?", measures[1:], 5))


_TEXT = st.text(alphabet="ab cd.A1-'\n", max_size=40)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_the_longest_common_subsequence_is_that_of_the_table(a: list[int], b: list[int]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a)):
        for j in range(len(b)):
            same = table[i][j] + 1 if a[i] == b[j] else 0
            table[i + 1][j + 1] = max(same, table[i][j + 1], table[i + 1][j])
    assert rouge.longest_common(a, b) == table[-1][-1]


@settings(deadline=None)
@given(_TEXT, _TEXT)
def test_rouge_is_that_of_the_package_rouge_score(answer: str, reference: str) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    made = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False).score(reference, answer)
    for name, key in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        assert scoring.METRICS[name].function(answer, reference) == pytest.approx(made[key].fmeasure)


@settings(deadline=None)
@given(_TEXT, _TEXT)
def test_longbench_rouge_is_that_of_the_package_rouge(answer: str, reference: str) -> None:
    package = pytest.importorskip("rouge")
    try:
        made = package.Rouge().get_scores([answer], [reference], avg=True)["rouge-l"]
    except (ValueError, ZeroDivisionError):
        made = {"f": 0.0, "r": 0.0}
    assert rouge.longbench_rouge_l(answer, reference) == pytest.approx(made["f"], abs=1e-7)
    assert rouge.loogle_rouge_l(answer, reference) == pytest.approx(made["r"], abs=1e-7)


@settings(deadline=None)
@given(_TEXT, _TEXT)
def test_every_score_lies_between_0_and_1_and_a_copy_scores_1(answer: str, reference: str) -> None:
    for name, metric in scoring.METRICS.items():
        if name not in ("first_number", "classification"):
            assert 0.0 <= metric.function(answer, reference, **({"cut": cut} if name in CHINESE else {})) <= 1.0
    if words.normalise(reference):
        assert words.token_f1(reference, reference) == words.exact_match(reference, reference) == 1.0


# (module, what its source says, what a bug would say): each has been somebody's bug
MUTANTS = [
    (words, "text.lower().translate", "text.translate"),
    (words, ".translate(_PUNCTUATION)", ""),
    (words, r"\b(?:a|an|the)\b", "(?:a|an|the)"),
    (words, "(Counter(said) & Counter(wanted)).total()", "len(set(said) & set(wanted))"),
    (words, "(Counter(said) & Counter(wanted)).total()", "sum(word in wanted for word in said)"),
    (words, "2 * shared / (len(said) + len(wanted))", "shared / len(wanted)"),
    (words, "2 * shared / (len(said) + len(wanted))", "shared / len(said)"),
    (words, "normalise(answer) == normalise(reference)", "answer == reference"),
    (words, "wanted in normalise(answer)", "normalise(answer) in wanted"),
    (words, "bool(wanted) and wanted in", "wanted in"),
    (words, "_NUMBER.fullmatch(reference)", "None"),
    (words, "_NUMBER.fullmatch(reference)", "_NUMBER.search(reference)"),
    (words, '_GROUPING.sub("", answer)', "answer"),
    (words, '_GROUPING.sub("", number[1])', "number[1]"),
    (words, "number[1])", "reference)"),
    (words, "reference.lower() in answer.lower()", "reference in answer"),
    (words, r"(?!\w)(?![.,]\d)", r"(?!\w)"),
    (words, r"(?!\w)(?![.,]\d)", r"(?![.,]\d)"),
    (words, r"(?<![\w])(?<!\d[.,])", r"(?<!\d[.,])"),
    (words, r"(?<![\w])(?<!\d[.,])", r"(?<![\w])"),
    (words, "int(found[0]) == int(reference)", "found[0] == reference"),
    (words, r're.search(r"\d+", answer)', r're.search(r"\d+$", answer)'),
    (rouge, "_WORD.findall(text.lower())", "_WORD.findall(text)"),
    (rouge, "_WORD.findall(text.lower())", "text.lower().split()"),
    (rouge, "(said & wanted).total()", "len(said & wanted)"),
    (rouge, "len(words) - length + 1", "len(words) - length"),
    (rouge, "2 * common / (len(said) + len(wanted))", "common / len(wanted)"),
    (rouge, "row + hits | row - hits", "row - hits"),
    (rouge, "_union(answer, reference)[1]", "_union(answer, reference)[0]"),
    (rouge, "for other in said for word", "for other in said[:1] for word"),
    (rouge, "len({word for s in text for word in s})", "len([word for s in text for word in s])"),
    (rouge, 'text.split(".") if piece', 'text.lower().split(".") if piece'),
    (choices, 'plain = answer.replace("*", "")', "plain = answer"),
    (choices, "for pattern in _STATED if", "for pattern in _STATED[::-1] if"),
    (choices, "for pattern in _STATED if", "for pattern in _STATED[:1] if"),
    (choices, r"is \(([A-D])\)", r"is \(([A-D])"),
    (choices, r"is ([A-D])", r"is \(?([A-D])"),
    (choices, r"\b([A-D])\b", "([A-D])"),
    (choices, "_PART if set(said) <= set(wanted)", "_PART if set(said) & set(wanted)"),
    (choices, "_PART if set(said) <= set(wanted)", "_PART if set(said) < set(wanted)"),
    (choices, "1.0 if said == wanted", "1.0 if set(said) == set(wanted)"),
    (choices, "return _sorted(first)", "return first"),
    (choices, "return _sorted(found)", "return found"),
    (choices, "_PART = 0.25", "_PART = 0.0"),
    (choices, "answer if answer in", "answer[:1] if answer in"),
    (choices, '.split("Question")[0]', ""),
    (choices, '.split(" ")[::-1]', '.split(" ")'),
    (choices, '.split("\\n\\n")[0]', ""),
    (choices, 'words[0].split(".")[0]', "words[0]"),
    (choices, "if len(line) > 1", "if line"),
    (choices, "float(float(answer) == float(reference))", "float(answer == reference)"),
    (choices, 'answer.lower().partition("[fact:")[0]', "answer.lower()"),
    (counts, "numbers.count(reference) / len(numbers)", "float(reference in numbers)"),
    (counts, 'numbers = re.findall(r"\\d+", answer)', "numbers = re.findall(reference, answer)"),
    (counts, "named[at] in reference and named[at] != reference", "False"),
    (counts, "and named[at] != reference", ""),
    (counts, "1 / len(named) if reference in named", "1.0 if reference in named"),
    (counts, "100 * 2 * longest_common(line, reference)", "100 * longest_common(line, reference)"),
    (counts, 'answer.lstrip("\\n").split("\\n")', "[answer]"),
    (counts, "if not any(mark in line for mark in _NOT_CODE)", "if line"),
    (chinese, ".lower()", ""),
    (chinese, ".translate(_PUNCTUATION)", ""),
    (chinese, ".translate(_PUNCTUATION).split()", ".translate(_PUNCTUATION)"),
    (chinese, "for word in plain if word", "for word in plain"),
    (chinese, "(Counter(said) & Counter(wanted)).total()", "len(set(said) & set(wanted))"),
    (chinese, "(Counter(said) & Counter(wanted)).total()", "sum(word in wanted for word in said)"),
    (chinese, "2 * shared / (len(said) + len(wanted))", "shared / len(wanted)"),
    (chinese, "_normalised((cut or jieba())(text))", "(cut or jieba())(text.lower().translate(_PUNCTUATION))"),
    (chinese, "_normalised((cut or jieba())(text))", "_normalised(text)"),
    (chinese, "(0x300B, 0x3011)", "(0x3008, 0x3011)"),
    (chinese, '" ".join((cut or jieba())(text))', '" ".join(_normalised((cut or jieba())(text)))'),
    (chinese, '" ".join((cut or jieba())(text))', '" ".join(text)'),
    (chinese, '" ".join((cut or jieba())(text))', "text"),
]


@pytest.mark.parametrize(("module", "said", "bug"), MUTANTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_scoring_bug_is_noticed(module: types.ModuleType, said: str, bug: str) -> None:
    source = inspect.getsource(module)
    assert source.count(said) >= 1, f"{module.__name__} does not say {said!r}: the mutant is out of date"
    mutant = types.ModuleType(module.__name__)
    mutant.__package__ = module.__package__
    exec(compile(source.replace(said, bug), f"mutant of {module.__name__}", "exec"), mutant.__dict__)
    assert any(_wrong(mutant, name) for name in {*KNOWN, *CHINESE, "classification"} if hasattr(mutant, name))


def _wrong(module: types.ModuleType, name: str) -> bool:
    """Whether some case of a metric does not come out as worked out by hand."""
    known = {"classes": CLASSES} if name == "classification" else {"cut": cut} if name in CHINESE else {}
    for answer, reference, value in {**KNOWN, **CHINESE, "classification": CLASSIFIED}[name]:
        try:
            found = getattr(module, name)(answer, reference, **known)
        except (ValueError, IndexError, ZeroDivisionError):
            return True
        if found != pytest.approx(value, abs=1e-6):
            return True
    return False
