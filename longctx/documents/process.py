"""Runs a parser in a process of its own and brings its text back. Knows limits and pipes, no format.

The child gets the open file as its stdin and answers with JSON; nothing is unpickled, and no path crosses over.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import longctx.errors
from longctx.documents.limits import Limits, over
from longctx.errors import DocumentError, MissingExtra, ParseLimit

_CHUNK_BYTES = 1 << 16
_JSON_BYTES_PER_CHAR = 6
_JSON_BYTES_AROUND = 1 << 20
_ROOT = str(Path(longctx.errors.__file__).parent.parent)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def parse(kind: str, file: BinaryIO, name: str, limits: Limits) -> tuple[list[tuple[str, str]], bool, list[str]]:
    """``(label, text)`` per page, whether these are pages, and the warnings, of the open ``file``.

    Raises ParseLimit, DocumentError or MissingExtra, each naming the file ``name``.
    """
    os.lseek(file.fileno(), 0, os.SEEK_SET)  # the descriptor itself: seeking in the buffer would not move it
    command = [sys.executable, "-P", "-B", "-W", "ignore", "-m", "longctx.documents._child", kind]
    try:
        child = subprocess.Popen(
            [*command, json.dumps(asdict(limits))],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
    except OSError as error:
        raise DocumentError(f"{name}: its parser could not be started ({error}).") from error
    timed_out = threading.Event()

    def stop() -> None:
        timed_out.set()
        child.kill()

    clock = threading.Timer(limits.seconds, stop)
    clock.daemon = True
    try:
        clock.start()
        raw = _read(child, limits, name)
        code = child.wait()
    finally:  # also after Ctrl-C: no parser outlives the call
        clock.cancel()
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()
    if code != 0:
        raise _ended(code, name, limits, timed_out.is_set())
    return _result(_answer(raw, name), name, limits)


def _environment() -> dict[str, str]:
    """This process's environment, with its module path made explicit and no folder of the caller's on it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    path = [entry for entry in sys.path if entry]
    path = path if _ROOT in path else [_ROOT, *path]
    return {**kept, **dict.fromkeys(_ONE_THREAD, "1"), "PYTHONPATH": os.pathsep.join(path)}


def _read(child: subprocess.Popen[bytes], limits: Limits, name: str) -> bytes:
    cap = limits.output_chars * _JSON_BYTES_PER_CHAR + _JSON_BYTES_AROUND
    raw = bytearray()
    assert child.stdout is not None
    while chunk := os.read(child.stdout.fileno(), _CHUNK_BYTES):
        raw += chunk
        if len(raw) > cap:
            raise over(limits, name, "output_chars", "the text is too long", f"over {cap:,} bytes")
    return bytes(raw)


def _ended(code: int, name: str, limits: Limits, timed_out: bool) -> DocumentError:
    """Why a parser that gave no answer ended."""
    if timed_out or code == -getattr(signal, "SIGXCPU", 0):
        return over(limits, name, "seconds", "reading it takes too long", f"over {limits.seconds:g} s")
    if code == -getattr(signal, "SIGKILL", 0):
        return ParseLimit(
            f"{name}: the system killed its parser, most likely for memory "
            f"(limit memory_bytes={limits.memory_bytes:,}). Free some memory, or split the file."
        )
    return DocumentError(
        f"{name}: its parser crashed ({f'signal {-code}' if code < 0 else f'exit code {code}'}). "
        "The file is damaged, or made to crash readers."
    )


def _answer(raw: bytes, name: str) -> Mapping[str, Any]:
    try:
        answer = json.loads(raw.decode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise DocumentError(f"{name}: its parser gave no readable answer ({len(raw):,} bytes).") from error
    if not isinstance(answer, dict):
        raise DocumentError(f"{name}: its parser gave no readable answer ({len(raw):,} bytes).")
    return answer


def _result(answer: Mapping[str, Any], name: str, limits: Limits) -> tuple[list[tuple[str, str]], bool, list[str]]:
    status = answer.get("status")
    if status == "ok":
        parts = [(str(label), str(text)) for label, text in answer["parts"]]
        return parts, bool(answer["paged"]), [str(warning) for warning in answer["warnings"]]
    if status == "limit" and answer["option"]:
        raise over(limits, name, str(answer["option"]), str(answer["what"]), str(answer["value"]))
    if status == "limit":
        raise ParseLimit(f"{name}: {answer['what']}. Take its text out another way and pass Document.from_text(text).")
    if status == "missing":
        raise MissingExtra(f"reading {name}", str(answer["package"]), "documents")
    raise DocumentError(f"{name}: {answer.get('why', 'unknown failure')}.")
