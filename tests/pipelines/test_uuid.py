"""A UUID: drawn by the seed, of version 4, and wrong by one character is wrong."""

from __future__ import annotations

import random
import uuid

from longctx.pipelines.needle_scores import said
from longctx.pipelines.needles.uuid import PLUGIN


def test_a_uuid_is_valid_and_every_character_counts() -> None:
    (case,) = PLUGIN().draw(random.Random(0), [0.5], 0).cases
    (value,) = case.answers
    assert uuid.UUID(value).version == 4 and str(uuid.UUID(value)) == value
    other = value[:-1] + ("0" if value[-1] != "0" else "1")
    assert said(value.upper(), case, PLUGIN.scoring) == 1.0
    assert said(other, case, PLUGIN.scoring) == 0.0
