"""Drafts behind a compressed context that is read whole: verified in chains, and the answer is what it is without."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from contexts import CONTEXT, IDS, SQUEEZED, compressed
from generators import TOKENIZER

import longctx
import longctx.kv
from longctx import Reader, plugins, stacks
from longctx.backend.behind import BoundedTarget
from longctx.backend.capability import open_target
from longctx.backend.lean import Lean
from longctx.backend.narrow import MOST
from longctx.drafts import Budget, Draft, DraftSource, Verified

pytestmark = pytest.mark.usefixtures("one_thread")

NEW = 24
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 1}
OPTIONS: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": None, "controller": "fixed:nodes=4"}
WHOLE = ["llama", "qwen2", "qwen3", "phi3", "gpt_neox"]  # families whose layers all see everything
OTHER = torch.cat((IDS[:, :CONTEXT], IDS[:, 3:31]), 1)


class Told:
    """Drafts two right tokens of what is answered behind the prompt and a wrong one, and notes what it is told."""

    needs = 0

    def __init__(self, answer: list[int]) -> None:
        self.answer, self.heard = answer, list[int]()

    def begin(self, source: DraftSource) -> Told:
        return self

    def propose(self, budget: Budget) -> Draft:
        said = self.answer[len(self.heard) :][: min(3, budget.depth, budget.nodes)]
        said[2:] = [(token + 1) % 470 for token in said[2:]]
        return Draft.chain(said, [0.9] * len(said))

    def observe(self, verified: Verified) -> None:
        self.heard += verified.tokens


def plain(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.generate(ids, **GREEDY)  # type: ignore[no-any-return]


@pytest.mark.parametrize("shorter", [True, False])
@pytest.mark.parametrize("family", WHOLE)
def test_right_drafts_save_passes_and_wrong_ones_are_taken_back(
    family: str, shorter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two right tokens and a wrong one in each draft, one question behind another; by the road that is said to win."""
    monkeypatch.setattr(Lean, "faster", lambda self: [shorter] * (MOST + 1))
    model = tiny.model(family)
    answers = [plain(model, ids) for ids in (IDS, OTHER)]
    context = compressed(model)
    for audit in (0, 2):
        with context.attached(model, audit_every=audit) as cache:
            for ids, answer in zip((IDS, OTHER), answers, strict=True):
                drafters = [Told(answer[0, ids.shape[1] :].tolist())]
                out = longctx.generate(model, TOKENIZER, ids, past_key_values=cache, drafters=drafters, **OPTIONS)
                assert torch.equal(out.sequences, answer) and not out.warnings and out.guarantee == "exact"
                assert out.stats.accepted >= NEW // 3 and out.stats.drafted > out.stats.accepted
                assert cache.lengths == {answer.shape[1] - 1} and cache.report().read_share == 1
                cache.rewind()


def test_what_was_drafted_behind_it_can_be_gone_on_from() -> None:
    """The cache holds the answer without its last token, as after plain decoding, and nothing that was taken back."""
    model = tiny.model("llama")
    answer = plain(model, IDS)
    further = torch.cat((answer, IDS[:, 5:19]), 1)
    expected = plain(model, further)
    with compressed(model).attached(model) as cache:
        for ids, said in ((IDS, answer), (further, expected)):
            drafters = [Told(said[0, ids.shape[1] :].tolist())]
            out = longctx.generate(model, TOKENIZER, ids, past_key_values=cache, drafters=drafters, **OPTIONS)
            assert torch.equal(out.sequences, said) and out.stats.accepted
        cache.crop(-NEW)
        with torch.no_grad():
            logits = model(expected[:, -NEW - 1 :], past_key_values=cache, use_cache=True).logits[0, -1]
            assert torch.allclose(logits, model(expected).logits[0, -1], atol=1e-4)


