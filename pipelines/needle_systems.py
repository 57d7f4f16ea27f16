"""The systems under test: a selector of longctx, and the model's own ``generate`` on all of the text or on its ends.

Owns what each is given and what it reports of what it read. Knows no task, no row and no score.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import longctx
from longctx.errors import DoesNotFit, UsageError

_SEAM = 2  # tokens that two ends may count more where they were cut
_SEPARATOR = "\n\n"  # between the spans that a reader gives its model
_EVERYTHING = "all"  # the selector that keeps the whole text
_LONGEST_TOKEN = 16  # characters; of a text that has longer ones, less is kept
Progress = Callable[[str, int, int], None]
Spans = tuple[tuple[int, int], ...]
PLAIN = ("full", "truncated")
# The words around text and question, the same that a reader puts there.
_TURN = "Answer the question with the text below. Answer briefly.\n\nText:\n{text}\n\nQuestion: {question}"


@dataclass(frozen=True, slots=True)
class Said:
    """An answer; ``read`` are the characters of the document that the model was given, in its order, None: not known.

    There are none where the model was not asked. ``between`` stands between them; where it is empty they are given as
    they stand in the text, else without line ends at their own ends. ``selected`` is what a selection held of the
    document, in its order, whether it was given to the model or not; None where nothing is selected.
    ``tokens_read`` were read for choosing them, now and not for an earlier question.
    """

    text: str
    read: Spans | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    tokens_read: int = 0
    between: str = ""
    selected: Spans | None = None


def joined(text: str, spans: Sequence[Sequence[int]], between: str) -> str:
    """The spans as they stand in a prompt: see ``Said``."""
    pieces = [text[start:end] for start, end in spans]
    return between.join(piece.strip("\r\n") for piece in pieces) if between else "".join(pieces)


def turn(text: str, question: str) -> str:
    """The prompt as the user's turn of a conversation."""
    return _TURN.format(text=text, question=question)


class System(Protocol):
    """Answers one question about one text. ``settings`` must be the same for its rows to be compared.

    Raises DoesNotFit or EndpointError when it cannot answer.
    """

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...

    def answer(self, document: longctx.Document, question: str) -> Said: ...


class Books:
    """The latest document, compiled once for all selectors and questions."""

    def __init__(self, reader: longctx.Reader, progress: Progress | None = None) -> None:
        self.reader, self.progress = reader, progress or False
        self._latest: tuple[longctx.Document, Any] | None = None

    def __call__(self, document: longctx.Document) -> tuple[Any, float]:
        """The compiled document, and the seconds that compiling took now."""
        if self._latest is not None and self._latest[0] is document:
            return self._latest[1], 0.0
        self._latest = None  # two long documents are never held at once
        started = time.perf_counter()
        book = self.reader.compile(document, progress=self.progress)
        self._latest = (document, book)
        return book, time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Selecting:
    """A selector within its budget, and the model on what it kept, through a bounded cache where ``kv`` names one.

    ``drafters`` are named in each row alone: they change how fast an answer comes, and in 16 bits how it is rounded, by
    the clock. Without them a run says what the last one said.
    """

    books: Books
    selector: str
    budget_tokens: int
    max_new_tokens: int
    reading: Mapping[str, Any]  # how the reader was made
    kv: str | None = None
    drafters: str | Sequence[str] = "none"
    allow_partial: bool = False  # of kv

    @property
    def name(self) -> str:
        return named(self.selector, self.kv)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            **model_settings(self.books.reader, self.max_new_tokens),
            "budget": None if self.selector == _EVERYTHING else self.budget_tokens,
            "kv": self.kv,
            **self.reading,
        }

    def answer(self, document: longctx.Document, question: str) -> Said:
        source, compiling = self._source(document)
        answer = self.books.reader.ask(
            source,
            question,
            budget_tokens=self.budget_tokens,
            max_new_tokens=self.max_new_tokens,
            selector=self.selector,
            drafters=self.drafters,
            kv=self.kv,
            allow_partial=self.allow_partial,
            progress=self.books.progress,
        )
        timings = {name.removesuffix("_seconds"): seconds for name, seconds in answer.timings.items()}
        seconds = {**timings, "compile": timings["compile"] + compiling}
        facts: dict[str, Any] = {**answer.usage, "drafters": self.drafters}
        decoded = next(step.facts for step in answer.trace if step.name == "decode")
        facts |= {"kv": decoded["kv"]} if "kv" in decoded else {}
        tokens_read = facts.pop("selection_tokens_read")
        read, selected = (_characters(spans) for spans in (answer.selection.as_read, answer.selection.spans))
        return Said(answer.text, read, facts, seconds, tuple(answer.warnings), tokens_read, _SEPARATOR, selected)

    def _source(self, document: longctx.Document) -> tuple[Any, float]:
        """What is asked of, and the seconds of compiling it. All of a text needs no segments to choose from."""
        return (document, 0.0) if self.selector == _EVERYTHING else self.books(document)


