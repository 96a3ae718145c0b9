"""A restarted kernel: the cells of lessons 04 to 06 executed again train nothing, and say what came from the disk."""

import contextlib
import io
import json
import shutil
from dataclasses import asdict, replace

import pytest
import transformers

import labkit
from labkit.course.lessons import lesson_paths, read_lesson
from labkit.jsonl import read_rows
from labkit.models.methods import Step
from labkit.models.profiles import PROFILES
from labkit.models.shapes import shape_of
from labkit.paths import checkout
from labkit.theory.memory import predict
from labkit.training import settle

UNTIL = {"04": 'kept("lesson04-after"', "05": "done = run_sweep(", "06": "moved = {"}  # in the last cell that trains
# What the lesson trains behind that cell, in trainings and in parts of the profile's steps: an exercise's run on as
# many rows as a short one, the trial whose line is cut off.
LATER = {"04": (1, 6), "05": (1, 4), "06": (0, 1)}
REUSED = {
    "04": ["lesson04-before: taken", "lesson04-short: taken", "12 of 12 steps taken", "lesson04-after: taken"],
    "05": ["0 run, 0 failed; 6 taken from"],
    "06": ["lesson06-full: taken", "lesson06-lora: taken", "lesson06-dora: taken"],
}
SMALL = replace(PROFILES["tiny"], steps=12, train_rows=96, eval_rows=4, max_new_tokens=4)


class Trained(BaseException):
    """Raised in place of a training; a sweep takes it for no failed trial."""


def execute(number, *changes):
    """Run a lesson's code cells up to its last training in a fresh namespace; ``changes``: (old, new) in the code."""
    (path,) = lesson_paths([number])
    said, names = io.StringIO(), {"__name__": "__main__"}
    with contextlib.redirect_stdout(said):
        for cell in read_lesson(path).cells:
            code = cell.code
            for old, new in changes:
                code = code.replace(old, new)
            exec(compile(code, f"<lesson {number}>", "exec"), names)
            if UNTIL[number] in cell.code:
                return said.getvalue(), names
    raise AssertionError(f"lesson {number} has no cell with {UNTIL[number]}")


@pytest.fixture
def trains(monkeypatch):
    """``trains(number, *changes)``: whether the lesson trains anything when it is executed; no training takes place."""
    trained = []

    def train(*_, **__):
        trained.append(1)
        raise Trained

    def one(number, *changes):
        trained.clear()
        with monkeypatch.context() as patch, contextlib.suppress(Trained):
            patch.setattr(transformers.Trainer, "train", train)
            execute(number, *changes)
        return bool(trained)

    return one


@pytest.fixture(scope="module", params=sorted(UNTIL))
def once(request, tmp_path_factory):
    """A lesson that was executed once: its number, what it said, its names, and the folder where it keeps things.

    Among the names is ``trained``, the number of steps of every training.
    """
    runs, trained, train = tmp_path_factory.mktemp(f"lesson{request.param}"), [], transformers.Trainer.train

    def counted(trainer, *arguments, **options):
        done = train(trainer, *arguments, **options)
        trained.append(done.global_step)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_RUNS", str(runs))
        patch.setattr(labkit, "current_profile", lambda: SMALL)
        patch.setattr(transformers.Trainer, "train", counted)
        said, names = execute(request.param)
    return request.param, said, names | {"trained": trained}, runs


@pytest.fixture
def executed(once, tmp_path, monkeypatch):
    """The same with the folder copied, and about to be executed again."""
    number, said, names, runs = once
    shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(labkit, "current_profile", lambda: SMALL)
    return number, said, names, tmp_path / "runs"


def results(number, names):
    """What the lesson shows of its trainings, as text (a NaN equals itself)."""
    shown = {"04": ("curve", "before", "results", "after", "texts_after"), "06": ("moved",)}
    if number == "05":
        return repr(sorted(read_rows(names["out"] / "live.jsonl"), key=lambda row: row["id"]))
    return json.dumps([names[name] for name in shown[number]], default=asdict)


