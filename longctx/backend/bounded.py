"""A cache whose beginning is a compressed context: the layers read of it what the policy chooses, and all that is new.

Owns the joint attention over both, and the count of what was read. Knows no method.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from threading import get_ident
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from longctx.backend import chosen
from longctx.backend.blocks import BLOCK, apart, beside, seen, spans, together, weights, within
from longctx.backend.forks import Context, Fork, Held, Window
from longctx.backend.meter import Meter
from longctx.backend.parts import Part, causal_part, finite, fold, merge, part, with_sinks
from longctx.errors import CacheError, ModelError
from longctx.keys import EVERYTHING, Asked, Choice, KVReport


class Bounded(Fork):  # type: ignore[no-untyped-call]
    """A layer that sees everything: its slots hold the new tokens, and of the context it reads what is chosen."""

    def __init__(self, number: int, held: Held, context: Context, meter: Meter) -> None:
        super().__init__(held, context.tokens)
        self.number, self.policy, self.meter = number, context.policy, meter
        self.waiting = False
        self.valid: Tensor | None = None  # bool [batch, tokens] of a pass with padding, context included

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.waiting = True
        return super().update(key_states, value_states)

    def attend(
        self,
        query: Tensor,  # [batch, heads, rows, dim]
        key: Tensor,  # [batch, kv_heads, new, dim]
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attention over what is read of the context and over the new tokens, [batch, heads, rows, dim]."""
        self.waiting = False
        batch, heads, count, _ = query.shape
        kv_heads, groups = key.shape[1], heads // key.shape[1]
        if mask is not None:
            mask = mask.expand(batch, *mask.shape[1:])
        outs = []
        for start, stop, blocks in spans(count, together(query, self.held.keys.shape[1])):
            rows = fold(query[:, :, start:stop], kv_heads)
            position = self.get_seq_length() - count + stop - 1
            asked = Asked(
                apart(rows, groups, blocks),
                self.held.keys,
                scale,
                softcap,
                position,
                self.held.turn,
                weights(mask, start, stop, count, groups, blocks),
                self._padding(position, batch, blocks),
                groups,
            )

            def new(start: int = start, stop: int = stop, blocks: int = blocks, rows: Tensor = rows) -> Part:
                """What the rows see of the new tokens."""
                known = seen(mask, start, stop, count, key.shape[2], groups, query.device)
                if start == 0 and stop == count == key.shape[2] and mask is None and softcap is None:
                    found = causal_part(query, key, value, scale)
                else:
                    found = part(rows, key, value, scale, known, softcap)
                if sinks is not None:
                    found = with_sinks(found, sinks, kv_heads, stop - start)
                return Part(*(apart(one, groups, blocks) for one in found))

            plain = mask is None and softcap is None and sinks is None and blocks == 1 and stop - start == count
            joined = self._joined(asked, blocks, new, (key, value) if plain else None)
            outs.append(beside(joined, groups, blocks).to(query.dtype).reshape(batch, heads, stop - start, -1))
        out = outs[0] if len(outs) == 1 else torch.cat(outs, 2)
        self.meter.end(self.number)
        return out

    def _padding(self, position: int, batch: int, blocks: int) -> Tensor | int:
        """The slots before a position that hold no token, long [batch * blocks, 1, 1].

        Of several blocks only the last ends at the position; for the others, the slots behind them hold none either.
        """
        if blocks == 1:
            return 0 if self.valid is None else (~self.valid[:, :position]).sum(-1).view(-1, 1, 1)
        found = self.held.keys.new_zeros(batch, blocks, dtype=torch.long)
        for block in range(blocks):
            behind = (blocks - 1 - block) * BLOCK
            found[:, block] = behind if self.valid is None else behind + (~self.valid[:, : position - behind]).sum(-1)
        return found.view(-1, 1, 1)

    def _joined(self, asked: Asked, blocks: int, new: Callable[[], Part], own: tuple[Tensor, Tensor] | None) -> Tensor:
        """Attention over what the policy chooses and over the ``new`` tokens, to whose keys and values, if these are
        given as ``own``, it needs no part by itself.
        """
        held = self.held
        if held.index is None:  # the context has no token yet
            return merge([new()])
        choice, audits = self.policy.choose(held.index, asked), self.meter.audits(self.number)
        unread, bound = choice.unread, None
        both = None if own is None or audits else chosen.beside(held, choice, asked, own)
        if both is None:
            read, other = chosen.read(held, choice, asked), new()
            said = None if unread is None else unread.said
            joined = merge([read, other, *(() if said is None else (Part(*said),))])
            told = unread is not None or audits
            both = Part(joined, torch.logaddexp(read.log, other.log) if told else read.log)
        self._tell(both.out, asked, choice, blocks)
        if unread is not None:
            bound = None if held.slack is None else unread.base + held.slack.view(1, -1, 1)
            self.meter.estimate(unread.log, both.log, bound, blocks, asked.weights)
        if audits and choice.places is None and held.keys.shape[1] == self.tokens:
            whole = torch.logaddexp(chosen.read(held, EVERYTHING, asked).log, other.log)
            self.meter.audit(both.log, whole, bound, blocks, asked.weights)
        return both.out

    def _tell(self, joined: Tensor, asked: Asked, choice: Choice, blocks: int) -> None:
        """Counts a choice. Raises ModelError where what came of it, ``joined``, has anything else than numbers."""
        if not finite(joined):
            raise ModelError(
                f"the attention of layer {self.number} gave numbers that are not finite at position {asked.position}. "
                f"Load the model in a wider dtype, such as float32."
            )
        self.meter.count(choice, self.held.keys.shape[1], blocks, asked.weights)


