"""The command line: names, flags and exit codes. What a command does is in ``commands``, imported when it is called.

Whatever goes wrong below is turned into a message and an exit code by ``commands.guard``. Importing this loads neither
torch nor numpy.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from longctx.commands import cache_app, eval_flags, flags, needle_app
from longctx.commands.begin import begin as _begin
from longctx.commands.begin import one as _one
from longctx.commands.guard import Guarded
from longctx.errors import Interrupted

app = typer.Typer(
    cls=Guarded,
    callback=flags.root,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Ask a model about documents far longer than its window. Exit codes: 0 ok, 1 error, 2 usage, 3 does not fit, "
    "4 damaged file, 130 stopped.",
)
app.add_typer(needle_app.app, name="needle")
app.add_typer(cache_app.app, name="cache")


@app.command()
def ask(
    words: flags.Words,
    questions: flags.Questions = None,
    out: flags.Answers = None,
    model: flags.Model = None,
    selector: flags.Selector = None,
    budget: flags.Budget = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    max_new_tokens: flags.MaxNewTokens = None,
    temperature: flags.Temperature = None,
    seed: flags.Seed = None,
    drafters: flags.Drafters = None,
    controller: flags.Controller = None,
    cache: flags.Cache = False,
    segment_kv: flags.CachedKV = "none",
    kv: flags.KV = None,
    kv_partial: flags.KVPartial = None,
    config: flags.Config = None,
    plot: flags.Plot = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Answer a question about files, with citations into them."""
    given = dict(
        model=model, selector=selector, budget=budget, dtype=dtype, device=device, max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed, drafters=drafters, controller=controller, kv=kv, kv_partial=kv_partial,
    )  # fmt: skip
    settings, screen = _begin(config, given, json, quiet, verbose)
    if (questions is None) != (out is None):
        raise typer.BadParameter("--questions and --out go together.")
    command = importlib.import_module("longctx.commands.ask")
    if questions is None:
        command.ask(words, settings, screen, plot, command.cached(cache, segment_kv))
    elif plot is not None or cache or segment_kv != "none":
        raise typer.BadParameter("--plot, --cache and --segment-kv are for one question.")
    else:
        command.ask_many(words, questions, out, settings, screen)


@app.command()
def select(
    words: flags.Words,
    model: flags.Model = None,
    selector: flags.Selector = None,
    budget: flags.Budget = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    cache: flags.Cache = False,
    segment_kv: flags.CachedKV = "none",
    config: flags.Config = None,
    plot: flags.Plot = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Show the parts of the files that matter for a question, word for word, for any engine."""
    given = dict(model=model, selector=selector, budget=budget, dtype=dtype, device=device)
    settings, screen = _begin(config, given, json, quiet, verbose)
    command = importlib.import_module("longctx.commands.ask")
    command.select(words, settings, screen, plot, command.cached(cache, segment_kv))


@app.command("compile")
def compile_(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="BOOK.lctx", help="The folder to make or renew.")],
    paths: Annotated[list[str] | None, typer.Argument(metavar="FILE...", show_default=False)] = None,
    add: Annotated[bool, typer.Option("--add", help="Keep the documents that are in it already.")] = False,
    remove: Annotated[list[str] | None, typer.Option(metavar="DOCUMENT", help="Leave this one out.")] = None,
    segment_kv: flags.SegmentKV = None,
    segment_form: flags.SegmentForm = None,
    model: flags.Model = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Compile files once, for any number of questions later. Goes on where it was interrupted."""
    settings, screen = _begin(config, dict(model=model, dtype=dtype, device=device), json, quiet, verbose)
    command = importlib.import_module("longctx.commands.books")
    command.compile_(paths or [], out, segment_kv, segment_form, add, remove or [], settings, screen)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="BOOK.lctx")],
    verify: Annotated[bool, typer.Option("--verify", help="Check every file. Exit code 4: one is damaged.")] = False,
    model: flags.NoModel = None,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Show what a compiled document holds and what it was made with. Loads no model."""
    _, screen = _begin(config, dict(model=model), json, quiet, False)
    importlib.import_module("longctx.commands.books").inspect(path, verify, screen)


@app.command()
def generate(
    prompt: Annotated[Path, typer.Option(metavar="FILE", help="The text to go on from, as one turn of a user.")],
    name: flags.ModelName = None,
    model: flags.Model = None,
    document: Annotated[Path | None, typer.Option(metavar="FILE", help="What else may be copied.")] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Ends the text; may be given again.")] = None,
    drafters: flags.Drafters = None,
    controller: flags.Controller = None,
    max_new_tokens: flags.MaxNewTokens = None,
    temperature: flags.Temperature = None,
    seed: flags.Seed = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Say what a model says to a prompt, in fewer passes: drafts change the speed and nothing else."""
    given = dict(
        model=_one(name, model), drafters=drafters, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
        dtype=dtype, device=device, controller=controller,
    )  # fmt: skip
    settings, screen = _begin(config, given, json, quiet, verbose)
    importlib.import_module("longctx.commands.generate").generate(prompt, document, stop or [], settings, screen)


