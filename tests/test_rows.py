"""A file of rows: taken over when it was made the same way, refused with the difference when it was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longctx.errors import ArtifactError, UsageError
from longctx.pipelines import rows as module
from longctx.pipelines.rows import Row, Rows


def rows(path: Path, version: str = "1") -> Rows:
    def expected(row: Row) -> dict[str, Any]:
        return {**row["made_with"], "version": version}

    return Rows(path, ("task", "fact"), expected)


def row(fact: int, **more: Any) -> Row:
    return {"task": "t", "fact": fact, "made_with": {"version": "1", "depths": 3}, **more}


def test_rows_are_found_again_in_the_order_they_were_added(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    file = rows(path)
    file.add(row(2))
    file.add(row(1))
    again = rows(path)
    assert list(again.rows.values()) == [row(2), row(1)]
    assert row(1) in again and row(3) not in again
    assert path.read_bytes().count(b"\n") == 2


def test_a_last_line_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for fact in (1, 2):
        rows(path).add(row(fact))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    held = rows(path)
    assert row(1) in held and row(2) not in held
    assert path.read_bytes() == whole[:-9], "opening a file changes nothing"
    held.add(row(2))
    assert path.read_bytes() == whole


def test_rows_marked_to_be_made_again_leave_the_file_with_the_next_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows(path).add(row(1, again=True))
    held = rows(path)
    assert row(1) not in held
    held.add(row(1, answer="now"))
    assert list(rows(path).rows.values()) == [row(1, answer="now")]


def test_dropped_rows_leave_the_file_with_the_next_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for fact in (1, 2, 3):
        rows(path).add(row(fact))
    before = path.read_bytes()
    held = rows(path)
    held.drop([("t", 1), ("t", 3)])
    assert row(1) not in held and row(2) in held
    assert path.read_bytes() == before, "until there is something in their place"
    held.add(row(3, answer="now"))
    assert module.read(path) == [row(2), row(3, answer="now")]


def test_renewed_rows_stand_where_they_stood(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for fact in (1, 2, 3):
        rows(path).add(row(fact))
    held = rows(path)
    held.renew([row(2, answer="other")])
    held.add(row(4))
    assert module.read(path) == [row(1), row(2, answer="other"), row(3), row(4)]


def test_rows_of_another_version_are_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows(path).add(row(1))
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match=r"line 1 was made with other settings: version was '1' and is '2'"):
        rows(path, version="2")
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["no json", "[1]", '{"task": "t", "fact": 1}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ArtifactError, match="line 1"):
        rows(path)


def test_two_runs_do_not_add_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    one, other = rows(path), rows(path)
    with one.alone():
        one.add(row(1))
        with pytest.raises(UsageError, match="another run is adding rows to .*rows.jsonl"), other.alone():
            other.add(row(2))
    with pytest.raises(UsageError, match="since they were read"), other.alone():
        other.add(row(2))
    with one.alone():
        one.add(row(3))
    assert list(rows(path).rows.values()) == [row(1), row(3)]


@pytest.mark.parametrize(
    ("about", "named"),
    [
        ("processor\t: 0\nmodel name\t: Intel(R) Core(TM) i7-8565U CPU @ 1.80GHz\n", ["Intel Core i7-8565U CPU"]),
        ("model name\t: AMD EPYC 9B45\nmodel name\t: AMD EPYC 9B45\n", ["AMD EPYC 9B45"]),
        ("model name\t: AMD Athlon(tm)  64 X2\n", ["AMD Athlon 64 X2"]),
        ("model\t\t: 85\nmodel name\t: Intel(R) Xeon(R) Processor @ 2.50GHz\n", ["Intel Xeon Processor model 85"]),
        ("model\t\t: ARMv7\nmodel name\t: ARMv7\n", ["ARMv7"]),
        ("model\t\t: 85\nmodel name\t: (R)\n", []),
        ("model name\t: (R)\n", []),
        ("processor\t: 0\nCPU part\t: 0xd40\n", []),
        (None, []),
    ],
)
def test_a_row_names_the_processor_where_the_system_does(tmp_path: Path, about: str | None, named: list[str]) -> None:
    file = tmp_path / "cpuinfo"
    if about is not None:
        file.write_text(about)
    assert module._processor(file) == named
    assert ", ".join(module._processor()) in module.here_and_now()["machine"]


def test_rows_of_several_machines_and_days_name_them_all() -> None:
    one, other = (
        {"machine": "x86_64, 2 cores", "date": "2026-01-02"},
        {"machine": "arm64, 8 cores", "date": "2026-01-01"},
    )
    assert module.where_and_when([one, one]) == "x86_64, 2 cores; 2026-01-02"
    assert module.where_and_when([one, {}, other]) == "x86_64, 2 cores; arm64, 8 cores; 2026-01-01 to 2026-01-02"
