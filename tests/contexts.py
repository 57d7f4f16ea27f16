"""The text, the policy and the options with which compressed contexts are tested."""

from __future__ import annotations

from typing import Any

import torch

import longctx
import longctx.kv

IDS = torch.randint(4, 470, (1, 90), generator=torch.Generator().manual_seed(0))
CONTEXT = 70
SQUEEZED = "squeezed:budget=40,sinks=2,recent=8,clusters=0.2"
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}


def compressed(model: Any, policy: str = "full") -> longctx.kv.CompressedContext:
    return longctx.kv.compress(model, IDS[:, :CONTEXT], policy)
