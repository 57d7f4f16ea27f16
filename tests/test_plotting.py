"""The picture of where the model looked: unit scores, the spans kept, the ends of documents; whole files only."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from longctx import plotting
from longctx.errors import MissingExtra, UsageError
from longctx.types import Document, SelectedSpan, Selection

matplotlib = pytest.importorskip("matplotlib")

A, B = Document.from_text("x" * 1000, "a.txt"), Document.from_text("y" * 500, "b.txt")


def span(document: Document, start: int, end: int, score: float) -> SelectedSpan:
    return SelectedSpan(document.id, start, end, None, score)


def selection(*spans: SelectedSpan, profile: tuple[SelectedSpan, ...] = ()) -> Selection:
    return Selection(spans, "", 10, 0, 0, 0.0, profile=profile)


PROFILE = (span(A, 0, 400, 1.0), span(A, 400, 1000, 5.0), span(B, 0, 500, -math.inf))
CHOSEN = selection(span(A, 400, 1000, 5.0), profile=PROFILE)


def marks(figure: Any, gid: str) -> list[Any]:
    return [artist for artist in figure.axes[0].get_children() if artist.get_gid() == gid]


def test_chosen_spans_stand_where_they_are_in_the_text() -> None:
    both = selection(span(A, 400, 1000, 5.0), span(B, 100, 300, 1.0), profile=PROFILE)
    edges = [(m.get_x(), m.get_x() + m.get_width()) for m in marks(plotting.draw([A, B], both), "chosen")]
    assert edges == [(400, 1000), (1100, 1300)]


def test_a_rule_stands_between_documents_only() -> None:
    assert [mark.get_xdata()[0] for mark in marks(plotting.draw([A, B], CHOSEN), "boundary")] == [1000]
    assert marks(plotting.draw([A], selection(profile=PROFILE[:2])), "boundary") == []
    assert [text.get_text() for text in plotting.draw([A, B], CHOSEN).axes[0].texts] == ["a.txt", "b.txt"]


def test_units_never_considered_are_not_drawn() -> None:
    (area,) = plotting.draw([A, B], CHOSEN).axes[0].collections
    points = [point for path in area.get_paths() for point in path.vertices]
    assert max(x for x, _ in points) == 1000 and max(y for _, y in points) == 5.0


def test_a_small_span_of_a_long_text_can_be_seen() -> None:
    long = Document.from_text("z" * 1_000_000, "long")
    (mark,) = marks(plotting.draw([long], selection(span(long, 500_000, 500_010, 1.0))), "chosen")
    assert mark.get_width() >= 2_000


def test_the_same_selection_gives_the_same_file_and_touches_no_global_state(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    for name in ("one.png", "two.png"):
        plotting.save(tmp_path / name, [A, B], CHOSEN, "What costs $5 and $6?")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert dict(matplotlib.rcParams) == before
    plotting.save(tmp_path / "two.png", [A, B], CHOSEN, "Another question 漢字?")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_a_text_that_was_kept_whole_has_a_picture_too(tmp_path: Path) -> None:
    plotting.save(tmp_path / "whole.png", [A], selection(span(A, 0, 1000, 0.0)))
    assert (tmp_path / "whole.png").stat().st_size > 1000


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "looked.png"
    target.write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space") as caught:
        plotting.save(target, [A, B], CHOSEN)
    assert caught.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["looked.png"] and target.read_bytes() == b"old"


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="png"):
        plotting.check(tmp_path / "looked.pdf")
    with pytest.raises(UsageError, match="no folder"):
        plotting.check(tmp_path / "none" / "looked.png")
    monkeypatch.setattr(plotting, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"longctx-hf\[plots\]"):
        plotting.check(tmp_path / "looked.png")
