"""Shapes against transformers models built on `meta`, and configs that must be refused."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from labkit.errors import LabError
from labkit.models.shapes import CATALOGUE, MODELS, ModelShape, read_config, shape_of
from labkit.training.ledger import random_model

# Totals by instantiating Qwen3ForCausalLM from the published configs; the last is the model card's.
PUBLISHED = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
}
SMALL = {
    "model_type": "qwen3",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}


def write(folder, **changes):
    config = {key: value for key, value in (SMALL | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_parameter_tensor_is_the_one_that_transformers_makes(name):
    shape, model = CATALOGUE[name], random_model(CATALOGUE[name], device="meta")
    mine = sorted(elements for count, elements in shape.tensors().values() for _ in range(count))
    assert mine == sorted(parameter.numel() for parameter in model.parameters())
    assert shape.n_params == sum(mine)
    linears = {name: layer for name, layer in model.model.layers[0].named_modules() if name.endswith("_proj")}
    assert {n.split(".")[-1]: (m.in_features, m.out_features) for n, m in linears.items()} == shape.linears()


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_published_totals(name, total):
    assert shape_of(name).n_params == total


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_parts_make_the_total(name):
    shape = CATALOGUE[name]
    parts = shape.embedding_params() + shape.lm_head_params() + shape.linear_params()
    assert parts + shape.bias_params() + shape.norm_params() == shape.n_params
    outside = shape.embedding_params() + shape.lm_head_params() + shape.hidden_size
    assert shape.n_layers * shape.layer_params() + outside == shape.n_params


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama", "mistral"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_saved_by_transformers(tmp_path, kind, tied):
    sizes = {key: value for key, value in SMALL.items() if key != "model_type"}
    config = AutoConfig.for_model(kind, **(sizes | {"tie_word_embeddings": tied}))
    config.save_pretrained(tmp_path)
    shape = shape_of(str(tmp_path))
    assert (shape.name, shape.architecture) == (tmp_path.name, kind)
    assert shape.n_params == sum(p.numel() for p in random_model(shape, device="meta").parameters())
    assert shape.n_params == sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def test_old_llama_configs_leave_out_key_value_heads_and_head_width(tmp_path):
    shape = shape_of(write(tmp_path, model_type="llama", num_key_value_heads=..., head_dim=...))
    assert (shape.n_kv_heads, shape.head_dim) == (4, 16)


def test_a_hub_id_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    from huggingface_hub import constants, file_download

    snapshot = tmp_path / "models--someone--small" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    write(snapshot)
    refs = tmp_path / "models--someone--small" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40, encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(file_download.constants, "HF_HUB_CACHE", str(tmp_path))
    assert shape_of("someone/small") == ModelShape("someone/small", "qwen3", 96, 64, 128, 2, 4, 2, 32, True, True)
    with pytest.raises(LabError, match="not a Hub id in the local cache"):
        shape_of("someone/other")


def test_the_tiny_model_comes_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.models.shapes.data_folder", lambda: tmp_path)
    with pytest.raises(LabError, match=r"model 'tiny' cannot be read.*No such file"):
        shape_of("tiny")
    (tmp_path / "tiny-qwen3").mkdir()
    write(tmp_path / "tiny-qwen3")
    assert shape_of("tiny").name == "tiny"
    assert shape_of("tiny").qk_norm


@pytest.mark.parametrize(
    ("name", "near"),
    [("qwen3-1.7", "qwen3-1.7b"), ("Qwen/Qwen3-8B", "qwen3-8b"), ("llama-3.1-8B", "llama-3.1-8b"), ("tinny", "tiny")],
)
def test_an_unknown_name_lists_its_neighbours(name, near):
    with pytest.raises(LabError) as error:
        shape_of(name)
    assert repr(name) in str(error.value)
    assert near in error.value.fix.split("known names")[0]
    assert all(known in error.value.fix for known in MODELS)


@pytest.mark.parametrize(
    "name", ["", "nothing like it", "a/b/c", "../x/y", "bad id/with space", "~nobody-here", "x" * 5000, "a\0b"]
)
def test_names_that_resemble_nothing(name):
    with pytest.raises(LabError, match="not a model name of this book"):
        shape_of(name)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"model_type": "gpt2"}, "architecture is not treated"),
        ({"model_type": ...}, "architecture is not treated"),
        ({"model_type": "qwen3_moe"}, "mixture-of-experts"),
        ({"num_local_experts": 8}, "mixture-of-experts"),
        ({"attention_bias": True}, "biases on its linears"),
        ({"model_type": "llama", "mlp_bias": True}, "biases on its linears"),
        ({"hidden_size": ...}, "hidden_size must be a whole number"),
        ({"vocab_size": 0}, "vocab_size must be a whole number"),
        ({"vocab_size": True}, "vocab_size must be a whole number"),
        ({"num_hidden_layers": "28"}, "num_hidden_layers must be a whole number"),
        ({"head_dim": ...}, "head_dim must be a whole number"),
        ({"num_key_value_heads": ...}, "num_key_value_heads must be a whole number"),
        ({"num_key_value_heads": 3}, "must divide the query heads"),
    ],
)
def test_configs_that_are_refused(tmp_path, changes, rule):
    with pytest.raises(LabError, match=rule) as error:
        shape_of(write(tmp_path, **changes))
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(("text", "rule"), [("", "not JSON"), ('{"hidden', "not JSON"), ("[1]", "a JSON object")])
def test_a_corrupt_config(tmp_path, text, rule):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match=rule):
        read_config(tmp_path / "config.json", name="broken")


def test_a_config_that_is_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabError, match="not JSON"):
        shape_of(str(tmp_path))


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(LabError, match="cannot be read") as error:
        shape_of(str(tmp_path))
    assert "qwen3-1.7b" in error.value.fix
