"""One call of a function of ours in a process of its own, so that nothing this process has loaded counts.

Owns the process, what its end means and what memory it has had. Knows no benchmark.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longctx.errors import ProgramError

_KILLED = -9  # what a system does that has no memory left


def call(module: str, function: str, given: Sequence[Any]) -> Any:
    """What ``function`` of ``module`` returns for ``given``, which goes in, as its answer comes out, as JSON.

    Raises ProgramError when the process ends without an answer; what went wrong stands on stderr then.
    """
    code = (
        f"import json, sys; from {module} import {function} as f; print(json.dumps(f(*json.loads(sys.stdin.read()))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(list(given)), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        kind = f"signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
        why = "it was killed, as a system does that is out of memory; ask for less text"
        hint = why if done.returncode == _KILLED else "see the lines above"
        raise ProgramError(kind, f"the process of {function} ended with {kind}: {hint}. Finished rows were kept.")
    return json.loads(done.stdout.splitlines()[-1])


def memory(reset: bool = False) -> int | None:
    """The most bytes this process has had since the last reset; with ``reset`` those it has now. None: not told."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:  # the peak would be that of loading
            return None
    found: Mapping[str, str] = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
    return int(found["VmHWM"].split()[0]) * 1024
