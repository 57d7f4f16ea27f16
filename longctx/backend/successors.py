"""What a model says after each common token when it knows nothing else: a first guess where no text tells more.

Owns the passes that ask it and the file that keeps it. Ids are asked in their order, in which common tokens stand
first wherever a vocabulary was made by merging pairs. Li et al. 2024 (arXiv 2411.03786) draft from such a table.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedModel

from longctx.backend.model import model_fingerprint
from longctx.backend.places import cache_folder
from longctx.backend.target import RowTarget
from longctx.drafts import Successors
from longctx.protocols import Progress

_MOST = 16384  # ids asked: most of what an English answer is made of
_SECONDS = 20.0  # after which no more ids are asked: on a slow machine fewer are known
_RANKS = 16
_TEXTS = 64  # from which it is found what the model expects most often
_AT_ONCE = 256
_ENTRY = np.dtype([("token", "<i4"), ("chance", "<f4")])  # of the file, [ids, ranks]

# a memo, not state: the same model always says the same
_KNOWN: WeakKeyDictionary[PreTrainedModel, Successors] = WeakKeyDictionary()


def successors(model: PreTrainedModel, warn: Callable[[str], None], progress: Progress | None = None) -> Successors:
    """What ``model``, which verifies trees, says after single tokens.

    Asked of the model once, which takes at most some twenty seconds, and then kept in the cache folder; where that
    cannot be written, ``warn`` is told.
    """
    if model not in _KNOWN:
        path = cache_folder() / "successors" / f"{model_fingerprint(model)[:32]}.npy"
        found = _load(path)
        if found is None:
            found = _asked(model, progress)
            _save(path, found, warn)
        _KNOWN[model] = found
    return _KNOWN[model]


def _asked(model: PreTrainedModel, progress: Progress | None) -> Successors:
    """Every id stands by itself behind the same two tokens, those that the model expects most often.

    A beginning of other tokens would tell what the text is about, and a third less of what follows would be right.
    """
    target = RowTarget(model, 2 + _AT_ONCE)
    count = min(_MOST, target.vocabulary)
    before = _expected(model, count)
    target.score(before, range(-1, len(before) - 1), 1)
    target.commit(range(len(before)))
    tokens, chances = [], []
    started = time.monotonic()
    for first in range(0, count, _AT_ONCE):
        ids = range(first, min(first + _AT_ONCE, count))
        best = target.score(ids, [-1] * len(ids), len(ids)).float().softmax(-1).topk(min(_RANKS, target.vocabulary))
        target.rollback()
        tokens.append(best.indices.to(torch.int32).cpu().numpy())
        chances.append(best.values.cpu().numpy())
        if progress is not None:
            progress("asking what follows which token", ids.stop, count)
        if time.monotonic() - started > _SECONDS:
            break
    return Successors(np.concatenate(tokens), np.concatenate(chances))


def _expected(model: PreTrainedModel, count: int) -> list[int]:
    """The two tokens that are likeliest in the mean over many short texts of the first ``count`` ids."""
    target = RowTarget(model, 1 + 2 * _TEXTS)
    target.score([count // 2], [-1], 1)
    target.commit([0])
    drawn = [(7919 * at + 13) % count for at in range(2 * _TEXTS)]
    parents = [-1 if at % 2 == 0 else at - 1 for at in range(2 * _TEXTS)]  # texts of two tokens behind the first
    said = target.score(drawn, parents, len(drawn))[1::2].float().softmax(-1).mean(0)
    first, second = said.topk(2).indices.tolist()
    return [second, first]


def _load(path: Path) -> Successors | None:
    """What the file holds; None where there is none, or it is damaged."""
    try:
        held = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if held.dtype != _ENTRY or held.ndim != 2 or not held.size or not np.isfinite(held["chance"]).all():
        return None
    return Successors(np.ascontiguousarray(held["token"]), np.ascontiguousarray(held["chance"]))


def _save(path: Path, found: Successors, warn: Callable[[str], None]) -> None:
    """Writes the file whole or not at all; a folder that cannot be written is a warning."""
    part = path.with_suffix(f".{os.getpid()}.part")
    held = np.empty(found.tokens.shape, _ENTRY)
    held["token"], held["chance"] = found.tokens, found.chances
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.save(file, held)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        warn(
            f"what follows which token could not be kept ({error.strerror or type(error).__name__}): the model will be "
            f"asked again. Set LONGCTX_CACHE to a folder that can be written."
        )
