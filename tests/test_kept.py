"""What was tried is kept from one process to the next: for one processor, one library and one number of threads."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from longctx.backend import arithmetic, kept, narrow, products, trial

CALM = trial._CALM


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGCTX_CACHE", str(tmp_path))
    monkeypatch.setattr(trial, "_CALM", 0.0)  # whatever else the machine does
    return tmp_path / "trials"


def asked(
    found: Any,
    trial: str = "a",
    about: str = "b",
    times: list[Any] | None = None,
    read: Callable[[Any], Any] = kept.taken,
) -> Any:
    def attempt() -> Any:
        if times is not None:
            times.append(found)
        return found

    return kept.kept(trial, about, attempt, read)


def test_the_first_finding_is_what_all_later_ones_are(folder: Path) -> None:
    times: list[Any] = []
    assert [asked(found, times=times) for found in (0.25, 3.0, 4.0)] == [0.25] * 3
    assert times == [0.25], "tried once"
    assert len(list(folder.iterdir())) == 1
    assert asked(5.0, trial="c") == 5.0 and asked(6.0, about="c") == 6.0 and asked(7.0) == 0.25


def test_another_number_of_threads_is_tried_anew(folder: Path) -> None:
    threads = torch.get_num_threads()
    try:
        assert asked(1.0) == 1.0
        torch.set_num_threads(threads + 1)
        assert asked(2.0) == 2.0
        torch.set_num_threads(threads)
        assert asked(3.0) == 1.0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "line",
    [
        "model name : another",
        "model : 86",
        "cpu family : 7",
        "stepping : 8",
        "flags : avx512f amx_tile",
        "Features : fp sve",
        "CPU part : 0xd4f",
        "vendor_id : B",
    ],
)
def test_another_processor_is_tried_anew(
    line: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (
        "processor : 0\nvendor_id : A\ncpu family : 6\nmodel : 85\nmodel name : one\nstepping : 7\nflags : avx512f\n"
        "Features : fp\nCPU part : 0xd40\n"
    )
    own, other = tmp_path / "own", tmp_path / "other"
    name = line.partition(":")[0]
    own.write_text(first)
    other.write_text("".join(f"{line}\n" if old.startswith(f"{name}:") else f"{old}\n" for old in first.splitlines()))
    assert own.read_text() != other.read_text()
    here = kept._here
    monkeypatch.setattr(kept, "_here", lambda: here(own))
    assert asked(1.0) == 1.0
    monkeypatch.setattr(kept, "_here", lambda: here(other))
    assert asked(2.0) == 2.0


def test_what_is_no_fact_about_the_processor_does_not_part_its_cores(tmp_path: Path) -> None:
    """Clock and core number differ from core to core and from one moment to the next."""
    files = [tmp_path / name for name in "ab"]
    for at, file in enumerate(files):
        file.write_text(f"processor : {at}\nmodel name : one\ncpu MHz : {2500 + at}\nflags : fma\n\nprocessor : 9\n")
    one, other = (kept._here(file) for file in files)
    assert one == other and "model name one" in one and "flags fma" in one


def test_a_system_that_says_nothing_of_its_processor_is_told_by_its_name(tmp_path: Path) -> None:
    library, system = kept._here(tmp_path / "nothing")[1:]
    assert torch.__version__ in library and torch.backends.cpu.get_cpu_capability() in library
    assert platform.system() in system and platform.machine() in system


@pytest.mark.parametrize(
    "damage", ["", "[", "[]", '{"found": 1.0}', '{"of": "another", "found": 1.0}', "\ufffe", "[" * 200_000]
)
def test_a_damaged_or_foreign_file_is_made_anew(damage: str, folder: Path) -> None:
    asked(1.0)
    (file,) = folder.iterdir()
    file.write_text(damage, encoding="utf-8")
    assert asked(2.0) == 2.0 and asked(3.0) == 2.0


def test_what_is_no_longer_understood_is_tried_anew(folder: Path) -> None:
    asked(1.0)
    (file,) = folder.iterdir()
    said = json.loads(file.read_text())
    for found in ("word", None, [1.0], 10**400, 0.0, -1.0, float("nan"), float("inf"), True):
        file.write_text(json.dumps({**said, "found": found}))
        assert asked(2.0, read=kept.taken) == 2.0
    for found in ("no", None, 0, 1):
        file.write_text(json.dumps({**said, "found": found}))
        assert asked(True, read=kept.said) is True


def test_ways_that_are_no_more_are_tried_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = len(narrow.COUNTS)
    monkeypatch.setattr(narrow, "_tried", lambda *_: [("_usual", 1.0)] * counts)
    for found in ([["gone", 1.0]] * counts, [["_usual", 1.0]] * (counts - 1), [["_usual"]] * counts, 3):
        narrow._trial.cache_clear()
        assert narrow.wins(2, torch.ones(3, 5)) is False
        (file,) = folder.iterdir()
        said = json.loads(file.read_text())
        file.write_text(json.dumps({**said, "found": found}))
    narrow._trial.cache_clear()
    assert narrow.seconds(2, torch.ones(3, 5)) == 1.0
    narrow._trial.cache_clear()


def test_of_two_at_a_time_the_first_to_be_done_is_heard(folder: Path) -> None:
    """The other's process has kept its finding while this one was still trying."""

    def attempt() -> float:
        assert asked(1.0) == 1.0
        return 2.0

    assert kept.kept("a", "b", attempt, float) == 1.0
    assert asked(3.0) == 1.0


