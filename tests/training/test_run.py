"""A whole run on a random tiny model: what it writes, what it refuses, and what it keeps when something breaks."""

import dataclasses
import json
import subprocess
import sys
import types

import pytest
import torch

from labkit.errors import LabError
from labkit.models.methods import Method
from labkit.models.profiles import PROFILES
from labkit.training.record import read_record
from labkit.training.run import adjusted, rows_of, run_sft

GPU = PROFILES["gpu"]


@pytest.fixture
def sft(profile, weights, rows, tmp_path):
    """``sft(**arguments)``: a run of three steps into tmp_path/run."""

    def one(out="run", **arguments):
        defaults = {"weights": weights, "rows": (rows, rows[:6]), "bar": False}
        return run_sft(profile, tmp_path / out, **(defaults | arguments))

    return one


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_run_writes_adapter_record_and_samples_and_nothing_beside(sft, tmp_path):
    record = sft()
    files = [name for name in everything_in(tmp_path) if not name.endswith("README.md")]
    assert files == [
        "run",
        "run/adapter",
        "run/adapter/adapter_config.json",
        "run/adapter/adapter_model.safetensors",
        "run/record.json",
        "run/samples.md",
    ]
    assert read_record(tmp_path / "run").as_dict() == json.loads(json.dumps(record.as_dict()))


def test_the_record_says_what_was_run(sft, rows, tokenizer):
    from labkit.training.audit import token_counts

    record = sft(rank=2, steps=6, seed=3, dropout=0.0)
    profile = record.profile
    assert (profile.method.rank, profile.method.alpha, profile.steps, profile.method.dtype) == (2, 4, 6, "float32")
    assert [record.settings[name] for name in ("seed", "train_rows", "source")] == [3, 24, "folder"]
    assert [point["step"] for point in record.curve] == [1, 2, 3, 4, 5, 6]
    assert record.trained_tokens == sum(token_counts(rows, tokenizer))  # six steps of four rows: every row once
    assert set(record.seconds) == {"load", "before", "train", "after", "total"}
    assert record.seconds["total"] >= sum(value for name, value in record.seconds.items() if name != "total") - 0.1
    assert record.tokens_per_s >= record.trained_tokens / record.seconds["train"]  # setting up is not training
    assert list(record.peak_memory) == ["process_peak_rss_bytes"] or torch.cuda.is_available()
    assert record.before["loss_tokens"] == record.after["loss_tokens"] > 0
    assert record.before["follow"]["rows"] == 6 == len(record.samples)
    assert record.error is None and record.date.endswith("+00:00")


def test_training_lowers_the_heldout_loss(sft):
    record = sft(steps=30)
    assert record.after["heldout_loss"] < 0.9 * record.before["heldout_loss"]


def test_the_same_seed_gives_the_same_run(sft):
    first, second, other = sft("a", seed=1), sft("b", seed=1), sft("c", seed=2)
    assert first.curve == second.curve != other.curve
    assert first.after == second.after and first.samples == second.samples


def test_every_phase_and_step_is_told(sft):
    told = []
    record = sft(on_event=lambda name, event: told.append((name, event)))
    assert [event["name"] for name, event in told if name == "phase"] == ["load", "before", "train", "after"]
    assert [event for name, event in told if name == "step"] == record.curve
    assert dict(told)["before"] == record.before and dict(told)["after"] == record.after


@pytest.mark.parametrize("kind", ["full", "lora", "qlora", "dora", "qdora"])
def test_every_method_trains_and_is_found_again(sft, weights, tmp_path, rows, kind):
    from labkit.training.checkpoints import reload
    from labkit.training.evaluate import heldout_loss

    record = sft(kind=kind, dropout=0.0, learning_rate=1e-3)
    model, tokenizer = reload(tmp_path / "run", weights=weights)
    assert heldout_loss(model, tokenizer, rows[:6], batch_size=16)[0] == record.after["heldout_loss"]