def test_the_second_execution_trains_nothing_and_says_what_it_reused(executed, trains):
    number, first, names, _ = executed
    said, again = execute(number)
    assert results(number, again) == results(number, names)
    for words in REUSED[number]:
        assert words in said and words not in first
    assert "force=True" in said
    assert not trains(number)


@pytest.mark.parametrize("guide", ["autodl", "colab"])
def test_the_guides_say_how_much_a_lesson_trains(once, guide):
    number, _, names, _ = once
    text = (checkout() / "docs" / f"{guide}.md").read_text(encoding="utf-8")
    said = {"steps": SMALL.steps}
    exec("\n".join(line for line in text.splitlines() if line.startswith("todo ")), said)
    times, part = LATER[number]
    counted = len(names["trained"]) + times, sum(names["trained"]) + times * (SMALL.steps // part)
    assert said["todo"][number] == counted


def test_force_trains_again(executed, trains):
    number, *_ = executed
    assert trains(number, ("force = False", "force = True"))


def test_a_changed_setting_trains_again(executed, trains, monkeypatch):
    number, *_ = executed
    other = replace(SMALL, steps=8, learning_rate=SMALL.learning_rate / 2)
    monkeypatch.setattr(labkit, "current_profile", lambda: other)
    assert trains(number)


def test_a_damaged_file_is_made_again(executed, trains):
    number, _, _, runs = executed
    damaged = [*(runs / "kept").glob("*.json"), *runs.glob("lesson05*/live.jsonl")]
    assert damaged
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-9])
    assert trains(number)


@pytest.mark.parametrize("once", ["05"], indirect=True)
def test_a_trial_that_failed_is_run_again(executed, trains):
    number, _, _, runs = executed
    (path,) = runs.glob("lesson05*/live.jsonl")
    failed = [json.dumps(row | {"error": "RuntimeError: the GPU was full"}) for row in read_rows(path)]
    path.write_text("\n".join([*failed, ""]))
    assert trains(number)


@pytest.mark.parametrize("once", ["04"], indirect=True)
def test_a_saved_run_is_used_again_unless_it_is_damaged(once, tmp_path, capsys):
    codes = [cell.code for cell in read_lesson(*lesson_paths(["04"])).cells]
    (samples,) = (code for code in codes if "\nsamples = [" in f"\n{code}")
    (save,) = (code for code in codes if "with new_folder(out)" in code)
    names = once[2] | {"folder": tmp_path}
    exec(samples, names)
    exec(save, names)
    adapter, record = tmp_path / "run" / "adapter" / "adapter_model.safetensors", tmp_path / "run" / "record.json"
    whole, first = adapter.read_bytes(), record.read_bytes()
    exec(save, names | {"started": "later"})
    assert record.read_bytes() == first
    adapter.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    exec(save, names | {"started": "later"})
    assert adapter.read_bytes() == whole
    assert json.loads(record.read_text())["date"] == "later"


def test_on_a_gpu_a_restart_keeps_the_settings_that_the_lesson_began_with(trains, tmp_path, monkeypatch):
    """The card is faked: first it has room for two rows at a time, after the restart for everything."""
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path))
    monkeypatch.setattr(labkit, "current_profile", lambda: SMALL)
    two = predict(shape_of(SMALL.model), SMALL.method, Step(batch=2, seq_len=SMALL.seq_len)).peak_allocated_bytes
    monkeypatch.setattr(settle, "own_card", lambda: (two + 2**30, (7, 5)))
    said, names = execute("04")
    assert "batch x accumulation 2 x 4" in said and "batch 4 with checkpointing would need" in said
    assert (names["here"].peak_allocated_bytes, names["trainer"].args.per_device_train_batch_size) == (two, 2)
    monkeypatch.setattr(settle, "own_card", lambda: (2**40, (7, 5)))
    assert not trains("04")
    assert trains("04", ("force = False", "force = True"))
