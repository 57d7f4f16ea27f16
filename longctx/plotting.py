"""Where the model looked: the score of every unit over the text, and the spans that were chosen.

Owns the picture and its file. Knows selections and documents; needs the extra ``plots``. The same selection gives the
same picture, and nothing of matplotlib's global state is touched.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longctx.errors import MissingExtra, UsageError, naming
from longctx.types import Document, Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = (10.0, 2.8)
_DPI = 140
_SCORE, _CHOSEN, _RULE = "#8a94a6", "#d9480f", "#343a40"
_TITLE_CHARS, _NAME_CHARS = 110, 28
_LEAST_SHARE = 0.0025  # of the width: a span is drawn at least this wide, or it would not be seen in a long text


def check(path: Path) -> None:
    """Raise now what ``save`` would raise after all the work: a wrong name, no folder, no matplotlib."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"{str(path)!r} must end in .png.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {str(path.absolute().parent)!r} for {path.name!r}.")
    if find_spec("matplotlib") is None:
        raise MissingExtra("drawing a plot", "matplotlib", "plots")


def save(path: Path, documents: Sequence[Document], selection: Selection, title: str = "") -> None:
    """The picture as a PNG that appears whole or not at all."""
    check(path)
    data = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # titles in scripts that the font lacks
        draw(documents, selection, title).savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            part.write_bytes(data.getvalue())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def draw(documents: Sequence[Document], selection: Selection, title: str = "") -> Figure:
    """Scores in grey, chosen spans in colour, a rule where one document ends and the next begins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    starts, total = _offsets(documents)
    _scores(axes, selection, starts)
    least = _LEAST_SHARE * total
    for span in selection.spans:
        start, stop = starts[span.document_id] + span.start, starts[span.document_id] + span.end
        pad = max(0.0, least - (stop - start)) / 2
        mark = axes.axvspan(start - pad, stop + pad, color=_CHOSEN, alpha=0.35, linewidth=0, gid="chosen")
        mark.set_label("kept" if span is selection.spans[0] else "_")
    for number, document in enumerate(documents):
        at = starts[document.id]
        if number:
            axes.axvline(at, color=_RULE, linewidth=0.8, linestyle=":", gid="boundary")
        if len(documents) > 1:
            middle = (at + len(document.text) / 2) / total
            name = document.id if len(document.id) <= _NAME_CHARS else f"…{document.id[1 - _NAME_CHARS :]}"
            axes.text(middle, 1.01, name, transform=axes.transAxes, ha="center", fontsize=7, parse_math=False)
    axes.set_xlim(0, total)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if selection.spans:
        axes.legend(loc="upper right", fontsize=8, frameon=False)
    axes.set_xlabel("character of the text")
    axes.set_ylabel("score")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    flat = " ".join(title.split())
    shown = flat if len(flat) <= _TITLE_CHARS else flat[: _TITLE_CHARS - 1] + "…"
    axes.set_title(shown, fontsize=10, loc="left", parse_math=False, pad=14 if len(documents) > 1 else 6)
    return figure


def _offsets(documents: Sequence[Document]) -> tuple[dict[str, int], int]:
    """Where each document begins when they stand one after the other, and where the last one ends."""
    starts: dict[str, int] = {}
    at = 0
    for document in documents:
        starts[document.id] = at
        at += len(document.text)
    return starts, max(at, 1)


def _scores(axes: Axes, selection: Selection, starts: dict[str, int]) -> None:
    """One step per unit; units that were never considered stay empty."""
    if not selection.profile:
        return  # the whole text was kept and nothing was scored
    edges = np.array([[starts[s.document_id] + s.start, starts[s.document_id] + s.end] for s in selection.profile])
    values = np.array([s.score for s in selection.profile], dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return
    floor = min(0.0, float(values[finite].min()))
    x = edges.reshape(-1)
    y = np.repeat(np.where(finite, values, np.nan), 2)
    axes.fill_between(x, y, floor, color=_SCORE, linewidth=0.3, edgecolor=_SCORE)
