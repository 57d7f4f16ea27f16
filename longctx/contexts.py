"""The door to bounded caches: ``compress`` a fixed context once, attach it to the model for every question.

Wiring between backend, policies and files. Knows no method by name but ``full``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from longctx import plugins, values
from longctx.backend import compressing, growing
from longctx.backend.attaching import attached, check_place, generating
from longctx.backend.bounded import BoundedCache
from longctx.backend.fitness import bounded_kinds
from longctx.backend.forks import Context, Held
from longctx.backend.inputs import check_ids, rows_and_mask
from longctx.backend.model import beyond_window, check_model, check_places, model_fingerprint, stated_window
from longctx.backend.rope import frequencies
from longctx.backend.rotary import turns
from longctx.backend.slots import windows
from longctx.console import listener
from longctx.errors import ArtifactError, BadOption, CacheError, DoesNotFit, UsageError
from longctx.keys import Asked, Index
from longctx.protocols import KVPolicy, Progress
from longctx.store import contexts as stored

PIECE = 2048  # tokens of a context that are read in one pass: each makes the weights ready for its products anew
_OWN = ("keys", "values", "stored", "slack")  # tensors of a stored layer that are not the policy's
Policy = str | KVPolicy


class CompressedContext:
    """A context that a model has read, of which later passes read a bounded part. Shared by all its forks."""

    def __init__(self, context: Context, ids: Sequence[int], fingerprint: str, warnings: tuple[str, ...]) -> None:
        self._context = dataclasses.replace(context, ids=tuple(ids))
        self.fingerprint, self.warnings = fingerprint, warnings
        self._open: BoundedCache | None = None

    @property
    def tokens(self) -> int:
        return self._context.tokens

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self._context.ids

    @property
    def policy(self) -> KVPolicy:
        return self._context.policy

    @property
    def nbytes(self) -> int:
        """What the context takes: keys, values and indices."""
        return sum(held.nbytes for held in self._context.layers)

    @property
    def lookup_bytes(self) -> int:
        """The indices of all layers, whole: what tokens look at to choose. ``oracle`` has none, and looks at all."""
        indices = [held.index for held in self._context.layers if held.index is not None]
        return sum(tensor.nbytes for index in indices for tensor in index.tensors.values())

    @property
    def left_alone(self) -> tuple[int, ...]:
        """The layers that are as the model left them: those that see a window, and those that keep no keys."""
        return tuple(number for number, held in enumerate(self._context.layers) if held.index is None)

    @contextmanager
    def attached(self, model: Any, *, audit_every: int = 0) -> Iterator[BoundedCache]:
        """A cache for ``model.generate(full_ids, past_key_values=cache)`` and for passes of one's own.

        The ids begin with the context's, id for id: made of text and question in one call they may join at the seam,
        and generate drops that unseen. New ids alone need an attention mask of ones for context and new ids together. A
        batch of questions is padded between context and question. Inside, no other thread of this library runs a pass.
        ``audit_every`` k: every k-th pass measures what went to keys not read. Raises CacheError for another model.
        """
        values.whole("audit_every", audit_every, 0)
        if model_fingerprint(model) != self.fingerprint:
            raise CacheError(f"the context was made by another model than this {type(model).__name__}. Compress again.")
        check_place(self._context, model)
        with attached(model):
            cache = BoundedCache(self._context, audit_every)
            cache.is_told, cache.home = not frequencies(model.config).switches, generating(model)
            before, self._open = self._open, cache
            try:
                yield cache
            finally:
                self._open = before
                cache.close()

    def fork(self) -> BoundedCache:
        """A fresh cache over the same keys, for use while the context is attached. Raises CacheError before and after.

        ``cache.fork()`` goes on from what a cache holds.
        """
        if self._open is None:
            raise CacheError(
                "a fork belongs to an attached context: call fork() inside `with context.attached(model)`."
            )
        made = self._open.fork()
        made.rewind()
        return made

    def save(self, path: str | Path) -> None:
        """Afterwards the folder ``path`` holds the context for ``longctx.kv.load``; before that, what it held.

        There is no moment between the two, whenever the process ends. It holds the text as keys and token ids: who can
        read the folder can read the text. Raises UsageError for a context or a place that cannot be, ArtifactBusy while
        another process writes there, and DoesNotFit for a full disk.
        """
        kept = [number for number, held in enumerate(self._context.layers) if held.kept is not None]
        if kept:
            raise UsageError(f"layers {kept} keep no keys but states of their own, which have no form on the disk.")
        name, options = _described(self.policy)
        layers = [
            {
                "window": held.window,
                "budget": None if held.index is None else held.index.budget,
                "tokens": None if held.index is None else held.index.tokens,
            }
            for held in self._context.layers
        ]
        facts = {
            "fingerprint": self.fingerprint,
            "policy": {"name": name, "options": options},
            "token_ids": self.token_ids,
            "warnings": self.warnings,
            "layers": layers,
        }
        stored.write(values.place("path", path), facts, [_tensors(held) for held in self._context.layers])


def compress(
    model: Any,
    input_ids: Any,
    policy: Policy = "squeezed",
    *,
    attention_mask: Any = None,
    allow_partial: bool = False,
    piece_tokens: int = PIECE,
    progress: bool | Progress | None = None,
) -> CompressedContext:
    """The context of ``input_ids`` [tokens] or [1, tokens], read once by ``model`` and bounded by ``policy``.

    What a tokenizer returns is taken as it is, ids and mask.
    A policy takes ``budget=``, the slots that a KV head reads, or ``keep=``, a share of the context turned into such a
    count here. A context that the budget holds, or of which the share is no more than what is always read, is read
    whole, and the warnings say so. ``allow_partial`` leaves layers that cannot be compressed as they are. Raises
    BadOption for an impossible budget or a padded context, ModelError for layers that cannot be compressed, by name,
    and DoesNotFit where a policy that bounds the reading too has no budget for a context beyond the model's window, or
    the model has learned no positions for so many tokens.
    """
    check_model(model)
    ids = row_of(input_ids, attention_mask)
    check_ids(torch.tensor(ids), model)
    values.whole("piece_tokens", piece_tokens, 1)
    method, budget, warnings = chosen(model, len(ids), policy, allow_partial)
    report = listener(progress)
    if method.grows:
        made = growing.grow(model, ids, method, budget, report)
    else:
        layers, queries = compressing.read(model, ids, method.window, piece_tokens, report)
        made = compressing.indexed(model, layers, queries, ids, method, budget, report)
    return CompressedContext(made, ids, model_fingerprint(model), warnings)


def chosen(
    model: Any, tokens: int, policy: Policy, allow_partial: bool = False
) -> tuple[KVPolicy, int, tuple[str, ...]]:
    """The policy that bounds a context of ``tokens``, its budget, and what is to be said of both. Raises as above."""
    method: KVPolicy = plugins.resolve("kv", policy)
    check_places(model, tokens)
    found = bounded_kinds(model, allow_partial and not method.grows)
    budget = method.slots(tokens)
    said: tuple[str, ...] = ()
    if not method.lossless and budget >= tokens:
        short = method.shortfall(tokens)
        if short and method.grows and tokens > (stated_window(model) or tokens):
            raise DoesNotFit(f"{short} But they pass the model's window of {stated_window(model)}. Give budget=.")
        said = (short or f"all {tokens} tokens of the context are read: the budget of {budget} slots holds them.",)
        method = plugins.load("kv", "full")
    # a policy that bounds the reading too reads as much at once as its budget holds, any other the text
    warnings = _partial(found) + beyond_window(model, budget if method.grows else tokens, method.reach(tokens)) + said
    if "full_attention" not in found:
        warnings += ("no layer of the model sees more than a window: there was nothing to compress.",)
    return method, budget, warnings


def load(path: str | Path, model: Any) -> CompressedContext:
    """The context saved at ``path``, for the model that made it.

    Raises ArtifactError for what is damaged, of another format, or was made by another model.
    """
    facts, tensors = stored.read(values.place("path", path))
    fingerprint = model_fingerprint(model)
    if facts.get("fingerprint") != fingerprint:
        raise ArtifactError(
            f"{path} was made by another model ({str(facts.get('fingerprint'))[:12]}, not {fingerprint[:12]}): "
            f"its keys mean nothing here. Compress the context again. {stored.releases(facts)}"
        )
    found = bounded_kinds(model)
    try:
        policy = plugins.plugin("kv", facts["policy"]["name"])(**facts["policy"]["options"])
        ids = [int(token) for token in facts["token_ids"]]
        turned = turns(model, found) if policy.grows else (None,) * len(found)
        layers = tuple(
            _held(entry, own, turn, model.device, len(ids), window)
            for entry, own, turn, window in zip(facts["layers"], tensors, turned, windows(model.config), strict=True)
        )
        heads = int(model.config.get_text_config(decoder=True).num_attention_heads)
        for held in layers:
            if held.index is not None:  # a tensor that the policy lacks would be missed by the first pass
                policy.choose(held.index, _nothing(held, len(ids), heads))
        warnings = tuple(map(str, facts["warnings"]))
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise ArtifactError(f"{path} is no context that can be read here ({error}). Compress it again.") from error
    return CompressedContext(Context(len(ids), layers, policy), ids, fingerprint, warnings)


def reach(policy: Policy | None, tokens: int, behind: int = 0) -> tuple[int, str]:
    """How far away the model sees the first of ``tokens`` once ``policy`` bounds them: what counts against its window.

    And why a policy that would bound the distance does not, where it does not. The last ``behind`` of the tokens are no
    part of the context: a policy that holds all that stands before them bounds nothing.
    """
    method: KVPolicy = plugins.resolve("kv", policy or "full")
    if not method.grows:
        return tokens, ""
    bounded = tokens - behind
    return (tokens if method.slots(bounded) >= bounded else method.reach(tokens, behind)), method.shortfall(bounded)


def _partial(found: Sequence[str]) -> tuple[str, ...]:
    left = [f"{number} ({kind})" for number, kind in enumerate(found) if kind not in compressing.SEEN]
    return (f"these layers keep no keys to choose from and were left as they are: {', '.join(left)}.",) if left else ()


def row_of(input_ids: Any, attention_mask: Any = None) -> list[int]:
    """The ids of one context. Raises EmptyInput for none, and BadOption for several rows and for padding."""
    rows, mask = rows_and_mask(input_ids, attention_mask)
    if len(rows) != 1:
        raise BadOption(f"input_ids of shape {tuple(rows.shape)} are not one context: a context has one row.")
    if mask is not None and not bool(mask.all()):
        raise BadOption("the context is padded (its attention mask has zeros): a context has no holes. Leave them out.")
    return [int(token) for token in rows[0].tolist()]


def _described(policy: Any) -> tuple[str, dict[str, Any]]:
    """Name and options of a policy that can be found again by them."""
    name = type(policy).__module__.rpartition(".")[2]
    if name not in plugins.names("kv") or plugins.plugin("kv", name) is not type(policy):
        raise UsageError(
            f"{type(policy).__name__} is not one of the policies by name, so it cannot be found at loading."
        )
    return name, dataclasses.asdict(policy)


def _tensors(held: Held) -> dict[str, torch.Tensor]:
    own = {"keys": held.keys, "values": held.values}
    if held.index is not None:
        own |= held.index.tensors
        if held.index.stored is not None:
            own["stored"] = held.index.stored
    return own if held.slack is None else own | {"slack": held.slack}


def _nothing(held: Held, tokens: int, heads: int) -> Asked:
    """A row of ``heads`` that asks for nothing, behind ``tokens`` of which a layer has these."""
    keys, groups = held.keys, heads // len(held.keys)
    rows = keys.new_zeros(1, len(keys), groups, keys.shape[2])
    return Asked(rows, keys, 1.0, None, tokens, held.turn, groups=groups)


def _held(
    entry: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    turn: Any,
    device: torch.device,
    tokens: int,
    window: int | None,
) -> Held:
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    keys, values, stored = tensors["keys"], tensors["values"], tensors.get("stored")
    if keys.ndim != 3 or values.shape[:2] != keys.shape[:2]:
        raise ValueError(f"keys of shape {tuple(keys.shape)} and values of shape {tuple(values.shape)}")
    if entry["window"] != window:
        raise ValueError(f"a window of {entry['window']} tokens where the model has {window}")
    if window is not None:
        return Held(keys, values, None, window, turn)
    if entry["tokens"] != tokens or keys.shape[1] != (tokens if stored is None else stored.shape[1]):
        raise ValueError(f"{keys.shape[1]} keys of {entry['tokens']} tokens for {tokens} token ids")
    index = Index(tokens, int(entry["budget"]), stored, {name: tensors[name] for name in tensors if name not in _OWN})
    return Held(keys, values, index, None, turn, tensors.get("slack"))
