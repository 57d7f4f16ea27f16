"""The made parts of ``docs/`` are those of today's code and results, and every method has a page that was written."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

import longctx
import longctx.kv
from longctx import errors, plugins
from longctx.commands.settings import Settings
from longctx.documents.limits import Limits
from longctx.pipelines import docs_site, speculation_report

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
METHODS = [(room, name) for room in docs_site.ROOMS for name in plugins.names(room)]


@pytest.fixture(scope="module")
def made() -> dict[Path, str]:
    return docs_site.contents(ROOT)


def test_the_made_parts_are_up_to_date(made: dict[Path, str]) -> None:
    stale = [str(path.relative_to(ROOT)) for path, text in made.items() if not path.exists() or text != read(path)]
    assert not stale, f"`make docs` renews {', '.join(stale)}"


def test_every_listed_method_has_its_page_and_every_page_its_method() -> None:
    assert set(plugins.ROOMS) == {*docs_site.ROOMS, "needles"}, "a new room: give it pages"
    pages = {(path.parent.name, path.stem) for path in (DOCS / "methods").glob("*/*.md")}
    assert pages == set(METHODS), "`make docs` makes what is missing; a method that is gone takes its page along"
    tasks = re.findall(r"^## (\w+)$", read(DOCS / "methods" / "needles.md"), re.M)
    assert tasks == plugins.names("needles")


def test_words_that_stand_for_no_method_are_in_the_tables_too() -> None:
    index = read(DOCS / "methods" / "index.md")
    for room, words in plugins.WORDS.items():
        table = index.partition(f"<!-- {room} -->")[2].partition(f"<!-- /{room} -->")[0]
        assert all(f"| `{word}` | {about} |" in table for word, about in words.items())


def test_the_command_line_keeps_its_brackets() -> None:
    page = read(DOCS / "cli.md")
    assert "disk or ram [auto]." in page and " .\n" not in page


@pytest.mark.parametrize(("room", "name"), METHODS)
def test_a_methods_page_is_written_and_names_its_options_with_their_defaults(room: str, name: str) -> None:
    page = read(DOCS / "methods" / room / f"{name}.md")
    assert docs_site.UNWRITTEN not in page, "say when it fails"
    assert page.startswith(f"# {name}\n")
    assert all(f"\n## {part}\n" in page for part in ("Options", "Our figures", "When it fails", "Source"))
    fields = [field for field in dataclasses.fields(plugins.plugin(room, name)) if not field.name.startswith("_")]
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", page, re.M))
    assert told == {field.name: str(field.default).lower() for field in fields}
    assert f'--8<-- "longctx/{plugins.ROOMS[room]}/{name}.py"' in page


def test_figures_can_be_counted_again() -> None:
    with gzip.open(DOCS / "results" / "selection-smol.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    kept = {
        (row["document"], row["question"]): row["recall"]
        for row in rows
        if (row["selector"], row["set"], row["budget"]) == ("xl3m:signal=entropy", "loogle", 1024)
    }
    share = 100 * sum(kept.values()) / len(kept)
    page = read(DOCS / "methods" / "selectors" / "xl3m.md")
    assert f"| xl3m, entropy (as published) | smol | {share:.1f} ({len(kept)}) |" in page


def test_the_reading_rows_are_all_shown() -> None:
    page = read(DOCS / "reading.md")
    for line in read(DOCS / "results" / "reading.jsonl").splitlines():
        row = json.loads(line)
        ratio, speed = row["read_to_stock"]["median"], row["tokens_per_second"]["read"]["median"]
        assert f"| {row['model']} | bfloat16 | {speed:,.0f} (" in page and f"| {ratio:.2f} (" in page


def test_speculation_over_two_days_is_one_table_that_names_what_is_refused(tmp_path: Path) -> None:
    made = {"model": "m", "dtype": "float32", "threads": 2, "longctx": "1", "torch": "2"}
    speeds = {"hf": 10, "hf_lookup:5,2": 15, "document": 20, "lookup": None}
    rows = []
    for prompt, day in enumerate(("2026-01-31", "2026-02-01")):
        for method, speed in speeds.items():
            row = {"group": "a", "prompt": prompt, "method": method, "tokens_per_second": speed, "machine": "x"}
            row |= {"same": True, "tokens_per_round": 1.0, "first_seconds": 1.0, "date": day, "made_with": made}
            rows.append(row if speed else row | {"refused": {"kind": "unchanged", "message": "no token"}})
    (tmp_path / "speculation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = speculation_report.tables(tmp_path)
    assert page.count("**m**") == 1 and "2 threads, 2026-01-31 to 2026-02-01, longctx 1, torch 2." in page
    assert "| group | prompts | stock tokens/s | prompt lookup (1) | document | lookup |" in page
    assert "| a | 2 | 10.0 | 1.50 | 2.00 |  | 1.00 | 2 of 2 | 1.00 |" in page
    assert "| geometric mean | | | 1.50 | 2.00 |  | | | |" in page and "Refused: `lookup`, no token." in page


def test_only_runs_of_eight_prompts_a_group_stand_in_the_readme(tmp_path: Path) -> None:
    made = {"model": "m", "dtype": "float32", "threads": 2, "longctx": "1", "torch": "2"}
    speeds = {"hf": [10, 10], "hf_lookup:5,2": [15, 15], "hf_lookup:9,2": [5, 20], "none": [10, 10], "auto": [40, 90]}

    def run(name: str, prompts: int, day: str = "2026-01-31", machine: str = "x", **more: Any) -> None:
        common = {"machine": machine, "same": True, "tokens_per_round": 1.0, "first_seconds": 1.0, "date": day}
        rows = [
            common | {"group": group, "prompt": 20 * at + prompt, "method": method, "tokens_per_second": by[at]}
            for at, group in enumerate("ab")
            for prompt in range(prompts)
            for method, by in speeds.items()
        ]
        text = "".join(json.dumps(row | {"made_with": made | more}) + "\n" for row in rows)
        (tmp_path / f"speculation-{name}.jsonl").write_text(text)

    run("few", 7)
    run("drawn", 8, temperature=1.5)
    assert speculation_report.brief(tmp_path) == speculation_report.NONE
    run("many", 8)
    _, _, *lines = speculation_report.brief(tmp_path).splitlines()
    # the best setting of each group: sqrt(1.5 * 2); sqrt(4 * 9)
    expected = "| m | float32 | 16 | 1.73 | 1.00 | **6.00** | 4.00 to 9.00 | x, 2 threads, 2026-01-31 |"
    assert lines == [expected]
    run("older", 8, "2026-01-30", "y")  # of one model and format the newest run, wherever its file stands
    run("a-newer", 8, "2026-02-01", "y")
    run("half", 8, "2026-01-30", dtype="bfloat16")
    half, newer = speculation_report.brief(tmp_path).splitlines()[2:]
    assert half == expected.replace("float32", "bfloat16").replace("31 |", "30 |")
    assert newer == expected.replace("x, 2 threads, 2026-01-31", "y, 2 threads, 2026-02-01")


def test_a_method_without_a_page_gets_one_that_asks_to_be_written(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("results"))
    for file in ("zensical.toml", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    page = tmp_path / "docs" / "methods" / "drafters" / "lookup.md"
    page.unlink()
    index = tmp_path / "docs" / "methods" / "index.md"
    index.write_text(read(index).replace("drafters/lookup.md", "drafters/gone.md"), encoding="utf-8")
    changed = docs_site.write(tmp_path)
    assert page in changed and index in changed and "drafters/lookup.md" in read(index)
    assert docs_site.UNWRITTEN in read(page) and "| `ngram` | `2` | int |" in read(page)
    assert docs_site.write(tmp_path) == []
    index.write_text(read(index).replace("<!-- /kv -->", ""), encoding="utf-8")
    with pytest.raises(ValueError, match="<!-- kv -->"):
        docs_site.write(tmp_path)


def test_the_configuration_in_the_guide_has_every_key_and_its_default() -> None:
    block = re.search(r"```toml\n(.*?)```", read(DOCS / "guide" / "command-line.md"), re.S)
    assert block is not None
    defaults = dataclasses.asdict(Settings())
    told = tomllib.loads(block[1])
    assert told == {name: value for name, value in defaults.items() if value is not None}
    unset = re.findall(r"^# (\w+) = ", block[1], re.M)
    assert sorted(unset) == sorted(name for name, value in defaults.items() if value is None)


def test_limits_and_errors_in_the_guide_are_those_of_the_code() -> None:
    limits = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", read(DOCS / "guide" / "untrusted.md"), re.M))
    assert limits == {field.name: str(field.default) for field in dataclasses.fields(Limits)}
    told = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", read(DOCS / "guide" / "limits.md"), re.M))
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, longctx.LongctxError)
    ]
    assert told == {kind.__name__: str(kind.exit_code) for kind in kinds}


def test_the_reference_has_every_public_name() -> None:
    told = re.findall(r"^::: ([\w.]+)$", read(DOCS / "api.md"), re.M)
    assert sorted(told) == sorted(
        [f"longctx.{name}" for name in longctx.__all__ if name not in ("kv", "errors")]  # modules
        + [f"longctx.kv.{name}" for name in longctx.kv.__all__]
    )


def test_every_page_stands_in_the_navigation_and_every_entry_is_a_page() -> None:
    site = tomllib.loads(read(ROOT / "zensical.toml"))["project"]
    assert sorted(entries(site["nav"])) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert site["theme"]["font"] is False, "a page needs no network"


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", read(ROOT / "README.md"))
    assert "docs/guide/start.md" in links and not [link for link in links if not (ROOT / link).exists()]


def test_nothing_on_a_page_is_fetched_from_elsewhere() -> None:
    for path in DOCS.rglob("*.md"):
        assert not re.search(r"!\[[^\]]*\]\(https?:|<script|<iframe|^```mermaid", read(path), re.M), path.name


def entries(nav: list[dict[str, object]]) -> list[str]:
    found: list[str] = []
    for entry in nav:
        for value in entry.values():
            found += entries(value) if isinstance(value, list) else [str(value)]
    return found


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
