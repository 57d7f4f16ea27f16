"""The tables of ``longctx bench speculation``, made from its rows and from nothing else.

Owns which rows stand in one table, and which runs are large enough for the README.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import bench_speculation
from .rows import Row, read

NONE = "No file of results holds such rows yet."
_LEAST = 8  # prompts of every group, for a run to stand in the README

Run = tuple[str, ...]
"""File, model, number format, machine and how tokens were drawn, threads, day where rows do not name their run, made
with."""


def tables(results: Path) -> str:
    """A table for every file, model, number format and machine, the ratios of each group a line."""
    return "\n\n".join(_table(run, rows) for run, rows in _runs(results).items()) or NONE


def brief(results: Path) -> str:
    """The newest run of the default stack with enough prompts, for every model and number format: a line each.

    Geometric means over groups, beside stock.
    """
    newest: dict[tuple[str, str], tuple[str, str]] = {}
    for (_, model, dtype, machine, threads, _, _), rows in _runs(results).items():
        prompts = Counter(row["group"] for row in rows if row["method"] == "auto" and row["tokens_per_second"])
        found = bench_speculation.summary(rows)
        if not found or min(prompts[group] for group in found) < _LEAST or any("temperature" in _made(r) for r in rows):
            continue
        means = {method: _mean(found, method) for method in ("hf_lookup", "none", "auto")}
        each = [by["auto"] for by in found.values()]
        line = (
            f"| {model} | {dtype} | {prompts.total()} | {means['hf_lookup']} | {means['none']} | **{means['auto']}** "
            f"| {min(each):.2f} to {max(each):.2f} | {machine}, {threads} threads, {_days(rows)} |"
        )
        made = (max(row["date"] for row in rows), line)
        newest[model, dtype] = max(made, newest.get((model, dtype), made), key=lambda one: one[0])
    if not newest:
        return NONE
    head = "| model | numbers | prompts | prompt lookup | without drafts | `auto` | by group | made |"
    return "\n".join([head, "|---|---|--:|--:|--:|--:|--:|---|", *(newest[key][1] for key in sorted(newest))])


def _runs(results: Path) -> dict[Run, list[Row]]:
    """The rows of every run. One that was interrupted may have gone on another day; older rows say only on which."""
    runs: dict[Run, list[Row]] = {}
    for path in sorted(results.glob("speculation*.jsonl")):
        for row in read(path):
            made, day = _made(row), "" if "made_with" in row else row["date"]
            drawn = f"drawn at temperature {made['temperature']}, " if "temperature" in made else ""
            key = (path.name, made["model"], made["dtype"], drawn + row["machine"], str(made["threads"]), day)
            runs.setdefault((*key, f"longctx {made['longctx']}, torch {made['torch']}"), []).append(row)
    return runs


def _made(row: Row) -> Row:
    """What a row was made with; the oldest say so themselves."""
    return row["made_with"] if "made_with" in row else row


def _table(run: Run, rows: Sequence[Row]) -> str:
    _, model, dtype, machine, threads, _, made_with = run
    found = bench_speculation.summary(rows)
    methods = list(dict.fromkeys(row["method"] for row in rows if not row["method"].startswith("hf")))
    lookups = len({row["method"] for row in rows if row["method"].startswith("hf_lookup:")})
    beside = {"hf_lookup": f"prompt lookup ({lookups})"} if lookups else {}
    columns = beside | {method: method for method in methods}
    lines = [
        f"**{model}**, {dtype}; {machine}, {threads} threads, {_days(rows)}, {made_with}.",
        "",
        f"| group | prompts | stock tokens/s | {' | '.join(columns.values())} | tokens a pass | same | prompt |",
        f"|---|--:|--:|{'--:|' * len(columns)}--:|--:|--:|",
    ]
    best = methods[-1]
    for group, ratios in found.items():
        own = [row for row in rows if row["group"] == group]
        speeds = [row["tokens_per_second"] for row in own if row["method"] == "hf"]
        stock = statistics.median(speed for speed in speeds if speed)
        drafted = [row for row in own if row["method"] == best]
        passes = statistics.mean(row["tokens_per_round"] for row in drafted)
        cells = [f"{ratios[name]:.2f}" if name in ratios else "" for name in columns]
        same = f"{sum(row['same'] for row in drafted)} of {len(drafted)}"
        first = {row["prompt"]: row["first_seconds"] for row in own if row["method"] == "hf"}
        sooner = statistics.geometric_mean(first[row["prompt"]] / row["first_seconds"] for row in drafted)
        cells += [f"{passes:.2f}", same, f"{sooner:.2f}"]
        lines.append(f"| {group} | {len(drafted)} | {stock:.1f} | {' | '.join(cells)} |")
    means = [_mean(found, name) for name in columns]
    lines.append(f"| geometric mean | | | {' | '.join(means)} | | | |")
    if refused := {row["method"]: row["refused"]["message"] for row in rows if "refused" in row}:
        lines += ["", f"Refused: {'; '.join(f'`{name}`, {why}' for name, why in refused.items())}."]
    return "\n".join(lines)


def _mean(found: Mapping[str, Mapping[str, float]], method: str) -> str:
    """The geometric mean over groups; nothing where a group lacks the method."""
    ratios = [by[method] for by in found.values() if method in by]
    return f"{statistics.geometric_mean(ratios):.2f}" if 0 < len(ratios) == len(found) else ""


def _days(rows: Sequence[Row]) -> str:
    days = sorted(row["date"] for row in rows)
    return " to ".join(dict.fromkeys((days[0], days[-1])))
