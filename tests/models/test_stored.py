"""Tensors read piece by piece against safetensors and gguf themselves; every way in which a model can be broken."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from labkit.errors import LabError
from labkit.models import stored
from labkit.models.integrity import INDEX, SINGLE
from labkit.models.stored import model_path, stored_tensors
from labkit.paths import data_folder

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def whole(tensor, elements=50):
    pieces = list(tensor.blocks(elements))
    return np.concatenate(pieces, axis=0 if tensor.shape[0] >= tensor.shape[1] else 1)


@pytest.fixture
def sharded(tmp_path):
    """Two shards and their index."""
    parts = [{f"model.layers.{n}.mlp.up_proj.weight": torch.randn(12, 8)} for n in range(2)]
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for part, name in zip(parts, names, strict=True):
        save_file(part, tmp_path / name)
    weight_map = {next(iter(part)): name for part, name in zip(parts, names, strict=True)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


@pytest.fixture
def gguf_file(tmp_path):
    """Q8_0, Q4_1, float16 and float32 matrices, tall and wide, and a vector."""
    path, rng = tmp_path / "model.gguf", np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    for name, shape, kind in (
        ("blk.0.ffn_up.weight", (96, 64), "Q8_0"),
        ("blk.0.ffn_down.weight", (64, 96), "Q4_1"),
        ("blk.1.attn_q.weight", (32, 64), "F16"),
        ("token_embd.weight", (100, 32), "F32"),
    ):
        kind = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(rng.standard_normal(shape).astype("f4"), kind), raw_dtype=kind)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(64, dtype="f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (30, 7), (7, 30)])
def test_safetensors_give_their_numbers(tmp_path, dtype, shape):
    matrix = torch.randn(shape).to(dtype)
    save_file({"first": torch.ones(3), "model.layers.0.mlp.up_proj.weight": matrix}, tmp_path / SINGLE)
    (tensor,) = (tensor for tensor in stored_tensors(tmp_path) if tensor.is_linear)
    assert (tensor.shape, tensor.size_bytes) == (shape, matrix.nbytes)
    assert (whole(tensor) == matrix.float().numpy()).all()


def test_the_books_own_model_is_read_as_safetensors_reads_it():
    expected = load_file(data_folder() / "tiny-qwen3" / SINGLE)
    found = stored_tensors(model_path("tiny")[1])
    assert {tensor.name for tensor in found} == set(expected)
    for tensor in found:
        if len(tensor.shape) == 2:
            assert (whole(tensor, 1000) == expected[tensor.name].float().numpy()).all()
    assert sum(tensor.is_linear for tensor in found) == 4 * 7


@pytest.mark.parametrize("elements", [1, 2000, 10**6])
def test_gguf_gives_what_gguf_dequantizes(gguf_file, elements):
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_file).tensors}
    matrices = [tensor for tensor in stored_tensors(gguf_file) if len(tensor.shape) == 2]
    assert {tensor.kind for tensor in matrices} == {"Q8_0", "Q4_1", "F16", "F32"}
    for tensor in matrices:
        original = reader[tensor.name]
        expected = gguf.quants.dequantize(original.data, original.tensor_type).reshape(tensor.shape)
        assert (whole(tensor, elements) == expected).all()


def test_both_formats_name_modules_alike(gguf_file, sharded):
    names = {tensor.module for tensor in stored_tensors(gguf_file)}
    assert names == {(0, "up_proj"), (0, "down_proj"), (1, "q_proj"), (None, "embed_tokens"), (0, "attn_norm")}
    assert [tensor.module for tensor in stored_tensors(sharded)] == [(0, "up_proj"), (1, "up_proj")]


def test_an_expert_is_not_taken_for_the_layers_own_linear(tmp_path):
    save_file({"model.layers.0.mlp.experts.5.up_proj.weight": torch.ones(4, 4)}, tmp_path / SINGLE)
    (tensor,) = stored_tensors(tmp_path)
    assert (tensor.module, tensor.is_linear) == ((0, "mlp.experts.5.up_proj"), False)


# --- what is broken --------------------------------------------------------------------------------------------------


def refused(path):
    with pytest.raises(LabError) as caught:
        stored_tensors(path)
    return str(caught.value)


def test_nothing_there(tmp_path):
    assert "no such file" in refused(tmp_path / "none")
    assert "holds neither" in refused(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert "neither safetensors nor GGUF" in refused(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_a_pickle_is_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n")
    for path in (tmp_path, tmp_path / name):
        assert "pickle, which can run code" in refused(path)
        assert name in refused(path)


def test_missing_shards_are_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    assert "1 of 2 shards are missing (model-00002-of-00002.safetensors)" in refused(sharded)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index(sharded, text):
    (sharded / INDEX).write_text(text)
    assert "no index of shards" in refused(sharded)


@pytest.mark.parametrize("keep", [0, 5, 20, 300])
def test_a_file_that_is_cut_off(tmp_path, keep):
    save_file({"a": torch.zeros(100, 100)}, tmp_path / SINGLE)
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:keep])
    assert "cut off" in refused(tmp_path) or "not a readable safetensors" in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 30, 200, 8000])
def test_a_gguf_that_is_cut_off(gguf_file, keep):
    gguf_file.write_bytes(gguf_file.read_bytes()[:keep])
    said = refused(gguf_file)
    assert "cut off" in said or "not a whole GGUF" in said


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    save_file({"a": torch.zeros(100, 100)}, tmp_path / SINGLE)
    (tensor,) = stored_tensors(tmp_path)
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:5000])
    with pytest.raises(LabError, match="ends inside a"):
        whole(tensor)


def test_several_gguf_files_need_a_choice(gguf_file):
    shutil.copy(gguf_file, gguf_file.with_name("other.gguf"))
    assert "several GGUF files" in refused(gguf_file.parent)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(4), "for matrices"),
        (torch.zeros(2, 3, 4), "for matrices"),
        (torch.zeros(0, 4), "for matrices"),
        (torch.zeros(4, 4, dtype=torch.uint8), "no plain numbers"),
    ],
)
def test_what_is_no_matrix_of_plain_numbers_is_not_read(tmp_path, value, said):
    save_file({"a": value}, tmp_path / SINGLE)
    (tensor,) = stored_tensors(tmp_path)
    with pytest.raises(LabError, match=said):
        list(tensor.blocks(10))


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_model_is_found_by_name_folder_and_file(sharded):
    assert model_path("tiny")[1] == data_folder() / "tiny-qwen3"
    assert model_path(str(sharded)) == (sharded.name, sharded)
    file = sharded / "model-00001-of-00002.safetensors"
    assert model_path(str(file)) == (file.name, file)


def test_a_cached_hub_id_is_found(tmp_path, monkeypatch):
    import huggingface_hub

    (tmp_path / SINGLE).touch()
    asked = {("some/model", SINGLE): str(tmp_path / SINGLE)}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *key: asked.get(key))
    assert model_path("some/model") == ("some/model", tmp_path)


@pytest.mark.parametrize("name", ["nonsense", "no/such-model-here", "a/b/c"])
def test_an_unknown_model_is_refused_with_the_names(name):
    with pytest.raises(LabError, match=r"smollm2-135m"):
        stored.model_path(name)
