"""What is handed on while an answer comes is, joined, the answer."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from longctx.saying import say


def decode(ids: Sequence[int]) -> str:
    """Bytes as text, as byte-level tokenizers have it: half a character is a replacement sign."""
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(alphabet=st.sampled_from(" \n\tab.é€🙂"), max_size=30))
def test_the_pieces_are_the_answer_without_the_space_around_it(text: str) -> None:
    pieces: list[str] = []
    said, tokens = say(text.encode(), decode, pieces.append)
    assert said == text.strip() == "".join(pieces)
    assert tokens == len(text.encode()) and len(pieces) == tokens + 1


def test_text_leaves_as_soon_as_it_is_whole() -> None:
    pieces: list[str] = []
    say(" é b ".encode(), decode, pieces.append)
    assert pieces == ["", "", "é", "", " b", "", ""]


def test_a_long_answer_is_not_decoded_anew_for_every_token() -> None:
    asked: list[int] = []

    def counted(ids: Sequence[int]) -> str:
        asked.append(len(ids))
        return decode(ids)

    text = "The bridge stands at Ärles. " * 100
    said, tokens = say(text.encode(), counted, lambda piece: None)
    assert said == text.strip() and asked[-1] == tokens and max(asked[:-1]) < 6
