"""The pictures of ``longctx bench kv``: what is lost by what is read, and how fast policies are by length.

Owns which rows are drawn together and how. The same rows give the same picture; needs the extra ``plots``.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from longctx import plugins

from .kv_compared import Interval, Loss, by, losses, reading, times
from .rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES, _DPI = (10.0, 3.6), 130
_COLOURS = ("#0b7285", "#868e96", "#5f3dc4", "#212529", "#2b8a3e", "#1971c2", "#e67700", "#c92a2a")
_BASE = "#868e96"  # what all is held against
_STROKES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # and the mark of a single measurement
_SHARES = (1, 2, 4, 6, 8, 10, 15, 20, 30, 40, 60, 100)  # per cent that an axis may name
_NATS = (-2, -1, -0.5, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_LINEAR = 0.1  # nats a token: losses up to this are drawn in proportion, larger ones by their logarithm


@dataclass(frozen=True, slots=True)
class Group:
    """Files of speeds that stand in one picture: of one model on one machine."""

    model: str
    dtype: str
    threads: int
    machine: str
    files: tuple[Sequence[Row], ...]

    @property
    def dates(self) -> list[str]:
        return sorted({row["date"] for rows in self.files for row in rows})

    @property
    def name(self) -> str:
        """That of the picture's file, without its ending."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.model} {self.dtype} {self.threads} {self.machine}".lower())
        return f"kv-lengths-{words.strip('-')}"


def compares(rows: Sequence[Row]) -> bool:
    """Whether rows of quality hold anything against anything: two policies or shares beside the full cache."""
    return len({row["policy"] for row in rows if "score" in row} - {"full"}) > 1


def lengths(files: Iterable[Sequence[Row]]) -> dict[str, Group]:
    """Rows of speed by the picture they are in: those of one model and machine, where they know several lengths."""
    found: dict[tuple[str, str, int, str], list[Sequence[Row]]] = {}
    for rows in files:
        if "measure" in rows[0]:
            made = rows[0]["made_with"]
            place = made["model"], made["dtype"], made["threads"], rows[0]["machine"]
            found.setdefault(place, []).append(rows)
    groups = [Group(*place, tuple(own)) for place, own in found.items()]
    return {group.name: group for group in groups if len({at for line in read_by(group).values() for at in line}) > 1}


def read_by(group: Group) -> dict[str, dict[int, float]]:
    """How many times as fast as stock each method read each length, by method and length."""
    return _joined(group, "read", lambda own, stock: reading(own, stock))


def decoded_by(group: Group) -> dict[str, dict[int, float]]:
    """The same of decoding behind each length."""
    return _joined(group, "decode", lambda own, stock: times(own[0], stock[0]))


def _joined(
    group: Group, measure: str, ratio: Callable[[Sequence[Row], Sequence[Row]], float | None]
) -> dict[str, dict[int, float]]:
    """Ratios beside the stock of the same file; of several files' the median."""
    found: dict[str, dict[int, list[float]]] = {}
    for rows in group.files:
        plain = [row for row in rows if row["measure"] == measure and not row["tile"]]
        for tokens in dict.fromkeys(row["context"] for row in plain):
            methods = by([row for row in plain if row["context"] == tokens], "method")
            if "stock" not in methods:
                continue
            for method, own in methods.items():
                if method != "stock" and (one := ratio(own, methods["stock"])) is not None:
                    found.setdefault(method, {}).setdefault(tokens, []).append(one)
    return {
        method: {tokens: statistics.median(line[tokens]) for tokens in sorted(line)} for method, line in found.items()
    }


def quality(rows: Sequence[Row]) -> bytes:
    """A PNG of two panels: nats a token and points that are lost, with their intervals, by the share of keys read."""
    return _png(draw_quality(losses(rows)))


def speed(group: Group) -> bytes:
    """A PNG of two panels: reading and decoding, times stock, by the tokens of the text."""
    return _png(draw_speed({"reading": read_by(group), "decoding behind it": decoded_by(group)}))


