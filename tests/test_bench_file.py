"""The TOML file of a grid: what it means, and that what cannot be meant is named with its table and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from longctx.errors import LongctxError, UsageError
from longctx.pipelines import bench_file, bench_methods

GOOD = """
[grid]
models = ["embedded", "models/small"]
methods = ["selector:bm25", "kv:squeezed:keep=0.25", "drafters:document+ngram",
           "hf:prompt_lookup:12", "hf:assisted:model=../draft",
           "peer:kvpress:ExpectedAttention:ratio=0.25,aware=true", "peer:llama.cpp:gguf=/somewhere/small.gguf"]
budgets = ["1k", 500]
threads = 2
[[needle]]
task = "multikey:distractors=3"
lengths = ["4k", 250]
seeds = [1, 2]
[[suite]]
suite = "loogle"
data = "../data"
sample = 5
"""


def read(folder: Path, text: str) -> bench_file.GridFile:
    path = folder / "table.toml"
    path.write_text(text)
    return bench_file.read(path)


def test_a_grid_says_what_it_means(tmp_path: Path) -> None:
    text = GOOD.replace("multikey:distractors=3", "multikey")
    grid = read(tmp_path, text)
    assert (grid.name, grid.threads, grid.max_new_tokens) == ("table", 2, 64)
    assert grid.models == ("embedded", str(tmp_path / "models/small"))
    assert grid.needles[0].grid.lengths == (4000, 250) and grid.needles[0].grid.seeds == (1, 2)
    assert grid.suites[0] == bench_file.SuiteTask("loogle", tmp_path / "../data", 5, 7)
    assert [(m.name, m.budget) for m in grid.methods] == [
        ("selector:bm25", 1000),
        ("selector:bm25", 500),
        ("kv:squeezed:keep=0.25", None),
        ("drafters:document+ngram", None),
        ("hf:prompt_lookup:12", None),
        ("hf:assisted:model=draft", None),
        ("peer:kvpress:ExpectedAttention:ratio=0.25:aware=true", None),
        ("peer:llama.cpp:gguf=small.gguf", None),
    ]
    options = {method.name: method.options for method in grid.methods}
    assert options["hf:prompt_lookup:12"] == {"tokens": 12, "ngram": 2}
    assert options["hf:assisted:model=draft"] == {"model": str(tmp_path / "../draft")}
    assert options["peer:llama.cpp:gguf=small.gguf"] == {"gguf": "/somewhere/small.gguf"}
    pressed = options["peer:kvpress:ExpectedAttention:ratio=0.25:aware=true"]
    assert pressed == {"press": "ExpectedAttention", "ratio": 0.25, "aware": True}
    said = str([bench_methods.settings(method) for method in grid.methods])
    assert "somewhere" not in said and str(tmp_path) not in said


HEAD, NEEDLE = '[grid]\nmethods = ["hf:full"]\n', '[[needle]]\ntask = "single"\nlengths = ["1k"]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[grid", "not TOML"),
        (NEEDLE, "one table"),
        (HEAD, "nothing is asked"),
        (HEAD + "[[needle]]\ntask = 'single'\n", "lacks lengths"),
        (HEAD + "[[needles]]\ntask = 'single'\n", "Did you mean 'needle'"),
        (HEAD + NEEDLE + "depht = 3\n", "Did you mean 'depths'"),
        (HEAD + NEEDLE + "depths = true\n", "is no count"),
        (HEAD + NEEDLE + "depths = '4x'\n", "is no count"),
        (HEAD + NEEDLE.replace("single", "nothing"), "nothing"),
        (HEAD + NEEDLE + "haystack = ['not-there.txt']\n", "not there"),
        (HEAD + NEEDLE + NEEDLE, "same name"),
        (HEAD + "max_new_tokens = 0\n" + NEEDLE, "at least 1"),
        (HEAD + "threads = -1\n" + NEEDLE, "is no count"),
        (HEAD + "dtype = 'float99'\n" + NEEDLE, "'float99' is not one of auto, float32"),
        (HEAD + "device = 'tpu'\n" + NEEDLE, "'tpu' is not one of auto, cpu"),
        (HEAD + "[[suite]]\nsuite = 'freeform'\ndata = '.'\nsample = 0\n", "sample=0 must be at least 1"),
        (HEAD + "models = [3]\n" + NEEDLE, "models"),
        (HEAD.replace("hf:full", "full") + NEEDLE, "must be written as"),
        (HEAD.replace("hf:full", "hf:fuller") + NEEDLE, "fuller"),
        (HEAD.replace("hf:full", "hf:full:3") + NEEDLE, "no option"),
        (HEAD.replace("hf:full", "hf:assisted") + NEEDLE, "names no assistant"),
        (HEAD.replace("hf:full", "selector:bm25") + NEEDLE, "needs budgets"),
        (HEAD.replace("hf:full", "selector:bm52") + NEEDLE, "bm52"),
        (HEAD.replace("hf:full", "kv:nothing") + NEEDLE, "nothing"),
        (HEAD.replace("hf:full", "drafters:document+nothing") + NEEDLE, "nothing"),
        (HEAD.replace("hf:full", "peer:nobody") + NEEDLE, "Known: infini-retri, kvpress, llama.cpp"),
        (HEAD.replace("hf:full", "peer:kvpress:SnapKV:ratio=much") + NEEDLE, "is no float"),
        (HEAD.replace("hf:full", "peer:kvpress:aware=maybe") + NEEDLE, "neither true nor false"),
        (HEAD.replace('"hf:full"', '"hf:full", "hf:full"') + NEEDLE, "named twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(tmp_path, text)


def test_a_file_of_an_option_is_looked_for_before_anything_runs(tmp_path: Path) -> None:
    for spec, said in (
        ("hf:assisted:model=draft", "model=.*draft is not there"),
        ("peer:llama.cpp:gguf=a.gguf", "gguf"),
    ):
        chosen = bench_methods.methods([spec], (), tmp_path)
        with pytest.raises(UsageError, match=said):
            bench_methods.check_files(chosen)
        (tmp_path / spec.partition("=")[2]).touch()
        bench_methods.check_files(chosen)


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(LongctxError, match="cannot be read"):
        bench_file.read(tmp_path / "none.toml")
