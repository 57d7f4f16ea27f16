"""The parser process: whatever a parser does, the caller gets a typed error in time and no process stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from longctx.documents.limits import Limits
from longctx.documents.reader import read
from longctx.errors import DocumentError, MissingExtra, ParseLimit

Fake = Callable[[str], Path]
GUESS = """
class Match:
    encoding = "cp1252"

def from_bytes(data):
    return [Match()]
"""
PARSE = "def from_bytes(data):\n    "
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs the limits of Linux")


def test_the_fake_parser_is_the_one_that_runs(fake_parser: Fake) -> None:
    """Without this the tests below could pass on the real parser."""
    assert read(fake_parser(GUESS)).warnings[0].startswith("not UTF-8: read as cp1252")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("code", ["import time; time.sleep(60)", "while True: pass"])
def test_a_slow_parser_is_stopped(fake_parser: Fake, code: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(ParseLimit, match=r"^guessed\.txt: .*seconds=0\.5, found over 0\.5 s.*Limits\(seconds="):
        read(fake_parser(PARSE + code), limits=Limits(seconds=0.5))
    assert time.perf_counter() - begin < 5


@linux
@pytest.mark.timeout(20)
def test_a_greedy_parser_is_stopped(fake_parser: Fake) -> None:
    path = fake_parser(PARSE + "bytes(400 << 20)" + "\n    return Match()" + GUESS.replace("def from_bytes", "def _"))
    with pytest.raises(ParseLimit, match=r"memory_bytes=314,572,800\).*Limits\(memory_bytes="):
        read(path, limits=Limits(memory_bytes=300 << 20))


@linux
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT"])
def test_a_crash_is_a_document_error(fake_parser: Fake, name: str) -> None:
    path = fake_parser(PARSE + f"import os, signal; os.kill(os.getpid(), signal.{name})")
    with pytest.raises(
        DocumentError, match=rf"^guessed\.txt: its parser crashed \(signal {int(signal.Signals[name])}\)"
    ):
        read(path)


@linux
def test_a_kill_from_outside_is_taken_for_memory(fake_parser: Fake) -> None:
    with pytest.raises(ParseLimit, match="the system killed its parser, most likely for memory"):
        read(fake_parser(PARSE + "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise KeyError('a\\nb' * 500)", "its parser failed (KeyError: "),
        ("raise AttributeError", "its parser failed (AttributeError)"),
        ("return from_bytes(data)", "nested too deeply"),
        ("import os; os.write(1, b'x'); os._exit(0)", "no readable answer (1 bytes)"),
        ("import os; os.write(1, b'[]'); os._exit(0)", "no readable answer (2 bytes)"),
        ("import os; os._exit(7)", "crashed (exit code 7)"),
        ("raise NotImplementedError", "its parser failed"),
        ("raise Exception('odd')", "crashed (exit code 1)"),
    ],
)
def test_a_failing_parser_gives_one_short_line(fake_parser: Fake, code: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(fake_parser(PARSE + code))
    text = str(caught.value)
    assert text.startswith("guessed.txt: ") and message in text
    assert len(text) < 400 and "\n" not in text and "Traceback" not in text


@pytest.mark.timeout(20)
def test_a_flood_of_output_is_cut_off(fake_parser: Fake) -> None:
    path = fake_parser(PARSE + "import os\n    while True: os.write(1, b'x' * 65536)")
    with pytest.raises(ParseLimit, match="output_chars=1,000"):
        read(path, limits=Limits(output_chars=1_000))


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.fork()",
    ],
)
def test_a_parser_reaches_no_network_and_starts_no_program(fake_parser: Fake, code: str) -> None:
    with pytest.raises(DocumentError, match="is not allowed while reading a document"):
        read(fake_parser(PARSE + code))


@linux
def test_a_parser_writes_no_file(fake_parser: Fake, tmp_path: Path) -> None:
    target = tmp_path / "written"
    with pytest.raises(DocumentError):
        read(fake_parser(PARSE + f"open({str(target)!r}, 'w').write('x' * 100000)"))
    assert not target.exists() or target.stat().st_size == 0


def test_a_missing_parser_names_the_package_and_the_install(fake_parser: Fake) -> None:
    with pytest.raises(MissingExtra, match=r'charset-normalizer.*pip install "longctx-hf\[documents\]"'):
        read(fake_parser("raise ModuleNotFoundError"))
    with pytest.raises(DocumentError, match="cannot be loaded with memory_bytes=1,073,741,824"):
        read(fake_parser("raise ImportError('failed to map')"))


def test_the_parser_process_loads_no_model_library(fake_parser: Fake) -> None:
    """What it has loaded comes back in the message of its error."""
    heavy = "sorted({'torch', 'transformers', 'numpy', 'longctx.types'} & set(__import__('sys').modules))"
    with pytest.raises(DocumentError, match=r"loaded: \[\]"):
        read(fake_parser(PARSE + f"raise ValueError('loaded: ' + str({heavy}))"))


def test_modules_of_the_working_folder_are_not_run(
    fake_parser: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a file in a folder of downloads must not run a ``charset_normalizer.py`` that lies beside it."""
    path = fake_parser(GUESS)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "modules")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "modules" / "charset_normalizer.py").write_text("raise SystemExit(3)")
    assert read(path).text.startswith("F")


@linux
def test_ctrl_c_is_the_callers_to_handle(fake_parser: Fake) -> None:
    """A terminal sends it to both: a caller that goes on after Ctrl-C must not see a crashed parser."""
    code = GUESS.replace("return", "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n    return")
    assert read(fake_parser(code)).text.startswith("F")


@linux
@pytest.mark.timeout(30)
def test_ctrl_c_ends_ends_the_parser_too(fake_parser: Fake, tmp_path: Path) -> None:
    note = tmp_path / "started"
    os.mkfifo(note)
    code = f"def from_bytes(data):\n    import os, time\n    fd = os.open({str(note)!r}, os.O_WRONLY)\n"
    code += "    os.write(fd, str(os.getpid()).encode()); os.close(fd)\n    time.sleep(60)\n"
    path = fake_parser(code)
    script = f"import sys; sys.path[:0] = {sys.path!r}; from longctx.documents.reader import read; read({str(path)!r})"
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    child = int(note.read_text())
    parent.send_signal(signal.SIGINT)
    _, stderr = parent.communicate(timeout=10)
    assert b"KeyboardInterrupt" in stderr
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
