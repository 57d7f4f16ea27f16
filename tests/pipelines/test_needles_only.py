"""A haystack of needles: every sentence of the filler has the form of the needle."""

from __future__ import annotations

import random
import re
from itertools import islice

from longctx.pipelines.needles.needles_only import PLUGIN


def test_the_filler_has_the_form_of_the_needle_and_repeats_nothing() -> None:
    made = PLUGIN().draw(random.Random(0), [0.5], 0)
    form = re.compile(r"The crate [a-z]+-\d{4} holds lot \d{7}\.")
    assert made.filler is not None and form.fullmatch(made.cases[0].needles[0].text)
    filler = list(islice(made.filler(), 3000))
    assert all(form.fullmatch(sentence) for sentence in filler) and len(set(filler)) == len(filler)
    assert filler == list(islice(made.filler(), 3000))
