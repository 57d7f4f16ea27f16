"""The page of one suite, made from the rows of ``longctx eval SUITE`` and from nothing else.

Owns the tables and which rows are compared. Every figure on the page can be counted again from the rows.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longctx.errors import ArtifactError

from .long_qa_rows import complete
from .paired import interval, mcnemar
from .rows import where_and_when

Row = dict[str, Any]
Cell = tuple[str, int | None]  # system and budget


def write_report(results: Path, suite: str) -> Path:
    """Write ``results``/SUITE.md from every ``results``/SUITE-*.jsonl, packed by gzip or not, and return it.

    Raises ArtifactError for a line that is no row. A last one that was cut short is left out, and the page says so.
    """
    parts = [_head(suite)]
    for rows, cut in _files(results, suite):
        parts += [f"\n## {rows[0]['model']}\n", _asked(rows), *_means(rows), *_seconds(rows), *_pairs(rows)]
        parts += _tasks(rows)
        if cut:
            parts.append("A last row that was cut short is left out.\n")
    page = results / f"{suite}.md"
    page.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return page


def part(results: Path, suites: Sequence[str]) -> str:
    """The means and differences of each of ``suites`` that has rows in ``results``, for a page that says the rest."""
    parts = []
    for suite in suites:
        for rows, _ in _files(results, suite):
            parts += [f"### {suite}, {rows[0]['model']}\n", _asked(rows), *_means(rows), *_pairs(rows, "####")]
    return "\n".join(parts).rstrip() or "No answers are published yet."


def _files(results: Path, suite: str) -> Iterator[tuple[list[Row], bool]]:
    """The rows of every file of ``suite`` that has some, and whether a last one was cut short."""
    for path in sorted(results.glob(f"{suite}-*.jsonl*")):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        whole = complete(data)
        rows = [_row(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]
        if rows:
            yield rows, len(whole) < len(data)


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        found: Row = json.loads(line)
    except ValueError as error:
        raise ArtifactError(f"{path}, line {number} is no row of an evaluation. Move it away.") from error
    return found


def _asked(rows: Sequence[Row]) -> str:
    """Of how many questions and with what the rows were made."""
    first = rows[0]
    asked = {(row["document"], row["question"]) for row in rows}
    return (
        f"{len(asked)} of {first['population']} questions (seed {first['seed']}), on "
        f"{len({row['document'] for row in rows})} documents. Model fingerprint {first['fingerprint']}, window "
        f"{first['window']:,}; longctx {first['longctx']}, torch {first['torch']}, transformers "
        f"{first['transformers']}; {where_and_when(rows)}. Settings: {_settings(first['configuration'])}.\n"
    )


def _means(rows: Sequence[Row]) -> list[str]:
    """One line a system and budget, one column a measure."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("scores", {})))
    lines = [
        "| system | budget | n | tokens shown | score | " + " | ".join(names) + " | shown whole | did not fit |",
        "|---|--:|--:|--:|--:|" + "--:|" * (len(names) + 2),
    ]
    for cell in _cells(rows):
        own = _of(rows, cell)
        scored = [row for row in own if "score" in row]
        whole = sum(row["context_tokens"] >= row["document_tokens"] for row in scored)
        means = [_mean([row["scores"][n] for row in scored if n in row["scores"]]) for n in names]
        shown = f"{np.mean([row['context_tokens'] for row in scored]):,.0f}" if scored else ""
        lines.append(
            f"| {cell[0]} | {_budget(cell)} | {len(scored)} | {shown} | {_mean([row['score'] for row in scored])} | "
            + " | ".join(means)
            + f" | {whole} | {len(own) - len(scored)} |"
        )
    said = (
        "Means in points. The score of a question is the first measure of its task. Where documents are shown whole, "
    )
    return [*lines, "", said + "systems do not differ; what did not fit has no score.\n"]


