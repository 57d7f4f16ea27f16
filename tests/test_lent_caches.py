"""Caches of the caller around drafted answers: they hold what plain decoding leaves, and can be gone on from."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from architectures import small
from generators import OPTIONS, PROMPT, STEADILY, TOKENIZER, plain
from transformers import DynamicCache, StaticCache

import longctx
from longctx.backend.target import StockTarget
from longctx.errors import CacheError

pytestmark = pytest.mark.usefixtures("one_thread")
CONV = "Lfm2Moe"  # half of its layers keep the inputs of a convolution
MORE = torch.tensor([[7, 300, 41]])


def spoken(model: Any, ids: torch.Tensor, cache: Any, drafted: bool) -> torch.Tensor:
    """Greedy tokens behind ``cache``, with drafts or by plain ``generate``."""
    decode: dict[str, Any] = {}
    if drafted:
        decode["custom_generate"] = longctx.speculative(
            ["document"], controller="fixed:nodes=8", on_end=lambda stats, warnings: None
        )
    with torch.no_grad():
        return model.generate(ids, past_key_values=cache, do_sample=False, **OPTIONS, **decode)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["static", "hybrid", CONV, "mistral"])
def test_plain_generate_goes_on_from_a_cache_that_a_drafted_answer_filled(kind: str) -> None:
    """Tensors that were made in inference mode can be written to nowhere else."""
    model = {"static": tiny.model, "mistral": lambda: tiny.model("mistral"), "hybrid": tiny.hybrid}.get(
        kind, lambda: small(kind)
    )()

    def made() -> Any:
        return StaticCache(model.config, max_cache_len=200) if kind == "static" else DynamicCache(config=model.config)

    expected, found = made(), made()
    first = spoken(model, PROMPT, expected, False)
    assert torch.equal(spoken(model, PROMPT, found, True), first)
    assert found.get_seq_length() == expected.get_seq_length() or kind == "hybrid"
    assert not any(getattr(layer, "record_past", False) for layer in found.layers), "nobody crops them any more"
    longer = torch.cat((first, MORE), 1)
    assert torch.equal(spoken(model, longer, found, False), spoken(model, longer, expected, False))
    found.reset()


def test_new_ids_alone_are_refused_also_where_there_are_more_of_them_than_in_the_cache() -> None:
    """Plain generate takes them with a mask of the full length, of which nothing is left but that length."""
    model, cache = tiny.model(), DynamicCache()
    with torch.no_grad():
        model(PROMPT[:, :5], past_key_values=cache)
    mask = torch.ones_like(PROMPT[:, :15])
    decode: Any = longctx.speculative([])
    with pytest.raises(CacheError, match="holds 5 tokens: .* in the cache first, .* a mask as long as the prompt"):
        model.generate(PROMPT[:, 5:15], attention_mask=mask, past_key_values=cache, custom_generate=decode, **OPTIONS)
    out = model.generate(PROMPT[:, :15], attention_mask=mask, past_key_values=cache, custom_generate=decode, **OPTIONS)
    assert torch.equal(out, plain(model, PROMPT[:, :15]))


class Broken(RuntimeError):
    """What a pass ends in."""


class Failing:
    """A logits processor whose call of number ``at`` fails, and that changes nothing else."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if not self.left:
            raise Broken
        return scores


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("wanted", [1, 3])
@pytest.mark.parametrize("name", ["mistral", CONV])
def test_a_pass_that_fails_leaves_every_layer_as_it_was_and_its_own_error(name: str, wanted: int, layer: int) -> None:
    """Beyond a window, and of a convolution, a crop brings nothing back that the layer was not told to keep."""
    model = tiny.model(name) if name == "mistral" else small(name)
    ids = PROMPT[0].tolist()

    def fail(*_: Any) -> None:
        raise Broken

    def target(cut: int) -> StockTarget:
        made = StockTarget(model, "chain", DynamicCache(config=model.config))
        made.score(ids[:cut], range(-1, cut - 1), 1)
        made.commit(range(cut))
        return made

    found, expected = target(20), target(20)
    hook = model.model.layers[layer].register_forward_hook(fail)
    with pytest.raises(Broken):
        found.score(ids[20:23], range(-1, 2), wanted)
    hook.remove()
    for one in (found, expected):
        one.score(ids[20:23], range(-1, 2), 3)
        one.commit(range(2))
    again = [one.score(ids[22:24], range(-1, 1), 2) for one in (found, expected)]
    torch.testing.assert_close(again[0], again[1])


def test_a_pass_whose_rows_are_judged_wrongly_is_taken_back_beyond_a_window() -> None:
    """Of the pass over a prompt, which keeps no more than the window, nothing can be cropped."""
    model = tiny.model("mistral")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(PROMPT[:, :12], past_key_values=cache)
    held = [layer.keys.clone() for layer in cache.layers]
    with pytest.raises(Broken):
        longctx.generate(
            model, TOKENIZER, PROMPT, drafters=[], past_key_values=cache, logits_processor=[Failing(1)], **STEADILY
        )
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, held, strict=True))
    out = longctx.generate(model, TOKENIZER, PROMPT, drafters=["document"], past_key_values=cache, **STEADILY)
    assert torch.equal(out.sequences, plain(model)) and out.stats.rows == "chain"


def test_a_cache_is_handed_back_as_plain_decoding_uses_it_also_after_an_error() -> None:
    model = tiny.model("mistral")
    cache = DynamicCache(config=model.config)
    options: dict[str, Any] = {"past_key_values": cache, "logits_processor": [Failing(12)], **STEADILY}
    with pytest.raises(Broken):
        longctx.generate(model, TOKENIZER, PROMPT, drafters=["document"], **options)
    assert cache.get_seq_length() > PROMPT.shape[1] and not any(layer.record_past for layer in cache.layers)
