"""Finds a model's retrieval heads: those whose attention goes from a question to the sentence that answers it.

Owns the measure and the small file that keeps it. Knows no document: the trials come from ``synthetic``. The paper that
names such heads is Wu et al. 2024 (arXiv 2404.15574); the measure here is the rank of the answering sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longctx.protocols import Inquirer
from longctx.synthetic import material

FORMAT = 2
_SEGMENTS, _FACTS, _FILLERS = 12, 3, 9
_ASKED = 4  # segments that compete for one question, each read with it: twice as many find the same heads (docs/log.md)
_GLANCED = 8  # segments whose summaries compete for one: they are all seen by one pass
_KEEP = 16  # heads kept
GLANCING = 8  # heads kept for summaries: each costs bytes of every token


@dataclass(frozen=True, slots=True)
class Calibration:
    """The heads of one model that find facts, best first, and how well each does.

    ``heads`` are (layer, head) pairs; ``hits`` is the share of trials in which the head gave the answering sentence
    more attention than any other sentence; ``fused_hits`` is that share for all of them together. ``glancing`` are the
    heads that best find the sentence among summaries, with a question that has seen none of the segments.
    """

    fingerprint: str
    seed: int
    trials: int
    heads: tuple[tuple[int, int], ...]
    hits: tuple[float, ...]
    fused_hits: float
    glancing: tuple[tuple[int, int], ...] = ()

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        part = path.with_suffix(f".{id(self)}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1), encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Calibration | None:
        """The stored calibration of this very model; None when there is none, or it is damaged or another's."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("format") != FORMAT or data["fingerprint"] != fingerprint:
                return None
            data["heads"] = tuple((int(layer), int(head)) for layer, head in data["heads"])
            data["glancing"] = tuple((int(layer), int(head)) for layer, head in data["glancing"])
            data["hits"] = tuple(float(hit) for hit in data["hits"])
            found = cls(**data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if found.heads else None


def calibrate(
    probe: Inquirer, fingerprint: str, seed: int = 0, progress: Callable[[str, int, int], None] | None = None
) -> Calibration:
    """Measure every head of ``probe`` on planted facts and keep the best. The same seed gives the same heads."""
    texts = material(seed, _SEGMENTS, _FACTS, _FILLERS)
    segments = [_tokenise(probe, sentences) for sentences in texts.segments]
    stored = dict(probe.read([ids for ids, _ in segments]))
    pairs = probe.pairs()
    summaries = [
        probe.summarise(stored[i], lengths, pairs) for i, (_, lengths) in enumerate(segments) if probe.summarises
    ]
    longest = max(len(ids) for ids, _ in segments)
    ranks: list[NDArray[np.int64]] = []
    glanced: list[NDArray[np.int64]] = []
    fused: list[bool] = []
    masses = []
    for done, trial in enumerate(texts.trials):
        group = [(trial.segment + step) % _SEGMENTS for step in range(_GLANCED)]
        inquiry = probe.inquiry(trial.question, heads=None)
        readings = dict(probe.ask([stored[i] for i in group[:_ASKED]], inquiry))
        mass = np.concatenate([_per_sentence(readings[k].attention, segments[group[k]][1]) for k in range(_ASKED)], 1)
        target = trial.sentence  # the trial's own segment stands first in its group
        ranks.append((mass > mass[:, [target]]).sum(1))
        masses.append((mass, target))
        if summaries:
            seen = probe.glance(probe.overview([summaries[i] for i in group]), inquiry, longest)
            glanced.append((seen > seen[:, [target]]).sum(1))
        if progress is not None:
            progress("calibrating", done + 1, len(texts.trials))
    all_ranks = np.stack(ranks)  # [trials, heads]
    order = _best(ranks)[:_KEEP]
    for mass, target in masses:
        score = (mass[order] / np.maximum(mass[order].sum(1, keepdims=True), 1e-12)).mean(0)  # as selectors fuse
        fused.append(bool(score.argmax() == target))
    return Calibration(
        fingerprint=fingerprint,
        seed=seed,
        trials=len(texts.trials),
        heads=tuple(pairs[i] for i in order),
        hits=tuple(round(float((all_ranks[:, i] == 0).mean()), 4) for i in order),
        fused_hits=round(float(np.mean(fused)), 4),
        glancing=tuple(pairs[i] for i in _best(glanced)[:GLANCING]) if glanced else (),
    )


def _best(ranks: Sequence[NDArray[np.int64]]) -> NDArray[np.intp]:
    """The heads by the mean of one over the rank, counted from 1, that each gave the answering sentence."""
    return np.argsort(-(1.0 / (1.0 + np.stack(ranks))).mean(0), kind="stable")


def _tokenise(probe: Inquirer, sentences: Sequence[str]) -> tuple[list[int], list[int]]:
    """Ids of a segment and the number of tokens of each of its sentences."""
    parts = [probe.plain(("" if i == 0 else " ") + sentence) for i, sentence in enumerate(sentences)]
    return [token for part in parts for token in part], [len(part) for part in parts]


def _per_sentence(attention: NDArray[np.float32], lengths: Sequence[int]) -> NDArray[np.float32]:
    """Attention summed over the tokens of each sentence: [heads, tokens] -> [heads, sentences]."""
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    return np.asarray(np.add.reduceat(attention, starts, axis=1), dtype=np.float32)
