"""The page of ``longctx bench kv``, made from its rows and from nothing else.

Owns the tables and which rows are compared: a policy stands beside the full cache on the questions that both answered.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .paired import interval
from .rows import Row, read, where_and_when

PAGE = "kv.md"


def write_report(results: Path) -> Path:
    """Write ``results``/kv.md from every ``results``/kv-*.jsonl and return it. Raises ArtifactError for no row."""
    page = results / PAGE
    head = ["# Bounded caches: speed and quality\n", "Written by `longctx bench kv` from the rows beside it.\n"]
    page.write_text("\n".join([*head, *tables(results)]) + "\n", encoding="utf-8")
    return page


def tables(results: Path) -> list[str]:
    """The tables of every ``results``/kv-*.jsonl, each file under a heading of its own."""
    parts: list[str] = []
    for path in sorted(results.glob("kv-*.jsonl")):
        if rows := read(path):
            own = speed if "measure" in rows[0] else quality
            parts += [_head(path, rows), *own(rows)]
    return parts


def speed(rows: Sequence[Row]) -> list[str]:
    """A table of reading and one of decoding for every length."""
    lines = []
    for tokens in dict.fromkeys(row["context"] for row in rows):
        own = [row for row in rows if row["context"] == tokens]
        lines += _reading(tokens, [row for row in own if row["measure"] == "read"])
        for tile in dict.fromkeys(row["tile"] for row in own if row["measure"] == "decode"):
            chosen = [row for row in own if row["measure"] == "decode" and row["tile"] == tile]
            lines += _decoding(tokens, tile, chosen)
    return lines


def _reading(tokens: int, rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    by = _by(rows, "method")
    stock = {row["round"]: row["prefill_tokens_per_second"] for row in by.get("stock", ())}
    lines = [
        f"\n### Reading {tokens:,} tokens\n",
        "| method | rounds | tokens/s, median | least to most | beside stock | index, s | of the reading | peak, MiB "
        "| above the loaded model |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for method, own in by.items():
        rates = [row["prefill_tokens_per_second"] for row in own]
        ratios = [row["prefill_tokens_per_second"] / stock[row["round"]] for row in own if row["round"] in stock]
        index = statistics.median(row["index_seconds"] for row in own)
        share = statistics.median(row["index_seconds"] / row["prefill_seconds"] for row in own)
        peaks = [row for row in own if row["peak_bytes"] is not None]
        peak = statistics.median(row["peak_bytes"] for row in peaks) / 2**20 if peaks else None
        more = statistics.median(row["peak_bytes"] - row["loaded_bytes"] for row in peaks) / 2**20 if peaks else None
        lines.append(
            f"| {method} | {len(own)} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | "
            f"{_number(statistics.median(ratios) if ratios else None, '.2f')} | {index:.1f} | {100 * share:.0f} % | "
            f"{_number(peak, ',.0f')} | {_number(more, ',.0f')} |"
        )
    return lines


def _decoding(tokens: int, tile: int, rows: Sequence[Row]) -> list[str]:
    by = {row["method"]: row for row in rows}
    where = f"{tokens:,} tokens" if not tile else f"{tokens:,} tokens tiled to {tile:,}, budgets those of {tokens:,}"
    lines = [
        f"\n### Decoding behind {where}\n",
        "| method | tokens/s, median | least to most | beside stock | beside full | slots asked | keys read | share | "
        "look-up, MiB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for method, row in by.items():
        ratios = [_ratio(row, by.get(other)) for other in ("stock", "full")]
        share = None if row["read_share"] is None else 100 * row["read_share"]
        looked = None if row["lookup_bytes"] is None else row["lookup_bytes"] / 2**20
        lines.append(
            f"| {method} | {row['median']:.2f} | {row['least']:.2f} to {row['most']:.2f} | "
            f"{_number(ratios[0], '.2f')} | {_number(ratios[1], '.2f')} | {row['slots']:,} | "
            f"{_number(row['read_keys'], ',.0f')} | {_number(share, '.1f')} | {_number(looked, '.1f')} |"
        )
    return lines


def _ratio(row: Row, other: Row | None) -> float | None:
    """The median over the repeats, which took turns, of how many times as fast one is; None where they did not."""
    if other is None or _turns(row) != _turns(other):
        return None
    pairs = zip(row["tokens_per_second"], other["tokens_per_second"], strict=True)
    return float(statistics.median(one / two for one, two in pairs))


def _turns(row: Row) -> tuple[str | None, int]:
    return row.get("turns"), len(row["tokens_per_second"])


def quality(rows: Sequence[Row]) -> list[str]:
    """One table over all documents, one for each suite and each length if there are several, and the audited bound."""
    lines = _losses("All documents", rows)
    sources = list(dict.fromkeys(_source(row) for row in rows))
    for source in sources if len(sources) > 1 else ():
        lines += _losses(source, [row for row in rows if _source(row) == source])
    lengths = sorted({row["length"] for row in rows if "length" in row})
    for length in lengths if len(lengths) > 1 else ():
        lines += _losses(f"{length:,} tokens", [row for row in rows if row.get("length") == length])
    return [*lines, *_bounds(rows)]


def _losses(title: str, rows: Sequence[Row]) -> list[str]:
    by = {policy: {_asked(row): row for row in own if "score" in row} for policy, own in _by(rows, "policy").items()}
    full = by.get("full", {})
    lines = [
        f"\n### {title}\n",
        "| policy | questions | keys read, share | look-up, MiB | score | lost against full | loss, nats a token "
        "| same answer | refused |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for policy, own in by.items():
        both = [key for key in own if key in full]
        refused = sum(row["policy"] == policy and "score" not in row for row in rows)
        if not both:
            lines.append(f"| {policy} | 0 | | | | | | | {refused} |")
            continue
        scores, whole = ([100 * group[key]["score"] for key in both] for group in (own, full))
        losses, documents = [own[key]["loss"] for key in both], [document for document, _ in both]
        same = sum(own[key]["same"] for key in both) / len(both)
        lines.append(
            f"| {policy} | {len(both)} | {100 * _mean(own[key]['read_share'] for key in both):.1f} % | "
            f"{_mean(own[key]['lookup_bytes'] for key in both) / 2**20:.1f} | {_mean(scores):.1f} | "
            f"{_between(whole, scores, documents, '.1f')} | "
            f"{_between(losses, [0.0] * len(losses), documents, '.3f')} | "
            f"{100 * same:.0f} % | {refused} |"
        )
    said = (
        "Scores in points. What is lost is the full cache's score less the policy's, and the loss is that of the full "
        "cache's own greedy answer, token by token. Both have paired 95 % intervals, of whole documents where a row "
        "has five or more and several questions of some, of questions elsewhere. A share counts the keys read exactly "
        "over those of the text, in the mean over layers, KV heads and passes. Look-up: bytes of the indices."
    )
    return [*lines, "", said + "\n"]


def _bounds(rows: Sequence[Row]) -> list[str]:
    audited = [row for row in rows if row.get("above_bound") is not None]
    if not audited:
        return []
    lines = [
        "\n### The stated bound of the unread share\n",
        "| policy | questions | estimated | measured | bound | bound to measured, median | above the bound |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for policy, own in _by(audited, "policy").items():
        shares = [
            100 * _mean(row[name] for row in own) for name in ("unread_share", "true_unread_share", "unread_bound")
        ]
        ratio = statistics.median(row["unread_bound"] / max(row["true_unread_share"], 1e-9) for row in own)
        above = 100 * _mean(row["above_bound"] for row in own)
        lines.append(
            f"| {policy} | {len(own)} | {shares[0]:.2f} % | {shares[1]:.2f} % | {shares[2]:.2f} % | {ratio:.2f} | "
            f"{above:.1f} % |"
        )
    return [*lines, "", "Above the bound: of all rows of attention in the audited passes; 5 % are allowed.\n"]


def _head(path: Path, rows: Sequence[Row]) -> str:
    made_with: dict[str, list[str]] = {}
    for row in rows:
        for name, value in row["made_with"].items():
            made_with.setdefault(name, []).append(str(value))
    every = {name: " and ".join(dict.fromkeys(values)) for name, values in made_with.items() if name != "options"}
    settings = "; ".join(f"{name} {values}" for name, values in every.items())
    return f"\n## {path.stem}\n\n{settings}. {where_and_when(rows)}.\n"


def _by(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found


def _source(row: Row) -> str:
    """Where a row's question is from; rows of speed and the oldest do not say."""
    return str(row.get("made_with", {}).get("source", ""))


def _asked(row: Row) -> tuple[str, str]:
    return row["document"], row["question"]


def _between(first: Sequence[float], second: Sequence[float], documents: Sequence[str], form: str) -> str:
    low, high = interval(first, second, documents=documents)
    mean = _mean(a - b for a, b in zip(first, second, strict=True))
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
