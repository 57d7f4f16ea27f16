"""The draft-verify loop on a target whose laws are written down: what comes out, what is committed, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scripted import VOCAB, Scripted, Telling, garbage, half, nothing, plainly, right, wrong

from longctx.decoding.acceptance import Greedy, Residual, SharedNoise
from longctx.decoding.controllers.fixed import Fixed
from longctx.decoding.loop import Decoding
from longctx.drafts import Budget, Draft, Draw
from longctx.errors import DraftError, ModelError

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
TELLERS = {"right": right, "wrong": wrong, "half": half, "garbage": garbage, "nothing": nothing}


def request(
    tellers: Sequence[Callable[..., Draft]], new: int = 40, target: Scripted | None = None, **options: Any
) -> Decoding:
    target = Scripted() if target is None else target
    drafters = [(f"d{i}", Telling(PROMPT, tell)) for i, tell in enumerate(tellers)]
    rule = options.pop("rule", Greedy())
    return Decoding(target, PROMPT, rule, drafters, Fixed(8), max_new_tokens=new, **options)


@pytest.mark.parametrize("rows", ["tree", "chain", "off"])
@pytest.mark.parametrize("names", [(), *((name,) for name in TELLERS), tuple(TELLERS), ("garbage", "right")])
def test_drafting_never_changes_what_comes_out(names: tuple[str, ...], rows: Any) -> None:
    target = Scripted(rows)
    decoding = request([TELLERS[name] for name in names], target=target)
    assert list(decoding.run()) == plainly(PROMPT, 40) == decoding.new
    assert target.cache == decoding.committed[:-1] and not target.pending
    assert decoding.stats.tokens == 40 and decoding.stats.rounds == target.passes


@pytest.mark.parametrize("names", [("right",), ("half", "wrong"), tuple(TELLERS)])
def test_one_seed_draws_the_same_tokens_with_drafting_on_and_off(names: tuple[str, ...]) -> None:
    drafted = request([TELLERS[name] for name in names], rule=SharedNoise(5))
    plain = request([], rule=SharedNoise(5))
    assert list(drafted.run()) == list(plain.run()) != plainly(PROMPT, 40)
    other = request([], rule=SharedNoise(6))
    assert list(other.run()) != drafted.new


def test_right_drafts_save_passes_and_the_counts_say_so() -> None:
    target = Scripted()
    decoding = request([right, wrong], new=41, target=target)
    list(decoding.run())
    stats = decoding.stats
    assert stats.rounds == target.passes < 20
    assert stats.accepted == stats.accepted_by_source["d0"] == 41 - stats.rounds
    assert stats.accepted_by_source["d1"] == 0 < stats.drafted_by_source["d1"]
    assert stats.tokens_per_round == 41 / stats.rounds
    assert set(stats.seconds) == {"setup", "prefill", "draft", "verify", "commit"}


@pytest.mark.parametrize("names", [("right",), ("half", "wrong"), tuple(TELLERS)])
def test_every_round_says_what_it_drafted_and_committed(names: tuple[str, ...]) -> None:
    decoding = request([TELLERS[name] for name in names], new=30)
    commits = list[int]()
    decoding.prefill()
    while not decoding.done:
        commits.append(len(decoding.round()))
    stats = decoding.stats
    assert [one.tokens for one in stats.each_round] == commits and sum(commits) == 30
    for total, each in (
        (stats.drafted_by_source, [one.drafted for one in stats.each_round]),
        (stats.accepted_by_source, [one.accepted for one in stats.each_round]),
    ):
        assert total == {name: sum(one[name] for one in each) for name in total} and len(total) == len(names)
    assert stats.each_round[0].drafted == dict.fromkeys(stats.drafted_by_source, 0), "the prompt's own pass"
    for one in stats.each_round[:-1]:
        assert max(one.accepted.values()) <= one.tokens - 1 <= sum(one.accepted.values())
    for phase in ("draft", "verify"):
        spent = sum(one.seconds[phase] for one in stats.each_round[1:])
        assert spent == pytest.approx(stats.seconds[phase]) and spent > 0


@pytest.mark.parametrize("new", [1, 2, 3, 7])
def test_a_limit_inside_a_draft_is_kept_and_no_row_is_verified_beyond_it(new: int) -> None:
    target = Scripted()
    decoding = request([right], new=new, target=target)
    assert list(decoding.run()) == plainly(PROMPT, new)
    assert target.length == len(PROMPT) + new - 1
    assert decoding.stats.drafted <= 8 * max(0, new - 1)


def test_the_end_inside_a_draft_clips_text_and_cache_alike() -> None:
    """Published mistake: the cache keeps rows behind the end that the text does not have."""
    full = plainly(PROMPT, 40)
    inside = 0
    for stop in set(full):
        expected = full[: full.index(stop) + 1]
        target = Scripted()
        decoding = request([right], target=target, ends=lambda new, stop=stop: new[-1] == stop)  # type: ignore[misc]
        assert list(decoding.run()) == expected
        assert target.cache == [*PROMPT, *expected][:-1]
        inside += decoding.stats.accepted > decoding.stats.tokens - decoding.stats.rounds
    assert inside, "no end fell on a drafted token"
    asked: list[list[int]] = []
    decoding = request([right], new=9, ends=lambda new: asked.append(list(new)) or False)  # type: ignore[func-returns-value]
    out = list(decoding.run())
    assert asked == [out[: count + 1] for count in range(9)], "asked once for every committed token, in order"


def test_drafters_move_on_committed_tokens_only() -> None:
    """Published mistake: an index advanced by tokens that were rejected."""
    teller = Telling(PROMPT, half)
    decoding = Decoding(Scripted(), PROMPT, Greedy(), [("half", teller)], Fixed(8), max_new_tokens=30)
    for _ in iter(lambda: decoding.done, True):
        decoding.round()
        seen = [token for verified in teller.seen for token in verified.tokens]
        assert seen == decoding.new[: len(seen)]
    verified = next(v for v in teller.seen if len(v.rows) > 1)
    assert verified.rows[list(verified.accepted)][1:].tolist() == list(verified.tokens[:-1])
    assert verified.parents[0] == -1 and verified.told == ()


@pytest.mark.parametrize("others", [0, 2, 99])
def test_the_likeliest_tokens_are_told_for_accepted_rows_and_some_others_to_those_who_ask(
    others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longctx.decoding.loop._OTHERS", others)
    teller = Telling(PROMPT, half)
    target = Scripted()
    decoding = Decoding(target, PROMPT, Greedy(), [("half", teller)], Fixed(8), max_new_tokens=30, needs=3)
    list(decoding.run())
    assert any(len(verified.rows) > len(verified.accepted) + 2 for verified in teller.seen)
    for verified in teller.seen:
        kept, rows = len(verified.accepted), len(verified.rows)
        assert verified.told[:kept] == verified.accepted and len(set(verified.told)) == min(rows, kept + others)
        assert verified.tops.shape == verified.chances.shape == (len(verified.told), 3)
        assert verified.tops[:kept, 0].tolist() == list(verified.tokens)
        assert (verified.chances[:, 0] > 0.5).all() and (verified.chances.sum(-1) <= 1).all()


class Failing:
    """Raises in one of its methods from the third call on."""

    def __init__(self, where: str) -> None:
        self.where, self.calls = where, 0

    def _may_fail(self, where: str) -> None:
        self.calls += self.where == where
        if where == self.where and self.calls > 2:
            raise KeyError("the index is gone")

    def propose(self, budget: Budget) -> Draft:
        self._may_fail("propose")
        return Draft.empty()

    def observe(self, verified: object) -> None:
        self._may_fail("observe")


@pytest.mark.parametrize("where", ["propose", "observe"])
def test_a_failing_drafter_is_an_error_of_its_name_and_the_tokens_so_far_stand(where: str) -> None:
    target = Scripted()
    drafters: Any = [("good", Telling(PROMPT, half)), ("bad", Failing(where))]
    decoding = Decoding(target, PROMPT, Greedy(), drafters, Fixed(8), max_new_tokens=30)
    with pytest.raises(DraftError, match="'bad' failed .*KeyError.*index is gone"):
        list(decoding.run())
    so_far, cache = list(decoding.new), list(target.cache)
    assert so_far == plainly(PROMPT, len(so_far)) and so_far
    assert cache == decoding.committed[:-1] and not target.pending
    drafters[1][1].where = "nowhere"
    assert [*so_far, *decoding.run()] == plainly(PROMPT, 30), "decoding goes on where it was"


@pytest.mark.parametrize(
    "draft",
    [
        Draft(torch.tensor([1, 2]).numpy(), torch.tensor([-1]).numpy(), torch.tensor([0.5, 0.5]).numpy()),
        Draft(torch.tensor([1, 2]).numpy(), torch.tensor([1, -1]).numpy(), torch.tensor([0.5, 0.5]).numpy()),
        Draft(torch.tensor([1, 2]).numpy(), torch.tensor([-1, -7]).numpy(), torch.tensor([0.5, 0.5]).numpy()),
        None,
    ],
)
def test_what_is_no_draft_is_an_error(draft: Any) -> None:
    with pytest.raises(DraftError, match="'d0' failed"):
        list(request([lambda text, budget: draft]).run())


def two(**changes: Any) -> Draft:
    """A chain of two tokens, with something wrong in it."""
    arrays = {"tokens": np.asarray([1, 2]), "parents": np.asarray([-1, 0]), "values": np.asarray([0.5, 0.4])}
    return Draft(**arrays | changes)


@pytest.mark.parametrize(
    ("draft", "says"),
    [
        (two(origins=np.asarray([1])), "origin a node"),
        (two(parents=np.asarray([-1.0, 0.0])), "parents must be whole"),
        (two(tokens=np.asarray(["a", "b"])), "tokens must be whole"),
        (two(values=np.asarray([np.nan, 0.1])), "finite"),
        (two(draws=(Draw(9, np.asarray([1]), np.asarray([1.0])),)), "node 9"),
        (two(draws=(Draw(0, np.asarray([7]), np.asarray([1.0])),)), "cannot have been drawn"),
        (two(draws=(Draw(0, np.asarray([1, 7]), np.asarray([0.0, 1.0])),)), "cannot have been drawn"),
        (two(draws=(Draw(0, np.asarray([1, 1]), np.asarray([0.5, 0.5])),)), "twice"),
        (two(draws=(Draw(0, np.asarray([1]), np.asarray([0.5, 0.5])),)), "one probability a token"),
        # a law that was cut and not drawn from anew makes every ratio to it wrong
        (two(draws=(Draw(0, np.asarray([1, 3]), np.asarray([0.5, 0.3])),)), "sums to 0.8, not to 1"),
        (two(draws=(Draw(0, np.asarray([1, 3]), np.asarray([0.5, np.inf])),)), "sums to inf"),
    ],
)
def test_a_draft_whose_arrays_disagree_is_an_error_that_says_which(draft: Draft, says: str) -> None:
    with pytest.raises(DraftError, match=says):
        list(request([lambda text, budget: draft], rule=Residual(1)).run())


def test_a_law_of_tokens_outside_the_vocabulary_is_taken() -> None:
    draft = two(draws=(Draw(0, np.asarray([1, VOCAB + 3]), np.asarray([0.5, 0.5])),))
    assert len(list(request([lambda text, budget: draft], rule=Residual(1)).run())) == 40


def test_a_failing_end_leaves_the_round_before_it() -> None:
    target, asked = Scripted(), iter(range(99))

    def ends(new: Sequence[int]) -> bool:
        if next(asked) == 9:
            raise ZeroDivisionError("no")
        return False

    decoding = request([right], target=target, ends=ends)
    with pytest.raises(ZeroDivisionError):
        list(decoding.run())
    assert not target.pending and target.cache == decoding.committed[:-1] and not decoding.done
    so_far = list(decoding.new)
    assert [*so_far, *decoding.run()] == plainly(PROMPT, 40)


def test_a_model_that_fails_leaves_the_round_before_it() -> None:
    target = Scripted(nan_at=len(PROMPT) + 12)
    decoding = request([half], target=target)
    with pytest.raises(ModelError, match=f"position {len(PROMPT) + 12} is not finite"):
        list(decoding.run())
    assert not target.pending and target.cache == decoding.committed[:-1]
    target.nan_at = None
    so_far = list(decoding.new)
    assert [*so_far, *decoding.run()] == plainly(PROMPT, 40)


def test_a_long_prompt_is_fed_in_pieces_and_reported() -> None:
    target = Scripted()
    seen: list[tuple[str, int, int]] = []
    decoding = request([right], new=5, target=target, piece=3, progress=lambda *at: seen.append(at))
    assert list(decoding.run()) == plainly(PROMPT, 5)
    assert seen == [("prompt", count, len(PROMPT)) for count in (3, 6, 8)]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    target = Scripted()
    with pytest.raises(KeyboardInterrupt):
        list(request([right], target=target, piece=3, progress=interrupt).run())
    assert target.passes == 1


def test_processors_see_what_plain_decoding_would_have_shown_them() -> None:
    """A penalty on every token used so far, which a drafted token's own path has to feel."""

    def shown(names: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        seen: list[list[int]] = []

        def penalty(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            seen.append(ids[0].tolist())
            logits[0, ids[0]] -= 2.5
            return logits

        decoding = request([TELLERS[name] for name in names], processors=(penalty,))
        return list(decoding.run()), seen

    plain, drafted = shown(()), shown(("right", "half", "garbage"))
    assert plain == drafted and plain[0] != plainly(PROMPT, 40)


def test_plain_decoding_makes_no_pass_for_nobody() -> None:
    target = Scripted()
    list(request([], new=5, target=target).run())
    assert target.passes == 5  # the prompt, and one for every token that another follows
    assert list(request([right], new=0).run()) == []
    assert VOCAB == target.vocabulary