class BoundedCache(Cache):
    """A fork of a context: its own new tokens behind keys that it shares with all other forks."""

    def __init__(self, context: Context, audit_every: int = 0) -> None:
        self.context, self.tokens = context, context.tokens
        self._meter = Meter(context.tokens, audit_every)
        self.is_announced = self.is_closed = False
        self.began: set[int] = set()  # what the layers held before the last pass
        self.home: Any = None  # the part of a model whose passes it is attached to; None: of any
        self.behind: list[int] | None = None  # the ids of what it holds behind the context; None: not known
        self.thread = get_ident()  # that attached it: no other one's passes get their turn until it is done
        self.is_told = True  # whether somebody was told, or need not be, that the model rotates the context otherwise
        self._mask: Tensor | None = None
        self._forks: list[Fork] = []
        self._bounded: dict[int, Bounded] = {}
        self._kin: WeakSet[BoundedCache] = WeakSet((self,))  # shared by all forks of one cache
        layers: list[Any] = []
        for number, held in enumerate(context.layers):
            if held.kept is not None:
                layers.append(copy.deepcopy(held.kept))
                continue
            if held.window is None:
                self._bounded[number] = Bounded(number, held, context, self._meter)
            self._forks.append(self._bounded.get(number) or Window(held, self.tokens))
            layers.append(self._forks[-1])
        super().__init__(layers=layers)

    @property
    def kept(self) -> list[int]:
        """The layers that no policy can do anything with."""
        return [number for number, held in enumerate(self.context.layers) if held.kept is not None]

    def bounded(self, layer: int) -> Bounded | None:
        """The layer where the policy chooses; None for one that is left alone."""
        return self._bounded.get(layer)

    def announce(self, mask: Tensor | None) -> None:
        """A pass comes whose attention mask [batch, tokens] is this; None: no token is padding."""
        self.is_announced, self.began = True, self.lengths
        padded = mask is not None and not bool(mask.all())
        there = next((held.keys.device for held in self.context.layers if held.kept is None), None)
        self._mask = mask.to(there).bool() if mask is not None and padded else None
        for fork in self._forks:
            fork.padding = 0 if self._mask is None else int((~self._mask).sum(-1).max())
        for layer in self._bounded.values():
            layer.valid, layer.waiting = self._mask, False  # whatever a pass that ended early left

    def window_mask(self, layer: int, rows: int, keys: int) -> Tensor | None:
        """Who sees whom in a layer with a window, bool [batch, 1, rows, keys], where there is padding; else None."""
        window = self.context.layers[layer].window
        if self._mask is None or window is None:  # one without, that was left as it is, has the model's own mask
            return None
        return within(self._mask, window, rows, keys)

    def new(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_heads, tokens, dim] of the tokens behind the context, of a batch of one.

        A layer that sees a window gives what it holds of the context too.
        """
        fork: Any = self.layers[layer]
        assert fork.keys is not None and fork.values is not None
        return fork.keys[0, :, : fork.used], fork.values[0, :, : fork.used]

    @property
    def lengths(self) -> set[int]:
        """The tokens that the layers hold, context included: one number, unless a pass failed halfway."""
        return {fork.get_seq_length() for fork in self._forks}

    @property
    def is_broken(self) -> bool:
        """Whether the last pass was announced, reached a layer, and never came to its end."""
        return self.is_announced and (bool(self.kept) or self.lengths != self.began)

    @property
    def rows(self) -> int | None:
        """The rows that the layers hold behind the context; None where there is nothing yet."""
        held = (fork.keys for fork in self._forks if fork.get_seq_length() > self.tokens)
        return next((len(keys) for keys in held if keys is not None), None)

    @property
    def waiting(self) -> list[int]:
        """Layers whose new keys came, but whose queries never did."""
        return [number for number, fork in self._bounded.items() if fork.waiting]

    def report(self) -> KVReport:
        """What the passes so far have read of the context."""
        return self._meter.report()

    def fork(self) -> BoundedCache:
        """A cache that goes on from here by itself."""
        self._check_open()
        made = BoundedCache(self.context, self._meter.audit_every)
        for one, other in zip(made._forks, self._forks, strict=True):
            one.copied(other)
        for number in self.kept:
            made.layers[number] = copy.deepcopy(self.layers[number])
        made.behind, made.thread, made.is_told = self.behind, self.thread, self.is_told
        made.home, made.is_announced, made.began = self.home, self.is_announced, self.began
        made._kin = self._kin
        made._kin.add(made)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundedCache:
        return self.fork()  # a question for each copy of a cache is what forks are for, and they share the context

    def rewind(self) -> None:
        """Only the context is left afterwards: the next question can be asked."""
        self._check_open()
        self.behind, self.is_announced = None, False
        for fork in self._forks:
            fork.rewind()
        for number in self.kept:
            self.layers[number] = copy.deepcopy(self.context.layers[number].kept)

    def reset(self) -> None:
        self.rewind()

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens back, given as a negative number. Raises CacheError, all being as it was, otherwise."""
        if not tokens_to_remove:
            return
        if self.kept:
            raise CacheError(
                f"crop({tokens_to_remove}): layers {self.kept} keep no keys but states of their own, from which no "
                "token can be taken back. Use rewind(), or fork() before what may have to go."
            )
        for fork in self._forks:
            fork.check_crop(-tokens_to_remove)
        self.behind = None
        super().crop(tokens_to_remove)
        if self.lengths == {self.tokens}:
            self.rewind()  # the next question may have another number of rows

    def close(self) -> None:
        """No pass uses this cache or a fork of it any more afterwards."""
        for cache in self._kin:
            cache.is_closed = True

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_announced:
            self._check_open()
            raise CacheError("the pass did not come through the model that the context is attached to.")
        self.behind = None
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def activate_past_recording(self) -> None:
        raise CacheError(
            "prompt lookup and assisted generation do not go on from a filled cache: they feed the whole prompt again "
            "and return other tokens. Use model.generate(custom_generate=longctx.speculative(...))."
        )

    def _check_open(self) -> None:
        if self.is_closed:
            raise CacheError("the fork is used after its context was closed. Attach the context again.")
