"""The table and the picture of a grid, from its rows alone.

Owns the figures and how they look. A mean is over the rows that have the figure; refused rows and errors are counted
and stand in no mean. Knows no program and no model.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx.errors import MissingExtra

from .needle_scores import interval
from .rows import Row, put

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEAD = (
    "method", "budget", "read", "rows", "score", "kept", "seconds", "tokens/s", "answer tokens/s", "peak", "refused",
    "errors",
)  # fmt: skip
_COLOURS = ("#2166ac", "#d9480f", "#5c940d", "#862e9c", "#495057", "#0b7285", "#c2255c")
_DPI, _INCHES_A_BAR, _LEAST_INCHES, _WIDTH = 140, 0.2, 2.4, 11.0


@dataclass(frozen=True, slots=True)
class Line:
    """One method on one task and length: means over ``measured`` rows, None where there is none.

    ``read`` are tokens of the prompt, or keys of its context, that were read for each token of the answer.
    ``tokens_per_second`` is the document's tokens over all seconds of a question, reading of the document included.
    """

    model: str
    task: str
    length: int | None
    method: str
    budget: int | None
    measured: int
    score: float | None
    score_interval: tuple[float, float] | None
    kept: float | None
    read: float | None
    seconds: float | None
    tokens_per_second: float | None
    answer_tokens_per_second: float | None
    peak_bytes: float | None
    refused: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """As people read them, in the order of the table's head."""
        low, high = self.score_interval or (0.0, 0.0)
        score = "" if self.score is None else f"{self.score:.0%} ({low:.0%} to {high:.0%})"
        peak = "" if self.peak_bytes is None else f"{self.peak_bytes / 1e9:.2f} GB"
        budget = "" if self.budget is None else f"{self.budget:,}"
        kept = "" if self.kept is None else f"{self.kept:.0%}"
        speeds = (self.tokens_per_second, self.answer_tokens_per_second)
        return (
            f"`{self.method}`", budget, _number(self.read, 0), str(self.measured), score, kept,
            _number(self.seconds, 1), _number(speeds[0], 0), _number(speeds[1], 1), peak,
            _counted(self.refused), _counted(self.errors),
        )  # fmt: skip


def check() -> None:
    """Raise now what ``write_report`` would raise after all the work."""
    if find_spec("matplotlib") is None:
        raise MissingExtra("the picture of a grid", "matplotlib", "plots")


