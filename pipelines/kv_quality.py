"""The quality half of ``longctx bench kv``: what a bounded cache loses, on questions it did not know when it was made.

Owns the two measures. A context is read once; the full cache answers greedily, and every policy is asked how likely it
finds that answer, token by token with a choice of keys for each, and what it would have said itself.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import longctx.kv
from longctx import plugins
from longctx.errors import BadOption

from .haystack import digest
from .kv_sources import Asked, Frame, Source

FULL = "full"
_KEEP = ("0.3333", "0.125", "0.0625")
_METHODS = ("squeezed:keep={}", "squeezed:keep={},mode=paper", "quest:keep={}", "snapkv:keep={}", "lm_infinite:keep={}")
POLICIES = (FULL, *(method.format(keep) for keep in _KEEP for method in _METHODS))


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens of a greedy answer and the natural logarithm of the likelihood of each."""

    tokens: tuple[int, ...]
    logs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bench:
    """What one run asks with: at most ``most`` new tokens an answer; ``audit`` as in ``attached(audit_every=)``.

    ``chat``: in a turn of the model's chat, if it has one.
    """

    model: Any
    tokenizer: Any
    policies: Sequence[str]
    most: int
    audit: int = 0
    chat: bool = True

    @property
    def ends(self) -> set[int]:
        """The tokens that end an answer."""
        found = self.model.generation_config.eos_token_id
        return set(found) if isinstance(found, list) else {found} - {None}


def measured(bench: Bench, source: Source, missing: Mapping[str, Collection[str]]) -> Iterator[dict[str, Any]]:
    """The rows of ``missing``: policy -> questions. The full cache is asked all that any other policy is asked."""
    model, frame = bench.model, Frame(bench.tokenizer, bench.chat)
    ids = frame.context(source.text)
    started = time.perf_counter()
    reading = longctx.kv.read(model, ids)
    about = {
        "document": source.document,
        "document_sha256": hashed(source),
        "context_tokens": len(ids),
        "prefill_seconds": round(time.perf_counter() - started, 3),
        **source.facts,
    }
    wanted = {question for questions in missing.values() for question in questions}
    asked = [question for question in source.questions if question.id in wanted]
    whole: dict[str, Answer] = {}
    with reading.compress(FULL).attached(model) as cache:
        for question in asked:
            cache.rewind()
            most = min(bench.most, question.max_new_tokens)
            whole[question.id] = greedy(model, cache, frame.question(question.prompt), most, bench.ends)
    for policy, questions in missing.items():
        started = time.perf_counter()
        try:
            method = plugins.resolve("kv", policy)
            if short := method.shortfall(len(ids)):  # a row of full attention under another name
                raise BadOption(short)
            context = longctx.kv.compress(model, ids, policy) if method.grows else reading.compress(policy)
        except BadOption as error:  # such as a budget that is below what is always read of a short document
            refused = {"error": {"kind": type(error).__name__, "message": str(error)}}
            yield from ({**about, "policy": policy, "question": q.id, **refused} for q in asked if q.id in questions)
            continue
        made = {**about, "made_seconds": round(time.perf_counter() - started, 3)}
        with context.attached(model, audit_every=bench.audit):
            for question in asked:
                if question.id in questions:
                    yield {**made, "policy": policy, **_row(bench, frame, context, question, whole[question.id])}


def hashed(source: Source) -> str:
    """What tells a text from another of its name."""
    return digest(source.text)[:16]


def _row(bench: Bench, frame: Frame, context: Any, question: Asked, whole: Answer) -> dict[str, Any]:
    cache = context.fork()
    ids = frame.question(question.prompt)
    most = min(bench.most, question.max_new_tokens)
    started = time.perf_counter()
    found, own = follow(bench.model, cache, ids, whole.tokens, most, bench.ends)
    seconds = time.perf_counter() - started
    report = cache.report()
    said = bench.tokenizer.decode(list(own), skip_special_tokens=True)
    measures = {name: round(value, 6) for name, value in question.score(said).items()}
    metric = next(iter(measures))
    losses = [a - b for a, b in zip(whole.logs, found, strict=True)]
    return {
        "question": question.id,
        "question_tokens": len(ids),
        "slots": int(context.policy.slots(context.tokens)),
        "read_keys": report.read_keys,
        "read_share": report.read_share,
        "lookup_bytes": context.lookup_bytes,
        "metric": metric,
        "score": measures[metric],
        "scores": measures,
        "loss": sum(losses) / len(losses),
        "steps": len(losses),
        "same": tuple(own) == whole.tokens,
        "answer_sha256": digest(said)[:16],
        "unread_share": report.unread_share,
        "unread_bound": report.unread_bound,
        "true_unread_share": report.true_unread_share,
        "above_bound": report.above_bound,
        "seconds": round(seconds, 3),
        "warnings": list(context.warnings),
    }


def greedy(model: Any, cache: Any, ids: Sequence[int], most: int, ends: Collection[int]) -> Answer:
    """The likeliest tokens behind ``ids``, at most ``most``; one of ``ends`` is the last."""
    tokens: list[int] = []
    logs: list[float] = []
    likely = _likely(model, cache, ids)
    while True:
        tokens.append(int(likely.argmax()))
        logs.append(float(likely[tokens[-1]]))
        if tokens[-1] in ends or len(tokens) == most:
            return Answer(tuple(tokens), tuple(logs))
        likely = _likely(model, cache, tokens[-1:])


def follow(
    model: Any, cache: Any, ids: Sequence[int], answer: Sequence[int], most: int, ends: Collection[int]
) -> tuple[list[float], tuple[int, ...]]:
    """The logarithms of the likelihoods of ``answer`` behind ``ids``, and the cache's own greedy answer.

    The cache has seen ``answer`` but its last token afterwards; its own answer goes on in a fork where they part.
    """
    logs: list[float] = []
    own: tuple[int, ...] | None = None
    likely = _likely(model, cache, ids)
    for at, token in enumerate(answer):
        logs.append(float(likely[token]))
        best = int(likely.argmax())
        if own is None and best != token:
            own = (*answer[:at], best)
            if best not in ends and len(own) < most:
                own += greedy(model, cache.fork(), [best], most - len(own), ends).tokens
        if at + 1 < len(answer):
            likely = _likely(model, cache, [token])
    return logs, tuple(answer) if own is None else own


def _likely(model: Any, cache: Any, ids: Sequence[int]) -> Any:
    """Log-likelihoods float32 [vocabulary] of the token behind ``ids``."""
    import torch

    with torch.inference_mode():
        row = torch.tensor([list(ids)], device=model.device)
        return model(row, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float().log_softmax(-1)
