"""Ids to words while they come: text leaves as soon as its characters are whole. Knows no prompt and no document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence


def say(tokens: Iterable[int], decode: Callable[[Sequence[int]], str], emit: Callable[[str], None]) -> tuple[str, int]:
    """The text of all ``tokens`` and their number, after handing it to ``emit`` piece by piece.

    Space around the text is left out of both: what was emitted is the text, where no token changes text that is whole.
    ``emit`` is called for every token, also without text: it is where a closed stream stops.
    """
    ids: list[int] = []
    text = shown = ""
    last = whole = 0  # the text of all tokens before ``whole`` is known, of which those from ``last`` on came last
    for token in tokens:
        ids.append(token)
        # with the tokens before it, for some write a space or half a character; not all, or long answers take long
        before, now = decode(ids[last:whole]), decode(ids[last:])
        if now.startswith(before) and not now.endswith("\ufffd"):
            text += now[len(before) :]
            last, whole = (last if now == before else whole), len(ids)  # a token without text says nothing of the next
        emit(text.strip()[len(shown) :])
        shown = text.strip()
    said = decode(ids).strip()
    if said.startswith(shown):
        emit(said[len(shown) :])
    return said, len(ids)
