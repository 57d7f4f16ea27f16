"""Code: units follow the syntax, carry their signatures, and tile whatever they are given."""

from __future__ import annotations

import random
import sys
import time

import pytest
from splitting import by_bytes, by_words, pieces

from longctx.errors import MissingExtra, UsageError
from longctx.segmenters.splitters._syntax import GRAMMARS, why_unavailable
from longctx.segmenters.splitters.code import Code
from longctx.types import EncodedDocument, Span

BODY = "\n".join(f"        value_{i} = compute(value_{i}, {i}) + other(value_{i})" for i in range(12))
PYTHON = f'''"""A module."""
import os
import sys


def first(a):
    return a + 1


# About the class.
@decorated
class Thing(Base):
    """Says something."""

    def long_method(
        self,
        argument: int,
    ) -> int:
{BODY}
        return argument

    def short(self):
        return 2


def last():
    return 3
'''
SIGNATURES = {
    "c": ("int walk(int a, int b)", "%s {\n%s\n}\n", "  a = a + step(b, 1);"),
    "cpp": ("int Tree::walk(int a) const", "%s {\n%s\n}\n", "  a = a + step(b, 1);"),
    "go": ("func (t *Tree) Walk(a int) int", "package x\n\n%s {\n%s\n}\n", "\ta = a + step(b, 1)"),
    "java": ("public int walk(int a)", "class T {\n  %s {\n%s\n  }\n}\n", "    a = a + step(b, 1);"),
    "javascript": ("export const walk = async (a) =>", "%s {\n%s\n};\n", "  a = a + step(b, 1);"),
    "php": ("function walk(int $a): int", "<?php\n%s {\n%s\n}\n", "  $a = $a + step($b, 1);"),
    "python": ("def walk(a: int) -> int:", "%s\n%s\n", "    a = a + step(b, 1)"),
    "ruby": ("def walk(a, b)", "%s\n%s\nend\n", "  a = a + step(b, 1)"),
    "rust": ("pub fn walk(&self, a: u32) -> u32", "impl T {\n  %s {\n%s\n  }\n}\n", "    a = a + step(b, 1);"),
    "tsx": ("function walk(a: number): number", "%s {\n%s\n}\n", "  a = a + step(b, 1);"),
    "typescript": ("function walk(a: number): number", "%s {\n%s\n}\n", "  a = a + step(b, 1);"),
}


def contexts(encoded: EncodedDocument, spans: tuple[Span, ...]) -> list[str]:
    return [encoded.document.text[slice(*span.context)] if span.context else "" for span in spans]


def lacks(language: str) -> bool:
    return bool(why_unavailable(language))


needs_python = pytest.mark.skipif(lacks("python"), reason="the Python grammar is not installed")


@needs_python
def test_units_are_whole_definitions_where_they_fit() -> None:
    encoded = by_words(PYTHON, kind="code", language="python")
    found = pieces(encoded, Code(max_tokens=60, min_tokens=4).split(encoded))
    assert any(piece.strip().endswith("return a + 1") and piece.startswith('"""A module') for piece in found)
    assert any(piece.startswith("# About the class.\n@decorated\nclass Thing(Base):") for piece in found)
    assert any(piece.strip().startswith("def short(self):\n        return 2") for piece in found)
    assert all(line in PYTHON.splitlines() for piece in found for line in piece.strip("\n").splitlines())


