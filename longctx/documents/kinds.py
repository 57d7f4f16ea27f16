"""Which kind of document a file is, by its first bytes and its suffix. Reads nothing and knows no parser."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CODE = {
    "bash": "sh bash zsh",
    "c": "c h",
    "cpp": "cc cpp cxx c++ hh hpp hxx ipp cu cuh",
    "csharp": "cs",
    "css": "css scss less",
    "dart": "dart",
    "elixir": "ex exs",
    "erlang": "erl hrl",
    "fortran": "f f90 f95 f03",
    "go": "go",
    "haskell": "hs",
    "java": "java",
    "javascript": "js jsx mjs cjs",
    "julia": "jl",
    "kotlin": "kt kts",
    "lua": "lua",
    "ocaml": "ml mli",
    "perl": "pl pm",
    "php": "php",
    "powershell": "ps1 psm1",
    "python": "py pyi pyw",
    "r": "r",
    "ruby": "rb",
    "rust": "rs",
    "scala": "scala sc",
    "sql": "sql",
    "swift": "swift",
    "tsx": "tsx",
    "typescript": "ts mts cts",
    "zig": "zig",
}
_LANGUAGES = {f".{suffix}": language for language, suffixes in _CODE.items() for suffix in suffixes.split()}
_KINDS = {
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mkd"), "markdown"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".pdf": "pdf",
    ".docx": "docx",
}
# Formats that people do try, and whose bytes would only yield "this is a binary file".
_UNREAD = {
    **dict.fromkeys((".doc", ".odt", ".rtf", ".pages", ".wpd"), "Save it as .docx or .pdf."),
    **dict.fromkeys((".ppt", ".pptx", ".odp", ".key", ".xls", ".xlsx", ".ods"), "Export it as .pdf or as text."),
    **dict.fromkeys((".epub", ".mobi", ".djvu", ".ps"), "Convert it to .html, .pdf or text."),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".webp"), "Run OCR first and pass its text."),
    **dict.fromkeys((".zip", ".gz", ".xz", ".bz2", ".zst", ".tar", ".7z", ".rar"), "Unpack it and pass the files."),
}
_HTML_START = re.compile(rb"(?:\xef\xbb\xbf)?\s{0,64}<(?:!doctype\s+html|html)[\s>]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Kind:
    """A document's ``kind`` and ``language``; ``refusal`` says what to do about a format that is not read."""

    name: str
    language: str = ""
    refusal: str = ""

    @property
    def parsed(self) -> bool:
        """Whether a parser has to take the text out of the file."""
        return self.name in ("pdf", "docx", "html")


def kind_of(suffix: str, head: bytes) -> Kind:
    """The kind of a file with this suffix whose first bytes are ``head``; a PDF's own mark wins over the suffix."""
    suffix = suffix.lower()
    if head.startswith(b"%PDF-"):
        return Kind("pdf")
    if suffix in _UNREAD:
        return Kind("text", refusal=_UNREAD[suffix])
    if suffix in _KINDS:
        return Kind(_KINDS[suffix])
    if head.startswith(b"PK\x03\x04"):
        return Kind("docx") if not suffix else Kind("text", refusal="It is a zip archive; unpack it first.")
    if suffix in _LANGUAGES:
        return Kind("code", language=_LANGUAGES[suffix])
    if not suffix and _HTML_START.match(head):
        return Kind("html")
    return Kind("text")
