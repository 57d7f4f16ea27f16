"""Publishing: the old version or the new one, whole, whenever the process ends and however many write at once."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import artifacts
import pytest

from longctx.errors import ArtifactBusy, ArtifactError, UsageError
from longctx.store import files, manifest
from longctx.store.artifact import damaged, open_artifact
from longctx.store.folders import LOCK
from longctx.store.manifest import JOURNAL
from longctx.store.writer import Writer

HERE = Path(__file__).parent.parent
OLD, NEW = "one\ntwo\nthree\nfour\n", "one\ntwo\nthree\nfive\nsix\n"

# A process of its own writes NEW and ends, as if its power failed, at its n-th call that changes the disk.
CHILD = f"""
import os, sys
from pathlib import Path
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
import artifacts
folder, at = Path(sys.argv[1]), int(sys.argv[2])
for last in range(1, at):
    if os.fork() == 0:
        calls = 0
        def counted(real):
            def call(*args, **kwargs):
                global calls
                calls += 1
                if calls == last:
                    os._exit(9)
                return real(*args, **kwargs)
            return call
        for name in ("replace", "fsync", "unlink", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        own = folder / str(last)
        artifacts.write(own, {NEW!r})
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def whole(folder: Path) -> str:
    """The text of the artifact, every file of which must be as it was written."""
    artifact = open_artifact(folder, "full")
    assert list(damaged(folder, artifact.manifest)) == []
    return artifact.encoded[0].document.text


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("before", [OLD, None])
def test_a_process_that_ends_at_any_step_leaves_the_old_version_or_the_new_one(
    tmp_path: Path, before: str | None
) -> None:
    steps = 70
    if before is not None:
        artifacts.write(tmp_path / "old", before)
        for step in range(1, steps):
            shutil.copytree(tmp_path / "old", tmp_path / str(step))
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(steps)], capture_output=True, text=True, check=True
    )
    codes = [int(line) for line in ran.stdout.split()]
    died = codes.count(9)
    assert 12 < died < steps - 1 and codes == [9] * died + [0] * (steps - 1 - died)
    found = []
    for step in range(1, steps):
        folder = tmp_path / str(step)
        try:
            found.append(whole(folder))
        except ArtifactError:
            assert before is None and not (folder / manifest.FILE).exists()
            found.append("")
        if step % 4 == 0:
            artifacts.write(folder, NEW)
            assert whole(folder) == NEW
            kept = {entry.name for entry in manifest.load(folder).entries()}
            assert names(folder) == kept | {manifest.FILE, LOCK}
    switched = found.index(NEW)
    assert found == [before or ""] * switched + [NEW] * (steps - 1 - switched) and 0 < switched < died


def test_killed_at_random_moments_it_is_still_whole(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    code = (
        f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]\n"
        "import artifacts; from pathlib import Path\n"
        "print('ready', flush=True)\n"
        f"for n in range(10**6):\n    artifacts.write(Path({str(folder)!r}), 'one\\n' + 'number %d\\n' % n * 50)"
    )
    artifacts.write(folder, "one\n" + "number 0\n" * 50)
    last = 0
    for kill in range(6):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            time.sleep(0.05 + 0.037 * kill)
            child.kill()
        text = whole(folder)
        number = int(text.split()[-1])
        assert text == "one\n" + f"number {number}\n" * 50
        last = max(last, number)
    assert last > 0


