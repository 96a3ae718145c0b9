"""Runs that settle on what the GPU has free. The card is faked, everything else runs on the CPU."""

import json
from dataclasses import replace

import pytest

from labkit.errors import LabError
from labkit.models.methods import Step
from labkit.models.profiles import PROFILES
from labkit.models.shapes import shape_of
from labkit.theory.memory import predict
from labkit.theory.sizing import SETTLED
from labkit.training import phases, settle
from labkit.training.grid import Trial
from labkit.training.record import read_record
from labkit.training.resume import state_folder
from labkit.training.run import adjusted, run_sft
from labkit.training.trial import run_trial
from tests.training.outcomes import TOLERANCE, assert_same_curve, result

GPU = PROFILES["gpu"]
GIB = 2**30
STEPS = 6  # of 4 rows, of 24: one epoch


@pytest.fixture
def free(monkeypatch, weights, profile):
    """``free(batch, checkpointing)``: from now on the card has room for exactly that split of the profile's rows."""
    shape = shape_of(str(weights.folder))

    def room(batch, checkpointing=True):
        step = Step(batch=batch, seq_len=profile.seq_len, checkpointing=checkpointing)
        n_bytes = predict(shape, profile.method, step).peak_allocated_bytes + GIB
        monkeypatch.setattr(settle, "own_card", lambda: (n_bytes, (7, 5)))

    return room


@pytest.fixture
def sft(profile, weights, rows, tmp_path):
    """``sft(**arguments)``: a run into tmp_path/run, and what it noted."""

    def one(out="run", notes=None, stop_at=None, **arguments):
        def tell(kind, event):
            if kind == "note" and notes is not None:
                notes.append(event["text"])
            if kind == "step" and event["step"] == stop_at:
                raise KeyboardInterrupt

        defaults = {"weights": weights, "rows": (rows, rows[:3]), "bar": False, "steps": STEPS, "on_event": tell}
        return run_sft(profile, tmp_path / out, **(defaults | arguments))

    return one


def split(record):
    return tuple(record.settings["profile"][name] for name in ("batch", "accumulation", "checkpointing"))


# --- the same update, whatever the card ------------------------------------------------------------------------------


@pytest.mark.parametrize("settled_on", [(4, 1, False), (4, 1, True), (2, 2, True), (1, 4, True)])
def test_a_run_settles_on_what_fits_says_so_and_has_the_profiles_curve(sft, free, settled_on):
    whole, notes = sft("whole", dropout=0.0), []
    free(settled_on[0], settled_on[2])
    record = sft(notes=notes, dropout=0.0)
    assert split(record) == settled_on and split(whole) == (4, 1, False)
    said = [note for note in notes if note.startswith("settings for this GPU: float32, batch x accumulation")]
    assert len(said) == 1 and f"{settled_on[0]} x {settled_on[1]}" in said[0]
    assert ("would need" in said[0]) == (settled_on != (4, 1, False))
    assert_same_curve(record, whole)


def test_the_curve_is_not_that_of_the_smaller_batch_alone(sft):
    """The test above can fail: without the accumulation, or with another loss, the curves differ."""
    whole, half = sft("whole", dropout=0.0), sft("half", dropout=0.0, batch=2)
    losses = [[point["loss"] for point in record.curve] for record in (whole, half)]
    assert losses[1] != pytest.approx(losses[0], rel=100 * TOLERANCE)


# --- what was asked for stays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"batch": 4}, {"accumulation": 1}, {"batch": 4, "checkpointing": True}])
def test_a_batch_that_was_asked_for_is_refused_where_it_does_not_fit(sft, free, tmp_path, asked):
    free(2)
    with pytest.raises(LabError, match=r"batch=4.*by prediction.*batch=2, accumulation=2 \(the same update.*force"):
        sft(**asked)
    assert list(tmp_path.iterdir()) == []
    free(4)
    assert split(sft(**asked)) == (4, 1, True)