def named(selector: str, kv: str | None) -> str:
    """What a selector is called in rows, tables and pictures: with another bounded cache it is another system."""
    return selector if kv is None else f"{selector} --kv {kv}"


def _characters(spans: Sequence[Any]) -> Spans:
    return tuple((span.start, span.end) for span in spans)


@dataclass(frozen=True, slots=True)
class Plain:
    """Hugging Face ``generate``, greedy. ``truncated`` keeps both ends; any other name reads all, or is refused.

    ``more`` is given to ``generate`` as it is.
    """

    reader: longctx.Reader
    name: str
    max_new_tokens: int
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**model_settings(self.reader, self.max_new_tokens), "decoding": self._decoding}

    @property
    def _decoding(self) -> dict[str, Any]:
        """Greedy, and nothing of what a model's own settings may add: a reader does not follow these either."""
        return {"do_sample": False, "eos_token_id": self.reader.model.generation_config.eos_token_id}

    def answer(self, document: longctx.Document, question: str) -> Said:
        import torch

        model, tokenizer = self.reader.model, self.reader.tokenizer
        read = self._read(document.text, question)
        text = joined(document.text, read, "")
        prompt = self.reader.prompt(text, question)
        room = self.reader.window - self.max_new_tokens
        if len(prompt) > room:
            raise DoesNotFit(
                f"the prompt has {len(prompt):,} tokens and {self.max_new_tokens} new ones are asked for, but the "
                f"model's window is {self.reader.window:,}: plain generation reads no more."
            )
        started = time.perf_counter()
        ids = torch.tensor([prompt], device=model.device)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        # generate takes what a given configuration leaves open from the model's own, so the model gets another one: a
        # copy that shares every weight, for the caller's stays as it is
        clean = copy.copy(model)
        clean.generation_config = type(model.generation_config)(**self._decoding, pad_token_id=pad)
        with torch.inference_mode():
            mask = torch.ones_like(ids)
            out = clean.generate(ids, attention_mask=mask, max_new_tokens=self.max_new_tokens, **self.more)
        new = out[0, len(prompt) :].tolist()
        said = str(tokenizer.decode(new, skip_special_tokens=True)).strip()
        facts = {"prompt_tokens": len(prompt), "new_tokens": len(new)}
        return Said(said, read, facts, {"decode": time.perf_counter() - started})

    def _read(self, text: str, question: str) -> Spans:
        """The characters that are read: all, or as much of both ends as the window holds."""
        if self.name != "truncated" or not text:
            return ((0, len(text)),)
        half = (self.reader.longest_selection(question, self.max_new_tokens) - _SEAM) // 2
        chars = half * _LONGEST_TOKEN
        if len(text) <= 2 * chars:
            starts = self._starts(text)
            if len(starts) <= 2 * half:
                return ((0, len(text)),)
            return ((0, starts[half]), (starts[-half], len(text)))
        head, tail = self._starts(text[:chars]), self._starts(text[-chars:])
        end = head[half] if len(head) > half else chars
        return ((0, end), (len(text) - chars + tail[-half:][0], len(text)))

    def _starts(self, text: str) -> list[int]:
        """The character at which each token begins."""
        found = self.reader.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return [start for start, _ in found["offset_mapping"]]


def model_settings(reader: longctx.Reader, max_new_tokens: int) -> dict[str, Any]:
    """What tells one model from another, and how long its answers may be."""
    return {
        "fingerprint": reader.fingerprint[:16],
        "dtype": str(reader.model.dtype).removeprefix("torch."),
        "device": str(reader.model.device),
        "max_new_tokens": max_new_tokens,
    }


def check_plain(names: Sequence[str]) -> None:
    """Raises UsageError for a name that is not in PLAIN."""
    for name in names:
        if name not in PLAIN:
            raise UsageError(f"--plain {name!r} is not one of {', '.join(PLAIN)}.")
