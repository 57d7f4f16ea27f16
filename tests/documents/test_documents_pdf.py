"""PDFs: pages and offsets agree, and a crafted or damaged file is a typed error and never an empty text."""

from __future__ import annotations

import io
import time
import tomllib
import zlib
from collections.abc import Callable
from pathlib import Path

import pypdf
import pytest
from pypdf.constants import UserAccessPermissions

from longctx.documents.limits import Limits
from longctx.documents.reader import read
from longctx.errors import DocumentError, EmptyInput, MissingExtra, ParseLimit

Save = Callable[[str, bytes], Path]
Make = Callable[..., bytes]
SCAN = b"<< /Length 8 >>\nstream\n0 0 m S\n\nendstream"


def flate(content: bytes, layers: int = 1) -> bytes:
    for _ in range(layers):
        content = zlib.compress(content, 9)
    filters = b"/FlateDecode " * layers
    return b"<< /Length %d /Filter [%s] >>\nstream\n%s\nendstream" % (len(content), filters, content)


def spaces(total: int) -> bytes:
    """``total`` spaces, compressed once without holding them."""
    packer, block = zlib.compressobj(9), b" " * (1 << 20)
    return b"".join(packer.compress(block) for _ in range(total >> 20)) + packer.flush()


def bomb(total: int) -> bytes:
    inner = zlib.compress(spaces(total), 9)
    return b"<< /Length %d /Filter [/FlateDecode /FlateDecode] >>\nstream\n%s\nendstream" % (len(inner), inner)


def test_every_character_stands_on_its_page(save: Save, make_pdf: Make) -> None:
    texts = [f"This is page {n}, fact {n * 7919}." for n in range(1, 13)]
    document = read(save("a.pdf", make_pdf(texts)))
    assert (document.id, document.kind, document.warnings) == ("a.pdf", "pdf", ())
    assert [page.number for page in document.pages] == list(range(1, 13))
    for page, text in zip(document.pages, texts, strict=True):
        assert document.text[page.start : page.end] == text
        assert {document.page_at(at) for at in range(page.start, page.end)} == {page.number}
    gaps = zip(document.pages, document.pages[1:], strict=False)
    assert {document.text[a.end : b.start] for a, b in gaps} == {"\n\n"}
    assert document.pages[0].start == 0 and document.pages[-1].end == len(document.text)


def test_page_labels_are_kept(save: Save, make_pdf: Make) -> None:
    catalog = b"/PageLabels << /Nums [0 << /S /r >> 2 << /S /D /P (A-) >>] >>"
    pages = read(save("a.pdf", make_pdf(["w", "x", "y", "z"], catalog=catalog))).pages
    assert [page.label for page in pages] == ["i", "ii", "A-1", "A-2"]
    assert [page.label for page in read(save("b.pdf", make_pdf(["w"]))).pages] == [""]


def test_blank_and_scanned_pages_keep_the_count(save: Save, make_pdf: Make) -> None:
    document = read(save("a.pdf", make_pdf(["one", "", SCAN, "four"])))
    assert [document.text[p.start : p.end] for p in document.pages] == ["one", "", "", "four"]
    assert document.page_at(document.text.index("four")) == 4
    assert [w for w in document.warnings if "no text on these pages" in w and w.endswith(": 3")]


def test_a_scan_is_an_error_and_not_an_empty_text(save: Save, make_pdf: Make) -> None:
    with pytest.raises(DocumentError, match=r"^a\.pdf: none of its 2 pages has text, but 2 have content.*OCR"):
        read(save("a.pdf", make_pdf([SCAN, SCAN])))
    with pytest.raises(EmptyInput, match=r"^b\.pdf"):
        read(save("b.pdf", make_pdf(["", ""])))


def test_a_pdf_is_known_by_its_mark(save: Save, make_pdf: Make) -> None:
    assert read(save("report", make_pdf(["hello"]))).kind == "pdf"


@pytest.mark.timeout(30)
def test_a_nested_flate_bomb_stops_early(save: Save, make_pdf: Make) -> None:
    path = save("bomb.pdf", make_pdf(["before", bomb(256 << 20)]))
    assert path.stat().st_size < 5_000
    begin = time.perf_counter()
    with pytest.raises(ParseLimit, match=r"^bomb\.pdf: .* on page 2 .*decompress.*from_text"):
        read(path)
    assert time.perf_counter() - begin < 5


