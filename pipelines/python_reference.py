"""The Python language reference as one text, out of the standard library: a long document that every Python has.

Owns the order of its topics. ``python -m longctx.pipelines.python_reference FILE`` writes it to a file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from pydoc_data.topics import topics


def text() -> str:
    """All topics in the order of their names, each under its name; the same for every run of one Python."""
    return "\n".join(f"{name}\n{'=' * len(name)}\n\n{topics[name].strip()}\n" for name in sorted(topics))


def write(path: Path) -> None:
    """The text in a file that appears whole or not at all."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text(), encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
