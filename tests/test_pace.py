"""What passes take and which claims never came true is kept for later requests; passes are timed where that pays."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from transformers import DynamicCache

import longctx
from longctx import pace
from longctx.backend.lean import Lean
from longctx.decoding import loop
from longctx.decoding.claims import Refuted
from longctx.decoding.control import Control
from longctx.decoding.controllers.fixed import Fixed
from longctx.decoding.costs import RowCosts

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENIZER = tiny.tokenizer()
PROMPT = torch.randint(4, 470, (1, 9), generator=torch.Generator().manual_seed(1)).repeat(1, 3)
OPTIONS: dict[str, Any] = {"max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 1}


class Keeping:
    """Keeps what requests begin with, and drafts four nodes."""

    def __init__(self) -> None:
        self.given: list[RowCosts | None] = []
        self.refuted: list[Refuted | None] = []

    def begin(self, costs: RowCosts | None = None, refuted: Refuted | None = None) -> Control:
        self.given.append(costs)
        self.refuted.append(refuted)
        return Fixed(4)


def test_requests_of_a_model_share_what_its_passes_take_and_those_of_a_batch_do_not() -> None:
    control, model = Keeping(), tiny.model(num_hidden_layers=1)
    options = OPTIONS | {"controller": control, "drafters": ["document"], "max_new_tokens": 3}
    for asked in (model, model, tiny.model(num_hidden_layers=1)):
        longctx.generate(asked, TOKENIZER, PROMPT, **options)
    one, two, other = control.given
    assert one is not None and one is two is not other
    longctx.generate(model, TOKENIZER, PROMPT.repeat(2, 1), **options)
    assert control.given[3:] == [None, None], "rows that share a pass with others cost something else"
    torch.set_num_threads(2)
    longctx.generate(model, TOKENIZER, PROMPT, **options)
    assert control.given[5] is not one, "with another number of threads passes take something else"


def test_requests_of_a_model_with_the_same_drafters_share_what_was_never_right() -> None:
    control, model = Keeping(), tiny.model(num_hidden_layers=1)
    options = OPTIONS | {"controller": control, "max_new_tokens": 3}
    for asked, drafters in (
        (model, ["document", "lookup"]),
        (model, ["document", "lookup"]),
        (model, ["lookup", "document"]),
        (model, ["document"]),
        (tiny.model(num_hidden_layers=1), ["document", "lookup"]),
    ):
        longctx.generate(asked, TOKENIZER, PROMPT, drafters=drafters, **options)
    longctx.generate(model, TOKENIZER, PROMPT.repeat(2, 1), drafters=["document"], **options)
    one, two, *others, alone, _, first, second = control.refuted
    assert one is two is not None and all(one is not other for other in (*others, alone, first))
    assert first is second is alone, "who shares a pass draws the same conclusions"


def test_what_was_never_right_is_known_to_the_next_request_and_changes_no_token() -> None:
    model, options = tiny.model(num_hidden_layers=2), OPTIONS | {"drafters": ["random"], "seed": 3}
    with torch.inference_mode():
        expected = model.generate(PROMPT, do_sample=False, **OPTIONS)
    assert not pace.refuted_of(model, ["random"])
    for _ in range(2):
        found = longctx.generate(model, TOKENIZER, PROMPT, **options)
        assert torch.equal(found.sequences, expected) and found.stats.accepted == 0
        assert len(pace.refuted_of(model, ["random"])) == 1 and not pace.refuted_of(model, ["document"])


def test_no_pass_is_made_for_its_time_where_products_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "seconds_of", lambda *given: pytest.fail("made"))
    monkeypatch.setattr(pace, "_LONG", 24)
    longctx.generate(tiny.model("llama", num_hidden_layers=2), TOKENIZER, PROMPT, **OPTIONS, drafters=["document"])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_passes_made_for_their_time_change_no_token_and_are_made_once_for_a_model(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[int] = []
    monkeypatch.setattr(Lean, "products", lambda self: {})
    real = loop.seconds_of
    monkeypatch.setattr(loop, "seconds_of", lambda *given: (timed.append(given[2]), real(*given))[1])
    model = tiny.model(family, num_hidden_layers=2)
    with torch.inference_mode():
        expected = model.generate(PROMPT, do_sample=False, **OPTIONS)
    found = longctx.generate(model, TOKENIZER, PROMPT, **OPTIONS, drafters=["document"])
    assert torch.equal(found.sequences, expected) and timed == [], "the answer may be too short for that"
    pace._KNOWN.clear()
    monkeypatch.setattr(pace, "_LONG", 24)
    for _ in range(2):
        found = longctx.generate(model, TOKENIZER, PROMPT, **OPTIONS, drafters=["document"])
        assert torch.equal(found.sequences, expected)
    assert timed == [1, 16] and found.stats.rows == "tree"


@pytest.mark.filterwarnings("ignore:drafts are verified as chains")
@pytest.mark.parametrize("family", ["mistral", "gemma3", "qwen2"])
def test_a_callers_cache_is_not_timed_and_holds_what_was_committed(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that see a window cannot take back the row of a pass before which they did not record."""
    monkeypatch.setattr(pace, "_LONG", 8)
    model, options = tiny.model(family, num_hidden_layers=2), OPTIONS | {"do_sample": False, "max_new_tokens": 8}
    caches = []
    for drafted in (False, True):
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(PROMPT[:, :20], past_key_values=cache)
        more = {"custom_generate": longctx.speculative(["lookup"], tokenizer=TOKENIZER)} if drafted else {}
        caches.append((model.generate(PROMPT, past_key_values=cache, **options, **more), cache.get_seq_length()))
    (expected, held), (found, kept) = caches
    assert torch.equal(found, expected) and held == kept
