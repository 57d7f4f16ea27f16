"""How the command line is run in tests, and the document that it is asked about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from longctx.cli import app

ROOT = Path(__file__).parents[2]
QUESTION = "Where is the kettle of Tobin kept?"
NEEDLE = "Tobin keeps the kettle in room 4711."


def story(sentences: int = 60) -> str:
    lines = [
        f"In winter number {i} the street by the river was quiet and the report said so." for i in range(sentences)
    ]
    lines[sentences // 2] = NEEDLE
    return " ".join(lines)


def call(*words: str) -> Any:
    """The command in this process: exit code, stdout and stderr."""
    return CliRunner().invoke(app, list(words), prog_name="longctx")


def asked(model: Path, *words: str) -> Any:
    fast = ["--config", "fast.toml", "--selector", "bm25", "--budget", "200", "--max-new-tokens", "4"]
    return call("ask", *words, "--model", str(model), *fast)


def spawn(*words: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_DISABLE_PROGRESS_BARS")  # the command itself keeps them away
    return subprocess.Popen(
        [sys.executable, "-m", "longctx", *words],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )
