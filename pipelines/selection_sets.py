"""Documents, questions and the places of their evidence, read from a folder of evaluation data.

Owns the formats. A set is recognised by its folder's name; nothing of a set is copied anywhere. Evidence is a list of
facts, each a list of alternatives ``(start, end)`` in characters of the document.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its evidence; ``partial`` counts a fact by the share of its characters that was kept."""

    text: str
    evidence: tuple[tuple[Place, ...], ...]
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One document of one set with all its questions."""

    set: str
    name: str
    text: str
    questions: tuple[Question, ...]


def cases(data: Path, wanted: list[str], seed: int, sample: int, needle_chars: int) -> Iterator[Case]:
    """The documents of the sets named in ``wanted``; sets of one document give ``sample`` questions drawn by "
    "``seed``."""
    makers: dict[str, Callable[[], Iterator[Case]]] = {
        "loogle": lambda: _loogle(data / "loogle"),
        "qmsum": lambda: _qmsum(data / "qmsum"),
        "xquad": lambda: _xquad(data / "xquad", seed, sample),
        "nq": lambda: _nq(data / "nq_passages", seed, sample),
        "needles": lambda: _needles(data, seed, needle_chars),
    }
    for name in wanted:
        if name not in makers:
            raise ValueError(f"no set named {name!r}. Known: {', '.join(makers)}.")
        yield from makers[name]()


def kept_share(question: Question, spans: list[Place]) -> float:
    """Share of the question's facts that lie inside ``spans``: whole facts, or shares of their characters."""
    total = 0.0
    for alternatives in question.evidence:
        best = 0.0
        for start, end in alternatives:
            if question.partial:
                inside = sum(max(0, min(end, b) - max(start, a)) for a, b in spans)
                best = max(best, inside / max(1, end - start))
            else:
                best = max(best, float(any(a <= start and end <= b for a, b in spans)))
        total += best
    return total / len(question.evidence)


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of the JSON-lines files of a folder, in the order of file names."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            found += [json.loads(line) for line in lines if line.strip()]
    if not found:
        raise FileNotFoundError(f"{folder} holds no .jsonl file with rows.")
    return found


def _nq(folder: Path, seed: int, sample: int) -> Iterator[Case]:
    text, questions = "", []
    for row in rows(folder):
        start = len(text) + len(row["title"]) + 1
        text += f"{row['title']}\n{row['passage']}\n\n"
        places = [
            (start + hit.start(), start + hit.end())
            for alias in row["answers"]
            for hit in re.finditer(re.escape(alias), row["passage"])
        ]
        if places:
            questions.append(Question(row["question"], (tuple(places),)))
    random.Random(seed).shuffle(questions)
    yield Case("nq", "nq", text, tuple(questions[:sample]))


def _xquad(folder: Path, seed: int, sample: int) -> Iterator[Case]:
    text, questions = "", []
    for row in rows(folder):
        for qa in row["qas"]:
            starts = qa["answer_start"] if isinstance(qa["answer_start"], list) else [qa["answer_start"]]
            answers = qa["answers"] if isinstance(qa["answers"], list) else [qa["answers"]]
            places = [(len(text) + at, len(text) + at + len(a)) for at, a in zip(starts, answers, strict=True)]
            questions.append(Question(qa["question"], (tuple(places),)))
        text += row["context"] + "\n\n"
    random.Random(seed).shuffle(questions)
    yield Case("xquad", "xquad", text, tuple(questions[:sample]))


def _loogle(folder: Path) -> Iterator[Case]:
    for number, row in enumerate(rows(folder)):
        pairs = json.loads(row["qa_pairs"]) if isinstance(row["qa_pairs"], str) else row["qa_pairs"]
        questions = []
        for pair in pairs:
            sentences = pair["S"] if isinstance(pair["S"], list) else [pair["S"]]
            places = [_find(row["input"], sentence) for sentence in sentences if sentence.strip()]
            found = [place for place in places if place is not None]
            if found and len(found) == len(places):
                questions.append(Question(pair["Q"], tuple((place,) for place in found)))
        yield Case("loogle", f"loogle-{number}", row["input"], tuple(questions))


def _qmsum(folder: Path) -> Iterator[Case]:
    for number, row in enumerate(rows(folder)):
        lines = row["transcript"].split("\n")
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len(line) + 1)
        questions = []
        for item in row["specific"]:
            turns = [t for first, last in item["relevant_turns"] for t in range(int(first), int(last) + 1)]
            evidence = tuple(((starts[t], starts[t] + len(lines[t])),) for t in turns if lines[t])
            questions.append(Question(item["query"], evidence, partial=True))
        yield Case("qmsum", f"qmsum-{number}", row["transcript"], tuple(questions))


def _needles(data: Path, seed: int, chars: int) -> Iterator[Case]:
    """All single needles planted together at sentence ends of one text of books, of about ``chars`` characters."""
    books = sorted((data / "haystack" / "books").glob("*.txt"))
    share = chars // max(1, len(books))
    text = "".join(book.read_text(encoding="utf-8")[20_000 : 20_000 + share] for book in books)
    singles = [row for row in rows(data / "needles") if row["kind"] == "single"][:20]
    rng = random.Random(seed)
    ends = [hit.end() for hit in re.finditer(r"[a-z]\. (?=[A-Z])", text)]
    cuts = sorted(rng.sample(ends, len(singles)))
    rng.shuffle(singles)
    planted, last, questions = "", 0, []
    for at, row in zip(cuts, singles, strict=True):
        planted += text[last:at]
        questions.append(Question(row["question"], (((len(planted), len(planted) + len(row["needle"])),),)))
        planted += row["needle"] + " "
        last = at
    yield Case("needles", "needles", planted + text[last:], tuple(questions))


def _find(text: str, sentence: str) -> Place | None:
    """Where ``sentence`` stands in ``text``: as it is, else with any marks and white space between its words."""
    wanted = sentence.strip()
    at = text.find(wanted)
    if at >= 0:
        return at, at + len(wanted)
    words = re.findall(r"\w+", wanted)
    hit = re.search(r"\W+".join(map(re.escape, words)), text) if words else None
    return (hit.start(), hit.end()) if hit else None