def test_rows_say_what_the_model_says_of_their_path_and_leave_nothing_behind() -> None:
    model = tiny.model("llama")
    with compressed(model).attached(model) as cache:
        target, reason = open_target(model, 64, cache)
        assert type(target) is BoundedTarget and target.rows == "chain" and not reason
        rows = IDS[0, CONTEXT : CONTEXT + 6].tolist()
        with torch.no_grad():
            expected = model(IDS[:, : CONTEXT + 6]).logits[0, -6:]
        for _ in range(2):
            assert torch.allclose(target.score(rows, range(-1, 5), 6), expected, atol=1e-4)
            target.rollback()
            assert cache.lengths == {CONTEXT}
        target.score(rows, range(-1, 5), 6)
        target.commit(range(3))
        assert cache.lengths == {CONTEXT + 3} and target.length == CONTEXT + 3
        assert torch.allclose(target.score(rows[3:], range(-1, 2), 3), expected[3:], atol=1e-4)


@pytest.mark.parametrize("committed", [0, 2])
@pytest.mark.parametrize("within", [True, False])
def test_a_pass_that_ends_early_takes_no_committed_token_along(
    within: bool, committed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lean, "faster", lambda self: [False] * (MOST + 1))
    model = tiny.model("llama")
    rows = IDS[0, CONTEXT : CONTEXT + 4].tolist()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with compressed(model).attached(model) as cache:
        target, left = open_target(model, 64, cache)[0], rows[committed:]
        if committed:
            target.score(rows[:committed], range(-1, committed - 1), 1)
            target.commit(range(committed))
        place: Any = model.model.layers[2] if within else model.model.embed_tokens
        hook = place.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            target.score(left, range(-1, len(left) - 1), 2)
        hook.remove()
        assert cache.lengths == {CONTEXT + committed}
        with torch.no_grad():
            expected = model(IDS[:, : CONTEXT + 4]).logits[0, -2:]
        assert torch.allclose(target.score(left, range(-1, len(left) - 1), 2), expected, atol=1e-4)


@pytest.mark.parametrize(("family", "policy"), [("llama", SQUEEZED), ("gemma3", "full"), ("mistral", "full")])
def test_where_rows_are_no_single_ones_nothing_is_drafted_and_that_is_said(family: str, policy: str) -> None:
    """A policy chooses for all rows of a pass, and a window drops what tokens that are taken back would see again."""
    model = tiny.model(family)
    with compressed(model, policy).attached(model) as cache:
        alone = model.generate(IDS, past_key_values=cache, **GREEDY)
        cache.rewind()
        told = Told(alone[0, IDS.shape[1] :].tolist())
        out = longctx.generate(model, TOKENIZER, IDS, past_key_values=cache, drafters=[told], **OPTIONS)
    assert torch.equal(out.sequences, alone) and out.stats.drafted == 0
    assert ["without drafts" in warning for warning in out.warnings] == [True]


def test_questions_about_a_whole_document_are_answered_with_drafts() -> None:
    """The text is read once, and the second question has the drafts of the first one's drafter."""
    document = longctx.Document.from_text("The code of the green room is on the letter. " * 12)
    reader = Reader(tiny.model("llama"), tiny.tokenizer("system"), encoder=None, calibration=None)
    options: dict[str, Any] = {"selector": "all", "max_new_tokens": 48, "controller": "fixed:nodes=4"}
    for question in ("Where is the code?", "Which room?"):
        listening = Told([])
        alone = reader.ask(document, question, drafters=[listening], **options)
        drafted = reader.ask(document, question, drafters=[Told(listening.heard)], kv="full", **options)
        assert drafted.text == alone.text and drafted.guarantee == alone.guarantee and not drafted.warnings
        told = next(step.facts for step in drafted.trace if step.name == "decode")
        assert told["accepted"] >= 48 // 3 and told["kv"]["read_share"] == 1


def test_what_is_drafted_by_default_is_drafted_behind_a_whole_document_too(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = list[str]()
    for name in stacks.AUTO:
        kind = type(plugins.resolve("drafters", name))
        begin = kind.begin
        monkeypatch.setattr(
            kind, "begin", lambda self, source, name=name, begin=begin: begun.append(name) or begin(self, source)
        )
    reader = Reader(tiny.model("llama"), tiny.tokenizer("system"), encoder=None, calibration=None)
    document = longctx.Document.from_text("The code of the green room is on the letter. " * 12)
    for kv, expected in (("full", list(stacks.AUTO)), ("squeezed:budget=200", [])):
        begun.clear()
        answer = reader.ask(document, "Which room?", selector="all", max_new_tokens=4, kv=kv)
        assert begun == expected and not answer.warnings
