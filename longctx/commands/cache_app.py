"""The flags of ``longctx cache``; what its commands do is in ``cache``, loaded when called."""

from __future__ import annotations

import importlib

import typer

from longctx.commands import flags
from longctx.commands.begin import begin

app = typer.Typer(no_args_is_help=True, help="The compiled forms of files that `ask --cache` keeps.")


@app.command("list")
def cache_list(
    model: flags.NoModel = None,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """List what `ask --cache` has kept, the latest used first."""
    settings, screen = begin(config, dict(model=model), json, quiet, False)
    importlib.import_module("longctx.commands.cache").show(settings, screen)


@app.command("clear")
def cache_clear(
    model: flags.NoModel = None,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Remove all of it."""
    settings, screen = begin(config, dict(model=model), json, quiet, False)
    importlib.import_module("longctx.commands.cache").clear(settings, screen)
