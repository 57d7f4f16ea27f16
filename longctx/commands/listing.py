"""``longctx list``: the methods of every room by name, or one room with options and defaults."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from longctx import plugins
from longctx.commands.screen import Screen
from longctx.errors import UnknownMethod


def show(room: str | None, screen: Screen) -> None:
    """Names alone are read off the files; naming a room imports its methods."""
    if room is None:
        names = {room: plugins.known(room) for room in plugins.ROOMS}
        if screen.json:
            screen.result(names)
        else:
            screen.table([(room, ", ".join(found)) for room, found in names.items() if found])
        return
    if room not in plugins.ROOMS:
        raise UnknownMethod("room", room, list(plugins.ROOMS))
    found = {name: _facts(room, name) for name in plugins.names(room)}
    found |= {word: {"about": about, "options": {}} for word, about in plugins.WORDS.get(room, {}).items()}
    if screen.json:
        screen.result({room: found})
        return
    for name, facts in found.items():
        screen.line(f"{name}: {facts['about']}")
        for option, (kind, default) in facts["options"].items():
            screen.line(f"    {option}={default}  ({kind})")


def _facts(room: str, name: str) -> dict[str, Any]:
    plugin = plugins.plugin(room, name)
    module = inspect.getmodule(plugin)
    about = (inspect.getdoc(module) or "").splitlines()[0] if module else ""
    options = {}
    for option, (kind, default) in plugins.options(room, name).items():
        shown = "required" if default is dataclasses.MISSING else default
        options[option] = (kind, shown if isinstance(shown, (bool, int, float, str, type(None))) else str(shown))
    return {"about": about, "options": options}
