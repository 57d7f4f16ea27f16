"""A program under test in a process of its own: started, asked, timed out and ended.

Owns the process and the protocol's side here; ``peers/_serve.py`` is the other. What the program prints goes to a log
file. Knows no method, no task and no row.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import IO, Any

from longctx.errors import ProgramError

_TRACEBACK = "Traceback (most recent call last):"
_RAISED = re.compile(r"(?:[\w.]+\.)?([A-Z]\w*)(?::|$)")  # the line that a traceback ends with
_TAIL_BYTES = 4_000
_PATIENCE_SECONDS = 20.0  # to end when nothing more is asked


class RefusedError(ProgramError):
    """The program will not do what was asked, and says why; it goes on living."""

    def __init__(self, why: str) -> None:
        super().__init__("refused", why)


class Worker:
    """The process that ``command`` starts, used as a context: afterwards it and its children have ended.

    Every method raises ProgramError of kind "timeout", "protocol", or of the error that ended the program, and
    RefusedError; after any but the last the process is gone.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._log, self._number, self._ended = log, 0, False
        self._lines: Queue[bytes | None] = Queue()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **(environment or {})},
                cwd=folder,
                start_new_session=True,  # an interrupt ends this process first, which then ends that one
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input: IO[bytes] = self._process.stdin
        self._threads = [threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and not self._ended:
            self._close()
            self._threads[0].join(_PATIENCE_SECONDS)  # until its answers end; what goes on then is ended below
        self._end()

    def call(self, name: str, given: Mapping[str, Any], seconds: float) -> Any:
        """What the program answers within ``seconds``."""
        self._number += 1
        if self._ended:
            raise self._died()
        line = json.dumps({"id": self._number, "call": name, "with": given}).encode() + b"\n"
        # in a thread, for a program that hangs reads nothing, and a long line would wait for it without a limit
        self._threads[1:] = [threading.Thread(target=self._write, args=(line,), daemon=True)]
        self._threads[1].start()
        try:
            found = self._lines.get(timeout=seconds)
        except Empty as error:
            self._end()
            raise ProgramError("timeout", f"no answer within {seconds:,.0f} seconds; see {self._log.name}.") from error
        if found is None:
            raise self._died()
        reply = self._parsed(found)
        if "refused" in reply:
            raise RefusedError(str(reply["refused"]))
        return reply["value"]

    def _write(self, line: bytes) -> None:
        with suppress(BrokenPipeError):  # it has ended, which the end of its answers says too
            self._input.write(line)
            self._input.flush()

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(line)
            if reply["id"] == self._number and ("value" in reply or "refused" in reply):
                return dict(reply)
        except (ValueError, TypeError, KeyError):
            pass  # said below
        self._end()
        raise ProgramError("protocol", f"the program wrote something else than an answer; see {self._log.name}.")

    def _died(self) -> ProgramError:
        """What ended the program: the error that its log ends with, or its exit status."""
        with suppress(subprocess.TimeoutExpired):  # it said that there is no more, and goes on: ended below
            self._process.wait(_PATIENCE_SECONDS)
        self._end()
        code = self._process.returncode
        with self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
        raised = _RAISED.match(_error(lines)) if code == 1 else None
        kind = raised[1] if raised else f"signal {-code}" if code < 0 else f"exit {code}"
        return ProgramError(kind, f"the program ended with {kind}; see {self._log.name}.")

    def _end(self) -> None:
        if self._ended:  # its number may be another process's by now
            return
        self._ended = True
        with suppress(ProcessLookupError):  # no member of its group is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for thread in self._threads:
            thread.join()
        self._close()

    def _close(self) -> None:
        with suppress(BrokenPipeError):  # what it did not read is of no use
            self._input.close()


def _error(lines: Sequence[str]) -> str:
    """The line that the last traceback ends with; what the program printed before may have come out behind it."""
    starts = [at for at, line in enumerate(lines) if line == _TRACEBACK]
    behind = lines[starts[-1] + 1 :] if starts else ()
    return next((line for line in behind if line.strip() and not line.startswith(" ")), "")


def _read(stream: IO[bytes], lines: Queue[bytes | None]) -> None:
    """Every line as it comes, and None when there will be no more."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)
