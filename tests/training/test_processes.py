"""Two processes that train one model on CPUs (gloo): the curve of one process, one writer, continued exactly."""

import dataclasses
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.errors import LabError
from labkit.files import write_text
from labkit.models.methods import Step
from labkit.models.profiles import PROFILES
from labkit.models.shapes import shape_of
from labkit.theory.memory import predict
from labkit.training import loading, processes
from labkit.training.record import read_record
from labkit.training.resume import state_folder
from labkit.training.run import rows_of, run_sft
from labkit.training.saves import checkpoints, fault
from tests.training.outcomes import assert_same_curve, result

STEPS = 6  # of 4 rows, of 24: one epoch
HEAVY = ["labkit.training.run", "labkit.training.loading", "torch", "datasets", "transformers", "trl", "peft"]


@pytest.fixture(scope="module")
def together():
    """``together(function, *arguments)``: the exit codes of two processes that a launcher would start so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)

    def both(function, *arguments, **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [context.Process(target=launched, args=(rank, port, function, arguments, options)) for rank in (0, 1)]
        for process in started:
            process.start()
        started[0].join(timeout=120)
        if started[0].exitcode:  # what a launcher does when one of them fails
            started[1].kill()
        started[1].join(timeout=120)
        return [process.exitcode for process in started]

    return both


def launched(rank, port, function, arguments, options):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    function(*arguments, **options)


def train(profile, out, log=None, stop_at=None, **options):
    """A run that notes what it says, and dies without a word at step ``stop_at``."""

    def tell(kind, event):
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps([os.environ.get("RANK"), kind]) + "\n")
        if kind == "step" and event["step"] == stop_at:
            os._exit(9)

    run_sft(profile, out, bar=False, steps=STEPS, on_event=tell if log else None, **options)


@pytest.fixture(scope="module")
def given(weights, rows):
    return {"weights": weights, "rows": (rows, rows[:3])}


@pytest.fixture(scope="module")
def alone(profile, given, tmp_path_factory):
    """``alone(**changes)``: the record of the run in one process."""

    def one(**changes):
        out = tmp_path_factory.mktemp("alone") / "run"
        return run_sft(profile, out, bar=False, steps=STEPS, dropout=0.0, **given, **changes)

    return one


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("qlora", {}), ("full", {"learning_rate": 1e-3}), ("lora", {"batch": 2, "accumulation": 2})],
)
def test_two_processes_have_the_curve_of_one(together, alone, profile, given, tmp_path, kind, changes):
    changes = {"kind": kind} | changes
    log = tmp_path / "log"
    assert together(train, profile, tmp_path / "run", log, dropout=0.0, **given, **changes) == [0, 0]
    one, two = alone(**changes), read_record(tmp_path / "run")
    assert two.settings["processes"] == 2
    assert_same_curve(two, one)
    said = [json.loads(line) for line in log.read_text().splitlines()]
    assert {rank for rank, _ in said} == {"0"}
    assert sum(kind == "step" for _, kind in said) == STEPS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "run"]


def train_on_cards(profile, out, free_bytes, **options):
    """A run whose process finds its own amount of memory free, and one of two kinds of card."""
    from labkit.training import settle

    rank = int(os.environ["RANK"])
    settle.own_card = lambda: (free_bytes[rank], ((8, 9), (7, 5))[rank])
    train(profile, out, dropout=0.0, **options)


def test_all_settle_on_what_fits_the_fullest_card(together, alone, profile, given, tmp_path):
    shape = shape_of(str(given["weights"].folder))
    room = {
        batch: predict(shape, profile.method, Step(batch=batch, seq_len=profile.seq_len)).peak_allocated_bytes
        for batch in (4, 2)
    }
    free_bytes = [room[4] + 2**30, room[2] + 2**30]  # alone, the first would settle on 4 x 1
    assert together(train_on_cards, profile, tmp_path / "run", free_bytes, **given) == [0, 0]
    two, one = read_record(tmp_path / "run"), alone()
    assert [two.settings["profile"][name] for name in ("batch", "accumulation", "checkpointing")] == [2, 2, True]
    assert_same_curve(two, one)


def test_the_fullest_card_decides_for_all(together, tmp_path):
    assert together(least_of, tmp_path) == [0, 0]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"(5, (7, 5))"}


def least_of(folder):
    from labkit.training import settle

    rank = int(os.environ["RANK"])
    settle.own_card = lambda: ((9, 5)[rank], ((7, 5), (8, 0))[rank])
    (folder / str(rank)).write_text(repr(settle.card()))


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 12])
def test_whatever_is_settled_can_be_dealt_out_if_the_profile_can(monkeypatch, profile, batch):
    """12 rows: every batch on offer, on every number of processes that divides them."""
    for n in (1, 2, 3, 4, 6, 12):
        monkeypatch.setenv("WORLD_SIZE", str(n))
        asked = dataclasses.replace(profile, batch=batch, accumulation=12 // batch)
        share = processes.share(asked)
        assert n * share[0] * share[1] == 12


def test_a_run_of_two_is_continued_by_two_with_the_same_bytes_and_by_one_not_at_all(together, profile, given, tmp_path):
    options = {"resume": True, **given}
    assert together(train, profile, tmp_path / "whole", **options) == [0, 0]
    assert together(train, profile, tmp_path / "run", tmp_path / "log", stop_at=4, **options)[0] == 9
    left = checkpoints(state_folder(tmp_path / "run"))
    assert [path.name for path in left] == ["checkpoint-3", "checkpoint-2"]
    for path in left:
        assert fault(path) is None
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= {file.name for file in path.iterdir()}
    with pytest.raises(LabError, match=r"processes was 2, now None"):
        train(profile, tmp_path / "run", **options)
    assert together(train, profile, tmp_path / "run", **options) == [0, 0]
    assert read_record(tmp_path / "run").resumed == [3]
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert not state_folder(tmp_path / "run").exists()


def test_accelerate_launch_runs_the_command(tmp_path):
    for split, n in (("train", 8), ("heldout", 2)):
        text = "\n".join(json.dumps(row.as_dict()) for row in rows_of(PROFILES["tiny"], split)[:n])
        write_text(tmp_path / "data" / f"{split}.jsonl", text + "\n")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "labkit.cli", "sft", "--profile", "tiny", "--steps", "1"]
    command += ["--data", str(tmp_path / "data"), "--seq-len", "256"]
    environment = os.environ | {"LABKIT_RUNS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "tiny")
    assert (record.settings["processes"], len(record.curve)) == (2, 1)
    assert done.stdout.count("adapter, record.json and samples.md are in") == 1


@pytest.mark.parametrize(
    ("n", "batch", "accumulation", "share"),
    [
        (1, 3, 1, (3, 1)),
        (2, 8, 1, (4, 1)),
        (2, 4, 4, (4, 2)),
        (4, 4, 4, (4, 1)),
        (4, 8, 2, (4, 1)),
        (2, 3, 2, (3, 1)),
        (6, 3, 4, (1, 2)),
        (8, 4, 4, (2, 1)),
        (16, 4, 4, (1, 1)),
    ],
)
def test_the_rows_of_a_step_are_dealt_out(monkeypatch, profile, n, batch, accumulation, share):
    monkeypatch.setenv("WORLD_SIZE", str(n))
    asked = dataclasses.replace(profile, batch=batch, accumulation=accumulation)
    assert processes.share(asked) == share
    assert n * share[0] * share[1] == asked.rows_per_step


def test_a_batch_that_cannot_be_dealt_out_is_refused_before_anything_runs(monkeypatch, profile, given, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(LabError, match=r"batch=4, accumulation=1 on 3 processes.*divisible by 3"):
        run_sft(profile, tmp_path / "run", **given)
    assert list(tmp_path.iterdir()) == []


def test_one_of_several_gpus_is_used_and_that_is_said(monkeypatch, profile, given, tmp_path):
    notes = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    run_sft(profile, tmp_path / "run", steps=1, bar=False, on_event=lambda *told: notes.append(told), **given)
    said = "1 of 2 GPUs is used; `accelerate launch` uses several, see docs/several-gpus.md"
    assert ("note", {"text": said}) in notes
    assert (Path(__file__).parents[2] / "docs" / "several-gpus.md").is_file()


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert loading.default_device() == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert loading.default_device() == "cuda:1"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert loading.unused_gpus() == 0
