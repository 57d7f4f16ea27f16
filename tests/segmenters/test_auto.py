"""The default splitter: chooses by kind, and says when it could not choose what the kind asks for."""

from __future__ import annotations

import sys

import pytest
from splitting import by_words

from longctx import plugins
from longctx.errors import BadOption, installing
from longctx.segmenters.splitters._syntax import why_unavailable
from longctx.segmenters.splitters.auto import Auto
from longctx.segmenters.splitters.code import Code
from longctx.segmenters.splitters.sentences import Sentences

TEXT = "def f(a):\n    return a\n\n\n" * 40


@pytest.mark.parametrize("kind", ["text", "markdown", "pdf", "html", "docx"])
def test_text_is_split_by_sentences_without_a_warning(kind: str) -> None:
    encoded = by_words(TEXT, kind=kind, language="python")
    assert Auto().split(encoded) == Sentences().split(encoded)
    assert Auto().warnings(encoded) == ()


@pytest.mark.skipif(bool(why_unavailable("python")), reason="the Python grammar is not installed")
def test_code_is_split_by_syntax_without_a_warning() -> None:
    encoded = by_words(TEXT, kind="code", language="python")
    assert Auto().split(encoded) == Code().split(encoded) != Sentences().split(encoded)
    assert Auto().warnings(encoded) == ()


def test_code_without_its_grammar_is_split_by_sentences_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tree_sitter_python", None)
    encoded = by_words(TEXT, kind="code", language="python")
    assert Auto().split(encoded) == Sentences().split(encoded)
    (warning,) = Auto().warnings(encoded)
    assert "tree-sitter-python is not installed" in warning and installing("code") in warning


def test_code_of_an_unknown_language_is_split_by_sentences_and_says_so() -> None:
    encoded = by_words(TEXT, kind="code", language="cobol")
    assert Auto().split(encoded) == Sentences().split(encoded)
    assert "'cobol'" in Auto().warnings(encoded)[0]


def test_options_reach_the_chosen_splitter() -> None:
    encoded = by_words("One two three four. " * 40)
    chosen = plugins.load("splitters", "auto:max_tokens=20,min_tokens=0")
    assert chosen.split(encoded) == Sentences(max_tokens=20, min_tokens=0).split(encoded)
    with pytest.raises(BadOption, match="max_tokens=3"):
        Auto(max_tokens=3)
