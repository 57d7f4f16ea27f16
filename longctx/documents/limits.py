"""How much one file may cost to read. Owns the numbers and what an overrun says; knows no format and no process."""

from __future__ import annotations

from dataclasses import dataclass, fields

from longctx.errors import BadOption, ParseLimit


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds for reading one file; every one can be overridden: ``longctx.Limits(seconds=300, pages=20_000)``.

    ``memory_bytes`` is the address space of the parser's process (enforced where the system can: Linux and most
    other Unixes) and does not count text that is read without a parser. ``zip_ratio`` holds for archives that expand
    past 1 MiB. ``expanded_bytes`` is what the parts of one archive may expand to together.
    """

    seconds: float = 60.0
    memory_bytes: int = 1 << 30
    input_bytes: int = 256 << 20
    output_chars: int = 64 << 20
    pages: int = 5_000
    expanded_bytes: int = 512 << 20
    zip_ratio: int = 100
    zip_entries: int = 4_096

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise BadOption(f"Limits: {f.name}={value!r} must be a number above 0.")
            if f.name != "seconds" and not isinstance(value, int):
                raise BadOption(f"Limits: {f.name}={value!r} must be a whole number.")


def over(limits: Limits, file: str, option: str, what: str, value: str = "") -> ParseLimit:
    """The error for ``option`` of ``limits`` being passed by ``file``: the limit, the value and what to do."""
    bound = getattr(limits, option)
    found = f", found {value}" if value else ""
    return ParseLimit(
        f"{file}: {what} (limit {option}={bound:,}{found}). "
        f"If you trust this file, raise it: longctx.read(path, limits=longctx.Limits({option}=...)), or {option} under "
        "[limits] in the file of --config."
    )
