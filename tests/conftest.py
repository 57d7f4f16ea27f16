"""What every test runs under: no network, a cache folder of its own, two threads. The embedded model is made once."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

THREADS = 2
_CACHE = Path(tempfile.mkdtemp(prefix="longctx-tests-"))
_HERE = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "", None)

# Before any library of models is imported: some of them read these only then.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LONGCTX_CACHE"] = str(_CACHE)
os.environ["OMP_NUM_THREADS"] = str(THREADS)


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
    sys.addaudithook(_refuse_network)  # below every library; cannot be undone, which is the point


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    import torch

    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    """The folder of the embedded model, made by the first test that needs it."""
    from longctx.backend.embedded import embedded_model

    return embedded_model()
