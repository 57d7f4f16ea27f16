"""How every command begins: libraries told to be silent, settings merged, a screen to speak on. Loads nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def begin(config: Path | None, given: dict[str, Any], json: bool, quiet: bool, verbose: bool) -> tuple[Any, Any]:
    """Settings and screen of a command, after the libraries below were told to be silent."""
    from longctx.commands.process import prepare
    from longctx.commands.screen import Screen
    from longctx.commands.settings import merge

    prepare(verbose)
    return merge(config, given), Screen(json, quiet)


def one(name: str | None, model: str | None) -> str | None:
    """The model named by the argument or the flag."""
    if name is not None and model is not None and name != model:
        raise typer.BadParameter(f"the model is named twice: {name} and {model}.")
    return name if name is not None else model
