"""A Reader driven by lm-evaluation-harness: by the package where it is installed, and by the shape of its protocol."""

from __future__ import annotations

import abc
import importlib
import json
import re
import sys
import types
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import longctx
from longctx import Reader
from longctx.errors import BadOption, MissingExtra, UsageError, installing

pytestmark = pytest.mark.usefixtures("one_thread")

lm_harness = importlib.import_module("longctx.pipelines.lm_harness")
DOCUMENT = " ".join(["The market by the river was quiet."] * 20 + ["The lamp of Odette stands in room 4711."])
TASK = """
task: rooms
dataset_path: json
output_type: generate_until
test_split: test
doc_to_text: "Read this.\\n\\n{{context}}\\n\\nQuestion: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], max_gen_toks: 4, do_sample: false, temperature: 1}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
GREEDY = {"until": [], "max_gen_toks": 4, "do_sample": False, "temperature": 1}


class LM(abc.ABC):
    """What lm_eval.api.model.LM is to its evaluator: three abstract calls and a cache hook that sees each result."""

    def __init__(self) -> None:
        self.cache_hook: Any = None

    def set_cache_hook(self, hook: Any) -> None:
        self.cache_hook = hook

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...
    @abc.abstractmethod
    def loglikelihood_rolling(self, requests: Any) -> Any: ...
    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...


@pytest.fixture(params=["stand-in", "package"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The base class of models: that of the package where it is installed, and one made here."""
    if request.param == "package":
        return package("lm_eval.api.model").LM
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules["lm_eval.api.model"], "LM", LM, raising=False)
    return LM


