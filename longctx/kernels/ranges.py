"""The best ranges of slots within a budget: of some thousand, without sorting them.

Owns these steps as code. Knows nothing of what the ranges hold.
"""

from __future__ import annotations

from longctx.kernels.loops import Loops

_BITS = 31  # of a float32 without its sign


def declare(code: Loops) -> None:
    """To be written before the rest."""
    n = code.lanes
    code.declare(f"i32 @llvm.vector.reduce.add.v{n}i32({code.whole})")
    code.declare(f"<{n} x i64> @llvm.masked.load.v{n}i64.p0(ptr, i32, <{n} x i1>, <{n} x i64>)")
    code.declare(f"i{n} @llvm.ctpop.i{n}(i{n})")
    code.declare(f"i{n} @llvm.cttz.i{n}(i{n}, i1)")


def sized(code: Loops, sizes: str, at: str, ranges: str) -> tuple[str, str]:
    """The lengths of the ranges from ``at`` on as integers of 32 bits and as numbers; of those behind the last 0."""
    n, place = code.lanes, code.place("i64", sizes, at)
    mask = _there(code, at, ranges)
    found = code.op(
        f"call <{n} x i64> @llvm.masked.load.v{n}i64.p0(ptr {place}, i32 8, <{n} x i1> {mask}, <{n} x i64> "
        "zeroinitializer)"
    )
    short = code.op(f"trunc <{n} x i64> {found} to {code.whole}")
    return short, code.op(f"sitofp {code.whole} {short} to {code.vector}")


def border(code: Loops, padded: str, worth: str, sizes: str, room: str) -> tuple[str, str]:
    """The worth, as an integer, above which everything has room, and how many slots that is; -1 where all has room.

    ``worth`` in float32 and ``sizes`` as integers of 32 bits are whole vectors, of which what is no range has no size.
    """
    first = _above(code, padded, worth, sizes, "-1")
    # what is above ``high`` has room and what is above ``low`` has none; half of what is between them is left
    carried = {"low": ("i64", "-1"), "high": ("i64", str(2**_BITS - 1)), "held": ("i64", "0")}
    with code.loop(0, _BITS, carried=carried) as at:
        middle = code.op(f"ashr i64 {code.add(at.now['low'], at.now['high'])}, 1")
        more = _above(code, padded, worth, sizes, middle)
        fits = code.op(f"icmp sle i64 {more}, {room}")
        at.next["low"] = code.op(f"select i1 {fits}, i64 {at.now['low']}, i64 {middle}")
        at.next["high"] = code.op(f"select i1 {fits}, i64 {middle}, i64 {at.now['high']}")
        at.next["held"] = code.op(f"select i1 {fits}, i64 {more}, i64 {at.now['held']}")
    every = code.op(f"icmp sle i64 {first}, {room}")
    limit = code.op(f"select i1 {every}, i64 -1, i64 {at.now['high']}")
    return limit, code.op(f"select i1 {every}, i64 {first}, i64 {at.now['held']}")


def write(
    code: Loops, ranges: str, given: tuple[str, ...], limit: str, held: str, room: str, within: tuple[str, str]
) -> str:
    """Slots of the ranges above the ``limit``, and of the first on it that have room; returns how many slots.

    ``given`` are the worth, sizes and starts of ranges, where slots go, and where 0 marks a range that is taken, and 1
    one that is not, in float32: in whole vectors, as the worth is. ``within`` are the number of slots that there are
    and what is marked where a range has none of these, or more than the room, and is not taken.
    """
    worth, sizes, starts, slots, left = given
    n, least = code.lanes, code.splat(code.op(f"trunc i64 {limit} to i32"), "i32")
    carried = {"count": ("i64", "0"), "held": ("i64", held), "open": ("i1", "true")}
    with code.loop(0, ranges, n, carried=carried) as block:
        code.store(code.vector, code.constant(1.0), left, block.index, of="float")
        near = code.op(f"icmp sge {code.whole} {_ordered(code, worth, block.index)}, {least}")
        near = code.op(f"and <{n} x i1> {near}, {_there(code, block.index, ranges)}")
        mask = code.op(f"bitcast <{n} x i1> {near} to i{n}")
        some = code.op(f"zext i{n} {code.op(f'call i{n} @llvm.ctpop.i{n}(i{n} {mask})')} to i64")
        inside = {name: (kind, block.now[name]) for name, (kind, _) in carried.items()}
        with code.loop(0, some, carried={**inside, "mask": (f"i{n}", mask)}) as at:
            bits = at.now["mask"]
            place = code.op(f"call i{n} @llvm.cttz.i{n}(i{n} {bits}, i1 false)")
            place = code.add(block.index, code.op(f"zext i{n} {place} to i64"))
            at.next["mask"] = code.op(f"and i{n} {bits}, {code.op(f'sub i{n} {bits}, 1')}")
            _write_one(code, at.now, at.next, place, given, limit, (room, *within))
        for name in carried:
            block.next[name] = at.now[name]
    return block.now["count"]


