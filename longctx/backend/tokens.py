"""Text to ids and back, with exact offsets, and the frame of a prompt in the model's own chat template.

Owns tokenisation. Document text and questions are always encoded as plain text: a special token spelled out in a
document stays spelled out, so a document can never forge a role. Knows no model weights and no method.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from longctx.errors import ModelError
from longctx.types import Document, EncodedDocument

_CHUNK_CHARS = 50_000  # characters per call of the tokenizer; its working memory is many times the text
_BATCH = 16
# Where a long text may be cut without changing its tokens: before a single space between two words.
_SEAM = re.compile(r"(?<=\S) (?=\S)")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Stands for the user's turn while the template is rendered; quotes and a newline show whether it is kept as it is.
_HOLE = "\uf8ff\ue000\"longctx\"\n'longctx'\ue000\uf8ff"

INSTRUCTION = "Answer the question with the text below. Answer briefly.\n\nText:\n"
QUESTION = "\n\nQuestion: "
CUE = "\nAnswer:"  # for models without a chat template


@dataclass(frozen=True, slots=True)
class Frame:
    """The fixed parts of a prompt as ids: ``before`` + text + ``middle`` + question + ``after``."""

    before: tuple[int, ...]
    middle: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.before) + len(self.middle) + len(self.after)


class Tokens:
    """A tokenizer behind four questions: encode a document, encode plain text, frame a prompt, decode ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(tokenizer).__name__} gives no character offsets (it is not a fast tokenizer), so spans and "
                "citations cannot be exact. Load the model with its tokenizer.json."
            )
        self.tokenizer = tokenizer
        self._control = _control(tokenizer)

    def plain(self, text: str) -> list[int]:
        """Ids of ``text`` alone: nothing added, nothing parsed as a special token."""
        pieces = [text[a:b] for a, b in self._apart(text, 0, len(text))]
        return [int(i) for ids in self._call(pieces)["input_ids"] for i in ids] if pieces else []

    def encode(self, document: Document, *, at_once: bool = False) -> EncodedDocument:
        """The document's tokens; token ``i`` begins at character ``token_starts[i]``.

        A long text is cut in places where that hardly ever changes a token; ``at_once``: nowhere, as ``plain`` does.
        """
        text = document.text
        cuts = [(0, len(text))] if at_once else _chunks(text)
        chunks = [piece for a, b in cuts for piece in self._apart(text, a, b)]
        ids: list[NDArray[np.int32]] = []
        starts: list[NDArray[np.int64]] = []
        for at in range(0, len(chunks), _BATCH):
            group = chunks[at : at + _BATCH]
            out = self._call([text[a:b] for a, b in group], offsets=True)
            for (a, _), own, offsets in zip(group, out["input_ids"], out["offset_mapping"], strict=True):
                ids.append(np.asarray(own, dtype=np.int32))
                starts.append(np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 0] + a)
        all_ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        all_starts = np.concatenate(starts) if starts else np.zeros(0, np.int64)
        if not len(all_ids):
            raise ModelError(
                f"the tokenizer made no tokens of document {document.id!r} ({len(document.text)} characters)."
            )
        # tokens that stand for nothing visible may report an earlier offset; a start never lies before its neighbour's
        all_starts = np.maximum.accumulate(all_starts)
        all_starts[0] = 0
        return EncodedDocument(document, all_ids, all_starts)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def frame(self) -> Frame:
        """The prompt's fixed parts, from the chat template where there is one; one BOS where the model wants one."""
        if not getattr(self.tokenizer, "chat_template", None):
            before = (*self._bos(), *self.plain(INSTRUCTION))
            return Frame(before, tuple(self.plain(QUESTION)), tuple(self.plain(CUE)))
        head, tail = self._around()
        return Frame(
            (*self._template(head), *self.plain(INSTRUCTION)), tuple(self.plain(QUESTION)), tuple(self._template(tail))
        )

    def turn(self, text: str) -> list[int]:
        """The prompt that asks what follows ``text``: one user's turn in the chat template, or the text behind BOS."""
        if not getattr(self.tokenizer, "chat_template", None):
            return [*self._bos(), *self.plain(text)]
        head, tail = self._around()
        return [*self._template(head), *self.plain(text), *self._template(tail)]

    def stops(self, generation_eos: Any) -> tuple[int, ...]:
        """Every id that ends an answer: the model's own and the tokenizer's."""
        own = generation_eos if isinstance(generation_eos, (list, tuple)) else [generation_eos]
        return tuple(sorted({int(i) for i in (*own, self.tokenizer.eos_token_id) if i is not None}))

    def _bos(self) -> list[int]:
        """The token that begins every text, where the model wants one."""
        bos = self.tokenizer.bos_token_id
        adds = self.tokenizer("", add_special_tokens=True)["input_ids"]
        return [int(bos)] if bos is not None and bos in adds else []

    def _around(self) -> tuple[str, str]:
        """The chat template's text before and after the user's words."""
        head, hole, tail = self._rendered().partition(_HOLE)
        if not hole or _HOLE in tail:
            raise ModelError(
                "the chat template does not carry the user's turn once and unchanged; pass a tokenizer with "
                "another template."
            )
        return head, tail

    def _rendered(self) -> str:
        """The chat template's text around one user's turn."""
        turns = [{"role": "user", "content": _HOLE}]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except TemplateError as error:
            raise ModelError(f"the chat template cannot be rendered: {error}") from error
        return str(text)

    def _template(self, text: str) -> list[int]:
        """Ids of the template's own text, whose special tokens are meant."""
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _apart(self, text: str, start: int, stop: int) -> list[tuple[int, int]]:
        """Half-open pieces of ``text[start:stop]``, cut inside every spelled-out control token: none is whole in any.

        The tokenizer's own switch is not enough: it leaves alone what is not marked special, and other threads turn it.
        """
        cuts = [] if self._control is None else [at.start() + 1 for at in self._control.finditer(text, start, stop)]
        edges = [start, *cuts, stop]
        return [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]

    def _call(self, texts: list[str], offsets: bool = False) -> Any:
        # a lone surrogate cannot reach the tokenizer; one replacement character keeps every offset
        clean = [_SURROGATE.sub("\ufffd", text) for text in texts]
        return self.tokenizer(
            clean,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=offsets,
            return_attention_mask=False,
            verbose=False,
        )


