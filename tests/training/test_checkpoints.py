"""Saved, found again, merged: the bytes on the disk, and what happens where something is missing."""

import json
import shutil

import pytest
import torch
from torch.testing import assert_close

from labkit.errors import LabError
from labkit.models.shapes import shape_of
from labkit.training.checkpoints import merge, reload, save_trained, saved_bytes
from labkit.training.run import adjusted, run_sft

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, weights, profile, rows):
    out = tmp_path_factory.mktemp("runs") / "run"
    run_sft(profile, out, weights=weights, rows=(rows, rows[:3]), bar=False)
    return out


def test_the_size_asked_of_the_disk_is_the_size_written(finished, weights, profile):
    asked = saved_bytes(shape_of(str(weights.folder)), profile)
    written = (finished / "adapter" / "adapter_model.safetensors").stat().st_size
    assert asked < written < asked + 20_000  # the header


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 4)])
def test_full_fine_tuning_saves_every_weight(weights, profile, dtype, size):
    shape = shape_of(str(weights.folder))
    assert saved_bytes(shape, adjusted(profile, kind="full", dtype=dtype)) == size * shape.n_params


def test_the_saved_adapter_names_no_folder_of_this_machine(finished):
    config = json.loads((finished / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "random"
    for name in ("record.json", "samples.md"):
        assert "/tmp" not in (finished / name).read_text()


def test_saving_asks_nothing_of_the_hub(finished, weights, profile, tmp_path, monkeypatch):
    model, _ = reload(finished, weights=weights)
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *_, **__: pytest.fail("asked"))
    assert (save_trained(model, profile, tmp_path) / "adapter_model.safetensors").is_file()


def test_the_saved_adapter_is_float32_whatever_trl_likes(finished):
    from safetensors.torch import load_file

    tensors = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32} and len(tensors) == 2 * 7 * 2


def test_the_merged_model_answers_as_the_reloaded_one_and_keeps_the_template(finished, weights, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merge(finished, tmp_path / "merged", weights=weights)
    model, tokenizer = reload(finished, weights=weights)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        assert_close(plain(IDS).logits, model(IDS).logits, atol=2e-4, rtol=1e-4)
    again = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert (again.chat_template, again.eos_token) == (tokenizer.chat_template, "<|im_end|>")
    assert plain.generation_config.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id]


def test_a_merge_never_overwrites_and_knows_its_types(finished, weights, tmp_path):
    with pytest.raises(LabError, match="finished work is kept"):
        merge(finished, tmp_path, weights=weights)
    with pytest.raises(LabError, match="dtype='int8'"):
        merge(finished, tmp_path / "merged", weights=weights, dtype="int8")
    assert list(tmp_path.iterdir()) == []


def test_a_pickled_adapter_is_refused_and_never_opened(finished, weights, tmp_path, pickled):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "run" / "adapter" / "adapter_model.bin").write_bytes(pickled.bomb)
    with pytest.raises(LabError, match=r"adapter_model\.bin is a pickle, which can run code"):
        reload(tmp_path / "run", weights=weights)
    assert not pickled.mark.exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for use in (reload, lambda folder: merge(folder, tmp_path / "merged")):
        with pytest.raises(LabError, match="not the record of a run"):
            use(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_adapter_is_refused(finished, weights, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    file = run / "adapter" / "adapter_model.safetensors"
    if damage == "missing":
        shutil.rmtree(file.parent)
    else:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(LabError, match="adapter cannot be read"):
        reload(run, weights=weights)
