"""The grid of a run of needles and the texts it stands for, in a fixed order.

Owns which facts stand in which text, how many distractors stand beside them, and the draws that keep a key from
standing in a text twice. Knows no system under test and no row.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from longctx import plugins
from longctx.errors import UsageError

from .haystack import Count, Haystack, Planted, plant, sentences
from .needles._nouns import Case, Drawn, Task

Place = tuple[str, int, int, tuple[int, ...]]  # task, length, seed, facts
_DRAWS = 16  # of the facts of one text, until none of their keys stands in the haystack


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is asked. ``distractors`` None: as many as each task plants by itself.

    ``together``: one text for all facts of a task, length and seed.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: int = 5
    seeds: tuple[int, ...] = (0,)
    distractors: int | None = None
    together: bool = False

    def __post_init__(self) -> None:
        for name, values in (("--task", self.tasks), ("--lengths", self.lengths), ("--seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise UsageError(f"{name} must name one or more different values, not {values!r}.")
        if self.depths < 1 or min(self.lengths) < 1 or (self.distractors or 0) < 0:
            raise UsageError(
                f"--depths {self.depths} and --lengths {','.join(map(str, self.lengths))} must be at least 1, and "
                f"--distractors {self.distractors or 0} not negative."
            )
        for spec in self.tasks:
            beside(plugins.load("needles", spec), spec, self)

    @property
    def shares(self) -> list[float]:
        """The depths: equally far apart from the beginning of the text to its end; one depth is the middle."""
        return [0.5] if self.depths == 1 else [i / (self.depths - 1) for i in range(self.depths)]


@dataclass(frozen=True, slots=True)
class Text:
    """One text of the grid and the cases asked of it, by the number of their fact.

    ``evidence`` and ``places`` are the characters of each case's evidence and the shares of the text before it, which
    a sentence's end keeps from being ``depths`` exactly. ``own``: the haystack is the task's.
    """

    task: str
    length: int
    seed: int
    draws: int
    own: bool
    planted: Planted
    cases: tuple[tuple[int, Case], ...]
    evidence: tuple[tuple[tuple[int, int], ...], ...]
    places: tuple[tuple[float, ...], ...]
    depths: tuple[float | None, ...]


def beside(task: Task, spec: str, grid: Grid) -> int:
    """How many distractors a task plants. Raises UsageError where some are asked for of a task that has none."""
    if grid.distractors is None:
        return task.distractors or 0
    if task.distractors is None and grid.distractors:
        raise UsageError(f"the task {spec!r} has no distractors to plant. Leave --distractors out for it.")
    return grid.distractors


def texts(grid: Grid, haystack: Haystack, count: Count) -> Iterator[tuple[Place, Callable[[], Text]]]:
    """Every text of the grid as (task, length, seed, facts) and a function that makes it."""
    for length in grid.lengths:
        for spec in grid.tasks:
            task = plugins.load("needles", spec)
            for seed in grid.seeds:
                for group in _groups(task, grid):
                    yield (spec, length, seed, group), _Maker(grid, task, spec, length, seed, group, haystack, count)


def _groups(task: Task, grid: Grid) -> list[tuple[int, ...]]:
    """The numbers of the facts that stand in one text, for every text of one length and seed."""
    facts = range(1 if task.stands == "nowhere" else grid.depths)
    return [tuple(facts)] if grid.together and task.stands == "together" else [(fact,) for fact in facts]


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes one text when it is needed: a run that goes on makes none of those it has asked about."""

    grid: Grid
    task: Task
    spec: str
    length: int
    seed: int
    facts: tuple[int, ...]
    haystack: Haystack
    count: Count

    def __call__(self) -> Text:
        drawn, draws, cases, planted = self._made()
        evidence, places, depths, at = [], [], [], 0
        for fact, case in zip(self.facts, cases, strict=True):
            numbers = [at + i for i, needle in enumerate(case.needles) if needle.evidence]
            evidence.append(tuple(planted.spans[i] for i in numbers))
            places.append(tuple(round(planted.depths[i], 4) for i in numbers))
            depths.append(None if self.task.stands == "nowhere" else self.grid.shares[fact])
            at += len(case.needles)
        return Text(
            task=self.spec,
            length=self.length,
            seed=self.seed,
            draws=draws,
            own=drawn.filler is not None,
            planted=planted,
            cases=tuple(zip(self.facts, cases, strict=True)),
            evidence=tuple(evidence),
            places=tuple(places),
            depths=tuple(depths),
        )

    def _made(self) -> tuple[Drawn, int, list[Case], Planted]:
        """Facts that leave every question one answer in their text, how many draws that took, the cases, the text."""
        wanted = beside(self.task, self.spec, self.grid)
        haystack = said = ""  # as answers are scored: whatever the case and the white space
        for draws in range(1, _DRAWS + 1):
            drawn = drawn_facts(self.task, self.spec, self.seed, draws, self.grid.shares, wanted)
            if drawn.filler is None:
                haystack = haystack or _plainly("".join(self.haystack.take(self.length)[0]))
                found = [key for case in drawn.cases for key in case.keys if _plainly(key) in haystack]
                if found:
                    said = (
                        f"some key always stood in the haystack already, at last {found[0]!r}. Use another --haystack "
                        "or seed, or fewer --depths."
                    )
                    continue
            cases = [drawn.cases[fact] for fact in self.facts]
            planted = self._planted(drawn, cases, wanted)
            if drawn.counted is None:
                return drawn, draws, cases, planted
            if answers := drawn.counted(planted.text):
                return drawn, draws, [replace(case, answers=answers) for case in cases], planted
            said = f"no text of {self.length:,} tokens had a single answer. Use longer --lengths."
        raise UsageError(f"in {_DRAWS} draws of the task {self.spec!r} {said}")

    def _planted(self, drawn: Drawn, cases: Sequence[Case], wanted: int) -> Planted:
        """The text with the cases' needles and so many distractors."""
        more = drawn.distractors[: max(0, wanted - len(cases) + 1)]  # the other facts are of the same form
        more += tuple(other for case in cases for other in case.distractors)
        needles = [needle for own in (*(case.needles for case in cases), *more) for needle in own]
        take = Haystack(sentences(drawn.filler()), self.count).take if drawn.filler else self.haystack.take
        return plant(take, needles, self.length, self.count)


def _plainly(text: str) -> str:
    return " ".join(text.casefold().split())


def drawn_facts(task: Task, spec: str, seed: int, draws: int, shares: Sequence[float], distractors: int) -> Drawn:
    """The facts of the ``draws``-th draw."""
    return task.draw(random.Random(f"{spec}|{seed}|{draws}"), shares, distractors)


def counted(grid: Grid) -> tuple[int, int]:
    """How many texts and questions the grid has for each length."""
    texts = questions = 0
    for spec in grid.tasks:
        groups = _groups(plugins.load("needles", spec), grid)
        texts += len(groups) * len(grid.seeds)
        questions += sum(map(len, groups)) * len(grid.seeds)
    return texts, questions


def check_lengths(grid: Grid, haystack: Haystack, count: Count) -> None:
    """Raises UsageError for a haystack shorter than the longest text made from it, and needles that fit no shortest."""
    for spec in grid.tasks:
        task = plugins.load("needles", spec)
        if drawn_facts(task, spec, grid.seeds[0], 1, grid.shares, 0).filler is None:
            haystack.take(max(grid.lengths))
    shortest = replace(grid, lengths=(min(grid.lengths),), seeds=grid.seeds[:1])
    for (_, _, _, group), make in texts(shortest, haystack, count):
        if group[0] == 0:  # one text of every task
            make()
