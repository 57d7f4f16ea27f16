"""A set of the suite freeform: documents that say which room somebody's lamp stands in, and questions about it."""

from __future__ import annotations

import json
from pathlib import Path

NAMES = ("Odette", "Tobin", "Mara")


def document(name: str, weeks: int) -> str:
    filler = [f"In week {i} the market by the river was quiet and little was sold." for i in range(weeks)]
    filler[weeks // 2] = f"The lamp of {name} stands in room 4711."
    return " ".join(filler)


def written(tmp_path: Path) -> Path:
    """Two short documents, which ``full`` can hold, and one that passes the window; two questions each."""
    folder = tmp_path / "data" / "freeform"
    folder.mkdir(parents=True)
    with (folder / "rooms.jsonl").open("w", encoding="utf-8") as file:
        for name, weeks in zip(NAMES, (9, 12, 90), strict=True):
            for asked in (f"Where is the lamp of {name}?", f"Which room has the lamp of {name}?"):
                row = {"document": document(name, weeks), "question": asked, "answers": ["room 4711", "4711"]}
                file.write(json.dumps(row) + "\n")
    return tmp_path / "data"
