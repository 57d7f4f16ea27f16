"""Whether a model says by segments and through a bounded cache what it says by itself, found by trying both.

Owns the two trials. Knows no method and no text: a few ids of the vocabulary stand for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longctx.backend.alone import alone
from longctx.backend.anatomy import UNFIT, Unlike
from longctx.backend.attaching import attached
from longctx.backend.bounded import BoundedCache
from longctx.backend.capability import HALF, agree, apart, said_by_stock, some_ids, starts
from longctx.backend.compressing import kinds, read
from longctx.backend.forks import Context, Held
from longctx.backend.lean import Lean
from longctx.backend.memos import Memo
from longctx.backend.probe import Probe, all_seen
from longctx.errors import ModelError
from longctx.keys import EVERYTHING, Asked, Choice, Index

_CONTEXT, _BEHIND = 12, 6  # tokens of the trial of a bounded cache
_SEGMENTS = (14, 8, 11, 5, 12)  # tokens of those that are read: of several lengths, as they stand in one batch
_QUESTION = "Where is it?"

_BOUNDED: Memo[str] = Memo()
_READ: Memo[str] = Memo()
_SUMMARISED: Memo[str] = Memo()


def bounded_kinds(model: PreTrainedModel, partial: bool = False) -> list[str]:
    """What each layer is, as ``kinds`` says, of a model whose cache can be bounded.

    Raises ModelError where ``kinds`` does, where a cache that leaves nothing out gives something else, and for a model
    whose weights are not all on one device.
    """
    found = kinds(model, partial)
    places = sorted({str(weight.device) for weight in model.parameters()})
    if len(places) > 1 or "meta" in places:  # meta: weights that are fetched when they are needed
        raise ModelError(
            f"the weights of {type(model).__name__} are spread over {', '.join(places)}, and a bounded cache takes a "
            "model on one device. Load it without device_map=, or ask without kv=."
        )
    why = _known(_BOUNDED, model, lambda: _bounds(model, found))
    if why:
        raise ModelError(
            f"a bounded cache does not suit {type(model).__name__}: {why}. Ask without kv=: the whole cache is kept "
            "then."
        )
    return found


def readable(probe: Probe) -> Probe:
    """``probe``, once its model is known to say the same behind segments that were read apart.

    Models made of known parts do. One whose keys cannot be summed up has no summaries then. Raises ModelError for one
    that says something else.
    """
    model = probe.model
    try:
        Lean(model)
    except Unlike:
        frame = (tuple(probe.prefix), probe.inquiry(_QUESTION, next_token=True).ids)  # all that is read beside the ids
        if why := _known(_READ, model, lambda: _reads(probe), *frame):
            raise ModelError(f"{type(model).__name__} cannot read a text by segments: {why}.") from None
        if probe.summarises:
            probe.no_summaries = _known(_SUMMARISED, model, lambda: _summed_up(probe), *frame)
    return probe


def _known(memo: Memo[str], model: PreTrainedModel, attempt: Callable[[], str], *more: object) -> str:
    """Why not, by ``attempt`` or by what an earlier one found for this model and ``more``; empty where nothing is."""
    try:
        return memo.of(model, lambda: _found(attempt), *more)
    except torch.OutOfMemoryError:  # says nothing of the model
        raise
    except RuntimeError as error:  # may be the machine's, so it is not kept
        return f"{type(error).__name__}: {error}".rstrip(".")


def _found(attempt: Callable[[], str]) -> str:
    try:
        return attempt()
    except RuntimeError:
        raise
    except (ModelError, *UNFIT) as error:
        return f"{type(error).__name__}: {error}".removeprefix("ModelError: ").rstrip(".")


def _alike(found: Tensor, expected: Tensor) -> bool:
    """Whether rows of logits [rows, vocab] are what they should be, but for rounding in the format of ``found``.

    In half precision half of them may be further off: a token is sent to other experts, and all that follow see it.
    """
    if found.element_size() > 2:
        return agree(found, expected)
    return bool(apart(found, expected).median() < HALF)


def _bounds(model: PreTrainedModel, found: list[str]) -> str:
    """Why a bounded cache that leaves nothing out is not the model's own; empty where it says the same."""
    for start in starts(model):
        if not (why := _bounds_of(model, found, some_ids(model, _CONTEXT + _BEHIND, start))):
            break
    return why


def _bounds_of(model: PreTrainedModel, found: list[str], ids: list[int]) -> str:
    layers, queries = read(model, ids[:_CONTEXT], 0, _CONTEXT // 2)
    seen = [number for number, kind in enumerate(found[: len(layers)]) if kind == "full_attention"]
    all_seen(seen, queries.last)
    whole = [
        held if held.window is not None or held.kept is not None else Held(held.keys, held.values, _all_of(held))
        for held in layers
    ]
    policy: Any = _Everything()
    context = Context(_CONTEXT, tuple(whole), policy)
    behind = torch.tensor([ids[_CONTEXT:]], device=model.device)
    with torch.inference_mode(), attached(model), alone(model):
        said: Tensor = model(behind, past_key_values=BoundedCache(context), use_cache=True).logits[0]
    texts = [ids[: _CONTEXT + count] for count in range(1, _BEHIND + 1)]
    return "" if _alike(said, said_by_stock(model, texts)) else "it says other things behind one"


def _all_of(held: Held) -> Index:
    return Index(held.keys.shape[1], held.keys.shape[1])


class _Everything:
    """Reads all keys, in the place of a policy."""

    lossless = True

    def choose(self, index: Index, asked: Asked) -> Choice:
        return EVERYTHING


def _summed_up(probe: Probe) -> str:
    """Raises what keeps summaries of segments from being made or looked at; empty where nothing does."""
    ids = some_ids(probe.model, _SEGMENTS[0])
    ((_, stored),) = probe.read([ids])
    summary = probe.overview([probe.summarise(stored, (len(ids),), probe.pairs())])
    probe.glance(summary, probe.inquiry(_QUESTION, heads=None), len(ids))
    return ""


def _reads(probe: Probe) -> str:
    """Why segments read apart are not what the model reads in one text; empty where it says the same behind them."""
    for start in starts(probe.model):
        if not (why := _reads_of(probe, some_ids(probe.model, sum(_SEGMENTS), start))):
            break
    return why


def _reads_of(probe: Probe, ids: list[int]) -> str:
    segments = [ids[sum(_SEGMENTS[:at]) :][:count] for at, count in enumerate(_SEGMENTS)]
    inquiry = probe.inquiry(_QUESTION, heads=None, likelihood=bool(probe.frame.middle), next_token=True)
    stored = dict(probe.read(segments))
    readings = dict(probe.ask([stored[at] for at in range(len(segments))], inquiry))
    texts = [[*probe.prefix, *segment, *inquiry.ids] for segment in segments]
    said = torch.stack([torch.as_tensor(readings[at].next_token) for at in range(len(segments))])
    expected = said_by_stock(probe.model, texts).float().log_softmax(-1).cpu()
    alike = _alike(said.to(probe.model.dtype), expected)
    return "" if alike else "it says other things behind segments than behind their text"
