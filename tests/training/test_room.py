"""Out of memory, before and while training. No GPU is used here: torch's error is raised by hand."""

import json

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from labkit.errors import LabError
from labkit.models.profiles import PROFILES, settled_method
from labkit.models.shapes import shape_of
from labkit.theory.memory import moments, predict
from labkit.training import evaluate, room
from labkit.training.checkpoints import reload
from labkit.training.record import read_record
from labkit.training.run import adjusted, run_sft

GPU = adjusted(PROFILES["gpu"], batch=8, accumulation=2, seq_len=2048)
SHAPE = shape_of("qwen3-1.7b")
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB"


def run_out(*_, **__):
    raise torch.OutOfMemoryError(MESSAGE)


class Exploding(torch.autograd.Function):
    """Identity whose backward pass runs out of memory."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        run_out()


def caught(work):
    with pytest.raises(torch.OutOfMemoryError) as caught_error:
        work()
    return caught_error.value


# --- where it happened -----------------------------------------------------------------------------------------------


def test_the_phase_is_read_from_the_traceback():
    weight = torch.ones(2, requires_grad=True)
    assert room.phase_of(caught(run_out)) == "forward"
    assert room.phase_of(caught(lambda: Exploding.apply(weight).sum().backward())) == "backward"
    weight.grad = torch.ones(2)
    optimizer = torch.optim.AdamW([weight])
    assert room.phase_of(caught(lambda: optimizer.step(run_out))) == "optimizer"


def test_recomputing_a_layer_is_the_backward_pass():
    calls = []

    def layer(x):
        calls.append(1)
        return run_out() if len(calls) == 2 else x.sin()

    x = torch.ones(2, requires_grad=True)
    loss = checkpoint(layer, x, use_reentrant=False).sum()
    assert room.phase_of(caught(loss.backward)) == "backward"


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["load", "forward", "backward", "optimizer"])
def test_the_predicted_parts_are_those_of_the_phase(phase):
    parts = room.predicted_parts(SHAPE, GPU, phase)
    assert sum(parts.values()) == predict(SHAPE, settled_method(GPU), GPU.step).phases[phase]
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    held = [held for name, held in moments(SHAPE, settled_method(GPU), GPU.step) if name == phase]
    assert {name: size for name, size in max(held, key=lambda h: sum(h.values())).items() if size} == parts


def test_an_error_is_explained_with_the_breakdown_and_what_would_help():
    error = room.out_of_memory(run_out, SHAPE, GPU)
    assert isinstance(error, LabError)
    assert "qwen3-1.7b, qlora, batch=8, seq_len=2048" in error.given
    assert "in the phase forward" in error.rule
    assert "Tried to allocate 2.00 GiB" in error.rule and "activations" in error.rule
    assert "batch=4, accumulation=4 (the same update" in error.fix
    assert error.__cause__ is None and error.__traceback__ is None  # torch's traceback would hold the tensors


def test_work_that_succeeds_returns_none_and_other_errors_pass():
    assert room.out_of_memory(lambda: 7, SHAPE, GPU) is None
    with pytest.raises(ValueError, match="mine"):
        room.out_of_memory(lambda: (_ for _ in ()).throw(ValueError("mine")), SHAPE, GPU)


def test_the_advice_is_cheaper_than_what_failed_even_on_a_large_card(monkeypatch):
    properties = type("P", (), {"total_memory": 80 * 2**30})()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda *_: properties)
    assert "batch=4, accumulation=4" in room.explained(caught(run_out), SHAPE, GPU, phase="forward").fix


# --- what is kept ----------------------------------------------------------------------------------------------------


def stop_at(step):
    def on_event(kind, event):
        if kind == "step" and event["step"] == step:
            run_out()

    return on_event


@pytest.fixture
def arguments(weights, rows):
    return {"weights": weights, "rows": (rows, rows[:6]), "bar": False}


def test_steps_that_were_done_are_kept_and_the_record_says_why_it_ended(profile, arguments, weights, tmp_path):
    with pytest.raises(LabError, match="ran out of memory.*GiB"):
        run_sft(profile, tmp_path / "run", on_event=stop_at(2), steps=5, **arguments)
    record = read_record(tmp_path / "run")
    assert "ran out of memory" in record.error and record.after is None
    assert [point["step"] for point in record.curve] == [1, 2]
    model, _ = reload(tmp_path / "run", weights=weights)
    trained = [tensor for name, tensor in model.named_parameters() if "lora_B" in name]
    assert trained and any(tensor.any() for tensor in trained)


def test_out_of_memory_before_the_first_step_leaves_nothing(profile, arguments, monkeypatch, tmp_path):
    monkeypatch.setattr("trl.SFTTrainer.train", run_out)
    with pytest.raises(LabError, match="ran out of memory"):
        run_sft(profile, tmp_path / "run", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_out_of_memory_while_loading_is_explained_too(profile, arguments, monkeypatch, tmp_path):
    monkeypatch.setattr("labkit.training.loading.load_base", run_out)
    with pytest.raises(LabError, match="in the phase load"):
        run_sft(profile, tmp_path / "run", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_out_of_memory_in_the_first_measurement_is_explained_and_leaves_nothing(
    profile, arguments, monkeypatch, tmp_path
):
    monkeypatch.setattr("labkit.training.evaluate.heldout_loss", run_out)
    with pytest.raises(LabError, match="in the phase before.*2.00 GiB.*parameters.*48 for the answers") as caught_error:
        run_sft(profile, tmp_path / "run", **arguments)
    assert "eval_rows=8" in caught_error.value.fix and "adapters" not in caught_error.value.rule
    assert list(tmp_path.iterdir()) == []


def test_out_of_memory_while_adapters_are_made_is_explained_too(profile, arguments, monkeypatch, tmp_path):
    monkeypatch.setattr("labkit.training.recipe.build_trainer", run_out)
    with pytest.raises(LabError, match="in the phase load"):
        run_sft(profile, tmp_path / "run", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_out_of_memory_in_the_last_measurement_keeps_the_adapter(profile, arguments, weights, monkeypatch, tmp_path):
    real, calls = evaluate.answer, []

    def once(*given, **options):
        calls.append(1)
        return real(*given, **options) if len(calls) == 1 else run_out()

    monkeypatch.setattr(evaluate, "answer", once)
    with pytest.raises(LabError, match="in the phase after"):
        run_sft(profile, tmp_path / "run", **arguments)
    record = read_record(tmp_path / "run")
    assert "in the phase after" in record.error and record.after is None
    assert len(record.curve) == profile.steps
    reload(tmp_path / "run", weights=weights)


@pytest.mark.parametrize("phase", room.MEASUREMENTS)
def test_a_measurement_holds_the_loaded_model(phase):
    parts, loaded = (room.predicted_parts(SHAPE, GPU, name) for name in (phase, "load"))
    assert parts == {name: size for name, size in loaded.items() if phase == "after" or name != "adapters"}


def test_the_record_of_a_broken_run_is_json(profile, arguments, tmp_path):
    with pytest.raises(LabError):
        run_sft(profile, tmp_path / "run", on_event=stop_at(1), **arguments)
    assert json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))["error"]
