"""What ``longctx bench kv`` asks: contexts of token ids, each with questions that nobody knew when it was read.

Owns where texts and questions come from and how a prompt is cut in two. Knows no policy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx import plugins
from longctx.errors import UsageError

from .cases import Case, Measure, Question, rows
from .haystack import Haystack, counter, sources, tokens_of
from .long_qa import draw, read_cases
from .needle_grid import Grid, texts
from .needle_scores import said
from .scoring import scores

NEEDLES, PARAGRAPHS = "needles", "xquad"
_MARK = "\u2063longctx\u2063"  # stands for the text and the question while a template is applied
_MOST_NEW = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """One question behind a context; ``score`` gives every measure of an answer by name, the first one first."""

    id: str
    prompt: str
    max_new_tokens: int
    score: Callable[[str], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Source:
    """One text with all its questions. ``facts`` tell it from others in its rows."""

    document: str
    text: str
    facts: Mapping[str, Any]
    questions: tuple[Asked, ...]


class Frame:
    """The turn of a chat around a text and the question behind it, as token ids.

    A base model, and any model without ``chat``, is given the text and the question and goes on from "Answer:". Text
    and question are encoded by themselves, so that the context's ids do not depend on the question, and no text can
    write a special token.
    """

    def __init__(self, tokenizer: Any, chat: bool = True) -> None:
        self._tokenizer = tokenizer
        if tokenizer.chat_template is None or not chat:
            self._before: list[int] = list(tokenizer("")["input_ids"])
            self._after = self._plain("\n\nAnswer:")
            return
        turns = [{"role": "user", "content": _MARK}]
        whole = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        before, _, after = whole.partition(_MARK)
        self._before, self._after = (
            list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, after)
        )

    def context(self, text: str) -> list[int]:
        return [*self._before, *self._plain(text)]

    def question(self, prompt: str) -> list[int]:
        return [*self._plain(f"\n\n{prompt}"), *self._after]

    def _plain(self, text: str) -> list[int]:
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(found["input_ids"])


def needles(
    tokenizer: Any, task: str, lengths: Sequence[int], seeds: Sequence[int], count: int, haystack: Path | None
) -> Iterator[Source]:
    """``count`` facts in one text for every length and seed; facts that a text holds one of have a text each."""
    counts = counter(tokenizer)
    grid = Grid(tasks=(task,), lengths=tuple(lengths), depths=count, seeds=tuple(seeds), together=True)
    kind = plugins.load("needles", task)
    stack = Haystack(sources([] if haystack is None else [haystack]), counts)
    for (_, length, seed, group), make in texts(grid, stack, counts):
        made = make()
        which = f", fact {group[0]}" if kind.stands == "alone" else ""
        asked = tuple(
            Asked(
                str(fact),
                f"{case.question} Answer briefly.",
                _MOST_NEW,
                lambda answer, case=case: {"said": said(answer, case, kind.scoring)},  # type: ignore[misc]
            )
            for fact, case in made.cases
        )
        yield Source(f"{task}, {length} tokens, seed {seed}{which}", made.planted.text, {"length": length}, asked)


def paragraphs(tokenizer: Any, folder: Path, lengths: Sequence[int], sample: int, seed: int) -> Iterator[Source]:
    """For every length, as many paragraphs as fit one after another, and ``sample`` of the questions about them.

    Rows have a ``context`` and ``qas`` of a ``question`` and its ``answers``, as in SQuAD.
    """
    counts = counter(tokenizer)
    for length in lengths:
        text = ""
        questions: list[Question] = []
        for row in rows(folder):
            longer = f"{text}{row.text('context')}\n\n"
            if tokens_of(longer, counts) > length:
                break
            text = longer
            for value in row.items("qas"):
                own = row.within(value)
                answers = tuple(map(str, own.items("answers"))) if isinstance(own.fields["answers"], list) else ()
                measures = tuple(
                    Measure(metric, answers or (own.text("answers"),)) for metric in ("contains", "token_f1")
                )
                asked = own.text("question")
                prompt = f"{asked}\nAnswer with a short phrase."
                questions.append(Question(str(len(questions)), asked, prompt, measures, _MOST_NEW))
        if not questions:
            raise UsageError(f"{folder} has no paragraph that fits {length:,} tokens.")
        random.Random(seed).shuffle(questions)
        yield Source(f"{PARAGRAPHS}, {length} tokens", text, {"length": length}, tuple(map(_asked, questions[:sample])))


def suite(
    tokenizer: Any, name: str, folder: Path, sample: int, seed: int, shortest: int, longest: int, documents: int = 0
) -> Iterator[Source]:
    """``sample`` questions drawn of a suite's documents of ``shortest`` to ``longest`` tokens; 0 ``documents``: of all.

    The documents come in an order drawn by ``seed``, so that what was asked by any moment is a sample too.
    """
    counts = counter(tokenizer)
    within = [c for c in read_cases(name, folder) if shortest <= tokens_of(c.text, counts) <= longest]
    if not within:
        raise UsageError(f"{folder} has no document of {name} with {shortest:,} to {longest:,} tokens.")
    order = list(range(len(within)))
    random.Random(seed).shuffle(order)
    chosen = [within[place] for place in sorted(order[: documents or None])]
    place = {within[number].name: at for at, number in enumerate(order)}
    for case in sorted(draw(chosen, sample, seed), key=lambda case: place[case.name]):
        yield _source(case)


def _source(case: Case) -> Source:
    return Source(case.name, case.text, {"task": case.task}, tuple(map(_asked, case.questions)))


def _asked(question: Question) -> Asked:
    return Asked(question.id, question.prompt, question.max_new_tokens, lambda answer: scores(question, answer))
