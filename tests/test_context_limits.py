"""What cannot be a compressed context, and what one says of itself where it is less than was asked for."""

from __future__ import annotations

from pathlib import Path

import architectures
import pytest
import tiny
import torch
from contexts import CONTEXT, GREEDY, IDS, SQUEEZED, compressed

import longctx
import longctx.kv
from longctx.contexts import chosen, reach
from longctx.errors import BadOption, CacheError, DoesNotFit, EmptyInput, ModelError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_contexts_that_cannot_be() -> None:
    model = tiny.model("llama")
    with pytest.raises(EmptyInput, match="no tokens"):
        longctx.kv.compress(model, torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(BadOption, match=r"\(2, 45\)"):
        longctx.kv.compress(model, IDS.view(2, 45))
    mask = torch.ones_like(IDS)
    mask[:, 4] = 0
    with pytest.raises(BadOption, match="padded"):
        longctx.kv.compress(model, IDS, attention_mask=mask)
    with pytest.raises(BadOption, match=r"\(1, 5\) is not that of 90"):
        longctx.kv.compress(model, IDS, attention_mask=torch.ones(1, 5))
    for given in (None, "a text", [1.5]):
        with pytest.raises(BadOption, match="input_ids"):
            longctx.kv.compress(model, given)
    for policy in (None, 7, "none"):
        with pytest.raises(BadOption, match="must be a name|stands for no method"):
            longctx.kv.compress(model, IDS, policy)  # type: ignore[arg-type]
    with pytest.raises(BadOption, match="not above the 132"):
        longctx.kv.compress(model, IDS.repeat(1, 10), "squeezed:budget=90")
    for share in ("0", "1.5"):
        with pytest.raises(BadOption, match="is no share"):
            longctx.kv.compress(model, IDS, f"squeezed:keep={share}")
    with pytest.raises(BadOption, match="piece_tokens=0"):
        longctx.kv.compress(model, IDS, piece_tokens=0)


def test_a_text_beyond_a_table_of_positions_and_ids_of_another_tokenizer_are_refused() -> None:
    """Such a pass ends in an error about an index, and on a GPU the whole process does."""
    model = architectures.small("GPT2")  # 1024 positions
    for read in (longctx.kv.compress, longctx.kv.read):
        with pytest.raises(DoesNotFit, match="1025 tokens pass the 1024 that GPT2LMHeadModel has positions for"):
            read(model, [5] * 1025)  # type: ignore[operator]
        with pytest.raises(BadOption, match="1000000"):
            read(model, [5, 10**6])  # type: ignore[operator]
    assert longctx.kv.read(model, [5] * 1024).compress("full").tokens == 1024


def test_a_context_within_the_budget_is_read_whole_and_says_so() -> None:
    model = tiny.model("llama")
    held = longctx.kv.compress(model, IDS[0, :CONTEXT].tolist())
    assert held.policy.lossless and "all 70 tokens" in held.warnings[0]


def test_a_share_that_is_right_for_long_texts_only_reads_a_short_one_whole_and_says_the_numbers() -> None:
    held = longctx.kv.compress(tiny.model("llama"), IDS, "squeezed:keep=0.125")
    assert held.policy.lossless and held.warnings == (
        "squeezed: keep=0.125 is a budget of 12 slots of 90 tokens, not above the 132 that are always read (sinks and "
        "recent): all 90 are read. The share is worth it from 1,057 tokens on.",
    )


def test_beyond_the_window_nothing_is_read_whole_in_place_of_a_policy_that_bounds_the_reading() -> None:
    model = tiny.model("llama", max_position_embeddings=64)
    for policy in ("longheads:keep=0.125,window=16", "lm_infinite:keep=0.1"):
        with pytest.raises(DoesNotFit, match=r"not above the .* worth it from .* model's window of 64"):
            longctx.kv.compress(model, IDS, policy)
        assert longctx.kv.compress(model, IDS[:, :60], policy).policy.lossless


def test_layers_that_keep_no_keys_are_named_and_left_alone_only_where_allowed(tmp_path: Path) -> None:
    model = tiny.hybrid()
    with pytest.raises(ModelError, match=r"0 \(linear_attention\), 1 \(linear_attention\), 2"):
        compressed(model)
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], "full", allow_partial=True, piece_tokens=32)
    assert context.left_alone == (0, 1, 2) and "2 (linear_attention)" in context.warnings[0]
    expected = model.generate(IDS, **GREEDY)
    with context.attached(model) as cache:
        branch = cache.fork()
        for one in (cache, branch):
            assert torch.equal(model.generate(IDS, past_key_values=one, **GREEDY), expected)
        cache.rewind()
        assert torch.equal(model.generate(IDS, past_key_values=cache, **GREEDY), expected)
        cache.rewind()
        with pytest.raises(CacheError, match="one question"):
            model.generate(IDS, past_key_values=cache, num_beams=2, **GREEDY)
    with pytest.raises(UsageError, match="no form on the disk"):
        context.save(tmp_path / "context")
    bounded = longctx.kv.compress(model, IDS[:, :CONTEXT], SQUEEZED, allow_partial=True)
    with bounded.attached(model) as cache:
        model.generate(IDS, past_key_values=cache, **GREEDY)
        assert 10 < cache.report().read_keys <= 40
    with pytest.raises(ModelError, match="linear_attention.*do not bound the reading"):
        longctx.kv.compress(model, IDS[:, :CONTEXT], "lm_infinite:budget=30", allow_partial=True)


