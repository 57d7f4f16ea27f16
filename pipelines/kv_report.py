"""The page of ``longctx bench kv``, made from its rows and from nothing else.

Owns the tables, and which of them have a picture. What is compared with what is another module's.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from longctx.errors import MissingExtra

from . import kv_picture
from .kv_compared import Interval, by, losses, mean, reading, times
from .rows import Row, put, read, where_and_when

PAGE = "kv.md"


def check() -> None:
    """Raise now what ``write_report`` would raise after all the work."""
    if find_spec("matplotlib") is None:
        raise MissingExtra("the pictures of bounded caches", "matplotlib", "plots")


def write_report(results: Path) -> Path:
    """Write ``results``/kv.md and its pictures from every ``results``/kv-*.jsonl, each whole or not at all.

    Returns the page. Raises ArtifactError for what is no row, and MissingExtra without matplotlib.
    """
    check()
    page = results / PAGE
    head = ["# Bounded caches: speed and quality\n", "Written by `longctx bench kv` from the rows beside it.\n"]
    for name, picture in pictures(results).items():
        put(results / name, picture)
    put(page, ("\n".join([*head, *tables(results)]) + "\n").encode())
    return page


def tables(results: Path, images: str = "") -> list[str]:
    """The tables of every ``results``/kv-*.jsonl, each file under a heading of its own, after the speeds by length.

    ``images``: where the page finds its pictures, with a slash at the end; empty: beside it.
    """
    files = _files(results)
    parts: list[str] = []
    for name, group in kv_picture.lengths(files.values()).items():
        title = f"{group.model} in {group.dtype}, {group.machine}"
        parts += [
            f"\n## By length: {title}, {group.threads} threads\n",
            f"![{title}: reading and decoding, times stock, by tokens of the text]({images}{name}.png)",
            f"\n{' and '.join(group.dates)}, from the tables below; what several files measured is drawn at the "
            "median. Methods but `full` may have been read once, with the spread of a single reading.\n",
        ]
    for path, rows in files.items():
        parts.append(_head(path, rows))
        if "measure" in rows[0]:
            parts += speed(rows)
            continue
        if kv_picture.compares(rows):
            parts.append(f"\n![{path.stem}: what is lost by the share of keys read]({images}{path.stem}.png)\n")
        parts += quality(rows)
    return parts


def pictures(results: Path) -> dict[str, bytes]:
    """The pictures that ``tables`` shows, by the names of their files."""
    files = _files(results)
    made = {f"{name}.png": kv_picture.speed(group) for name, group in kv_picture.lengths(files.values()).items()}
    drawn = {path.stem: rows for path, rows in files.items() if "measure" not in rows[0] and kv_picture.compares(rows)}
    return made | {f"{name}.png": kv_picture.quality(rows) for name, rows in drawn.items()}


def _files(results: Path) -> dict[Path, list[Row]]:
    return {path: rows for path in sorted(results.glob("kv-*.jsonl")) if (rows := read(path))}


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
    methods = by(rows, "method")
    stock = methods.get("stock", ())
    lines = [
        f"\n### Reading {tokens:,} tokens\n",
        "| method | rounds | tokens/s, median | least to most | beside stock | index, s | of the reading | peak, MiB "
        "| above the loaded model |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for method, own in methods.items():
        rates = [row["prefill_tokens_per_second"] for row in own]
        beside = reading(own, stock)
        index = statistics.median(row["index_seconds"] for row in own)
        share = statistics.median(row["index_seconds"] / row["prefill_seconds"] for row in own)
        peaks = [row for row in own if row["peak_bytes"] is not None]
        peak = statistics.median(row["peak_bytes"] for row in peaks) / 2**20 if peaks else None
        more = statistics.median(row["peak_bytes"] - row["loaded_bytes"] for row in peaks) / 2**20 if peaks else None
        lines.append(
            f"| {method} | {len(own)} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | "
            f"{_number(beside, '.2f')} | {index:.1f} | {100 * share:.0f} % | "
            f"{_number(peak, ',.0f')} | {_number(more, ',.0f')} |"
        )
    return lines


def _decoding(tokens: int, tile: int, rows: Sequence[Row]) -> list[str]:
    named = {row["method"]: row for row in rows}
    where = f"{tokens:,} tokens" if not tile else f"{tokens:,} tokens tiled to {tile:,}, budgets those of {tokens:,}"
    lines = [
        f"\n### Decoding behind {where}\n",
        "| method | tokens/s, median | least to most | beside stock | beside full | slots asked | keys read | share | "
        "look-up, MiB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for method, row in named.items():
        ratios = [times(row, named.get(other)) for other in ("stock", "full")]
        share = None if row["read_share"] is None else 100 * row["read_share"]
        looked = None if row["lookup_bytes"] is None else row["lookup_bytes"] / 2**20
        lines.append(
            f"| {method} | {row['median']:.2f} | {row['least']:.2f} to {row['most']:.2f} | "
            f"{_number(ratios[0], '.2f')} | {_number(ratios[1], '.2f')} | {row['slots']:,} | "
            f"{_number(row['read_keys'], ',.0f')} | {_number(share, '.1f')} | {_number(looked, '.1f')} |"
        )
    return lines


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
    lines = [
        f"\n### {title}\n",
        "| policy | questions | keys read, share | look-up, MiB | score | lost against full | loss, nats a token "
        "| same answer | refused |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for line in losses(rows):
        if not line.questions:
            lines.append(f"| {line.policy} | 0 | | | | | | | {line.refused} |")
            continue
        lines.append(
            f"| {line.policy} | {line.questions} | {100 * line.share:.1f} % | {line.lookup_bytes / 2**20:.1f} | "
            f"{line.score:.1f} | {_between(line.lost, '.1f')} | {_between(line.loss, '.3f')} | "
            f"{100 * line.same:.0f} % | {line.refused} |"
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
    for policy, own in by(audited, "policy").items():
        shares = [
            100 * mean(row[name] for row in own) for name in ("unread_share", "true_unread_share", "unread_bound")
        ]
        ratio = statistics.median(row["unread_bound"] / max(row["true_unread_share"], 1e-9) for row in own)
        above = 100 * mean(row["above_bound"] for row in own)
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


def _source(row: Row) -> str:
    """Where a row's question is from; rows of speed and the oldest do not say."""
    return str(row.get("made_with", {}).get("source", ""))


def _between(found: Interval, form: str) -> str:
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
