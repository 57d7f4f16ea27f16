"""What requests of a model hand on to the next: what passes take, and which claims of drafters never came true.

Owns the memos, and when a request may make passes to find out. Knows no controller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from longctx.decoding.claims import Refuted
from longctx.decoding.costs import RowCosts
from longctx.protocols import Target

# Two counts of rows, twice each, take what about seven tokens do, and a first draft measures as much by itself: only
# where an answer may be long does that not matter.
_LONG = 512  # new tokens

# memos, not state: how much is drafted follows the clock in any case, and no token follows how much is drafted; where a
# rule draws by the drafts, their law does not
_KNOWN: WeakKeyDictionary[Any, dict[tuple[Any, ...], RowCosts]] = WeakKeyDictionary()
_REFUTED: WeakKeyDictionary[Any, dict[tuple[str, ...], Refuted]] = WeakKeyDictionary()  # by the drafters' names


def costs_of(model: Any, target: Target) -> RowCosts:
    """The costs of passes of ``model`` where it is now, for all requests that have these passes for themselves."""
    where = (target.rows, target.watched, model.device, model.dtype, torch.get_num_threads())
    return _KNOWN.setdefault(model, {}).setdefault(where, RowCosts())


def refuted_of(model: Any, drafters: Sequence[str]) -> Refuted:
    """The claims of drafters of these names, in this order, that next to never came true in requests of ``model``.

    Drafters of one name and other options are not told apart: a doubt that is wrong ends with the first hit.
    """
    return _REFUTED.setdefault(model, {}).setdefault(tuple(drafters), Refuted())


def worth_timing(max_new_tokens: int) -> bool:
    """Whether an answer of ``max_new_tokens`` may make passes for their time alone."""
    return max_new_tokens >= _LONG
