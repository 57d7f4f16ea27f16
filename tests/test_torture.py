"""Damage and sudden death at random: a stored document answers as before, or says what is wrong; never something else.

A small part runs with the other tests; ``make torture`` runs all of it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from longctx import Document, Reader
from longctx.backend.folding import folds
from longctx.errors import ArtifactError
from longctx.store import manifest
from longctx.store.artifact import damaged, open_artifact

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(3600)]

FULL = os.environ.get("LONGCTX_TORTURE") == "full"
FLIPS, KILLS = (500, 200) if FULL else (60, 4)
EVERY = 4096 if FULL else 32_768  # bytes between two places where a file is cut off
QUESTION = "Where is the kettle of Tobin kept?"
LINES = [
    f"{name} keeps the {thing} in room {10 * a + b}. The street was quiet that winter.\n\n"
    for a, name in enumerate(("Mara", "Tobin", "Ilse"))
    for b, thing in enumerate(("ledger", "kettle", "lamp"))
]
MODEL = tiny.model(num_hidden_layers=1)


class Encoder:
    """Sentence vectors without a model."""

    why_unavailable, fingerprint = "", "letters"

    def __call__(self, temperature: float = 1.0) -> Encoder:
        return self

    def encode(self, texts: Any, *, progress: Any = None) -> Any:
        import numpy as np

        counts = np.array([[t.lower().count(chr(97 + i)) for i in range(26)] for t in texts], dtype=np.float32) + 0.01
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def reader() -> Reader:
    made = Reader(MODEL, tiny.tokenizer("system"), calibration=None, encoder=None, segment_tokens=96)
    made._compiler._encoders = Encoder()  # type: ignore[assignment]
    return made


def answer(folder: Path) -> tuple[Any, ...]:
    """Everything a question gets from the artifact, every file of which is used for it."""
    made = reader()
    found: list[Any] = []
    for selector in ("auto", "longheads"):  # the first asks the keys of segments, the second their summaries
        selection = made.select(made.load(folder), QUESTION, budget_tokens=90, selector=selector)
        scores = tuple(unit.score for unit in selection.profile)
        found += [selection.spans, selection.text, selection.tokens, selection.tokens_read, selection.warnings, scores]
    copies = made.load(folder).copies
    words = folds(made.tokenizer)
    assert words is not None
    found += [index.order.tolist() for index in (copies, copies.folded(words))]
    return tuple(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torture") / "book.lctx"
    reader().compile(Document.from_text("".join(LINES)), path=path, segment_kv="disk")
    return path


def damages(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """A file and what it is replaced with: one bit turned, its end cut off, something added, nothing left."""
    rng = random.Random(2411)
    paths = sorted(path for path in folder.iterdir() if path.stat().st_size)
    for _ in range(FLIPS):
        path = rng.choice(paths)
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield path, bytes(data)
    for path in paths:
        data = path.read_bytes()
        for size in range(0, len(data), EVERY):
            yield path, data[:size]
        yield path, data + b"\0"
        yield path, data[:-1]
        yield path, bytes(len(data))


def test_damage_anywhere_is_an_error_or_changes_nothing(folder: Path) -> None:
    expected = answer(folder)
    refused = survived = 0
    for path, changed in damages(folder):
        whole = path.read_bytes()
        path.write_bytes(changed)
        try:
            assert answer(folder) == expected, path.name
            survived += 1
        except ArtifactError as error:
            assert str(folder) in str(error)
            refused += 1
        finally:
            for aside in folder.glob("*.damaged"):
                aside.unlink()
            path.write_bytes(whole)
    assert refused > 10 * survived and refused + survived > FLIPS
    assert answer(folder) == expected


# Compiles one text after the other into one artifact, each in a process of its own that is killed after a while.
CHILD = f"""
import os, random, signal, sys, time
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
import torch
torch.set_num_threads(1)
import test_torture as t
from longctx import Document
folder, rng = Path(sys.argv[1]), random.Random(7)
t.reader().compile(Document.from_text("".join(t.LINES)), path=folder, segment_kv="disk")
started = time.monotonic()
t.reader().compile(Document.from_text("".join(t.LINES[::-1])), path=folder, segment_kv="disk")
took = time.monotonic() - started
for kill in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        for number in range(1000):
            text = "".join(t.LINES[: 2 + (kill + number) % 7]) + f"Version {{kill}}.{{number}} ends here."
            kv = ("disk", "none", "ram")[number % 3]
            t.reader().compile(Document.from_text(text), path=folder, segment_kv=kv)
        os._exit(1)
    time.sleep(rng.uniform(0.0, 4 * took))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(kill, flush=True)
    sys.stdin.readline()
"""


def test_a_compile_that_is_killed_leaves_a_whole_artifact(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", CHILD, str(folder), str(KILLS)]
    texts = set()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdin is not None and child.stdout is not None
        for kill in range(KILLS):
            assert child.stdout.readline() == f"{kill}\n"
            artifact = open_artifact(folder, "full")
            text = artifact.encoded[0].document.text
            assert text == "".join(LINES[::-1]) or text.endswith("ends here.")
            assert list(damaged(folder, artifact.manifest)) == []
            answer(folder)
            texts.add(text)
            child.stdin.write("\n")
            child.stdin.flush()
    assert child.returncode == 0 and len(texts) > 1
    reader().compile(Document.from_text("The end."), path=folder, segment_kv="none")
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        manifest.FILE,
        *(entry.name for entry in manifest.load(folder).entries()),
    }
