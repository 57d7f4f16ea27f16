"""A few rows times a matrix of weights, where the library's own way does not read the weights at the memory's speed.

Owns the ways to that product and the trial that decides between them. PyTorch's own begins with the rows: in float32 a
single row goes through one thread on some processors, and from two or four rows on a kernel made for many is taken,
which on others costs what sixteen rows do. A product that begins with the weights does neither, and may take as long
for sixteen rows as for two. Where a processor has no instructions for a format of 16 bits, each row of its products
costs as much as four in float32, and from some twelve rows on it pays to widen the weights; where a kernel can be
compiled, weights are widened while they are multiplied, or multiplied as they are. Knows no layer and no model, and
makes nothing that gradients could be taken of.
"""

from __future__ import annotations

import functools
import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from longctx.backend.kept import kept, taken
from longctx.backend.trial import fastest
from longctx.kernels import few_rows, steps

FORMATS = (torch.float32, torch.bfloat16, torch.float16)  # in which there is more than one way, on a CPU
MOST = 256  # rows that are few
COUNTS = (1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64)  # rows that are tried; others are as the next of these
_CHUNK, _FEWER = 4, 12  # rows of ``_by_fours`` at a time, and at the most: more read the weights too often
_BLOCK = 2**20  # numbers of the weights widened at a time: they stay in caches, and are enough for a product
_SMALL = 2**17  # of them where the rows come first
_FASTER = 1.05  # how many times as fast another way must be: each rounds in its own order
SHORT = 32  # rows up to which the kernel is tried: what it does for each is more than a product of many does
_WEIGHTS = 2**22  # numbers in a matrix of the trial, at the most: rows of a larger one are left out
_WHOLE = 16  # rows that some ways take together: of a large matrix a number is tried that leaves as many over
_APART = 2**24  # numbers in all matrices of a trial: too many for a cache, as those of all layers are
_MATRICES = 64  # of them, at the most

Way = Callable[[Tensor, Tensor], Tensor]
"""Rows [rows, in] and weights [out, in] -> their product [rows, out], row by row, in their format or a wider one."""

Shape = tuple[torch.dtype, int, int, int]
"""What is tried once: a format, the rows and the width of weights [out, in], and a number of threads."""


def wins(rows: int, weight: Tensor) -> bool:
    """Whether ``product`` takes another way than the usual one for ``rows`` rows and ``weight`` [out, in].

    Found by trying, in up to two seconds when it is first asked for weights of that shape.
    """
    return _way(rows, weight) is not _usual


