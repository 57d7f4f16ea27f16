"""The best ranges of slots within a budget: of some thousand, without sorting what is not near the border.

Owns these steps as code. Knows nothing of what the ranges hold.
"""

from __future__ import annotations

from longctx.kernels.loops import Loops

_DIGITS = ((23, 8), (15, 8), (7, 8), (0, 7))  # of a float32 without its sign: where each begins, its bits
VALUES = 2**8  # of a digit, at the most


def _bits(code: Loops, worth: str, at: str) -> str:
    """A number without its sign as an integer, in the same order; what is no number has one too, and is above all."""
    bits = code.load("i32", worth, at)
    return code.op(f"and i64 {code.op(f'zext i32 {bits} to i64')}, {2**31 - 1}")


def border(code: Loops, ranges: str, worth: str, sizes: str, sums: str, room: str) -> tuple[str, str]:
    """The worth, as an integer, above which everything has room, and how many slots that is; -1 where all has room.

    Found digit by digit: of the ranges that are like the border in the digits before, slots are counted by the next.
    """
    found, held = "0", "0"
    for start, bits in _DIGITS:
        values = 2**bits
        with code.loop(0, values) as at:
            code.store("i64", "0", sums, at.index)
        with code.loop(0, ranges) as at:
            number = _bits(code, worth, at.index)
            like = code.op(f"icmp eq i64 {code.op(f'lshr i64 {number}, {start + bits}')}, {found}")
            digit = code.op(f"and i64 {code.op(f'lshr i64 {number}, {start}')}, {values - 1}")
            size = code.op(f"select i1 {like}, i64 {code.load('i64', sizes, at.index)}, i64 0")
            code.store("i64", code.add(code.load("i64", sums, digit), size), sums, digit)
        carried = {"held": ("i64", held), "open": ("i1", "true"), "digit": ("i64", "-1")}
        with code.loop(0, values, carried=carried) as at:
            digit = code.sub(values - 1, at.index)
            more = code.add(at.now["held"], code.load("i64", sums, digit))
            fits = code.op(f"and i1 {at.now['open']}, {code.op(f'icmp sle i64 {more}, {room}')}")
            full = code.op(f"xor i1 {fits}, {at.now['open']}")  # the first that does not fit
            at.next["held"] = code.op(f"select i1 {fits}, i64 {more}, i64 {at.now['held']}")
            at.next["digit"] = code.op(f"select i1 {full}, i64 {digit}, i64 {at.now['digit']}")
            at.next["open"] = fits
        held = at.now["held"]
        found = code.op(f"or i64 {code.op(f'shl i64 {found}, {bits}')}, {at.now['digit']}")  # -1 stays -1
    return found, held


def write(code: Loops, ranges: str, given: tuple[str, ...], limit: str, held: str, room: str) -> str:
    """Slots of the ranges above the ``limit``, and of the first on it that have room; returns how many slots.

    ``given`` are the worth, sizes and starts of ranges, where slots go, and where 0 marks a range that is taken, and 1
    one that is not, in float32.
    """
    worth, sizes, starts, slots, left = given
    carried = {"count": ("i64", "0"), "held": ("i64", held), "open": ("i1", "true")}
    with code.loop(0, ranges, carried=carried) as at:
        number, size = _bits(code, worth, at.index), code.load("i64", sizes, at.index)
        above = code.op(f"icmp sgt i64 {number}, {limit}")
        on = code.op(f"icmp eq i64 {number}, {limit}")
        more = code.add(at.now["held"], size)
        fits = code.op(f"and i1 {at.now['open']}, {code.op(f'icmp sle i64 {more}, {room}')}")
        joins = code.op(f"and i1 {on}, {fits}")
        wanted = code.op(f"or i1 {above}, {joins}")
        code.store("float", code.op(f"select i1 {wanted}, float 0.0, float 1.0"), left, at.index)
        start, place = code.load("i64", starts, at.index), at.now["count"]
        some = code.op(f"select i1 {wanted}, i64 {size}, i64 0")
        with code.loop(0, some) as slot:
            code.store("i64", code.add(start, slot.index), slots, code.add(place, slot.index))
        at.next["count"] = code.add(place, some)
        at.next["held"] = code.op(f"select i1 {joins}, i64 {more}, i64 {at.now['held']}")
        at.next["open"] = code.op(f"select i1 {on}, i1 {fits}, i1 {at.now['open']}")
    return at.now["count"]
