"""The environments in which peers run: made once for what they require, each with its own versions.

Owns the folders and how they are filled with pip's own settings. An environment that was not finished is made again.
Knows no model and no method beyond what its module says of itself.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
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
_SECONDS = 3600.0  # a peer that takes longer to install, or to build, is not available: busy cores build for half of it
# The folder above is searched last, so that no module of this package stands in the way of a peer's own.
_START = "import sys; sys.path.append({folder!r}); from peers._serve import main; main()"


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer by the name that grids give it, its module, and what that says of itself."""

    name: str
    module: str
    requires: tuple[str, ...]
    options: dict[str, Any]
    files: tuple[str, ...]

    def command(self, python: Path) -> list[str]:
        """Starts the peer's loop; ``-I`` keeps the working folder and PYTHONPATH out of its imports."""
        return [str(python), "-I", "-c", _START.format(folder=str(_FOLDER.parent)), self.module]


def names() -> list[str]:
    """The peers there are, as grids name them."""
    return sorted(_modules())


def peer(name: str) -> Peer:
    """The peer called ``name``, with the release of torch that runs here, so that speeds compare.

    Raises UnknownMethod.
    """
    found = _modules()
    if name not in found:
        raise UnknownMethod("peer", name, sorted(found))
    module = found[name]
    torch = (f"torch=={version('torch').split('+')[0]}",) if module.TORCH else ()
    start = f"peers.{module.__name__.rpartition('.')[2]}"
    return Peer(name, start, (*torch, *module.REQUIRES), dict(module.OPTIONS), tuple(module.FILES))


def _modules() -> dict[str, Any]:
    """What each file of the folder says of its peer; none of them loads the peer itself."""
    found = [info.name for info in pkgutil.iter_modules([str(_FOLDER)]) if not info.name.startswith("_")]
    modules = [importlib.import_module(f".peers.{name}", __package__) for name in found]
    return {module.NAME: module for module in modules}


def environment(requires: Sequence[str], name: str, folder: Path, log: Path, seconds: float = _SECONDS) -> Path:
    """The Python of an environment below ``folder`` in which ``requires`` are installed; it is made if it is not there.

    pip follows its own configuration: where packages come from, and which build of torch, is decided there. Raises
    ProgramError of kind "unavailable" when they cannot be installed in ``seconds``.
    """
    wanted = {"python": sys.version.split()[0], "requires": list(requires)}
    key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]
    place = folder / f"{name}-{key}"
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
