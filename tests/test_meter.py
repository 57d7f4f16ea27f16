"""What passes read, added up many at once: the same as one by one."""

from __future__ import annotations

import random

import pytest
import torch

from longctx.backend import meter
from longctx.backend.meter import Meter
from longctx.keys import EVERYTHING, Choice, Unread


def logs(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("many", [0, 3, 1000])
def test_sums_are_those_of_passes_one_by_one(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "_MANY", many)
    draw = random.Random(3)
    own, calls, reads, shares, bounds = Meter(100), 0, 0.0, list[float](), list[float]()
    for step in range(40):
        blocks, rows = draw.choice([(1, 1), (1, 5), (2, 5)])
        shape = (blocks, 2, rows)
        read, new, left, most = (logs(*shape, seed=4 * step + k) for k in range(4))
        bound = most if draw.random() < 0.5 else None
        how, slots = draw.choice(["all", "some", "counted"]), torch.zeros(blocks, 2, 30, dtype=torch.long)
        counts = torch.randint(1, 31, (blocks, 2), generator=torch.Generator().manual_seed(step))
        unread = Unread(left)
        choice = {"all": EVERYTHING, "some": Choice(slots, None, unread), "counted": Choice(slots, counts, unread)}[how]
        own.count(choice, 100, blocks)
        if how != "all":
            own.estimate(left, torch.logaddexp(read, new), bound, blocks)
        own.end(0)
        calls += blocks
        reads += blocks * {"all": 100.0, "some": 30.0, "counted": float(counts.double().mean())}[how]
        known = read.exp() + new.exp()
        shares += blocks * [0.0 if how == "all" else float((left.exp() / (left.exp() + known)).mean())]
        if how == "all" or bound is not None:
            bounds += blocks * [0.0 if how == "all" else float((most.exp() / (most.exp() + known)).mean())]
        if step in (20, 39):
            report = own.report()
            assert report == own.report(), "a report changes nothing"
            assert report.passes == step + 1 and report.read_keys == pytest.approx(reads / calls, rel=1e-6)
            assert report.unread_share == pytest.approx(sum(shares) / len(shares), rel=1e-5)
            assert report.unread_bound == pytest.approx(sum(bounds) / len(bounds), rel=1e-5)
    assert len(shares) > len(bounds) > 10


def test_blocks_of_padding_alone_are_nobodys_question() -> None:
    """A question that is padded to two blocks says what the same question says without its padding."""
    read, left, most = (logs(1, 2, 3, seed=seed) for seed in range(3))
    known, whole = torch.logaddexp(read, logs(1, 2, 3, seed=4)), read + 3
    reports = []
    for kinds in ([1.0], [0.0, 1.0]):
        own = Meter(100, audit_every=1)
        for kind in kinds:
            weights = torch.full((1, 1, 3, 1), kind)
            choice = Choice(torch.zeros(1, 2, 30, dtype=torch.long), None, Unread(left))
            own.count(choice, 100, weights=weights)
            own.estimate(left, known, most, weights=weights)
            own.audit(known, whole, most, weights=weights)
        own.end(0)
        reports.append(own.report())
    assert reports[0] == reports[1] and reports[0].true_unread_share and reports[0].unread_bound
