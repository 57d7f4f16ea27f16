"""Work in a thread of its own whose events are listened to as they happen, and which stops when nobody listens.

Knows nothing of what the work is.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from longctx.errors import Interrupted
from longctx.protocols import Progress
from longctx.types import Answer, Event

Work = Callable[[Progress, Callable[[str], None]], Answer]


def events(work: Work) -> Iterator[Event]:
    """Progress and token events of ``work`` and last its answer; an error of the work is raised here.

    Closing the iterator makes the next report of the work raise Interrupted, and waits for that.
    """
    waiting: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    closed = threading.Event()

    def put(event: Event) -> None:
        if closed.is_set():
            raise Interrupted("the stream was closed before the answer was complete.")
        if event.kind != "token" or event.text:
            waiting.put(event)

    with ThreadPoolExecutor(1, "longctx-stream") as pool:
        future = pool.submit(
            work,
            lambda stage, done, total: put(Event("progress", stage, done, total)),
            lambda text: put(Event("token", text)),
        )
        future.add_done_callback(lambda _: waiting.put(None))
        try:
            while (event := waiting.get()) is not None:
                yield event
            answer = future.result()
            yield Event("answer", answer.text, answer=answer)
        finally:
            closed.set()
