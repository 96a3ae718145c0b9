"""Profiles against what they are for, torch's view of a GPU (faked) and the lecture's own numbers."""

import sys
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import pytest

from labkit.errors import LabError
from labkit.models.profiles import PROFILES, compute_dtype, current_profile, limit_threads, profile_of, settled_method
from labkit.models.shapes import CATALOGUE


def fake_torch(monkeypatch, *, cuda: bool, capability=(8, 0)):
    gpu = SimpleNamespace(
        is_available=lambda: cuda,
        get_device_capability=lambda: capability,
        is_bf16_supported=lambda: True,  # what a T4 says
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=gpu))


def test_there_are_three_and_each_knows_its_name():
    assert list(PROFILES) == ["tiny", "laptop", "gpu"]
    assert all(profile.name == name for name, profile in PROFILES.items())
    assert all(profile.model in CATALOGUE for profile in PROFILES.values() if profile.hub_id)


def test_a_profile_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        PROFILES["tiny"].steps = 1


def test_the_gpu_profile_is_the_lectures():
    gpu = PROFILES["gpu"]
    assert (gpu.hub_id, gpu.modelscope_id) == ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-1.7B-Base")
    assert (gpu.method.kind, gpu.method.rank, gpu.method.alpha, gpu.method.dropout) == ("qlora", 32, 64, 0.05)
    assert gpu.rows_per_step == 16
    assert (gpu.step.batch, gpu.step.seq_len) == (4, 1024)  # accumulation repeats the step, it does not widen it


def test_every_profile_leaves_room_to_compare_ranks_and_seeds():
    for profile in PROFILES.values():
        assert profile.method.rank in profile.ranks
        assert len(set(profile.ranks)) == len(profile.ranks) >= 3
        assert len(set(profile.seeds)) == len(profile.seeds) >= 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("batch", True),
        ("batch", -1),
        ("accumulation", 0),
        ("train_rows", 0),
        ("eval_rows", None),
        ("seq_len", 1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", 2.0),
        ("language", "fr"),
        ("dtype", "int8"),
        ("ranks", (8, 0)),
    ],
)
def test_values_out_of_range_are_refused_and_echoed(field, value):
    with pytest.raises(LabError) as caught:
        replace(PROFILES["tiny"], **{field: value})
    assert field in caught.value.given
    assert caught.value.fix


@pytest.mark.parametrize("field", ["ranks", "seeds"])
def test_an_ablation_needs_something_to_compare(field):
    with pytest.raises(LabError, match="at least one"):
        replace(PROFILES["tiny"], **{field: ()})


def test_an_unknown_profile_is_refused_with_the_three_names(monkeypatch):
    monkeypatch.setenv("LABKIT_PROFILE", "gpuu")
    with pytest.raises(LabError, match="tiny, laptop, gpu") as caught:
        current_profile()
    assert "gpuu" in caught.value.given
    assert "to gpu" in caught.value.fix


def test_a_name_wins_over_the_environment_and_the_environment_over_the_machine(monkeypatch):
    fake_torch(monkeypatch, cuda=True)
    monkeypatch.setenv("LABKIT_PROFILE", "laptop")
    assert current_profile("tiny") is PROFILES["tiny"]
    assert current_profile() is PROFILES["laptop"]
    monkeypatch.setenv("LABKIT_PROFILE", "  ")
    assert current_profile() is PROFILES["gpu"]


@pytest.mark.parametrize(("cuda", "name"), [(True, "gpu"), (False, "tiny")])
def test_without_a_choice_the_machine_decides(monkeypatch, cuda, name):
    fake_torch(monkeypatch, cuda=cuda)
    monkeypatch.delenv("LABKIT_PROFILE", raising=False)
    assert current_profile().name == name


def test_without_torch_the_profile_is_tiny(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch now raises ImportError
    monkeypatch.delenv("LABKIT_PROFILE", raising=False)
    assert current_profile().name == "tiny"
    assert compute_dtype(PROFILES["gpu"]) == "float32"


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16"), ((8, 9), "bfloat16"), ((12, 0), "bfloat16")],
)
def test_only_gpus_with_bfloat16_units_compute_in_it(monkeypatch, capability, dtype):
    fake_torch(monkeypatch, cuda=True, capability=capability)
    assert compute_dtype(PROFILES["gpu"]) == dtype
    assert settled_method(PROFILES["gpu"]).dtype == dtype


def test_a_dtype_that_is_named_is_kept_on_every_machine(monkeypatch):
    fake_torch(monkeypatch, cuda=True)
    assert compute_dtype(PROFILES["laptop"]) == "float32"
    assert compute_dtype(replace(PROFILES["gpu"], dtype="float16")) == "float16"


def test_settling_the_dtype_changes_nothing_else():
    for profile in PROFILES.values():
        assert replace(settled_method(profile), dtype=profile.method.dtype) == profile.method


def test_torch_knows_every_dtype_that_a_profile_can_settle_on():
    import torch

    for profile in PROFILES.values():
        assert isinstance(getattr(torch, compute_dtype(profile)), torch.dtype)


def test_a_profile_is_found_by_name():
    assert profile_of("laptop") is PROFILES["laptop"]


def test_the_tiny_model_computes_with_one_thread_unless_told_otherwise(monkeypatch):
    import torch

    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    limit_threads(PROFILES["tiny"])
    monkeypatch.delenv("OMP_NUM_THREADS")
    limit_threads(PROFILES["laptop"])
    assert chosen == []
    limit_threads(PROFILES["tiny"])
    assert chosen == [1]
