"""longctx and plain Hugging Face as a program under test: one method on one model, in a process of its own.

Owns what each kind of method is given and what it reports. Works on the public face; run by ``peers/_serve.py``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import longctx
from longctx import plugins
from longctx.errors import BadOption, DoesNotFit

from .cases import Question
from .needle_systems import Books, Plain
from .peers import _models
from .peers._serve import Refused
from .systems import answer as say
from .systems import show, warm

_FIRST = 64  # tokens of the pass that comes before all questions


def load(asked: Mapping[str, Any]) -> Own:
    return Own(asked)


class Own:
    """A reader and the method ``asked`` names; what it needs once for a model is there before the first question."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        if asked.get("threads"):
            import torch

            torch.set_num_threads(asked["threads"])
        self._reader = longctx.Reader.from_pretrained(asked["model"], dtype=asked["dtype"], device=asked["device"])
        self._kind, self._spec, self._budget = asked["kind"], asked["spec"], asked["budget"]
        self._books = Books(self._reader)
        self._document: tuple[str, longctx.Document] | None = None
        self._kept = ""  # the document whose keys the reader holds
        self._more = self._generation(asked["options"], asked) if self._kind == "hf" else {}
        if self._kind == "selector":
            warm(self._reader, asked["beginning"], [self._spec])
        # what a first pass makes once (on a GPU that takes seconds) is not the first question's to pay
        self.check(self._reader.tokenizer(asked["beginning"], verbose=False)["input_ids"][:_FIRST] or [0])
        facts = _models.facts(self._reader.model)
        facts["versions"] = {"longctx": longctx.__version__, **facts["versions"]}
        self.facts = {**facts, "fingerprint": self._reader.fingerprint[:16]}

    def check(self, ids: list[int]) -> list[int]:
        return _models.check(self._reader.model, ids)

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        kinds = {"selector": self._selected, "kv": self._bounded, "drafters": self._drafted, "hf": self._plain}
        if self._document is None or self._document[0] != asked["document"]:
            self._document = (asked["document"], longctx.Document.from_text(asked["text"], "document"))
        try:
            return kinds[self._kind](self._document[1], asked)
        except (DoesNotFit, BadOption) as error:  # such as a budget that is below what is always read
            raise Refused(str(error)) from error

    def _selected(self, document: longctx.Document, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What a selector shows within its budget, and the model's answer to the question after it."""
        question = Question("", asked["query"], asked["question"], (), asked["max_new_tokens"])
        book, compiling = self._books(document)
        shown = show(self._reader, book, question, self._spec, self._budget)
        said = say(self._reader, shown, question)
        whole = sum(end - start for start, end in shown.spans) >= len(document.text.strip())
        return {
            "text": said.text,
            "spans": shown.spans,
            "measured": {
                "selected_tokens": shown.tokens,
                "prompt_tokens": said.prompt_tokens,
                "new_tokens": said.new_tokens,
                "tokens_read": shown.tokens_read,
            },
            "unchanged": "the budget holds the whole text" if whole else None,
            "reused": compiling == 0.0,
            "warnings": list(shown.warnings),
            "seconds": {"compile": compiling, "select": shown.seconds, "answer": said.seconds},
        }

    def _bounded(self, document: longctx.Document, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The whole text read once, and of its keys what the policy reads for each token of the answer."""
        said, found = self._whole(document, asked, {"kv": self._spec})
        read = said.trace[-2].facts["kv"]
        if short := plugins.resolve("kv", self._spec).shortfall(read["context_tokens"]):
            raise Refused(short)  # a row of full attention under another name
        found["measured"] |= {"kept_tokens": round(read["read_keys"], 2), "context_tokens": read["context_tokens"]}
        found["unchanged"] = "every key was read" if read["read_keys"] >= read["context_tokens"] else None
        found["reused"], self._kept = self._kept == asked["document"], asked["document"]
        return found

    def _drafted(self, document: longctx.Document, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The whole text, and an answer of several tokens a pass."""
        stack = "auto" if self._spec == "auto" else self._spec.split("+")
        said, found = self._whole(document, asked, {"drafters": stack})
        facts = said.trace[-2].facts
        found["measured"] |= {name: facts[name] for name in ("rounds", "drafted", "accepted")}
        found["unchanged"] = None if facts["drafted"] else "no token was drafted"
        return found

    def _whole(
        self, document: longctx.Document, asked: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[longctx.Answer, dict[str, Any]]:
        said = self._reader.ask(
            document, asked["question"], selector="all", max_new_tokens=asked["max_new_tokens"], **options
        )
        facts, seconds = said.trace[-2].facts, said.timings
        decode = sum(facts[f"{phase}_seconds"] for phase in ("draft", "verify", "commit"))
        return said, {
            "text": said.text,
            "spans": [[0, len(document.text)]],
            # the token that ends an answer is counted, as in all other programs
            "measured": {"prompt_tokens": said.usage["prompt_tokens"], "new_tokens": facts["new_tokens"]},
            "warnings": list(said.warnings),
            "seconds": {
                **{name: seconds[f"{name}_seconds"] for name in ("compile", "select")},
                "prefill": seconds["decode_seconds"] - decode,
                "decode": decode,
            },
        }

    def _plain(self, document: longctx.Document, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Hugging Face's own generate."""
        system = Plain(self._reader, self._spec, asked["max_new_tokens"], self._more)
        started = time.perf_counter()
        with _models.Passes(self._reader.model) as passes:
            said = system.answer(document, asked["question"])
        ended = time.perf_counter()
        read = said.read or ()
        unchanged = None
        if self._spec == "truncated" and sum(b - a for a, b in read) >= len(document.text):
            unchanged = "nothing was cut off: the window holds the whole text"
        early = passes.tokens[0] - said.facts["prompt_tokens"]  # drafted before the prompt was read
        if self._more and not early and all(tokens == 1 for tokens in passes.tokens[1:]):
            unchanged = "no token was drafted"
        # then the first pass gives several tokens, and those after it are not all that were decoded
        seconds = {"prefill": passes.ended[0] - started, "decode": ended - passes.ended[0]}
        return {
            "text": said.text,
            "spans": read,
            "measured": {**said.facts, "passes": len(passes.tokens)},
            "unchanged": unchanged,
            "seconds": {} if early else seconds,
        }

    def _generation(self, options: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """What ``generate`` is given besides the prompt."""
        if self._spec == "prompt_lookup":
            return {"prompt_lookup_num_tokens": options["tokens"], "max_matching_ngram_size": options["ngram"]}
        if self._spec != "assisted":
            return {}
        assistant = longctx.Reader.from_pretrained(options["model"], dtype=asked["dtype"], device=asked["device"])
        found: dict[str, Any] = {"assistant_model": assistant.model}
        if assistant.tokenizer.get_vocab() != self._reader.tokenizer.get_vocab():
            found |= {"tokenizer": self._reader.tokenizer, "assistant_tokenizer": assistant.tokenizer}
        return found