def _control(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds the beginning of every token that is special or that the chat template writes as a marker."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    added = tokenizer.added_tokens_decoder.values()
    markers = {t.content for t in added if t.special or (t.content in template and not t.content.isalnum())}
    texts = sorted(text for text in {*markers, *tokenizer.all_special_tokens} if len(text) > 1 and not text.isspace())
    return re.compile(f"(?={'|'.join(map(re.escape, texts))})") if texts else None


def _chunks(text: str) -> Sequence[tuple[int, int]]:
    """Half-open pieces of ``text`` of about _CHUNK_CHARS, cut where no token spans the cut if there is such a place."""
    pieces = []
    start = 0
    while start < len(text):
        stop = min(start + _CHUNK_CHARS, len(text))
        if stop < len(text):
            seams = [match.start() for match in _SEAM.finditer(text, max(start + 1, stop - 2_000), stop)]
            stop = seams[-1] if seams else _whole_character(text, stop)
        pieces.append((start, stop))
        start = stop
    return pieces


def _whole_character(text: str, at: int) -> int:
    """A cut at or before ``at`` that leaves no combining mark, joiner or half of CR LF behind."""
    for back in range(64):
        cut = at - back
        after, before = text[cut], text[cut - 1]
        joined = after in "\u200d\ufe0f\n" or before == "\u200d" or "\u0300" <= after <= "\u036f"
        if not joined:
            return cut
    return at
