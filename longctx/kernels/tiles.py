"""Products of a few rows by the tiles of a processor that has some: sixteen rows of weights by sixteen of x at once.

Owns the code of such steps, the layout of x for them, and the leave that a process needs to have tiles at all. Weights
are read as they are, so that a product of up to sixteen rows takes as long as reading its weights (Intel, Advanced
Matrix Extensions: TDPBF16PS). x is rounded to bfloat16, sums are made in float32. Knows no layer and no model.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import platform
import struct
import sys

import torch

from longctx.kernels import blocks
from longctx.kernels.loops import Loops

SIDE, DEEP = 16, 32  # rows of a tile, and numbers of bfloat16 in each
BYTES = 2 * SIDE * DEEP
_BESIDE = 2  # groups of rows that meet a tile of weights while it is loaded, and tiles of weights one of rows
_SIZES = tuple(itertools.product(range(1, _BESIDE + 1), repeat=2))  # of both
_TILES = 8  # all of the same size
_LEAVE = (158, 0x1023, 18)  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) of Linux


@functools.cache  # a fact about the process, which keeps the leave
def have() -> bool:
    """Whether this processor has tiles of bfloat16, and the system lets this process use them."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features()
    except (ImportError, OSError, RuntimeError):
        return False
    if not all(features.get(name) for name in ("amx-tile", "amx-bf16", "avx512f")):
        return False
    return bool(ctypes.CDLL(None).syscall(*_LEAVE) == 0)


def suit(dtype: torch.dtype, outs: int, width: int) -> bool:
    """Whether weights [outs, width] come in whole tiles."""
    return dtype == torch.bfloat16 and not outs % SIDE and not width % DEEP


