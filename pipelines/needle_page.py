"""The page of a run of needles: one HTML file with its picture in it and nothing to fetch.

Owns the markup. Knows rows and the lines of their summary; every text of a row is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol


class Line(Protocol):
    """What the page says of one task, system and length."""

    @property
    def cells(self) -> tuple[str, ...]: ...


HEADERS = (
    "task", "system", "tokens", "rows", "beyond the window", "no answer", "kept in what was read", "said in the answer",
)  # fmt: skip
_SHOWN = 300  # characters of an answer
_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#212529}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:14px}"
    "th,td{padding:.25rem .6rem;border-bottom:1px solid #dee2e6;text-align:left;vertical-align:top}"
    "img{max-width:100%}.right{color:#2166ac}.wrong{color:#b2182b}summary{cursor:pointer;margin:.5rem 0}"
    "code{font-size:13px;overflow-wrap:anywhere}"
)


def page(rows: Sequence[Mapping[str, Any]], lines: Sequence[Line], picture: bytes) -> str:
    """The whole page as text."""
    image = base64.b64encode(picture).decode("ascii")
    made = [dict(text) for text in dict.fromkeys(tuple(sorted(_settings(row).items())) for row in rows)]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Needles</title><style>{_STYLE}</style><h1>Needles in long texts</h1>",
        "<p>Kept: the share of a question's evidence that lies whole inside what the model was given to read. Said: "
        "whether, or how much of, the answer is in what it said. In brackets: 95 % of the mean by Wilson's "
        "interval, and behind them over how many rows; a row without an answer is in no mean.</p>",
        f"<img alt='Heat map: depth of the needle by length of the text' src='data:image/png;base64,{image}'>",
        "<h2>Means</h2>",
        _table(HEADERS, [[escape(cell) for cell in line.cells] for line in lines]),
        "<h2>Rows</h2><p>What the system of a row was given is made again, and its hash compared, by <code>longctx "
        "needle rebuild needle.jsonl --row N</code>.</p>",
        *(_group(rows, task, system) for task, system in dict.fromkeys((r["task"], r["system"]) for r in rows)),
        "<h2>Made with</h2>",
        *(_table(("setting", "value"), [[escape(k), escape(v)] for k, v in one.items()]) for one in made),
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _group(rows: Sequence[Mapping[str, Any]], task: str, system: str) -> str:
    """All rows of one task and system, folded."""
    found = [
        [str(number), *_cells(row)]
        for number, row in enumerate(rows, 1)
        if (row["task"], row["system"]) == (task, system)
    ]
    headers = ("row", "tokens", "depth", "seed", "question", "answer", "what was said", "kept", "said")
    return (
        f"<details><summary>{escape(task)} · {escape(system)}: {len(found)} rows</summary>"
        f"{_table(headers, found)}</details>"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    output = row["answer"] if row.get("error") is None else row["error"]["message"]
    flat = " ".join(output.split())
    shown = flat if len(flat) <= _SHOWN else flat[: _SHOWN - 1] + "…"
    depth = "all" if row["depth"] is None else f"{100 * row['depth']:.0f} %"
    kept, said = (_share(row[name]) for name in ("kept", "said"))
    plain = (f"{row['document_tokens']:,}", depth, str(row["seed"]), row["question"], "; ".join(row["answers"]), shown)
    return [*map(escape, plain), kept, said]


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    return f"<span class={'right' if value == 1 else 'wrong'}>{100 * value:.0f} %</span>"


def _settings(row: Mapping[str, Any]) -> dict[str, str]:
    machine = {name: row[name] for name in ("machine",) if name in row}
    return {name: str(value) for name, value in {"system": row["system"], **row["made_with"], **machine}.items()}


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(header)}" for header in headers)
    body = "".join("<tr>" + "".join(f"<td>{cell}" for cell in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"
