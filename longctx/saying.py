"""Ids to words while they come: text leaves as soon as its characters are whole. Knows no prompt and no document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence


def say(tokens: Iterable[int], decode: Callable[[Sequence[int]], str], emit: Callable[[str], None]) -> tuple[str, int]:
    """The text of all ``tokens`` and their number, after handing it to ``emit`` piece by piece.

    Space around the text is left out of both: what was emitted is the text, where no token changes text that is whole.
    ``emit`` is called for every token, also without text: it is where a closed stream stops.
    """
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = decode(ids).strip()
        whole = text.startswith(shown) and not text.endswith("\ufffd")
        emit(text[len(shown) :] if whole else "")
        shown = text if whole else shown
    said = decode(ids).strip()
    if said.startswith(shown):
        emit(said[len(shown) :])
    return said, len(ids)
