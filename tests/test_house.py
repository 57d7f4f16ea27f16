"""The rules of the house, read off the syntax trees: who may import whom, sizes, plug-ins, public names, README."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import longctx
from longctx import plugins

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "longctx"
PIPELINES = ROOT / "pipelines"
PEERS = PIPELINES / "peers"  # run by the Python of other environments

# Room or module -> what it may import of longctx besides itself. Imports go one way: down this table.
NOUNS = {"types", "errors", "jsonable"}
VERBS = NOUNS | {"drafts", "keys", "protocols", "options", "values"}
METHODS = VERBS | {"plugins", "kernels", "segments", "suffixes"}
ROOMS = {"segmenters", "kv", "drafters", "decoding", "store", "documents"}
COMPILED = {
    "calibration", "cite", "compiled", "compiling", "cut", "embeddings", "indexing", "latest", "lexical", "memory",
    "overview", "pieces", "questions", "resources", "segments", "storing", "summaries", "supplies", "synthetic",
}  # fmt: skip
WIRING = METHODS | ROOMS | COMPILED | {"backend", "copied", "generated", "stacks"}
MAY_IMPORT = {
    "errors": set(),
    "jsonable": set(),
    "types": {"errors", "jsonable"},
    "drafts": NOUNS | {"suffixes"},
    "generated": NOUNS | {"drafts"},
    "promises": NOUNS | {"backend"},
    "keys": set(),
    "options": NOUNS,
    "protocols": NOUNS | {"drafts", "keys", "options"},
    "plugins": NOUNS,
    "kernels": NOUNS,
    "synthetic": NOUNS,
    "calibration": VERBS | {"synthetic"},
    "cut": NOUNS,
    "segments": NOUNS,
    "suffixes": NOUNS,
    "questions": NOUNS,
    "values": NOUNS,
    "console": VERBS,
    "cite": NOUNS | {"lexical", "segmenters"},
    "resources": VERBS | {"backend", "calibration"},  # wiring: makes what the reader hands on
    "lexical": NOUNS,
    "latest": {"types"},
    "memory": set(),
    "supplies": VERBS,
    "overview": VERBS | {"supplies"},
    "pieces": NOUNS,
    "embeddings": VERBS | {"pieces", "supplies"},
    "compiled": VERBS | {"embeddings", "latest", "lexical", "memory", "overview", "pieces", "suffixes", "supplies"},
    "summaries": VERBS | {"backend", "overview", "store"},  # wiring: as storing
    # wiring: a reader's store
    "storing": VERBS | {"backend", "compiled", "console", "filing", "overview", "store", "summaries", ""},
    "filing": VERBS | {"compiled", "embeddings", "store", "suffixes"},
    "pace": VERBS | {"decoding"},
    "compiling": VERBS | {"backend", "compiled", "indexing", "memory", "resources", "segments", "store", "storing"},
    "indexing": VERBS,
    "origins": NOUNS | {"backend", "cut", "generated", ""},
    "room": NOUNS | {"values"},
    "saying": set(),
    "copied": NOUNS | {"backend", "compiled", "generated", "indexing", "suffixes"},
    "selecting": VERBS | {"compiled", "cut", "plugins", "questions"},
    "streaming": VERBS,
    "backend": VERBS | {"kernels", "likeliest"},
    "likeliest": set(),
    "segmenters": METHODS,
    "kv": METHODS | {"contexts", "readings"},  # its __init__ names the door lazily
    "drafters": METHODS,
    "decoding": METHODS | {"generated", "likeliest"},
    "store": VERBS,
    "documents": VERBS,
    "contexts": WIRING | {"console"},
    "readings": WIRING | {"console", "contexts"},
    "last_context": WIRING | {"contexts"},
    "answering": WIRING | {"contexts", "generation", "saying"},
    "stacks": VERBS | {"backend", "plugins"},
    "generation": WIRING | {"pace", "promises"},
    "reader": WIRING
    | {"answering", "console", "contexts", "generation", "indexing", "last_context", "room", "origins", "promises"}
    | {"selecting", "streaming"},
    "plotting": NOUNS,
    "commands": WIRING | {"console", "contexts", "generation", "plotting", "reader", "room", ""},
    "cli": NOUNS | {"commands"},
    "__main__": {"cli"},
    "pipelines": {"", "types", "errors", "plugins", "kv"},  # longctx.kv is a door
    "": WIRING | {"reader", "contexts", "generation"},  # longctx/__init__.py, for type checkers only
}
ONLY_BACKEND = {"transformers", "sentence_transformers", "tokenizers", "gguf", "accelerate"}
FORBIDDEN = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
MOST_LINES = {"longctx": 300, "pipelines": 400}
HOWS = ("skip", "normal")  # mypy's words for a library's modules
LAZY_ROOMS = {"", "kv"}  # rooms whose __init__ names things lazily; all others hold a docstring


def modules() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *PIPELINES.rglob("*.py")])


def each_module() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    if PIPELINES in path.parents:
        return "pipelines"
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules a file imports, at any depth; ``from a import b`` counts as ``a.b``."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                base = PIPELINES if PIPELINES in path.parents else PACKAGE
                parents = ("longctx", "pipelines") if base is PIPELINES else ("longctx",)
                own = (*parents, *path.relative_to(base).parent.parts)
                start = ".".join(filter(None, (*own[: len(own) - node.level + 1], start)))
            yield from (f"{start}.{alias.name}" for alias in node.names)


def room_imported(name: str) -> str:
    """The room that ``longctx.…`` names; a public name taken from longctx itself is room ''."""
    first = (name.split(".") + [""])[1]
    known = {*MAY_IMPORT} | {path.stem for path in PACKAGE.iterdir()}
    return first if first in known else ""


@each_module()
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    assert room in MAY_IMPORT, f"{path} is a new room: say in MAY_IMPORT where it stands"
    ours = {room_imported(name) for name in imported(path) if name.split(".")[0] == "longctx"}
    assert ours <= MAY_IMPORT[room] | {room}, f"{room} must not import {sorted(ours - MAY_IMPORT[room] - {room})}"


@each_module()
def test_a_private_name_stays_in_its_module(path: Path) -> None:
    """A module whose own name begins with an underscore is no plug-in of its room; that is another matter."""
    for name in imported(path):
        module, _, last = name.removeprefix("longctx.").rpartition(".")
        file = f"{module.replace('.', '/')}.py"
        if name.startswith("longctx.") and last.startswith("_"):
            assert not any((base / file).is_file() for base in (PACKAGE, ROOT)), f"{path} takes {name}"


@each_module()
def test_only_the_backend_knows_the_model_libraries_and_nobody_unpickles(path: Path) -> None:
    outside = {name.split(".")[0] for name in imported(path)}
    assert not outside & FORBIDDEN
    if room_of(path) != "backend" and path.parent != PEERS:
        assert not outside & ONLY_BACKEND


@pytest.mark.parametrize("path", sorted(PEERS.glob("*.py")), ids=lambda path: path.stem)
def test_peers_run_without_longctx(path: Path) -> None:
    """Their Python has another environment: they know one another and nothing else of ours, and load nothing early."""
    own = {name for name in imported(path) if name.split(".")[0] == "longctx"}
    assert all(name.startswith("longctx.pipelines.peers.") for name in own)
    early = {alias.name for node in tree_of(path).body if isinstance(node, ast.Import) for alias in node.names}
    assert early <= sys.stdlib_module_names


@each_module()
def test_modules_are_short_and_open_by_saying_what_they_own(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    most = MOST_LINES["pipelines" if room_of(path) == "pipelines" else "longctx"]
    assert lines <= most, f"{lines} lines, at most {most}"
    assert ast.get_docstring(tree_of(path)), "no docstring"


@each_module()
def test_no_handler_catches_everything_and_remote_code_stays_off(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {kind.id for kind in caught if isinstance(kind, ast.Name)}
            assert node.type is not None and not names & {"Exception", "BaseException"}, f"line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant) and node.value.value is False, f"line {node.lineno}"


@pytest.mark.parametrize("init", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_rooms_hold_only_a_docstring(init: Path) -> None:
    if init.parent.relative_to(PACKAGE).as_posix() in LAZY_ROOMS | {"."}:
        return
    body = tree_of(init).body
    assert len(body) == 1 and ast.get_docstring(tree_of(init)), f"{init} holds code"


@pytest.mark.parametrize(("room", "name"), [(room, name) for room in plugins.ROOMS for name in plugins.names(room)])
def test_every_plugin_ends_in_its_class_and_has_its_test_file(room: str, name: str) -> None:
    where = Path(plugins.ROOMS[room])
    path = (ROOT if where.parts[0] == "pipelines" else PACKAGE) / where / f"{name}.py"
    last = tree_of(path).body[-1]
    assert isinstance(last, ast.Assign) and [ast.unparse(target) for target in last.targets] == ["PLUGIN"]
    test = ROOT / "tests" / plugins.ROOMS[room].split("/")[0] / f"test_{name}.py"
    assert test.is_file(), f"no {test.relative_to(ROOT)}"


def test_the_listed_packages_are_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {".".join(init.parent.relative_to(ROOT).parts) for init in PACKAGE.rglob("__init__.py")}
    found |= {".".join(("longctx", *init.parent.relative_to(ROOT).parts)) for init in PIPELINES.rglob("__init__.py")}
    assert settings["packages"] == sorted(found)


def test_types_of_all_that_is_imported_are_read() -> None:
    """What mypy skips of other libraries, to take a third of the time, would be of any type to a module of ours."""
    said = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["overrides"]
    of = {how: [each for one in said if one.get("follow_imports") == how for each in one["module"]] for how in HOWS}
    skipped, read = (tuple(each.removesuffix("*") for each in of[how] if each.endswith(".*")) for how in HOWS)
    names = {f"{name}." for path in modules() for name in imported(path)}
    assert {name for name in names if name.startswith(skipped) and not name.startswith(read)} == set()
    assert skipped and read


def test_the_rooms_of_public_names_come_with_the_package() -> None:
    code = "import longctx, sys; print('torch' in sys.modules, longctx.kv.__name__, 'kv' in dir(longctx))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "longctx.kv", "True"]


def test_public_names_are_sorted_and_each_can_be_had() -> None:
    assert longctx.__all__ == sorted(longctx.__all__)
    assert set(longctx.__all__) == set(longctx._HOMES)
    assert {"Answer", "Citation", "Document", "Event", "Reader", "Selection", "read"} <= set(longctx.__all__)
    for name in longctx.__all__:
        assert getattr(longctx, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = longctx.nonsense


@pytest.mark.parametrize("module", ["longctx", "longctx.types", "longctx.protocols", "longctx.plugins", "longctx.cli"])
def test_importing_the_outside_of_the_house_loads_no_model_library(module: str) -> None:
    heavy = {"torch", "transformers", "sentence_transformers", "sklearn"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stderr


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """The page's Python blocks that can run offline: (line, code). One that loads from a hub cannot."""
    text = page.read_text(encoding="utf-8")
    found = [
        (text.count("\n", 0, at.start()) + 1, at[1]) for at in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    ]
    hub = re.compile(r"[\"'][\w.-]+/[\w.-]+[\"']")
    return [(line, code) for line, code in found if not hub.search(code)]


def run_blocks(page: Path) -> None:
    """Blocks run in order and share their names, as a reader would type them."""
    blocks = python_blocks(page)
    assert blocks, f"{page.name} shows no Python that can be tried"
    scope: dict[str, object] = {"__name__": "__page__"}
    for line, code in blocks:
        exec(compile("\n" * line + code, page.name, "exec"), scope)


def test_the_readme_runs_offline(embedded_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(ROOT / "README.md")


GUIDE = [page for page in sorted((ROOT / "docs" / "guide").glob("*.md")) if python_blocks(page)]


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_the_guide_runs_offline(
    page: Path, embedded_reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reader serves all pages: what they call is real, but the model is loaded once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(longctx.Reader, "from_pretrained", lambda name: embedded_reader)
    run_blocks(page)