def test_a_context_beyond_the_window_is_read_with_a_warning_unless_distances_are_bounded() -> None:
    model = tiny.model(max_position_embeddings=256)
    ids = torch.randint(5, tiny.VOCAB, (1, 600), generator=torch.Generator().manual_seed(0))
    for policy in ("full", "squeezed:keep=0.5", "snapkv:budget=300"):
        (said,) = [
            text for text in longctx.kv.compress(model, ids, policy=policy).warnings if "was trained with" in text
        ]
        assert said.startswith("600 tokens of the context are read at once and the model was trained with 256")
    within = longctx.kv.compress(model, ids[:, :256], policy="full")
    bounded = longctx.kv.compress(model, ids, policy="longheads:window=16,budget=128")
    assert not [text for text in (*within.warnings, *bounded.warnings) if "was trained with" in text]
    far = longctx.kv.compress(model, ids, policy="lm_infinite:budget=400")
    assert any(text.startswith("400 tokens of the context are read at once") for text in far.warnings)


@pytest.mark.parametrize(
    ("policy", "away", "said"),
    [
        ("lm_infinite:budget=100,window=32", 100, ""),
        ("lm_infinite:budget=100", 255, ""),  # a piece of the text sees itself whole
        ("lm_infinite:budget=400", 400, "400 tokens of the context are read at once and "),
        ("lm_infinite:budget=400,ceiling=200", 255, ""),
        ("lm_infinite:budget=400,ceiling=200,window=64", 200, ""),
        ("lm_infinite:budget=100,ceiling=300", 300, "100 tokens of the context are read at once, from up to 300 "),
        ("lm_infinite:budget=100,ceiling=3000", 600, "100 tokens of the context are read at once, from up to 600 "),
        (
            "lm_infinite:budget=100,middle=5,apart=300",
            300,
            "100 tokens of the context are read at once, from up to 300 ",
        ),
        ("lm_infinite:budget=700,ceiling=200", 600, "600 tokens of the context are read at once and "),
        ("longheads:budget=128,window=16", 143, ""),  # the last of a piece behind the first of what is read
        ("longheads:budget=250,window=16", 265, "250 tokens of the context are read at once, from up to 265 "),
        ("longheads:budget=128,window=16,move=no", 600, "128 tokens of the context are read at once, from up to 600 "),
        ("quest:budget=100", 600, "600 tokens of the context are read at once and "),
    ],
)
def test_what_counts_against_the_window_is_how_far_away_a_key_seems_to_stand(policy: str, away: int, said: str) -> None:
    assert reach(policy, 600) == (away, "")
    model = tiny.model(max_position_embeddings=256)
    found = [text for text in chosen(model, 600, policy)[2] if "was trained with 256" in text]
    assert len(found) == bool(said) and all(text.startswith(said) for text in found)


def test_a_policy_that_holds_all_of_a_text_bounds_no_distance_of_its_prompt() -> None:
    assert reach("lm_infinite:budget=570,ceiling=300", 591) == (300, "")
    assert reach("lm_infinite:budget=570,ceiling=300", 591, 25) == (591, "")
    assert reach("lm_infinite:budget=560,ceiling=300", 591, 25) == (300, "")
    assert reach("quest:budget=100", 591, 25) == (591, "")


def test_a_question_moves_away_from_what_stands_right_before_the_end_of_the_text() -> None:
    assert reach("longheads:budget=128,window=16", 600, 25) == (153, "")
    assert reach("longheads:keep=0.5,window=16", 600, 100) == (350, "")
    short = "lm_infinite:budget=100,window=32"
    assert reach(short, 600, 25) == (100, "") and reach(short, 600, 300)[0] == 300
