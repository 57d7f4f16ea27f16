"""The flags that several commands share, spelled once. Knows their names and help, not what they do.

A help text is markup of rich: a bracket before a letter is written ``\\[``, or it would be taken for a style.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longctx import __version__
from longctx.commands.settings import count


def _count(text: str | int) -> int:
    try:
        return text if isinstance(text, int) else count(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


RESULTS = Path("results")  # where the rows of eval and bench go

_READING = "Reading"
_ANSWERING = "Answering"
_TALK = "Output"

Words = Annotated[list[str], typer.Argument(metavar='FILE... "QUESTION"', show_default=False)]
Model = Annotated[str | None, typer.Option("--model", "-m", help="A hub id, a folder, or 'embedded' (the default).")]
ModelName = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A hub id, a folder, or 'embedded'.")]
NoModel = Annotated[str | None, typer.Option("--model", "-m", hidden=True)]  # taken by the commands that load none
Questions = Annotated[
    Path | None, typer.Option(metavar="FILE.jsonl", help="Many questions: all words are files then. Needs --out.")
]
Answers = Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="One answer a row; goes on where it ended.")]
Config = Annotated[Path | None, typer.Option(help="A TOML file with any of these settings.", metavar="longctx.toml")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=_READING)]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=_READING)]
Budget = Annotated[
    int | None,
    typer.Option(parser=_count, metavar="TOKENS", help="Tokens of text to keep [2048].", rich_help_panel=_READING),
]
Selector = Annotated[
    str | None, typer.Option(help="name or name:option=value; see `longctx list`.", rich_help_panel=_READING)
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(parser=_count, metavar="TOKENS", help="Longest answer [128].", rich_help_panel=_ANSWERING),
]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token [0].", rich_help_panel=_ANSWERING)]
Drafters = Annotated[
    str | None,
    typer.Option(help="auto, none, or names: document+ngram; see `longctx list`.", rich_help_panel=_ANSWERING),
]
Controller = Annotated[
    str | None,
    typer.Option(help=r"How much is drafted: \[goodput], or another; see `longctx list`.", rich_help_panel=_ANSWERING),
]
KV = Annotated[
    str | None,
    typer.Option(
        "--kv", help="none, or a policy: squeezed:keep=0.125; see `longctx list`.", rich_help_panel=_ANSWERING
    ),
]
KVPartial = Annotated[
    bool | None,
    typer.Option(
        "--kv-partial", help="With --kv: layers that keep no keys are left as they are.", rich_help_panel=_ANSWERING
    ),
]
Seed = Annotated[int | None, typer.Option(help="Makes a temperature repeatable.", rich_help_panel=_ANSWERING)]
Tokens = Annotated[int, typer.Option("--tokens", parser=_count, metavar="N", help="Length of the text: 100k, 1M.")]
SegmentKV = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help=r"Keys and values of segments: auto, none, summary, disk or ram \[auto].",
        rich_help_panel=_READING,
    ),
]
Bench = Annotated[
    str, typer.Argument(metavar="NAME|GRID.toml", help="compiled, copies, kv, reading, speculation, or a grid.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A setting of the benchmark; may be given often, for a list of names once with each.",
    ),
]
Cache = Annotated[
    bool,
    typer.Option("--cache", help="Keep the compiled form for the next question.", rich_help_panel=_READING),
]
CachedKV = Annotated[
    str,
    typer.Option(
        "--segment-kv", metavar="WHERE", help="With --cache: none, summary, disk or ram.", rich_help_panel=_READING
    ),
]
SegmentForm = Annotated[
    str | None, typer.Option(metavar="FORM", help=r"exact, or int8: half as large \[exact].", rich_help_panel=_READING)
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE.png", help="Draw where the model looked.", rich_help_panel=_TALK)
]
Trial = Annotated[
    bool, typer.Option("--try", help="Load the weights and try it too: some things only passes of the model tell.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on one line of stdout.", rich_help_panel=_TALK)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.", rich_help_panel=_TALK)]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show what the libraries below say.", rich_help_panel=_TALK)
]


def _say_version(asked: bool) -> None:
    if asked:
        print(f"longctx {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
]


def root(version: Version = False) -> None:
    """The options of the program itself, before any command."""
