"""Facts that stand in one text are told apart by their sentences, unless distractors are asked for."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence

import pytest

from longctx import plugins
from longctx.pipelines.haystack import Haystack
from longctx.pipelines.needle_grid import Grid
from longctx.pipelines.needle_grid import texts as needle_texts

TASKS = ("single", "number", "uuid")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", (0, 1))
def test_twenty_facts_share_no_sentence_and_no_question(task: str, seed: int) -> None:
    cases = plugins.load("needles", task).draw(random.Random(seed), [i / 19 for i in range(20)], 0).cases
    assert len({case.keys for case in cases}) == 20 and len({case.answers for case in cases}) > 5
    for one, other in itertools.combinations(cases, 2):
        # a question has more words of its own sentence than of any other
        own, apart = (_shared(one.question, case.needles[0].text) for case in (one, other))
        assert own > apart, (one.question, other.needles[0].text)


@pytest.mark.parametrize("task", TASKS)
def test_seeds_deal_other_forms_to_the_depths(task: str) -> None:
    drawn = [plugins.load("needles", task).draw(random.Random(seed), [0.0, 0.5, 1.0], 0).cases for seed in range(6)]
    assert len({_bare(cases[0].needles[0].text) for cases in drawn}) > 2


@pytest.mark.parametrize("task", TASKS)
def test_more_facts_than_forms_are_drawn_all_the_same(task: str) -> None:
    cases = plugins.load("needles", task).draw(random.Random(0), [i / 49 for i in range(50)], 0).cases
    assert len({case.question for case in cases}) == 50


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("together", "texts", "sentences"), [(False, 5, 4), (True, 1, 20)])
def test_every_fact_stands_beside_so_many_others_of_its_form(
    task: str, together: bool, texts: int, sentences: int
) -> None:
    grid = Grid(tasks=(task,), lengths=(1500,), depths=5, distractors=3, together=together)
    stack = Haystack(iter([[f"Word {i} of a plain text. " for i in range(1000)]]), _count)
    found = [make() for _, make in needle_texts(grid, stack, _count)]
    assert len(found) == texts
    for text in found:
        assert len(text.planted.inserted) == sentences
        planted = [set(_bare(sentence).split()) for _, sentence in text.planted.inserted]
        for _, case in text.cases:
            own = set(_bare(case.needles[0].text).split())
            # a thing or a colour may differ
            assert sum(len(own ^ other) <= 2 for other in planted) == 4, (own, planted)


def _count(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _shared(question: str, sentence: str) -> int:
    return len(_words(question) & _words(sentence))


def _bare(text: str) -> str:
    """Without names, numbers and UUIDs."""
    return " ".join(word for word in re.sub("[0-9a-f-]{36}", "", text).rstrip(".").split() if word.islower())
