"""What a target says of a prompt, a tree behind it and the token after a kept path, for tests of roads and kernels."""

from __future__ import annotations

from typing import Any

import torch

from longctx.backend.target import RowTarget

PROMPT = [7, 300, 41, 5, 220, 99, 18, 77]
TREE = ([30, 31, 32, 33, 34, 35], [-1, 0, 1, 1, 0, 4])


def scored(model: Any) -> list[torch.Tensor]:
    """Logits of the prompt's last token, of every row of the tree, and of one more behind its path 30, 34, 35."""
    made = RowTarget(model, 40)
    found = [made.score(PROMPT, range(-1, len(PROMPT) - 1), 1)]
    made.commit(range(len(PROMPT)))
    tokens, parents = TREE
    found.append(made.score(tokens, parents, len(tokens)))
    made.commit([0, 4, 5])
    return [*found, made.score([36], [-1], 1)]
