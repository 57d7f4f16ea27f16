"""What a model says after each common token when it knows nothing else: a first guess where no text tells more.

Owns the passes that ask it and the file that keeps it. Ids are asked in their order, in which common tokens stand
first wherever a vocabulary was made by merging pairs. Li et al. 2024 (arXiv 2411.03786) draft from such a table.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from longctx.backend.alone import turn
from longctx.backend.model import model_fingerprint
from longctx.backend.places import cache_folder, put
from longctx.backend.stamps import modules_of, stamp
from longctx.backend.target import RowTarget
from longctx.drafts import Successors
from longctx.likeliest import likeliest
from longctx.protocols import Progress

_MOST = 16384  # ids asked: most of what an English answer is made of
_SECONDS = 1.0  # of one request: the next one asks further
_ENOUGH = 20.0  # seconds of all requests, after which no more ids are asked: on a slow machine fewer are known
_RANKS = 16
_TEXTS = 64  # from which it is found what the model expects most often
_FIRST, _AT_ONCE = 16, 256  # ids of the first pass, and of one at the most
_MAGIC = b"lctxsuc3"


@dataclass(frozen=True, slots=True)
class Known:
    """What was asked so far behind the tokens ``before``, of the ``count`` ids that are to be asked."""

    found: Successors
    before: tuple[int, ...]
    count: int
    path: Path | None  # of the file that keeps it
    spent: float = 0.0  # seconds of asking
    of: int = 0  # the stamp that the model had then

    def done(self, enough: float) -> bool:
        """Whether nothing is left to ask, or ``enough`` seconds of asking are over."""
        return len(self.found.tokens) >= self.count or self.spent >= enough


_NOTHING = Successors(np.empty((0, 1), dtype=np.int32), np.empty((0, 1), dtype=np.float32))

# a memo, not state: the same model always says the same
_KNOWN: WeakKeyDictionary[PreTrainedModel, Known] = WeakKeyDictionary()
_NAMES: WeakKeyDictionary[PreTrainedModel, tuple[int, str]] = WeakKeyDictionary()  # fingerprints, by stamp


def known_successors(model: PreTrainedModel) -> Successors:
    """What ``model`` was found to say after single tokens, here or by another process, without a pass of it."""
    if not _in_memory(model):
        return _NOTHING
    now = stamp(modules_of(model))
    with turn():
        found = _KNOWN.get(model)
        if found is None or found.of != now:
            if model not in _NAMES or _NAMES[model][0] != now:
                _NAMES[model] = now, model_fingerprint(model)
            kept = _load(_path(_NAMES[model][1]))
            if kept is None:
                return _NOTHING
            found = _KNOWN[model] = replace(kept, of=now)
        return found.found


def successors(
    model: PreTrainedModel,
    warn: Callable[[str], None],
    progress: Progress | None = None,
    seconds: float = _SECONDS,
    enough: float = _ENOUGH,
) -> Successors:
    """What ``model``, which verifies trees, says after single tokens, as far as it was asked.

    Asked of the model for ``seconds`` and kept in the cache folder, from where the next call goes on until all is known
    or all calls together took ``enough`` seconds; where it cannot be written, ``warn`` is told. Of a model whose
    weights are not in memory nothing is asked, with a warning.
    """
    if not _in_memory(model):
        warn("weights of the model are not in memory, so it is not asked what follows which token.")
        return _NOTHING
    now = stamp(modules_of(model))
    with turn():  # threads wait for the first of them
        found = _KNOWN.get(model)
        if found is None or found.of != now or not found.done(enough):
            found = _KNOWN[model] = replace(_further(model, found, warn, progress, seconds, enough), of=now)
        return found.found


def _in_memory(model: PreTrainedModel) -> bool:
    return not any(parameter.is_meta for parameter in model.parameters())


def _path(fingerprint: str) -> Path:
    return cache_folder() / "successors" / f"{fingerprint[:32]}.bin"


def _further(
    model: PreTrainedModel,
    known: Known | None,
    warn: Callable[[str], None],
    progress: Progress | None,
    seconds: float,
    enough: float,
) -> Known:
    """What is known after ``seconds`` more of asking, or by the file if that is all."""
    path = _path(model_fingerprint(model))
    if known is not None and known.path != path:
        known = None  # the weights have changed
    kept = _load(path)
    if kept is not None and (known is None or len(kept.found.tokens) > len(known.found.tokens)):
        known = kept
    if known is not None and known.done(enough):
        return known
    known = _asked(model, known, path, progress, seconds)
    kept = _load(path)
    if kept is not None and len(kept.found.tokens) > len(known.found.tokens):
        return kept  # another process asked more meanwhile
    try:
        _save(path, known)
    except OSError as error:
        warn(
            f"what follows which token could not be kept ({error.strerror or type(error).__name__}): the model "
            f"will be asked again. Set LONGCTX_CACHE to a folder that can be written."
        )
    return known


def _asked(model: PreTrainedModel, known: Known | None, path: Path, progress: Progress | None, seconds: float) -> Known:
    """Every id stands by itself behind the same two tokens, those that the model expects most often.

    A beginning of other tokens would tell what the text is about, and a third less of what follows would be right.
    """
    embeddings: Any = model.get_input_embeddings()
    target = RowTarget(model, 2 + _AT_ONCE)
    if known is None:
        count = min(_MOST, target.vocabulary, int(embeddings.weight.shape[0]))
        ranks = min(_RANKS, target.vocabulary)
        nothing = Successors(np.empty((0, ranks), dtype=np.int32), np.empty((0, ranks), dtype=np.float32))
        known = Known(nothing, tuple(_expected(model, count)), count, path)
    target.score(known.before, range(-1, len(known.before) - 1), 1)
    target.commit(range(len(known.before)))
    started = time.monotonic()  # what a model's first pass decides about products is no part of the asking
    tokens, chances = [known.found.tokens], [known.found.chances]
    done, step = len(known.found.tokens), _FIRST
    while done < known.count:
        began = time.monotonic()
        ids = range(done, min(done + step, known.count))
        best = _best(target, ids)
        tokens.append(best[0])
        chances.append(best[1])
        done = ids.stop
        if progress is not None:
            progress("asking what follows which token", done, known.count)
        now = time.monotonic()
        if now - started > seconds:
            break
        # no pass that would take longer than what is left
        step = min(_AT_ONCE, 2 * step, max(1, int(len(ids) * (seconds - (now - started)) / max(now - began, 1e-9))))
    found = Successors(np.concatenate(tokens), np.concatenate(chances))
    return replace(known, found=found, spent=known.spent + time.monotonic() - started)


def _expected(model: PreTrainedModel, count: int) -> list[int]:
    """The two tokens that are likeliest in the mean over many short texts of the first ``count`` ids."""
    target = RowTarget(model, 1 + 2 * _TEXTS)
    target.score([count // 2], [-1], 1)
    target.commit([0])
    drawn = [(7919 * at + 13) % count for at in range(2 * _TEXTS)]
    parents = [-1 if at % 2 == 0 else at - 1 for at in range(2 * _TEXTS)]  # texts of two tokens behind the first
    said = target.score(drawn, parents, len(drawn))[1::2].float().softmax(-1)[:, :count].nan_to_num(0.0).mean(0)
    return list(reversed(said.topk(min(2, count)).indices.tolist()))


def _best(target: RowTarget, ids: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The likeliest tokens after each of ``ids`` and their probabilities; 0 where the model gives no finite ones."""
    logits = target.score(ids, [-1] * len(ids), len(ids))
    target.rollback()
    tokens, chances = likeliest(logits, _RANKS)
    return tokens.astype(np.int32), np.nan_to_num(chances, nan=0.0, posinf=0.0, neginf=0.0)


