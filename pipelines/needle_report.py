"""What a run of needles found: means with intervals, a CSV, a heat map and a page that needs nothing else.

Owns the figures and how they look. Knows rows only.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx.errors import DoesNotFit, MissingExtra, UsageError

from . import needle_page
from .needle_scores import interval
from .rows import put

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = (
    "task", "length", "seed", "fact", "depth", "system", "asked", "kept", "held", "said", "scoring", "document_tokens",
    "question", "answers", "answer", "error", "haystack_sha256", "prompt_sha256", "given_sha256",
)  # fmt: skip
MEASURES = ("kept", "said")
_INCHES_A_LENGTH, _INCHES_A_DEPTH, _INCHES_A_TITLE, _LEAST_INCHES, _DPI = 0.62, 0.3, 0.6, 6.4, 140
# 0 to 1, told apart by every kind of eye; what could not be measured
_COLOURS, _NOTHING = ("#b2182b", "#fddbc7", "#2166ac"), "#e9ecef"
_DARK_BELOW, _DARK_ABOVE = 0.25, 0.75


@dataclass(frozen=True, slots=True)
class Line:
    """One task, system and length: means of 0 to 1 with 95 % intervals, None where nothing could be measured.

    ``refused`` rows are beyond a window; ``unanswered`` ones got nothing from a server, or have a prompt that
    their KV policy could not bound. Means are over ``measured`` and ``answered`` rows.
    """

    task: str
    system: str
    length: int
    rows: int
    refused: int
    unanswered: int
    measured: int
    kept: float | None
    kept_interval: tuple[float, float] | None
    answered: int
    said: float | None
    said_interval: tuple[float, float] | None

    @property
    def cells(self) -> tuple[str, ...]:
        """As people read them, in the order of the page's headers."""
        kept = percent(self.kept, self.kept_interval, self.measured)
        said = percent(self.said, self.said_interval, self.answered)
        counts = map(str, (self.rows, self.refused, self.unanswered))
        return self.task, self.system, f"{self.length:,}", *counts, kept, said


@dataclass(frozen=True, slots=True)
class Written:
    summary: tuple[Line, ...]
    files: Mapping[str, Path]


