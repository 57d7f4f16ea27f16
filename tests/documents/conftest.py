"""Files made from scratch: PDFs and Word files byte by byte, honest ones and crafted ones."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

Save = Callable[[str, bytes], Path]
MakePdf = Callable[..., bytes]
MakeDocx = Callable[..., bytes]

_TYPES = "http://schemas.openxmlformats.org/package/2006/content-types"
_RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_MAIN = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save_(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return save_


def stream(content: bytes, filters: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), filters, content)


def pdf_of(objects: list[bytes], trailer: bytes = b"") -> bytes:
    """A PDF of these numbered objects, the first of which is the catalogue, with a correct cross-reference table."""
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, trailer, start)
    return bytes(out)


@pytest.fixture
def make_pdf() -> MakePdf:
    """``make_pdf(["text of page 1", ...])``; a page may be a ready stream object instead."""

    def make(
        pages: Iterable[str | bytes], catalog: bytes = b"", resources: bytes = b"", more: Iterable[bytes] = ()
    ) -> bytes:
        pages = list(pages)
        first = 4
        kids = b" ".join(b"%d 0 R" % (first + 2 * i) for i in range(len(pages)))
        objects = [
            b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog,
            b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        ]
        for i, page in enumerate(pages):
            if isinstance(page, str):
                shown = b"BT /F1 12 Tf 72 700 Td (%s) Tj ET" % page.encode("latin-1") if page else b""
                page = stream(zlib.compress(shown), b"/Filter /FlateDecode")
            objects.append(
                b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
                b"/Resources << /Font << /F1 3 0 R >> %s >> >>" % (first + 2 * i + 1, resources)
            )
            objects.append(page)
        return pdf_of([*objects, *more])

    return make


@pytest.fixture
def make_docx() -> MakeDocx:
    """``make_docx(["paragraph", ...], {"extra/part.xml": "..."})``; ``body`` and ``prolog`` replace XML as they are."""

    def make(
        paragraphs: Iterable[str] = (), extra: dict[str, str | bytes] | None = None, body: str = "", prolog: str = ""
    ) -> bytes:
        body = body or "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(
                "[Content_Types].xml",
                f'<Types xmlns="{_TYPES}"><Default Extension="rels" '
                'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
                f'<Override PartName="/word/document.xml" ContentType="{_MAIN}"/></Types>',
            )
            archive.writestr(
                "_rels/.rels",
                f'<Relationships xmlns="{_RELATIONS}"><Relationship Id="r1" Type="{_OFFICE}" '
                'Target="word/document.xml"/></Relationships>',
            )
            document = f'{prolog}<w:document xmlns:w="{_WORD}"><w:body>{body}</w:body></w:document>'
            archive.writestr("word/document.xml", document)
            for name, content in (extra or {}).items():
                archive.writestr(name, content)
        return out.getvalue()

    return make


@pytest.fixture
def fake_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Save) -> Callable[[str], Path]:
    """A file whose parser runs this code instead: the parser process finds a module of ours before the real one."""

    def fake(code: str) -> Path:
        (tmp_path / "modules").mkdir(exist_ok=True)
        (tmp_path / "modules" / "charset_normalizer.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path / "modules"))
        return save("guessed.txt", "Füße\n".encode("cp1252"))

    return fake