def test_of_several_at_once_all_hear_the_same(folder: Path) -> None:
    together = Barrier(4)

    def attempt(own: float) -> float:
        together.wait()
        return own

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda own: kept.kept("a", "b", lambda: attempt(own), kept.taken), (1.0, 2.0, 3.0, 4.0)))
    assert len(set(found)) == 1 and asked(9.0) == found[0]
    assert not [file for file in folder.iterdir() if file.suffix == ".part"]


def test_a_disk_without_second_names_keeps_it_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*names: Any) -> None:
        raise PermissionError("no links")

    monkeypatch.setattr(os, "link", refused)
    assert asked(1.0) == 1.0 and asked(2.0) == 1.0


class Machine:
    """A clock of its own; ``own`` is the share of the time that the thread has a processor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, own: float) -> None:
        self.own, self.passed, self.worked, self.tried = own, 0.0, 0.0, 0
        monkeypatch.setattr(trial.time, "perf_counter", self._ticks)
        monkeypatch.setattr(trial.time, "thread_time", lambda: self.worked)

    def _ticks(self) -> float:
        self.work(1e-5)
        return self.passed

    def work(self, seconds: float) -> None:
        self.passed += seconds
        self.worked += self.own * seconds

    def asked(self, while_trying: Callable[[], None] = lambda: None) -> int:
        """What a process finds here: the number of its trial."""

        def attempt() -> int:
            self.tried += 1
            own = self.tried
            self.work(2.0)
            while_trying()
            return own

        return kept.kept("a", "b", attempt, int)


@pytest.fixture
def busy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(trial, "_CALM", CALM)
    return Machine(monkeypatch, 0.5)


def aged(folder: Path) -> None:
    """An hour passes."""
    for file in folder.iterdir():
        os.utime(file, (file.stat().st_atime - 3600, file.stat().st_mtime - 3600))


def test_what_was_found_on_a_busy_machine_holds_while_it_is_busy(busy: Machine, folder: Path) -> None:
    assert [busy.asked() for _ in range(3)] == [1, 1, 1] and busy.tried == 1
    busy.own = 0.81
    assert busy.asked() == 1, "nobody looks again so soon"
    aged(folder)
    busy.own = 0.79
    assert busy.asked() == 1
    busy.own = 0.81
    assert [busy.asked() for _ in range(3)] == [2, 2, 2], "at rest it is tried again, once"
    assert len(list(folder.iterdir())) == 1
    busy.own = 0.5
    assert busy.asked() == 2, "and that holds for good"


def test_a_machine_that_is_busy_again_while_it_is_tried_again_says_what_it_said(busy: Machine, folder: Path) -> None:
    def disturbed() -> None:
        busy.own = 0.1
        busy.work(2.0)

    assert busy.asked() == 1
    aged(folder)
    busy.own = 0.9
    assert busy.asked(disturbed) == 1 and busy.tried == 2
    busy.own = 0.9
    assert busy.asked() == 1 and busy.tried == 2, "nor does another process try again soon"


@pytest.mark.parametrize("before", [False, True])
def test_a_finding_at_rest_that_was_done_first_is_heard_by_who_was_busy(
    before: bool, busy: Machine, folder: Path
) -> None:
    def another() -> None:
        busy.own = 1.0
        busy.work(100.0)  # most of the other's trial
        assert busy.asked() == busy.tried
        busy.own = 0.1
        busy.work(1000.0)

    if before:
        assert busy.asked() == 1
        aged(folder)
        busy.own = 1.0
    assert busy.asked(another) == busy.tried == 2 + before
    assert busy.asked() == busy.tried, "so does everybody later"


def test_a_damaged_finding_of_a_busy_machine_is_made_anew(busy: Machine, folder: Path) -> None:
    assert busy.asked() == 1
    (file,) = folder.iterdir()
    file.write_text("{")
    assert [busy.asked() for _ in range(2)] == [2, 2]


def test_a_calm_machine_keeps_its_finding(busy: Machine, folder: Path) -> None:
    busy.own = 1.0
    assert [busy.asked() for _ in range(2)] == [1, 1]
    busy.own = 0.1
    aged(folder)
    assert busy.asked() == 1 and len(list(folder.iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such permissions")
@pytest.mark.parametrize("place", ["file", "device"])
def test_where_nothing_can_be_written_every_process_tries(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LONGCTX_CACHE", str(tmp_path / "file") if place == "file" else "/dev/null/there")
    times: list[Any] = []
    assert [asked(found, times=times) for found in (1.0, 2.0)] == [1.0, 2.0] == times


def test_what_a_trial_is_about_stands_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    about: list[str] = []
    for module, found in ((narrow, ([], [])), (arithmetic, (1.0, 1.0)), (products, True)):
        monkeypatch.setattr(module, "kept", lambda *given, found=found: about.append(str(given[:2])) or found)
    for dtype in (torch.bfloat16, torch.float16):
        for out, width in ((3, 5), (5, 3), (3, 3)):
            narrow._trial.__wrapped__(dtype, out, width, 1)
        arithmetic._seconds.__wrapped__(dtype, 1)
        for number in range(7):  # another size in each, and in one a mask
            shape = (*(8 + (place == number) for place in range(6)), number == 6)
            products._faster.__wrapped__(dtype, shape, 1)
    assert len(set(about)) == len(about) == 22


def test_of_several_processors_the_first_is_told(tmp_path: Path) -> None:
    (tmp_path / "both").write_text("model name : fast\nflags : a b\n\nmodel name : slow\nflags : a\n")
    assert {"model name fast", "flags a b"} < set(kept._here(tmp_path / "both"))


def test_every_trial_that_decides_how_numbers_are_added_is_kept(folder: Path) -> None:
    """Another process takes the same ways, whatever it would have found."""
    weight = torch.ones(24, 40, dtype=torch.bfloat16)
    for found in (narrow._trial, arithmetic._seconds, products._faster):
        found.cache_clear()
    own = [narrow.seconds(rows, weight) for rows in narrow.COUNTS]
    threads = torch.get_num_threads()
    shape = (1, 6, 2, 32, 32, 16, False)
    own += [*arithmetic._seconds(torch.bfloat16, threads), products._faster(torch.bfloat16, shape, threads)]
    script = (
        "import json, torch; from longctx.backend import arithmetic, narrow, products\n"
        f"torch.set_num_threads({threads}); weight = torch.ones(24, 40, dtype=torch.bfloat16)\n"
        "found = [narrow.seconds(rows, weight) for rows in narrow.COUNTS]\n"
        f"found += arithmetic._seconds(torch.bfloat16, {threads})\n"
        f"found += [products._faster(torch.bfloat16, {shape}, {threads})]\n"
        "print(json.dumps(found))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == own
    assert len(list(folder.iterdir())) == 3
