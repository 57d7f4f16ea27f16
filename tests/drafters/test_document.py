"""The document drafter copies: from the likelier of two places, across the end of the prompt, from its own answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Scripted

from longctx.decoding.acceptance import Greedy
from longctx.decoding.controllers.fixed import Fixed
from longctx.decoding.loop import Decoding
from longctx.drafters._copying import Place, grow, trust
from longctx.drafters.document import Document
from longctx.drafts import Budget, Draft, DraftSource, Verified
from longctx.suffixes import LONGEST, SuffixIndex, fold, recent_matches

VOCAB = 100


def propose(document: list[int] | None, prompt: list[int], *answer: int, nodes: int = 8) -> Draft:
    text = None if document is None else np.asarray(document, dtype=np.int32)
    at_work = Document().begin(DraftSource(np.asarray(prompt, dtype=np.int32), VOCAB, text))
    if answer:
        at_work.observe(Verified(answer, np.asarray([prompt[-1]]), np.asarray([-1]), (0,)))
    return at_work.propose(Budget(nodes, nodes))


def paths(draft: Draft) -> dict[tuple[int, ...], float]:
    found: dict[int, tuple[int, ...]] = {-1: ()}
    for node, (token, parent) in enumerate(zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True)):
        found[node] = (*found[parent], token)
    return {found[node]: float(draft.values[node]) for node in range(len(draft))}


def test_the_longer_match_is_worth_more_than_the_more_frequent_one() -> None:
    document = [1, 2, 3, 10, 11, 9, 3, 20, 8, 3, 20, 7, 3, 20]
    found = paths(propose(document, [50], 1, 2, 3))
    assert found[10,] > found[20,] > 0
    found = paths(propose(document, [50], 60, 3))
    assert found[20,] > found[10,] > 0, "with no longer match, what is frequent is likelier"


def test_copies_go_on_as_a_tree_and_tell_where_in_the_document_they_stand() -> None:
    document = [5, 6, 7, 8, 1, 5, 6, 9, 9]
    draft = propose(document, [50], 5, 6)
    found = paths(draft)
    assert {(7,), (9,), (7, 8), (9, 9)} <= set(found)
    assert draft.origins is not None
    for token, origin in zip(draft.tokens.tolist(), draft.origins.tolist(), strict=True):
        assert origin < 0 or document[origin] == token


def test_without_a_document_the_prompt_is_copied_also_across_its_end() -> None:
    found = paths(propose(None, [1, 2, 3, 4, 9, 1, 2], 3))
    assert max(found, key=lambda path: found[path]) == (4,)
    assert (4, 9, 1, 2) in found


def test_the_answer_itself_is_copied() -> None:
    found = paths(propose([70, 71], [50], 1, 2, 3, 4, 60, 1, 2))
    assert (3, 4, 60) in found


def test_a_long_match_makes_a_long_copy() -> None:
    run = list(range(1, 61))
    found = paths(propose(run, [90], *run[:20], nodes=40))
    assert tuple(run[20:50]) in found
    assert found[(run[20],)] > 0.85


def test_nothing_is_proposed_where_nothing_stood_before() -> None:
    assert len(propose([1, 2, 3], [50], 60, 61)) == 0
    assert len(propose([], [50], 60)) == 0


def test_votes_of_places_add_up_to_less_than_certainty() -> None:
    text = np.asarray([4, 5, 6], dtype=np.int32)
    draft = grow([Place(text, 0, 3, True), Place(text, 1, 1, True), Place(text, 2, 1, False)], Budget(9, 1))
    assert 0 < draft.values.sum() < 1
    assert sorted(draft.tokens.tolist()) == [4, 5, 6]
    assert trust(1) < trust(4) < trust(60) < 1


# --- folded words and weighted places ---

FOLDS = np.arange(VOCAB, dtype=np.int32)
FOLDS[50:60] = np.arange(10, 20)  # 50 to 59 are 10 to 19 at the beginning of a sentence


def accepted(text: list[int], answer: list[int], **known: Any) -> int:
    """Tokens of ``answer`` that are accepted from one node a round, and every answer is the one that was to come."""
    at_work = Document().begin(DraftSource(np.asarray(text, dtype=np.int32), VOCAB, **known))
    target = Following([*text, *answer])
    run = Decoding(target, text, Greedy(), [("document", at_work)], Fixed(1), max_new_tokens=len(answer))
    assert list(run.run()) == answer
    return run.stats.accepted


class Following(Scripted):
    """Says the text it was made with, whatever is drafted."""

    def __init__(self, text: list[int]) -> None:
        super().__init__()
        self.text, self.vocabulary = text, VOCAB

    def score(self, tokens: Sequence[int], parents: Sequence[int], wanted: int) -> torch.Tensor:
        depths: list[int] = []
        for parent in parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        self.pending = list(tokens)
        after = [min(len(self.cache) + depth, len(self.text) - 1) for depth in depths[-wanted:]]
        return torch.nn.functional.one_hot(torch.tensor([self.text[at] for at in after]), VOCAB).float()


def test_a_copy_begins_where_the_words_are_the_same_but_for_their_case() -> None:
    text = [10, 11, 12, 13, 30, 31, 32, 33, 34, 12, 90, 12, 91, 12, 92, 7]
    answer = [50, 51, 52, 53, 30, 31, 32, 33, 34, 60]
    exact, folded = accepted(text, answer), accepted(text, answer, folds=FOLDS)
    assert folded > exact
    draft = Document().begin(DraftSource(np.asarray([*text, 50, 51, 52], dtype=np.int32), VOCAB, folds=FOLDS))
    proposed = draft.propose(Budget(3, 3)).tokens.tolist()
    assert proposed == [13, 30, 31], "what is proposed are the text's own tokens"


def test_words_that_are_the_same_help_only_where_few_tokens_are() -> None:
    text = [10, 11, 52, 20, 1, 50, 51, 12, 21, 1]
    for end, proposed in (([50, 51, 12], {21}), ([51, 12], {21, 20})):  # three tokens as they are, and two
        at_work = Document().begin(DraftSource(np.asarray([*text, 99, *end], dtype=np.int32), VOCAB, folds=FOLDS))
        assert set(at_work.propose(Budget(9, 1)).tokens.tolist()) == proposed
    short = SuffixIndex(np.asarray([3, 80, 4], dtype=np.int32))
    assert short.folded(FOLDS) is short.folded(FOLDS) and len(short.folded(FOLDS)) == 3
    assert fold(np.arange(5, dtype=np.int32)[::-1].copy(), np.asarray([1, 9, -2], np.int32)).tolist() == [3, 9, -2]


def test_of_two_places_with_one_past_the_weightier_is_copied() -> None:
    text = [1, 2, 3, 40, 41, 42, 43, 9, 1, 2, 3, 60, 61, 62, 63, 8]
    for answer, liked in (([1, 2, 3, 40, 41, 42, 43], slice(0, 8)), ([1, 2, 3, 60, 61, 62, 63], slice(8, 16))):
        weights = np.ones(len(text), dtype=np.float32)
        weights[liked] = 4.0
        other = np.ones(len(text), dtype=np.float32)
        other[liked] = 0.25
        assert accepted(text, answer, weights=weights) > accepted(text, answer, weights=other)


# --- the index, against comparing everything ---


def slowly(text: list[int], context: list[int]) -> dict[int, int]:
    """Every place of ``text`` that follows an end of ``context``, with the longest such end's length."""
    found = {}
    for place in range(1, len(text)):
        length = 0
        while length < min(place, len(context), LONGEST) and text[place - 1 - length] == context[-1 - length]:
            length += 1
        if length:
            found[place] = length
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=80), st.lists(st.integers(-1, 4), max_size=20), st.integers(1, 90))
def test_the_index_finds_the_longest_ends_and_all_their_places(text: list[int], context: list[int], most: int) -> None:
    expected = slowly(text, context)
    found = SuffixIndex(text).matches(context, 200)
    assert dict(found) == expected and len(found) == len(expected)
    few = SuffixIndex(text).matches(context, most)
    assert [length for _, length in few] == sorted(expected.values(), reverse=True)[:most] or len(few) == most
    assert all(expected[place] == length or expected[place] > length for place, length in few)
    assert len(few) == min(most, len(expected)) and len(dict(few)) == len(few)
    if few:
        assert few[0][1] == max(expected.values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=50), st.integers(2, 5), st.data())
