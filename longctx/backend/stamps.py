"""When what was found about a model holds no more: a number that changes with its weights, formulas and constants.

Owns the number. Knows no finding.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def stamp(modules: Iterable[nn.Module]) -> int:
    """Another number once a parameter of ``modules`` was replaced, written or moved, or one of them computes otherwise.

    That is by another ``forward``, or, where it has modules inside, with another float among its attributes. What is
    written through ``.data`` or in inference mode is not noticed.
    """
    found: list[object] = []
    for module in modules:
        found.append(type(module).forward)
        if module._modules:
            found += [value for value in vars(module).values() if type(value) is float]
        for weight in module._parameters.values():
            if weight is not None:
                written = 0 if weight.is_inference() else weight._version
                found += (id(weight), weight.dtype, weight.device, written)
    return hash(tuple(found))
