"""What a model can verify in one pass, found by trying it: a tree of tokens, a chain of them, or the next token only.

Owns the trial. A tree of a few tokens must say at every node what the stock model says of its path, and a cache that
took rows back must go on as if they had never been there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from longctx.backend.alone import alone
from longctx.backend.anatomy import READ, UNFIT, sharing
from longctx.backend.behind import BoundedTarget, takes_back
from longctx.backend.borrowed import untouched
from longctx.backend.bounded import BoundedCache
from longctx.backend.memos import Memo
from longctx.backend.rope import frequencies
from longctx.backend.target import RowTarget, StockTarget, score_together
from longctx.drafts import Kind
from longctx.errors import ModelError
from longctx.protocols import Target

_PREFIX = 6
_PARENTS = (-1, 0, 1, 1, 0, 4, 2, -1, 7, 7, 8, 5)  # a tree of twelve rows behind the prefix, its first row the anchor
_KEPT = (0, 4, 5)  # a path through it that is not its first rows
WIDE, HALF = 1e-3, 0.1  # how far logits may be apart, as a share of their size, in float32 and in half precision


@dataclass(frozen=True, slots=True)
class Capability:
    """``rows`` is what can be verified; where that is not a tree, ``reason`` says what was tried and went wrong."""

    rows: Kind
    reason: str = ""


_FOUND: Memo[Capability] = Memo()
_ALONE: Memo[str] = Memo()


def capability(model: PreTrainedModel) -> Capability:
    """What ``model`` can verify in one pass; found once for the weights and hooks of every model object."""
    return _FOUND.of(model, lambda: _tried(model))


def alone_because(model: PreTrainedModel) -> str:
    """Why one pass of ``model`` cannot verify the rows of several requests; empty where it can. Found once as well."""
    found = capability(model)
    return _ALONE.of(model, lambda: found.reason if found.rows != "tree" else _not_together(model))


def open_target(model: PreTrainedModel, reserve: int, cache: Any = None) -> tuple[Target, str]:
    """The best verifier for ``model`` with ``reserve`` slots, and why it verifies less than it might, if it does.

    A ``cache`` of the caller that holds tokens, or is not transformers' own dynamic one, is used as it is.
    """
    found = capability(model)
    if cache is None or untouched(cache):
        if found.rows == "tree":
            return RowTarget(model, reserve), ""
        return StockTarget(model, found.rows), found.reason
    # quantised layers call themselves croppable, but forget only what they have not quantised yet
    if type(cache) is DynamicCache and cache.is_croppable and found.rows != "off":
        return StockTarget(model, "chain", cache), "the cache is the caller's"
    if type(cache) is BoundedCache:
        if found.rows != "off" and takes_back(cache):
            return BoundedTarget(model, cache, "chain"), ""
        return BoundedTarget(model, cache), found.reason or "what it chooses to read serves all rows of a pass together"
    return StockTarget(model, "off", cache), f"the caller's {type(cache).__name__} cannot take tokens back"


def no_rows(model: PreTrainedModel) -> str:
    """Why the model's kinds of layers rule out trees, without a trial; empty where they do not."""
    config = model.config.get_text_config(decoder=True)
    kinds, _ = get_layer_types_and_kwargs(config)
    shares = sharing(config)
    other = sorted({kind for number, kind in enumerate(kinds) if number not in shares} - READ)
    return f"it has {', '.join(other)} layers" if other else ""


def _tried(model: PreTrainedModel) -> Capability:
    reason = no_rows(model) or _no_tree(model)
    if not reason:
        return Capability("tree")
    because = _no_chain(model)
    if not because:
        return Capability("chain", reason)
    if why := _no_pass(model):
        raise ModelError(f"{type(model).__name__} cannot decode token by token here: {why}.")
    return Capability("off", f"{reason}, and {because}")


def _no_pass(model: PreTrainedModel) -> str:
    """Why a second pass over its cache fails; empty where it does not."""
    try:
        stock = StockTarget(model, "off")
        _fill(stock, model)
        stock.score(some_ids(model, 1, start=_PREFIX), [-1], 1)
    except torch.OutOfMemoryError:  # says nothing of the model
        raise
    except UNFIT as error:
        return f"its cache does not take one more token ({type(error).__name__}: {error})"
    return ""


def _no_chain(model: PreTrainedModel) -> str:
    """Why the model cannot verify a chain; empty where it can."""
    try:
        stock = StockTarget(model, "chain")
        _fill(stock, model)
        if not stock.croppable:
            return "its cache cannot take tokens back"
        agrees = _agrees(model, lambda: StockTarget(model, "chain"), range(-1, len(_PARENTS) - 1), range(4))
    except torch.OutOfMemoryError:  # says nothing of the model
        raise
    except UNFIT as error:
        return f"its cache does not take the rows of a chain ({type(error).__name__}: {error})"
    return "" if agrees else "after tokens were taken back it goes on otherwise"


def _no_tree(model: PreTrainedModel) -> str:
    """Why the model cannot verify a tree; empty where it can."""
    try:
        reserve = _PREFIX + len(_PARENTS)  # what the model's own layers do is asked here
        agrees = _agrees(model, lambda: RowTarget(model, reserve, lean=False), _PARENTS, _KEPT)
    except ModelError:
        return "its attention does not go through the attention interface"
    except torch.OutOfMemoryError:  # says nothing of the model
        raise
    except UNFIT as error:
        return f"its layers do not take the rows of a tree ({type(error).__name__}: {error})"
    return "" if agrees else "it says other things of a tree of tokens than of its paths"