def test_another_length_that_was_asked_for_stays_and_the_batch_is_settled_around_it(sft, free, profile):
    free(2)
    record = sft(seq_len=2 * profile.seq_len)
    assert split(record) == (1, 4, True) and record.settings["profile"]["seq_len"] == 192


def test_force_takes_the_profile_as_it_is_written(sft, monkeypatch):
    monkeypatch.setattr(settle, "own_card", lambda: (1, (8, 0)))
    with pytest.raises(LabError, match="by prediction"):
        sft()
    assert split(sft(force=True)) == (4, 1, False)


def test_a_profile_for_a_gpu_is_refused_without_one_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(LabError, match=r"profile='gpu'.*needs a CUDA GPU.*laptop"):
        run_sft("gpu", tmp_path / "run")
    assert settle.settled(PROFILES["laptop"]) is None
    assert list(tmp_path.iterdir()) == []


def test_force_needs_no_gpu_either(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run = phases.Run(profile=GPU, seed=0, truncate=False, bar=False, tell=lambda *_: None)
    run.check(shape_of("qwen3-1.7b"), force=True)
    assert run.profile == GPU


# --- the settings belong to the run ----------------------------------------------------------------------------------


def test_a_continued_run_keeps_the_settings_that_it_began_with(sft, free, tmp_path):
    free(2)
    sft("whole")
    with pytest.raises(KeyboardInterrupt):
        sft(resume=True, stop_at=4)
    free(4, False)  # another program has ended meanwhile
    notes = []
    record = sft(resume=True, notes=notes)
    assert (split(record), record.resumed) == ((2, 2, True), [3])
    assert any("2 x 2" in note and note.endswith("as the run began") for note in notes)
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert split(sft("anew")) == (4, 1, False)


def test_a_continued_run_that_no_longer_fits_is_refused_and_nothing_is_lost(sft, free, tmp_path):
    free(4)
    with pytest.raises(KeyboardInterrupt):
        sft(resume=True, stop_at=4)
    free(2)
    with pytest.raises(LabError, match=r"batch=4.*by prediction.*stop other programs"):
        sft(resume=True)
    with pytest.raises(LabError, match=r"profile\.batch was 4, now 2"):
        sft(resume=True, batch=2, accumulation=2)
    free(4)
    assert sft(resume=True).resumed == [3]
    assert not state_folder(tmp_path / "run").exists()


def test_a_run_that_was_forced_goes_on_without_force(profile, weights, monkeypatch):
    """Its element type was recorded as ``auto``; settled by name, it would be another run."""
    monkeypatch.setattr(settle, "own_card", lambda: (2**40, (7, 5)))
    run = phases.Run(profile=replace(profile, dtype="auto"), seed=0, truncate=False, bar=False, tell=lambda *_: None)
    begun = run.identity()
    run.check(shape_of(str(weights.folder)), begun=begun, force=False)
    assert run.identity() == begun


def test_other_rows_of_an_update_are_another_run(sft, free):
    free(2)
    with pytest.raises(KeyboardInterrupt):
        sft(resume=True, stop_at=4)
    with pytest.raises(LabError, match=r"profile\.accumulation was 2, now 4"):
        sft(resume=True, accumulation=4, batch=2)


def test_a_finished_run_is_found_again_whatever_is_free_now(sft, free, tmp_path, monkeypatch):
    free(2)
    sft(resume=True)
    record = read_record(tmp_path / "run")
    free(4, False)
    assert sft(resume=True) == record
    monkeypatch.setattr(settle, "own_card", lambda: (1, (7, 5)))
    assert sft(resume=True) == record
    with pytest.raises(LabError, match=r"profile\.steps was 6, now 5"):
        sft(resume=True, steps=5)


# --- notebooks and sweeps --------------------------------------------------------------------------------------------


def test_a_notebook_gets_its_settings_back_after_a_restart(free, profile, weights, monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path))
    asked, said = replace(profile, model=str(weights.folder)), []
    free(2)
    first, words = settle.settled_once("lesson", asked, say=said.append)
    assert (first.batch, first.accumulation, first.checkpointing) == (2, 2, True)
    assert "2 x 2" in words[0] and "批大小" in words[1] and said == []
    free(4, False)
    assert settle.settled_once("lesson", asked, say=said.append) == (first, words)
    assert len(said) == 1 and "force=True" in said[0]
    assert settle.settled_once("other", asked)[0].batch == 4
    assert settle.settled_once("lesson", replace(asked, steps=5))[0].batch == 4
    free(1)
    with pytest.raises(LabError, match="stop other programs"):
        settle.settled_once("lesson", asked, say=said.append)
    assert settle.settled_once("lesson", asked, force=True)[0].batch == 1
    json.dumps(words)


