"""Hugging Face's candidate generators as drafters: prompt lookup, a smaller model, heads, or one of the user's own.

Owns what such a generator is asked and told, and that each request has one of its own. Knows no draft of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from longctx.backend.alone import turn
from longctx.backend.copies import of_its_own
from longctx.backend.retold import Retold, common
from longctx.backend.states import OPTIONS, unheard
from longctx.drafts import Budget, Draft, DraftSource, Take, Verified
from longctx.errors import BadOption

_SURE = 0.8  # how likely a token without a probability is taken to be right after the one before it


def adapted(drafter: Any) -> Any:
    """``drafter`` itself, or where it is a candidate generator a drafter that asks it.

    Raises BadOption for a generator that wants more of the model's passes than drafters are shown.
    """
    if not callable(getattr(drafter, "get_candidates", None)):
        return drafter
    if not _works(drafter):
        return Candidates(drafter)
    if named := unheard(getattr(drafter, "model_kwargs_overrides", {})):
        raise BadOption(
            f"{type(drafter).__name__} drafts from what the model's passes say with {named}: drafters are shown what "
            f"they say with {' and '.join(OPTIONS)}, as model_kwargs_overrides of the generator names them."
        )
    return Candidates(drafter)


def _works(generator: Any) -> bool:
    """Whether ``generator`` works from what the model's passes say."""
    return bool(getattr(generator, "requires_model_outputs", False))


@dataclass(frozen=True, slots=True)
class Candidates:
    """Asks copies of ``generator``, one a request, which share its models; the generator itself stays as it was given.

    It is told how many of its tokens were right as Hugging Face would tell it. The scores it is given with that are
    not-a-number, one row [1, candidates + 1, 1] for each token: only their count is known. Of what the model's passes
    say it is given hidden states and the keys and values that layers share, where it names them, and no logits.
    """

    generator: Any
    needs: ClassVar[int] = 0

    def begin(self, source: DraftSource) -> Asking:
        take = None
        if _works(self.generator):
            if source.watch is None:
                raise BadOption(
                    f"{type(self.generator).__name__} works from what passes say, and nobody shows it any of that."
                )
            take = source.watch(self.generator.model_kwargs_overrides)
        return Asking(of_its_own(self.generator), source, take)


class Asking:
    """The drafter at work: one chain a round, whatever its length."""

    def __init__(self, generator: Any, source: DraftSource, take: Take | None = None) -> None:
        self._generator, self._seed = generator, source.seed
        self._tokens = source.prompt.tolist()
        self._device = _device(generator)
        self._retold = None if take is None else Retold(generator, take, len(self._tokens), self._device)
        self._said: tuple[list[int], list[float]] | None = None
        self._offered: list[int] = []  # the part of it that fitted the latest budget
        self._fed: list[int] = []  # what the generator's own cache was filled with, at most

    def propose(self, budget: Budget) -> Draft:
        if self._said is None:
            self._said = self._asked()
        count = min(len(self._said[0]), budget.nodes, budget.depth)
        self._offered = self._said[0][:count]
        return Draft.chain(self._offered, self._said[1][:count])

    def observe(self, verified: Verified) -> None:
        tokens = [*self._tokens, *verified.tokens]
        if self._said is not None:
            scores = torch.full((1, len(self._offered) + 1, 1), float("nan"), device=self._device)
            right = common(self._offered, verified.tokens)
            self._generator.update_candidate_strategy(self._ids(tokens), scores, right)
        self._tokens, self._said = tokens, None  # only now: one that failed is told again

    def _asked(self) -> tuple[list[int], list[float]]:
        given = getattr(self._generator, "assistant_kwargs", None)
        if given is not None and not hasattr(self._generator, "assistant_tokenizer"):  # with its own it looks itself
            self._fit(given)
        # an assistant that draws must neither use up the caller's random numbers nor make a seed's drafts differ
        with turn(), torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed((self._seed + len(self._tokens)) % (1 << 63))
            if self._retold is not None:
                whole, logits = self._retold.candidates(self._tokens)
            else:
                whole, logits = self._generator.get_candidates(self._ids(self._tokens))
        self._fed = whole[0, :-1].tolist()
        new = whole[0, len(self._tokens) :].tolist()
        return new, _chances(new, logits)

    def _fit(self, given: dict[str, Any]) -> None:
        """Makes what goes into an assistant's passes fit the text: the mask, and a cache of committed tokens only.

        By itself it goes back no further than the round's last token, from the prompt it was made with: in Hugging
        Face's loop nobody else drafts, so that what was committed is what it said up to there.
        """
        given.pop("position_ids", None)
        given["attention_mask"] = torch.ones_like(self._ids(self._tokens))
        cache: Any = given.get("past_key_values")
        if cache is None:
            return
        wrong = int(cache.get_seq_length()) - common(self._fed, self._tokens)
        if wrong > 0:
            cache.crop(-wrong)

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([tokens], device=self._device)


def _chances(new: Sequence[int], logits: Tensor | None) -> list[float]:
    """How likely each token of a chain is reached and right, by the generator's own word where it gives one."""
    if not new:
        return []
    sure = torch.full((len(new),), _SURE)
    if logits is not None:
        sure = logits[0, : len(new)].float().softmax(-1).gather(1, torch.tensor(new, device=logits.device)[:, None])
    chances: list[float] = sure.flatten().cumprod(0).tolist()
    return chances


def _device(generator: Any) -> torch.device:
    """Where a generator wants its ids: with its model, or with whatever tensor it holds."""
    found = (getattr(value, "device", None) for value in getattr(generator, "__dict__", {}).values())
    return next((device for device in found if isinstance(device, torch.device)), torch.device("cpu"))
