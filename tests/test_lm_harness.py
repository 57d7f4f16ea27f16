"""A Reader driven by lm-evaluation-harness: against the shape of its protocol, without the package itself."""

from __future__ import annotations

import abc
import importlib
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
import tiny

from longctx import Reader
from longctx.errors import BadOption, MissingExtra, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

lm_harness = importlib.import_module("longctx.pipelines.lm_harness")
DOCUMENT = " ".join(["The market by the river was quiet."] * 20 + ["The lamp of Odette stands in room 4711."])
GREEDY = {"until": [], "max_gen_toks": 4, "do_sample": False, "temperature": 1}


class LM(abc.ABC):
    """What lm_eval.api.model.LM is to its evaluator: three abstract calls and a cache hook that sees each result."""

    def __init__(self) -> None:
        self.cache_hook = types.SimpleNamespace(seen=[], add_partial=lambda *what: self.cache_hook.seen.append(what))

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...
    @abc.abstractmethod
    def loglikelihood_rolling(self, requests: Any) -> Any: ...
    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules["lm_eval.api.model"], "LM", LM, raising=False)


@pytest.fixture(scope="module")
def reader() -> Reader:
    model = tiny.model("llama", num_hidden_layers=2)
    return Reader(model, tiny.tokenizer("system"), encoder=None, calibration=None, segment_tokens=64)


def request(prompt: str, **settings: Any) -> Any:
    return types.SimpleNamespace(args=(prompt, {**GREEDY, **settings}))


def test_answers_are_those_of_the_reader_in_the_order_of_the_requests(
    installed: None, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    compile_ = Reader.compile
    monkeypatch.setattr(Reader, "compile", lambda self, d, **o: compiled.append(d.text) or compile_(self, d, **o))
    model = lm_harness.harness_model(reader, budget_tokens=150, selector="bm25")
    asked = [(DOCUMENT, "Where is the lamp?"), ("Short text.", "What is it?"), (DOCUMENT, "Which room?")]
    found = model.generate_until([request(f"Read this.\n\n{text}\n\nQuestion: {q}\nAnswer: ") for text, q in asked])
    for (text, question), answer in zip(asked, found, strict=True):
        book = compile_(reader, lm_harness.longctx.Document.from_text(f"Read this.\n\n{text}"))
        wanted = reader.ask(
            book, f"Question: {question}\nAnswer:", budget_tokens=150, selector="bm25", max_new_tokens=4, seed=0
        )
        assert answer == wanted.text
    assert compiled == [f"Read this.\n\n{DOCUMENT}", "Read this.\n\nShort text."]
    assert [what[2] for what in model.cache_hook.seen] == [found[0], found[2], found[1]]
    assert isinstance(model, LM)


def test_a_question_may_begin_at_named_words() -> None:
    prompt = "Text.\n\nCount them: how many?\n\nThe answer is: "
    assert lm_harness.split_prompt(prompt) == ("Text.\n\nCount them: how many?", "The answer is:")
    assert lm_harness.split_prompt(prompt, "Count them")[1] == "Count them: how many?\n\nThe answer is:"


@pytest.mark.parametrize(
    ("prompt", "question_from", "said"),
    [
        ("One line", None, "no empty line"),
        ("\n\nOne line\n\n", None, "one of them is empty"),
        ("A text.\n\nWho?", "Question:", "'Question:' is not in it"),
        ("Question: who?", "Question:", "one of them is empty"),
    ],
)
def test_a_prompt_without_document_or_question_is_refused(prompt: str, question_from: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        lm_harness.split_prompt(prompt, question_from)


def test_stop_strings_end_the_answer_and_settings_reach_the_reader(installed: None) -> None:
    asked: list[dict[str, Any]] = []

    class Recording:
        def compile(self, document: Any) -> str:
            return "book"

        def ask(self, book: str, question: str, **options: Any) -> Any:
            asked.append(options)
            return types.SimpleNamespace(text="one\ntwo. three")

    model = lm_harness.harness_model(Recording(), max_new_tokens=99, seed=3)
    prompt = "A text.\n\nWho?"
    assert model.generate_until([request(prompt, until=[".", "\n"])]) == ["one"]
    assert model.generate_until([request(prompt, until=". three")]) == ["one\ntwo"]
    assert model.generate_until([request(prompt, do_sample=True, temperature=0.5, max_gen_toks=None)])
    assert [options["temperature"] for options in asked] == [0.0, 0.0, 0.5]
    assert [options["max_new_tokens"] for options in asked] == [4, 4, 99] and asked[0]["seed"] == 3
    with pytest.raises(BadOption, match="'top_p'"):
        model.generate_until([request(prompt, top_p=0.9)])


def test_likelihoods_are_refused_with_the_reason(installed: None, reader: Reader) -> None:
    model = lm_harness.harness_model(reader)
    for call in (model.loglikelihood, model.loglikelihood_rolling):
        with pytest.raises(UsageError, match="generate_until"):
            call([request("a\n\nb")])


def test_without_the_package_it_says_what_to_install(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_harness, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"longctx-hf\[eval\]"):
        lm_harness.harness_model(reader)