def room(rows: int, width: int) -> int:
    """Bytes that ``rows`` rows of a width take once they are packed."""
    return -(-rows // SIDE) * -(-width // DEEP) * BYTES


def declare(code: Loops) -> None:
    """To be written before the rest."""
    for name, kinds in (
        ("ldtilecfg", "ptr"),
        ("tilerelease", ""),
        ("tilezero", "i8"),
        ("tileloadd64", "i8, ptr, i64"),
        ("tilestored64", "i8, ptr, i64"),
        ("tdpbf16ps", "i8, i8, i8"),
    ):
        code.declare(f"void @llvm.x86.{name}({kinds})")


def begin(code: Loops) -> None:
    """Inside a function: tiles can be used from here on, by this thread."""
    shape = code.op("alloca [64 x i8], align 64")
    for place, (word,) in enumerate(struct.iter_unpack("<q", _shape())):
        code.store("i64", str(word), shape, place)
    code.do(f"call void @llvm.x86.ldtilecfg(ptr {shape})")


def end(code: Loops) -> None:
    """Inside the same function: they are free."""
    code.do("call void @llvm.x86.tilerelease()")


def pack(code: Loops, given: tuple[str, str, str], team: tuple[str, str], rows: str, other: str = "") -> None:
    """Writes x [rows, width] as products take it: by sixteen rows, then by tiles, in each pairs of all rows together.

    ``given`` are x, where it goes, and its width; rows that are missing to sixteen are zeros. Where the last eight of
    sixteen are, ``other`` is the same with these before the first eight.
    """
    x, into, width = given
    deep, words = code.div(width, DEEP), BYTES // 4
    low, high = code.part(*team, code.mul(code.div(code.add(rows, SIDE - 1), SIDE), deep))
    pairs = [[2 * n + odd for n in range(SIDE)] for odd in (0, 1)]
    with code.loop(low, high) as at:
        first, tile = code.mul(code.div(at.index, deep), SIDE), code.rem(at.index, deep)
        found = []
        for n in range(SIDE):
            row = code.add(first, n)
            there = code.op(f"icmp slt i64 {row}, {rows}")
            row = code.op(f"select i1 {there}, i64 {row}, i64 0")
            line = code.place("float", x, code.add(code.mul(row, width), code.mul(tile, DEEP)))
            held = (code.wide("float", line, half * SIDE) for half in (0, 1))
            one, other_half = (code.select_all(there, half, "zeroinitializer") for half in held)
            even, odd = (code.nearest(code.shuffled(one, other_half, order)) for order in pairs)
            both = code.op(f"or {code.whole} {even}, {code.op(f'shl {code.whole} {odd}, {code.same(16)}')}")
            found.append(code.op(f"bitcast {code.whole} {both} to {code.vector}"))
        # threads have tiles of their own: a line of memory that two write to goes back and forth between them
        begin = code.mul(at.index, words)
        for pair, own in enumerate(blocks.turned(code, found)):
            place = code.add(begin, pair * SIDE)
            code.store(code.vector, own, into, place, of="float")
            if other:
                code.store(code.vector, swapped(code, own), other, place, of="float")


def swapped(code: Loops, value: str) -> str:
    """A vector with its halves in each other's place."""
    return code.shuffled(value, value, [(n + SIDE // 2) % SIDE for n in range(SIDE)])


def product(code: Loops, name: str, width: int, given: tuple[str, ...], team: tuple[str, str], rows: str) -> None:
    """Inside a function: this thread's share of a product; ``tile`` wrote the functions that it calls by ``name``."""
    packed, weight, bias, out, outs, biased, adds = given
    begin(code)
    made = code.op(f"alloca [{_BESIDE * _BESIDE * SIDE * SIDE} x float], align 64")
    low, high = code.part(*team, code.div(outs, SIDE))
    groups = code.div(code.add(rows, SIDE - 1), SIDE)
    with code.loop(low, high, _BESIDE) as at:
        first = code.mul(at.index, SIDE)
        own = code.place("i16", weight, code.mul(first, width))
        pieces = code.least_of(code.sub(high, at.index), _BESIDE)
        with code.loop(0, groups, _BESIDE) as group:
            x = code.place("i8", packed, code.mul(group.index, width // DEEP * BYTES))
            rest = code.least_of(code.sub(groups, group.index), _BESIDE)
            which = code.add(code.mul(pieces, _BESIDE + 1), rest)
            calls = {
                (_BESIDE + 1) * some + n: f"call void @{name}.{some}.{n}(ptr {x}, ptr {own}, ptr {made})"
                for some, n in _SIZES
            }
            code.choose(which, calls)
            start = code.mul(group.index, SIDE)
            some = code.least_of(code.sub(rows, start), _BESIDE * SIDE)
            with code.loop(0, pieces) as piece:
                sums = code.place("float", made, code.mul(piece.index, _BESIDE * SIDE * SIDE))
                column = code.add(first, code.mul(piece.index, SIDE))
                _put(code, (sums, bias, out), (start, some), (column, outs), biased, adds)
    end(code)


def tile(code: Loops, name: str, width: int) -> None:
    """The functions by ``name``: sums of some sixteens of weights at %w and some groups of rows."""
    for pieces, groups in _SIZES:
        with code.function(f"internal void @{name}.{pieces}.{groups}(ptr %x, ptr %w, ptr %made)"):
            for one in range(pieces * groups):
                code.do(f"call void @llvm.x86.tilezero(i8 {one})")
            with code.loop(0, width // DEEP) as at:
                # in the order in which they stand, so that the memory has less to look for: what is read is one piece
                ahead = code.place("i8", "%w", code.mul(code.add(at.index, width // DEEP), pieces * BYTES))
                for line in range(pieces * SIDE):
                    code.ask(code.place("i8", ahead, 64 * line))
                for piece in range(pieces):
                    own = code.place("i16", "%w", code.add(code.mul(at.index, DEEP), piece * SIDE * width))
                    code.do(f"call void @llvm.x86.tileloadd64(i8 {4 + piece}, ptr {own}, i64 {2 * width})")
                for group in range(groups):
                    x = code.place("i8", "%x", code.add(code.mul(at.index, BYTES), group * (width // DEEP) * BYTES))
                    code.do(f"call void @llvm.x86.tileloadd64(i8 {6 + group}, ptr {x}, i64 64)")
                    for piece in range(pieces):
                        to = piece * groups + group
                        code.do(f"call void @llvm.x86.tdpbf16ps(i8 {to}, i8 {4 + piece}, i8 {6 + group})")
            for piece, group in itertools.product(range(pieces), range(groups)):
                place = code.place("float", "%made", (piece * _BESIDE + group) * SIDE * SIDE)
                code.do(f"call void @llvm.x86.tilestored64(i8 {piece * groups + group}, ptr {place}, i64 64)")


def _put(
    code: Loops,
    where: tuple[str, str, str],
    rows: tuple[str, str],
    outs: tuple[str, str],
    biased: str,
    adds: str,
) -> None:
    """Sums [outs, rows] of sixteen outs, each to its place in out, with what is added."""
    made, bias, out = where
    first, count = outs
    more = code.select_all(biased, code.wide("i16", bias, first), "zeroinitializer")
    with code.loop(0, rows[1]) as row:
        group, column = code.div(row.index, SIDE), code.rem(row.index, SIDE)
        own = code.place("float", made, code.add(code.mul(group, SIDE * SIDE), column))
        found = "poison"
        for n in range(SIDE):
            one = code.load("float", own, n * SIDE)
            found = code.op(f"insertelement {code.vector} {found}, float {one}, i64 {n}")
        into = code.place("float", out, code.add(code.mul(code.add(rows[0], row.index), count), first))
        old = code.select_all(adds, code.wide("float", into, 0), "zeroinitializer")
        code.store(code.vector, code.vec("fadd", code.vec("fadd", found, more), old), into, of="float")


def _shape() -> bytes:
    """What says how large tiles are: the kind, then bytes of a row and rows of each (Intel 64 manual, LDTILECFG)."""
    widths, rows = [4 * SIDE] * _TILES + [0] * (16 - _TILES), [SIDE] * _TILES + [0] * (16 - _TILES)
    return struct.pack("<BB14x16H16B", 1, 0, *widths, *rows)
