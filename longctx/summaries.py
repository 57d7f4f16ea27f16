"""Summaries of segments on their way to the files of a document and back.

Owns what they are known by and what must fit when they are loaded. Formulas are ``backend``'s, files are ``store``'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longctx.backend.footprint import head_dim
from longctx.backend.probe import Probe
from longctx.backend.summaries import Summary
from longctx.overview import Heads, lengths
from longctx.store import files, summaries
from longctx.store.artifact import Artifact
from longctx.types import Unit


def keys(
    model: str,
    probe: Probe,
    heads: Heads,
    units: Sequence[Unit],
    segments: Sequence[tuple[int, int]],
    ids: Sequence[NDArray[np.int32]],
) -> list[str]:
    """What the summary of each segment, of tokens ``ids``, would be computed from now."""
    pairs = probe.looked_at(heads)
    return [
        summaries.key(model, probe.prefix, own.tolist(), lengths(units, segment), pairs)
        for own, segment in zip(ids, segments, strict=True)
    ]


def packed(summary: Summary) -> bytes:
    """The bytes of a summary's file."""
    return summaries.pack((summary.representation, summary.low, summary.high))


def restored(artifact: Artifact, probe: Probe, heads: Heads, model: str) -> list[Summary] | None:
    """The summary of every segment where ``heads`` look; None where one is not stored, with a warning if one was.

    Raises ArtifactError for a damaged file.
    """
    held = artifact.manifest.summaries
    if held is None:
        return None
    pairs = probe.looked_at(heads)
    segments = artifact.manifest.segments
    expected = keys(model, probe, heads, artifact.units, segments, artifact.segment_ids())
    made, dim = [], head_dim(probe.model.config.get_text_config(decoder=True))
    for stored, key, segment in zip(held.segments, expected, segments, strict=True):
        if stored.key != key:
            artifact.warn("summaries were stored for another prompt frame or other heads: segments are read again.")
            return None
        parts = summaries.load(artifact.folder, stored.file, probe.model.dtype, artifact.checks)
        if parts is None:
            artifact.warn(f"{stored.file.name} is gone from {artifact.folder}: segments are read again.")
            return None
        own = tuple(lengths(artifact.units, segment))
        try:
            summary = Summary(pairs, own, *(part.to(probe.model.device) for part in parts))
            if summary.low.shape[-1] != dim:
                raise ValueError(f"its keys have {summary.low.shape[-1]} numbers and those of the model {dim}")
        except ValueError as error:
            raise files.malformed(artifact.folder, stored.file, str(error)) from error
        made.append(summary)
    return made
