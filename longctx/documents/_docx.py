"""Word files to Markdown. Runs in the parser process; the only place that knows markitdown."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from typing import BinaryIO
from xml.parsers.expat import ExpatError

from markitdown import MarkItDownException, MissingDependencyException, StreamInfo
from markitdown.converters import DocxConverter

from longctx.documents import _zip
from longctx.documents._outcome import MissingParser, OverLimit, Parsed, Refused, brief
from longctx.documents.limits import Limits

# What the converter and the libraries below it raise on damaged files besides their own errors.
_ERRORS = (MarkItDownException, ArithmeticError, AttributeError, ExpatError, LookupError, NotImplementedError, OSError)
_ERRORS_BELOW = (TypeError, ValueError, zipfile.BadZipFile)
_MARGINS = re.compile(r"word/(header|footer)\d*\.xml")
_TEXT = re.compile(rb"<w:t[ >]")
_HIDDEN = re.compile(rb"<w:vanish(?: ?/>| w:val=\"(?:1|true|on)\")")


def parse(file: BinaryIO, limits: Limits) -> Parsed:
    """The document's body as Markdown, headings and tables kept; what is left out is named in the warnings."""
    data = io.BytesIO(file.read())
    try:
        _zip.check(data, entries=limits.zip_entries, ratio=limits.zip_ratio, expanded_bytes=limits.expanded_bytes)
        said = _remarks(data)
        data.seek(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            # Markdown escapes would put backslashes into words that are quoted from the file.
            plain = {"escape_asterisks": False, "escape_underscores": False, "escape_misc": False}
            converter = DocxConverter()  # type: ignore[no-untyped-call]
            result = converter.convert(data, StreamInfo(extension=".docx"), **plain)
    except MissingDependencyException as error:
        raise MissingParser("mammoth") from error
    except zipfile.BadZipFile as error:
        raise Refused(f"it is damaged, cut off or no Word file ({brief(error)})") from error
    except (OverLimit, Refused):
        raise
    except (*_ERRORS, *_ERRORS_BELOW) as error:
        raise Refused(f"it cannot be read as a Word file ({brief(error)})") from error
    said += [f"DOCX: {' '.join(str(w.message).split())[:200]}" for w in caught if w.category is UserWarning][:5]
    return Parsed([("", result.markdown)], warnings=said)


def _remarks(data: BinaryIO) -> list[str]:
    """What the converter leaves out or shows although Word hides it."""
    said = []
    with zipfile.ZipFile(data) as archive:
        names = archive.namelist()
        if any(_TEXT.search(archive.read(name)) for name in names if _MARGINS.fullmatch(name)):
            said.append("the text of page headers and footers is left out")
        if "word/document.xml" in names and _HIDDEN.search(archive.read("word/document.xml")):
            said.append("the file has text that Word hides; it is kept")
    return said
