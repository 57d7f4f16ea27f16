"""The page of selection results, made from the rows of ``longctx eval selection`` and from nothing else.

Owns the table and the intervals. Every figure on the page can be counted again from the rows.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .rows import where_and_when

Row = dict[str, Any]
_ORDER = ("loogle", "qmsum", "xquad", "nq", "needles")
_WITHOUT_MODEL = (
    "bm25",
    "dense",
    "dense:bm25=1",
    "bm25:neighbours=0.5",
    "dense:neighbours=0.5",
    "dense:bm25=1,neighbours=0.5",
)
NAMES = {
    "dense:bm25=1": "bm25 + dense",
    "bm25:neighbours=0.5": "bm25, neighbours",
    "dense:neighbours=0.5": "dense, neighbours",
    "dense:bm25=1,neighbours=0.5": "bm25 + dense, neighbours",
    "auto:model=false": "auto without the model",
    "auto:likelihood=1.5": "auto, question likelihood weighing 1.5",
    "auto:sample=32": "auto, 32 segments as the sample",
    "xl3m:signal=question_likelihood": "xl3m, question likelihood",
    "xl3m:signal=entropy": "xl3m, entropy (as published)",
    "xl3m:signal=gain": "xl3m, gain",
    "xl3m:signal=contrast": "xl3m, contrast",
    "infiniretri:compat=paper": "infiniretri, released scoring (16k tokens)",
}
_STORED = ", stored "
_DRAWS = 4000
_MARK = "<!-- figures -->"
_TITLES = {"loogle": "LooGLE, answers in long articles", "qmsum": "QMSum, turns of meetings"}


def write_report(results: Path, page: Path) -> Path:
    """Write ``page`` from every selection-*.jsonl, packed by gzip or not, in ``results`` and return it."""
    parts = [_HEAD]
    for rows in rows_by_model(results):
        parts += _model(rows)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return page


def write_figures(results: Path, readme: Path) -> Path:
    """Replace the table after the mark <!-- figures --> of ``readme`` by one counted from the rows in ``results``."""
    lines = [
        "",
        "Evidence kept within 1,024 tokens, in points; weights were chosen on these sets "
        "([all results](docs/selection.md)):",
        "",
    ]
    lines += [
        "| model | questions | first tokens | BM25 | best without a model | `auto` |",
        "|---|---|--:|--:|--:|--:|",
    ]
    counted: list[Row] = []
    for rows in rows_by_model(results):
        for name in ("loogle", "qmsum"):
            cells = {s: list(_shares(rows, s, name, 1024).values()) for s in ("head", "bm25", *_WITHOUT_MODEL, "auto")}
            if not all(cells.values()):
                continue
            counted += [row for row in rows if (row["set"], row["budget"]) == (name, 1024) and row["selector"] in cells]
            means = {selector: 100 * float(np.mean(values)) for selector, values in cells.items()}
            best = max(_WITHOUT_MODEL, key=lambda selector: means[selector])
            lines.append(
                f"| {rows[0]['model']} | {_TITLES[name]} ({len(cells['auto'])}) | {means['head']:.1f} | "
                f"{means['bm25']:.1f} | {means[best]:.1f} ({NAMES.get(best, best)}) | **{means['auto']:.1f}** |"
            )
    if counted:
        lines += ["", f"Made on {where_and_when(counted)}."]
    head, mark, rest = readme.read_text(encoding="utf-8").partition(_MARK)
    if not mark:
        raise ValueError(f"{readme} has no line {_MARK}")
    _, section, after = rest.partition("\n## ")
    readme.write_text(head + mark + "\n".join(lines) + "\n" + section + after, encoding="utf-8")
    return readme


def rows_by_model(results: Path) -> list[list[Row]]:
    """The rows of every model, each row once, from however many files."""
    found: dict[str, dict[tuple[Any, ...], Row]] = {}
    for path in sorted(results.glob("selection-*.jsonl*")):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for row in map(_named, map(json.loads, file)):
                key = (row["set"], row["document"], row["question"], row["selector"], row["budget"])
                found.setdefault(row["model"], {})[key] = row
    return [list(rows.values()) for rows in found.values()]


def _named(row: Row) -> Row:
    """The row with the form of its stored segments, where it has any, as a part of its selector's name."""
    return row | {"selector": f"{row['selector']}{_STORED}{row['stored']}"} if "stored" in row else row


