"""Several threads: each is followed to its own end."""

from __future__ import annotations

import random

from longctx.pipelines.needles.threads import PLUGIN


def test_every_thread_has_its_first_person_in_the_question_and_its_last_in_the_answers() -> None:
    (case,) = PLUGIN(threads=3, steps=2).draw(random.Random(0), [1.0], 0).cases
    taken = dict(needle.text.removesuffix(".").split(" handed the parcel to ") for needle in case.needles)
    firsts = [name for name in taken if name not in taken.values()]
    assert len(firsts) == 3 and all(name in case.question for name in firsts)
    assert {taken[taken[name]] for name in firsts} == set(case.answers)
