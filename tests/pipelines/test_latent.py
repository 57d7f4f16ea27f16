"""Latent needles: no word that says anything stands in both the needle and its question."""

from __future__ import annotations

import random
import re

import pytest

from longctx.errors import UsageError
from longctx.pipelines.needles import latent
from longctx.pipelines.needles.latent import PLUGIN

# words that stand in any text
EMPTY = {"a", "an", "and", "at", "be", "been", "has", "in", "is", "of", "the", "to", "who"}


def test_needle_and_question_share_no_word() -> None:
    everything = PLUGIN().draw(random.Random(0), [0.5] * len(latent._LINKS), 0).cases
    for case in everything:
        needle, question = (
            {re.sub("s$", "", word) for word in re.findall("[a-z]+", text.lower())} - EMPTY
            for text in (case.needles[0].text, case.question)
        )
        assert not needle & question, case.question
    with pytest.raises(UsageError, match="latent needles"):
        PLUGIN().draw(random.Random(0), [0.5] * (len(latent._LINKS) + 1), 0)
