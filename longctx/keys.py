"""The nouns of bounded caches: what a KV policy is told of a layer, what a pass asks of it, what it chooses to read.

Owns data and its invariants. Knows no model and no method. Loads no torch: tensors are named in annotations only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Turn = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True, slots=True)
class LayerKeys:
    """The keys and values that one layer holds of a context, as the model's cache holds them: rotated and normalised.

    ``queries`` are those of the last tokens of the context, rotated too. ``positions`` are the tokens that the keys are
    of, ascending; None: 0, 1, 2 … ``turn(keys, by)`` gives keys [..., tokens, dim] that stand ``by`` [..., tokens]
    positions further on; only growing policies have it. ``whole`` is False while a context that grows is still read.
    """

    layer: int
    keys: Tensor  # [kv_heads, tokens, dim]
    values: Tensor  # [kv_heads, tokens, dim]
    queries: Tensor  # [heads, window, dim]
    scale: float
    softcap: float | None = None
    turn: Turn | None = None
    positions: Tensor | None = None  # long [kv_heads, tokens]
    whole: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of the context up to and with the last key."""
        return int(self.keys.shape[1]) if self.positions is None else int(self.positions[0, -1]) + 1


@dataclass(frozen=True, slots=True)
class Index:
    """What a policy keeps of a layer for the choices of all later passes.

    ``stored`` are the tokens whose keys and values are kept, in the order of their slots; None: all, as they were.
    ``tensors`` are the policy's own; everything in them is saved and loaded with the context.
    """

    tokens: int
    budget: int
    stored: Tensor | None = None  # long [kv_heads, slots]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """The queries of one pass in one layer; rows of one KV head stand together, its query heads one after another.

    ``position`` counts the slots before the last row; ``padding`` of them hold no token and have no position. ``keys``
    are those of the stored slots, for policies that look at them all. ``weights`` say how much each row counts in a
    choice that rows share; None: all the same. ``groups`` query heads look at each KV head.
    """

    rows: Tensor  # [batch, kv_heads, groups * queries, dim]
    keys: Tensor  # [kv_heads, slots, dim]
    scale: float
    softcap: float | None
    position: int
    turn: Turn | None = None
    weights: Tensor | None = None  # float32 [batch, 1, groups * queries, 1]
    padding: Tensor | int = 0  # long [batch, 1, 1]
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Unread:
    """What is thought of the keys that are not read: their part of the softmax's denominator, and what they would say.

    ``out`` is None where the answer does not take them into account. ``wide`` is an estimate of the same that is off by
    more equal amounts from query to query, on which a bound can stand closer; None: ``log`` itself.
    """

    log: Tensor  # float32 [batch, kv_heads, rows]
    out: Tensor | None = None  # float32 [batch, kv_heads, rows, dim]
    wide: Tensor | None = None  # float32 [batch, kv_heads, rows]

    @property
    def said(self) -> tuple[Tensor, Tensor] | None:
        """What the answer takes into account, and the logarithm of its weight."""
        return None if self.out is None else (self.out, self.log)

    @property
    def base(self) -> Tensor:
        """What a bound is measured from."""
        return self.log if self.wide is None else self.wide


@dataclass(frozen=True, slots=True)
class Choice:
    """The slots that one pass reads, for every KV head.

    ``slots`` None: all that are stored. Where KV heads read different numbers of slots, ``counts`` says how many, which
    are each head's first; behind them stands any slot. ``places`` are the positions where the chosen keys shall seem to
    stand; None: where they are.
    """

    slots: Tensor | None = None  # long [batch, kv_heads, chosen]
    counts: Tensor | None = None  # long [batch, kv_heads]
    unread: Unread | None = None
    places: Tensor | None = None  # long [batch, kv_heads, chosen]

    @property
    def read(self) -> Tensor | None:
        """Which of the slots are real, bool [batch, kv_heads, chosen]; None: all."""
        if self.slots is None or self.counts is None:
            return None
        return self.slots.new_ones(self.slots.shape[-1]).cumsum(-1) <= self.counts.unsqueeze(-1)


EVERYTHING = Choice()


@dataclass(frozen=True, slots=True)
class KVReport:
    """What the passes over a bounded cache read, over all layers, KV heads and passes.

    ``read_share`` counts keys read exactly over tokens of the context. ``unread_share`` is the estimated share of the
    attention that went to keys not read, and ``unread_bound`` what it is below for 95 % of queries, as measured on the
    last ones of the context and on fragments of it that are read again behind it.
    ``true_unread_share`` is the measured one in the ``audited`` passes, and ``above_bound`` the share of rows in them
    that had more than their bound. None where a policy estimates nothing, or nothing was audited.
    """

    passes: int = 0
    context_tokens: int = 0
    read_keys: float = 0.0
    read_share: float = 1.0
    unread_share: float | None = None
    unread_bound: float | None = None
    audited: int = 0
    true_unread_share: float | None = None
    above_bound: float | None = None