def check(out: Path) -> None:
    """Raise now what ``write`` would raise after all the work."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {str(out)!r} is not a folder.")
    if find_spec("matplotlib") is None:
        raise MissingExtra("the heat map", "matplotlib", "plots")


def write(out: Path, rows: Sequence[Mapping[str, Any]]) -> Written:
    """The table, the picture and the page of ``rows`` in ``out``, each a file that appears whole or not at all."""
    lines = summary(rows)
    picture = heat_map(rows)
    files = {name: out / f"needle.{name}" for name in ("jsonl", "csv", "png", "html")}
    put(files["csv"], table(rows).encode("utf-8", "backslashreplace"))
    put(files["png"], picture)
    put(files["html"], needle_page.page(rows, lines, picture).encode("utf-8", "backslashreplace"))
    return Written(lines, files)


def summary(rows: Sequence[Mapping[str, Any]]) -> tuple[Line, ...]:
    """Means over depths and seeds, one line for each task, length and system, in the order of the rows."""
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["system"], row["length"]), []).append(row)
    lines = []
    for (task, system, length), own in groups.items():
        kept, said = [[row[name] for row in own if row[name] is not None] for name in ("kept", "said")]
        failed = [row["error"]["kind"] for row in own if row.get("error") is not None]
        refused = failed.count(DoesNotFit.__name__)
        counts = (len(own), refused, len(failed) - refused)
        lines.append(Line(task, system, length, *counts, len(kept), *_mean(kept), len(said), *_mean(said)))
    return tuple(lines)


def percent(mean: float | None, ends: tuple[float, float] | None, count: int) -> str:
    """A mean and its interval in points and over how many rows it is, or a dash."""
    if mean is None or ends is None:
        return "-"
    return f"{100 * mean:.0f} % [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}] of {count}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV, without timings."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        recipe = {name: row["recipe"][name] for name in ("haystack_sha256", "prompt_sha256")}
        error = (row.get("error") or {}).get("message", "")
        writer.writerow({**row, **recipe, "answers": "; ".join(row["answers"]), "error": error})
    return text.getvalue()


def kept_label(rows: Sequence[Mapping[str, Any]]) -> str:
    """What ``kept`` is in ``rows``: those made before they held what the model was given tell of the selection."""
    return "kept in what was read" if all("kept" in row["made_with"] for row in rows) else "kept by the selection"


def heat_map(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG: depth down, length across, one line of panels for each task and system, kept on the left, said right.

    Numbers are means over seeds in points; grey is what could not be measured.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    pairs = list(dict.fromkeys((row["task"], row["system"]) for row in rows))
    lengths = sorted({row["length"] for row in rows})
    grids = {pair: grid([row for row in rows if (row["task"], row["system"]) == pair], lengths) for pair in pairs}
    heights = [len(grids[pair].depths) * _INCHES_A_DEPTH + _INCHES_A_TITLE for pair in pairs]
    width = max(_LEAST_INCHES, 2 * (len(lengths) * _INCHES_A_LENGTH + 1.0))
    figure = Figure(figsize=(width, sum(heights) + 0.5), layout="constrained")
    labels = {"kept": kept_label(rows), "said": "said in the answer"}
    panels = figure.subplots(len(pairs), 2, squeeze=False, sharex=True, height_ratios=heights)
    colours = LinearSegmentedColormap.from_list("needle", _COLOURS).with_extremes(bad=_NOTHING)
    for line, pair in zip(panels, pairs, strict=True):
        for axes, name in zip(line, MEASURES, strict=True):
            _panel(axes, grids[pair].cells[name], colours)
            middles = [0.5 + i for i in range(max(len(lengths), len(grids[pair].depths)))]
            axes.set_yticks(middles[: len(grids[pair].depths)], list(map(depth_text, grids[pair].depths)), fontsize=8)
            axes.set_xticks(middles[: len(lengths)], list(map(tokens_text, lengths)), fontsize=8)
            title = f"{pair[0]} · {pair[1]}\n{labels[name]}" if axes is line[0] else labels[name]
            axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    figure.supxlabel("tokens of the text", fontsize=9)
    figure.supylabel("depth of the needle", fontsize=9)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    return data.getvalue()


@dataclass(frozen=True, slots=True)
class Cells:
    """The means of one task and system: for each measure a line of lengths per depth, None where nothing is known."""

    depths: tuple[float | None, ...]
    cells: Mapping[str, list[list[float | None]]]


def grid(rows: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> Cells:
    """Means over the seeds of every depth and length."""
    depths = tuple(sorted({row["depth"] for row in rows}, key=lambda depth: -1.0 if depth is None else depth))
    values: dict[tuple[str, Any, int], list[float]] = {}
    for row in rows:
        for name in MEASURES:
            if row[name] is not None:
                values.setdefault((name, row["depth"], row["length"]), []).append(row[name])

    def mean(name: str, depth: float | None, length: int) -> float | None:
        found = values.get((name, depth, length))
        return sum(found) / len(found) if found else None

    return Cells(
        depths, {name: [[mean(name, depth, length) for length in lengths] for depth in depths] for name in MEASURES}
    )


def tokens_text(length: int) -> str:
    """4000 as 4k."""
    for unit, factor in (("M", 1_000_000), ("k", 1_000)):
        if length >= factor:
            return f"{length / factor:g}{unit}"
    return str(length)


def depth_text(depth: float | None) -> str:
    """0.5 as 50 %."""
    return "all" if depth is None else f"{100 * depth:.0f} %"


def _panel(axes: Axes, cells: Sequence[Sequence[float | None]], colours: Any) -> None:
    """One heat map with its numbers."""
    values = [[float("nan") if value is None else value for value in line] for line in cells]
    axes.pcolormesh(values, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
    axes.set_ylim(len(cells), 0)
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            shown = "–" if value is None else f"{100 * value:.0f}"
            dark = value is not None and (value < _DARK_BELOW or value > _DARK_ABOVE)
            ink = "white" if dark else "black"
            axes.text(x + 0.5, y + 0.5, shown, ha="center", va="center_baseline", fontsize=8, color=ink)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _mean(values: Sequence[float]) -> tuple[float | None, tuple[float, float] | None]:
    return (sum(values) / len(values), interval(values)) if values else (None, None)