def _load(path: Path) -> Known | None:
    """What the file holds; None where there is none, or it is not what was written."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + 32
    head, digest, body = data[: len(_MAGIC)], data[len(_MAGIC) : start], data[start:]
    if head != _MAGIC or hashlib.sha256(body).digest() != digest:
        return None
    ids, ranks, count, begins = (int(size) for size in np.frombuffer(body[:16], dtype="<u4"))
    spent = float(np.frombuffer(body[16:20], dtype="<f4")[0])
    numbers = np.frombuffer(body[20:], dtype="<i4")
    tokens, chances = numbers[begins:].reshape(2, ids, ranks).copy()
    found = Successors(tokens.astype(np.int32), chances.view("<f4").astype(np.float32))
    return Known(found, tuple(numbers[:begins].tolist()), count, path, spent)


def _save(path: Path, known: Known) -> None:
    """Raises OSError where the file cannot be written."""
    tokens, chances = known.found.tokens, known.found.chances
    sizes = np.asarray([*tokens.shape, known.count, len(known.before)], dtype="<u4").tobytes()
    before = np.asarray([known.spent], dtype="<f4").tobytes() + np.asarray(known.before, dtype="<i4").tobytes()
    body = sizes + before + tokens.astype("<i4").tobytes() + chances.astype("<f4").tobytes()
    put(path, _MAGIC + hashlib.sha256(body).digest() + body)