@needs_python
def test_a_unit_inside_a_body_carries_the_signature_of_the_innermost_definition() -> None:
    encoded = by_words(PYTHON, kind="code", language="python")
    spans = Code(max_tokens=60, min_tokens=4).split(encoded)
    method = "def long_method(\n        self,\n        argument: int,\n    ) -> int:"
    for piece, context in zip(pieces(encoded, spans), contexts(encoded, spans), strict=True):
        if "value_9 =" in piece:
            assert context == method
        if piece.strip().startswith("def short"):
            assert context == "@decorated\nclass Thing(Base):" or context == "class Thing(Base):"
        if "A module" in piece or "About the class" in piece or piece.strip().startswith("def last"):
            assert context == ""
    assert method in contexts(encoded, spans)


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_every_language_knows_its_signatures(language: str) -> None:
    if lacks(language):
        pytest.skip(f"the grammar of {language} is not installed")
    signature, frame, line = SIGNATURES[language]
    text = frame % (signature, "\n".join([line] * 30))
    encoded = by_words(text, kind="code", language=language)
    spans = Code(max_tokens=64, min_tokens=8).split(encoded)
    found = pieces(encoded, spans)
    assert len(found) > 3
    assert contexts(encoded, spans)[2:-1] == [signature] * (len(found) - 3)
    assert all(piece.strip("\n").split("\n")[0] in text.split("\n") for piece in found)


@needs_python
def test_byte_offsets_of_the_syntax_are_characters_of_the_text() -> None:
    comment = "    name = '名前 😀 \ud83d \u00e9'  # 注释\n"
    text = "".join(f"def f_{i}():\n{comment}    return {i}\n\n\n" for i in range(20))
    encoded = by_bytes(text, kind="code", language="python")
    found = pieces(encoded, Code(max_tokens=100, min_tokens=0).split(encoded))
    assert [piece.splitlines()[0] for piece in found] == [f"def f_{i}():" for i in range(20)]


@needs_python
def test_broken_code_tiles_within_the_cap() -> None:
    rng = random.Random(5)
    for _ in range(30):
        characters = list(PYTHON)
        for _ in range(40):
            characters[rng.randrange(len(characters))] = rng.choice("(){}[]\"'\\\n\t :😀\udc00")
        encoded = by_bytes("".join(characters), kind="code", language="python")
        spans = Code(max_tokens=90, min_tokens=10).split(encoded)
        pieces(encoded, spans)
        assert max(encoded.count(span.start, span.end) for span in spans) <= 90
        assert all(span.context is None or span.context[1] <= span.start for span in spans)


@needs_python
def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    encoded = by_bytes("x = " + "[" * 4000 + "]" * 4000, kind="code", language="python")
    assert len(pieces(encoded, Code(max_tokens=8).split(encoded))) > 1


@pytest.mark.skipif(lacks("javascript"), reason="the JavaScript grammar is not installed")
def test_nested_definitions_take_linear_time() -> None:
    """Looking through all enclosing definitions for every unit took 20 seconds here."""
    encoded = by_bytes("function f(){" * 20_000 + "}" * 20_000, kind="code", language="javascript")
    begin = time.process_time()
    spans = Code(max_tokens=64).split(encoded)
    assert time.process_time() - begin < 5
    assert contexts(encoded, spans)[100] == "function f()"


@needs_python
def test_a_signature_longer_than_the_cap_is_cut() -> None:
    text = "def f(" + ", ".join(f"argument_{i}" for i in range(60)) + "):\n" + "    x = 1 + 2\n" * 60
    encoded = by_words(text, kind="code", language="python")
    spans = Code(max_tokens=50).split(encoded)
    kept = [encoded.count(*span.context) for span in spans if span.context]
    assert kept and max(kept) <= 50


def test_a_missing_grammar_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tree_sitter_rust", None)
    encoded = by_words("fn main() {}", kind="code", language="rust")
    with pytest.raises(MissingExtra, match=r'tree-sitter-rust.*pip install "longctx-hf\[code\]"'):
        Code().split(encoded)


def test_missing_tree_sitter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tree_sitter", None)
    with pytest.raises(MissingExtra, match="needs tree-sitter, "):
        Code().split(by_words("x = 1", kind="code", language="python"))


@pytest.mark.parametrize("language", ["", "cobol"])
def test_a_language_without_a_grammar_is_refused_with_the_known_ones(language: str) -> None:
    with pytest.raises(UsageError, match="Known: c, cpp, go.*sentences"):
        Code().split(by_words("MOVE A TO B.", kind="code", language=language))