def widens(rows: int, weight: Tensor) -> bool:
    """Whether ``product`` makes its sums of weights of 16 bits in float32, and rounds these only if the rows are."""
    return weight.dtype != torch.float32 and _way(rows, weight) in _WIDENING


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` [rows, in] by the transposed ``weight`` [out, in], up to rounding what ``F.linear`` gives, as ``x`` is.

    Rows may be in float32 where the weights are in a narrower format.
    """
    way = _way(x.shape[0], weight)
    if way is _usual:
        return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
    made = way(x if way in _WIDENING else x.to(weight.dtype), weight)
    return (made if bias is None else made + bias).to(x.dtype)


def seconds(rows: int, weight: Tensor) -> float:
    """What ``product`` took for ``rows`` rows, one of ``COUNTS``, and ``weight`` [out, in], when it was tried."""
    tried = shape(weight)
    return _trial(*tried)[1][COUNTS.index(rows)] * len(weight) / tried[1]


def _way(rows: int, weight: Tensor) -> Way:
    dtype = weight.dtype
    if not 0 < rows <= MOST or not weight.is_cpu or dtype not in FORMATS:
        return _usual
    if rows > COUNTS[-1] and dtype == torch.float32:
        return _usual
    ways = _ways(*shape(weight))
    if rows <= COUNTS[-1]:
        return ways[bisect_left(COUNTS, rows)]
    return _widened if ways[-1] is _widened else _usual


def _usual(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


def _weights_first(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(weight, x.t()).t().contiguous()  # who reads rows pays for columns otherwise


def _by_fours(x: Tensor, weight: Tensor) -> Tensor:
    """Weights first, a few rows at a time: on some processors only so few have a good kernel."""
    # an odd row out would be a product with a vector, or one for which the library has no good kernel
    even = torch.cat((x, x[-1:])) if len(x) % 2 else x
    return torch.cat([torch.mm(weight, part.t()).t() for part in torch.split(even, _CHUNK)])[: len(x)]


def _one_by_one(x: Tensor, weight: Tensor) -> Tensor:
    """Every row by itself, as a matrix times a vector: the library has other kernels for that."""
    return torch.stack([torch.mv(weight, row) for row in x.unbind()])


def _widened(x: Tensor, weight: Tensor) -> Tensor:
    """Weights first, a block of them at a time, in float32: what is added to it can be before it is rounded."""
    wide, made = x.float().t(), torch.empty(len(weight), len(x), dtype=torch.float32, device="cpu")
    for place, some in _blocks(weight, _BLOCK):
        torch.mm(some, wide, out=made[place])
    return made.t().contiguous()


def _widened_rows_first(x: Tensor, weight: Tensor) -> Tensor:
    """The same in the usual order, of smaller blocks: for so few rows the block itself is what must stay in caches."""
    wide, made = x.float(), torch.empty(len(x), len(weight), dtype=torch.float32, device="cpu")
    for place, some in _blocks(weight, _SMALL):
        torch.mm(wide, some.t(), out=made[:, place])
    return made


def _blocks(weight: Tensor, numbers: int) -> Iterator[tuple[slice, Tensor]]:
    """Where ``numbers`` of ``weight`` [out, in] stand, and they in float32, which hold until the next are asked for."""
    out, width = weight.shape
    room = torch.empty(min(out, max(1, numbers // width)), width, dtype=torch.float32, device="cpu")
    for at in range(0, out, len(room)):
        some = weight[at : at + len(room)]
        yield slice(at, at + len(some)), room[: len(some)].copy_(some)


def _kernel(x: Tensor, weight: Tensor) -> Tensor:
    """By the kernel, which suits the shape if it was tried. Weights that are not contiguous go the usual way."""
    return few_rows.product(x, weight) if weight.is_contiguous() else _usual(x.to(weight.dtype), weight)


_LIBRARY: tuple[Way, ...] = (_usual, _weights_first, _by_fours, _one_by_one, _widened_rows_first, _widened)
# by the names that findings are kept under; which of them are tried for how many rows says ``_candidates``
_WAYS = {way.__name__: way for way in (*_LIBRARY, _kernel)}
_WIDENING = frozenset((_kernel, _widened, _widened_rows_first))  # rows may be wider, and their products are


def shape(weight: Tensor) -> Shape:
    """What is tried for ``weight`` [out, in]: of a large one, some rows."""
    out, width = weight.shape
    most = max(1, _WEIGHTS // width)
    over = (most - out) % _WHOLE if most > _WHOLE else 0
    return weight.dtype, min(out, most - over), width, torch.get_num_threads()


def _ways(dtype: torch.dtype, out: int, width: int, threads: int) -> list[Way]:
    return _trial(dtype, out, width, threads)[0]


@functools.cache  # a fact about the processor
def _trial(dtype: torch.dtype, out: int, width: int, threads: int) -> tuple[list[Way], list[float]]:
    """The fastest way for every count of rows with weights [out, width], and the seconds it took: the first findings.

    The shape decides as much as the count; ``threads`` are those that there are.
    """
    kernel = f"kernel {steps.REVISION} by {few_rows.version(dtype, width) or 'none'}"
    about = f"{dtype} weights [{out}, {width}], rows {COUNTS}, ways {sorted(_WAYS)}, {kernel}"
    ways, times = kept("narrow", about, functools.partial(_tried, dtype, out, width), _understood)
    if _kernel in ways:
        few_rows.ready(dtype, width)
    return ways, times


def matrices(dtype: torch.dtype, out: int, width: int) -> tuple[Tensor, ...]:
    """Weights [out, width] for a trial, more than a cache holds: those of all layers are."""
    some = max(2, min(_MATRICES, _APART // (out * width)))
    return torch.ones(some, out, width, dtype=dtype, device="cpu").unbind()


def _understood(found: list[tuple[str, float]]) -> tuple[list[Way], list[float]]:
    if len(found) != len(COUNTS):
        raise ValueError("the rows are others")
    return [_WAYS[name] for name, _ in found], [taken(seconds) for _, seconds in found]


def _tried(dtype: torch.dtype, out: int, width: int) -> list[tuple[str, float]]:
    """The name of the fastest way for every count of rows, and the seconds it took."""
    every = matrices(dtype, out, width)
    weights, compiles = itertools.cycle(every), few_rows.suits(every[0])
    found = list[tuple[str, float]]()
    for rows in COUNTS:
        x = torch.ones(rows, width, dtype=dtype, device="cpu")
        ways = _candidates(rows, dtype, compiles)
        if [name for name, _ in found[-2:]] == [_widened.__name__] * 2:
            ways = (_widened,)  # what it adds to the product is the same for any number of rows
        place, best = fastest([functools.partial(_with_next, way, x, weights) for way in ways], _FASTER)
        found.append((ways[place].__name__, best))
    return found


def _candidates(rows: int, dtype: torch.dtype, compiles: bool) -> tuple[Way, ...]:
    """What is worth trying for ``rows`` rows. Where the kernel compiles it takes the place of all that imitates it."""
    # in half precision a product may pass the range that its sum with a bias is within
    first = () if dtype == torch.float16 else (_weights_first,)
    widened = (_widened,) if rows > 1 and dtype != torch.float32 else ()
    if compiles and rows <= SHORT:
        return _usual, *first, _kernel, *(widened if rows > _FEWER else ())
    return (
        _usual,
        *first,
        *((_by_fours,) if first and rows <= _FEWER else ()),
        *((_one_by_one,) if first and rows <= _CHUNK else ()),
        *((_widened_rows_first,) if widened and rows <= _FEWER else ()),
        *widened,
    )


def _with_next(way: Way, x: Tensor, weights: Iterator[Tensor]) -> Tensor:
    return way(x, next(weights))
