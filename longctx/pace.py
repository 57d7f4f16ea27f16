"""What passes of a model take, kept from one request to the next, and when a request may make passes to find out.

Owns the memo. Knows no controller.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from longctx.decoding.costs import RowCosts
from longctx.drafts import Kind

# Two counts of rows, twice each, take what about seven tokens do, and a first draft measures as much by itself: only
# where an answer may be long does that not matter.
_LONG = 512  # new tokens

# a memo, not state: how much is drafted follows the clock in any case, and no token follows how much is drafted
_KNOWN: WeakKeyDictionary[Any, dict[tuple[Any, ...], RowCosts]] = WeakKeyDictionary()


def costs_of(model: Any, rows: Kind) -> RowCosts:
    """The costs of passes of ``model`` where it is now, for all requests that have these passes for themselves."""
    where = (rows, model.device, model.dtype, torch.get_num_threads())
    return _KNOWN.setdefault(model, {}).setdefault(where, RowCosts())


def worth_timing(max_new_tokens: int) -> bool:
    """Whether an answer of ``max_new_tokens`` may make passes for their time alone."""
    return max_new_tokens >= _LONG
