"""Folders that are no model are refused with their reason; models that are one are recognised by content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from longctx.backend.model import fingerprint, from_pretrained, model_fingerprint, window, wrap
from longctx.errors import ModelError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "model", num_hidden_layers=2)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_is_loaded_in_the_dtype_of_its_weights_or_the_one_asked_for(folder: Path) -> None:
    loaded = from_pretrained(folder, device="cpu")
    assert loaded.model.dtype == torch.float32 and not loaded.model.training and loaded.window == 4096
    assert loaded.name == str(folder) and loaded.device.type == "cpu"
    for dtype in ("bfloat16", torch.bfloat16):
        assert from_pretrained(str(folder), dtype=dtype, device="cpu").model.dtype == torch.bfloat16


def test_a_folder_named_from_home_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert from_pretrained("~/model", device="cpu").window == 4096


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def config_of_nothing(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{not json")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def weights_of_text(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def lacking_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_shapes(folder: Path) -> None:
    edit_config(folder, intermediate_size=48)


def remote_code(folder: Path) -> None:
    edit_config(folder, model_type="my_own", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    (folder / "evil.py").write_text("raise SystemExit('this file was run')\n")


def unknown_type(folder: Path) -> None:
    edit_config(folder, model_type="my_own")


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": 7}')


def an_encoder(folder: Path) -> None:
    edit_config(folder, model_type="vit", architectures=["ViTModel"])


BAD: dict[Callable[[Path], None], str] = {
    no_config: "has no config.json",
    config_of_nothing: "cannot be loaded",
    broken_config: "cannot be loaded",
    pickled: r"pickled weights only .*save_pretrained",
    no_weights: "cannot be loaded",
    cut_weights: "cannot be loaded",
    weights_of_text: "cannot be loaded",
    lacking_weights: r"lacks 1 .*model\.layers\.1\.mlp\.up_proj\.weight",
    other_shapes: "cannot be loaded",
    remote_code: "never run",
    unknown_type: "cannot be loaded|never run",
    no_tokenizer: "cannot be loaded",
    broken_tokenizer: "cannot be loaded",
    an_encoder: "cannot be loaded",
}


@pytest.mark.filterwarnings("ignore")  # transformers warns of some of these before it fails
@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_what_is_no_usable_model_is_refused_with_its_name_and_reason(
    spoil: Callable[[Path], None], folder: Path
) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=BAD[spoil]) as caught:
        from_pretrained(folder, device="cpu")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_and_a_name_that_nobody_knows_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file. Name the folder"):
        from_pretrained(folder / "model.safetensors")
    for name in ("no/such-model-anywhere", str(folder.parent / "absent")):
        with pytest.raises(ModelError, match=f"^{name}"):
            from_pretrained(name)


def test_unknown_dtypes_and_devices_name_the_known_ones(folder: Path) -> None:
    for dtype in ("float8", "fp16", "", None, 16, ["float32"]):
        with pytest.raises(UsageError, match="float32, bfloat16, float16"):
            from_pretrained(folder, dtype=dtype)  # type: ignore[arg-type]
    for device in ("gpu", "cuda:x", "", None, [0]):
        with pytest.raises(UsageError, match="auto, cpu, cuda"):
            from_pretrained(folder, device=device)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error_and_no_silent_cpu(folder: Path) -> None:
    with pytest.raises(ModelError, match="cannot be moved to cuda.*device='cpu'"):
        from_pretrained(folder, device="cuda")


def test_only_models_and_tokenizers_can_be_wrapped() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    loaded = wrap(model, tokenizer)
    assert loaded.model is model and loaded.tokenizer is tokenizer and loaded.window == 4096
    with pytest.raises(ModelError, match="str is not a Hugging Face model"):
        wrap("llama", tokenizer)
    with pytest.raises(ModelError, match="NoneType is not a Hugging Face tokenizer"):
        wrap(model, None)


def test_the_window_is_what_the_configuration_states_else_the_tokenizer() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer(model_max_length=77)
    assert window(model, tokenizer) == 4096
    model.config.max_position_embeddings = 0
    assert window(model, tokenizer) == 77
    with pytest.raises(ModelError, match="states no window"):
        window(model, tiny.tokenizer())


def test_equal_models_have_one_fingerprint_and_any_difference_another(folder: Path) -> None:
    def of(model: Any, tokenizer: Any = None) -> str:
        return fingerprint(wrap(model, tokenizer or tiny.tokenizer("system")))

    own = of(tiny.model(num_hidden_layers=2))
    assert (
        own
        == of(tiny.model(num_hidden_layers=2, attention="sdpa"))
        == fingerprint(from_pretrained(folder, device="cpu"))
    )
    changed = tiny.model(num_hidden_layers=2)
    with torch.no_grad():
        changed.model.layers[1].mlp.down_proj.weight.mul_(1.01)
    others = {
        of(changed),
        of(tiny.model(num_hidden_layers=2, seed=1)),
        of(tiny.model(num_hidden_layers=2, dtype=torch.bfloat16)),
        of(tiny.model(num_hidden_layers=2, rms_norm_eps=1e-3)),
        of(tiny.model(num_hidden_layers=2), tiny.tokenizer("no_system")),
        of(tiny.model("qwen2", num_hidden_layers=2)),
    }
    assert len(others) == 6 and own not in others


def test_what_a_run_sets_for_padding_and_results_is_no_other_model_and_another_adapter_is() -> None:
    """Keys that were made while one adapter was at work say nothing of the model with another one."""
    model = tiny.model(num_hidden_layers=2)
    own = model_fingerprint(model)
    model.config.pad_token_id, model.config.output_hidden_states = 7, True
    assert model_fingerprint(model) == own
    adapted: Any = model.model.layers[0].self_attn.q_proj
    found = [own]
    for changes in ({"_active_adapter": ["a"]}, {"_active_adapter": ["b"]}, {"_disable_adapters": True}):
        for name, value in changes.items():  # where peft's layers say what is at work
            setattr(adapted, name, value)
        found.append(model_fingerprint(model))
    assert len(set(found)) == 4


@pytest.mark.parametrize("name", ["/no/such/folder", "~/no-such-model", "./models/none", "a/b/c"])
def test_a_path_to_nothing_is_named_as_a_missing_folder(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        from_pretrained(name)
