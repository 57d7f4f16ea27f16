"""``longctx bench GRID.toml``: every method on every example, a process for each method, a row for each answer.

Owns the order of work, what is missing, and when a program is given up. Programs, examples, rows and the report are
modules of their own.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from longctx.errors import ProgramError

from . import bench_peers, bench_rows
from .bench_examples import Example, Model, examples
from .bench_file import GridFile
from .bench_methods import Method
from .bench_report import write_report
from .bench_worker import RefusedError, Worker
from .rows import Row, Rows, here_and_now

_LOAD_SECONDS = 1800.0
_FAILURES = 3  # in succession, after which a method's other examples are left for the next run
_CHECKED_TOKENS = 512  # of the first prompt, on which a peer's copy of the model is compared with ours
_BEGINNING = 4_000  # characters of the first text, with which a method gets ready
_SAME = 0.9  # of these, at least: bf16 turns a few, another rotary base or dtype turns many
_OWN = [sys.executable, "-c", "from longctx.pipelines.peers._serve import main; main()", "longctx.pipelines.bench_own"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Places:
    """Where rows are written, and where environments of peers stand, for whom ``seconds`` are enough to install."""

    out: Path
    peers: Path
    install_seconds: float = 1800.0


@dataclass(slots=True)
class Run:
    """One run of a grid on one model. ``own`` starts longctx's own programs; tests hand in another."""

    grid: GridFile
    model: Model
    places: Places
    progress: Progress | None = None
    own: Sequence[str] = field(default_factory=lambda: list(_OWN))
    _expected: list[int] | None = None  # what the model says after the tokens that peers are checked on

    @property
    def path(self) -> Path:
        """The file of rows, of all models of the grid."""
        return self.places.out / f"{self.grid.name}.jsonl"

    def __call__(self) -> Path:
        """Append the rows that are missing, write the page and the picture, and return the rows' file.

        Raises ArtifactError before anything is asked when the file holds rows made with something else.
        """
        every = examples(self.grid, self.model)
        self.places.out.mkdir(parents=True, exist_ok=True)
        rows = Rows(self.path, bench_rows.IDENTITY, self._expectations(every))
        keys = [rows.key(bench_rows.key(self.model, one, method)) for one in every for method in self.grid.methods]
        with rows.alone():
            try:
                for number, method in enumerate(self.grid.methods):
                    left = [one for one in every if bench_rows.key(self.model, one, method) not in rows]
                    if left:
                        self._ask(method, left, every[0], rows, number * len(every) + len(every) - len(left), len(keys))
            finally:
                rows.sort(keys)
                if rows.rows:
                    write_report(self.places.out, self.grid.name, list(rows.rows.values()))
        return self.path

    def _expectations(self, every: Sequence[Example]) -> Callable[[Row], Row]:
        """What each row of this grid must have been made with; rows of other methods and models stand as they are."""
        now: dict[tuple[Any, ...], Row] = {}
        for one in every:
            for method in self.grid.methods:
                row = bench_rows.key(self.model, one, method)
                now[tuple(row.values())] = bench_rows.made_with(
                    self.grid, self.model, one.made, method, _requires(method)
                )

        def expected(row: Row) -> Row:
            made: Row = row["made_with"]
            return now.get(tuple(row[name] for name in bench_rows.IDENTITY), made)

        return expected

    def _ask(self, method: Method, left: Sequence[Example], first: Example, rows: Rows, done: int, total: int) -> None:
        """Rows for ``left``, whatever happens to the program that answers them."""
        log = self.places.out / f"{self.grid.name}-logs" / f"{self.model.name}-{_slug(method)}.log"
        failure: ProgramError | None = None
        failures = 0
        with ExitStack() as running:
            worker: Worker | None = None
            loaded: Row = {}
            longest = max(len(self.model.context(one.text)) + len(self.model.question(one.prompt)) for one in left)
            for example in left:
                given = bench_rows.asked(self.model, example)
                try:
                    if failure is not None and failure.kind in ("refused", "unavailable"):
                        raise failure
                    if failures >= _FAILURES:
                        raise ProgramError("not tried", f"{failures} examples before this one ended the program.")
                    if worker is None:
                        worker = running.enter_context(self._start(method, log))
                        failure, loaded = None, self._load(method, worker, longest, first)
                    found = worker.call("answer", given, self.grid.time_limit)
                    row, failures = bench_rows.answered(example, found, self.grid.keep_answers), 0
                except RefusedError as error:
                    row = bench_rows.without_answer(error)
                    failure = None if loaded else error  # what is refused when loading is refused for every example
                except ProgramError as error:
                    row, worker, loaded = bench_rows.without_answer(error), None, {}
                    failure, failures = error, failures + (error.kind != "not tried")
                rows.add(self._row(method, example, given, loaded | row))
                done += 1
                if self.progress is not None:
                    self.progress(method.name, done, total)

    def _row(self, method: Method, example: Example, given: Row, found: Row) -> Row:
        for said in (found.get("refused"), found.get("error")):
            if said is not None:
                places = [self.model.folder, self.places.out, self.places.peers]
                said["message"] = bench_rows.without_paths(said["message"], places)
        return {
            **bench_rows.key(self.model, example, method),
            **bench_rows.about(given, example),
            **found,
            **here_and_now(),
            "load_average": round(os.getloadavg()[0], 2),  # whether anything else was running
            "made_with": bench_rows.made_with(self.grid, self.model, example.made, method, _requires(method)),
        }

    def _start(self, method: Method, log: Path) -> Worker:
        """The method's process. Raises ProgramError of kind "unavailable" for a peer that cannot be installed."""
        silent = {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        if self.grid.threads:
            silent["OMP_NUM_THREADS"] = str(self.grid.threads)
        if method.kind != "peer":
            return Worker(self.own, log, silent)
        peer = bench_peers.peer(method.spec)
        python = bench_peers.environment(
            peer.requires, peer.name, self.places.peers, log.with_name(f"{peer.name}-install.log"),
            self.places.install_seconds,
        )  # fmt: skip
        return Worker(peer.command(python), log, silent)

    def _load(self, method: Method, worker: Worker, longest: int, first: Example) -> Row:
        """What every row says of the program; a peer must have read the same model as we do, or is refused."""
        facts = worker.call("load", self._given(method, longest, first), _LOAD_SECONDS)
        row: Row = {"program": facts["facts"], "loaded_bytes": facts["loaded_bytes"]}
        row["load_seconds"] = round(facts["seconds"], 2)
        if method.kind == "peer":
            row["same_next_tokens"] = self._agreement(worker, longest, first)
        return row

    def _given(self, method: Method, longest: int, first: Example) -> Row:
        """What a program is told before its first question."""
        grid = self.grid
        return {
            "model": str(self.model.folder),
            **{name: getattr(grid, name) for name in ("dtype", "device", "threads")},
            **{name: getattr(method, name) for name in ("kind", "spec", "budget")},
            "options": dict(method.options),
            "beginning": first.text[:_BEGINNING],
            "longest": longest + len(self.model.after) + grid.max_new_tokens,
        }

    def _agreement(self, worker: Worker, longest: int, first: Example) -> float | None:
        """The share of places after which a peer's copy of the model says the token that ours says.

        Raises RefusedError where it is too small: that is another model, and a table would blame the method.
        """
        ids = self.model.context(first.text)[:_CHECKED_TOKENS]
        theirs: list[int] | None = worker.call("check", {"ids": ids}, _LOAD_SECONDS)
        if theirs is None:
            return None
        if self._expected is None:
            log = self.places.out / f"{self.grid.name}-logs" / f"{self.model.name}-check.log"
            with Worker(self.own, log) as ours:
                plain = Method("hf:full", "hf", "full", None, {})
                ours.call("load", self._given(plain, longest, first), _LOAD_SECONDS)
                self._expected = ours.call("check", {"ids": ids}, _LOAD_SECONDS)
        same: float = sum(a == b for a, b in zip(theirs, self._expected or [], strict=True)) / len(ids)
        if same < _SAME:
            raise RefusedError(
                f"its copy of the model is another one: it agrees with ours on {same:.0%} of {len(ids)} next tokens, "
                f"and {_SAME:.0%} are needed"
            )
        return float(round(same, 4))


def _requires(method: Method) -> list[str]:
    """The releases a row depends on: those a peer pins, else those of this process."""
    if method.kind == "peer":
        return list(bench_peers.peer(method.spec).requires)
    return [f"{name}=={version(name)}" for name in ("torch", "transformers")]


def _slug(method: Method) -> str:
    """The method as part of a file's name."""
    name = method.name if method.budget is None else f"{method.name}-{method.budget}"
    return re.sub(r"[^\w.=-]+", "_", name)