@app.command()
def calibrate(
    name: flags.ModelName = None,
    model: flags.Model = None,
    seed: Annotated[int, typer.Option(help="Of the planted facts.")] = 0,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Find the heads of a model that find facts, and what it says after single tokens, for later questions."""
    given = dict(model=_one(name, model), dtype=dtype, device=device)
    settings, screen = _begin(config, given, json, quiet, verbose)
    importlib.import_module("longctx.commands.models").calibrate(settings, screen, seed)


@app.command()
def doctor(
    name: flags.ModelName = None,
    model: flags.Model = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    trial: flags.Trial = False,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Say what a model is made of, and what is possible with it and why not."""
    given = dict(model=_one(name, model), dtype=dtype, device=device)
    settings, screen = _begin(config, given, json, quiet, verbose)
    importlib.import_module("longctx.commands.models").doctor(settings, screen, trial)


@app.command()
def plan(
    tokens: flags.Tokens,
    name: flags.ModelName = None,
    model: flags.Model = None,
    selector: flags.Selector = None,
    budget: flags.Budget = None,
    max_new_tokens: flags.MaxNewTokens = None,
    kv: flags.KV = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Predict the memory that asking about a text takes, before anything is loaded. Exit code 3: it does not fit."""
    given = dict(model=_one(name, model), selector=selector, budget=budget, dtype=dtype, device=device, kv=kv,
                 max_new_tokens=max_new_tokens)  # fmt: skip
    settings, screen = _begin(config, given, json, quiet, verbose)
    importlib.import_module("longctx.commands.plan").show(tokens, settings, screen)


@app.command("eval")
def evaluate(
    suite: eval_flags.Suite = "",
    data: eval_flags.Data = None,
    out: eval_flags.Out = flags.RESULTS,
    sample: eval_flags.Sample = 100,
    sets: eval_flags.Sets = "",
    full_sample: eval_flags.FullSample = 20,
    paper_sample: eval_flags.PaperSample = 0,
    stored: eval_flags.Stored = "",
    systems: eval_flags.Systems = None,
    budgets: eval_flags.Budgets = "",
    max_new_tokens: eval_flags.MaxNewTokens = None,
    seed: eval_flags.Seed = None,
    keep_answers: eval_flags.KeepAnswers = False,
    dry_run: eval_flags.DryRun = False,
    names: eval_flags.Names = False,
    model: flags.Model = None,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Measure selectors on data with known evidence, or answers to questions about long documents."""
    given = dict(
        sets=sets, full_sample=full_sample, paper_sample=paper_sample, stored=stored, systems=systems or None,
        budgets=budgets, max_new_tokens=max_new_tokens, seed=seed, keep_answers=keep_answers, dry_run=dry_run,
    )  # fmt: skip
    settings, screen = _begin(config, dict(model=model), json, quiet, verbose)
    command = importlib.import_module("longctx.commands.jobs")
    if names:
        command.list_suites(screen)
    else:
        grid = eval_flags.grid(suite, given, config)
        command.evaluate(suite, eval_flags.folder(data), out, sample, grid, settings, screen)


@app.command()
def bench(
    name: flags.Bench,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Rows are appended here.")] = flags.RESULTS,
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="Prompts or a text; kv: a folder.")] = None,
    sets: flags.Sets = None,
    model: flags.Model = None,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Measure speed against the stock model, or a grid of methods and peers on the same questions."""
    settings, screen = _begin(config, dict(model=model), json, quiet, verbose)
    importlib.import_module("longctx.commands.jobs").bench(name, out, data, settings, screen, sets or [])


@app.command("list")
def list_(
    room: Annotated[str | None, typer.Argument(help="One room with the options of its methods.")] = None,
    model: flags.NoModel = None,
    config: flags.Config = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """List every method there is."""
    _, screen = _begin(config, dict(model=model), json, quiet, False)
    importlib.import_module("longctx.commands.listing").show(room, screen)


def main() -> None:
    """The entry point of the command ``longctx``."""
    try:
        app(prog_name="longctx")
    except KeyboardInterrupt:  # before or after a command
        sys.exit(Interrupted.exit_code)


if __name__ == "__main__":
    main()