def test_files_that_did_not_change_are_neither_written_nor_touched(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    artifacts.write(folder, OLD, "other\ntext\n")
    before = {path.name: path.stat() for path in folder.iterdir()}
    with Writer(folder) as writer:
        made = artifacts.assemble(writer, NEW, "other\ntext\n")
        assert 0 < writer.written_bytes < sum(entry.size for entry in made.entries())
        writer.publish(made)
    kept = {e.name for e in made.entries()} & before.keys()
    assert made.documents[1].file.name in kept and {s.file.name for s in made.kv.segments[:2]} <= kept  # type: ignore[union-attr]
    for name in kept:
        now, was = (folder / name).stat(), before[name]
        assert (now.st_ino, now.st_mtime_ns, now.st_size) == (was.st_ino, was.st_mtime_ns, was.st_size)
    assert names(folder) == {e.name for e in made.entries()} | {manifest.FILE, LOCK}


def test_an_interrupted_writer_leaves_a_journal_from_which_the_next_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    with pytest.raises(KeyboardInterrupt), Writer(folder) as writer:
        artifacts.assemble(writer, OLD)
        raise KeyboardInterrupt
    with pytest.raises(ArtifactError, match="interrupted: the same command goes on"):
        manifest.load(folder)
    with open(folder / JOURNAL, "ab") as file:
        file.write(b'{"key": "segment five", "na')
    with Writer(folder) as writer:
        assert writer.known("segment one") and writer.known("segment three") and writer.unpublished("vectors e")
        assert writer.known("segment five") is None
        made = artifacts.assemble(writer, OLD)
        assert writer.written_bytes == 0
        writer.publish(made)
    assert whole(folder) == OLD and not (folder / JOURNAL).exists()


def test_two_writers_wait_for_one_another_and_one_that_waits_too_long_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    artifacts.write(folder, OLD)
    with Writer(folder):
        with pytest.raises(ArtifactBusy, match="another process has been writing .* Try again"):
            _from_another_thread(folder)
        assert whole(folder) == OLD
    _from_another_thread(folder)
    assert whole(folder) == NEW


def _from_another_thread(folder: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def write() -> None:
        with Writer(folder, wait_seconds=0.1) as writer:
            writer.publish(artifacts.assemble(writer, NEW))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(write).result()


def test_the_lock_of_a_dead_process_is_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    code = (
        f"import sys, time; sys.path[:0] = [{str(HERE.parent)!r}]\n"
        "from pathlib import Path; from longctx.store.writer import Writer\n"
        f"with Writer(Path({str(folder)!r})):\n    print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "locked\n"
        with pytest.raises(ArtifactBusy), Writer(folder, wait_seconds=0.1):
            pass
        child.kill()
    with Writer(folder, wait_seconds=5.0) as writer:
        writer.publish(artifacts.assemble(writer, NEW))
    assert whole(folder) == NEW


def test_four_processes_write_one_artifact_while_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    artifacts.write(folder, "number 0\n" * 20)
    code = (
        f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]\n"
        "import artifacts; from pathlib import Path\n"
        f"for i in range(8):\n    artifacts.write(Path({str(folder)!r}), f'number {{sys.argv[1]}}{{i}}\\n' * 20)"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(1, 5)]
    seen = set()
    while any(child.poll() is None for child in children):
        lines = set(open_artifact(folder).encoded[0].document.text.splitlines())
        assert len(lines) == 1
        seen |= lines
    assert [child.wait() for child in children] == [0] * 4 and len(seen) > 1
    whole(folder)
    kept = {entry.name for entry in manifest.load(folder).entries()}
    assert names(folder) == kept | {manifest.FILE, LOCK}


@pytest.mark.skipif(sys.platform == "win32", reason="limits are of Unix")
def test_a_full_disk_publishes_nothing_and_gives_back_what_was_taken(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    artifacts.write(folder, OLD)
    before = names(folder)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    code = (
        f"import sys, signal; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import artifacts; from pathlib import Path\n"
        f"artifacts.write(Path({str(folder)!r}), 'x' * 100)"  # its segment is the third file, and too large
    )
    ran = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and "File too large" in ran.stderr
    assert names(folder) - {JOURNAL} == before and whole(folder) == OLD


@pytest.mark.parametrize("place", ["file", "folder", "nowhere/book.lctx"])
def test_no_artifact_is_written_where_something_else_is(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letters.txt").write_text("mine")
    with pytest.raises(UsageError, match="Name|there is no folder"):
        artifacts.write(tmp_path / place, OLD)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "letters.txt").read_text() == "mine"
    assert names(tmp_path / "folder") == {"letters.txt"}


def test_sweeping_leaves_the_files_of_others_alone(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    artifacts.write(folder, OLD)
    (folder / "notes.txt").write_text("mine")
    (folder / "mine.part").write_text("mine")
    stale = folder / f"{manifest.load(folder).entries()[0].name}.77{files.PART}"
    stale.write_text("half")
    artifacts.write(folder, NEW)
    assert {"notes.txt", "mine.part"} <= names(folder) and not stale.exists()


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    artifacts.write(folder, OLD)
    secret = tmp_path / "secret"
    secret.write_text("mine")
    for name in (LOCK, JOURNAL):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
        with pytest.raises(OSError):
            artifacts.write(folder, NEW)
        (folder / name).unlink()
        assert secret.read_text() == "mine" and whole(folder) == OLD


def test_a_damaged_manifest_does_not_stop_a_new_version(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    artifacts.write(folder, OLD)
    (folder / manifest.FILE).write_text(json.dumps({"format": 1}))
    artifacts.write(folder, NEW)
    assert whole(folder) == NEW
    assert os.stat(folder / manifest.FILE).st_size > 1000


def test_a_failure_after_publishing_takes_back_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is in place and the disk fails at the next step: the files it names are needed from then on."""
    folder = tmp_path / "book.lctx"
    artifacts.write(folder, OLD)
    real = files.sync

    def fail(place: Path) -> None:
        if NEW in whole(folder):
            raise OSError(5, "Input/output error")
        real(place)

    monkeypatch.setattr(files, "sync", fail)
    with pytest.raises(OSError, match="Input/output"):
        artifacts.write(folder, NEW)
    assert whole(folder) == NEW


def test_what_cannot_be_swept_is_left_and_the_new_version_stands(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    entry = artifacts.write(folder, OLD).entries()[0]
    (folder / f"{entry.name}{files.DAMAGED}").mkdir()  # a folder in the place of a file, set aside
    artifacts.write(folder, NEW)
    assert whole(folder) == NEW


def test_a_half_written_file_of_a_dead_process_with_the_same_number_is_written_over(tmp_path: Path) -> None:
    """Process numbers come again, in containers at once."""
    folder = tmp_path / "book.lctx"
    folder.mkdir()
    (folder / f"{manifest.FILE}.{os.getpid()}{files.PART}").write_text("half")
    artifacts.write(folder, OLD)
    assert whole(folder) == OLD


@pytest.mark.skipif(sys.platform == "win32", reason="pipes with names are of Unix")
def test_a_pipe_in_the_place_of_the_journal_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    artifacts.write(folder, OLD)
    os.mkfifo(folder / JOURNAL)
    code = (
        f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]\n"
        f"import artifacts; from pathlib import Path\nartifacts.write(Path({str(folder)!r}), 'a new line\\n')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 1 and JOURNAL in ran.stderr and whole(folder) == OLD


def test_a_torn_line_of_the_journal_costs_no_later_line(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    folder.mkdir()
    (folder / JOURNAL).write_bytes(b'{"key": "segment five", "na')
    with pytest.raises(KeyboardInterrupt), Writer(folder) as writer:
        artifacts.assemble(writer, OLD)
        raise KeyboardInterrupt
    with Writer(folder) as writer:
        assert writer.known("segment three")
