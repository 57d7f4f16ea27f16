"""The context that a reader keeps: one at a time, made once for a text, and never another thread's."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import tiny

from longctx import last_context
from longctx.last_context import LastContext

pytestmark = pytest.mark.usefixtures("one_thread")


def test_threads_that_ask_about_other_texts_each_get_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept, made = tiny.model("llama"), LastContext(), []
    real, both = last_context.compress, Barrier(2)

    now: list[int] = []
    most: list[int] = []

    def compress(model: Any, ids: Any, *given: Any, **options: Any) -> Any:
        made.append(tuple(ids))
        now.append(1)
        time.sleep(0.005)  # for the other thread to come as well, if it may
        most.append(len(now))
        context = real(model, ids, *given, **options)
        now.pop()
        return context

    monkeypatch.setattr(last_context, "compress", compress)
    texts = [tuple(range(4, 40)), tuple(range(100, 140))]

    def ask(text: tuple[int, ...]) -> list[tuple[int, ...]]:
        both.wait()
        return [kept(model, text, "full", False, None).token_ids for _ in range(20)]

    with ThreadPoolExecutor(2) as pool:
        for text, found in zip(texts, pool.map(ask, texts), strict=True):
            assert found == [text] * 20
    assert len(made) >= 2 and max(most) == 1, "memory for two contexts may not be there"
    count = len(made)
    kept(model, made[-1], "full", False, None)
    assert len(made) == count, "the last one is there still"
