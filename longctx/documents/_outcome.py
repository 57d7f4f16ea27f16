"""What a parser hands back or refuses with, inside the parser process. Knows no format; stdlib only."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Parsed:
    """The text of a file: one (label, text) per page, or one in all where ``paged`` is False."""

    parts: list[tuple[str, str]]
    paged: bool = False
    warnings: list[str] = field(default_factory=list)


class Refused(ValueError):
    """A file that is damaged, protected or not what it says it is; the message says which."""


class MissingParser(ImportError):
    """A package that reads this format is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(package)
        self.package = package


class OverLimit(ValueError):
    """A limit was passed: ``option`` of Limits (or none of them: the parser's own), what passed it and how far."""

    def __init__(self, option: str, what: str, value: str = "") -> None:
        super().__init__(what)
        self.option, self.what, self.value = option, what, value


def brief(error: BaseException) -> str:
    """The error as one short line."""
    line = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def numbers(values: list[int]) -> str:
    """``[1, 2, 5]`` as ``1, 2, 5``, cut after ten."""
    listed = ", ".join(map(str, values[:10]))
    return listed if len(values) <= 10 else f"{listed} and {len(values) - 10:,} more"
