"""A grid, a model and programs for the tests of benchmarks: words are tokens, and nothing of a model is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from longctx.pipelines import bench_examples, bench_file, bench_grid

# A program that answers from its options and keeps in ``calls`` what it was asked.
PROGRAM = """
import os, sys, time
from pathlib import Path
from {serve} import Refused

def load(asked):
    print("a library that speaks on standard output")
    return Program(asked)

class Program:
    facts = {{"versions": {{"fake": "1"}}}}

    def __init__(self, asked):
        for name in "model dtype device threads kind spec budget options beginning longest".split():
            asked[name]  # a program of ours reads them all
        self.spec = asked["spec"]
        if asked.get("options", {{}}).get("gguf") == "refuse":
            raise Refused("not this model, in " + asked["model"])

    def check(self, ids):
        return [0 if os.environ.get("FAKE_OTHER") else i % 7 for i in range(len(ids))]

    def answer(self, asked):
        with open(os.environ["FAKE_CALLS"], "a") as calls:
            calls.write(asked["question"] + "\\n")
        deed = os.environ.get("FAKE_" + self.spec.upper().replace(":", "_"), "")
        if deed == "die":
            raise ValueError("a secret of the text")
        if deed == "hang":
            time.sleep(60)
        if deed == "refuse":
            raise Refused("no room")
        print("more noise")
        return {{
            "text": asked["text"] if deed != "wrong" else "no",
            "spans": [[0, len(asked["text"]) // 2]],
            "measured": {{"prompt_tokens": 5, "new_tokens": 3}},
            "unchanged": "nothing was left out" if deed == "same" else None,
            "warnings": ["w"],
            "seconds": {{"prefill": 0.1, "decode": 0.2}},
        }}
"""
GRID = """
[grid]
methods = [{methods}]
budgets = ["1k"]
time_limit = 60
max_new_tokens = 8
[[needle]]
task = "single"
lengths = [300]
depths = 2
haystack = ["words.txt"]
"""
WORDS = "".join(f"Sentence {i} tells of river {i * 7} and goes on for a while with words. " for i in range(60))


def write_grid(folder: Path, *methods: str) -> bench_file.GridFile:
    (folder / "words.txt").write_text(WORDS)
    path = folder / "grid.toml"
    path.write_text(GRID.format(methods=", ".join(f'"{method}"' for method in methods)))
    return bench_file.read(path)


def model(folder: Path) -> bench_examples.Model:
    made = folder / "model"
    made.mkdir(exist_ok=True)
    (made / "config.json").write_text("{}")
    return bench_examples.Model(
        name="words",
        folder=made,
        sha256=bench_examples.files_sha256(made),
        count=lambda texts: [len(text.split()) for text in texts],
        context=lambda text: [len(word) for word in text.split()],
        question=lambda text: [len(word) for word in text.split()],
        after=[1, 2],
    )


def program(folder: Path, serve: str = "longctx.pipelines.peers._serve") -> list[str]:
    """The command that starts the fake program through the protocol's own loop."""
    (folder / "fake_program.py").write_text(PROGRAM.format(serve=serve))
    start = f"import sys; sys.path.append({str(folder)!r}); from {serve} import main; main()"
    return [sys.executable, "-c", start, "fake_program"]


def run(folder: Path, grid: bench_file.GridFile, **options: Any) -> bench_grid.Run:
    places = bench_grid.Places(folder / "out", folder / "peers")
    return bench_grid.Run(grid, model(folder), places, own=program(folder), **options)
