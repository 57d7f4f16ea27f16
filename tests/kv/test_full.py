"""The baseline reads every key."""

from __future__ import annotations

from haystacks import chosen, haystack, question

from longctx.kv.full import Full


def test_everything_is_read() -> None:
    layer = haystack(50)
    assert chosen(Full(), layer, question(layer)) == [[set(range(50))] * 2]
    assert Full().lossless and Full().slots(50) == 50 and Full().index_bytes(50, 4, 2, 16, 4) == 0
