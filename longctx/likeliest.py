"""The likeliest tokens of rows of logits and their probabilities, without a vocabulary being sorted for them.

Owns the search. Knows no model and no drafter.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WIDE = 2**19  # logits that are widened at once: fresh memory for more costs ten times what is done with them
_GROUP = 128  # neighbouring tokens whose largest stands for them at first


def likeliest(logits: Tensor, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``count`` likeliest tokens by each row of ``logits`` [rows, vocab], or all there are, the likeliest first.

    Tokens and their probabilities, [rows, count] each. Of equally likely ones any may come first, or alone. Where
    logits are not finite, nor are probabilities.
    """
    tokens, chances = [], []
    for some in torch.split(logits, max(1, _WIDE // logits.shape[-1])):
        wide = some.float()
        values, indices = _largest(wide, min(count, wide.shape[-1]))
        tokens.append(indices.cpu().numpy())
        chances.append((values - wide.logsumexp(-1, keepdim=True)).exp().cpu().numpy())
    return np.concatenate(tokens), np.concatenate(chances)


def _largest(wide: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What ``topk`` gives: it looks at every number several times, and at few if groups without any are left out.

    The ``count`` largest stand in the ``count`` groups whose own largest are: each other group has that many above it.
    """
    rows, vocab = wide.shape
    groups = vocab // _GROUP
    if groups <= count:
        return wide.topk(count, -1)
    whole = groups * _GROUP
    best = wide[:, :whole].view(rows, groups, _GROUP).amax(-1).topk(count, -1).indices
    places = (best.unsqueeze(-1) * _GROUP + torch.arange(_GROUP, device=wide.device)).flatten(1)
    rest = torch.arange(whole, vocab, device=wide.device).expand(rows, -1)
    places = torch.cat((places, rest), 1)
    values, at = wide.gather(1, places).topk(count, -1)
    return values, places.gather(1, at)
