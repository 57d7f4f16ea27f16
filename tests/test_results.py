"""What is published in ``docs/results``: where, when and with what it was measured, and nothing that is not ours.

Rows hold names, hashes, offsets and counts: no path or address, no user or host, and no text of a data set.
"""

from __future__ import annotations

import getpass
import gzip
import json
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parent.parent / "docs" / "results"
# What every row says of its making, at the top or among what it was made with. A bench of one library names no others.
ALWAYS = {"machine", "date", "longctx", "torch", "model"}
KINDS = {
    "reading": ALWAYS | {"fingerprint", "dtype", "threads"},
    "selection": ALWAYS | {"transformers", "fingerprint", "sha256"},
    "needle": ALWAYS | {"transformers", "haystack_sha256"},
}
# What rows of a peer that runs without torch say in its place: its own release, and the hash of the file it reads.
ENGINES = {"llama-cpp-python": {"llama-cpp-python", "gguf_sha256"}}
LONGEST = 200  # characters of a value that is a name, a hash or a configuration
LONGEST_ANSWER = 1_000
WORDS = 12  # a value of so many words is a text
# Our own sentences; and what needles ask, hide and are told, which is made from word lists and not from a data set.
SAID_BY_US = {"warnings", "message", "reason"}
NEEDLES_OWN = {"question", "answers", "answer", "inserted"}
PATH = re.compile(r"(?:^|[\s\"'=(:,\[])(?:/[\w.+-]+){2,}|\b[A-Za-z]:\\\\?\w|(?:^|[\s=])~/|\bfile:")
PLACE = re.compile(r"\bhttps?://|\b[\w.+-]+@[\w-]+\.\w|\blocalhost\b|\.local\b|\b\d{1,3}(?:\.\d{1,3}){3}\b")
MACHINE = re.compile(r"(?:x86_64|aarch64|arm64|AMD64)(?:, [\w. +-]+)*")
COMMON_USERS = {"root", "user", "runner", "ubuntu", "admin", "test"}


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            assert isinstance(row, dict), "a row is an object"
            yield row


def strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a row beside the nearest name above it, the names themselves too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield "", name
            yield from strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, key)


def faults(kind: str, row: dict[str, Any], strangers: set[str]) -> Iterator[str]:
    """What is wrong with a row; ``strangers`` are names of this machine and its user."""
    made = row.get("made_with", {})
    known = {**made.get("versions", {}), **row.get("versions", {}), **row.get("recipe", {})}
    known |= row.get("program", {}).get("versions", {})  # of a grid's row, whose method may be another program
    known |= {name: value for name, value in {**made, **row}.items() if name not in known or value is not None}
    wanted = KINDS.get(kind, ALWAYS)
    for engine, instead in ENGINES.items():
        if engine in row.get("program", {}).get("versions", {}):
            wanted = (wanted - {"torch"}) | instead
            known["gguf_sha256"] = row["program"].get("gguf_sha256")
    if lacking := wanted - {name for name, value in known.items() if value not in (None, "")}:
        yield f"it does not say {', '.join(sorted(lacking))}"
    if not re.fullmatch(r"20\d\d-\d\d-\d\d", str(known.get("date"))):
        yield f"its date is {known.get('date')!r}"
    if not MACHINE.fullmatch(str(known.get("machine"))):
        yield f"its machine is {known.get('machine')!r}: say the processor and counts"
    own = SAID_BY_US | (NEEDLES_OWN if kind == "needle" else set())
    for key, text in strings(row):
        if len(text) > (LONGEST_ANSWER if kind == "needle" and key == "answer" else LONGEST):
            yield f"{key} has {len(text)} characters"
        elif key not in own and len(text.split()) >= WORDS:
            yield f"{key} is a text: {text[:40]!r}"
        if found := PATH.search(text) or PLACE.search(text):
            yield f"{key} has {found[0].strip()!r}: a path or an address"
        if named := strangers & set(re.findall(r"[\w.-]+", text)):
            yield f"{key} names {', '.join(sorted(named))}"


def strangers_here() -> set[str]:
    return {platform.node(), getpass.getuser(), Path.home().name} - COMMON_USERS - {""}


