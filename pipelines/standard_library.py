"""Texts that every Python has: its language reference, then what its standard library says of itself, then its sources.

Owns their order. Every text comes once: the sources come without their documentation strings.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from . import python_reference

_NOT_TEXT = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "_bundled"}


def texts() -> Iterator[str]:
    """About twelve million characters, the same for every run of one Python."""
    yield python_reference.text()
    given = {""}  # a few modules have the same text
    for part in (0, 1):
        for source, tree in _modules():
            text = _apart(source, tree)[part].strip()
            if text not in given:
                given.add(text)
                yield text


def _modules() -> Iterator[tuple[str, ast.Module]]:
    """The modules of the standard library in the order of their names and paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    top = [path for name in sorted(sys.stdlib_module_names) for path in (root / f"{name}.py", root / name)]
    for path in top:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.is_file() else []:
            if _NOT_TEXT & set(file.relative_to(root).parts):
                continue
            try:
                source = file.read_text(encoding="utf-8")
                tree = ast.parse(source)
            except (UnicodeDecodeError, SyntaxError):  # a file that shows what such a file does
                continue
            if tree.body:
                yield source, tree


def _apart(source: str, tree: ast.Module) -> tuple[str, str]:
    """The documentation strings of a module, and its source without the lines they take."""
    strings: list[str] = []
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            said = ast.get_docstring(node)
            if said and isinstance(node.body[0], ast.Expr):
                strings.append(said.strip())
                first, last = node.body[0].lineno - 1, node.body[0].end_lineno or node.body[0].lineno
                lines[first:last] = [""] * (last - first)
    return "\n\n".join(strings), "".join(lines)