def test_finished_work_is_never_overwritten(sft, tmp_path):
    sft()
    before = (tmp_path / "run" / "record.json").read_bytes()
    with pytest.raises(LabError, match="finished work is kept"):
        sft()
    assert (tmp_path / "run" / "record.json").read_bytes() == before


def test_a_full_disk_is_told_before_the_model_is_loaded(sft, monkeypatch, tmp_path):
    monkeypatch.setattr("labkit.training.draft.shutil.disk_usage", lambda _: types.SimpleNamespace(free=10))
    told = []
    with pytest.raises(LabError, match="larger disk"):
        sft(on_event=lambda *event: told.append(event))
    assert told == [] and everything_in(tmp_path) == []


def test_an_error_before_the_first_checkpoint_leaves_nothing(sft, tmp_path):
    def stop(name, event):
        if name == "step":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft(on_event=stop)
    assert everything_in(tmp_path) == []


def test_the_adapter_outlives_a_failed_evaluation(sft, weights, tmp_path, monkeypatch):
    from labkit.training.checkpoints import reload

    calls = []

    def fail_second(*_, **__):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no memory left")
        return 1.0, 1

    monkeypatch.setattr("labkit.training.evaluate.heldout_loss", fail_second)
    with pytest.raises(RuntimeError, match="no memory left"):
        sft()
    record = read_record(tmp_path / "run")
    assert record.after is None and record.error == "RuntimeError: no memory left"
    assert record.before["heldout_loss"] == 1.0 and len(record.curve) == 3
    assert reload(tmp_path / "run", weights=weights)[0].peft_config["default"].r == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"alpha": -1}, "alpha=-1"),
        ({"steps": 0}, "steps=0"),
        ({"batch": 0}, "batch=0"),
        ({"learning_rate": -1e-4}, "learning_rate=-0.0001"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"targets": ("w_proj",)}, "w_proj"),
        ({"kind": "lorra"}, "lorra"),
        ({"rnak": 8}, "no setting of a run has this name"),
        ({"kind": "spectrum"}, "none is selected"),
        ({"modules": ("5.q_proj",)}, "layers 0 to 1"),
        ({"layers": (0, 7)}, "layers 0 to 1"),
        ({"seq_len": 4}, "longer than seq_len=4"),
        ({"rows": ([], [])}, "0 training rows"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(sft, tmp_path, change, message):
    with pytest.raises(LabError, match=message):
        sft(**change)
    assert everything_in(tmp_path) == []


def test_an_unknown_profile_is_refused(tmp_path):
    with pytest.raises(LabError, match="laptopp"):
        run_sft("laptopp", tmp_path / "run")


def test_missing_data_is_refused(profile, weights, tmp_path):
    elsewhere = dataclasses.replace(profile, data=str(tmp_path / "no.jsonl"))
    with pytest.raises(LabError, match=r"no\.jsonl"):
        run_sft(elsewhere, tmp_path / "run", weights=weights)


def test_changes_reach_the_profile_or_its_method():
    changed = adjusted(GPU, steps=7, rank=8, targets=("q_proj",), learning_rate=1e-3)
    assert (changed.steps, changed.learning_rate, changed.method.targets) == (7, 1e-3, ("q_proj",))
    assert changed.method.scale == GPU.method.scale and adjusted(GPU, rank=8, alpha=8).method.scale == 1
    assert adjusted(GPU, dtype="float16").dtype == "float16"
    assert adjusted(GPU, method=Method(kind="lora", rank=4)).method.kind == "lora"
    assert adjusted(GPU) == GPU


@pytest.mark.parametrize("name", list(PROFILES))
def test_the_profiles_rows_are_there_always_the_same_and_in_its_language(name):
    profile = PROFILES[name]
    for split, limit in (("train", profile.train_rows), ("heldout", profile.eval_rows)):
        rows = rows_of(profile, split)
        assert 0 < len(rows) <= limit and rows == rows_of(profile, split)
        assert profile.language in ("both", *{row.language for row in rows})


def test_importing_the_run_loads_no_torch():
    program = "import sys, labkit.training.run; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_standard_output_and_error_stay_clean(sft, capfd):
    sft()
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