def summary(rows: Sequence[Row]) -> list[Line]:
    """A line for every model, task, length, method and budget, those of one text together, in the order of the rows."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in ("model", "task", "length", "method", "budget")), []).append(row)
    texts = list(dict.fromkeys(place[:3] for place in groups))
    return [_line(place, groups[place]) for place in sorted(groups, key=lambda place: texts.index(place[:3]))]


def write_report(out: Path, name: str, rows: Sequence[Row]) -> tuple[Path, Path]:
    """Write ``name``.md and ``name``.png, each whole or not at all, and return both."""
    check()
    page, picture = out / f"{name}.md", out / f"{name}.png"
    put(page, "\n".join([f"# {name}", "", *tables(rows)]).encode())
    put(picture, _picture(summary(rows)))
    return page, picture


def _line(place: tuple[Any, ...], group: Sequence[Row]) -> Line:
    model, task, length, method, budget = place
    good = [row for row in group if row.get("score") is not None]
    scores = [row["score"] for row in good]
    return Line(
        model=model, task=task, length=length, method=method, budget=budget,
        measured=len(good),
        score=_mean(scores),
        score_interval=interval(scores) if scores else None,
        kept=_mean([row["kept"] for row in good if row["kept"] is not None]),
        read=_mean([_read(row) for row in good]),
        seconds=_mean([row["seconds"]["total"] for row in good]),
        tokens_per_second=_ratio(good, lambda row: row["prompt_tokens"], lambda row: row["seconds"]["total"]),
        answer_tokens_per_second=_ratio(good, _later_tokens, lambda row: row["seconds"].get("decode")),
        peak_bytes=max((row["peak_bytes"] for row in good), default=None),
        refused=tuple(row["refused"]["kind"] for row in group if "refused" in row),
        errors=tuple(row["error"]["kind"] for row in group if "error" in row),
    )  # fmt: skip


def _read(row: Row) -> float:
    measured = row["measured"]
    return float(measured.get("kept_tokens", measured["prompt_tokens"]))


def _later_tokens(row: Row) -> int | None:
    """New tokens behind the first, where the seconds of decoding do not hold the reading of the prompt."""
    return max(0, row["measured"]["new_tokens"] - 1) if "prefill" in row["seconds"] else None


def _ratio(
    rows: Sequence[Row], above: Callable[[Row], float | None], below: Callable[[Row], float | None]
) -> float | None:
    """The sum of one over the sum of the other, over the rows that have both."""
    pairs = [(above(row), below(row)) for row in rows]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    total = sum(b for _, b in known)
    return sum(a for a, _ in known) / total if total else None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _number(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:,.{places}f}"


def _counted(kinds: Sequence[str]) -> str:
    """``2 unchanged, 1 refused``."""
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def tables(rows: Sequence[Row], heading: str = "##") -> list[str]:
    """The lines of a table for every model, task and length, and what the rows were made with."""
    lines, parts = summary(rows), []
    for place in dict.fromkeys((line.model, line.task, line.length) for line in lines):
        model, task, length = place
        parts += [f"{heading} {model}, {task}" + ("" if length is None else f", {length:,} tokens"), ""]
        parts += [f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
        own = [line for line in lines if (line.model, line.task, line.length) == place]
        parts += [f"| {' | '.join(line.cells)} |" for line in own]
        parts.append("")
    if any(row["reused"] for row in rows if row.get("score") is not None):
        parts += ["Some questions were asked about a document that had been compiled or read for an earlier one.", ""]
    programs = {_versions(row): None for row in rows if "program" in row}
    parts += ["Made with", "", *(f"- {each}" for each in programs)]
    machines = dict.fromkeys(f"{row['machine']}, {row['date']}" for row in rows)
    loads = [row["load_average"] for row in rows if "load_average" in row]
    load = f" The load average of the machine was {min(loads)} to {max(loads)}: see each row." if loads else ""
    return [*parts, "", f"Machine and date: {'; '.join(machines)}.{load}", ""]


def _versions(row: Row) -> str:
    return ", ".join(f"{name} {release}" for name, release in row["program"]["versions"].items())


def _picture(lines: Sequence[Line]) -> bytes:
    """Three panels a model: score with its interval, tokens a second, peak memory; a bar for each method and length."""
    from io import BytesIO

    from matplotlib.figure import Figure

    models = list(dict.fromkeys(line.model for line in lines))
    most = max(sum(line.model == model for line in lines) for model in models)
    height = len(models) * max(_LEAST_INCHES, most * _INCHES_A_BAR + 1)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    grid = figure.subplots(len(models), 3, squeeze=False, sharey="row")
    panels: Mapping[str, Callable[[Line], float | None]] = {
        "score": lambda line: line.score,
        "tokens of the prompt a second": lambda line: line.tokens_per_second,
        "peak memory, GB": lambda line: None if line.peak_bytes is None else line.peak_bytes / 1e9,
    }
    for row, model in zip(grid, models, strict=True):
        own = [line for line in lines if line.model == model]
        for axes, (title, value) in zip(row, panels.items(), strict=True):
            _bars(axes, own, title if model == models[0] else "", value)
        row[0].set_ylabel(model)
    data = BytesIO()
    figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    return data.getvalue()


def _bars(axes: Axes, lines: Sequence[Line], title: str, value: Callable[[Line], float | None]) -> None:
    names = list(dict.fromkeys((line.task, line.length) for line in lines))
    for place, line in enumerate(lines):
        found = value(line)
        colour = _COLOURS[names.index((line.task, line.length)) % len(_COLOURS)]
        axes.barh(place, found or 0.0, color=colour, height=0.75)
        if found is None:
            axes.text(0, place, " refused" if line.refused else " no answer", va="center", fontsize=7, color="#868e96")
        elif title == "score" and line.score_interval:
            axes.plot(line.score_interval, (place, place), color="#212529", linewidth=1)
    labels = [f"{line.method}{'' if line.budget is None else f' {line.budget:,}'}, {_place(line)}" for line in lines]
    axes.set_yticks(range(len(lines)), labels, fontsize=7)
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="x", labelsize=7)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()


def _place(line: Line) -> str:
    return line.task if line.length is None else f"{line.task} {line.length:,}"