def test_without_cuda_a_notebook_settles_nothing_and_writes_nothing(profile, monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert settle.settled_once("lesson", profile)[0] is profile
    assert list(tmp_path.iterdir()) == []


def test_a_trial_is_settled_too_keeps_its_name_and_says_what_ran(free, profile, weights, rows):
    trial = Trial(profile=adjusted(profile, steps=STEPS, dropout=0.0))
    given = {"weights": weights, "rows": (rows, rows[:3])}
    whole = run_trial(trial, **given)
    free(1)
    row = run_trial(trial, **given)
    assert row["error"] is None and (row["id"], row["settings"]) == (whole["id"], whole["settings"])
    assert whole["split"] == {"batch": 4, "accumulation": 1, "checkpointing": False}
    assert row["split"] == {"batch": 1, "accumulation": 4, "checkpointing": True}
    assert row["curve"] == pytest.approx(whole["curve"], rel=TOLERANCE)
    assert row["peak_memory"]["predicted_bytes"] < whole["peak_memory"]["predicted_bytes"]


def test_a_trial_that_does_not_fit_says_what_helps_in_a_sweep(profile, weights, rows, monkeypatch):
    """``--force`` of a sweep runs every trial again and settles it all the same."""
    monkeypatch.setattr(settle, "own_card", lambda: (1, (7, 5)))
    error = run_trial(Trial(profile=profile), weights=weights, rows=(rows, rows[:3]))["error"]
    assert "by prediction" in error and "--retry" in error and "force" not in error


def test_a_notebook_that_measures_updates_takes_float16_only_where_float32_does_not_fit(
    profile, weights, monkeypatch, tmp_path
):
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path))
    asked = adjusted(profile, model=str(weights.folder), kind="spectrum", modules=("0.up_proj",), dtype="float32")
    method, step = asked.method, Step(batch=1, seq_len=profile.seq_len, checkpointing=True)
    least = predict(shape_of(asked.model), replace(method, dtype="float32"), step).peak_allocated_bytes + 100 + GIB
    how = {"dtypes": ("float32", "float16"), "beside_bytes": 100, "say": lambda _: None}
    monkeypatch.setattr(settle, "own_card", lambda: (least - 1, (8, 0)))
    narrow, words = settle.settled_once("lesson", asked, **how)
    assert narrow.dtype == "float16" and "float32 would need" in words[0] and "float32 连同" in words[1]
    monkeypatch.setattr(settle, "own_card", lambda: (least, (8, 0)))
    assert settle.settled_once("lesson", asked, **how) == (narrow, words)  # after a restart
    assert settle.settled_once("lesson", asked, force=True, **how)[0].dtype == "float32"
    monkeypatch.setattr(settle, "own_card", lambda: (GIB, (8, 0)))
    with pytest.raises(LabError, match=r"settle anew \(force=True\)"):
        settle.settled_once("lesson", asked, **how)
    with pytest.raises(LabError, match="LABKIT_PROFILE=laptop` into a cell at the very top"):
        settle.settled_once("lesson", asked, force=True, **how)


# --- what is asked of torch ------------------------------------------------------------------------------------------


def test_memory_that_torch_holds_in_this_process_counts_as_free(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda *_: (5 * GIB, 16 * GIB))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda *_: 3 * GIB)
    assert settle.card() == (8 * GIB, (7, 5))


def test_what_is_settled_are_fields_of_a_profile():
    assert {*SETTLED} <= {*vars(GPU)}
