"""Products of a few rows by dot products of pairs of bfloat16, where a processor has those and no tiles.

Owns when they are had and what they need. Weights are read as they are, and x beside them: nothing is widened, and one
instruction multiplies two numbers of every place of a vector (Intel, AVX512_BF16: VDPBF16PS). x is rounded to bfloat16,
sums are made in float32, and numbers too small to be normal are zero. Knows no loop, no layer and no model.
"""

from __future__ import annotations

import functools
import platform

import torch

from longctx.kernels import tiles
from longctx.kernels.loops import Loops

DEEP = 32  # numbers of bfloat16 in a vector
_PAIRS, _NUMBERS = "<16 x float>", f"<{DEEP} x bfloat>"
_DOTS = "@llvm.x86.avx512bf16.dpbf16ps.512"


def have() -> bool:
    """Whether this processor has such products, and no tiles, which do more at once."""
    return _processor() and not tiles.have()


@functools.cache  # a fact about the processor
def _processor() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features()
    except (ImportError, OSError, RuntimeError):
        return False
    return all(features.get(name) for name in ("avx512bf16", "avx512f"))


def suit(dtype: torch.dtype, width: int) -> bool:
    """Whether weights of a width come in whole vectors."""
    return dtype == torch.bfloat16 and not width % DEEP


def room(rows: int, width: int) -> int:
    """Bytes that ``rows`` rows of a width take once they are rounded."""
    return 2 * rows * width


def declare(code: Loops) -> None:
    """To be written before the rest."""
    code.declare(f"{_PAIRS} {_DOTS}({_PAIRS}, {_NUMBERS}, {_NUMBERS})")


def load(code: Loops, base: str, index: object) -> str:
    """The vector at the ``index``th number behind ``base``."""
    return code.load(_NUMBERS, base, index, of="i16")


def added(code: Loops, one: str, other: str, sums: str) -> str:
    """``sums``, and to each of them the products of two numbers of one and of the other added."""
    return code.op(f"call {_PAIRS} {_DOTS}({_PAIRS} {sums}, {_NUMBERS} {one}, {_NUMBERS} {other})")


def pack(code: Loops, given: tuple[str, str, str], team: tuple[str, str], rows: str) -> None:
    """Writes x [rows, width] rounded; ``given`` are x, where it goes, and its width, which is in whole vectors."""
    x, into, width = given
    low, high = code.part(*team, code.div(code.mul(rows, width), DEEP))
    with code.loop(low, high) as at:
        for half in range(0, DEEP, code.lanes):
            place = code.add(code.mul(at.index, DEEP), half)
            code.put("i16", code.wide("float", x, place), into, place)
