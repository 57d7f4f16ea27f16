"""Generators that draft from hidden states: they are shown those of every committed token and of no others."""

from __future__ import annotations

from typing import Any

import architectures
import pytest
import tiny
import torch
from generators import OPTIONS, PROMPT, STEADILY, TOKENIZER, Knowing, Seldom, plain
from transformers import DynamicCache, GenerationConfig
from transformers.generation.candidate_generator import (
    CandidateGenerator,
    DFlashTokenCandidateGenerator,
    MTPCandidateGenerator,
)
from transformers.modeling_layers import MtpModel
from transformers.models.muse_glimmer_assistant.configuration_muse_glimmer_assistant import MuseGlimmerAssistantConfig
from transformers.models.muse_glimmer_assistant.modeling_muse_glimmer_assistant import MuseGlimmerAssistantModel

import longctx
from longctx.backend.candidates import Candidates
from longctx.backend.capability import alone_because, open_target
from longctx.backend.retold import Retold
from longctx.backend.roads import Road
from longctx.backend.states import SHARED, STATES, Watch, selection, shown
from longctx.backend.target import RowTarget, StockTarget
from longctx.drafts import DraftSource, Seen
from longctx.errors import BadOption, DraftError, ModelError
from longctx.pace import costs_of

pytestmark = pytest.mark.usefixtures("one_thread")


def check(model: Any, log: list[tuple[torch.Tensor, dict[str, Any]]]) -> int:
    """What was shown in all is what the model says of the text by one plain pass, piece by piece; tokens shown.

    Each piece is told as transformers would have: first the prompt, of which nothing was drafted, and then as many as
    were right of the three tokens that were said after the piece before, and one more.
    """
    (prompt, first), *pieces = log
    assert first["is_first_iteration"] and first["model_outputs"] is None and first["n_last_matches"] == 0
    so_far, ahead = 0, 0
    with torch.inference_mode():
        whole = model(pieces[-1][0], output_hidden_states=True, use_cache=False).hidden_states
    for ids, given in pieces:
        length, states = ids.shape[1], given["model_outputs"].hidden_states
        assert torch.equal(ids, pieces[-1][0][:, :length])
        wanted = [at for at, own in enumerate(states) if own is not None]
        assert wanted and all(states[at].shape[1] == length - 1 - so_far for at in wanted)
        for at in wanted:
            torch.testing.assert_close(states[at], whole[at][:, so_far : length - 1], rtol=1e-3, atol=1e-4)
        assert given["n_last_matches"] == (length - 2 - so_far if so_far else 0) <= ahead
        assert not given["is_first_iteration"]
        assert given["model_kwargs"]["position_ids"].tolist() == [list(range(length))]
        assert given["model_kwargs"]["attention_mask"].tolist() == [[1] * length]
        so_far, ahead = length - 1, 2
    assert pieces[0][0].shape[1] == prompt.shape[1] + 1
    return so_far


@pytest.mark.parametrize("which", [True, -1, [1, 3]])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "Lfm2Moe"])
def test_a_generator_is_shown_the_states_of_all_that_was_committed_and_of_nothing_else(family: str, which: Any) -> None:
    """Behind trees and behind chains; most drafts of the other drafter are wrong, and the generator's are in part."""
    model = tiny.model(family) if family in tiny.FAMILIES else architectures.small(family)
    log: list[tuple[torch.Tensor, dict[str, Any]]] = []
    expected = plain(model)
    generator = Knowing(expected, which, log)
    out = longctx.generate(model, TOKENIZER, PROMPT, drafters=["random", generator], **STEADILY)
    assert torch.equal(out.sequences, expected) and out.stats.rows == ("chain" if family == "Lfm2Moe" else "tree")
    assert out.stats.accepted_by_source["knowing"] >= 8
    assert len(log) >= out.stats.rounds and check(model, log) > 40
    states = log[-1][1]["model_outputs"].hidden_states
    seen = {True: [0, 1, 2, 3, 4], -1: [4]}.get(which if isinstance(which, int) else -2, [1, 3])
    assert [at for at, own in enumerate(states) if own is not None] == [at for at in seen if at < len(states)]


def test_what_was_said_in_rounds_without_drafts_and_in_pieces_of_a_long_prompt_is_shown_too() -> None:
    model = tiny.model("llama")
    prompt = torch.randint(4, 470, (1, 2100), generator=torch.Generator().manual_seed(1))
    log: list[tuple[torch.Tensor, dict[str, Any]]] = []
    expected = plain(model, prompt)
    generator = Knowing(expected, [4], log)
    out = longctx.generate(model, TOKENIZER, prompt, drafters=[generator], controller=Seldom(), **OPTIONS)
    assert torch.equal(out.sequences, expected)
    assert check(model, log) > 2110
    assert 3 <= sum(one.drafted["knowing"] > 0 for one in out.stats.each_round) < out.stats.rounds / 2


