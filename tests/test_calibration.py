"""Retrieval heads are found where they are known to be; the file that keeps them is keyed, whole and replaceable."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from longctx import calibration, resources
from longctx.backend.model import wrap
from longctx.backend.probe import Probe
from longctx.backend.tokens import Tokens
from longctx.calibration import Calibration, calibrate
from longctx.errors import BadOption
from longctx.resources import Calibrator
from longctx.synthetic import material
from longctx.types import Inquiry, Reading

pytestmark = pytest.mark.usefixtures("one_thread")
LAYERS, HEADS = 3, 4
COMMON = "the of a in to is was at by for did does which what who".split()


class Scripted:
    """A probe whose heads behave as told: head (1, 2) looks at words of the question, (2, 0) does so half of the time.

    All others look anywhere. Of summaries head (0, 1) alone knows which words they are of. Tokens are words.
    """

    fingerprint = "scripted"

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.rng = np.random.default_rng(0)
        self.asked: list[int] = []
        self.glanced: list[int] = []

    def plain(self, text: str) -> list[int]:
        return [self.ids.setdefault(word, len(self.ids)) for word in re.findall(r"\w+", text.lower())]

    @property
    def summarises(self) -> bool:
        return True

    def pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple((layer, head) for layer in range(LAYERS) for head in range(HEADS))

    def inquiry(self, question: str, heads: Any = (), **_: Any) -> Inquiry:
        assert heads is None, "every head is to be measured"
        ids = tuple(self.plain(question))
        return Inquiry(ids, (0, len(ids)), (0, len(ids)), heads)

    def read(self, segments: Sequence[Sequence[int]], depth: int | None = None) -> Iterator[tuple[int, Any]]:
        yield from reversed(list(enumerate(segments)))

    def ask(self, stored: Sequence[Any], inquiry: Inquiry) -> Iterator[tuple[int, Reading]]:
        self.asked.append(len(stored))
        common = {self.ids.get(word) for word in COMMON}
        rare = set(inquiry.ids) - common
        attends = len(self.asked) % 2 == 1
        for i in reversed(range(len(stored))):
            attention = self.rng.random((LAYERS * HEADS, len(stored[i]))).astype(np.float32) ** 4
            found = np.array([token in rare for token in stored[i]], dtype=np.float32)
            attention[1 * HEADS + 2] = found + 1e-4
            if attends:
                attention[2 * HEADS] = found
            yield i, Reading(attention, np.zeros(0, np.float32))

    def summarise(self, stored: Any, units: Sequence[int], heads: Any) -> list[list[int]]:
        assert len(heads) == LAYERS * HEADS and sum(units) == len(stored)
        edges = np.cumsum([0, *units])
        return [stored[a:b] for a, b in zip(edges, edges[1:], strict=False)]

    def overview(self, summaries: Sequence[list[list[int]]]) -> list[list[int]]:
        self.glanced.append(len(summaries))
        return [unit for summary in summaries for unit in summary]

    def glance(self, summary: list[list[int]], inquiry: Inquiry, behind: int) -> np.ndarray:
        assert behind >= max(map(len, summary))
        common = {self.ids.get(word) for word in COMMON}
        share = self.rng.random((LAYERS * HEADS, len(summary)))
        share[0 * HEADS + 1] = [len(set(inquiry.ids) & set(unit) - common) for unit in summary]
        return share


def test_the_head_that_finds_facts_comes_first_and_the_one_that_sometimes_does_second() -> None:
    probe = Scripted()
    found = calibrate(probe, "f")  # type: ignore[arg-type]
    assert found.heads[:2] == ((1, 2), (2, 0))
    assert found.hits[0] > 0.6 > found.hits[1] > 0.1 > max(found.hits[2:])
    assert found.fingerprint == "f" and found.trials == len(material(0, 12, 3, 9).trials) == 36
    assert len(found.heads) == len(found.hits) == LAYERS * HEADS
    assert found.glancing[0] == (0, 1) and len(set(found.glancing)) == 8
    assert probe.asked == [4] * 36 and probe.glanced == [8] * 36, "each question has a pass over every segment asked"


def test_every_trial_asks_about_a_sentence_that_stands_where_it_says() -> None:
    made = material(5, 6, 3, 9)
    assert made == material(5, 6, 3, 9) != material(6, 6, 3, 9)
    assert len(made.trials) == 18 and all(len(segment) == 12 for segment in made.segments)
    for trial in made.trials:
        assert trial.question.endswith("?") and trial.sentence < 12
    assert len({(trial.segment, trial.sentence) for trial in made.trials}) == 18


def tiny_calibrator(wanted: Any = "auto", **changes: Any) -> tuple[Calibrator, Probe]:
    model, tokenizer = tiny.model("qwen2", num_hidden_layers=2, **changes), tiny.tokenizer("system")
    made = Calibrator(wrap(model, tokenizer), wanted)
    return made, Probe(model, Tokens(tokenizer), made.fingerprint)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small measure, and a cache folder of the test's own."""
    monkeypatch.setattr(calibration, "_SEGMENTS", 4)
    monkeypatch.setattr(calibration, "_ASKED", 2)
    monkeypatch.setattr(calibration, "_GLANCED", 3)
    monkeypatch.setenv("LONGCTX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_same_seed_gives_the_same_heads(few: Path) -> None:
    _, probe = tiny_calibrator()
    first = calibrate(probe, "f", seed=1)
    assert calibrate(probe, "f", seed=1) == first
    assert calibrate(probe, "f", seed=2).hits != first.hits
    assert set(first.heads) == set(probe.pairs()) and 0 <= first.fused_hits <= 1


def test_a_calibration_is_made_once_and_kept_for_this_model_alone(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(probe: Any, fingerprint: str, **options: Any) -> Calibration:
        made.append(fingerprint)
        return calibrate(probe, fingerprint, **options)

    monkeypatch.setattr(resources, "calibrate", counted)
    first, probe = tiny_calibrator()
    seen: list[tuple[str, int, int]] = []
    found = first(probe, lambda *at: seen.append(at))
    assert seen[-1] == ("calibrating", 12, 12) and first(probe) is found
    again, _ = tiny_calibrator()
    assert again(probe) == found and len(made) == 1
    other, other_probe = tiny_calibrator(rms_norm_eps=1e-3)
    assert other(other_probe) is not None and len(set(made)) == 2
    assert len(list((few / "calibration").iterdir())) == 2, "nothing half-written stays behind"
    assert first.take_warnings() == again.take_warnings() == ()


GOOD: dict[str, Any] = {"seed": 0, "trials": 1, "heads": [[0, 1]], "hits": [1.0], "fused_hits": 1.0}
DAMAGED: dict[str, Any] = {
    "half": '{"format": 1, "finger',
    "empty": "",
    "binary": b"\xff\xfe\x00",
    "no object": "[1]",
    "no heads": {key: value for key, value in GOOD.items() if key != "heads"},
    "no hits": {key: value for key, value in GOOD.items() if key != "hits"},
    "nothing": {},
    "strange field": {**GOOD, "extra": 1},
    "heads of text": {**GOOD, "heads": ["ab"]},
    "heads of one": {**GOOD, "heads": [[0]]},
    "heads null": {**GOOD, "heads": None},
    "heads none": {**GOOD, "heads": [], "hits": []},
    "heads elsewhere": {**GOOD, "heads": [[99, 0]]},
    "other model": {**GOOD, "fingerprint": "other"},
    "other format": {**GOOD, "format": 99},
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_made_again(kind: str, few: Path) -> None:
    calibrator, probe = tiny_calibrator()
    content = DAMAGED[kind]
    if isinstance(content, dict):
        content = json.dumps({"format": calibration.FORMAT, "fingerprint": calibrator.fingerprint, **content})
    calibrator.path.parent.mkdir(parents=True)
    calibrator.path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = calibrator(probe)
    assert found is not None and found.trials == 12
    assert Calibration.load(calibrator.path, calibrator.fingerprint) == found


def test_a_folder_that_cannot_be_written_is_a_warning_and_the_heads_are_there(
    few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few.write_text("a file stands where the cache folder should be")
    calibrator, probe = tiny_calibrator()
    assert calibrator(probe) is not None and calibrator(probe) is calibrator(probe)
    (warning,) = calibrator.take_warnings()
    assert "could not be kept" in warning and "LONGCTX_CACHE" in warning
    assert str(few) not in warning, "results carry warnings, and are kept where paths of this machine have no place"
    assert calibrator.take_warnings() == ()
    assert few.is_file()


def test_an_interrupted_calibration_leaves_no_file(few: Path) -> None:
    calibrator, probe = tiny_calibrator()

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrator(probe, interrupt)
    assert not few.exists() or not list(few.rglob("*.*"))


def test_calibration_can_be_switched_off_or_handed_in(few: Path) -> None:
    off, probe = tiny_calibrator(None)
    assert off(probe) is None and not few.exists()
    fingerprint = off.fingerprint
    own = Calibration(fingerprint, 0, 1, ((0, 1),), (1.0,), 1.0)
    given, _ = tiny_calibrator(own)
    assert given(probe) is own and given.take_warnings() == ()
    with pytest.raises(BadOption, match="yes please"):
        tiny_calibrator("yes please")


def test_a_calibration_of_another_model_is_used_with_a_warning(few: Path) -> None:
    given, probe = tiny_calibrator(Calibration("another", 0, 1, ((0, 1),), (1.0,), 1.0))
    assert given(probe) is not None and given(probe) is not None
    for _ in range(2):  # what stays as it is is said with every result
        (warning,) = given.take_warnings()
        assert "another model" in warning


def test_the_embedded_model_has_heads_that_find_facts(embedded_reader: Any) -> None:
    found = embedded_reader._calibrator(embedded_reader._probe())
    assert found.fused_hits >= 0.85 and found.hits[0] >= 0.7