def _write_one(
    code: Loops, now: dict[str, str], then: dict[str, str], place: str, given: tuple[str, ...], limit: str,
    most: tuple[str, str, str],
) -> None:  # fmt: skip
    """The range at ``place``, whose worth is the ``limit`` or more, in its turn."""
    (worth, sizes, starts, slots, left), (room, every, wrong) = given, most
    bits = code.op(f"and i32 {code.load('i32', worth, place)}, {2**_BITS - 1}")
    on = code.op(f"icmp eq i64 {code.op(f'zext i32 {bits} to i64')}, {limit}")
    size = code.load("i64", sizes, place)
    more = code.add(now["held"], size)
    fits = code.op(f"and i1 {now['open']}, {code.op(f'icmp sle i64 {more}, {room}')}")
    joins = code.op(f"and i1 {on}, {fits}")
    wanted = code.op(f"or i1 {joins}, {code.op(f'xor i1 {on}, true')}")
    start = code.load("i64", starts, place)
    # unsigned, what is below 0 is above all; what is left is counted from what is known to be no more than the whole
    starts_late = code.op(f"icmp ugt i64 {start}, {every}")
    ends_late = code.op(f"icmp ugt i64 {size}, {code.sub(every, start)}")
    over = code.op(f"icmp ugt i64 {size}, {code.sub(room, now['count'])}")
    outside = code.op(f"or i1 {starts_late}, {code.op(f'or i1 {ends_late}, {over}')}")
    code.mark(code.op(f"and i1 {wanted}, {outside}"), wrong)
    wanted = code.op(f"and i1 {wanted}, {code.op(f'xor i1 {outside}, true')}")
    code.store("float", code.op(f"select i1 {wanted}, float 0.0, float 1.0"), left, place)
    some = code.op(f"select i1 {wanted}, i64 {size}, i64 0")
    with code.loop(0, some) as slot:
        code.store("i64", code.add(start, slot.index), slots, code.add(now["count"], slot.index))
    then["count"] = code.add(now["count"], some)
    then["held"] = code.op(f"select i1 {joins}, i64 {more}, i64 {now['held']}")
    then["open"] = code.op(f"select i1 {on}, i1 {fits}, i1 {now['open']}")


def _above(code: Loops, padded: str, worth: str, sizes: str, limit: str) -> str:
    """How many slots the ranges have whose worth, as an integer, is above the ``limit``."""
    least = code.splat(code.op(f"trunc i64 {limit} to i32"), "i32")
    with code.loop(0, padded, code.lanes, {"sum": (code.whole, "zeroinitializer")}) as at:
        over = code.op(f"icmp sgt {code.whole} {_ordered(code, worth, at.index)}, {least}")
        size = code.load(code.whole, sizes, at.index, of="i32")
        some = code.op(f"select <{code.lanes} x i1> {over}, {code.whole} {size}, {code.whole} zeroinitializer")
        at.next["sum"] = code.op(f"add {code.whole} {at.now['sum']}, {some}")
    total = f"call i32 @llvm.vector.reduce.add.v{code.lanes}i32({code.whole} {at.now['sum']})"
    return code.op(f"sext i32 {code.op(total)} to i64")


def _ordered(code: Loops, worth: str, at: str) -> str:
    """Numbers without their signs as integers, in the same order; what is no number has one too, and is above all."""
    bits = code.load(code.whole, worth, at, of="i32")
    return code.op(f"and {code.whole} {bits}, {code.same(2**_BITS - 1)}")


def _there(code: Loops, at: str, ranges: str) -> str:
    """Which of the ranges from ``at`` on there are, as a mask."""
    left = code.splat(code.op(f"trunc i64 {code.sub(ranges, at)} to i32"), "i32")
    return code.op(f"icmp slt {code.whole} {code.integers(range(code.lanes))}, {left}")
