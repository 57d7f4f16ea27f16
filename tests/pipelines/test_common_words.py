"""Common words: counting the text, wherever it ends, gives the answers."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice

from longctx.pipelines.needles.common_words import PLUGIN


def test_counting_gives_the_answers_whatever_the_length() -> None:
    made = PLUGIN(words=5).draw(random.Random(0), [], 0)
    assert made.filler is not None and made.cases[0].needles == ()
    for lines in (3, 50, 400):
        counts = Counter(re.findall("[a-z]+", " ".join(islice(made.filler(), lines))))
        assert {word for word, _ in counts.most_common(5)} == set(made.cases[0].answers)
        assert counts.most_common(6)[5][1] < lines
        assert made.counted is not None and set(made.counted(" ".join(islice(made.filler(), lines)))) == set(
            made.cases[0].answers
        )
    assert made.counted is not None and made.counted(next(made.filler())) == (), "in one line all words are rare"
