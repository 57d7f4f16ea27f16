"""The parser process: one file on stdin, one JSON object on stdout, and limits it sets on itself before it reads.

Run as ``python -m longctx.documents._child KIND LIMITS``. Knows the room's parsers; imports no model library.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import math
import os
import signal
import struct
import sys
import zlib
from typing import Any, BinaryIO

from longctx.documents._outcome import MissingParser, OverLimit, Refused, brief
from longctx.documents.limits import Limits

_PARSERS = {"pdf": "_pdf", "docx": "_docx", "html": "_html", "text": "_guess"}
_PACKAGES = {"pdf": "pypdf", "docx": "markitdown", "html": "trafilatura", "text": "charset-normalizer"}
# Opening sockets and starting programs is never part of reading a file.
_FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "subprocess.Popen", "os.system")
_FORBIDDEN_TOO = ("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
# What is left when a parser meets a file its own room did not expect; our own mistakes end in exit code 1.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError, LookupError, OSError)
_FAILURES_TOO = (RuntimeError, StopIteration, SyntaxError, TypeError, ValueError, struct.error, zlib.error)


def main(kind: str, limits: Limits, file: BinaryIO) -> dict[str, Any]:
    """What the parent is told about ``file``: its text, or why there is none."""
    try:
        parser = importlib.import_module(f"longctx.documents.{_PARSERS[kind]}")
    except MemoryError:
        return _limit("memory_bytes", "its parser needs more memory")
    except ModuleNotFoundError:
        return {"status": "missing", "package": _PACKAGES[kind]}
    except (ImportError, OSError) as error:  # a broken install, or too little memory to map its libraries
        bound = f"with memory_bytes={limits.memory_bytes:,}"
        return {"status": "refused", "why": f"its parser {_PACKAGES[kind]} cannot be loaded {bound} ({brief(error)})"}
    sys.addaudithook(_deny)
    try:
        parsed = parser.parse(file, limits)
    except OverLimit as error:
        return _limit(error.option, error.what, error.value)
    except Refused as error:
        return {"status": "refused", "why": str(error)}
    except MissingParser as error:
        return {"status": "missing", "package": error.package}
    except MemoryError:
        return _limit("memory_bytes", "reading it needs more memory")
    except RecursionError:
        return {"status": "refused", "why": "it is nested too deeply for its parser"}
    except (*_FAILURES, *_FAILURES_TOO) as error:
        return {"status": "refused", "why": f"its parser failed ({brief(error)})"}
    chars = sum(len(text) for _, text in parsed.parts)
    if chars > limits.output_chars:
        return _limit("output_chars", "the text is too long", f"{chars:,}")
    return {"status": "ok", **dataclasses.asdict(parsed)}


def _limit(option: str, what: str, value: str = "") -> dict[str, Any]:
    return {"status": "limit", "option": option, "what": what, "value": value}


def _deny(event: str, args: tuple[Any, ...]) -> None:
    if event in _FORBIDDEN or event in _FORBIDDEN_TOO:
        raise PermissionError(f"{event} is not allowed while reading a document")


def _bound(limits: Limits) -> None:
    """Limits that the system enforces on this process, where it has them."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock and the pipe's cap remain
        return
    seconds = math.ceil(limits.seconds) + 1
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (wanted, hard))
        except (ValueError, OSError):  # macOS refuses RLIMIT_AS
            continue


def encode(answer: dict[str, Any]) -> bytes:
    """The answer as the parent reads it, lone surrogates included."""
    # Raw characters, not escapes: a pair of escaped surrogates would come back as one character and move all offsets.
    return json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _write(answer: dict[str, Any]) -> None:
    view = memoryview(encode(answer))
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted and ends this process
    _limits = Limits(**json.loads(sys.argv[2]))
    _bound(_limits)
    try:
        _write(main(sys.argv[1], _limits, io.BufferedReader(io.FileIO(0))))
    except MemoryError:
        _write(_limit("memory_bytes", "its text needs more memory"))
    os._exit(0)  # nothing to clean up; destructors of a huge tree would only spend time
