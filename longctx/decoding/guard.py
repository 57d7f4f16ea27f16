"""What a drafter may get wrong without harm: whatever it raises has its name, and what is no draft goes no further.

Knows drafts only.
"""

from __future__ import annotations

from types import TracebackType

import numpy as np

from longctx.drafts import Draft, Draw
from longctx.errors import DraftError, LongctxError

_NEAR = 5e-3  # of the sum of a law: many small numbers in formats of 16 bits add up to no better


class Guard:
    """Turns whatever a drafter raises into a DraftError: a plug-in may fail in any way."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, LongctxError):
            raise DraftError(
                f"the drafter {self.name!r} failed ({type(error).__name__}: {error}). Leave it out of drafters=; the "
                "tokens so far stand."
            ) from error


def checked(draft: Draft) -> Draft:
    """``draft`` where its arrays agree. Raises ValueError otherwise."""
    nodes = len(draft.tokens)
    whole = {"tokens": draft.tokens, "parents": draft.parents}
    if draft.origins is not None:
        whole["origins"] = draft.origins
    shapes = {name: array.shape for name, array in {**whole, "values": draft.values}.items()}
    if any(shape != (nodes,) for shape in shapes.values()):
        raise ValueError(f"a draft needs one token, parent, value and origin a node, not {shapes}")
    for name, array in whole.items():
        if nodes and not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} must be whole numbers, not {array.dtype}")
    if not np.isfinite(draft.values).all():
        raise ValueError("every node's value must be a finite number")
    if any(not -1 <= parent < node for node, parent in enumerate(draft.parents.tolist())):
        raise ValueError("every node's parent must be -1 or an earlier node")
    for draw in draft.draws:
        _check(draw, draft)
    return draft


def _check(draw: Draw, draft: Draft) -> None:
    if not 0 <= draw.node < len(draft):
        raise ValueError(f"node {draw.node} was drawn, and there are {len(draft)} nodes")
    whole = draw.ids.ndim == 1 and np.issubdtype(draw.ids.dtype, np.integer)
    if not whole or draw.ids.shape != draw.probabilities.shape:
        raise ValueError(f"the law that node {draw.node} was drawn from needs one probability a token")
    if len(np.unique(draw.ids)) < len(draw.ids) or not (draw.probabilities >= 0).all():
        raise ValueError(f"the law that node {draw.node} was drawn from names a token twice or is no law")
    if not abs(float(draw.probabilities.sum()) - 1) <= _NEAR:
        raise ValueError(
            f"the law that node {draw.node} was drawn from sums to {draw.probabilities.sum():.4g}, not to 1: a law "
            "that was cut is drawn from anew"
        )
    if not draw.probabilities[draw.ids == draft.tokens[draw.node]].sum() > 0:
        raise ValueError(f"node {draw.node} cannot have been drawn: its token has no probability")
