"""What every needle task owes the job: facts that follow the seed, answers that stand in the evidence, its own keys."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice

import pytest

from longctx import plugins
from longctx.pipelines.haystack import Haystack, plant, rebuilt, sentences
from longctx.pipelines.needle_scores import names, said
from longctx.pipelines.needles._nouns import Drawn

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PROSE = [f"In week {i} the market by the river was quiet and little was sold. " for i in range(400)]

each_task = pytest.mark.parametrize("name", plugins.names("needles"))


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def drawn(name: str, seed: int = 0, depths: tuple[float, ...] = DEPTHS, distractors: int = 0) -> Drawn:
    made: Drawn = plugins.load("needles", name).draw(random.Random(seed), depths, distractors)
    return made


@each_task
def test_the_seed_decides_the_facts(name: str) -> None:
    assert drawn(name).cases == drawn(name).cases
    assert drawn(name).cases != drawn(name, seed=1).cases
    assert len(drawn(name).cases) == (1 if plugins.load("needles", name).stands == "nowhere" else len(DEPTHS))


@each_task
def test_every_answer_stands_in_the_evidence_and_not_in_the_question(name: str) -> None:
    for case in drawn(name).cases:
        evidence = " ".join(needle.text for needle in case.needles if needle.evidence)
        for answer in case.answers:
            assert not names(case.question, answer)
            assert names(evidence, answer) or not case.needles
        assert all(0.0 <= needle.place <= 1.0 for needle in case.needles)


@each_task
def test_naming_the_answers_is_right_and_naming_nothing_or_everything_else_is_wrong(name: str) -> None:
    scoring = plugins.load("needles", name).scoring
    for case in drawn(name).cases:
        assert said(" and ".join(case.answers), case, scoring) == 1.0
        assert said("I do not know.", case, scoring) == 0.0
        if case.others:
            assert said(" and ".join([*case.answers, *case.others]), case, "exact") == 0.0


@each_task
def test_no_key_of_one_case_serves_another_or_stands_in_the_filler(name: str) -> None:
    made = drawn(name)
    keys = [key for case in made.cases for key in case.keys]
    assert len(keys) == len(set(keys))
    if made.filler is not None:
        text = " ".join(islice(made.filler(), 2000))
        assert not [key for key in keys if key in text]


@each_task
def test_distractors_are_facts_with_keys_of_their_own(name: str) -> None:
    if plugins.load("needles", name).distractors is None:
        assert drawn(name, distractors=3).distractors == ()
        return
    made = drawn(name, distractors=3)
    groups = [made.distractors] if made.distractors else [case.distractors for case in made.cases]
    texts = [needle.text for group in groups for own in group for needle in own]
    assert {len(group) for group in groups} == {3} and len(set(texts)) == len(texts)
    assert drawn(name, distractors=0).cases == tuple(replace(case, distractors=()) for case in made.cases)
    assert not [key for case in made.cases for key in case.keys if names(" ".join(texts), key)]


@each_task
def test_a_text_holds_every_needle_where_its_span_says(name: str) -> None:
    made = drawn(name, depths=(0.5,))
    needles = made.cases[0].needles
    take = Haystack(sentences(made.filler()) if made.filler else iter([PROSE]), words).take
    planted = plant(take, needles, 1500, words)
    assert [planted.text[start:end] for start, end in planted.spans] == [needle.text for needle in needles]
    assert 1400 <= planted.tokens <= 1500
    bare = "".join(take(1500)[0])[: planted.chars]
    assert rebuilt(bare, planted.inserted) == planted.text
