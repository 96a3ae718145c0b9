"""A sweep is lesson 04's run many times: the same numbers alone and after others, and every trial once."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from labkit.errors import LabError
from labkit.jsonl import append_row, locked, read_rows
from labkit.models.profiles import PROFILES
from labkit.training import trial as trial_module
from labkit.training.grid import Trial
from labkit.training.run import adjusted, run_sft
from labkit.training.sweep import run_sweep
from labkit.training.trial import blank_row, run_trial

NUMBERS = ("heldout_loss_before", "heldout_loss_after", "curve", "tokens", "trainable_params", "heldout_tokens")


@pytest.fixture
def run(weights, rows):
    """``run(trial)``: a row, by way of the random model's weights and rows."""
    return lambda trial: run_trial(trial, weights=weights, rows=(rows, rows[:6]))


def numbers(row):
    assert row["error"] is None
    return {name: row[name] for name in NUMBERS}


def alone(trial, run):
    trial_module._bases.clear()
    return numbers(run(trial))


# --- one trial -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qlora", "full"])
def test_a_trial_is_lesson_04s_run(kind, profile, weights, rows, run, tmp_path):
    chosen = adjusted(profile, kind=kind)
    record = run_sft(chosen, tmp_path / "out", seed=3, weights=weights, rows=(rows, rows[:6]), bar=False)
    row = run(Trial(profile=chosen, seed=3, follow=True))
    assert row["curve"] == pytest.approx([point["loss"] for point in record.curve], rel=1e-5)
    assert row["heldout_loss_before"] == pytest.approx(record.before["heldout_loss"], rel=1e-5)
    assert row["heldout_loss_after"] == pytest.approx(record.after["heldout_loss"], rel=1e-5)
    assert row["tokens"] == record.trained_tokens
    assert row["constraint_rate_after"] == record.after["follow"]["rate"]
    assert row["constraint_rows"] == 6


def test_a_trial_gives_the_same_numbers_alone_and_after_others(profile, run):
    kinds = ("lora", "qdora", "full", "lora")
    trials = [
        Trial(profile=adjusted(profile, kind=kind, rank=2 + place, dropout=0.2), seed=place)
        for place, kind in enumerate(kinds)
    ]
    expected = [alone(trial, run) for trial in trials]
    trial_module._bases.clear()
    assert [numbers(run(trial)) for trial in trials] == expected


def test_the_base_is_loaded_once_and_never_changed(profile, run, monkeypatch):
    from labkit.training import loading

    trial_module._bases.clear()
    loads, load = [], loading.load_base
    monkeypatch.setattr(loading, "load_base", lambda *given, **options: loads.append(1) or load(*given, **options))
    run(Trial(profile=adjusted(profile, kind="lora")))
    (base,) = trial_module._bases.values()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    modules = [type(module) for module in base.model.modules()]
    for seed in (1, 2):
        row = run(Trial(profile=adjusted(profile, kind="dora", rank=3), seed=seed))
        assert row["seconds"].keys() == {"load", "before", "build", "train", "after"}
    assert len(loads) == 1
    assert [type(module) for module in base.model.modules()] == modules
    assert all((before[name] == tensor).all() for name, tensor in base.model.state_dict().items())


def test_what_trains_is_counted_on_the_model(profile, run):
    row = run(Trial(profile=adjusted(profile, kind="lora", rank=3, targets=("q_proj",))))
    assert row["trainable_params"] == 2 * 3 * (128 + 128)  # two layers, A and B
    assert row["peak_memory"]["predicted_bytes"] > 0
    assert row["settings"]["targets"] == ["q_proj"]


def test_an_error_is_a_row(profile, run):
    row = run(Trial(profile=adjusted(profile, seq_len=8)))
    assert row["error"].startswith("LabError: rows ")
    assert row["heldout_loss_after"] is None
    assert row["heldout_loss_before"] > 0  # what was known by then is kept


def test_a_diverged_run_says_so(profile, run):
    row = run(Trial(profile=adjusted(profile, kind="full", learning_rate=0.99, steps=12)))
    assert row["heldout_loss_after"] is None or row["heldout_loss_after"] > 10
    assert all(value is None or value == value for value in row["curve"])


# --- the sweep -------------------------------------------------------------------------------------------------------


def trials(n, **changes):
    return [Trial(profile=adjusted(PROFILES["tiny"], **changes), seed=seed) for seed in range(n)]


def quick(trial):
    if trial.seed % 5 == 3:
        return blank_row(trial) | {"error": "ValueError: seed 3"}
    return blank_row(trial) | {"heldout_loss_after": float(trial.seed)}


def test_every_trial_is_run_once_and_only_what_is_missing(tmp_path):
    path, ran = tmp_path / "new" / "r.jsonl", []
    first = run_sweep(trials(6), path, run=lambda trial: ran.append(trial.seed) or quick(trial))
    assert (first.total, first.found, first.ran, first.failed, first.left) == (6, 0, 6, 1, 0)
    again = run_sweep([*trials(8), *trials(8)], path, run=lambda trial: ran.append(trial.seed) or quick(trial))
    assert (again.total, again.found, again.ran, again.failed) == (8, 6, 2, 0)
    assert ran == list(range(8))
    assert [row["settings"]["seed"] for row in read_rows(path)] == list(range(8))