def published() -> list[Path]:
    return sorted(path for path in RESULTS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", published(), ids=lambda path: str(path.name))
def test_every_published_row_says_how_it_was_made_and_shows_nothing_else(path: Path) -> None:
    assert path.name.removesuffix(".gz").endswith(".jsonl"), "rows are published, and nothing else"
    kind = path.name.split(".")[0].split("-")[0]
    strangers, number = strangers_here(), 0
    for number, row in enumerate(rows(path), 1):
        found = list(faults(kind, row, strangers))
        assert not found, f"{path.name}, line {number}: {'; '.join(found)}"
    assert number, f"{path.name} has no rows"


def good() -> dict[str, Any]:
    return {
        "model": "smol", "fingerprint": "16e52387b9ca8deb", "longctx": "0.1.0", "torch": "2.13.0+cpu",
        "transformers": "5.23.0", "machine": "x86_64, 2 threads", "date": "2026-11-23", "sha256": "b2f315a932f53e1b",
        "selector": "dense:bm25=1,neighbours=0.5", "recall": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"date": ""}, "date"),
        ({"date": "yesterday"}, "date"),
        ({"machine": None}, "machine"),
        ({"machine": "build-7.example.org"}, "machine"),
        ({"torch": None}, "torch"),
        ({"transformers": ""}, "transformers"),
        ({"model": "/data/models/smol"}, "path"),
        ({"model": "C:\\models\\smol"}, "path"),
        ({"note": "read from ~/texts"}, "path"),
        ({"made_with": {"haystack": ["/srv/books/a.txt"]}}, "path"),
        ({"endpoint": "http://10.0.0.7:8000/v1"}, "path"),
        ({"by": "jane.doe@example.org"}, "path"),
        ({"by": "zebra"}, "zebra"),
        ({"spans": [{"zebra": 1}]}, "zebra"),
        ({"quote": "x" * 201}, "201"),
        ({"question": " ".join(["word"] * 12)}, "text"),
        ({"facts": {"text": [" ".join(["word"] * 20)]}}, "text"),
    ],
)
def test_rows_that_must_not_be_published_are_found(change: dict[str, Any], said: str) -> None:
    assert not list(faults("selection", good(), {"zebra"}))
    assert any(said in fault for fault in faults("selection", {**good(), **change}, {"zebra"}))


def test_what_a_row_was_made_with_counts_and_unknown_kinds_have_rules_too() -> None:
    made = {name: good()[name] for name in ("longctx", "torch", "transformers", "model")}
    row = {"machine": "x86_64, 2 cores", "date": "2026-11-25", "made_with": {**made, "haystack_sha256": "ab"}}
    assert not list(faults("needle", {**row, "answer": " ".join(["word"] * 30)}, set()))
    assert not list(faults("needle", {**row, "answer": "w" * 1_000}, set()))
    assert list(faults("needle", {**row, "answer": "w" * 1_001}, set()))
    assert list(faults("needle", {**row, "question": "w" * 201}, set()))
    assert list(faults("needle", {**row, "made_with": {}}, set()))
    assert not list(faults("grid", {**row, "made_with": {"model": "smol", "versions": made}}, set()))
    assert list(faults("grid", {**row, "answer": " ".join(["word"] * 30), "made_with": made}, set()))


def test_packed_rows_are_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "selection-a.jsonl.gz", "wt") as file:
        file.write(json.dumps(good()) + "\n")
    assert list(rows(tmp_path / "selection-a.jsonl.gz")) == [good()]


def test_a_peer_without_torch_says_its_release_and_its_file_instead() -> None:
    row = {"machine": "x86_64, 2 cores", "date": "2026-11-27", "longctx": "0.1.0", "model": "embedded"}
    program = {"versions": {"llama-cpp-python": "0.3.36"}, "gguf_sha256": "b179c952"}
    assert not list(faults("llama", {**row, "program": program}, set()))
    for lacking, without in (
        ("torch", {"versions": {"another": "1"}, "gguf_sha256": "b179c952"}),
        ("llama-cpp-python", {**program, "versions": {"llama-cpp-python": ""}}),
        ("gguf_sha256", {"versions": program["versions"]}),
    ):
        assert list(faults("llama", {**row, "program": without}, set())) == [f"it does not say {lacking}"]
