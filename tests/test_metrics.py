"""Every metric against values worked out by hand and against the program the benchmark uses.

The oracles are rewritten here slowly from their descriptions, or are the packages rouge-score and rouge where they are
installed.
"""

from __future__ import annotations

import importlib
import itertools
import marshal
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_scores import CHINESE, CLASSES, CLASSIFIED, KNOWN, cut

from longctx.errors import MissingExtra

words = importlib.import_module("longctx.pipelines.metrics.words")
rouge = importlib.import_module("longctx.pipelines.metrics.rouge")
chinese = importlib.import_module("longctx.pipelines.metrics.chinese")
scoring = importlib.import_module("longctx.pipelines.scoring")
cases = importlib.import_module("longctx.pipelines.cases")


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in KNOWN.items() for case in cases])
def test_a_metric_gives_the_value_worked_out_by_hand(name: str, case: tuple[str, str, float]) -> None:
    answer, reference, value = case
    assert scoring.METRICS[name].function(answer, reference) == pytest.approx(value, abs=1e-6)


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
