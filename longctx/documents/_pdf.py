"""PDF to text, page by page. Runs in the parser process; the only place that knows pypdf."""

from __future__ import annotations

import binascii
import logging
import struct
import zlib
from collections.abc import Mapping
from typing import BinaryIO

import pypdf
from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError, PyPdfError

from longctx.documents._outcome import MissingParser, OverLimit, Parsed, Refused, brief, numbers
from longctx.documents.limits import Limits

# What pypdf raises on damaged files besides its own errors. MemoryError and RecursionError go up as they are.
_DAMAGE = (PyPdfError, ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError)
_DAMAGE_BELOW = (OSError, StopIteration, TypeError, ValueError, binascii.Error, struct.error, zlib.error)
_ERRORS = _DAMAGE + _DAMAGE_BELOW
_KEPT_REMARKS = 5


class _Remarks(logging.Handler):
    """pypdf's log: what it repaired or skipped, and whether it skipped something because of a limit."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: dict[str, None] = {}
        self.limit: LimitReachedError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.lines) <= 10 * _KEPT_REMARKS:
            self.lines[" ".join(record.getMessage().split())[:200]] = None
        values = record.args.values() if isinstance(record.args, Mapping) else record.args or ()
        self.limit = next((value for value in values if isinstance(value, LimitReachedError)), self.limit)

    def warnings(self) -> list[str]:
        lines = [f"PDF: {line}" for line in self.lines]
        more = len(lines) - _KEPT_REMARKS
        return lines if more <= 0 else [*lines[:_KEPT_REMARKS], f"PDF: {more} more remarks of this sort"]


def parse(file: BinaryIO, limits: Limits) -> Parsed:
    """The text of every page, in order; a page that cannot be read is empty and named in the warnings."""
    remarks = _Remarks()
    logger = logging.getLogger("pypdf")
    logger.addHandler(remarks)
    logger.propagate = False
    try:
        reader = pypdf.PdfReader(file)
        count = len(reader.pages)
    except FileNotDecryptedError as error:
        raise Refused("it is encrypted with a password; remove the password and read it again") from error
    except DependencyError as error:
        raise MissingParser("cryptography") from error
    except LimitReachedError as error:
        raise _over(error, "") from error
    except _ERRORS as error:
        raise Refused(f"it is damaged or no PDF ({brief(error)})") from error
    if count > limits.pages:
        raise OverLimit("pages", "the PDF has too many pages", f"{count:,}")
    if not count:
        raise Refused("the PDF has no pages (damaged or cut off?)" + "".join(f"; {w}" for w in remarks.warnings()[:1]))
    labels = _labels(reader, count)
    parts, textless, unread = _texts(reader, labels, limits, remarks)
    if not any(text.strip() for _, text in parts):
        if unread:
            raise Refused(f"no page of the PDF can be read ({next(iter(unread.values()))})")
        if textless:
            raise Refused(
                f"none of its {count:,} pages has text, but {len(textless):,} have content: "
                "scanned images? Run OCR first"
            )
    warnings = [f"page {page} could not be read and is left out ({why})" for page, why in list(unread.items())[:10]]
    if len(unread) > 10:
        warnings.append(f"{len(unread) - 10:,} more pages could not be read and are left out")
    if textless:
        warnings.append(f"no text on these pages, which have content (scanned images?): {numbers(textless)}")
    return Parsed(parts, paged=True, warnings=warnings + remarks.warnings())


def _texts(
    reader: pypdf.PdfReader, labels: list[str], limits: Limits, remarks: _Remarks
) -> tuple[list[tuple[str, str]], list[int], dict[int, str]]:
    """(label, text) per page, the pages with content but no text, and why pages were not read."""
    parts: list[tuple[str, str]] = []
    textless: list[int] = []
    unread: dict[int, str] = {}
    chars = 0
    for index, label in enumerate(labels):
        text = ""
        try:
            page = reader.pages[index]
            text = page.extract_text()
            if not text.strip():
                contents = page.get_contents()
                if contents is not None and contents.get_data().strip():
                    textless.append(index + 1)
        except LimitReachedError as error:
            raise _over(error, f" on page {index + 1}") from error
        except DependencyError as error:
            raise MissingParser("cryptography") from error
        except _ERRORS as error:
            unread[index + 1] = brief(error)
        if remarks.limit is not None:
            raise _over(remarks.limit, f" on page {index + 1}")
        chars += len(text)
        if chars > limits.output_chars:
            raise OverLimit("output_chars", f"the text is too long: page {index + 1} passes it", f"{chars:,}")
        parts.append((label, text))
    return parts, textless, unread


def _labels(reader: pypdf.PdfReader, count: int) -> list[str]:
    """The names printed on the pages ("iv", "A-3") where the file has them; they are decoration, never a failure."""
    try:
        labels = reader.page_labels if "/PageLabels" in reader.root_object else []
    except _ERRORS:
        labels = []
    return labels if len(labels) == count else [""] * count


def _over(error: LimitReachedError, where: str) -> OverLimit:
    return OverLimit("", f"the PDF reader stopped at one of its own limits{where} ({brief(error)})")
