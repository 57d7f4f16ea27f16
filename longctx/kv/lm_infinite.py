"""LM-Infinite (arXiv 2308.16137): the first tokens and the last ones, and no distance greater than the trained one.

Owns which tokens are kept while a context grows, and which of those between are looked up again. Without these memory
stays the same however long the text is, and what is dropped is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longctx.errors import BadOption
from longctx.keys import EVERYTHING, Asked, Choice, Index, LayerKeys
from longctx.kv import _budget, _ranges
from longctx.kv._scores import placed, pooled, scores

_ALWAYS = "sinks and middle"
_PIECE = 4096  # tokens that are turned at once: on the way they take several times their memory


@dataclass(frozen=True, slots=True)
class LmInfinite:
    """Of the context the first ``sinks`` tokens and the last are read, ``budget`` (or the share ``keep``) in all.

    The sinks seem to stand at most ``ceiling`` positions before the last token read (None: ``budget``), as in section 3
    of 2308.16137. The context itself is read so, in pieces of ``window`` tokens.

    ``middle`` of the budget are for the tokens between, in the layers from number ``deep`` on (the paper has 5, from 4
    on): what follows the context sees in every KV head those whose keys it wants most, all as if ``apart`` positions
    before the last token read (None: half the ceiling). These layers then keep all their keys, twice.
    """

    lossless: ClassVar[bool] = False
    grows: ClassVar[bool] = True

    budget: int | None = None
    keep: float | None = None
    sinks: int = 10
    ceiling: int | None = None
    window: int = 256
    middle: int = 0
    deep: int = 4
    apart: int | None = None

    def __post_init__(self) -> None:
        _budget.check(self.budget, self.keep, "lm_infinite")
        if self.sinks < 0 or self.window < 1 or (self.ceiling is not None and self.ceiling < 1):
            raise BadOption(
                f"sinks={self.sinks} must not be negative, and window={self.window} and ceiling={self.ceiling} at "
                "least 1."
            )
        if min(self.middle, self.deep) < 0 or (self.apart is not None and self.apart < 1):
            raise BadOption(
                f"middle={self.middle} and deep={self.deep} must not be negative, and apart={self.apart} at least 1."
            )

    def slots(self, tokens: int) -> int:
        return _budget.slots(tokens, self.budget, self.keep, self.sinks + self.middle, "lm_infinite", _ALWAYS)

    def shortfall(self, tokens: int) -> str:
        return _budget.shortfall(tokens, self.budget, self.keep, self.sinks + self.middle, "lm_infinite", _ALWAYS)

    def reach(self, tokens: int, behind: int = 0) -> int:
        budget = self.slots(tokens - behind)
        far = self._apart(budget) if self.middle else 0
        return min(tokens, max(self._ceiling(budget), far, behind, self.window - 1))  # a piece sees itself whole

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        tokens, device = layer.tokens, layer.keys.device
        first, last = self._between(tokens, budget)
        if self.middle and layer.layer >= self.deep:
            made = {"middle": _unturned(layer, first, last)} if layer.whole and first < last else {}
            return Index(tokens, budget, None, made)
        kept = _ranges.ends(tokens, first, tokens - last, device)
        return Index(tokens, budget, kept.repeat(len(layer.keys), 1))

    def settle(self, indices: Sequence[Index]) -> list[Index]:
        return list(indices)

    def choose(self, index: Index, asked: Asked) -> Choice:
        kv_heads, slots, _ = asked.keys.shape
        device = asked.keys.device
        first, last = self._between(index.tokens, index.budget)
        always = index.stored  # long [kv_heads, always]
        if always is None:
            always = _ranges.ends(index.tokens, first, index.tokens - last, device).expand(kv_heads, -1)
        now = torch.as_tensor(asked.position - asked.padding, device=device)
        furthest = now - self._ceiling(index.budget)
        if always.shape[1] == slots and bool((furthest <= always.min()).all()):
            return EVERYTHING
        lie = always if index.stored is None else torch.arange(slots, device=device)
        chosen = lie.expand(len(asked.rows), kv_heads, -1)
        places = torch.maximum(always, furthest).expand_as(chosen)
        if "middle" in index.tensors:
            best = first + self._best(index.tensors["middle"], asked, self._apart(index.budget))
            chosen = torch.cat((chosen, best), 2)
            places = torch.cat((places, (now - self._apart(index.budget)).expand_as(best)), 2)
        return Choice(chosen, places=places)

    def _ceiling(self, budget: int) -> int:
        return budget if self.ceiling is None else self.ceiling

    def _apart(self, budget: int) -> int:
        return max(1, self._ceiling(budget) // 2) if self.apart is None else self.apart

    def _between(self, tokens: int, budget: int) -> tuple[int, int]:
        """The tokens [first, last) that are not always read."""
        first = min(self.sinks, tokens, budget)
        return first, max(first, tokens - (budget - first - self.middle))

    def _best(self, keys: Tensor, asked: Asked, apart: int) -> Tensor:
        """The ``middle`` of unturned ``keys`` [kv_heads, some, dim] that get most, long [batch, kv_heads, middle]."""
        log = scores(placed(asked, apart), keys, asked.scale, asked.softcap)
        return pooled(log.softmax(-1), asked).topk(min(self.middle, keys.shape[1]), dim=-1).indices.sort(-1).values

    def index_bytes(self, tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> int:
        budget = self.slots(tokens)
        if self.middle:  # of the layers that look for them: the others take less
            first, last = self._between(tokens, budget)
            return kv_heads * (last - first) * dim * itemsize
        return kv_heads * (8 * budget - 2 * (tokens - budget) * dim * itemsize)


def _unturned(layer: LayerKeys, first: int, last: int) -> Tensor:
    """The keys of the tokens [first, last) as if each stood at the beginning of the text, [kv_heads, some, dim]."""
    assert layer.turn is not None
    turned = []
    for at in range(first, last, _PIECE):
        places = torch.arange(at, min(at + _PIECE, last), device=layer.keys.device)
        turned.append(layer.turn(layer.keys[:, at : at + len(places)], (-places).expand(len(layer.keys), -1)))
    return torch.cat(turned, 1)


PLUGIN = LmInfinite
