"""A module around a model, as peft's are."""

from __future__ import annotations

from typing import Any

import torch


class Wrapper(torch.nn.Module):
    """Hands everything on to a model of its own: passes, unknown names, and ``generate`` too, as peft's models do."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args: Any, **given: Any) -> Any:
        return self.inner(*args, **given)

    def generate(self, *args: Any, **given: Any) -> Any:
        return self.inner.generate(*args, **given)