def _model(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    budgets = sorted({row["budget"] for row in rows if row["budget"]})
    sets = [name for name in _ORDER if any(row["set"] == name for row in rows)]
    selectors = list(dict.fromkeys(row["selector"] for row in rows))
    lines = [
        f"\n## {first['model']}\n",
        f"Model fingerprint {first['fingerprint']}, longctx {first['longctx']}, torch {first['torch']}, transformers "
        f"{first['transformers']}; {where_and_when(rows)}. Share of the evidence kept, in points.\n",
        "| selector | " + " | ".join(f"{s} {b}" for s in sets for b in budgets) + " | n |",
        "|---|" + "--:|" * (len(sets) * len(budgets) + 1),
    ]
    for selector in selectors:
        own = [row for row in rows if row["selector"] == selector]
        cells, counts = [], []
        for name in sets:
            for budget in budgets:
                found = [row["recall"] for row in own if row["set"] == name and row["budget"] == budget]
                cells.append(f"{100 * float(np.mean(found)):.1f}" if found else "")
            counts.append(str(len({(r["document"], r["question"]) for r in own if r["set"] == name})))
        label = NAMES.get(selector, selector)
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {'/'.join(counts)} |")
    lines += [
        "",
        f"n: questions of {', '.join(sets)}.\n",
        *_against(rows, sets, budgets),
        *_stored(rows, sets, budgets),
    ]
    lines += _published(rows)
    return lines


def _against(rows: Sequence[Row], sets: Sequence[str], budgets: Sequence[int]) -> list[str]:
    """``auto`` beside the best row without a model on each set and budget, and over the two long sets together."""
    lines = [
        "### auto beside the best row without a model\n",
        "| set | budget | best without a model | its share | auto | difference | 95 % interval |",
        "|---|--:|---|--:|--:|--:|---|",
    ]
    for name in sets:
        for budget in budgets:
            best, pairs = _best(rows, [name], [budget])
            if len(pairs):
                low, high = _interval(pairs[:, 1] - pairs[:, 0])
                mean = pairs.mean(0) * 100
                lines.append(
                    f"| {name} | {budget} | {NAMES.get(best, best)} | {mean[0]:.1f} | {mean[1]:.1f} | "
                    f"{mean[1] - mean[0]:+.1f} | {low:+.1f} to {high:+.1f} |"
                )
    both = [name for name in ("loogle", "qmsum") if name in sets]
    small = [budget for budget in budgets if budget <= 1024]
    best, differences = _average(rows, both, small) if len(both) == 2 and small else ("", {})
    if best:
        lines += [
            "",
            f"Average over {' and '.join(both)} at {' and '.join(map(str, small))} tokens: auto "
            f"{differences['mean']:+.1f} points against the best single row ({NAMES.get(best, best)}), 95 % interval "
            f"{differences['low']:+.1f} to {differences['high']:+.1f} (paired bootstrap over questions within sets).\n",
        ]
    return lines


def _shares(rows: Sequence[Row], selector: str, name: str, budget: int) -> dict[tuple[str, int], float]:
    return {
        (row["document"], row["question"]): row["recall"]
        for row in rows
        if row["selector"] == selector and row["set"] == name and row["budget"] == budget
    }


def _best(rows: Sequence[Row], sets: Sequence[str], budgets: Sequence[int]) -> tuple[str, Any]:
    """The best row without a model and its pairs with ``auto``: [questions, 2]."""
    found: tuple[str, Any] = ("", np.zeros((0, 2)))
    for selector in _WITHOUT_MODEL:
        pairs = []
        for name in sets:
            for budget in budgets:
                other, auto = _shares(rows, selector, name, budget), _shares(rows, "auto", name, budget)
                pairs += [(other[key], auto[key]) for key in sorted(other.keys() & auto.keys())]
        array = np.array(pairs).reshape(-1, 2)
        if len(array) and (not len(found[1]) or array[:, 0].mean() > found[1][:, 0].mean()):
            found = (selector, array)
    return found


def _average(rows: Sequence[Row], sets: Sequence[str], budgets: Sequence[int]) -> tuple[str, dict[str, float]]:
    """Mean over cells (set, budget) of the mean difference, against the row whose mean over cells is highest.

    The row's name is empty where no row without a model has them all.
    """
    rng = np.random.default_rng(0)
    best, best_mean, best_cells = "", -1.0, []
    for selector in _WITHOUT_MODEL:
        cells = [_best_pairs(rows, selector, name, budget) for name in sets for budget in budgets]
        if all(len(cell) for cell in cells):
            mean = float(np.mean([cell[:, 0].mean() for cell in cells]))
            if mean > best_mean:
                best, best_mean, best_cells = selector, mean, cells
    if not best:
        return best, {}
    draws = np.zeros(_DRAWS)
    for cell in best_cells:
        difference = cell[:, 1] - cell[:, 0]
        draws += difference[rng.integers(0, len(difference), (_DRAWS, len(difference)))].mean(1) / len(best_cells)
    mean = float(np.mean([(cell[:, 1] - cell[:, 0]).mean() for cell in best_cells]))
    low, high = np.percentile(draws, [2.5, 97.5])
    return best, {"mean": 100 * mean, "low": 100 * float(low), "high": 100 * float(high)}


def _best_pairs(rows: Sequence[Row], selector: str, name: str, budget: int) -> Any:
    other, auto = _shares(rows, selector, name, budget), _shares(rows, "auto", name, budget)
    return np.array([(other[key], auto[key]) for key in sorted(other.keys() & auto.keys())]).reshape(-1, 2)


def _interval(differences: Any) -> tuple[float, float]:
    """A paired bootstrap interval of the mean difference, in points."""
    rng = np.random.default_rng(0)
    means = differences[rng.integers(0, len(differences), (_DRAWS, len(differences)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return 100 * float(low), 100 * float(high)


def _stored(rows: Sequence[Row], sets: Sequence[str], budgets: Sequence[int]) -> list[str]:
    """Each selector on segments that came from files beside itself on those it has just read."""
    lines: list[str] = []
    for selector in dict.fromkeys(row["selector"] for row in rows if _STORED in row["selector"]):
        fresh, _, form = selector.partition(_STORED)
        for name in sets:
            for budget in budgets:
                own, other = _shares(rows, selector, name, budget), _shares(rows, fresh, name, budget)
                pairs = np.array([(other[key], own[key]) for key in sorted(other.keys() & own.keys())]).reshape(-1, 2)
                if len(pairs):
                    low, high = _interval(pairs[:, 1] - pairs[:, 0])
                    before, after = pairs.mean(0) * 100
                    lines.append(
                        f"| {fresh} | {form} | {name} | {budget} | {len(pairs)} | {before:.1f} | {after:.1f} | "
                        f"{after - before:+.1f} | {low:+.1f} to {high:+.1f} |"
                    )
    if not lines:
        return []
    head = ["selector", "form", "set", "budget", "n", "fresh", "stored", "difference", "95 % interval"]
    rule = "|---|---|---|--:|--:|--:|--:|--:|---|"
    return ["### Segments from files beside segments just read\n", f"| {' | '.join(head)} |", rule, *lines, ""]


def _published(rows: Sequence[Row]) -> list[str]:
    """The released InfiniRetri scoring without a budget: what it keeps, and how many tokens that is."""
    own = [row for row in rows if row["selector"] == "infiniretri:compat=paper" and row["budget"] == 0]
    if not own:
        return []
    lines = ["### Released InfiniRetri scoring, no budget, documents cut to 16k tokens\n"]
    for name in dict.fromkeys(row["set"] for row in own):
        found = [row for row in own if row["set"] == name]
        recall = 100 * float(np.mean([row["recall"] for row in found]))
        tokens = float(np.mean([row["tokens"] for row in found]))
        lines.append(f"- {name}: {recall:.1f} with {tokens:.0f} tokens kept on average (n = {len(found)})")
    return [*lines, ""]


_HEAD = """# Selection: how much of the evidence each method keeps

Every row has the same units, the same cut and the same budget of tokens. Evidence is the sentence or passage that holds
the answer (loogle: LooGLE short-dependency QA; nq: Natural Questions passages as one document; xquad: SQuAD paragraphs
as one document), the marked turns (qmsum: meetings, by share of their characters), or a planted fact (needles: 20 facts
in one text of books). This page is written by `longctx eval selection` from the rows of its runs; the rows hold hashes
and counts, never text. A row with a smaller n covers the first questions of each document only: its shares are not
to be read beside those of rows with more. Rows named "stored" were asked of documents loaded from files, their segments
exact or in eight bits (`--stored`). The weights of `auto` were chosen on questions of loogle, qmsum and nq with
smol; [the log](log.md) says what else the rows were made with."""
