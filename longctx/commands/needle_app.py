"""The flags of ``longctx needle`` and ``longctx needle rebuild``; what they do is in ``needle``, loaded when called."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from longctx.commands import flags
from longctx.commands.begin import begin

app = typer.Typer(pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def needle(
    context: typer.Context,
    lengths: Annotated[str, typer.Option(metavar="4k,16k", help="Tokens of the texts, of the model under test.")] = "",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Rows, table, picture and page; goes on where it ended.")
    ] = Path("needle"),
    task: Annotated[
        list[str] | None, typer.Option(help=r"May be given often; see `longctx list needles` \[single].")
    ] = None,
    depths: Annotated[int, typer.Option(metavar="N", help="Places, from the beginning to the end of a text.")] = 5,
    seeds: Annotated[str, typer.Option(metavar="0,1", help="Each draws other facts.")] = "0",
    distractors: Annotated[
        int | None, typer.Option(metavar="N", help=r"Facts of the same form beside each \[as the task has it].")
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="One text for the facts of all depths.")] = False,
    haystack: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help=r"Files or folders; may be given often \[the texts of Python]."),
    ] = None,
    selector: Annotated[
        list[str] | None, typer.Option(help="Under test; may be given often; see `longctx list selectors`.")
    ] = None,
    plain: Annotated[
        list[str] | None, typer.Option(help="Under test: the model's own generate, full or truncated.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Under test: a server of the OpenAI chat protocol.")
    ] = None,
    endpoint_model: Annotated[str, typer.Option(metavar="NAME", help="What the server calls its model.")] = "",
    endpoint_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.001, help="Of one try, to the last byte.")
    ] = 600.0,
    endpoint_retries: Annotated[int, typer.Option(metavar="N", min=0)] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show tokens, memory and time, and stop.")] = False,
    model: flags.Model = None,
    budget: flags.Budget = None,
    max_new_tokens: flags.MaxNewTokens = None,
    kv: flags.KV = None,
    drafters: flags.Drafters = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Hide facts in long texts and ask for them: what was kept, what was said, at which length and depth."""
    if context.invoked_subcommand is not None:
        _check_none_in_front(context)
        return
    if not lengths:
        raise typer.BadParameter("--lengths is needed, such as --lengths 4k,16k.")
    given = dict(
        model=model, budget=budget, max_new_tokens=max_new_tokens, kv=kv, drafters=drafters, dtype=dtype, device=device
    )
    settings, screen = begin(config, given, json, quiet, verbose)
    command = importlib.import_module("longctx.commands.needle")
    asked = command.Asked(
        lengths=lengths, tasks=task or ["single"], depths=depths, seeds=seeds, distractors=distractors,
        together=together, haystack=haystack or [], plain=plain or [], endpoint=endpoint, out=out, dry_run=dry_run,
        selectors=selector or ([] if plain or endpoint else [settings.selector]), endpoint_model=endpoint_model,
        endpoint_timeout=endpoint_timeout, endpoint_retries=endpoint_retries,
    )  # fmt: skip
    command.run(asked, settings, screen)


@app.command()
def rebuild(
    rows: Annotated[Path, typer.Argument(metavar="ROWS", help="A needle.jsonl.")],
    row: Annotated[int, typer.Option(metavar="N", help="Counted from 1.")],
    haystack: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="The files the rows were made with.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="The whole text with the question.")] = False,
    model: flags.NoModel = None,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Print what the system of a row was given, made again from its recipe and compared by its hash."""
    _, screen = begin(config, dict(model=model), json, quiet, verbose)
    importlib.import_module("longctx.commands.needle").rebuild(rows, row, haystack or [], whole, screen)


def _check_none_in_front(context: typer.Context) -> None:
    """Raises BadParameter for flags that stand before the name of a command, which would not see them."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise typer.BadParameter(f"{named} must stand behind `{context.invoked_subcommand}`, if it has them.")
