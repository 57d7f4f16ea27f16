"""Plain files: the text is what the bytes say, offset for offset, and every file is named, refused or warned about."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longctx.documents import _child, encoding, kinds, process
from longctx.documents.limits import Limits
from longctx.documents.reader import read
from longctx.errors import BadOption, DocumentError, EmptyInput, ParseLimit, UsageError
from longctx.types import Document

Save = Callable[[str, bytes], Path]
PIECES = [
    "\r\n",
    "\r",
    "\n",
    "\u2028",
    "\x85",
    "中文",
    "😀",
    "👩‍👩‍👧",
    "e\u0301",
    "\u202eabc\u202c",
    "\t",
    " ",
    "word",
    "\ufeff",
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
FILES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FILES
@given(pieces=TEXT, mark=st.sampled_from(["", "utf-8-sig", "utf-16", "utf-32"]))
def test_a_file_keeps_every_character_and_newline(pieces: list[str], mark: str, tmp_path: Path) -> None:
    text = "x" + "".join(pieces)
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(mark or "utf-8"))
    document = read(path)
    assert document.text == text
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    assert all(document.text[1 + at :].startswith(piece) for at, piece in zip(starts, pieces, strict=False))


@given(st.text(st.characters()) | st.text("\ud83d\ude00"))
def test_a_string_keeps_lone_surrogates_and_nul(text: str) -> None:
    """Two surrogates side by side must not come back from the parser process as one character."""
    document = Document.from_text(text)
    assert document.text == text
    answer = {"status": "ok", "parts": [("", text)], "paged": False, "warnings": []}
    parts, _, _ = process._result(process._answer(_child.encode(answer), "a"), "a", Limits())
    assert parts == [("", text)] and len(parts[0][1]) == len(document.text)


@pytest.mark.parametrize(
    ("name", "kind", "language"),
    [
        ("a.txt", "text", ""),
        ("README", "text", ""),
        ("a.md", "markdown", ""),
        ("a.PY", "code", "python"),
        ("a.rs", "code", "rust"),
        ("a.ts", "code", "typescript"),
        ("a.json", "text", ""),
        ("a.weird", "text", ""),
    ],
)
def test_the_suffix_says_the_kind(save: Save, name: str, kind: str, language: str) -> None:
    document = read(str(save(name, b"a = 1\r\n")))
    assert (document.id, document.kind, document.language, document.text) == (name, kind, language, "a = 1\r\n")
    assert document.pages == () and document.warnings == ()


def test_a_list_gives_a_list_with_ids_of_its_own(save: Save) -> None:
    paths = [save("a/x.txt", b"1"), save("b/x.txt", b"2"), save("y.txt", b"3"), save("y.txt", b"3")]
    assert [document.id for document in read(paths)] == ["a/x.txt", "b/x.txt", "y.txt", "y.txt#2"]
    assert [document.text for document in read(paths)] == ["1", "2", "3", "3"]
    assert [document.id for document in read(iter(paths[:1]))] == ["x.txt"]


@given(st.lists(st.sampled_from(["a/x", "b/x", "a/b/x", "x", "y", "./x", "x#2"]), min_size=1))
def test_ids_are_always_unique(names: list[str]) -> None:
    from longctx.documents.reader import _names

    ids = _names([Path(name) for name in names])
    assert len(set(ids)) == len(ids) == len(names)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_an_id_can_always_be_printed(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff\n.txt")
    Path(path).write_text("text")
    assert read(path).id == "a\ufffd\ufffd.txt"


def test_a_guessed_encoding_is_said(save: Save) -> None:
    text = "Das ist ein schöner Tag für Füße. Straße, größer, Übel und Ärger.\r\n" * 20
    document = read(save("a.py", text.encode("cp1252")))
    assert document.text == text and (document.kind, document.language) == ("code", "python")
    assert "not UTF-8" in document.warnings[0] and "cp125" in document.warnings[0]


def test_a_guess_reads_more_than_its_sample(save: Save) -> None:
    """A character cut at the end of the sample, or one that stands only behind it, must not change the encoding."""
    text = "これは日本語の文章です。長い文書を読みます。\n" * 30_000
    document = read(save("a.txt", text.encode("shift_jis")))
    assert document.text == text and len(text.encode("shift_jis")) > 1 << 20
    for pad in ("", "a"):
        head = encoding.sample((pad + text).encode("shift_jis"))
        assert 1 << 19 < len(head) <= 1 << 20 and (pad + text).startswith(head.decode("shift_jis"))


@pytest.mark.parametrize(
    "data",
    [b"\x00\x01\x02\x03" * 50, b"a\x00b", bytes(range(1, 256)) * 20, b"\xff\xfe\x00", "text".encode("utf-16-le")],
    ids=["zeros", "one", "controls", "half-utf16", "no-mark"],
)
def test_binary_is_refused(save: Save, data: bytes) -> None:
    with pytest.raises(DocumentError, match=r"^a\.txt: .*reads text"):
        read(save("a.txt", data))


@pytest.mark.parametrize("name", ["a.pptx", "a.doc", "a.png", "a.zip", "a.unknown"])
def test_other_formats_are_named_with_a_way_out(save: Save, name: str) -> None:
    with pytest.raises(DocumentError, match=r"not a format that longctx reads\. \w+ it|Run OCR|zip archive"):
        read(save(name, b"PK\x03\x04" + b"x" * 50))


@pytest.mark.parametrize("data", [b"", b" \r\n\t", "\ufeff".encode(), "\u3000\u2028".encode()])
@pytest.mark.parametrize("name", ["a.txt", "a.html"])
def test_nothing_to_read_is_an_error(save: Save, data: bytes, name: str) -> None:
    with pytest.raises(EmptyInput, match=re.escape(name)):
        read(save(name, data))


@pytest.mark.parametrize(
    "url", ["http://x.org/a.pdf", "https://x.org", "file:///etc/passwd", "s3://b/k", "data:text/html,x"]
)
def test_urls_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is a URL, and longctx never downloads"):
        read(url)
    with pytest.raises(UsageError, match="is a URL"):
        read([Path(url)] if "://" in url else [url])


def test_folders_are_refused_with_the_remedy(tmp_path: Path, save: Save) -> None:
    for source in (tmp_path, [save("a.txt", b"a"), tmp_path]):
        with pytest.raises(UsageError, match=r"is a folder.*glob.*on the command line /.*/\*\.md\.$"):
            read(source)
    (tmp_path / "my papers").mkdir()
    with pytest.raises(UsageError, match=r"on the command line '/.*/my papers'/\*\.md\.$"):  # as a shell wants it
        read(tmp_path / "my papers")


@pytest.mark.parametrize("path", ["no/such/file.txt", "x" * 5000, "a\x00b", "The text itself?\nIn a string."])
def test_no_such_file_is_typed(path: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(path)
    assert len(str(caught.value)) < 600


def test_a_missing_file_has_a_remedy_in_python_and_on_the_command_line() -> None:
    with pytest.raises(DocumentError, match=r"Document\.from_text\(text\); for the command line, save it to a file\.$"):
        read("The text itself")


@pytest.mark.parametrize("source", [b"a.txt", 3, None, [3], [b"a.txt"]])
def test_wrong_sources_are_usage_errors(source: object) -> None:
    with pytest.raises(UsageError, match="path"):
        read(source)  # type: ignore[call-overload]
    for empty in ("", []):
        with pytest.raises(EmptyInput):
            read(empty)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(10)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DocumentError, match="not a regular file"):
        read(tmp_path / "pipe.txt")


def test_one_file_of_a_list_is_never_skipped(save: Save) -> None:
    with pytest.raises(DocumentError, match=r"^b\.txt: "):
        read([save("a.txt", b"a"), save("b.txt", b"\x00")])


@pytest.mark.parametrize(
    ("text", "sorts"),
    [
        ("plain ascii", []),
        ("naïve café 中文", []),
        ("👩‍👩‍👧 می‌خواهم क्‍ष", []),
        ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", []),
        ("pass\u200bword\u2060", ["2 zero-width"]),
        ("pass\u200dword", ["1 zero-width"]),
        ("a\u202edcb\u202c", ["2 bidirectional"]),
        ("hi\U000e0041\U000e0042", ["2 invisible tag"]),
        ("\u200b\u2066", ["1 zero-width", "1 bidirectional"]),
    ],
)
def test_what_a_reader_cannot_see_is_flagged_and_kept(save: Save, text: str, sorts: list[str]) -> None:
    document = read(save("a.txt", text.encode()))
    assert document.text == text
    assert len(document.warnings) == len(sorts)
    assert all(warning.startswith(sort) for warning, sort in zip(document.warnings, sorts, strict=True))


def test_limits_on_text_name_the_limit_the_value_and_the_remedy(save: Save) -> None:
    path = save("a.txt", b"12345678")
    assert read(path, limits=Limits(input_bytes=8, output_chars=8)).text == "12345678"
    with pytest.raises(ParseLimit, match=r"^a\.txt: .*input_bytes=7, found 8.*Limits\(input_bytes="):
        read(path, limits=Limits(input_bytes=7))
    with pytest.raises(ParseLimit, match=r"^a\.txt: .*output_chars=7, found 8.*Limits\(output_chars="):
        read(path, limits=Limits(output_chars=7))


@pytest.mark.parametrize("bad", [{"seconds": 0}, {"pages": -1}, {"pages": 1.5}, {"zip_ratio": True}, {"seconds": "9"}])
def test_a_limit_that_cannot_work_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(BadOption, match=r"Limits: \w+="):
        Limits(**bad)  # type: ignore[arg-type]


def test_a_line_without_spaces_is_read_in_linear_time(save: Save) -> None:
    def seconds(chars: int) -> float:
        path = save(f"{chars}.txt", ("é中" * (chars // 2)).encode())
        best = float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            assert len(read(path).text) == chars
            best = min(best, time.perf_counter() - begin)
        return best

    assert seconds(8_000_000) < 4 * 2.3 * seconds(2_000_000)


def test_no_pattern_runs_away() -> None:
    """200 kB of what makes patterns backtrack, against every pattern of the room that sees a document's bytes."""
    patterns = [pattern for _, pattern in encoding._UNSEEN] + [kinds._HTML_START]
    for filler in (".", '"', "(", "1", "<", " ", "<html", "\u200d", "\U000e0041", "a\u200d", "<meta ", "charset="):
        text = filler * (200_000 // len(filler))
        for pattern in patterns:
            begin = time.perf_counter()
            subject = text if isinstance(pattern.pattern, str) else text.encode()
            for _ in pattern.finditer(subject):
                pass
            assert time.perf_counter() - begin < 0.5, (filler, pattern)


def test_importing_the_room_brings_in_no_model_and_no_parser() -> None:
    heavy = ["torch", "transformers", "pypdf", "trafilatura", "markitdown", "lxml", "charset_normalizer"]
    code = f"import sys, json, longctx.documents.reader; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
