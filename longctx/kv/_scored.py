"""Clusters ranked by somebody else's scores of their keys: a bridge to the presses of kvpress, never importing it.

Owns how a press is asked and how scores of keys become clusters that are read. No plug-in: a scorer has no name here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn, Protocol

import torch
from torch import Tensor

from longctx.errors import BadOption
from longctx.keys import EVERYTHING, Asked, Choice, Index, LayerKeys
from longctx.kv import _budget, _clusters, _looks, _ranges
from longctx.kv._kmeans import spherical


class Scorer(Protocol):
    """What is asked of a press: how much each key matters, [1, kv_heads, tokens], the higher the more."""

    def score(
        self, module: Any, hidden_states: Any, keys: Tensor, values: Tensor, attentions: Any, kwargs: Any
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Scored:
    """At most ``budget`` slots (or the share ``keep``) are read by a KV head, the same whatever is asked.

    Keys lie in clusters as those of ``squeezed`` do. The clusters are read whose keys ``scorer`` scores highest, in the
    ``mean`` or by their best (``max``), until the budget is full; the means of the others count for what they hold, and
    the report estimates and bounds what was not read. ``sinks`` and ``recent`` slots are always read.

    ``scorer`` is a ``ScorerPress`` of kvpress 0.5.5, or anything with its ``score``. It is shown the keys and values of
    one layer [1, kv_heads, tokens, dim], as the model's cache has them, and of ``modules`` that of the layer by its
    number, where they are given. There are no hidden states, no attentions and no arguments of a pass any more: a
    scorer that asks for them gets BadOption, as does one whose scores are no finite number for every key. A press's
    own compression ratio says nothing here. A context of it cannot be saved.
    """

    lossless: ClassVar[bool] = False
    grows: ClassVar[bool] = False
    window: ClassVar[int] = 0

    scorer: Scorer
    budget: int | None = None
    keep: float | None = None
    by: Literal["mean", "max"] = "mean"
    sinks: int = 4
    recent: int = 128
    clusters: float = 0.1
    segment: int = 2048
    iterations: int = 5
    modules: Sequence[Any] = ()

    def __post_init__(self) -> None:
        _budget.check(self.budget, self.keep, "Scored")
        _budget.check_ends(self.sinks, self.recent, "Scored")
        if not callable(getattr(self.scorer, "score", None)):
            raise BadOption(f"{type(self.scorer).__name__} scores no keys: it must have the score of a ScorerPress.")
        if not 0 < self.clusters <= 1 or self.by not in ("mean", "max"):
            raise BadOption(f"clusters={self.clusters} must be above 0 and at most 1, and by={self.by!r} mean or max.")
        if min(self.segment, self.iterations) < 1:
            raise BadOption(f"segment={self.segment} and iterations={self.iterations} must be at least 1.")

    def slots(self, tokens: int) -> int:
        return _budget.slots(tokens, self.budget, self.keep, self.sinks + self.recent, "Scored")

    def shortfall(self, tokens: int) -> str:
        return _budget.shortfall(tokens, self.budget, self.keep, self.sinks + self.recent, "Scored")

    def reach(self, tokens: int, behind: int = 0) -> int:
        return tokens

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        first, last = self.sinks, layer.tokens - self.recent
        stored, found = _clusters.clustered(
            layer.keys, layer.values, first, last, self.clusters, self.segment, self.iterations, spherical
        )
        scores = self._scores(layer).gather(1, stored)[:, first:last]
        found["logs"] = _looks.logs(found["sizes"])
        found["taken"] = self._taken(scores, found["starts"] - first, found["sizes"], budget - self.sinks - self.recent)
        return Index(layer.tokens, budget, stored, found)

    def settle(self, indices: Sequence[Index]) -> list[Index]:
        return list(indices)

    def choose(self, index: Index, asked: Asked) -> Choice:
        own = index.tensors
        look = _looks.every(own)
        taken = own["taken"].expand(len(asked.rows), -1, -1)
        if look.whole(taken):
            return EVERYTHING
        forced = _ranges.ends(index.tokens, self.sinks, self.recent, asked.rows.device)
        slots, counts = _ranges.behind(forced, *_ranges.members(taken, look.starts, look.sizes))
        return Choice(slots, counts, look.left(taken, *look.orders(asked, own["centre"])))

    def index_bytes(self, tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> int:
        found = math.ceil(self.clusters * tokens)
        return kv_heads * (8 * tokens + found * (3 * dim * itemsize + 21))

    def _scores(self, layer: LayerKeys) -> Tensor:
        """The scorer's numbers, float32 [kv_heads, tokens]."""
        name = type(self.scorer).__name__
        module = self.modules[layer.layer] if layer.layer < len(self.modules) else _Absent(name, "the layer's module")
        gone = (_Absent(name, "hidden states"), _Absent(name, "attentions"), _Absent(name, "arguments of a pass"))
        found = self.scorer.score(module, gone[0], layer.keys[None], layer.values[None], gone[1], gone[2])
        if found.shape != (1, *layer.keys.shape[:2]) or not bool(found.isfinite().all()):
            raise BadOption(
                f"{name} gave scores of shape {tuple(found.shape)} for keys [1, kv_heads, tokens, dim] of shape "
                f"{(1, *layer.keys.shape)}: there must be one finite number for every key."
            )
        return found[0].float()

    def _taken(self, scores: Tensor, starts: Tensor, sizes: Tensor, room: int) -> Tensor:
        """The clusters with the best of ``scores`` [kv_heads, slots], within ``room`` slots: bool [kv_heads, clusters].

        Equal ones: the earlier cluster.
        """
        slots = torch.arange(scores.shape[1], device=scores.device).repeat(len(scores), 1)
        cluster = torch.searchsorted(starts + sizes, slots, right=True)  # behind all those that ended before it
        nothing = scores.new_full(sizes.shape, -torch.inf)
        how = "amax" if self.by == "max" else "mean"
        worth = nothing.scatter_reduce(1, cluster, scores, how, include_self=False)
        order = worth.argsort(dim=-1, descending=True, stable=True)
        count = sizes.gather(-1, order)
        wanted = (count.cumsum(-1) <= room) & (count > 0)
        return torch.zeros_like(wanted).scatter(-1, order, wanted)


class _Absent:
    """Stands where a press is given something that a context no longer has, and says so when it is looked at."""

    __slots__ = ("_scorer", "_what")

    def __init__(self, scorer: str, what: str) -> None:
        self._scorer, self._what = scorer, what

    def __getattr__(self, name: str) -> NoReturn:
        self._refuse()

    def __getitem__(self, key: object) -> NoReturn:
        self._refuse()

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        self._refuse()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise BadOption("the scorer looks at what is not kept of a context, which is more than keys and values.")

    def _refuse(self) -> NoReturn:
        raise BadOption(
            f"{self._scorer} asks for {self._what}, and a context keeps keys and values only. Take a scorer that looks "
            f"at those, such as KnormPress, KeyDiffPress or LagKVPress; modules= gives it the layers' modules."
        )
