"""``longctx bench GRID.toml``: methods and peers on the same examples, and the table of all rows.

Owns the order of checks and what is opened for a model. What is asked, and what a row holds, is the pipeline's
business.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from longctx.commands.screen import Screen
from longctx.commands.settings import Settings
from longctx.errors import UsageError


def run(file: Path, out: Path, settings: Settings, screen: Screen) -> Path:
    """Make the rows that ``out`` does not hold yet, for every model of the grid or else that of ``settings``.

    Returns the file of rows. Raises UsageError, before anything is loaded, for a grid that cannot be run.
    """
    grid = _pipeline("bench_file").read(file)
    _pipeline("bench_methods").check_files(grid.methods)
    _pipeline("bench_report").check()
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {str(out)!r} is not a folder.")
    if grid.models and settings.model != Settings().model:
        raise UsageError(f"{file.name} names its models, and --model names another. Leave one of them out.")
    job = _pipeline("bench_grid")
    from longctx.backend.places import cache_folder

    places = job.Places(out, cache_folder() / "peers")
    folders = [_folder(name, screen) for name in grid.models or (settings.model,)]
    for name, folder in folders:
        path: Path = job.Run(grid, _model(name, folder, screen), places, screen.progress)()
    return path


def _pipeline(module: str) -> Any:
    return importlib.import_module(f"longctx.pipelines.{module}")


def _folder(name: str, screen: Screen) -> tuple[str, Path]:
    """What rows call the model, and its folder, for peers read files and their hashes stand in every row."""
    from longctx.backend.embedded import embedded_model

    if name == "embedded":
        return name, embedded_model(screen.progress)
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise UsageError(f"{name!r} is no folder of a model: a grid's models are local folders or 'embedded'.")
    return folder.resolve().name, folder.resolve()


def _model(name: str, folder: Path, screen: Screen) -> Any:
    from longctx.backend.model import tokenizer_alone
    from longctx.backend.tokens import Tokens

    bench, tokenizer = _pipeline("bench_examples"), tokenizer_alone(folder, screen.progress)
    tokens = Tokens(tokenizer)
    frame = tokens.frame()
    return bench.Model(
        name=name,
        folder=folder,
        sha256=bench.files_sha256(folder),
        count=_pipeline("haystack").counter(tokenizer),
        context=lambda text: [*frame.before, *tokens.plain(text)],
        question=lambda text: [*frame.middle, *tokens.plain(text)],
        after=list(frame.after),
    )
