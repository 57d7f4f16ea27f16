"""A model on a GPU says what the same model says on the CPU, by every road of the library. Skipped without a GPU.

Everything else in these tests runs on the CPU, where a tensor made in the wrong place is never noticed.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import longctx
import longctx.kv
from longctx import Document, Reader, plugins
from longctx.backend.parts import causal_part, fold, part

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
IDS = torch.randint(4, 470, (1, 120), generator=torch.Generator().manual_seed(1))
CONTEXT = 104
SMALL: dict[str, dict[str, Any]] = {
    "full": {},
    "lm_infinite": {"sinks": 2, "window": 8, "budget": 40},
    "longheads": {"window": 4, "budget": 40},
    "oracle": {"budget": 40},
    "quest": {"page": 3, "recent": 4, "budget": 40},
    "random": {"sinks": 2, "recent": 4, "budget": 40},
    "snapkv": {"window": 4, "budget": 40},
    "squeezed": {"sinks": 2, "recent": 4, "clusters": 0.2, "budget": 40},
}
QUESTION = "Where is the kettle of Tobin kept?"
LINES = [f"In winter number {i} the street by the river was quiet and the report said so." for i in range(60)]
LINES[31] = "Tobin keeps the kettle in room 4711."
TEXT = " ".join(LINES)


def both(family: str, **options: Any) -> tuple[Any, Any]:
    """The same model on the CPU and on the GPU."""
    here = tiny.model(family, attention="eager" if family == "gemma2" else "sdpa", **options)
    return here, copy.deepcopy(here).to("cuda")


@pytest.mark.parametrize("name", plugins.names("kv"))
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_bounded_cache_reads_the_same_keys_and_says_the_same(family: str, name: str, tmp_path: Path) -> None:
    said: list[torch.Tensor] = []
    shares: list[float] = []
    for model in both(family):
        context = longctx.kv.compress(
            model, IDS[:, :CONTEXT].to(model.device), plugins.plugin("kv", name)(**SMALL[name])
        )
        context.save(tmp_path / model.device.type)
        for one in (context, longctx.kv.load(tmp_path / model.device.type, model)):
            with torch.inference_mode(), one.attached(model, audit_every=1) as cache:
                out = model(IDS[:, CONTEXT:].to(model.device), past_key_values=cache).logits
                new = model(out[:, -1:].argmax(-1), past_key_values=cache).logits
                shares.append(cache.report().read_share)
            said.append(torch.cat((out, new), 1).cpu())
    for other, share in zip(said[1:], shares[1:], strict=True):
        assert share == pytest.approx(shares[0], rel=0.02)
        torch.testing.assert_close(other, said[0], rtol=1e-3, atol=2e-3 * float(said[0].abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("masked", [False, True])
def test_parts_of_attention_are_those_of_wide_numbers(dtype: torch.dtype, masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, rows, 64, device="cuda") for heads, rows in ((6, 40), (2, 300), (2, 300))
    )
    mask = torch.rand(40, 300, device="cuda") > 0.5 if masked else None
    rows = None if mask is None else mask.repeat(3, 1)
    narrow = part(fold(query, 2).to(dtype), key.to(dtype), value.to(dtype), 0.125, rows)
    wide = part(
        fold(query, 2).cpu().double(),
        key.cpu().double(),
        value.cpu().double(),
        0.125,
        None if rows is None else rows.cpu(),
    )
    bound = 1e-4 if dtype == torch.float32 else 2e-2
    for one, other in zip(narrow, wide, strict=True):
        torch.testing.assert_close(one.cpu().double(), other.double(), rtol=bound, atol=bound)
    one = causal_part(query.to(dtype), key[:, :, :40].to(dtype), value[:, :, :40].to(dtype), 0.125)
    other = causal_part(query.cpu(), key[:, :, :40].cpu(), value[:, :, :40].cpu(), 0.125)
    torch.testing.assert_close(one.out.cpu(), other.out, rtol=bound, atol=bound)


@pytest.mark.parametrize("drafter", [*plugins.names("drafters"), "auto"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_drafted_tokens_are_hugging_faces(family: str, drafter: str) -> None:
    _, model = both(family)
    prompt = torch.cat((IDS[:, :30], IDS[:, :30]), 1).to("cuda")
    expected = model.generate(prompt, do_sample=False, max_new_tokens=24, repetition_penalty=1.1)
    stack: Any = drafter if drafter == "auto" else [drafter]
    out = longctx.generate(model, tiny.tokenizer(), prompt, drafters=stack, max_new_tokens=24, repetition_penalty=1.1)
    assert out.sequences.tolist() == expected.tolist()
    through = model.generate(
        prompt,
        do_sample=False,
        max_new_tokens=24,
        repetition_penalty=1.1,
        custom_generate=longctx.speculative(drafters=stack),
    )
    assert through.tolist() == expected.tolist()


@pytest.mark.parametrize("drafters", [[], ["document"], ["ngram"]])
def test_one_seed_draws_the_same_tokens_on_either_device(drafters: list[str]) -> None:
    drawn = [
        longctx.generate(
            model, tiny.tokenizer(), IDS[:, :40], drafters=drafters, max_new_tokens=24, temperature=0.8, seed=5
        )
        for model in both("qwen2")
    ]
    assert drawn[0].sequences.tolist() == drawn[1].sequences.tolist()


def test_padded_prompts_of_one_batch_give_each_its_own_answer() -> None:
    _, model = both("llama")
    mask = torch.ones(2, 40, dtype=torch.long, device="cuda")
    mask[0, :7] = 0
    prompts = IDS[:, :40].repeat(2, 1).to("cuda")
    options: dict[str, Any] = {"max_new_tokens": 20, "attention_mask": mask}
    expected = model.generate(prompts, do_sample=False, **options)
    out = longctx.generate(model, tiny.tokenizer(), prompts, drafters=["document"], **options)
    assert out.sequences.tolist() == expected.tolist()


@pytest.mark.parametrize("name", [name for name in plugins.names("selectors") if name != "dense"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3", "gpt_neox"])
def test_a_selection_is_the_same_fresh_stored_and_on_the_cpu(family: str, name: str, tmp_path: Path) -> None:
    chosen = []
    document = Document.from_text(TEXT, id="story")
    for model in both(family, num_hidden_layers=2):
        for form in ("exact", "int8"):
            reader = Reader(model, tiny.tokenizer("system"), encoder=None, calibration=None, segment_tokens=128)
            path = tmp_path / f"{model.device.type}-{form}"
            book = reader.compile(document, path=path, segment_kv="disk", segment_form=form)
            options: dict[str, Any] = {"budget_tokens": 200, "selector": name}
            found = [reader.select(one, QUESTION, **options) for one in (document, book, reader.load(path))]
            if form == "exact":
                chosen += [[(span.start, span.end) for span in one.spans] for one in found]
    assert all(spans == chosen[0] for spans in chosen)


@pytest.mark.parametrize("kv", [None, "squeezed:budget=300"])
def test_an_answer_is_the_same_on_either_device(kv: str | None) -> None:
    said = []
    for model in both("llama", num_hidden_layers=2):
        reader = Reader(model, tiny.tokenizer("system"), encoder=None, calibration=None, segment_tokens=128)
        options: dict[str, Any] = {"selector": "bm25"} if kv is None else {"selector": "all", "kv": kv}
        said.append(reader.ask(Document.from_text(TEXT, id="story"), QUESTION, max_new_tokens=12, **options).text)
    assert said[0] == said[1]


def test_a_calibrated_selection_is_the_same() -> None:
    found = []
    for model in both("llama", num_hidden_layers=2):
        reader = Reader(model, tiny.tokenizer("system"), encoder=None, segment_tokens=128)
        found.append(reader.select(Document.from_text(TEXT, id="story"), QUESTION, budget_tokens=200, selector="auto"))
    assert [span.start for span in found[0].spans] == [span.start for span in found[1].spans]


def test_processors_and_criteria_see_ids_where_the_caller_has_them() -> None:
    """transformers takes ids that are not where the model is, and makes its processors there."""
    model = both("llama")[1]
    ids = IDS[:, :20]
    stops = [torch.tensor([7], device=device) for device in ("cpu", "cuda")]
    for prompt, stop in zip((ids, ids.to("cuda")), stops, strict=True):
        criteria = [lambda ids, scores, stop=stop, **given: torch.equal(stop, ids[0, -1:])]
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 5, "pad_token_id": 1}
        expected = model.generate(prompt, stopping_criteria=criteria, **options)
        decode: Any = longctx.speculative("document", controller="fixed:nodes=8")
        out = model.generate(prompt, stopping_criteria=criteria, custom_generate=decode, **options)
        assert out.tolist() == expected.tolist()
