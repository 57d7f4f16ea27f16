"""Elementary functions of vectors, as code.

Owns their arithmetic and where it ends. Knows no kernel.
"""

from __future__ import annotations

import math

from longctx.kernels.loops import Loops

_HALF_ROOT = 0x3F3504F3  # the square root of a half, as an integer
_WHOLE = 1.5 * 2**23  # numbers beside it are whole
_LEAST = -87.0  # below it an exponential is no normal number
# of 2**x between -0.5 and 0.5 the polynomial that is right at five places, 0 among them; 4e-6 off at the most
_POWERS = (1.0, 0.69312105, 0.24022349, 0.05592198, 0.00966637)


def exp(code: Loops, x: str) -> str:
    """The exponential of numbers that are not above 0, to seven digits; 0 for what is far below.

    Of -inf it is no number: as a logit it is one that was too large for its format.
    """
    v, low = code.vector, code.constant(_LEAST)
    far = code.op(f"fcmp olt {v} {x}, {low}")  # a comparison that fails keeps what is no number
    none = code.op(f"fcmp oeq {v} {x}, {code.constant(-math.inf)}")
    x = code.select(far, low, x)
    # added to this a number keeps its whole part, rounded, in the last bits: conversions that bound it go one by one
    moved = code.fma(x, code.constant(1 / math.log(2)), code.constant(_WHOLE))
    n = code.vec("fsub", moved, code.constant(_WHOLE))
    high = 0.693359375  # ln 2 in two parts, of which the first has few digits
    rest = code.fma(n, code.constant(high - math.log(2)), code.fma(n, code.constant(-high), x))
    found = code.constant(1 / math.factorial(7))
    for k in range(6, -1, -1):
        found = code.fma(found, rest, code.constant(1 / math.factorial(k)))
    bits = code.op(f"shl {code.whole} {code.op(f'bitcast {v} {moved} to {code.whole}')}, {code.same(23)}")
    exponent = code.op(f"add {code.whole} {bits}, {code.same(127 << 23)}")
    scale = code.op(f"bitcast {code.whole} {exponent} to {v}")
    found = code.select(far, "zeroinitializer", code.vec("fmul", found, scale))
    return code.select(none, code.constant(math.nan), found)


def power(code: Loops, x: str) -> str:
    """Two to the power of numbers that are not above 0, to five digits; 0 for what is far below, -inf too."""
    v = code.vector
    moved = code.vec("fadd", x, code.constant(_WHOLE))
    rest = code.vec("fsub", x, code.vec("fsub", moved, code.constant(_WHOLE)))
    found = code.constant(_POWERS[-1])
    for factor in reversed(_POWERS[:-1]):
        found = code.fma(found, rest, code.constant(factor))
    # the whole part goes to the exponent: of what is no number that leaves the digits as they are
    bits, whole = (code.op(f"bitcast {v} {one} to {code.whole}") for one in (found, moved))
    more = code.op(f"shl {code.whole} {whole}, {code.same(23)}")
    found = code.op(f"bitcast {code.whole} {code.op(f'add {code.whole} {bits}, {more}')} to {v}")
    return code.select(code.op(f"fcmp olt {v} {x}, {code.constant(_LEAST / math.log(2))}"), "zeroinitializer", found)


def log(code: Loops, x: str, nothing: str) -> str:
    """The logarithm of one normal number above 0, to seven digits; of 0 it is ``nothing``."""
    bits = code.op(f"bitcast float {x} to i32")
    # so that what is left of the number lies about 1
    power = code.op(f"ashr i32 {code.op(f'sub i32 {bits}, {_HALF_ROOT}')}, 23")
    left = code.op(f"sub i32 {bits}, {code.op(f'shl i32 {power}, 23')}")
    near = code.op(f"bitcast i32 {left} to float")
    one = code.number(1.0)
    ratio = code.op(f"fdiv float {code.op(f'fsub float {near}, {one}')}, {code.op(f'fadd float {near}, {one}')}")
    square = code.op(f"fmul float {ratio}, {ratio}")
    found = code.number(2 / 9)
    for k in (7, 5, 3, 1):
        found = code.op(f"fadd float {code.op(f'fmul float {found}, {square}')}, {code.number(2 / k)}")
    whole = code.op(f"fmul float {code.op(f'sitofp i32 {power} to float')}, {code.number(math.log(2))}")
    found = code.op(f"fadd float {code.op(f'fmul float {found}, {ratio}')}, {whole}")
    large = code.op(f"fcmp uge float {x}, {code.number(math.inf)}")  # or no number at all
    found = code.op(f"select i1 {large}, float {x}, float {found}")
    return code.op(f"select i1 {code.op(f'fcmp oeq float {x}, 0.0')}, float {nothing}, float {found}")
