"""What every test runs under: no network, a cache folder of its own, few threads. The embedded model is made once."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2  # beside other processes of the same run, one each
_CACHE = Path(tempfile.mkdtemp(prefix="longctx-tests-"))
_HERE = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "", None)

# Before any library of models is imported: some of them read these only then.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["LONGCTX_CACHE"] = str(_CACHE)
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # on a busy machine, threads that spin starve the one that works


class NetworkUsed(RuntimeError):
    """A test tried to leave this machine."""


def _refuse_network(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if isinstance(address, tuple) and address[0] not in _HERE:
            raise NetworkUsed(f"{event} to {address}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname") and args[0] not in _HERE:
        raise NetworkUsed(f"{event} of {args[0]}")


def pytest_configure(config: pytest.Config) -> None:
    # A run in the background may have been started with interrupts ignored, which every child would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.addaudithook(_refuse_network)  # below every library; cannot be undone, which is the point


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    import torch

    from longctx.backend import trial

    torch.set_num_threads(THREADS)
    trial._LEAST = 0.0  # hundreds of tiny shapes are tried, and whichever way wins must do


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny models, whose threads would only wait for one another."""
    import torch

    torch.set_num_threads(1)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """For kernels that share their work out, whatever else of the run stands beside."""
    import torch

    torch.set_num_threads(2)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def embedded_folder(of_the_run: Path) -> Path:
    """The folder of the embedded model, made by the first test of the run that needs it."""
    from filelock import FileLock

    from longctx.backend.embedded import embedded_model, folder_of_embedded

    own, made = folder_of_embedded(), of_the_run / "embedded"
    with FileLock(f"{made}.lock"):
        if made.exists():
            shutil.copytree(made, own)
        else:
            shutil.copytree(embedded_model(), made)
    return embedded_model()


@pytest.fixture(scope="session")
def uncalibrated_reader(embedded_folder: Path) -> Any:
    """A reader of the embedded model, whose heads are found at the first question that needs them."""
    from longctx import Reader

    return Reader.from_pretrained("embedded", encoder=None)


@pytest.fixture(scope="session")
def embedded_reader(uncalibrated_reader: Any, of_the_run: Path) -> Any:
    """The same, whose heads the first test of the run that needs them found."""
    from filelock import FileLock

    own, made = uncalibrated_reader._calibrator.path, of_the_run / "calibration.json"
    with FileLock(f"{made}.lock"):
        if made.exists():
            own.parent.mkdir(exist_ok=True)
            shutil.copy(made, own)
        uncalibrated_reader._calibrator(uncalibrated_reader._probe())
        shutil.copy(own, made)
    return uncalibrated_reader


@pytest.fixture(scope="session")
def unread(uncalibrated_reader: Any) -> Any:
    """About 4,000 tokens in which three facts of ``needles.py`` are planted, cut into units and no more."""
    from needles import text

    from longctx import Document

    return uncalibrated_reader._compiler.index(Document.from_text(text(), id="haystack"), None)


@pytest.fixture(scope="session")
def haystack(embedded_reader: Any) -> Any:
    """The same text, read by the embedded model once."""
    from needles import text

    from longctx import Document

    return embedded_reader.compile(Document.from_text(text(), id="haystack"))
