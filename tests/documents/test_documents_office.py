"""Word files: the archive is judged before it is opened, and its words come out as they were written."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from longctx.documents.limits import Limits
from longctx.documents.reader import read
from longctx.errors import DocumentError, EmptyInput, ParseLimit

Save = Callable[[str, bytes], Path]
Make = Callable[..., bytes]


def test_words_come_out_as_they_were_written(save: Save, make_docx: Make) -> None:
    paragraphs = ["snake_case *star* 1. x # y", "中文 😀 e\u0301", "a\\b [c](d) ~e~"]
    document = read(save("a.docx", make_docx(paragraphs)))
    assert document.text.split("\n\n") == paragraphs
    assert (document.id, document.kind, document.pages, document.warnings) == ("a.docx", "docx", (), ())


def test_what_is_left_out_or_hidden_is_said(save: Save, make_docx: Make) -> None:
    body = "<w:p><w:r><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t></w:r><w:r><w:t> seen</w:t></w:r></w:p>"
    header = '<w:hdr xmlns:w="urn:w"><w:p><w:r><w:t>top</w:t></w:r></w:p></w:hdr>'
    document = read(save("a.docx", make_docx(body=body, extra={"word/header1.xml": header})))
    assert document.text == "hidden seen"
    assert [w for w in document.warnings if "headers and footers" in w]
    assert [w for w in document.warnings if "text that Word hides" in w]


def test_a_word_file_without_words_is_empty(save: Save, make_docx: Make) -> None:
    with pytest.raises(EmptyInput, match=r"^a\.docx"):
        read(save("a.docx", make_docx([" "])))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(), r"expand to 67,\d+,\d+ \(limit zip_ratio=100, found 1,0\d\d:1\).*Limits\(zip_ratio="),
        (Limits(expanded_bytes=64 << 20), r"limit expanded_bytes=67,108,864, found 67,\d+,\d+"),
    ],
)
def test_a_zip_bomb_is_refused_by_its_directory(save: Save, make_docx: Make, limits: Limits, message: str) -> None:
    path = save("a.docx", make_docx(["x"], {"word/media/image1.png": bytes(64 << 20)}))
    assert path.stat().st_size < 100_000
    with pytest.raises(ParseLimit, match=message):
        read(path, limits=limits)


def test_a_directory_that_lies_about_sizes_gains_nothing(save: Save, make_docx: Make) -> None:
    data = make_docx(["x"], {"word/media/image1.png": bytes(8 << 20)})
    data = data.replace(struct.pack("<I", 8 << 20), struct.pack("<I", 10))
    with pytest.raises(DocumentError, match=r"^a\.docx: "):
        read(save("a.docx", data))


def test_ten_thousand_entries_are_too_many(save: Save, make_docx: Make) -> None:
    path = save("a.docx", make_docx(["x"], {f"p{i}": "" for i in range(10_000)}))
    with pytest.raises(ParseLimit, match=r"limit zip_entries=4,096, found 10,003"):
        read(path)
    assert read(path, limits=Limits(zip_entries=20_000)).text == "x"


@pytest.mark.parametrize(
    "name", ["../evil.xml", "/etc/evil.xml", "word/../../evil.xml", "..\\evil.xml", "C:\\evil.xml"]
)
def test_names_that_leave_the_archive_are_refused(save: Save, make_docx: Make, name: str) -> None:
    with pytest.raises(DocumentError, match="points outside"):
        read(save("a.docx", make_docx(["x"], {name: "<a/>"})))


def test_links_doubles_and_overlaps_are_refused(save: Save, make_docx: Make) -> None:
    def with_entry(info: zipfile.ZipInfo, content: str) -> bytes:
        out = io.BytesIO(make_docx(["x"]))
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr(info, content)
        return out.getvalue()

    link = zipfile.ZipInfo("word/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(DocumentError, match="symbolic link"):
        read(save("a.docx", with_entry(link, "/etc/passwd")))
    with pytest.raises(DocumentError, match="two entries of one name"):
        read(save("a.docx", with_entry(zipfile.ZipInfo("word/Document.xml"), "<a/>")))
    with pytest.raises(DocumentError, match="overlap"):
        read(save("a.docx", overlapping(make_docx(["x"], {"b1": "y", "b2": "y"}))))


def overlapping(data: bytes) -> bytes:
    """The directory's entry for the last part points at the part before it."""
    second = data.rindex(b"PK\x01\x02")
    first = data.rindex(b"PK\x01\x02", 0, second)
    return data[: second + 42] + data[first + 42 : first + 46] + data[second + 46 :]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp037"])
def test_entities_are_never_expanded(save: Save, make_docx: Make, encoding: str) -> None:
    lines = ['<!ENTITY e0 "lollollol">'] + [f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 9)]
    external = '<!ENTITY file SYSTEM "file:///etc/passwd">'
    message = "has a document type declaration" if encoding.startswith("utf") else "is not well-formed XML"
    for declarations in ("".join(lines), external):
        part = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [{declarations}]><a>&e8;</a>'
        with pytest.raises(DocumentError, match=rf"'word/styles\.xml' {message}"):
            read(save("a.docx", make_docx(["x"], {"word/styles.xml": part.encode(encoding)})))


def test_a_truncated_word_file_is_an_error(save: Save, make_docx: Make) -> None:
    whole = make_docx(["some words"] * 50)
    for size in (4, 40, len(whole) // 2, len(whole) - 1):
        with pytest.raises(DocumentError, match=r"^a\.docx: it is damaged, cut off or no Word file"):
            read(save("a.docx", whole[:size]))


def test_other_archives_and_broken_parts_are_errors(save: Save, make_docx: Make) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("hello.txt", "not a Word file")
    for data in (out.getvalue(), make_docx(body="<w:p>"), b"text"):
        with pytest.raises(DocumentError, match=r"^a\.docx: "):
            read(save("a.docx", data))


@pytest.mark.timeout(60)
def test_deep_nesting_in_a_word_file_ends(save: Save, make_docx: Make) -> None:
    body = "<w:tbl><w:tr><w:tc>" * 3_000 + "<w:p><w:r><w:t>x</w:t></w:r></w:p>" + "</w:tc></w:tr></w:tbl>" * 3_000
    with pytest.raises(DocumentError, match=r"^a\.docx: "):
        read(save("a.docx", make_docx(body=body)))
