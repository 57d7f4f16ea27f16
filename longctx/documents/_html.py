"""HTML to the text a visitor would read. Runs in the parser process; the only place that knows trafilatura."""

from __future__ import annotations

import codecs
import re
from typing import BinaryIO

import lxml.etree  # type: ignore[import-untyped]
import lxml.html  # type: ignore[import-untyped]
import trafilatura

from longctx.documents._guess import guess
from longctx.documents._outcome import OverLimit, Parsed, Refused, brief
from longctx.documents.encoding import NotText, decode
from longctx.documents.limits import Limits

_KEPT_LEAST = 0.25  # below this share of the visible text, the main text is no longer the document
_NEVER_SEEN = frozenset(("script", "style", "template", "head", "noscript", "svg", "math", "iframe", "object"))
_BLOCKS = frozenset(
    "address article aside blockquote body br caption dd details div dl dt fieldset figcaption figure footer form h1 h2"
    " h3 h4 h5 h6 header hr li main nav ol option p pre section summary table tbody td tfoot th thead tr ul".split()
)
_STYLED = lxml.etree.XPath("//*[@hidden or @style]")
_HIDING = re.compile(
    r"display:none|visibility:hidden|opacity:0(?:\.0*)?(?:;|$)|font-size:0(?:\.0*)?(?:px|pt|em|rem|%)?(?:;|$)"
)
_DECLARED = re.compile(rb"<meta[^>]{0,200}?charset\s{0,8}=\s{0,8}[\"']?([\w.:-]{1,40})", re.IGNORECASE)
_AS_BROWSERS_DO = {"ascii": "cp1252", "iso8859-1": "cp1252"}
_DECLARED_WITHIN_BYTES = 4096


def parse(file: BinaryIO, limits: Limits) -> Parsed:
    """The main text of the page, or all its visible text where taking the main text would lose most of it."""
    text, said = _decoded(file.read())
    parser = lxml.html.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    try:
        tree = lxml.html.document_fromstring(text.encode("utf-8"), parser=parser)
    except lxml.etree.LxmlError as error:
        if not text.strip():
            return Parsed([("", "")])
        raise Refused(f"it cannot be read as HTML ({brief(error)})") from error
    cut = [entry.message for entry in parser.error_log if entry.type == lxml.etree.ErrorTypes.ERR_RESOURCE_LIMIT]
    if cut:  # the parser goes no further from here, and what follows would be lost
        raise OverLimit("", f"the HTML reader stopped at one of its own limits ({cut[0][:200]})")
    said += _drop_hidden(tree)
    visible = _visible(tree)
    main = trafilatura.extract(tree, include_comments=True, include_tables=True, favor_recall=True) or ""
    all_chars, kept_chars = _solid(visible), _solid(main)
    if kept_chars < _KEPT_LEAST * all_chars:
        said.append(
            f"the whole visible text was kept: the page's main text would be {kept_chars:,} of {all_chars:,} characters"
        )
        main = visible
    elif kept_chars < all_chars:
        said.append(f"menus and boilerplate are left out: {kept_chars:,} of {all_chars:,} visible characters kept")
    return Parsed([("", main)], warnings=said)


def _decoded(data: bytes) -> tuple[str, list[str]]:
    """The page as text: by its byte order mark, its own declaration, UTF-8, or a guess that is said."""
    try:
        text = decode(data)
    except NotText as error:
        raise Refused(f"it cannot be read as HTML: {error}") from error
    if text is not None:
        return text, []
    declared = _DECLARED.search(data, 0, _DECLARED_WITHIN_BYTES)
    if declared:
        try:
            name = codecs.lookup(declared.group(1).decode("ascii")).name
            return data.decode(_AS_BROWSERS_DO.get(name, name)), []
        except (LookupError, UnicodeError):
            pass
    return guess(data)


def _drop_hidden(tree: lxml.html.HtmlElement) -> list[str]:
    """Takes out what the page hides from its visitor; text that only a model would read is where attacks stand."""
    dropped = chars = 0
    for element in _STYLED(tree):
        style = "".join(element.get("style", "").split()).lower().replace("!important", "")
        if "hidden" not in element.attrib and not _HIDING.search(style):
            continue
        solid = sum(_solid(piece) for piece in element.itertext())
        if solid:
            dropped, chars = dropped + 1, chars + solid
        element.clear(keep_tail=True)
    if not dropped:
        return []
    plural = "" if dropped == 1 else "s"
    return [f"{dropped:,} hidden element{plural} of the page left out ({chars:,} characters)"]


def _visible(tree: lxml.html.HtmlElement) -> str:
    """All text outside scripts and the like; blocks stand on their own lines. No recursion."""
    pieces: list[str] = []
    unseen = 0
    for event, element in lxml.etree.iterwalk(tree, events=("start", "end")):
        start, tag = event == "start", element.tag
        if tag in _NEVER_SEEN:
            unseen += 1 if start else -1
        elif not unseen and tag in _BLOCKS:
            pieces.append("\n")
        if not unseen:
            pieces.append((element.text if start else element.tail) or "")
    lines = (" ".join(line.split()) for line in "".join(pieces).splitlines())
    return "\n".join(line for line in lines if line)


def _solid(text: str) -> int:
    return sum(map(len, text.split()))
