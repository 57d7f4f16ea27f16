"""What the model says after each node of one verified tree, with history-dependent processors applied along its path.

Owns the rows of logits of one round. Knows no rule: what is done with a law is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from longctx.decoding.tree import TokenTree
from longctx.errors import ModelError

Processor = Callable[[Tensor, Tensor], Tensor]
"""Changes logits [1, vocab] of the token after ids [1, tokens], as Hugging Face's logits processors do."""


@dataclass(frozen=True, slots=True)
class Temperature:
    """A processor that divides logits by ``value``, above 0; the likeliest stays at 0, so that nothing overflows."""

    value: float

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        return (logits - logits.max(-1, keepdim=True).values) / self.value


class Laws:
    """The laws at the anchor, node -1, and at every node of ``tree``; a processor sees the committed ids and the path.

    ``ids`` are the committed ones [1, tokens]; only processors need them. Raises ModelError where the numbers of a node
    that is asked for are not finite.
    """

    def __init__(
        self,
        logits: Tensor,  # [1 + nodes, vocab], the anchor first
        tree: TokenTree,
        length: int,
        ids: Tensor | None = None,
        processors: Sequence[Processor] = (),
    ) -> None:
        self._rows, self._tree, self._length = logits, tree, length
        self._ids, self._processors = ids, processors
        self._processed: dict[int, Tensor] = {}

    def position(self, node: int) -> int:
        """The absolute position of the token that the law at ``node`` is about."""
        return self._length + (0 if node < 0 else int(self._tree.depths[node]))

    def best(self, node: int) -> int:
        """The likeliest token."""
        if self._processors:
            return int(self.logits(node).argmax())
        value, index = self._top(node)
        self._check(value, node)
        return index

    def logits(self, node: int) -> Tensor:
        """Processed float32 logits [vocab]."""
        if node not in self._processed:
            row = self._rows[node + 1].float()
            self._check(float(row.max()), node)
            if self._ids is not None:
                path = torch.as_tensor(self._tree.tokens[self._tree.path(node)], device=self._ids.device)
                ids = torch.cat((self._ids, path[None]), 1)
                row = row[None].clone()
                for processor in self._processors:
                    row = processor(ids, row)
                row = row[0]
            self._processed[node] = row
        return self._processed[node]

    def _top(self, node: int) -> tuple[float, int]:
        if self._rows.device.type == "cpu":  # most rows are never asked for; elsewhere to ask once is cheaper
            row = self._rows[node + 1]
            # NumPy's search takes a tenth of PyTorch's time; the first of several, or of what is no number, in both
            numbers = (row if row.dtype == torch.float64 else row.float()).numpy()
            index = int(numbers.argmax())
            return float(numbers[index]), index
        return self._tops[0][node + 1], self._tops[1][node + 1]

    @cached_property
    def _tops(self) -> tuple[list[float], list[int]]:
        values, indices = self._rows.max(-1)  # as it comes: a wider format would order no two of them otherwise
        return values.tolist(), indices.tolist()

    def _check(self, top: float, node: int) -> None:
        if not abs(top) < float("inf"):  # NaN where any is NaN
            raise ModelError(
                f"the model's prediction at position {self.position(node)} is not finite. Load it in float32 or "
                "bfloat16."
            )
