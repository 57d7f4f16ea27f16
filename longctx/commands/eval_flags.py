"""The flags of ``longctx eval`` and the suites they are for. Knows their names and help, not what they do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from longctx.commands.settings import count, from_file

_SELECTION, _LONG_QA = "For the suite selection", "For all other suites"
# flag -> what it is where it was not given; the keys of the suites' own functions
_SELECTION_DEFAULTS: dict[str, Any] = {"sets": "", "full_sample": 20, "paper_sample": 0, "stored": ""}
_LONG_QA_DEFAULTS: dict[str, Any] = {
    "systems": None,
    "budgets": "",
    "max_new_tokens": None,
    "seed": None,
    "keep_answers": False,
    "dry_run": False,
}


# The first two are needed by all but --list, so they are asked for below: a flag that ends early would miss --json.
Suite = Annotated[str, typer.Argument(help="Which suite; --list names them.", show_default=False)]
Data = Annotated[Path | None, typer.Option(metavar="DIR", help="The folder with the data sets. Needed.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Rows go here; those it holds are not made again.")]
Names = Annotated[bool, typer.Option("--list", help="Name the suites and end.")]
Sample = Annotated[int, typer.Option(min=1, help="Questions drawn (selection: of a set with one document).")]
Sets = Annotated[str, typer.Option(metavar="A,B", help="Only these sets.", rich_help_panel=_SELECTION)]
FullSample = Annotated[
    int, typer.Option(min=0, help="Questions per document for methods that read it all.", rich_help_panel=_SELECTION)
]
PaperSample = Annotated[
    int, typer.Option(min=0, help="Questions per set for the released InfiniRetri.", rich_help_panel=_SELECTION)
]
Stored = Annotated[
    str,
    typer.Option(metavar="FORM", help="Ask of files with segments exact or int8.", rich_help_panel=_SELECTION),
]
Systems = Annotated[
    list[str] | None,
    typer.Option(
        "--system",
        metavar="NAME",
        help=r"A selector, middle, closed_book or full; once for each \[auto, bm25, dense, head and those three].",
        rich_help_panel=_LONG_QA,
    ),
]
Budgets = Annotated[
    str, typer.Option(metavar="N,N", help="Tokens of the document shown [2048].", rich_help_panel=_LONG_QA)
]
MaxNewTokens = Annotated[
    str | None, typer.Option(metavar="N", help="Lowers the suite's own limits.", rich_help_panel=_LONG_QA)
]
Seed = Annotated[int | None, typer.Option(help="Of the questions drawn [7].", rich_help_panel=_LONG_QA)]
KeepAnswers = Annotated[
    bool,
    typer.Option("--keep-answers", help="Keep answers as text; they may quote the data.", rich_help_panel=_LONG_QA),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say tokens and time, and ask nothing.", rich_help_panel=_LONG_QA)
]


def grid(suite: str, given: Mapping[str, Any], config: Path | None = None) -> dict[str, Any]:
    """The flags that were given, else what ``config`` has of them, as the suite's function takes them.

    Refuses flags of the other kind of suite, and no suite.
    """
    own, other = _SELECTION_DEFAULTS, _LONG_QA_DEFAULTS
    if not suite:
        raise typer.BadParameter("a suite is needed; --list names them.")
    if suite != "selection":
        own, other = other, own
    for name, default in other.items():
        if given[name] != default:
            flag = name.replace("_", "-").replace("systems", "system")
            raise typer.BadParameter(f"--{flag} is not for the suite {suite!r}.")
    found = {name: given[name] for name, default in own.items() if given[name] != default}
    try:
        if "sets" in found:
            found["sets"] = tuple(filter(None, found["sets"].split(",")))
        if "budgets" in found:
            found["budgets"] = tuple(map(count, filter(None, found["budgets"].split(","))))
        if "max_new_tokens" in found:
            found["max_new_tokens"] = count(found["max_new_tokens"])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return found if suite == "selection" or config is None else _configured(config) | found


def folder(data: Path | None) -> Path:
    """The folder that a suite reads. Refuses none."""
    if data is None:
        raise typer.BadParameter("--data DIR is needed: the data sets.")
    return data


def _configured(config: Path) -> dict[str, Any]:
    """What the file has of the flags for long QA."""
    values = from_file(config)
    found = {name: values[name] for name in ("max_new_tokens", "seed") if name in values}
    return found | ({"budgets": (values["budget"],)} if "budget" in values else {})
