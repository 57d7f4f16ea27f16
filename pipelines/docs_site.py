"""The parts of ``docs/`` that follow from the code and from the files of results: ``make docs`` renews them.

Owns the marked parts of the pages of methods, the tables of methods, their place in the site's navigation, the pictures
of published rows, the reference of the command line, and the table of speeds in the README. Everything outside
the marks is written by hand. A method without a page gets one.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from longctx import plugins

from . import bench_report, kv_report, long_qa, long_qa_report, needle_results, speculation_report
from .rows import read
from .selection_report import NAMES, rows_by_model

# room -> (title, how one of its methods is named in use)
ROOMS = {
    "splitters": ("Splitters", 'splitter = "{}"` in `longctx.toml`, or `Reader(…, splitter="{}")'),
    "selectors": ("Selectors", '--selector {}`, or `selector="{}"'),
    "kv": ("Bounded caches", '--kv {}`, or `kv="{}"'),
    "drafters": ("Drafters", '--drafters {}`, or `drafters=["{}"]'),
    "controllers": ("Controllers", '--controller {}`, or `controller="{}"'),
}
UNWRITTEN = "Not written yet."
_SETS = ("loogle", "qmsum", "xquad", "nq", "needles")
_BUDGET = 1024
_BESIDE = {"random", "bm25", "auto"}  # what every selector is held against
_PAGE = """# {name}

<!-- use -->
<!-- /use -->

{about}

## Options

<!-- options -->
<!-- /options -->

## Our figures

<!-- figures -->
<!-- /figures -->

## When it fails

{unwritten}

## Source

