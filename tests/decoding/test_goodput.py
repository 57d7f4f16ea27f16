"""Goodput on a clock that is made up: near the best fixed count, off where nothing pays, on again when it does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from longctx import plugins
from longctx.decoding.claims import Refuted
from longctx.decoding.controllers.goodput import Goodput
from longctx.decoding.costs import RowCosts
from longctx.decoding.tree import TokenTree, merge
from longctx.drafts import Draft

Clock = Callable[[int], float]
FLAT: Clock = lambda rows: 1.0 + 0.005 * rows  # noqa: E731
STEEP: Clock = lambda rows: 0.2 + 0.8 * rows  # noqa: E731
STEPS: Clock = lambda rows: 1.0 if rows <= 8 else 2.2  # noqa: E731


def chain(length: int, sure: float) -> TokenTree:
    return merge([Draft.chain([1] * length, (sure ** np.arange(1, length + 1)).tolist())], length, 5)


def committed(rng: np.random.Generator, right: float, verified: int) -> list[int]:
    """Tokens of a round: each of the verified ones is right with chance ``right``; one more comes out in any case."""
    tokens: list[int] = []
    while len(tokens) < verified and rng.random() < right:
        tokens.append(1)
    return [*tokens, 1 if len(tokens) == verified and rng.random() < right else 0]


def run(
    control: object,
    clock: Clock,
    right: Callable[[int], float],
    rounds: int,
    claimed: float = 0.5,
    seed: int = 0,
    context: int = 0,
) -> tuple[float, list[int], list[bool]]:
    """Tokens a second, the nodes verified in each round, and whether each was drafted for."""
    rng = np.random.default_rng(seed)
    tokens, seconds, nodes, asked = 0, 0.0, [], []
    for number in range(rounds):
        budget = control.plan(99, context)  # type: ignore[attr-defined]
        asked.append(budget is not None)
        tree = control.cut(chain(min(budget.nodes, 40), claimed), 0.0) if budget is not None else merge([], 0, 0)  # type: ignore[attr-defined]
        took = clock(1 + len(tree))
        came = committed(rng, right(number), len(tree))
        control.feedback(came, 1 + len(tree), took, context)  # type: ignore[attr-defined]
        tokens, seconds = tokens + len(came), seconds + took + 0.001 * (budget is not None)
        nodes.append(len(tree))
    return tokens / seconds, nodes, asked


def expected(clock: Clock, right: float, nodes: int) -> float:
    return sum(right**k for k in range(nodes + 1)) / clock(1 + nodes)


def settled(clock: Clock, costs: RowCosts, context: int = 0, rounds: int = 400) -> list[int]:
    """The nodes of each round of one request whose drafts are right with chance 0.7."""
    return run(Goodput().begin(costs), clock, lambda _: 0.7, rounds, claimed=0.7, context=context)[1]


@pytest.mark.parametrize("clock", [FLAT, STEEP, STEPS], ids=["flat", "steep", "steps"])
@pytest.mark.parametrize("right", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("claimed", [0.2, 0.9])
def test_it_comes_near_the_best_fixed_count_whatever_drafters_claim(clock: Clock, right: float, claimed: float) -> None:
    best = max(expected(clock, right, nodes) for nodes in range(41))
    rate, _, _ = run(Goodput().begin(), clock, lambda _: right, 600, claimed)
    # a cost that jumps hides the better count behind it
    assert rate > (0.8 if clock is STEPS else 0.9) * best


def test_a_second_row_that_is_dear_does_not_keep_it_from_many() -> None:
    """Sixteen rows cost three times one, two nearly twice: drafts that are mostly right are worth it from a few on."""
    costs = RowCosts()
    for rows in (1, 2):
        costs.add(rows, 1.0 if rows == 1 else 1.7)
    clock: Clock = lambda rows: {1: 1.0, 2: 1.7}.get(rows, 3.0)  # noqa: E731
    best = max(expected(clock, 0.9, nodes) for nodes in range(41))
    rate, nodes, _ = run(Goodput().begin(costs), clock, lambda _: 0.9, 300, claimed=0.8)
    assert rate > 0.9 * best and np.median(nodes) >= 8


@pytest.mark.parametrize("dear", [0.3, 0.6])
def test_where_every_row_is_dear_next_to_nothing_is_lost_by_trying_more(dear: float) -> None:
    """Against knowing the costs of all counts from the first round on."""
    clock: Clock = lambda rows: 1.0 + dear * (rows - 1)  # noqa: E731
    rates = []
    for known in (False, True):
        costs = [RowCosts() for _ in range(8)]
        for one in costs:
            for rows in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48) if known else ():
                one.add(rows, clock(rows))
        found = [run(Goodput().begin(one), clock, lambda _: 0.9, 60, 0.8, seed)[0] for seed, one in enumerate(costs)]
        rates.append(np.mean(found))
    assert rates[0] > 0.95 * rates[1]


DEAR: Clock = lambda rows: float(np.interp(rows, (1, 2, 4, 16, 64), (1.0, 1.6, 2.0, 3.0, 7.0)))  # noqa: E731


def tried(clock: Clock, share: float = 0.7, off: float = 1.0) -> dict[int, float]:
    """What products take where they are ``share`` of a pass of one row, and ``off`` of what more rows add to it."""
    return {rows: share + off * (clock(rows) - 1.0) for rows in (1, 2, 3, 4, 8, 16, 32, 64)}


def told(clock: Clock, off: float = 1.0) -> RowCosts:
    costs = RowCosts()
    costs.expect(tried(clock, off=off))
    return costs


@pytest.mark.parametrize("off", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("right", [0.1, 0.3])
def test_what_products_take_keeps_a_first_request_from_trying_what_is_dear(right: float, off: float) -> None:
    def rate(begin: Callable[[], RowCosts]) -> float:
        rates = [run(Goodput().begin(begin()), DEAR, lambda _: right, 96, 0.5, seed)[0] for seed in range(16)]
        return float(np.mean(rates)) / max(expected(DEAR, right, nodes) for nodes in range(41))

    assert rate(lambda: told(DEAR, off)) > max(0.985, rate(RowCosts) + 0.003)


def test_rows_that_were_not_measured_cost_as_far_from_their_products_as_the_measured_ones() -> None:
    costs = told(DEAR)
    costs.renew(2.0)  # products of one row take 0.7 of it
    products = {rows: (took - 0.7) / 2.0 for rows, took in tried(DEAR).items()}
    for rows in (1, 4, 16, 64):
        assert costs.seconds(rows) == pytest.approx(2.0 * (1.0 + 0.005 * (rows - 1) + products[rows]))
    expected = {rows: costs.seconds(rows) for rows in (2, 3, 4, 8, 16)}
    costs.add(16, expected[16] + 0.3)
    costs.add(2, expected[2] - 0.1)
    assert costs.seconds(16) == pytest.approx(expected[16] + 0.3)
    for rows in (3, 4, 8):
        off = float(np.interp(rows, (2, 16), (-0.1, 0.3)))
        assert costs.seconds(rows) == pytest.approx(expected[rows] + off)
    assert costs.known and not RowCosts().known


def test_the_first_pass_that_is_measured_says_what_there_is_beside_products() -> None:
    many, early, late = told(DEAR), told(DEAR), RowCosts()
    many.add(4, 2.0)  # products of four rows add one second to those of one: one row takes a second
    assert many.seconds(1) == pytest.approx(2.0 / (1.0 + 0.005 * 3 + 1.0))
    early.add(1, 0.35)  # its products alone took twice that: as disturbed as they were
    assert early.seconds(4) == pytest.approx(0.35 * (1.0 + 0.005 * 3 + 1.0 / 0.7))
    late.renew(1.0)
    late.expect(tried(DEAR))
    late.renew(1.0)
    assert late.seconds(4) == pytest.approx(1.0 + 0.005 * 3 + 1.0) and late.known
    late.expect({1: 1.0, 64: 1.0})
    late.renew(1.0)
    assert late.seconds(4) == pytest.approx(1.0 + 0.005 * 3 + 0.95), "what was said first counts"


def test_beyond_what_was_measured_products_say_how_costs_go_on() -> None:
    costs = told(lambda rows: 1.0 + 0.7 * (rows > 1))
    costs.add(1, 1.0)
    costs.add(2, 2.0)
    assert costs.seconds(16) == pytest.approx(2.0 + 0.005 * 14), "and not the line of one row and two"


def test_no_count_costs_less_than_one_row_and_none_more_than_as_many_passes() -> None:
    costs = RowCosts()
    costs.expect({1: 0.7, 16: 1.2, 32: 1.3, 64: 8.0})
    costs.renew(1.0)
    costs.add(64, 1.6)
    assert costs.seconds(32) == 1.0 and costs.seconds(64) == pytest.approx(1.6)
    costs = told(lambda rows: rows**2)
    costs.add(1, 1.0)
    assert costs.seconds(4) == pytest.approx(4.0 + 0.005 * 3)


@pytest.mark.parametrize("controller", ["goodput", "smartspec"])
def test_products_of_a_pass_of_its_own_say_nothing_of_passes_that_are_shared(controller: str) -> None:
    planned = []
    for costs in (RowCosts(), None):
        control = plugins.load("controllers", controller).begin(costs)
        control.expect(tried(STEEP))
        control.feedback([1], 1, 1.0, 0)
        budget = control.plan(99, 0)
        planned.append(len(control.cut(chain(min(16, budget.nodes), 0.7), 0.0)) if budget is not None else 0)
    assert planned[0] == 0 < planned[1]


def test_products_are_forgotten_little_by_little_and_change_nothing_that_was_measured() -> None:
    costs = told(DEAR)
    for _ in range(200):
        costs.renew(1.0)
    assert costs.seconds(16) == pytest.approx(1.0 + 0.005 * 15, abs=0.001), (
        "what seems too dear for ever is never measured"
    )
    late = RowCosts()
    for rows in (1, 16):
        late.add(rows, 1.0)
    late.expect(tried(DEAR))
    assert late.seconds(8) == 1.0


def test_where_nothing_is_right_it_stops_drafting_and_loses_next_to_nothing() -> None:
    rate, nodes, asked = run(Goodput().begin(), STEEP, lambda _: 0.0, 1200, claimed=0.8)
    assert rate > 0.98 / STEEP(1)
    assert sum(asked[500:]) < 40, "asked again and again for drafts that never pay"


def test_a_request_loses_next_to_nothing_to_drafts_that_were_never_right_in_an_earlier_one() -> None:
    def begun(costs: RowCosts, refuted: Refuted | None) -> tuple[float, int]:
        rate, nodes, _ = run(Goodput().begin(costs, refuted), DEAR, lambda _: 0.0, 40, claimed=0.7)
        return rate, sum(nodes)

    costs, refuted = told(DEAR), Refuted()
    alone, first, later = begun(costs, None), begun(told(DEAR), refuted), begun(costs, refuted)
    assert first[1] == alone[1] > 0 == later[1]
    assert first[0] < 0.985 / DEAR(1) < 0.995 / DEAR(1) < later[0]


@pytest.mark.parametrize("wrong", [0, 40])  # rounds, in which it pauses longer and longer
@pytest.mark.parametrize("right", [0.7, 0.95])
def test_drafts_that_become_right_are_verified_soon_in_spite_of_earlier_requests(right: float, wrong: int) -> None:
    def request(refuted: Refuted, seed: int) -> tuple[float, list[int]]:
        control = Goodput().begin(told(DEAR), refuted)
        return run(control, DEAR, lambda at: right if at >= wrong else 0.0, wrong + 96, right, seed)[:2]

    def doubting() -> Refuted:
        refuted = Refuted()
        run(Goodput().begin(told(DEAR), refuted), DEAR, lambda _: 0.0, 40, right)
        assert len(refuted) == 1
        return refuted

    fresh = [request(Refuted(), seed)[0] for seed in range(16)]
    rates, nodes = zip(*(request(doubting(), seed) for seed in range(16)), strict=True)
    assert np.mean(rates) > 0.96 * np.mean(fresh)
    assert wrong or np.median([np.flatnonzero(one)[0] for one in nodes]) <= 4, "rounds until one is verified"


def test_the_hit_that_ends_a_doubt_ends_the_pause_as_well() -> None:
    refuted = Refuted()
    run(Goodput().begin(told(DEAR), refuted), DEAR, lambda _: 0.0, 40, claimed=0.7)
    *_, asked = run(Goodput().begin(told(DEAR), refuted), DEAR, lambda at: float(at >= 60), 100, claimed=0.7)
    later = np.flatnonzero(asked[60:])
    assert later[0] > 0 and np.all(np.diff(later[:4]) == 1) and not refuted


def test_what_is_never_verified_for_its_own_sake_cannot_be_locked_out() -> None:
    """A first token that pays alone for no row, and behind it a copy that nearly always goes on."""
    dear: Clock = lambda rows: 1.0 + 0.8 * (rows > 1) + 0.02 * rows  # noqa: E731
    rng, refuted = np.random.default_rng(0), Refuted()
    copy = merge([Draft.chain([1] * 12, (0.5 * 0.95 ** np.arange(12)).tolist())], 12, 5)
    wrong = Goodput().begin(RowCosts(), refuted)
    run(wrong, FLAT, lambda _: 0.0, 60, claimed=0.95)
    assert len(refuted) == 1
    tokens = 0
    control = Goodput().begin(RowCosts(), refuted)
    for _ in range(128):
        budget = control.plan(99, 0)
        tree = control.cut(copy, 0.0) if budget is not None else merge([], 0, 0)
        came: list[int] = []
        right = rng.random() < 0.5
        while right and len(came) < len(tree):
            came.append(1)
            right = rng.random() < 0.95
        came.append(1 if right else 0)
        control.feedback(came, 1 + len(tree), dear(1 + len(tree)), 0)
        tokens += len(came)
    assert tokens > 2 * 128


def test_it_comes_back_when_drafts_become_right() -> None:
    _, nodes, asked = run(Goodput().begin(), STEPS, lambda at: 0.0 if at < 500 else 0.95, 900, claimed=0.5)
    assert np.mean(nodes[700:]) >= 6
    assert min(np.flatnonzero(asked[500:])) <= 64


def test_the_count_is_that_of_trying_every_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        costs = RowCosts()
        for rows in (1, 2, 4, 8, 12, 16):
            costs.add(rows, float(rng.uniform(0.5, 2) * (1 + rows / 20)))
        reach = -np.sort(-rng.random(15))
        tried = [(1 + reach[:count].sum()) / costs.seconds(1 + count) for count in range(16)]
        assert costs.best(reach) == int(np.argmax(tried))


def test_where_rows_cost_more_behind_a_long_context_less_is_drafted_there_and_no_less_elsewhere() -> None:
    """Ten requests take turns at two contexts and are told of each pass; the last of each begins where it should."""
    costs = RowCosts()
    for _ in range(5):
        short, long = (settled(clock, costs, at, 60) for clock, at in ((FLAT, 1000), (STEEP, 100_000)))
    best = [max(range(41), key=lambda n: expected(clock, 0.7, n)) for clock in (FLAT, STEEP)]  # noqa: B023
    assert best[0] >= 8 and best[1] == 0
    assert min(short[1:]) >= 6 and sum(long[1:]) <= 3


def test_a_later_request_drafts_at_once_as_much_as_the_first_learned_to() -> None:
    costs = RowCosts()
    fresh = settled(STEEP, costs)
    later = settled(STEEP, costs)
    assert fresh[0] == later[0] == 0, "the first pass says how fast the machine is now"
    assert fresh[1] >= 4 and max(later[1:10]) <= 1, "the first drafts of all rest on a guess"
    slow = settled(lambda rows: 10 * STEEP(rows), costs)
    assert max(slow[1:10]) <= 1, "a machine with more to do is slower with any count of rows"
    assert settled(STEEP, RowCosts())[1] == fresh[1], "what is not shared is not known"


def test_drafts_must_pay_for_the_time_they_took_to_be_made() -> None:
    costs = RowCosts()
    for rows, seconds in ((1, 1.0), (2, 1.01), (4, 1.02)):
        costs.add(rows, seconds)
    reach = np.asarray([0.05, 0.02])
    assert costs.best(reach) == 2 and costs.best(reach, 0, 0.03) == 2
    assert costs.best(reach, 0, 0.06) == 0
    rng = np.random.default_rng(3)
    for beside in rng.uniform(0, 1, 100):
        reach = -np.sort(-rng.random(3))
        tried = [(1 + reach[:n].sum()) / (costs.seconds(1 + n) + (beside if n else 0)) for n in range(4)]
        assert costs.best(reach, 0, beside) == int(np.argmax(tried))


def test_drafts_that_are_nearly_free_to_verify_and_long_to_make_are_no_longer_asked_for() -> None:
    asked = {}
    for took in (0.0, 0.3):
        control = Goodput().begin()
        control.feedback((5,), 1, 1.0, 0)
        asked[took] = 0
        for _ in range(200):
            if control.plan(16, 0) is None:
                tree = merge([], 0, 0)
            else:
                tree = control.cut(chain(8, 0.15), took)
                asked[took] += 1
                assert not (took and len(tree)), "what wins less than it took to make is not verified"
            control.feedback((-1,), 1 + len(tree), 1.0 + 0.001 * len(tree), 0)
    assert asked[0.3] < 30 < asked[0.0]


def test_passes_are_asked_for_until_more_than_one_count_of_rows_was_measured() -> None:
    costs = RowCosts()
    control = Goodput().begin(costs)
    assert control.untimed(5) == (1, 16)
    control.feedback((), 1, 2.0, 5)
    assert Goodput().begin(costs).untimed(5) == (1, 16)
    control.feedback((), 16, 5.0, 5)
    assert Goodput().begin(costs).untimed(9000) == () and costs.seconds(16, 9000) == 5.0
    assert control.plan(9, 5) is not None, "what a plain pass costs is known by now"