def test_a_bomb_behind_a_form_is_not_an_empty_page(save: Save, make_pdf: Make) -> None:
    """pypdf only logs what goes wrong inside a form, so the page would just lack its text."""
    page = flate(b"BT /F1 12 Tf (seen) Tj ET /X Do")
    form = bomb(256 << 20).replace(
        b"<< ", b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /Font << /F1 3 0 R >> >> ", 1
    )
    made = make_pdf([page], resources=b"/XObject << /X 6 0 R >>", more=[form])
    with pytest.raises(ParseLimit, match="on page 1"):
        read(save("a.pdf", made))


def test_pages_and_output_are_limited(save: Save, make_pdf: Make) -> None:
    path = save("a.pdf", make_pdf(["12345"] * 4))
    assert len(read(path, limits=Limits(pages=4)).pages) == 4
    with pytest.raises(ParseLimit, match=r"too many pages \(limit pages=3, found 4\)"):
        read(path, limits=Limits(pages=3))
    with pytest.raises(ParseLimit, match=r"page 3 passes it \(limit output_chars=14, found 15\)"):
        read(path, limits=Limits(output_chars=14))


@pytest.mark.parametrize("algorithm", ["RC4-40", "RC4-128", "AES-128", "AES-256-R5", "AES-256"])
def test_an_encrypted_pdf_says_so(save: Save, make_pdf: Make, algorithm: str) -> None:
    def encrypted(user: str) -> bytes:
        writer = pypdf.PdfWriter(clone_from=io.BytesIO(make_pdf(["secret"])))
        everything = UserAccessPermissions((1 << 31) - 4)
        writer.encrypt(user, "owner", permissions_flag=everything, algorithm=algorithm)
        out = io.BytesIO()
        writer.write(out)
        return out.getvalue()

    with pytest.raises(DocumentError, match=r"^a\.pdf: it is encrypted with a password; remove"):
        read(save("a.pdf", encrypted("user")))
    assert read(save("b.pdf", encrypted(""))).text == "secret"  # opens without asking, as in every viewer


def test_a_missing_parser_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from longctx.documents import _pdf
    from longctx.documents._outcome import MissingParser
    from longctx.documents.process import _result

    def lacking(file: object) -> None:
        raise pypdf.errors.DependencyError("cryptography>=3.1 is required for AES algorithm")

    monkeypatch.setattr(pypdf, "PdfReader", lacking)
    with pytest.raises(MissingParser, match="cryptography"):
        _pdf.parse(io.BytesIO(b"%PDF-"), Limits())
    with pytest.raises(MissingExtra, match=r"reading a\.pdf.*cryptography.*longctx-hf\[documents\]"):
        _result({"status": "missing", "package": "cryptography"}, "a.pdf", Limits())
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    # the line that is named brings the package
    assert any(line.startswith("pypdf[crypto]") for line in project["optional-dependencies"]["documents"])


def test_a_truncated_pdf_is_an_error_or_says_what_was_repaired(save: Save, make_pdf: Make) -> None:
    whole = make_pdf([f"page {n}" for n in range(8)])
    texts = 0
    for size in (9, len(whole) // 4, len(whole) // 2, len(whole) - 400, len(whole) - 6):
        path = save("a.pdf", whole[:size])
        try:
            document = read(path)
        except (DocumentError, EmptyInput) as error:
            assert str(error).startswith("a.pdf: ") and "Traceback" not in str(error)
        else:
            texts += 1
            assert document.warnings, f"cut at {size} of {len(whole)} without a word"
    assert texts < 5


@pytest.mark.parametrize("data", [b"%PDF-1.4\n", b"%PDF-" + b"\xff" * 500, b"just text", b"\x00" * 99])
def test_what_is_no_pdf_is_an_error(save: Save, data: bytes) -> None:
    with pytest.raises(DocumentError, match=r"^a\.pdf: "):
        read(save("a.pdf", data))


@pytest.mark.timeout(30)
def test_a_loop_of_pages_ends(save: Save, make_pdf: Make) -> None:
    made = make_pdf(["x"]).replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]")
    with pytest.raises(DocumentError, match=r"^a\.pdf: "):
        read(save("a.pdf", made))


def test_one_broken_page_is_named_and_the_rest_is_read(save: Save, make_pdf: Make) -> None:
    broken = b"<< /Length 20 /Filter /NoSuchDecode >>\nstream\naaaaaaaaaaaaaaaaaaaa\nendstream"
    document = read(save("a.pdf", make_pdf(["first", broken, "third"])))
    assert [document.text[p.start : p.end] for p in document.pages] == ["first", "", "third"]
    assert any("page 2 could not be read" in warning for warning in document.warnings)
    with pytest.raises(DocumentError, match="no page of the PDF can be read"):
        read(save("b.pdf", make_pdf([broken])))
