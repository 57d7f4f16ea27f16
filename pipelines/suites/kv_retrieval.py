"""Key-value retrieval (Liu et al. 2023, Lost in the Middle): a JSON object of UUID pairs; one value is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..cases import Case, Measure, Question, Row, rows

_MOST_NEW = 100  # as published


def cases(folder: Path) -> Iterator[Case]:
    for row in rows(folder):
        pairs = [_pair(row, pair) for pair in row.items("ordered_kv_records")]
        key = row.text("key")
        asked = f'What is the value of the key "{key}" in the JSON object? Give only the value.'
        question = Question("0", asked, asked, (Measure("substring", (row.text("value"),)),), _MOST_NEW)
        text = "{" + ",\n ".join(f"{json.dumps(a)}: {json.dumps(b)}" for a, b in pairs) + "}"
        yield Case(f"{len(pairs)} keys", f"{row.file.stem}-{row.number}", text, (question,))


def _pair(row: Row, pair: object) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise row.wrong("has a record that is no pair of key and value")
    return str(pair[0]), str(pair[1])
