"""A few rows times a matrix of weights, on a CPU: every weight is read once and widened on its way to all rows.

Owns the machine code and the threads that run it. A product of few rows need take no longer than reading the weights.
PyTorch's takes several times as long in formats that a processor has no products of. llvmlite compiles the loop for the
processor at hand, and the threads are those of PyTorch's own OpenMP: those of a second pool would wait for the first
one's, which go on turning for a while. Knows no layer and no model.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TILE = 8  # rows whose sums are kept in registers at a time; more come in turns, over weights that are still in a cache
_NEAR = 2**17  # numbers of the weights that go to all rows before the next ones are read
_FORMATS = {  # how LLVM calls what is stored, and the steps from a vector ``of`` it ``to`` one of float32
    torch.float32: ("float", ("{to} = bitcast <{n} x float> {of} to <{n} x float>",)),
    torch.float16: ("half", ("{to} = fpext <{n} x half> {of} to <{n} x float>",)),
    torch.bfloat16: (
        "i16",
        (
            "{to}z = zext <{n} x i16> {of} to <{n} x i32>",
            "{to}s = shl <{n} x i32> {to}z, <{sixteens}>",
            "{to} = bitcast <{n} x i32> {to}s to <{n} x float>",
        ),
    ),
}
_TORCH = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"  # through which its threads are reached, on Linux


def suits(weight: Tensor) -> bool:
    """Whether ``product`` can be had here for ``weight`` [out, in]: on a CPU, contiguous, and of some ``version``."""
    return weight.is_cpu and weight.is_contiguous() and bool(version(weight.dtype, weight.shape[1]))


def version(dtype: torch.dtype, width: int) -> str:
    """Which compiler ``product`` is had from for weights of a format and a width; empty where it is not.

    That takes one of three formats and a width in whole vectors, an llvmlite that works, and, if PyTorch has more than
    one thread, its OpenMP within reach.
    """
    if dtype not in _FORMATS or not (compiler := _compiler(dtype)) or width % _lanes():
        return ""
    return compiler if torch.get_num_threads() == 1 or _team() is not None else ""


def reference(x: Tensor, weight: Tensor) -> Tensor:
    """What ``product`` gives, up to the order of its sums."""
    return x.float() @ weight.float().t()


def product(x: Tensor, weight: Tensor, together: int = 1) -> Tensor:
    """``x`` [rows, in] by the transposed ``weight`` [out, in], float32 [rows, out]; sums are made in float32.

    ``together`` rows of the weights go side by side, where they are divisible by that: what they share is loaded once,
    and the memory is read in as many places. Raises ValueError for other shapes, and for weights that do not suit.
    """
    if x.ndim != 2 or not x.is_cpu or x.shape[1] != weight.shape[1] or not suits(weight):
        raise ValueError(
            f"x {tuple(x.shape)} on {x.device}, weight {tuple(weight.shape)} of {weight.dtype} on {weight.device}: it "
            "takes contiguous weights and rows as wide as they are, on a CPU, where suits() says yes."
        )
    wide, (out, width) = x.float().contiguous(), weight.shape
    made = torch.empty(len(x), out, dtype=torch.float32, device="cpu")
    side = together if out % together == 0 else 1
    run, team = _compiled(weight.dtype, width, side), None if torch.get_num_threads() == 1 else _team()
    block = max(1, _NEAR // width // side) * side
    asked = (0, 0) if team is None else team[1:]
    given = _given(wide, weight, made, block, asked)
    if team is None:
        run(ctypes.addressof(given))
    else:
        team[0](run, ctypes.addressof(given), torch.get_num_threads(), 0)
    return made


def ready(dtype: torch.dtype, width: int, sides: Iterable[int]) -> None:
    """Afterwards ``product`` compiles nothing for weights like these with so many rows side by side."""
    for side in sides:
        _compiled(dtype, width, side)


@functools.cache  # a fact about the process
def _compiler(dtype: torch.dtype) -> str:
    """The version of an llvmlite that compiles the kernel for a format here, and rightly; empty where none does."""
    try:
        import llvmlite
        import llvmlite.binding as llvm

        llvm.check_jit_execution()
        features = llvm.get_host_cpu_features()
        if dtype == torch.float16 and llvm.get_process_triple().startswith("x86_64") and not features.get("f16c"):
            return ""  # would be widened by a function that need not be there
        run = _compiled(dtype, _lanes(), 1)
    except (ImportError, OSError, RuntimeError):
        return ""
    x, weight = (torch.arange(1, count * _lanes() + 1, device="cpu").view(count, -1).to(dtype) for count in (2, 3))
    wide, made = x.float(), torch.zeros(2, 3, device="cpu")
    given = _given(wide, weight, made, 3, (0, 0))  # held, as all that it points to, for as long as the code runs
    run(ctypes.addressof(given))
    return f"llvmlite {llvmlite.__version__}" if torch.allclose(made, reference(x, weight)) else ""


def _given(x: Tensor, weight: Tensor, made: Tensor, block: int, asked: tuple[int, int]) -> Any:
    """The eight numbers that the machine code is told."""
    return (ctypes.c_int64 * 8)(x.data_ptr(), weight.data_ptr(), made.data_ptr(), len(x), len(weight), block, *asked)


@functools.cache  # a fact about the process
def _team() -> tuple[Callable[..., Any], int, int] | None:
    """What runs a function on PyTorch's threads, and the addresses of what tells one its number, and how many run."""
    try:
        library = ctypes.CDLL(str(_TORCH))  # which is loaded, and finds what its own OpenMP has
        run, told = library.GOMP_parallel, (library.omp_get_thread_num, library.omp_get_num_threads)
    except (OSError, AttributeError):
        return None
    run.restype, run.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    number, count = (ctypes.cast(one, ctypes.c_void_p).value or 0 for one in told)
    return run, number, count