@pytest.mark.parametrize("name", ["Gemma3nText", "HYV4", "Bart", "Mpt"])
def test_models_that_keep_several_states_of_a_token_or_say_them_in_another_way(name: str) -> None:
    model = architectures.small(name)
    target, _ = open_target(model, 64)
    take = target.watch({STATES: True})
    for ids, kept in (([5, 6, 7, 8], [0, 1, 2, 3]), ([9, 10, 11], [0, 1]), ([12], [0])):
        target.score(ids, range(-1, len(ids) - 1), 1)
        target.commit(kept)
    seen = take()
    with torch.inference_mode():
        out = model(torch.tensor([[5, 6, 7, 8, 9, 10, 12]]), output_hidden_states=True, use_cache=False)
    assert seen is not None and len(seen.states) == len(out.hidden_states)
    for own, other in zip(seen.states, out.hidden_states, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def test_requests_of_a_batch_are_shown_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("qwen2")
    assert not alone_because(model)
    monkeypatch.setattr(Road, "logits", None)  # the shorter road says no states
    logs: list[tuple[torch.Tensor, dict[str, Any]]] = []
    prompts = torch.cat((PROMPT, PROMPT.flip(1), PROMPT.roll(4)))
    expected = plain(model, prompts)
    out = longctx.generate(model, TOKENIZER, prompts, drafters=[Knowing(expected, -1, logs)], **STEADILY)
    assert torch.equal(out.sequences, expected) and out.stats.passes < out.stats.rounds
    for prompt in prompts:
        assert check(model, [one for one in logs if torch.equal(one[0][0, :27], prompt)]) > 40


def test_one_seed_draws_the_same_tokens_and_two_generators_of_one_request_see_their_own_layers() -> None:
    model = tiny.model("llama")
    given = OPTIONS | {"temperature": 0.8, "seed": 3}
    expected = longctx.generate(model, TOKENIZER, PROMPT, drafters=[], **given).sequences
    logs: list[list[tuple[torch.Tensor, dict[str, Any]]]] = [[], []]

    class Other(Knowing):
        def __deepcopy__(self, memo: Any) -> Knowing:
            return self

    drafters = [Knowing(expected, [2], logs[0]), Other(expected, -1, logs[1])]
    out = longctx.generate(model, TOKENIZER, PROMPT, drafters=drafters, **given | {"controller": "fixed:nodes=8"})
    assert torch.equal(out.sequences, expected) and out.stats.accepted >= 8
    assert check(model, logs[0]) == check(model, logs[1]) > 40
    for log, own in zip(logs, (2, 4), strict=True):
        assert [at for at, kept in enumerate(log[-1][1]["model_outputs"].hidden_states) if kept is not None] == [own]


def mtp_layers(model: Any) -> Any:
    """Random ones, which a checkpoint would have: large enough that what they say follows from all they saw."""
    layers = MtpModel(model, model.config.num_mtp_layers).eval()  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in layers.layers.parameters():
            if weight.ndim > 1:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return layers


@pytest.mark.parametrize("beside", ["right", "nobody", "seldom"])
def test_mtp_layers_keep_nothing_of_what_was_wrong(beside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was right and whenever they are asked, three layers say what fresh ones do, which are shown all at once.

    Told of more right tokens than they said, they would take their own wrong ones for right.
    """
    model = tiny.model("llama")
    model.config.num_mtp_layers = 3
    layers = mtp_layers(model)
    monkeypatch.setattr(MtpModel, "from_pretrained", lambda main, device_map: layers)
    say, said = MTPCandidateGenerator.get_candidates, list[tuple[torch.Tensor, list[int]]]()

    def listened(self: Any, ids: Any, **given: Any) -> Any:
        out = say(self, ids, **given)
        if not given["is_first_iteration"]:
            said.append((ids, out[0][0, ids.shape[1] :].tolist()))
        return out

    expected = plain(model)
    with monkeypatch.context() as patch:
        patch.setattr(MTPCandidateGenerator, "get_candidates", listened)
        heads = MTPCandidateGenerator(model, GenerationConfig(do_sample=False), {})
        drafters = [heads, Knowing(expected, -1, [])] if beside == "right" else [heads]
        given = STEADILY | ({"controller": Seldom()} if beside == "seldom" else {})
        out = longctx.generate(model, TOKENIZER, PROMPT, drafters=drafters, **given)
    assert torch.equal(out.sequences, expected) and len(said) >= 8
    for ids, candidates in said:
        fresh = MTPCandidateGenerator(model, GenerationConfig(do_sample=False), {})
        with torch.inference_mode():
            outputs = model(ids[:, :-1], output_hidden_states=-1)
            positions = {"position_ids": torch.arange(ids.shape[1])[None]}
            whole, _ = fresh.get_candidates(ids, positions, outputs, False, 0)
        assert candidates == whole[0, ids.shape[1] :].tolist()


def dflash(assistant: Any, model: Any) -> DFlashTokenCandidateGenerator:
    embedded, said = model.get_input_embeddings(), model.get_output_embeddings()
    return DFlashTokenCandidateGenerator(assistant, embedded, said, GenerationConfig(do_sample=False, max_length=500))


@pytest.mark.parametrize("kind", ["one layer", "three layers", "a block"])
def test_heads_of_transformers_say_what_they_say_in_its_own_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MTP layers and a block drafter with random weights: asked the same, by the same states, round by round."""
    asked: list[tuple[list[int], list[int], int]] = []
    model = tiny.model("llama")
    cls: type = DFlashTokenCandidateGenerator if kind == "a block" else MTPCandidateGenerator
    say = cls.get_candidates  # type: ignore[attr-defined]

    def listened(self: Any, ids: Any, **given: Any) -> Any:
        out = say(self, ids, **given)
        asked.append((ids[0].tolist(), out[0][0, ids.shape[1] :].tolist(), int(given["n_last_matches"])))
        return out

    monkeypatch.setattr(cls, "get_candidates", listened)
    own: CandidateGenerator
    if kind == "a block":
        torch.manual_seed(0)
        assistant = MuseGlimmerAssistantModel(_BLOCK).eval()
        options: dict[str, Any] = {"assistant_model": assistant, "speculation_type": "dflash"}
        own = dflash(assistant, model)
    else:
        model.config.num_mtp_layers = 1 if kind == "one layer" else 3
        layers = mtp_layers(model)
        monkeypatch.setattr(MtpModel, "from_pretrained", lambda main, device_map: layers)
        options = {"use_mtp": True}
        own = MTPCandidateGenerator(model, GenerationConfig(do_sample=False), {})
    with torch.inference_mode():
        expected = model.generate(PROMPT, do_sample=False, **options, **OPTIONS)  # type: ignore[operator]
    theirs = asked.copy()
    asked.clear()
    out = longctx.generate(model, TOKENIZER, PROMPT, drafters=[own], **STEADILY)
    assert torch.equal(out.sequences, expected) and torch.equal(out.sequences, plain(model))
    assert len(asked) > 10 and asked == theirs[: len(asked)]  # theirs asks once more, when nothing may follow


_BLOCK = MuseGlimmerAssistantConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=4096, sliding_window=64, block_size=4, mask_token_id=3,
    target_layer_ids=[0, 2], bos_token_id=0, eos_token_id=1, pad_token_id=1,
)  # fmt: skip


def test_what_they_are_not_shown_is_refused_by_name() -> None:
    model = tiny.model()

    class Sharing(Knowing):
        def __init__(self, **wanted: Any) -> None:
            super().__init__(PROMPT, True, [])
            self.model_kwargs_overrides = wanted

    for wanted, named in (
        ({"output_hidden_states": True, "output_attentions": True}, "output_attentions"),
        ({"output_hidden_states": False}, "no option of a pass that it names"),
        ({"output_hidden_states": []}, "no option of a pass that it names"),
        ({}, "no option of a pass that it names"),
    ):
        with pytest.raises(BadOption, match=f"Sharing drafts from what the model's passes say with {named}"):
            longctx.generate(model, TOKENIZER, PROMPT, drafters=[Sharing(**wanted)], **OPTIONS)
    filled = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(PROMPT[:, :20], past_key_values=filled)
    knowing = Knowing(plain(model), True, [])
    with pytest.raises(BadOption, match="holds 20 tokens of which that is not known"):
        longctx.generate(model, TOKENIZER, PROMPT, drafters=[knowing], past_key_values=filled, **OPTIONS)
    with pytest.raises(BadOption, match="nobody shows it any of that"):
        Candidates(knowing).begin(DraftSource(PROMPT[0].numpy(), 480))
    with pytest.raises(ModelError, match="with output_hidden_states, and this model's passes gave dict without it"):
        shown([Watch({STATES: True})], {}, 1)
    with pytest.raises(ModelError, match="with return_shared_kv_states, and .* gave CausalLMOutputWithPast without it"):
        longctx.generate(model, TOKENIZER, PROMPT, drafters=[Sharing(**{STATES: -1, SHARED: True})], **OPTIONS)
    with pytest.raises(BadOption, match="say with output_attentions"):
        RowTarget(model, 64).watch({STATES: True, "output_attentions": True})


def test_a_generator_that_fails_leaves_the_tokens_so_far() -> None:
    class Failing(Knowing):
        def __deepcopy__(self, memo: Any) -> Knowing:
            return self

        def get_candidates(self, input_ids: Any, **given: Any) -> Any:
            if len(self.log) == 4:
                raise ZeroDivisionError("no more")
            return super().get_candidates(input_ids, **given)

    model = tiny.model()
    expected = plain(model)
    with pytest.raises(DraftError, match="failing"):
        longctx.generate(model, TOKENIZER, PROMPT, drafters=[Failing(expected, True, [])], **STEADILY)
    assert torch.equal(plain(model), expected)


def test_a_generator_that_fails_is_told_the_same_again() -> None:
    told: list[tuple[list[int], Any, int]] = []
    fails = iter((True, False, True, False, False))

    class Failing(CandidateGenerator):
        def get_candidates(self, input_ids: Any, **given: Any) -> Any:
            states = given["model_outputs"]
            shown = None if states is None else states.hidden_states[1][0, :, 0].tolist()
            told.append((input_ids[0].tolist(), shown, given["n_last_matches"]))
            if next(fails):
                raise ZeroDivisionError("not now")
            return torch.cat((input_ids, torch.tensor([[8, 9]])), 1), None

    # the states of tokens 5, 6, 7 and 8, that of each the token itself; a pass each for the prompt and the rest
    pieces: list[list[int] | None] = [[5, 6], None, [7, 8], None, None]
    said_of = [None if ids is None else Seen((None, torch.tensor([[[float(i)] for i in ids]])), {}) for ids in pieces]
    taken = iter(said_of)
    retold = Retold(Failing(), lambda: next(taken), 2, torch.device("cpu"))
    for tokens in ([5, 6, 7], [5, 6, 7], [5, 6, 7, 8, 4], [5, 6, 7, 8, 4]):
        try:
            said = retold.candidates(tokens)
        except ZeroDivisionError:
            continue
        assert said[0].tolist() == [[*tokens, 8, 9]]
    first, prompt, rest = ([5, 6], None, 0), ([5, 6, 7], [5.0, 6.0], 0), ([5, 6, 7, 8, 4], [7.0, 8.0], 1)
    assert told == [first, first, prompt, prompt, rest]


@pytest.mark.parametrize("kind", [RowTarget, StockTarget])
def test_rows_that_are_taken_back_or_whose_pass_fails_leave_no_states(kind: type) -> None:
    model = tiny.model()
    target = RowTarget(model, 64) if kind is RowTarget else StockTarget(model, "chain")
    take = target.watch({STATES: -1})
    assert take() is None
    target.score([5, 6, 7], [-1, 0, 1], 1)
    target.commit([0, 1, 2])
    target.score([8, 9], [-1, 0], 2)
    target.rollback()
    with pytest.raises(IndexError):
        target.score([10**6], [-1], 1)
    target.score([8, 9, 10], [-1, 0, 1], 3)
    target.commit([0, 1])
    seen = take()
    assert seen is not None and seen.states[0] is None and seen.states[-1] is not None
    with torch.inference_mode():
        whole = model(torch.tensor([[5, 6, 7, 8, 9]]), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(seen.states[-1], whole, rtol=1e-4, atol=1e-5)
    assert not seen.states[-1].is_inference(), "whoever takes them may write to them"
    assert take() is None


def test_of_a_tree_only_the_path_that_was_kept_is_shown() -> None:
    model = tiny.model()
    target = RowTarget(model, 64)
    take = target.watch({STATES: [2]})
    target.score([5, 6, 7, 8, 9], [-1, 0, 0, 2, 1], 5)
    target.commit([0, 2, 3])
    seen = take()
    with torch.inference_mode():
        whole = model(torch.tensor([[5, 7, 8]]), output_hidden_states=True).hidden_states[2]
    assert seen is not None
    torch.testing.assert_close(seen.states[2], whole, rtol=1e-4, atol=1e-5)


def test_what_passes_take_is_told_apart_from_those_of_the_shorter_road() -> None:
    model = tiny.model()
    watched, other = RowTarget(model, 64), RowTarget(model, 64)
    watched.watch({STATES: -1})
    assert costs_of(model, watched) is costs_of(model, watched) is not costs_of(model, other)


def test_one_pass_says_what_all_of_them_want() -> None:
    assert selection([]) == {}
    assert selection([Watch({STATES: which}) for which in (-1, [3, 1], (3,))]) == {STATES: [-1, 1, 3]}
    assert selection([Watch({STATES: -1}), Watch({STATES: True})]) == {STATES: True}
    assert selection([Watch({SHARED: True}), Watch({STATES: 0, SHARED: False})]) == {STATES: [0], SHARED: True}
    assert selection([Watch({SHARED: True})]) == {SHARED: True}
