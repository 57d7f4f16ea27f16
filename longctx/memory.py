"""Keys and values of segments in memory, up to a limit. Knows bytes and no model."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any


class Memory:
    """Segments' keys and values, the latest used kept, at most ``limit_bytes`` of them."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = Lock()  # a book may be asked by several threads

    def __contains__(self, segment: int) -> bool:
        return segment in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, segment: int) -> Any:
        """What is kept of ``segment``, or None."""
        with self._lock:
            if segment in self._kept:
                self._kept.move_to_end(segment)
            return self._kept.get(segment)

    def put(self, segment: int, stored: Any) -> None:
        """Keep ``stored`` and drop the longest unused until it fits; what is larger than the limit is not kept."""
        with self._lock:
            if segment in self._kept:
                self.used_bytes -= self._kept.pop(segment).nbytes
            if stored.nbytes > self.limit_bytes:
                return
            while self.used_bytes + stored.nbytes > self.limit_bytes:
                self.used_bytes -= self._kept.popitem(last=False)[1].nbytes
            self._kept[segment] = stored
            self.used_bytes += stored.nbytes