def _seconds(rows: Sequence[Row]) -> list[str]:
    """What each system took a question; compiling counts once a document."""
    once = {row["document"]: row["seconds"]["compile"] for row in rows if "seconds" in row}
    tokens = {row["document"]: row["document_tokens"] for row in rows}
    lines = [
        f"Compiling took {sum(once.values()):,.1f} s for {sum(tokens[name] for name in once):,} tokens of {len(once)} "
        "documents.\n",
        "| system | budget | tokens read to select | s to select | s to answer | new tokens |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for cell in _cells(rows):
        own = [row for row in _of(rows, cell) if "seconds" in row]
        if own:
            select, answer = (np.mean([row["seconds"][name] for row in own]) for name in ("select", "answer"))
            read, new = (np.mean([row[name] for row in own]) for name in ("tokens_read", "new_tokens"))
            lines.append(f"| {cell[0]} | {_budget(cell)} | {read:,.0f} | {select:.2f} | {answer:.2f} | {new:.1f} |")
    return [
        *lines,
        "",
        "What one row of a document has read, later ones find: their tokens read and times are for that much less, and "
        "a run that was stopped reads again what it had read. Nothing else on this page depends on it.\n",
    ]


def _pairs(rows: Sequence[Row], heading: str = "###") -> list[str]:
    """The first system of the rows against every other at the same budget, on the questions that both answered."""
    base = _cells(rows)[0][0]
    lines = [
        f"{heading} {base} beside the others\n",
        f"| other | budget | n | {base} | other | difference | 95 % interval | right: only {base} | only other | p |",
        "|---|--:|--:|--:|--:|--:|---|--:|--:|--:|",
    ]
    for own in (cell for cell in _cells(rows) if cell[0] == base):
        for other in _cells(rows):
            if other[0] != base and other[1] in (own[1], 0, None):
                mine, theirs = _scored(rows, own), _scored(rows, other)
                both = [(mine[key], theirs[key]) for key in mine if key in theirs]
                lines += [f"| {other[0]} | {_budget(own)} | {len(both)} | {_compared(both)} |"] if both else []
    return [
        *lines,
        "",
        "Paired bootstrap, 4,000 draws; McNemar's exact test on the questions whose score is right or wrong. Questions "
        "about one document are not independent of one another: of five documents or more the intervals draw whole "
        "documents, which for few of them is still too narrow; of fewer they say too much, and the test does of any.\n",
    ]


def _compared(both: Sequence[tuple[Row, Row]]) -> str:
    """Means, difference and interval of two systems, and McNemar's counts where answers are right or wrong."""
    first, second = [a["score"] for a, _ in both], [b["score"] for _, b in both]
    low, high = interval(first, second, documents=[a["document"] for a, _ in both])
    difference = 100 * (float(np.mean(first)) - float(np.mean(second)))
    cells = [_mean(first), _mean(second), f"{difference:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"]
    right = [(a["score"], b["score"]) for a, b in both if not a["graded"]]
    if right:
        found = mcnemar([a for a, _ in right], [b for _, b in right])
        return " | ".join([*cells, str(found.only_first), str(found.only_second), f"{found.p:.3f}"])
    return " | ".join([*cells, "", "", ""])


def _tasks(rows: Sequence[Row]) -> list[str]:
    """Scores by task, where there are several."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    if len(tasks) < 2:
        return []
    metrics = {row["task"]: row["metric"] for row in rows if "metric" in row}
    heads = [f"{task} ({metrics.get(task, 'none')})" for task in tasks]
    lines = ["### By task\n", "| system | budget | " + " | ".join(heads) + " |", "|---|--:|" + "--:|" * len(tasks)]
    for cell in _cells(rows):
        own = [row for row in _of(rows, cell) if "score" in row]
        found = [[row["score"] for row in own if row["task"] == task] for task in tasks]
        cells = [f"{_mean(values)} (n = {len(values)})" if values else "" for values in found]
        lines.append(f"| {cell[0]} | {_budget(cell)} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cells(rows: Sequence[Row]) -> list[Cell]:
    """Systems and budgets in the order of their first rows."""
    return list(dict.fromkeys((row["system"], row["budget"]) for row in rows))


def _of(rows: Sequence[Row], cell: Cell) -> list[Row]:
    return [row for row in rows if (row["system"], row["budget"]) == cell]


def _scored(rows: Sequence[Row], cell: Cell) -> dict[tuple[str, str], Row]:
    return {(row["document"], row["question"]): row for row in _of(rows, cell) if "score" in row}


def _mean(values: Sequence[float]) -> str:
    return f"{100 * float(np.mean(values)):.1f}" if values else ""


def _budget(cell: Cell) -> str:
    return "all" if cell[1] is None else f"{cell[1]:,}"


def _settings(configuration: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in configuration.items() if value is not None)


def _head(suite: str) -> str:
    return f"""# {suite}: answers about long documents at equal budget

Every system shows the model its own part of the document and then the same prompt; the answer is greedy. `middle` keeps
the first and last half of the budget, `closed_book` shows no document, `full` all of it where the window holds it. The
prompt stands in the reader's own frame, so figures are to be compared with one another and not with published ones made
under another frame. This page is written by `longctx eval {suite}` from its rows, which hold hashes, offsets and
counts."""