def draw_quality(found: Sequence[Loss]) -> Figure:
    figure, panels = _panels()
    kinds: dict[str, list[Loss]] = {}
    for line in found:
        if line.questions and line.policy != "full":
            kinds.setdefault(_kind(line.policy), []).append(line)
    values: dict[str, Callable[[Loss], Interval]] = {
        "nats a token lost": lambda line: line.loss,
        "points of the score lost": lambda line: line.lost,
    }
    shares = [100 * line.share for own in kinds.values() for line in own]
    ticks = [tick for tick in _SHARES if 0.9 * min(shares) <= tick <= 1.1 * max(shares)]
    for axes, (title, value) in zip(panels, values.items(), strict=True):
        for kind, look in _looks(kinds).items():
            own = sorted(kinds[kind], key=lambda line: line.share)
            means = [value(line).mean for line in own]
            below = [value(line).mean - value(line).low for line in own]
            above = [value(line).high - value(line).mean for line in own]
            at = [100 * line.share for line in own]
            axes.errorbar(at, means, yerr=[below, above], label=kind, capsize=2, elinewidth=0.8, **look)
        axes.axhline(0, color=_BASE, linewidth=0.8)
        axes.set_xscale("log")
        _ticks(axes, ticks, "{:g} %")
        axes.set_xlabel("keys read of the text's", fontsize=9)
        axes.set_title(f"{title}, beside the full cache", fontsize=9, loc="left")
    panels[0].set_yscale("symlog", linthresh=_LINEAR)
    panels[0].set_ylim(bottom=1.3 * min(-0.01, *(line.loss.low for own in kinds.values() for line in own)))
    low, high = panels[0].get_ylim()
    panels[0].set_yticks([nats for nats in _NATS if low <= nats <= high])
    panels[0].set_yticks([], minor=True)
    panels[0].yaxis.set_major_formatter("{x:g}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return figure


def draw_speed(found: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Figure:
    figure, panels = _panels()
    several = {method for lines in found.values() for method, line in lines.items() if len(line) > 1}
    looks = _looks(dict.fromkeys(method for lines in found.values() for method in lines if method in several))
    handles = {}
    for axes, (title, lines) in zip(panels, found.items(), strict=True):
        for method, look in looks.items():
            if line := lines.get(method):
                (handles[method],) = axes.plot(list(line), list(line.values()), **look)
        axes.axhline(1, color=_BASE, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _ticks(axes, sorted({tokens for method in several for tokens in lines.get(method, ())}), "{:,}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="both", labelsize=8)
        axes.set_xlabel("tokens of the text", fontsize=9)
        axes.set_title(f"{title}, times as fast as stock", fontsize=9, loc="left")
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8, frameon=False)
    return figure


def _panels() -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    return figure, list(figure.subplots(1, 2))


def _kind(policy: str) -> str:
    """A policy without its budget: one line of a picture."""
    name, _, options = policy.partition(":")
    kept = [option for option in options.split(",") if option and not option.startswith(("keep=", "budget="))]
    return ":".join([name, *([",".join(kept)] if kept else [])])


def _looks(policies: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A policy's colour is the same in every picture; what is one by other options has another stroke."""
    names = plugins.names("kv")
    seen: dict[str, int] = {}
    found = {}
    for policy in policies:
        name = policy.partition(":")[0]
        place = names.index(name) if name in names else len(names)
        stroke, mark = _STROKES[seen.get(name, 0) % len(_STROKES)]
        look = {"color": _COLOURS[place % len(_COLOURS)], "linestyle": stroke, "marker": mark}
        found[policy] = {**look, "linewidth": 1.4, "markersize": 4}
        seen[name] = seen.get(name, 0) + 1
    return found


def _ticks(axes: Axes, ticks: Sequence[float], form: str) -> None:
    axes.set_xticks(ticks, [form.format(tick) for tick in ticks], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="y", labelsize=8)


def _png(figure: Figure) -> bytes:
    data = BytesIO()
    figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    return data.getvalue()