@functools.cache  # a fact about the processor
def _lanes() -> int:
    """Numbers of float32 in a vector of this processor, or in two where it has short ones."""
    import llvmlite.binding as llvm

    return 16 if llvm.get_host_cpu_features().get("avx512f") else 8


@functools.cache
def _compiled(dtype: torch.dtype, width: int, side: int) -> Any:
    """The machine code for weights of ``width``, ``side`` rows at a time; its one argument is the address of eight."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    module = llvm.parse_assembly(_code(_FORMATS[dtype], width, side, _lanes()))
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address("run"))
    run.engine = engine  # type: ignore[attr-defined]  # which owns the code
    return run


def _code(widening: tuple[str, tuple[str, ...]], width: int, side: int, lanes: int) -> str:
    """The loops as LLVM reads them: one function for every number of rows, and ``run`` for a thread's share."""
    vector = f"<{lanes} x float>"
    heads = [
        f"declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})",
        f"declare float @llvm.vector.reduce.fadd.v{lanes}f32(float, {vector})",
    ]
    tiles = [_tile(widening, rows, width, side, lanes) for rows in range(1, _TILE + 1)]
    return "\n".join([*heads, *tiles, _run(width, side)])


def _tile(widening: tuple[str, tuple[str, ...]], rows: int, width: int, side: int, lanes: int) -> str:
    """Sums of ``rows`` rows of x and the rows of weights from ``low`` to ``high``, each written to its place in out."""
    stored, steps = widening
    vector, sums, sixteens = f"<{lanes} x float>", rows * side, ", ".join(["i32 16"] * lanes)
    turns = max(n for n in (1, 2, 4, 8) if n == 1 or (n * sums <= _TILE and not width // lanes % n))
    lines = [
        f"define internal void @tile{rows}(ptr %x, ptr %w, ptr %out, i64 %stride, i64 %low, i64 %high) {{",
        "entry:",
        "  br label %outer",
        "outer:",
        "  %o = phi i64 [ %low, %entry ], [ %o.next, %total ]",
        "  %more = icmp slt i64 %o, %high",
        "  br i1 %more, label %begin, label %end",
        "begin:",
        f"  %first = mul i64 %o, {width}",
    ]
    for s in range(side):
        lines += [f"  %at{s} = add i64 %first, {s * width}", f"  %w{s} = getelementptr {stored}, ptr %w, i64 %at{s}"]
    lines += ["  br label %inner", "inner:", "  %i = phi i64 [ 0, %begin ], [ %i.next, %inner ]"]
    for k in range(turns * sums):
        lines.append(f"  %a{k} = phi {vector} [ zeroinitializer, %begin ], [ %b{k}, %inner ]")
    for turn in range(turns):
        lines.append(f"  %i{turn} = add i64 %i, {turn * lanes}")
        for s in range(side):
            name = f"v{turn}.{s}"
            lines += [
                f"  %{name}p = getelementptr {stored}, ptr %w{s}, i64 %i{turn}",
                f"  %{name}r = load <{lanes} x {stored}>, ptr %{name}p, align 2",
                *(f"  {step.format(to=f'%{name}', of=f'%{name}r', n=lanes, sixteens=sixteens)}" for step in steps),
            ]
        for row in range(rows):
            name = f"u{turn}.{row}"
            lines += [
                f"  %{name}i = add i64 %i{turn}, {row * width}",
                f"  %{name}p = getelementptr float, ptr %x, i64 %{name}i",
                f"  %{name} = load {vector}, ptr %{name}p, align 4",
            ]
            for s in range(side):
                k = turn * sums + row * side + s
                given = f"{vector} %v{turn}.{s}, {vector} %{name}, {vector} %a{k}"
                lines.append(f"  %b{k} = call {vector} @llvm.fma.v{lanes}f32({given})")
    lines += [
        f"  %i.next = add i64 %i, {turns * lanes}",
        f"  %again = icmp ult i64 %i.next, {width}",
        "  br i1 %again, label %inner, label %total",
        "total:",
    ]
    for row in range(rows):
        for s in range(side):
            k, name = row * side + s, f"t{row}.{s}"
            lines.append(f"  %{name}.0 = fadd {vector} %b{k}, zeroinitializer")
            for turn in range(1, turns):
                lines.append(f"  %{name}.{turn} = fadd {vector} %{name}.{turn - 1}, %b{turn * sums + k}")
            lines += [
                f"  %{name} = call reassoc float @llvm.vector.reduce.fadd.v{lanes}f32(float 0.0, "
                f"{vector} %{name}.{turns - 1})",
                f"  %{name}r = mul i64 %stride, {row}",
                f"  %{name}o = add i64 %o, {s}",
                f"  %{name}i = add i64 %{name}r, %{name}o",
                f"  %{name}p = getelementptr float, ptr %out, i64 %{name}i",
                f"  store float %{name}, ptr %{name}p, align 4",
            ]
    return "\n".join([*lines, f"  %o.next = add i64 %o, {side}", "  br label %outer", "end:", "  ret void", "}"])


def _run(width: int, side: int) -> str:
    """A thread's share of the weights, block by block, each for all rows."""
    fields = ("x", "w", "out", "rows", "stride", "block", "number", "count")
    lines = ["define void @run(ptr %given) {", "entry:"]
    for place, name in enumerate(fields):
        kind = "i64" if name in ("rows", "stride", "block") else "ptr"
        lines += [f"  %{name}p = getelementptr i64, ptr %given, i64 {place}", f"  %{name} = load {kind}, ptr %{name}p"]
    lines += [
        "  %alone = icmp eq ptr %number, null",
        "  br i1 %alone, label %known, label %ask",
        "ask:",
        "  %told = call i32 %number()",
        "  %told64 = zext i32 %told to i64",
        "  %all = call i32 %count()",  # a team may be smaller than was asked for
        "  %all64 = zext i32 %all to i64",
        "  br label %known",
        "known:",
        "  %mine = phi i64 [ 0, %entry ], [ %told64, %ask ]",
        "  %threads = phi i64 [ 1, %entry ], [ %all64, %ask ]",
        "  %next = add i64 %mine, 1",
        f"  %units = sdiv i64 %stride, {side}",
    ]
    for name, of in (("low", "mine"), ("high", "next")):
        lines += [
            f"  %{name}m = mul i64 %units, %{of}",
            f"  %{name}d = sdiv i64 %{name}m, %threads",
            f"  %{name} = mul i64 %{name}d, {side}",
        ]
    lines += [
        "  br label %blocks",
        "blocks:",
        "  %b = phi i64 [ %low, %known ], [ %e, %blocked ]",
        "  %left = icmp slt i64 %b, %high",
        "  br i1 %left, label %some, label %end",
        "some:",
        "  %far = add i64 %b, %block",
        "  %over = icmp sgt i64 %far, %high",
        "  %e = select i1 %over, i64 %high, i64 %far",
        "  br label %turns",
        "turns:",
        f"  %r = phi i64 [ 0, %some ], {', '.join(f'[ %r{n}, %do{n} ]' for n in range(1, _TILE + 1))}",
        "  %rest = sub i64 %rows, %r",
        f"  %many = icmp sgt i64 %rest, {_TILE}",
        f"  %now = select i1 %many, i64 {_TILE}, i64 %rest",
        f"  %xi = mul i64 %r, {width}",
        "  %xnow = getelementptr float, ptr %x, i64 %xi",
        "  %oi = mul i64 %r, %stride",
        "  %onow = getelementptr float, ptr %out, i64 %oi",
        "  switch i64 %now, label %blocked [",
        *(f"    i64 {n}, label %do{n}" for n in range(1, _TILE + 1)),
        "  ]",
    ]
    for n in range(1, _TILE + 1):
        lines += [
            f"do{n}:",
            f"  call void @tile{n}(ptr %xnow, ptr %w, ptr %onow, i64 %stride, i64 %b, i64 %e)",
            f"  %r{n} = add i64 %r, {n}",
            "  br label %turns",
        ]
    return "\n".join([*lines, "blocked:", "  br label %blocks", "end:", "  ret void", "}"])
