"""A Reader as a model of lm-evaluation-harness: ``lm_eval.simple_evaluate(model=harness_model(reader), tasks=[...])``.

Owns how a task's one prompt becomes a document and a question, which generation settings are honoured, and what the
results say of the reader. Tasks that want log-likelihoods are refused: a Reader puts text and question into a frame of
its own and says what it answers, so the likelihood of a given continuation of a given prompt is nothing it has.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import longctx
from longctx import Reader
from longctx.errors import BadOption, MissingExtra, UsageError

_HONOURED = {"until", "max_gen_toks", "do_sample", "temperature"}


def harness_model(
    reader: Reader,
    *,
    budget_tokens: int = 2048,
    selector: str = "auto",
    question_from: str | None = None,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> Any:
    """An ``lm_eval.api.model.LM`` that answers through ``reader``.

    A prompt is split where its question begins: at the last place of ``question_from`` where that is given, else after
    the last empty line. What stands before is the document, which is selected from; the rest is asked whole.
    ``max_new_tokens`` is for tasks that name no limit; a prompt that is drawn for several times is answered with
    ``seed``, ``seed`` + 1 and so on. Raises MissingExtra where lm-eval is not installed.
    """
    if find_spec("lm_eval") is None:
        raise MissingExtra("running tasks of lm-evaluation-harness", "lm-eval", "eval")
    base = importlib.import_module("lm_eval.api.model").LM
    kind: Any = type("ReaderLM", (_Answering, base), {})
    return kind(reader, budget_tokens, selector, question_from, max_new_tokens, seed)


def split_prompt(prompt: str, question_from: str | None = None) -> tuple[str, str]:
    """Document and question of one prompt. Raises UsageError where one of them would be empty."""
    text = prompt.rstrip()
    if question_from is None:
        at = max(text.rfind("\n\n"), text.rfind("\n \n"))
        where = "it has no empty line"
    else:
        at, where = text.rfind(question_from), f"{question_from!r} is not in it"
    document, question = text[: max(at, 0)].strip(), text[max(at, 0) :].strip()
    if at < 0 or not document or not question:
        raise UsageError(
            f"a prompt of {len(prompt)} characters cannot be split into document and question: "
            f"{where if at < 0 else 'one of them is empty'}. Name the words the question begins with (question_from)."
        )
    return document, question


class _Answering:
    """What the harness calls. Its own base class comes after this one and keeps rank, cache and device."""

    cache_hook: Any

    def __init__(
        self,
        reader: Reader,
        budget_tokens: int,
        selector: str,
        question_from: str | None,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        super().__init__()
        self._reader, self._question_from = reader, question_from
        self._max_new_tokens, self._seed = max_new_tokens, seed
        self._asked: dict[str, Any] = {"budget_tokens": budget_tokens, "selector": selector}
        self._warnings: Counter[str] = Counter()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """One answer a request, in their order; every document is compiled once for all its questions."""
        wanted = [(*split_prompt(request.args[0], self._question_from), request.args[1]) for request in requests]
        options = [self._options(given) for _, _, given in wanted]
        found = [""] * len(requests)
        times: Counter[str] = Counter()  # a task that draws several answers has its request here as often
        self._warnings = Counter()
        for document in dict.fromkeys(document for document, _, _ in wanted):
            book = self._reader.compile(longctx.Document.from_text(document, "prompt"))
            for at, (own, question, given) in enumerate(wanted):
                if own == document:
                    prompt = requests[at].args[0]
                    seed, times[prompt] = self._seed + times[prompt], times[prompt] + 1
                    answer = self._reader.ask(book, question, **self._asked, **options[at], seed=seed)
                    self._warnings.update(answer.warnings)
                    found[at] = _until(answer.text, given)
                    self.cache_hook.add_partial("generate_until", requests[at].args, found[at])
        return found

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results, under ``config``; ``warnings`` are of the answers made last."""
        return {
            "longctx": longctx.__version__,
            "fingerprint": self._reader.fingerprint[:16],
            "model_dtype": str(self._reader.model.dtype).removeprefix("torch."),
            **self._asked,
            "question_from": self._question_from,
            "max_new_tokens": self._max_new_tokens,
            "seed": self._seed,
            "warnings": dict(self._warnings),
        }

    @property
    def tokenizer_name(self) -> str:
        """Asked for where prompts are to be put into a chat template. Raises UsageError."""
        raise _no_template()

    def apply_chat_template(self, chat_history: Sequence[Any], add_generation_prompt: bool = True) -> str:
        raise _no_template()

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise _no_likelihood()

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        raise _no_likelihood()

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A task's generation settings as ``Reader.ask`` takes them. Raises BadOption for one that it has not."""
        strange = sorted(set(given) - _HONOURED)
        if strange:
            raise BadOption(
                f"a Reader has no generation setting {strange[0]!r}; it has {', '.join(sorted(_HONOURED))}."
            )
        said = given.get("temperature")
        heat = (
            1.0 if said is None and given.get("do_sample") else float(said or 0.0)
        )  # 1 is what drawing means elsewhere
        return {
            "max_new_tokens": int(given.get("max_gen_toks") or self._max_new_tokens),
            "temperature": heat if given.get("do_sample", heat > 0) else 0.0,
        }


def _until(text: str, given: Mapping[str, Any]) -> str:
    """``text`` before the first of the task's stop strings."""
    stops = given.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text


def _no_likelihood() -> UsageError:
    return UsageError(
        "a Reader has no log-likelihood of a given continuation: it selects from the document and puts what is left "
        "into a prompt of its own. Choose tasks of output_type generate_until."
    )


def _no_template() -> UsageError:
    return UsageError(
        "a Reader puts text and question into the model's chat template itself, and needs the prompt as it is. Leave "
        "apply_chat_template out."
    )
