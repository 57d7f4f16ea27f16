"""Broken copies of every metric: scoring bugs that such code has had, each noticed by a value worked out by hand."""

from __future__ import annotations

import importlib
import inspect
import types

import pytest
from known_scores import CHINESE, CLASSES, CLASSIFIED, KNOWN, cut

words = importlib.import_module("longctx.pipelines.metrics.words")
rouge = importlib.import_module("longctx.pipelines.metrics.rouge")
choices = importlib.import_module("longctx.pipelines.metrics.choices")
counts = importlib.import_module("longctx.pipelines.metrics.counts")
chinese = importlib.import_module("longctx.pipelines.metrics.chinese")

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
