"""Programs under test that speak out of turn, die, hang or write nonsense; and environments that are made for them."""

from __future__ import annotations

import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import grids
import pytest

from longctx.errors import ProgramError, UnknownMethod
from longctx.pipelines import bench_peers
from longctx.pipelines.bench_worker import RefusedError, Worker

LOAD = dict.fromkeys(("dtype", "device", "threads", "kind", "budget", "options", "beginning", "longest"))
LOAD |= {"spec": "good", "model": "/where/it/lies", "options": {}}
ASKED = {"question": "q", "text": "the text"}


def start(folder: Path, monkeypatch: pytest.MonkeyPatch, **deeds: str) -> Worker:
    for name, value in {"FAKE_CALLS": str(folder / "calls"), **deeds}.items():
        monkeypatch.setenv(name, value)
    return Worker(grids.program(folder), folder / "log.txt")


def raw(folder: Path, code: str) -> Worker:
    return Worker([sys.executable, "-c", code], folder / "log.txt")


def gone(worker: Worker) -> bool:
    return worker._process.returncode is not None


def test_an_answer_has_its_seconds_and_peak_and_what_was_printed_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(tmp_path, monkeypatch) as worker:
        loaded = worker.call("load", LOAD, 60)
        assert loaded["facts"] == {"versions": {"fake": "1"}} and loaded["loaded_bytes"] > 1_000_000
        found = worker.call("answer", ASKED, 60)
    assert found["text"] == "the text" and found["seconds"]["prefill"] == 0.1 and found["seconds"]["total"] >= 0
    assert found["peak_bytes"] > 1_000_000 and found["peak_of"] in ("row", "process")
    assert gone(worker)
    assert "standard output" in (tmp_path / "log.txt").read_text()


def test_a_refusal_is_an_answer_and_the_program_lives_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(tmp_path, monkeypatch, FAKE_GOOD="refuse") as worker:
        worker.call("load", LOAD, 60)
        for _ in range(2):
            with pytest.raises(RefusedError, match="no room"):
                worker.call("answer", ASKED, 60)


def test_a_crash_is_named_by_its_error_and_nothing_it_said_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(tmp_path, monkeypatch, FAKE_GOOD="die") as worker:
        worker.call("load", LOAD, 60)
        with pytest.raises(ProgramError) as caught:
            worker.call("answer", ASKED, 60)
        assert caught.value.kind == "ValueError" and "secret" not in str(caught.value)
        assert gone(worker)
        with pytest.raises(ProgramError):
            worker.call("answer", ASKED, 60)


def test_a_program_that_was_killed_says_by_which_signal(tmp_path: Path) -> None:
    with raw(tmp_path, "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)") as worker:
        with pytest.raises(ProgramError) as caught:
            worker.call("load", {}, 60)
    assert caught.value.kind == "signal 9"


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); sys.stdin.readline(); time.sleep(60)"
    )
    with raw(tmp_path, code) as worker:
        with pytest.raises(ProgramError) as caught:
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                pass
            worker.call("load", {}, 0.2)
    assert caught.value.kind == "timeout" and gone(worker)
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    assert _ended(status)


def _ended(status: Path) -> bool:
    """Whether the process is gone, or dead and only not yet asked for, within ten seconds."""
    for _ in range(1000):
        with suppress(FileNotFoundError, ProcessLookupError):
            if "Z" not in status.read_text().split("State:")[1][:4]:
                time.sleep(0.01)
                continue
        return True
    return False


@pytest.mark.parametrize("line", ["nonsense", "{}", "[]", '"text"', '{"id": 7, "value": 1}', '{"id": 1}', "\\xff\\xfe"])
def test_what_is_no_answer_ends_the_program(tmp_path: Path, line: str) -> None:
    says = f"sys.stdout.buffer.write(b'{line}\\n'); sys.stdout.flush()"
    code = f"import sys, time; sys.stdin.readline(); {says}; time.sleep(60)"
    with raw(tmp_path, code) as worker:
        with pytest.raises(ProgramError) as caught:
            worker.call("load", {}, 60)
        assert caught.value.kind == "protocol" and gone(worker)


def test_peers_have_names_and_the_torch_that_runs_here() -> None:
    import torch

    assert bench_peers.names() == ["infini-retri", "kvpress", "llama.cpp"]
    assert f"torch=={torch.__version__.split('+')[0]}" in bench_peers.peer("kvpress").requires
    assert not any("torch" in each for each in bench_peers.peer("llama.cpp").requires)
    with pytest.raises(UnknownMethod):
        bench_peers.peer("kvpres")


def wheel(folder: Path) -> Path:
    """A package that needs nothing, as pip installs it."""
    path = folder / "nothing_much-1.0-py3-none-any.whl"
    info = "nothing_much-1.0.dist-info"
    files = {
        "nothing_much.py": "HERE = True\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: nothing-much\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


def test_an_environment_is_made_once_and_again_when_it_was_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    log, requires = tmp_path / "logs" / "install.log", [str(wheel(tmp_path))]
    python = bench_peers.environment(requires, "fake", tmp_path / "peers", log)
    assert python.is_file() and list(python.parent.parent.rglob("nothing_much.py"))
    said = log.read_text()
    assert bench_peers.environment(requires, "fake", tmp_path / "peers", log) == python
    assert log.read_text() == said, "pip ran again"
    (python.parent.parent / "finished.json").unlink()
    monkeypatch.setattr(bench_peers, "_install", _nothing_installed)
    monkeypatch.setattr("venv.EnvBuilder.create", lambda self, place: Path(place).mkdir())  # the first was a real one
    with pytest.raises(ProgramError) as caught:
        bench_peers.environment(requires, "fake", tmp_path / "peers", log)
    assert caught.value.kind == "unavailable" and not python.exists(), "half an environment was left"


def _nothing_installed(*given: object) -> None:
    raise ProgramError("unavailable", "pip could not install it.")


def test_a_package_that_cannot_be_installed_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ProgramError, match="see install.log") as caught:
        bench_peers._install(Path(sys.executable), ["nothing-of-this-name==0"], "fake", tmp_path / "install.log", 120)
    assert caught.value.kind == "unavailable" and "nothing-of-this-name" in (tmp_path / "install.log").read_text()
