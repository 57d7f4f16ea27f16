"""When what was found about a model holds no more: a number that changes with its weights, formulas and constants.

Owns the number, what hooks a model carries, and the walk through it that every pass makes. Knows no finding.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

_ADAPTERS = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")  # at work, and how strong, by peft


def modules_of(model: nn.Module) -> list[nn.Module]:
    """All modules of ``model``, itself the first, each once; in less than half the time of its own walk."""
    found, known = [model], {model}
    for module in found:
        for part in module._modules.values():
            if part is not None and part not in known:
                known.add(part)
                found.append(part)
    return found


def hooked(modules: Iterable[nn.Module]) -> str:
    """What makes calling one of ``modules`` do more than its class says; empty where nothing does.

    As with ``hooks_of``, this library's own hooks do not count.
    """
    return "modules of the model carry hooks or a forward of their own, or all modules do" if hooks_of(modules) else ""


def hooks_of(modules: Iterable[nn.Module]) -> tuple[object, ...]:
    """Equal as long as ``modules`` carry the same hooks and forwards of their own; this library's own do not count.

    Those change nothing but passes over its own caches. A hook that comes to do something else is not noticed.
    """
    tables = [(nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)]
    found: list[object] = []
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks:
            tables.append((module._forward_hooks, module._forward_pre_hooks))
        if "forward" in vars(module):
            found.append(id(vars(module)["forward"]))
    # numbers of hooks are never given twice, addresses are
    found += [
        number
        for table in tables
        for hooks in table
        for number, hook in hooks.items()
        if not str(getattr(hook, "__module__", "")).startswith("longctx.backend.")
    ]
    return tuple(found)


def stamp(modules: Iterable[nn.Module]) -> int:
    """Another number once a parameter of ``modules`` was replaced, written or moved, or one of them computes otherwise.

    That is by another ``forward``, activation or adapter, or with another float among its attributes; linear layers
    have none of these.
    What is written through ``.data`` or in inference mode is not noticed.
    """
    found: list[object] = []
    for module in modules:
        found.append(type(module).forward)
        if module._modules or len(module._parameters) < 2:
            own = vars(module)
            # as text: -1.0 and -2.0 have one hash
            found += [float.hex(value) for value in own.values() if isinstance(value, float)]
            found.append(id(own.get("act_fn")))
            found += adapters_of(module)
        for weight in module._parameters.values():
            if weight is not None:
                written = 0 if weight.is_inference() else weight._version
                found += (id(weight), weight.dtype, weight.device, written)
    return hash(tuple(found))


def adapters_of(module: nn.Module) -> list[str]:
    """Which adapters are at work in a layer of peft's, and how strongly; nothing in all other modules."""
    own = vars(module)
    if not any(name in own for name in _ADAPTERS[:2]):
        return []
    return [f"{name}={own[name]}" for name in _ADAPTERS if name in own]