<!-- source -->
<!-- /source -->
"""


def write(root: Path) -> list[Path]:
    """Afterwards every file of ``contents`` holds what it should; the files that changed."""
    changed = []
    results, images = root / "docs" / "results", root / "docs" / "images"
    pictures = needle_results.pictures(results, images)
    pictures |= {images / name: picture for name, picture in kv_report.pictures(results).items()}
    made = {**{path: text.encode("utf-8") for path, text in contents(root).items()}, **pictures}
    for path, data in made.items():
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            changed.append(path)
    return changed


def contents(root: Path) -> dict[Path, str]:
    """Every file that is made or has made parts, and its text as it should be. Changes nothing."""
    docs = root / "docs"
    models = rows_by_model(docs / "results")
    found = {}
    for room in ROOMS:
        for name in plugins.names(room):
            found[docs / "methods" / room / f"{name}.md"] = _method(room, name, models, docs)
    tables = {room: _table(room) for room in ROOMS}
    index, tasks, site = docs / "methods" / "index.md", docs / "methods" / "needles.md", root / "zensical.toml"
    found[index] = _filled(index.read_text(encoding="utf-8"), tables)
    found[tasks] = _filled(tasks.read_text(encoding="utf-8"), {"needles": _tasks()})
    found[site] = _filled(site.read_text(encoding="utf-8"), {"methods": _navigation()}, "# {}")
    speed = docs / "reading.md"
    found[speed] = _filled(speed.read_text(encoding="utf-8"), {"reading": _reading(docs / "results" / "reading.jsonl")})
    bounded, costs = docs / "kv.md", "\n".join(kv_report.tables(docs / "results", "images/"))
    found[bounded] = _filled(bounded.read_text(encoding="utf-8"), {"kv": costs})
    stored = docs / "compiled.md"
    found[stored] = _filled(stored.read_text(encoding="utf-8"), {"compiled": _compiled(docs / "results")})
    drafted, speeds = docs / "speculation.md", speculation_report.tables(docs / "results")
    made = {"speculation": speeds, "copies": _copies(docs / "results" / "copies.jsonl")}
    found[drafted] = _filled(drafted.read_text(encoding="utf-8"), made)
    readme, brief = root / "README.md", speculation_report.brief(docs / "results")
    found[readme] = _filled(readme.read_text(encoding="utf-8"), {"speed": brief})
    needles = docs / "needle.md"
    found[needles] = _filled(needles.read_text(encoding="utf-8"), {"found": needle_results.part(docs / "results")})
    measured = docs / "evaluation.md"
    answers = long_qa_report.part(docs / "results", long_qa.suites())
    found[measured] = _filled(measured.read_text(encoding="utf-8"), {"grids": _grids(docs), "answers": answers})
    found[docs / "cli.md"] = _command_line()
    return found


def _grids(docs: Path) -> str:
    """What was found with each grid of ``docs``/grids that has results."""
    parts = []
    for grid in sorted((docs / "grids").glob("*.toml")):
        file = docs / "results" / f"{grid.stem}.jsonl"
        if file.is_file():
            parts += [f"`docs/grids/{grid.name}`:", "", *bench_report.tables(read(file), "####")]
    return "\n".join(parts).rstrip() or "No grid has results here yet."


def _method(room: str, name: str, models: list[list[dict[str, Any]]], docs: Path) -> str:
    path, plugin = docs / "methods" / room / f"{name}.md", plugins.plugin(room, name)
    module = inspect.getmodule(plugin)
    about = _markdown(inspect.getdoc(module) or "")
    page = path.read_text(encoding="utf-8") if path.exists() else _PAGE.format(
        name=name, about=about, unwritten=UNWRITTEN
    )  # fmt: skip
    title, use = ROOMS[room]
    file = f"longctx/{plugins.ROOMS[room]}/{name}.py"
    return _filled(
        page,
        {
            "use": f"{title}: `{use.format(name, name)}`. Options are given as in `{name}:option=value`."
            if plugins.options(room, name)
            else f"{title}: `{use.format(name, name)}`. It has no options.",
            "options": _options(room, name, plugin),
            "figures": _selection(name, models) if room == "selectors" else _FIGURES.get(room, _NOTHING),
            "source": f'<details markdown="1"><summary><code>{file}</code></summary>\n\n'
            f'```{{ .python }}\n--8<-- "{file}"\n```\n\n</details>',
        },
    )


_FIGURES = {
    "kv": "Policies that were measured stand side by side in [bounded caches](../../kv.md#what-it-costs-and-saves); "
    "what else was tried is in the [log](../../log.md).",
    "drafters": "Stacks that were measured stand side by side in [speculation](../../speculation.md); "
    "what else was tried is in the [log](../../log.md).",
}
_NOTHING = "No file of results measures this by itself yet. What was tried is in the [log](../../log.md)."


def _filled(text: str, parts: Mapping[str, str], mark: str = "<!-- {} -->") -> str:
    """``text`` with new content between each pair of marks. Raises ValueError where a pair is missing."""
    for name, part in parts.items():
        start, end = mark.format(name), mark.format(f"/{name}")
        pattern = re.compile(rf"({re.escape(start)}\n).*?([ ]*{re.escape(end)})", re.S)
        text, count = pattern.subn(lambda at, part=part: f"{at[1]}{part}\n{at[2]}", text)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"the marks {start} and {end} must stand in the page once: {text[:60]!r}…")
    return text


def _options(room: str, name: str, plugin: type) -> str:
    """What the class says about its options, and the options with their defaults."""
    about = _markdown(inspect.getdoc(plugin) or "")
    known = plugins.options(room, name)
    if not known:
        return about
    hints = typing.get_type_hints(plugin)
    rows = ["| option | default | takes |", "|---|---|---|"]
    for option, (kind, default) in known.items():
        choices = typing.get_args(hints[option]) if typing.get_origin(hints[option]) is typing.Literal else ()
        takes = ", ".join(f"`{choice}`" for choice in choices) or kind.replace(" | None", " or none").replace(
            " | ", " or "
        )
        shown = "required" if default is dataclasses.MISSING else f"`{str(default).lower()}`"
        rows.append(f"| `{option}` | {shown} | {takes} |")
    return "\n".join([about, "", *rows])


def _markdown(docstring: str) -> str:
    """A docstring's words as Markdown; a line that explains one name becomes an item."""
    return re.sub(r"^``\w+``:", r"- \g<0>", docstring, flags=re.M).replace("``", "`")


def _table(room: str) -> str:
    rows = ["| method | what it is |", "|---|---|"]
    for name in plugins.names(room):
        rows.append(f"| [`{name}`]({room}/{name}.md) | {_first(room, name)} |")
    rows += [f"| `{word}` | {about} |" for word, about in plugins.WORDS.get(room, {}).items()]
    return "\n".join(rows)


def _first(room: str, name: str) -> str:
    """The first line of what a method's module says about itself, as ``longctx list`` shows it."""
    return _markdown(inspect.getdoc(inspect.getmodule(plugins.plugin(room, name))) or "").splitlines()[0]


def _tasks() -> str:
    """The needle tasks one after another, with their options."""
    parts = []
    for name in plugins.names("needles"):
        parts += [
            f"## {name}",
            "",
            _first("needles", name),
            "",
            _options("needles", name, plugins.plugin("needles", name)),
            "",
        ]
    return "\n".join(parts).rstrip()


def _navigation() -> str:
    lines = []
    for room, (title, _) in ROOMS.items():
        lines.append(f'        {{ "{title}" = [')
        lines += [f'            {{ "{name}" = "methods/{room}/{name}.md" }},' for name in plugins.names(room)]
        lines.append("        ] },")
    return "\n".join(lines)


