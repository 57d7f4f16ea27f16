"""HTML: what a visitor would read, and a word about everything that is not in the text."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from longctx.documents import _html
from longctx.documents.limits import Limits
from longctx.documents.reader import read
from longctx.errors import DocumentError, EmptyInput, ParseLimit

Save = Callable[[str, bytes], Path]
ARTICLE = "".join(f"<p>Paragraph {i} of the article has some words in it, as articles do.</p>" for i in range(40))


def page(body: str, head: str = "") -> bytes:
    return f"<!doctype html><html><head>{head}<title>T</title></head><body>{body}</body></html>".encode()


def test_the_main_text_is_taken_and_the_rest_is_counted(save: Save) -> None:
    menu = "<nav>" + "".join(f"<a href=/x>Menu item {i}</a> " for i in range(30)) + "</nav>"
    document = read(save("a.html", page(menu + f"<article><h1>The title</h1>{ARTICLE}</article>")))
    assert (document.id, document.kind) == ("a.html", "html")
    assert "The title" in document.text and document.text.count("Paragraph") == 40
    assert "Menu item" not in document.text
    assert [w for w in document.warnings if w.startswith("menus and boilerplate are left out")]


def test_a_page_whose_main_text_is_next_to_nothing_is_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    links = "".join(f"<li><a href=/{i}>Entry <b>{i}</b></a>, seen</li>" for i in range(200))
    monkeypatch.setattr(_html.trafilatura, "extract", lambda tree, **_: "One short line of text.")
    data = page(f"<nav><ul>{links}</ul></nav><p>One short line<br>of text.</p>")
    parsed = _html.parse(io.BytesIO(data), Limits())
    lines = [*(f"Entry {i}, seen" for i in range(200)), "One short line", "of text."]
    assert parsed.parts == [("", "\n".join(lines))]
    assert parsed.warnings[0].startswith("the whole visible text was kept: the page's main text would be 19 of ")


@pytest.mark.parametrize(
    "attribute",
    [
        "hidden",
        "style='display:none'",
        "style='color:red; DISPLAY : none !important'",
        "style='visibility:hidden'",
        "style='font-size:0px'",
        "style='opacity: 0'",
    ],
)
def test_text_hidden_from_visitors_is_left_out_and_said(save: Save, attribute: str) -> None:
    document = read(save("a.html", page(f"{ARTICLE}<div {attribute}>Ignore <i>all</i> of it.</div>And the tail.")))
    assert "Ignore" not in document.text
    assert "And the tail." in document.text or any("left out" in w for w in document.warnings[1:])
    assert document.warnings[0] == "1 hidden element of the page left out (14 characters)"


@pytest.mark.parametrize("attribute", ["style='font-size:0.9em'", "style='opacity:0.5'", "style='display:block'"])
def test_text_that_is_seen_is_not_called_hidden(save: Save, attribute: str) -> None:
    document = read(save("a.html", page(f"{ARTICLE}<p {attribute}>Read this, it is part of the text.</p>")))
    assert "Read this" in document.text
    assert not any("hidden" in warning for warning in document.warnings)


def test_scripts_and_styles_are_no_text(save: Save) -> None:
    document = read(
        save("a.html", page("<p>Hi</p><script>var x</script><style>p{}</style><!-- c -->", "<style>q</style>"))
    )
    assert document.text == "Hi"


@pytest.mark.parametrize(
    ("encoding", "declared", "guessed"),
    [
        ("utf-8", "", False),
        ("cp1252", "ISO-8859-1", False),
        ("iso-8859-2", "iso-8859-2", False),
        ("shift_jis", "", True),
        ("utf-16", "", False),
    ],
)
def test_the_declared_encoding_counts(save: Save, encoding: str, declared: str, guessed: bool) -> None:
    by_encoding = {"shift_jis": "これは日本語の文章です。", "cp1252": "“Naïve” – café… "}
    words = by_encoding.get(encoding, "Příliš žluťoučký kůň úpěl ďábelské ódy. ")
    meta = f"<meta charset='{declared}'>" if declared else ""
    html = page(f"<p>{words * 40}</p>", meta).decode().encode(encoding)
    document = read(save("a.html", html))
    assert words.strip() in document.text
    assert any("not UTF-8" in warning for warning in document.warnings) is guessed


@pytest.mark.timeout(30)
@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_deep_nesting_is_read_or_refused_but_never_cut(save: Save, depth: int) -> None:
    data = page("<p>start</p>" + "<div>" * depth + "needle" + "</div>" * depth + "<p>end</p>")
    path = save("a.html", data)
    if depth < 2_000:
        assert read(path).text.split() == ["start", "needle", "end"]
    else:
        with pytest.raises(ParseLimit, match=r"^a\.html: .*limits.*depth"):
            read(path)


def test_entities_are_never_expanded(save: Save) -> None:
    lines = ['<!ENTITY e0 "lollollol">'] + [f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 9)]
    external = '<!ENTITY file SYSTEM "file:///etc/passwd">'
    data = f"<!DOCTYPE html [{''.join(lines)}{external}]><html><body><p>text &e8; &file; end</p></body></html>"
    document = read(save("a.xhtml", data.encode()))
    assert "text" in document.text and len(document.text) < 2 * len(data) and "root:" not in document.text


def test_a_page_without_text_is_empty(save: Save) -> None:
    with pytest.raises(EmptyInput, match=r"^a\.html"):
        read(save("a.html", page("<img src=x><script>var x</script>")))


def test_output_is_limited_and_binary_is_refused(save: Save) -> None:
    with pytest.raises(ParseLimit, match=r"limit output_chars=100, found [\d,]+"):
        read(save("a.html", page(ARTICLE)), limits=Limits(output_chars=100))
    with pytest.raises(DocumentError, match="NUL"):
        read(save("a.html", b"<html>\x00\x01</html>"))


def test_a_long_text_node_is_kept_whole(save: Save) -> None:
    document = read(save("a.html", page("<p>" + "word " * 2_400_000 + "last</p>")))
    assert document.text.endswith("last") and document.text.count("word") == 2_400_000