def test_long_ends_are_compared_whole_and_end_where_a_token_differs(block: list[int], times: int, data: Any) -> None:
    text = block * times
    for at in data.draw(st.lists(st.integers(0, len(text) - 1), max_size=4)):
        text[at] += 1  # so that copies of the block differ here and there
    context = text[: data.draw(st.integers(1, len(text)))]
    if data.draw(st.booleans()):
        context = [*context, *block][-LONGEST - 9 :]
    expected = slowly(text, context)
    assert dict(SuffixIndex(text).matches(context, 300)) == expected
    assert max(expected.values(), default=0) <= LONGEST


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=80), st.integers(1, 90))
def test_a_growing_text_is_searched_as_the_index_searches_one(text: list[int], most: int) -> None:
    expected = {place: length for place, length in slowly(text, text).items() if place < len(text)}
    found = recent_matches(np.asarray(text, dtype=np.int32), most)
    assert dict(found).items() <= expected.items() and len(found) == min(most, len(expected))
    assert [length for _, length in found] == sorted(expected.values(), reverse=True)[:most]


def test_places_of_a_frequent_token_are_taken_from_the_whole_text() -> None:
    text = [1, 2] * 300 + [1, 3] * 300
    found = SuffixIndex(text).matches([9, 1], 20)
    following = [text[place] for place, _ in found]
    assert len(found) == 20 and 5 <= following.count(2) <= 15


def test_long_matches_are_told_apart_up_to_their_limit() -> None:
    run = np.random.default_rng(0).integers(0, 3, 400).tolist()
    found = SuffixIndex([*run, 8, *run[200:], 9]).matches(run, 4)
    assert {(400, LONGEST), (601, LONGEST)} == {pair for pair in found if pair[1] == LONGEST}


def test_a_text_that_repeats_one_token_costs_no_more_the_longer_it_is() -> None:
    looked: list[int] = []

    class Counting(np.ndarray[Any, np.dtype[np.int32]]):
        def __getitem__(self, key: Any) -> Any:
            looked.append(np.size(key) if isinstance(key, np.ndarray) else 0)
            return super().__getitem__(key)

    costs = []
    for count in (2000, 8000):
        looked.clear()
        matches = recent_matches(np.zeros(count, dtype=np.int32).view(Counting), 8)
        assert len(matches) == 8 and all(length == LONGEST for _, length in matches)
        costs.append(sum(looked))
    assert costs[0] == costs[1]
