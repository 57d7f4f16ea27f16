"""How far positions go, and where one pass says other things of its tokens than several would.

Two kinds take the frequencies of a whole pass from its largest position: ``longrope`` has a second set for long texts
(Ding et al. 2024, arXiv 2402.13753), ``dynamic`` stretches them with every token beyond the trained length. Positions
that were learned end with their table. Knows no draft.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Switch:
    """A pass that reaches beyond ``at`` tokens has other frequencies; where it ``grows``, others for every length."""

    at: int
    grows: bool


@dataclass(frozen=True, slots=True)
class Frequencies:
    """All switches of a model; none where a token's rotation depends on its own position only.

    ``trained`` is the length that its configuration states, where a table of learned positions would end.
    """

    switches: tuple[Switch, ...]
    trained: int | None = None

    def piece(self, prompt: int, most: int) -> int:
        """The tokens of a prefill pass: up to ``most``, but all of a prompt that passes a switch."""
        return prompt if any(prompt > switch.at for switch in self.switches) else most

    def reach(self, length: int) -> int:
        """How deep drafts behind ``length`` tokens may go for the pass to see them as passes of one token would.

        None goes over the trained length, which the answer may never reach; once it has, there is no table to leave.
        """
        rooms = [max(0, switch.at - length) for switch in self.switches if switch.grows or length <= switch.at]
        if self.trained is not None and length <= self.trained:
            rooms.append(self.trained - length)
        return min(rooms, default=sys.maxsize)

    def change(self, first: int, last: int) -> bool:
        """Whether they do between ``first`` tokens and ``last``: then a model repeats neither itself nor its cache."""
        return any(last > switch.at and (switch.grows or first <= switch.at) for switch in self.switches)


def frequencies(config: Any) -> Frequencies:
    """The switches that a model's configuration names, for all of its layers or for each kind of them."""
    config = config.get_text_config(decoder=True)
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given] if "rope_type" in given else [kind for kind in given.values() if isinstance(kind, dict)]
    found = []
    for kind in kinds:
        if kind.get("rope_type") == "longrope":
            found.append(Switch(int(kind["original_max_position_embeddings"]), grows=False))
        elif kind.get("rope_type") == "dynamic":
            found.append(Switch(int(config.max_position_embeddings), grows=True))
    return Frequencies(tuple(found), stated(config))


def turned(config: Any, context: int, last: int) -> str:
    """What is to be said where the first ``context`` tokens of ``last`` were read as a shorter text than the whole."""
    if not frequencies(config).change(context, last):
        return ""
    return (
        f"{config.model_type} rotates long texts otherwise than short ones, and the {context} tokens in the cache were "
        f"read as a text of that length, not as the beginning of {last}. Without the cache (ask: without kv=) they are."
    )


def stated(config: Any) -> int | None:
    """The trained length in tokens that a configuration states, or None."""
    config = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