def test_failed_trials_run_again_only_on_request(tmp_path):
    path = tmp_path / "r.jsonl"
    run_sweep(trials(6), path, run=quick)
    assert run_sweep(trials(6), path, run=quick).ran == 0
    assert (
        run_sweep(trials(6), path, run=lambda trial: blank_row(trial) | {"heldout_loss_after": 9.0}, retry=True).ran
        == 1
    )
    rows = read_rows(path)
    assert len(rows) == 6
    assert [row["error"] for row in rows] == [None] * 6


def test_force_runs_every_trial_again_and_the_new_rows_count(tmp_path):
    path = tmp_path / "r.jsonl"
    run_sweep(trials(3), path, run=quick)
    again = run_sweep(trials(3), path, run=lambda trial: quick(trial) | {"heldout_loss_after": 9.0}, force=True)
    assert (again.found, again.ran) == (0, 3)
    assert {row["heldout_loss_after"] for row in read_rows(path)} == {9.0}


def test_progress_is_told_and_the_first_word_says_what_was_found(tmp_path):
    told = []
    run_sweep(trials(2), tmp_path / "r.jsonl", run=quick)
    run_sweep(
        trials(4),
        tmp_path / "r.jsonl",
        run=quick,
        on_row=lambda row, now: told.append(
            (row and row["id"], now.ran, now.left, now.failed, now.seconds_left is None)
        ),
    )
    assert [row[1:] for row in told] == [(0, 2, 0, True), (1, 1, 0, False), (2, 0, 1, False)]
    assert told[0][0] is None


def test_several_workers_lose_and_repeat_nothing(tmp_path):
    path = tmp_path / "r.jsonl"

    def slow(trial):
        time.sleep(random.Random(trial.seed).random() / 50)
        if trial.seed == 7:
            raise RuntimeError("worker is gone")
        return quick(trial)

    with ThreadPoolExecutor(4) as executor:
        done = run_sweep(trials(20), path, executor=executor, run=slow)
    rows = {row["settings"]["seed"]: row["error"] for row in read_rows(path)}
    assert sorted(rows) == list(range(20))
    assert rows[7] == "RuntimeError: worker is gone"
    assert (done.ran, done.failed) == (20, 5)


def test_two_sweeps_into_one_file_are_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    with locked(path), pytest.raises(LabError, match="another sweep"):
        run_sweep(trials(1), path, run=quick)


def test_ctrl_c_keeps_what_is_done(tmp_path):
    path = tmp_path / "r.jsonl"

    def stop(trial):
        if trial.seed == 2:
            raise KeyboardInterrupt
        return quick(trial)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(trials(4), path, run=stop)
    assert len(read_rows(path)) == 2
    assert run_sweep(trials(4), path, run=quick).ran == 2


KILLED = """
import sys, time
from labkit.models.profiles import PROFILES
from labkit.training.grid import Trial
from labkit.training.sweep import run_sweep
from labkit.training.trial import blank_row

def run(trial):
    time.sleep(0.01)
    return blank_row(trial) | {"heldout_loss_after": float(trial.seed), "padding": "x" * 3000}

print("ready", flush=True)
run_sweep([Trial(profile=PROFILES["tiny"], seed=seed) for seed in range(80)], sys.argv[1], run=run)
"""


def test_killed_at_random_moments_it_goes_on_where_it_was(tmp_path):
    path, kills, draw = tmp_path / "r.jsonl", 0, random.Random(0)
    command = [sys.executable, "-c", KILLED, str(path)]
    for _ in range(40):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        try:
            child.wait(timeout=0.05 + 0.3 * draw.random())
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
            continue
        assert child.returncode == 0
        break
    assert kills >= 2
    lines = path.read_text().splitlines()
    assert sorted(row["settings"]["seed"] for row in read_rows(path)) == list(range(80))
    assert len(lines) == 80  # and none of them twice


def test_a_torn_row_is_run_again(tmp_path):
    path = tmp_path / "r.jsonl"
    run_sweep(trials(3), path, run=quick)
    path.write_bytes(path.read_bytes()[:-20])
    assert run_sweep(trials(3), path, run=quick).ran == 1
    assert sorted(row["settings"]["seed"] for row in read_rows(path)) == [0, 1, 2]


def test_rows_of_other_grids_may_stand_in_the_same_file(tmp_path):
    path = tmp_path / "r.jsonl"
    append_row(path, {"id": "other"})
    assert run_sweep(trials(2), path, run=quick).ran == 2
    assert len(read_rows(path)) == 3


def test_a_trial_can_be_sent_to_another_process():
    import pickle

    trial = trials(1, rslora=True)[0]
    assert pickle.loads(pickle.dumps(trial)).id == trial.id
    assert replace(trial, seed=1).id != trial.id