def _not_together(model: PreTrainedModel) -> str:
    """Why the rows of two requests cannot share a pass; empty where each then says what it says alone."""
    if frequencies(model.config).switches:
        return "its rotary frequencies follow the longest of the rows"
    prefixes = [some_ids(model, _PREFIX), some_ids(model, 2 * _PREFIX, start=_PREFIX)]
    rows = some_ids(model, len(_PARENTS), start=3 * _PREFIX)
    alone, shared = ([RowTarget(model, 4 * _PREFIX, lean=False) for _ in prefixes] for _ in range(2))
    for prefix, *targets in zip(prefixes, alone, shared, strict=True):
        for target in targets:
            target.score(prefix, range(-1, len(prefix) - 1), 1)
            target.commit(range(len(prefix)))
    expected = [target.score(rows, _PARENTS, len(rows)) for target in alone]
    try:
        found = score_together(model, [(target, rows, _PARENTS, len(rows)) for target in shared])
    except (KeyError, RuntimeError, TypeError) as error:  # a model that looks into the cache itself
        return f"its layers do not take the rows of two texts ({type(error).__name__}: {error})"
    alike = all(agree(own, other) for own, other in zip(found, expected, strict=True))
    return "" if alike else "it says other things of the rows of two texts than of each alone"


def _agrees(model: PreTrainedModel, make: Callable[[], Target], parents: Sequence[int], kept: Sequence[int]) -> bool:
    """Whether every row says what the stock model says of its path, and so does what follows the kept rows.

    In half precision of some ids: rounding that sends a token to other experts may spoil an attempt, a wrong road does
    spoil them all.
    """
    return any(_agrees_on(model, make(), parents, kept, start) for start in starts(model))


def _agrees_on(model: PreTrainedModel, target: Target, parents: Sequence[int], kept: Sequence[int], start: int) -> bool:
    prefix = _fill(target, model, start)
    tokens = some_ids(model, len(parents) + 1, start=start + _PREFIX)
    rows, after = tokens[:-1], tokens[-1]
    paths = [_path(row, parents) for row in range(len(parents))]
    seen = target.score(rows, parents, len(rows))
    target.commit(kept)
    behind = target.score([after], [-1], 1)
    target.rollback()
    texts = [[*prefix, *(rows[i] for i in path)] for path in paths]
    texts.append([*prefix, *(rows[i] for i in kept), after])
    expected = said_by_stock(model, texts)
    return agree(seen, expected[:-1]) and agree(behind, expected[-1:])


def starts(model: PreTrainedModel) -> tuple[int, ...]:
    """Where the ids of each attempt at a comparison begin: one attempt where rounding changes nothing, else three."""
    return (0,) if model.dtype.itemsize > 2 else (0, 60, 120)


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether rows of logits [rows, vocab] are what they should be, but for rounding in the format of ``found``.

    One row of many may be further off: rounding can send a token to other experts.
    """
    far = apart(found, expected).sort().values
    return bool(far[-2 if len(far) > 1 else -1] < (WIDE if found.element_size() > 2 else HALF))


def apart(found: Tensor, expected: Tensor) -> Tensor:
    """How far rows of logits are from what they should be, as a share of their size, [rows].

    What all logits of a row have in common tells nothing.
    """
    wide = (rows.cpu().double() for rows in (found, expected))  # not every device has numbers of 64 bits
    own, other = (rows - rows.mean(-1, keepdim=True) for rows in wide)
    return (own - other).square().mean(-1).sqrt() / other.square().mean(-1).sqrt()


def said_by_stock(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """What the model says after each text, [texts, vocab], by one plain pass without a cache."""
    # the beginning of another text is read with that one: no token of a causal row sees those to its right, nor padding
    whole = {tuple(text) for text in texts}
    whole -= {text[:length] for text in whole for length in range(len(text))}
    rows, width = sorted(whole), max(map(len, texts))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    with torch.inference_mode(), alone(model):
        logits = model(input_ids=ids, use_cache=False).logits
    places = [next(at for at, row in enumerate(rows) if row[: len(text)] == tuple(text)) for text in texts]
    return torch.stack([logits[at, len(text) - 1] for at, text in zip(places, texts, strict=True)])


def _fill(target: Target, model: PreTrainedModel, start: int = 0) -> list[int]:
    prefix = some_ids(model, _PREFIX, start)
    target.score(prefix, range(-1, _PREFIX - 1), 1)
    target.commit(range(_PREFIX))
    return prefix


def some_ids(model: PreTrainedModel, count: int, start: int = 0) -> list[int]:
    """Ids from the middle half of the vocabulary, where no special tokens stand."""
    size = int(model.config.get_text_config(decoder=True).vocab_size)
    return [size // 4 + (7919 * (start + i) + 13) % max(1, size // 2) for i in range(count)]


def _path(row: int, parents: Sequence[int]) -> list[int]:
    path = []
    while row >= 0:
        path.append(row)
        row = parents[row]
    return path[::-1]
