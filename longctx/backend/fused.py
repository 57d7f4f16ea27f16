"""A decoder's layers for a few rows by the compiled kernel: one call or two a layer, with attention between them.

Owns the order of a layer's steps, the memory between them, and the trial that says when its products are the faster
ones. What is between products is in float32. Attention and caches are the caller's. Knows no model: ``Lean`` has its
parts, and ``Passes`` allows it, after holding it against the model's own forward.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from longctx.backend import narrow
from longctx.backend.anatomy import Layer, Norm, is_silu
from longctx.backend.kept import kept, taken
from longctx.backend.trial import seconds
from longctx.kernels import steps

MOST = narrow.SHORT  # rows
COUNTS = tuple(count for count in narrow.COUNTS if count <= MOST)

_STATES = ("q_proj", "k_proj", "v_proj")

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""The number of a layer, and its queries, keys and values [batch, heads, tokens, dim] -> what its heads put out."""


class Fused:
    """The layers ``layers`` by the kernel. It ``suits`` where that can be had for all their parts.

    ``shapes``: one matrix of each shape among their weights, and how many there are.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._weights = [part.weight for layer in layers for part in layer.linear.values()]
        norms = [norm for one in layers for norm in (one.before, one.between, *(one.head_norms or ()))]
        biases = [part.bias for one in layers for part in one.linear.values() if part.bias is not None]
        self.shapes = kinds(self._weights)
        self._numbers = [*self._weights, *biases, *(norm.weight for norm in norms)]
        self.dtype = self._weights[0].dtype if layers else torch.float32
        self._widths = tuple(sorted({weight.shape[1] for weight in self._weights}))
        self._known = self._now()
        self.suits = self._known is not None and self._fit()
        self._rooms: dict[tuple[int, int], _Room] = {}
        self._memory = _Memory()
        self._won: dict[tuple[int, int], bool] = {}

    def wins(self, rows: int) -> bool:
        """Whether ``run`` is the faster way for ``rows`` rows, found by trying when it is first asked."""
        if not (self.suits and 0 < rows <= MOST):
            return False
        count = COUNTS[bisect_left(COUNTS, rows)]
        key = count, torch.get_num_threads()
        if key not in self._won:
            usual = sum(many * narrow.seconds(count, one) for one, many in self.shapes)
            self._won[key] = self.seconds(count) < usual
        return self._won[key]

    def fit(self) -> bool:
        """Whether all parts are as the kernel takes them: through ``.data``, they may have come to be others."""
        if (now := self._now()) != self._known:
            self.suits, self._known = now is not None and self._fit(), now
            self._rooms, self._memory = {}, _Memory()
        return self.suits

    def seconds(self, rows: int) -> float:
        """What the products of all layers took for ``rows`` rows, one of ``COUNTS``, when they were tried."""
        place, threads, total = COUNTS.index(rows), torch.get_num_threads(), 0.0
        for weight, many in self.shapes:
            dtype, out, width, _ = narrow.shape(weight)
            total += many * _trial(dtype, out, width, threads)[place] * len(weight) / out
        return total

    def run(self, x: Tensor, turn: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """What the layers make of ``x``, float32 [batch, tokens, width], if they ``fit``; it holds until the next run.

        ``turn`` are the cosines and sines of every token's position, [batch or 1, tokens, dim]. One run at a time.
        """
        batch, tokens, width = x.shape
        room = self._rooms.get((batch, tokens))
        if room is None:
            gates = all(is_silu(layer.act) for layer in self._layers)
            room = _Room(self._layers, self.dtype, self._widths, self._memory, (batch, tokens), gates)
            if batch * tokens <= MOST:  # more are the comparison's, once
                self._rooms[batch, tokens] = room
        room.x.copy_(x.reshape(-1, width))
        for into, one in zip(room.turn, turn, strict=True):
            into.copy_(one.expand(batch, tokens, -1).reshape(batch * tokens, -1))
        for index, layer in enumerate(self._layers):
            q, k, v = room.enter(index)
            room.said.copy_(attend(index, q, k, v).view(room.said.shape))
            room.leave(index, layer.act)
        room.end()
        return room.x.view(batch, tokens, width)

    def _fit(self) -> bool:
        """Whether all parts have sizes that go with one another, as in the other layers, and that the kernel takes."""
        if not self._layers:
            return False
        first = self._layers[0]
        dim, sizes = first.head_dim, _sizes(first)
        hidden, inner, heads = sizes["o_proj"][0], sizes["gate_proj"][0], sizes["q_proj"][0]
        own = sizes["k_proj"][0]
        into = {"q_proj": heads, "k_proj": own, "v_proj": own, "gate_proj": inner, "up_proj": inner}
        expected = {name: (out, hidden) for name, out in into.items()}
        expected |= {"o_proj": (hidden, heads), "down_proj": (hidden, inner)}
        return (
            all(_sizes(one) == expected and one.head_dim == dim and _alike(one) for one in self._layers)
            and not any(size % dim for size in (heads, own, 2 * (dim // 2)))
            and all(steps.version(self.dtype, width) for width in (*self._widths, dim // 2))
        )

    def _now(self) -> list[tuple[int, torch.Size]] | None:
        """Where all numbers are, and how many; None where some are in another format or order than the kernel takes."""
        if not all(
            type(one) is nn.Parameter
            and one.layout == torch.strided
            and one.is_cpu
            and one.dtype == self.dtype
            and one.is_contiguous()
            for one in self._numbers
        ):
            return None
        return [(one.data_ptr(), one.shape) for one in self._numbers]


def kinds(weights: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    """One matrix of each shape among ``weights``, and how many there are."""
    one = {weight.shape: weight for weight in weights}
    return [(one[shape], many) for shape, many in Counter(weight.shape for weight in weights).items()]


def _sizes(layer: Layer) -> dict[str, tuple[int, ...]]:
    return {name: tuple(part.weight.shape) for name, part in layer.linear.items()}


def _alike(layer: Layer) -> bool:
    """Whether norms and biases have as many numbers as what they go with."""
    hidden = layer.linear["o_proj"].weight.shape[0]
    return (
        all(norm.weight.shape == (hidden,) for norm in (layer.before, layer.between))
        and all(norm.weight.shape == (layer.head_dim,) for norm in layer.head_norms or ())
        and all(one.bias is None or one.bias.shape == one.weight.shape[:1] for one in layer.linear.values())
    )


class _Memory:
    """Room for numbers between steps, once for passes of any number of rows."""

    def __init__(self) -> None:
        self._made: dict[str, Tensor] = {}
        self._packed = torch.empty(0, dtype=torch.uint8, device="cpu")

    def rows(self, name: str, rows: int, width: int) -> Tensor:
        """Some [rows, width], the same for a name whatever the rows."""
        if name not in self._made or len(self._made[name]) < rows:
            self._made[name] = torch.empty(max(MOST, rows), width, dtype=torch.float32, device="cpu")
        return self._made[name][:rows]

    def packed(self, dtype: torch.dtype, rows: int, width: int) -> Tensor:
        """Bytes for what ``Steps`` packs beside weights of a format, of any width up to this one."""
        size = steps.packed(dtype, max(MOST, rows), width)
        if len(self._packed) < size:
            self._packed = torch.empty(size, dtype=torch.uint8, device="cpu")
        return self._packed


class _Room:
    """What is between the steps of a pass of ``count`` rows, texts times tokens, and all steps of all layers on it.

    ``gates``: the MLP is gated by SiLU, for which there is a step.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        dtype: torch.dtype,
        widths: tuple[int, ...],
        memory: _Memory,
        count: tuple[int, int],
        gates: bool,
    ) -> None:
        (batch, tokens), first, self._dtype = count, layers[0], dtype
        rows = batch * tokens
        outs = {name: part.weight.shape[0] for name, part in first.linear.items()}
        made = {name: memory.rows(name, rows, out) for name, out in outs.items()}
        self._gate, self._up = made["gate_proj"], made["up_proj"]
        self.x, h = (memory.rows(name, rows, outs["o_proj"]) for name in ("x", "normed"))
        self.turn = memory.rows("cos", rows, first.head_dim), memory.rows("sin", rows, first.head_dim)
        self.said = memory.rows("said", rows, outs["q_proj"])
        self._gated = memory.rows("gated", rows, outs["gate_proj"])
        packed = memory.packed(dtype, rows, max(widths))
        self._shapes = [(batch, outs[name] // first.head_dim, tokens, first.head_dim) for name in _STATES]
        self._entering, self._leaving = list[tuple[steps.Steps, list[int]]](), list[steps.Steps]()
        doing = steps.Steps(dtype, rows, widths)
        for layer in layers:
            _multiply(doing, layer, layer.before, self.x, h, packed, {name: made[name] for name in _STATES})
            doing.wait()
            if layer.head_norms is not None:
                for name, norm in zip(_STATES[:2], layer.head_norms, strict=True):
                    doing.norm(made[name], norm.weight, norm.eps, made[name], outs[name] // layer.head_dim)
                doing.wait()
            q, k, v = (made[name] for name in _STATES)
            to_q, to_k, to_v = self._shapes
            places = [doing.turn(q, *self.turn, to_q), doing.turn(k, *self.turn, to_k), doing.lay(v, to_v)]
            self._entering.append((doing, places))
            doing = steps.Steps(dtype, rows, widths)
            _add(doing, layer.linear["o_proj"], self.said, packed, self.x)
            halves = {name: made[name] for name in ("gate_proj", "up_proj")}
            _multiply(doing, layer, layer.between, self.x, h, packed, halves)
            if gates:
                doing.wait()
                doing.gate(self._gate, self._up, self._gated)
                doing.wait()
            else:
                self._leaving.append(doing)
                doing = steps.Steps(dtype, rows, widths)
            _add(doing, layer.linear["down_proj"], self._gated, packed, self.x)
        self._end = doing

    def enter(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ends the layer before, and gives new queries, keys and values [batch, heads, tokens, dim]."""
        doing, places = self._entering[index]
        q, k, v = (torch.empty(shape, dtype=self._dtype, device="cpu") for shape in self._shapes)
        for place, states in zip(places, (q, k, v), strict=True):
            doing.point(place, states)
        doing.run()
        return q, k, v

    def leave(self, index: int, act: Callable[[Tensor], Tensor]) -> None:
        """Adds what attention ``said``, and goes through the MLP by its ``act``; where there are ``gates``, later."""
        if self._leaving:
            self._leaving[index].run()
            torch.mul(act(self._gate), self._up, out=self._gated)

    def end(self) -> None:
        """Ends the last layer."""
        self._end.run()


def _multiply(
    doing: steps.Steps, layer: Layer, norm: Norm, x: Tensor, h: Tensor, packed: Tensor, made: Mapping[str, Tensor]
) -> None:
    """Norms ``x`` into ``h``, and multiplies that by the weights that something is to be ``made`` with."""
    doing.norm(x, norm.weight, norm.eps, h)
    doing.wait()
    doing.pack(h, packed)
    for name, out in made.items():
        doing.product(h, layer.linear[name].weight, layer.linear[name].bias, out)


def _add(doing: steps.Steps, part: nn.Linear, y: Tensor, packed: Tensor, x: Tensor) -> None:
    """Adds to ``x`` what the layer ``part`` makes of ``y``."""
    doing.pack(y, packed)
    doing.product(y, part.weight, part.bias, x, add=True)
    doing.wait()


@functools.cache  # a fact about the processor and the ``threads`` that there are
def _trial(dtype: torch.dtype, out: int, width: int, threads: int) -> list[float]:
    """Seconds of a product with weights [out, width] among others, by the counts of rows."""
    about = (
        f"{dtype} weights [{out}, {width}], rows {COUNTS}, kernel by {steps.version(dtype, width)}, {steps.REVISION}"
    )
    return kept("steps", about, functools.partial(_tried, dtype, out, width), _understood)


def _understood(found: list[float]) -> list[float]:
    if len(found) != len(COUNTS):
        raise ValueError("the rows are others")
    return [taken(one) for one in found]


def _tried(dtype: torch.dtype, out: int, width: int) -> list[float]:
    weights, found = narrow.matrices(dtype, out, width), []
    for rows in COUNTS:
        x, made = (torch.ones(rows, size, dtype=torch.float32, device="cpu") for size in (width, out))
        packed = torch.empty(steps.packed(dtype, rows, width), dtype=torch.uint8, device="cpu")

        def work(rows: int = rows, x: Tensor = x, made: Tensor = made, packed: Tensor = packed) -> None:
            doing = steps.Steps(dtype, rows, (width,))
            doing.pack(x, packed)
            for weight in weights:
                doing.product(x, weight, None, made)
            doing.run()

        found.append(seconds(work) / len(weights))
    return found
