"""Random slots: repeatable, different by head, and blind."""

from __future__ import annotations

from haystacks import chosen, haystack, question

from longctx.kv.random import Random


def test_the_same_seed_draws_the_same_slots_and_heads_differ() -> None:
    layer = haystack(200)
    policy = Random(budget=40, sinks=2, recent=8)
    (first, second), *_ = chosen(policy, layer, question(layer))
    assert [[first, second]] == chosen(policy, layer, question(layer, noise=3.0))
    assert first != second
    assert first != chosen(Random(budget=40, sinks=2, recent=8, seed=1), layer, question(layer))[0][0]
    for head in (first, second):
        assert len(head) == 40 and {0, 1, *range(192, 200)} <= head


def test_a_needle_is_found_only_by_chance() -> None:
    found = 0
    for at in range(10, 180):
        layer = haystack(200, needle=at)
        found += sum(at in head for head in chosen(Random(budget=40, sinks=2, recent=8), layer, question(layer))[0])
    assert 0.05 < found / 340 < 0.3
