"""Machine code for the processor at hand, made by llvmlite, and PyTorch's own threads to run it.

Owns the compilation and the threads: those of PyTorch's OpenMP, for those of a second pool would wait for the first
one's, which go on turning for a while. Knows no kernel.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from longctx.kernels.loops import FORMATS

Right = Callable[[torch.dtype], bool]
"""Whether a kernel, once compiled, gives what its reference gives for numbers of a format."""

_TORCH = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"  # through which its threads are reached, on Linux


@functools.cache  # a fact about the process
def compiler(dtype: torch.dtype) -> str:
    """The version of an llvmlite that compiles for this processor and numbers of ``dtype``; empty where none does."""
    try:
        import llvmlite
        import llvmlite.binding as llvm

        llvm.check_jit_execution()
        features = llvm.get_host_cpu_features()
        if dtype == torch.float16 and llvm.get_process_triple().startswith("x86_64") and not features.get("f16c"):
            return ""  # would be widened by a function that need not be there
    except (ImportError, OSError, RuntimeError):
        return ""
    return f"llvmlite {llvmlite.__version__}"


@functools.cache  # a fact about the processor
def lanes() -> int:
    """Numbers of float32 in a vector of this processor, or in two where it has short ones."""
    import llvmlite.binding as llvm

    return 16 if llvm.get_host_cpu_features().get("avx512f") else 8


def compiled(code: str) -> Any:
    """The function ``run`` of ``code`` as machine code; its one argument is the address of what ``run`` below gives."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    module = llvm.parse_assembly(code)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address("run"))
    function.engine = engine  # type: ignore[attr-defined]  # which owns the code
    return function


def version(dtype: torch.dtype, width: int, right: Right) -> str:
    """Which compiler a kernel is had from for numbers of ``dtype`` in rows of ``width``; empty where it is not.

    That takes one of three formats and a width in whole vectors, an llvmlite by which the kernel is ``right``, and, if
    PyTorch has more than one thread, its OpenMP within reach.
    """
    if dtype not in FORMATS or not (found := checked(dtype, right)) or width % lanes():
        return ""
    return found if threads() else ""


@functools.cache  # a fact about the process
def checked(dtype: torch.dtype, right: Right) -> str:
    """The version of an llvmlite by which a kernel is ``right`` for numbers of ``dtype`` here; empty where none is."""
    if not (found := compiler(dtype)):
        return ""
    try:
        return found if right(dtype) else ""
    except RuntimeError:  # that of llvmlite, for code that it does not know
        return ""


def plain() -> bool:
    """Whether operations are done as they come: nobody traces, compiles or stands between them and their tensors."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return not traced and _get_current_dispatch_mode() is None


def threads() -> int:
    """How many threads run a kernel: as many as PyTorch has, and none where those are out of reach."""
    count = torch.get_num_threads()
    return count if count == 1 or team() is not None else 0


def run(function: Any, given: Sequence[int]) -> None:
    """Has every thread do its share, or this one all of it: told the numbers ``given`` and what says which it is.

    Memory that is pointed to must be held by the caller.
    """
    found = None if torch.get_num_threads() == 1 else team()
    numbers = array("q", (*given, *((0, 0, 0) if found is None else found[1:])))
    address, _ = numbers.buffer_info()
    if found is None:
        function(address)
    else:
        found[0](function, address, torch.get_num_threads(), 0)


@functools.cache  # a fact about the process
def team() -> tuple[Callable[..., Any], int, int, int] | None:
    """What runs a function on PyTorch's threads, and the addresses of what they ask there.

    That is their number, how many there are, and to wait for all.
    """
    try:
        library = ctypes.CDLL(str(_TORCH))  # which is loaded, and finds what its own OpenMP has
        begin, told = (
            library.GOMP_parallel,
            (library.omp_get_thread_num, library.omp_get_num_threads, library.GOMP_barrier),
        )
    except (OSError, AttributeError):
        return None
    begin.restype, begin.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    number, count, barrier = (ctypes.cast(one, ctypes.c_void_p).value or 0 for one in told)
    return begin, number, count, barrier
