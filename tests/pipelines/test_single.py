"""One fact in words: no two facts of a text are alike, and the key is what the question asks about."""

from __future__ import annotations

import random

from longctx.pipelines.needles.single import PLUGIN


def test_question_and_sentence_share_the_key_and_the_answer_is_in_the_sentence_only() -> None:
    cases = PLUGIN().draw(random.Random(0), [i / 19 for i in range(20)], 0).cases
    assert len({case.question.split()[0] for case in cases}) > 1
    for case in cases:
        (needle,) = case.needles
        assert case.keys[0] in needle.text and case.keys[0] in case.question
        assert case.answers[0] in needle.text and case.answers[0] not in case.question
