"""The published needle rows as a part of ``docs/needle.md``: one table and one heat map for every file.

Owns which rows stand beside each other. Knows rows only; how a mean or a picture is made is the report's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import needle_report
from .rows import read, where_and_when

Row = Mapping[str, Any]


def part(results: Path) -> str:
    """A paragraph, a table and a picture for each ``needle-NAME.jsonl.gz``."""
    pages = ["\n".join(_page(name, rows)) for name, rows in _files(results)]
    return "\n\n".join(pages) or "No file of results holds such rows yet."


def pictures(results: Path, images: Path) -> dict[Path, bytes]:
    """The heat map of each file of rows, by the place that ``part`` shows it from."""
    return {images / f"{name}.png": needle_report.heat_map(rows) for name, rows in _files(results)}


def _files(results: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for path in sorted(results.glob("needle-*.jsonl.gz")):
        yield path.name.removesuffix(".jsonl.gz"), read(path)


def _page(name: str, rows: Sequence[Row]) -> list[str]:
    made_with = rows[0]["made_with"]
    way = "all facts of a length and seed in one text" if made_with["together"] else "each fact in a text of its own"
    lines = [
        f"**{made_with['model']}**, {made_with.get('dtype', 'a server')}, {way}, {made_with['depths']} depths; "
        f"{where_and_when(rows)}, longctx {made_with['longctx']}, torch {made_with['torch']}.",
        "",
        f"| task | under test | tokens | budget | rows | {needle_report.kept_label(rows)} [95 %] | said [95 %] | "
        "seconds a question |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for line in needle_report.summary(rows):
        own = [
            row for row in rows if (row["task"], row["system"], row["length"]) == (line.task, line.system, line.length)
        ]
        seconds = sum(row["seconds"]["total"] for row in own if "seconds" in row) / max(1, line.answered)
        kept = needle_report.percent(line.kept, line.kept_interval, line.measured)
        said = needle_report.percent(line.said, line.said_interval, line.answered)
        budget = own[0]["made_with"].get("budget")
        cells = (line.task, line.system, f"{line.length:,}", "-" if budget is None else f"{budget:,}", str(line.rows))
        lines.append(f"| {' | '.join((*cells, kept, said, f'{seconds:.1f}'))} |")
    return [*lines, "", f"![{name}: kept and said by depth and length](images/{name}.png)"]
