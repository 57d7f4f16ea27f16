"""The environments in which peers run: made once for what they require, each with its own versions.

Owns the folders and how they are filled with pip's own settings. An environment that was not finished is made again.
Knows no model and no method beyond what its module says of itself.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from longctx.errors import ProgramError, UnknownMethod

_FOLDER = Path(__file__).parent / "peers"
_FINISHED = "finished.json"
_SECONDS = 1800.0  # a peer that takes longer to install, or to build, is not available
# The folder above is searched last, so that no module of this package stands in the way of a peer's own.
_START = "import sys; sys.path.append({folder!r}); from peers._serve import main; main()"
_WITHOUT_TORCH = ("llama.cpp",)


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer by the name that grids give it, and what its module says of itself."""

    name: str
    requires: tuple[str, ...]
    options: dict[str, Any]
    files: tuple[str, ...]

    @property
    def module(self) -> str:
        return module_of(self.name)

    def command(self, python: Path) -> list[str]:
        """Starts the peer's loop; ``-P`` keeps the working folder out of its imports."""
        return [str(python), "-P", "-c", _START.format(folder=str(_FOLDER.parent)), f"peers.{self.module}"]


def names() -> list[str]:
    """The peers there are, as grids name them."""
    found = [info.name for info in pkgutil.iter_modules([str(_FOLDER)]) if not info.name.startswith("_")]
    return sorted({"llama_cpp": "llama.cpp"}.get(name, name.replace("_", "-")) for name in found)


def module_of(name: str) -> str:
    return re.sub(r"\W", "_", name)


def peer(name: str) -> Peer:
    """The peer called ``name``, with the release of torch that runs here, so that speeds compare.

    Raises UnknownMethod.
    """
    if name not in names():
        raise UnknownMethod("peer", name, names())
    module = importlib.import_module(f".peers.{module_of(name)}", __package__)
    torch = () if name in _WITHOUT_TORCH else (f"torch=={version('torch').split('+')[0]}",)
    return Peer(name, (*torch, *module.REQUIRES), dict(module.OPTIONS), tuple(module.FILES))


def environment(requires: Sequence[str], name: str, folder: Path, log: Path, seconds: float = _SECONDS) -> Path:
    """The Python of an environment below ``folder`` in which ``requires`` are installed; it is made if it is not there.

    pip follows its own configuration: where packages come from, and which build of torch, is decided there. Raises
    ProgramError of kind "unavailable" when they cannot be installed in ``seconds``.
    """
    wanted = {"python": sys.version.split()[0], "requires": list(requires)}
    key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]
    place = folder / f"{module_of(name)}-{key}"
    python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not (place / _FINISHED).is_file():
            shutil.rmtree(place, ignore_errors=True)
            venv.EnvBuilder(with_pip=True).create(place)
            try:
                _install(python, requires, name, log, seconds)
            except ProgramError:
                shutil.rmtree(place, ignore_errors=True)
                raise
            (place / _FINISHED).write_text(json.dumps(wanted), encoding="utf-8")
    return python


def _install(python: Path, requires: Sequence[str], name: str, log: Path, seconds: float) -> None:
    """All at once, so that pip finds versions that go together."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            done = subprocess.run(
                [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *requires],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = f"{name} was not installed within {seconds:,.0f} seconds; see {log.name}."
            raise ProgramError("unavailable", said) from error
    if done.returncode:
        said = f"pip could not install {name} (exit status {done.returncode}); see {log.name}."
        raise ProgramError("unavailable", said)
