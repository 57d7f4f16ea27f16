"""How every command begins: libraries told to be silent, settings merged, a screen to speak on. Loads nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def begin(config: Path | None, given: dict[str, Any], json: bool, quiet: bool, verbose: bool) -> tuple[Any, Any]:
    """Settings and screen of a command, after the libraries below were told to be silent."""
    from longctx.commands.process import prepare
    from longctx.commands.screen import Screen
    from longctx.commands.settings import merge

    prepare(verbose)
    return merge(config, given), Screen(json, quiet)