def package(name: str) -> Any:
    """A module of lm_eval itself; the test is skipped where that is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its dependencies say of one another
        return pytest.importorskip(name)


@pytest.fixture(scope="module")
def reader() -> Reader:
    model = tiny.model("llama", num_hidden_layers=2)
    return Reader(model, tiny.tokenizer("system"), encoder=None, calibration=None, segment_tokens=64)


class Recording:
    """A reader that notes what it is asked and says the same every time."""

    fingerprint, model = "0" * 64, types.SimpleNamespace(dtype=torch.float32)

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def compile(self, document: Any) -> str:
        return "book"

    def ask(self, book: str, question: str, **options: Any) -> Any:
        self.asked.append(options)
        return types.SimpleNamespace(text="one\ntwo. three", warnings=("no calibration",))


def request(prompt: str, **settings: Any) -> Any:
    return types.SimpleNamespace(args=(prompt, {**GREEDY, **settings}))


def test_answers_are_those_of_the_reader_in_the_order_of_the_requests(
    installed: Any, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    compile_ = Reader.compile
    monkeypatch.setattr(Reader, "compile", lambda self, d, **o: compiled.append(d.text) or compile_(self, d, **o))
    model = lm_harness.harness_model(reader, budget_tokens=150, selector="bm25")
    seen: list[Any] = []
    model.set_cache_hook(types.SimpleNamespace(add_partial=lambda *what: seen.append(what)))
    asked = [(DOCUMENT, "Where is the lamp?"), ("Short text.", "What is it?"), (DOCUMENT, "Which room?")]
    found = model.generate_until([request(f"Read this.\n\n{text}\n\nQuestion: {q}\nAnswer: ") for text, q in asked])
    for (text, question), answer in zip(asked, found, strict=True):
        book = compile_(reader, lm_harness.longctx.Document.from_text(f"Read this.\n\n{text}"))
        wanted = reader.ask(
            book, f"Question: {question}\nAnswer:", budget_tokens=150, selector="bm25", max_new_tokens=4, seed=0
        )
        assert answer == wanted.text
    assert compiled == [f"Read this.\n\n{DOCUMENT}", "Read this.\n\nShort text."]
    assert [what[2] for what in seen] == [found[0], found[2], found[1]]
    assert isinstance(model, installed)


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


def test_stop_strings_end_the_answer_and_settings_reach_the_reader(installed: Any) -> None:
    reader = Recording()
    model = lm_harness.harness_model(reader, max_new_tokens=99, seed=3)
    model.set_cache_hook(types.SimpleNamespace(add_partial=lambda *what: None))
    prompt = "A text.\n\nWho?"
    assert model.generate_until([request(prompt, until=[".", "\n"])]) == ["one"]
    assert model.generate_until([request(prompt, until=". three")]) == ["one\ntwo"]
    assert model.generate_until([request(prompt, do_sample=True, temperature=0.5, max_gen_toks=None)])
    assert model.generate_until([request(prompt, do_sample=True, temperature=None)])
    assert [options["temperature"] for options in reader.asked] == [0.0, 0.0, 0.5, 1.0]
    assert [options["max_new_tokens"] for options in reader.asked] == [4, 4, 99, 4]
    assert all(options["seed"] == 3 for options in reader.asked)
    with pytest.raises(BadOption, match="'top_p'"):
        model.generate_until([request(prompt, top_p=0.9)])


def test_a_prompt_that_is_drawn_for_several_times_has_a_seed_each_time(installed: Any) -> None:
    """The harness sends a request as often as its task repeats it: with one seed, all answers were the same."""
    reader = Recording()
    model = lm_harness.harness_model(reader, seed=3)
    model.set_cache_hook(types.SimpleNamespace(add_partial=lambda *what: None))
    one, other = request("A text.\n\nWho?", do_sample=True), request("A text.\n\nWhere?", do_sample=True)
    model.generate_until([one, one, one, other, other])
    assert [options["seed"] for options in reader.asked] == [3, 4, 5, 3, 4]


def test_the_results_say_what_answered_and_what_it_warned_of(installed: Any) -> None:
    model = lm_harness.harness_model(Recording(), budget_tokens=150, selector="bm25", seed=3)
    model.set_cache_hook(types.SimpleNamespace(add_partial=lambda *what: None))
    for count in (2, 1):
        model.generate_until([request("A text.\n\nWho?")] * count)
        told = model.get_model_info()
        assert told["warnings"] == {"no calibration": count}, "of the answers made last"
    assert (told["budget_tokens"], told["selector"], told["seed"]) == (150, "bm25", 3)
    assert (told["fingerprint"], told["model_dtype"], told["longctx"]) == ("0" * 16, "float32", longctx.__version__)


def test_a_chat_template_is_refused_for_the_reader_has_one(installed: Any) -> None:
    model = lm_harness.harness_model(Recording())
    with pytest.raises(UsageError, match="Leave apply_chat_template out"):
        _ = model.tokenizer_name
    with pytest.raises(UsageError, match="Leave apply_chat_template out"):
        model.apply_chat_template([{"role": "user", "content": "x"}])


def test_likelihoods_are_refused_with_the_reason(installed: Any, reader: Reader) -> None:
    model = lm_harness.harness_model(reader)
    for call in (model.loglikelihood, model.loglikelihood_rolling):
        with pytest.raises(UsageError, match="generate_until"):
            call([request("a\n\nb")])


def test_without_the_package_it_says_what_to_install(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_harness, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=re.escape(installing("eval"))):
        lm_harness.harness_model(reader)


@pytest.fixture
def evaluated(tmp_path: Path) -> Any:
    """``lm_eval.simple_evaluate`` of a task in a file here, about rows in a file here."""
    lm_eval, tasks = package("lm_eval"), package("lm_eval.tasks")
    asked = [(DOCUMENT, "Where is the lamp?"), ("Short text.", "What is it?"), (DOCUMENT, "Which room?")]

    def evaluate(model: Any, answers: list[str], changed: str = "", **more: Any) -> Any:
        rows = [{"context": c, "question": q, "answer": a} for (c, q), a in zip(asked, answers, strict=True)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files = f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}, cache_dir: {tmp_path}/cache}}\n"
        (tmp_path / "rooms.yaml").write_text(TASK + files + changed, encoding="utf-8")
        manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
        seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"))  # nothing of ours is seeded
        return lm_eval.simple_evaluate(
            model=model, tasks=["rooms"], task_manager=manager, bootstrap_iters=0, **seeds, **more
        )

    return evaluate


@pytest.mark.filterwarnings("default")  # what the package and its dependencies say of one another
def test_the_package_evaluates_a_task_of_local_files(reader: Reader, evaluated: Any) -> None:
    wanted = []
    for text, question in ((DOCUMENT, "Where is the lamp?"), ("Short text.", "What is it?"), (DOCUMENT, "Which room?")):
        book = reader.compile(longctx.Document.from_text(f"Read this.\n\n{text}"))
        asked = f"Question: {question}\nAnswer:"
        wanted.append(reader.ask(book, asked, budget_tokens=150, selector="bm25", max_new_tokens=4).text)
    assert len(set(wanted)) == 3
    model = lm_harness.harness_model(reader, budget_tokens=150, selector="bm25")
    found = evaluated(model, [wanted[0], "another", wanted[2]])
    assert found["results"]["rooms"]["exact_match,none"] == pytest.approx(2 / 3)
    samples = sorted(found["samples"]["rooms"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"] for sample in samples] == [[[answer]] for answer in wanted]
    assert found["config"]["fingerprint"] == reader.fingerprint[:16] and found["config"]["selector"] == "bm25"


@pytest.mark.filterwarnings("default")
def test_the_package_finds_answers_again_and_draws_several_that_differ(
    reader: Reader, evaluated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lm_harness.harness_model(reader, budget_tokens=150, selector="bm25")
    kept = {"use_cache": str(tmp_path / "answers")}
    first = evaluated(model, ["a", "b", "c"], **kept)
    calls = []
    ask = Reader.ask
    monkeypatch.setattr(Reader, "ask", lambda self, *given, **more: calls.append(more) or ask(self, *given, **more))
    again = evaluated(model, ["a", "b", "c"], **kept)
    assert [s["resps"] for s in again["samples"]["rooms"]] == [s["resps"] for s in first["samples"]["rooms"]]
    assert not calls
    drawn = evaluated(model, ["a", "b", "c"], "repeats: 3\n", gen_kwargs={"do_sample": True, "temperature": 1.0})
    assert [len(set(sample["resps"][0])) for sample in drawn["samples"]["rooms"]] == [3, 3, 3] and len(calls) == 9


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("changed", "more", "error", "said"),
    [
        ("", {"apply_chat_template": True}, UsageError, "Leave apply_chat_template out"),
        ("", {"gen_kwargs": "top_p=0.9"}, BadOption, "'top_p'"),
        ("output_type: multiple_choice\ndoc_to_choice: [a, b]\n", {}, UsageError, "generate_until"),
    ],
)
def test_the_package_is_told_what_a_reader_has_not(
    changed: str, more: dict[str, Any], error: type[Exception], said: str, reader: Reader, evaluated: Any
) -> None:
    with pytest.raises(error, match=said):
        evaluated(lm_harness.harness_model(reader), ["a", "b", "c"], changed, **more)