def _selection(name: str, models: list[list[dict[str, Any]]]) -> str:
    """The share of the evidence that the variants of a selector keep, counted from the rows of ``longctx eval``."""
    if not any(row["selector"].partition(":")[0] == name for rows in models for row in rows):
        return _NOTHING
    lines = [
        f"Evidence kept within {_BUDGET:,} tokens, in points, and how many questions that is; [what the sets are and "
        "all other rows](../../selection.md).",
        "",
        "| selector | model | " + " | ".join(_SETS) + " |",
        "|---|---|" + "--:|" * len(_SETS),
    ]
    for rows in models:
        at = [row for row in rows if row["budget"] == _BUDGET]
        for selector in dict.fromkeys(row["selector"] for row in at):
            if selector.partition(":")[0] != name and selector not in _BESIDE:
                continue
            cells = []
            for chosen in _SETS:
                kept = [row["recall"] for row in at if row["selector"] == selector and row["set"] == chosen]
                cells.append(f"{100 * float(np.mean(kept)):.1f} ({len(kept)})" if kept else "")
            lines.append(f"| {NAMES.get(selector, selector)} | {rows[0]['model']} | {' | '.join(cells)} |")
    dates = sorted({row["date"] for rows in models for row in rows})
    machines = sorted({row["machine"] for rows in models for row in rows})
    return "\n".join(
        [
            *lines,
            "",
            f"{'; '.join(machines)}; {dates[0]} to {dates[-1]}. "
            "Rows with fewer questions are not to be read beside the others.",
        ]
    )


def _reading(path: Path) -> str:
    """The rows of ``longctx bench reading``, one a line."""
    lines = [
        "| model | dtype | ours | stock forward | linear layers | ours to stock | ours to linear | rounds | made |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in read(path) if path.exists() else []:
        speeds = [_range(row["tokens_per_second"][kind], 0) for kind in ("read", "stock", "linear_batch")]
        ratios = [_range(row[f"read_to_{kind}"], 2) for kind in ("stock", "linear_batch")]
        made = (
            f"{row['machine']}, {row['threads']} threads, {row['date']}, longctx {row['longctx']}, torch {row['torch']}"
        )
        dtype = row["dtype"].removeprefix("torch.")
        lines.append(f"| {' | '.join([row['model'], dtype, *speeds, *ratios, str(row['rounds']), made])} |")
    return "\n".join(lines)


def _copies(path: Path) -> str:
    """The rows of ``longctx bench copies``, one a line."""
    lines = [
        "| text in tokens of | tokens | index | memory | look-up | draft | made |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in read(path) if path.exists() else []:
        cells = [
            row["model"],
            f"{row['tokens']:,}",
            f"{row['build_seconds']:.2f} s",
            f"{row['peak_bytes'] / 1e6:.0f} MB",
            *(_microseconds(row[f"{what}_microseconds"]) for what in ("look_up", "draft")),
            f"{row['machine']}, {row['date']}, longctx {row['longctx']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _microseconds(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.0f} µs ({spread['p99']:.0f})"


def _compiled(results: Path) -> str:
    """The rows of ``longctx bench compiled``, one a line."""
    lines = [
        "| model | tokens | kept as | compile and first | later | cheaper | loaded: first | cold | later "
        "| bytes a token | same text | append 1 % | memory | made |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for path in sorted(results.glob("compiled*.jsonl")):
        for row in read(path):
            made = f"{row['machine']}, {row['threads']} threads, {row['date']}, longctx {row['longctx']}"
            cells = [
                f"{row['model']}, {row['dtype']}",
                f"{row['tokens']:,}",
                f"{row['segment_kv']}, {row['segment_form']}{', straight' if row.get('straight') else ''}",
                f"{row['compile_and_first_seconds']:.0f} s",
                f"{row['later_seconds']['median']:.2f} s",
                f"{row['times_cheaper']:.0f} x",
                f"{row['loaded_first_seconds']:.2f} s",
                f"{row['cold_first_seconds']:.2f} s" if row.get("cold_first_seconds") else "",
                f"{row['loaded_later_seconds']:.2f} s",
                f"{row['bytes_per_token']:,.0f}",
                f"{100 * row['kept_shared']:.1f} %",
                f"{100 * row['append_share']:.1f} %" if "append_share" in row else "",
                " / ".join(f"{peak / 1e9:.1f}" for peak in row.get("peak_bytes", {}).values() if peak is not None),
                f"{made}, torch {row['torch']}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(spread: Mapping[str, float], places: int) -> str:
    return f"{spread['median']:,.{places}f} ({spread['least']:,.{places}f} to {spread['most']:,.{places}f})"


def _command_line() -> str:
    """Every command and flag, as the library behind the command line describes them."""
    ran = subprocess.run(
        [sys.executable, "-m", "typer", "longctx.cli", "utils", "docs", "--name", "longctx", "--title", "Command line"],
        capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    return ran.stdout.rstrip() + "\n"


if __name__ == "__main__":
    for renewed in write(Path(sys.argv[1]).resolve()):
        print(f"renewed {renewed.relative_to(Path(sys.argv[1]).resolve())}")
