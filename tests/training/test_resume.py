"""A run that is killed, damaged or asked for twice: what was trained is never lost, and the result is the same."""

import json
import shutil
import time

import pytest
import torch

from labkit.errors import LabError
from labkit.training.kept import differences
from labkit.training.record import RunRecord, read_record
from labkit.training.resume import State, save_every, state_folder, unfinished
from labkit.training.run import run_sft
from labkit.training.saves import KEPT, SEAL, checkpoints, fault, newest_good, seal
from tests.training.outcomes import result

STEPS = 14  # a checkpoint every step; 24 rows in batches of 4: the third epoch


class Stop(Exception):
    pass


@pytest.fixture
def sft(profile, weights, rows, tmp_path):
    """``sft(**arguments)``: a run of `STEPS` steps into tmp_path/run."""

    def one(out="run", **arguments):
        defaults = {"weights": weights, "rows": (rows, rows[:3]), "bar": False, "steps": STEPS, "resume": True}
        return run_sft(profile, tmp_path / out, **(defaults | arguments))

    return one


@pytest.fixture
def notes():
    """What a run said: give it to ``on_event``; ``notes.stop_at`` is the step that breaks the run off."""

    class Notes(list):
        stop_at = None

        def __call__(self, kind, event):
            if kind == "note":
                self.append(event["text"])
            if kind == "step" and event["step"] == self.stop_at:
                raise Stop

    return Notes()


def test_a_run_that_breaks_off_at_any_step_ends_as_if_it_had_not(sft, notes, tmp_path):
    sft("whole")
    for notes.stop_at in (3, 7, 8, 13, STEPS):
        with pytest.raises(Stop):
            sft(on_event=notes)
        assert not (tmp_path / "run").exists()
    notes.stop_at = None
    record = sft(on_event=notes)
    assert record.resumed == [2, 6, 7, 12, 13]
    assert not any("since then" in note for note in notes)
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]


def test_the_seconds_of_all_sittings_count_but_not_what_was_lost(sft, monkeypatch):
    """The clock is put forward: by 100 s between the phases, by 1,000 s in the training, by 10,000 s in a lost step."""
    shift, real = [0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: shift[0] + real())

    def tell(kind, event):
        shift[0] += {"before": 100}.get(kind, 0)
        if kind == "step":
            shift[0] += {3: 1000, 6: 10_000}.get(event["step"], 0)
            if event["step"] == 6:
                raise Stop

    with pytest.raises(Stop):
        sft(on_event=tell)
    shift[0] += 100_000  # until somebody comes back
    seconds = sft(on_event=lambda *_: None).seconds
    assert 1000 < seconds["train"] < 1100 < seconds["total"] < 1200
    phases = sum(value for phase, value in seconds.items() if phase != "total")
    assert seconds["total"] >= phases + 100 - 0.1
    assert seconds["before"] < 100


def test_a_measurement_taken_from_disk_brings_its_seconds_along(sft, tmp_path, monkeypatch):
    """As after SIGKILL: what was measured is there, and no checkpoint yet."""
    shift, real, state = [0], time.perf_counter, state_folder(tmp_path / "run")
    monkeypatch.setattr(time, "perf_counter", lambda: shift[0] + real())

    def tell(kind, event):
        shift[0] += {"phase": 100, "before": 1000}.get(kind, 0)  # at the beginning of load and before; then lost
        if kind == "before":
            shutil.copytree(state, tmp_path / "left")
            raise Stop

    with pytest.raises(Stop):
        sft(on_event=tell)
    (tmp_path / "left").rename(state)
    assert 200 < sft(on_event=lambda *_: None).seconds["total"] < 300


@pytest.mark.parametrize("changes", [{"kind": "lora", "dropout": 0.0}, {"kind": "qdora"}, {"kind": "full"}])
def test_every_kind_of_run_continues_exactly(sft, notes, tmp_path, changes):
    sft("whole", steps=4, **changes)
    notes.stop_at = 3
    with pytest.raises(Stop):
        sft(on_event=notes, steps=4, **changes)
    sft(steps=4, **changes)
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_accumulated_batches_continue_exactly(sft, notes, tmp_path):
    sft("whole", steps=5, accumulation=3, batch=2)
    notes.stop_at = 4
    with pytest.raises(Stop):
        sft(on_event=notes, steps=5, accumulation=3, batch=2)
    sft(steps=5, accumulation=3, batch=2)
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_resume_starts_where_nothing_was_saved_and_returns_what_is_finished(sft, notes, tmp_path):
    record = sft(steps=2, on_event=notes)
    assert record.resumed == []
    again = sft(steps=2, on_event=notes)
    assert again == read_record(tmp_path / "run")
    assert "finished already" in notes[-1]
    with pytest.raises(LabError, match=r"profile\.steps was 2, now 3"):
        sft(steps=3)
    assert again == read_record(tmp_path / "run")
    with pytest.raises(LabError, match="holds something already"):
        sft(steps=2, resume=False)


def test_a_record_that_cannot_be_written_leaves_the_run_to_be_continued(sft, notes, tmp_path, monkeypatch):
    def full(record, folder):
        raise LabError(str(folder), "cannot write there (No space left on device)", "free some space")

    with monkeypatch.context() as patch, pytest.raises(LabError, match="No space left"):
        patch.setattr(RunRecord, "write", full)
        sft(steps=3)
    assert [path.name for path in tmp_path.iterdir()] == ["run.unfinished"]
    assert sft(steps=3, on_event=notes).resumed == [3]
    assert any("trained already" in note for note in notes)
    assert not any("force" in note for note in notes)  # here it means another thing


def test_a_run_whose_last_measurement_failed_is_measured_and_replaced(sft, notes, tmp_path, monkeypatch):
    from labkit.training import evaluate

    sft("whole", steps=3)
    measure, calls = evaluate.follow_report, []

    def fail_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise Stop
        return measure(*arguments)

    monkeypatch.setattr(evaluate, "follow_report", fail_second)
    with pytest.raises(Stop):
        sft(steps=3)
    assert read_record(tmp_path / "run").error
    record = sft(steps=3, on_event=notes)
    assert (record.error, record.resumed) == (None, [3])
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert len(calls) == 3  # before once; after twice
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]


@pytest.fixture
def broken_off(sft, notes, tmp_path):
    """A run that broke off at step 6, with good checkpoints after steps 4 and 5."""
    notes.stop_at = 6
    with pytest.raises(Stop):
        sft(on_event=notes)
    notes.stop_at = None
    folder = state_folder(tmp_path / "run")
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-5", "checkpoint-4"]
    return folder


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", SEAL])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(broken_off, damage, name, notes, sft, tmp_path):
    damage(broken_off / "checkpoint-5" / name)
    assert fault(broken_off / "checkpoint-4") is None
    record = sft(on_event=notes)
    assert record.resumed == [4]
    assert any(note.startswith("not usable: checkpoint-5: ") for note in notes)
    sft("whole")
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_without_a_good_checkpoint_training_starts_again_and_says_so(broken_off, sft, notes):
    for checkpoint in checkpoints(broken_off):
        truncate(checkpoint / "optimizer.pt")
    assert sft(on_event=notes).resumed == []
    assert any("training starts again" in note for note in notes)


@pytest.fixture
def left(tmp_path):
    """The state of a run that broke off, with a checkpoint that is good, though nobody could train from it."""
    folder = tmp_path / "left"
    with unfinished(folder, {"seed": 0}, resume=True):
        (folder / "checkpoint-1").mkdir()
        (folder / "checkpoint-1" / "weights").write_text("1")
        seal(folder / "checkpoint-1")
    return folder


@pytest.mark.parametrize(("in_cell", "words"), [(True, "run the cell again"), (False, "--resume")])
def test_the_words_are_those_of_a_cell_or_of_the_command(left, in_cell, words):
    said = []
    with pytest.raises(Stop), unfinished(left, {"seed": 0}, resume=True, in_cell=in_cell, say=said.append):
        raise Stop
    assert words in said[-1]


def test_an_unfinished_run_is_neither_overwritten_nor_continued_with_other_settings(broken_off, sft):
    before = {path: path.stat().st_mtime_ns for path in broken_off.rglob("*.safetensors")}
    with pytest.raises(LabError, match="--resume"):
        sft(resume=False)
    with pytest.raises(LabError, match=r"profile\.method\.rank was 4, now 2"):
        sft(rank=2)
    with pytest.raises(LabError, match="seed was 0, now 1"):
        sft(seed=1)
    assert {path: path.stat().st_mtime_ns for path in broken_off.rglob("*.safetensors")} == before


def test_damaged_settings_are_read_from_a_checkpoint_and_said_to_be_lost_if_none_has_them(broken_off, sft, tmp_path):
    shutil.copytree(broken_off, state_folder(tmp_path / "lost"))
    for damage in (truncate, lambda path: path.unlink(), lambda path: path.write_text("[1]")):
        damage(broken_off / "settings.json")
        with pytest.raises(LabError, match=r"profile\.method\.rank was 4, now 2"):
            sft(rank=2)
    assert sft().resumed == [5]
    for path in state_folder(tmp_path / "lost").rglob("settings.json"):
        path.unlink()
    with pytest.raises(LabError, match=r"settings .* cannot be read.*remove that folder"):
        sft("lost")
    assert len(checkpoints(state_folder(tmp_path / "lost"))) == KEPT


def test_a_strangers_folder_of_that_name_is_left_alone(sft, tmp_path):
    theirs = state_folder(tmp_path / "run")
    theirs.mkdir()
    (theirs / "thesis.json").write_text("mine")
    with pytest.raises(LabError, match="holds something else"):
        sft(steps=1)
    assert (theirs / "thesis.json").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["run.unfinished"]


def test_a_disk_that_became_read_only_is_told_in_a_line(left, monkeypatch):
    from filelock import FileLock

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with (
        pytest.raises(LabError, match=r"Read-only file system.*writable disk"),
        unfinished(left, {"seed": 0}, resume=True),
    ):
        pytest.fail("the block must not run")
    assert newest_good(left)[0]


def test_a_library_that_changed_between_two_sittings_is_named(broken_off, sft, notes, monkeypatch):
    from labkit.training import used

    now = used.versions()
    monkeypatch.setattr(used, "versions", lambda: now | {"trl": "99.0"})
    assert sft(on_event=notes).resumed == [5]
    assert f"since then trl was '{now['trl']}', now '99.0'" in " ".join(notes)


def test_other_rows_are_other_settings(broken_off, sft, rows):
    with pytest.raises(LabError, match="data_sha256"):
        sft(rows=(rows[1:], rows[:3]))


def test_two_runs_in_one_folder_do_not_mix(broken_off, sft):
    settings = json.loads((broken_off / "settings.json").read_text())
    with (
        unfinished(broken_off, settings, resume=True),
        pytest.raises(LabError, match="another process is training in this folder"),
    ):
        sft()
    assert newest_good(broken_off)[0].name == "checkpoint-5"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("[enforce fail at inline_container.cc:659] . PytorchStreamWriter failed writing"), "free some"),
        (OSError(107, "Transport endpoint is not connected"), "mount that disk again"),
    ],
)
def test_a_disk_that_refuses_stops_with_the_fix_and_the_last_checkpoint_stays(sft, tmp_path, monkeypatch, error, words):
    save, calls = torch.save, []

    def refuse(value, file, *rest, **options):
        calls.append(1)
        if len(calls) > 8:  # arguments, optimizer, scheduler, random numbers: in the third checkpoint
            raise error
        return save(value, file, *rest, **options)

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(LabError, match=rf"cannot write there .*{words}"):
        sft(steps=4)
    assert newest_good(state_folder(tmp_path / "run"))[0].name == "checkpoint-2"
    monkeypatch.undo()
    assert sft(steps=4).resumed == [2]


@pytest.mark.parametrize("share", [0.5, 1.5])
def test_what_the_libraries_say_of_a_disk_that_refuses_is_told_in_a_line(sft, profile, weights, tmp_path, share):
    """The limit on a file's size stands for the disk's: half an adapter stops safetensors, 1.5 stop torch."""
    resource = pytest.importorskip("resource")
    from labkit.models.shapes import shape_of
    from labkit.training.checkpoints import saved_bytes

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * saved_bytes(shape_of(str(weights.folder)), profile)), hard))
    try:
        with pytest.raises(LabError, match=r"cannot write there \((File too large|No space left on device)"):
            sft(steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest_good(state_folder(tmp_path / "run"))[0] is None


def test_a_disk_with_too_little_room_for_checkpoints_is_refused_first(sft, tmp_path, monkeypatch, profile, weights):
    import types

    from labkit.models.shapes import shape_of
    from labkit.training.checkpoints import saved_bytes
    from labkit.training.draft import SPARE_BYTES
    from labkit.training.saves import disk_bytes

    shape = shape_of(str(weights.folder))
    enough = saved_bytes(shape, profile) + disk_bytes(shape, profile) + SPARE_BYTES
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=enough - 1))
    with pytest.raises(LabError, match="GB are free"):
        sft(steps=1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=enough))
    sft(steps=1)


@pytest.mark.parametrize("kind", ["qlora", "dora", "full"])
def test_the_disk_that_a_run_takes_is_predicted(sft, notes, tmp_path, profile, weights, kind):
    from labkit.models.shapes import shape_of
    from labkit.training.run import adjusted
    from labkit.training.saves import OTHER_BYTES, checkpoint_bytes

    notes.stop_at = 6
    with pytest.raises(Stop):
        sft(on_event=notes, kind=kind)
    folder = state_folder(tmp_path / "run")
    predicted = checkpoint_bytes(shape_of(str(weights.folder)), adjusted(profile, kind=kind))
    assert len(checkpoints(folder)) == KEPT
    for checkpoint in checkpoints(folder):
        taken = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        assert predicted - OTHER_BYTES <= taken <= predicted


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(sft, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(LabError, match="cannot write there"):
        sft("file/run")


def test_a_checkpoint_without_seal_was_never_completed(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3"]
    assert newest_good(tmp_path) == (None, ["checkpoint-3: it was never completed"])
    (tmp_path / "checkpoint-3" / SEAL).write_text("[1]")
    assert "cannot be read" in fault(tmp_path / "checkpoint-3")


def test_differences_name_both_values():
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}}) == [
        "a.c was 2, now 4",
        "d was 3, now None",
    ]
    assert differences({"a": [1]}, {"a": [1]}) == []


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (12, 1), (48, 4), (96, 8), (300, 25)])
def test_a_dozen_checkpoints_whatever_the_number_of_steps(steps, every):
    assert save_every(steps) == every


def test_kept_values_survive_and_nonsense_counts_as_none(tmp_path):
    state = State(tmp_path, {})
    assert state.kept("before") is None
    assert state.keep("before", {"loss": 1.5}) == state.kept("before") == {"loss": 1.5}
    file = tmp_path / "before.json"
    for text in ("{", file.read_text().replace("1.5", "2.5")):
        file.write_text(text)
        assert state.kept("before") is None
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_strangers_checkpoint_runs_no_code(broken_off, sft, name, pickled):
    for checkpoint in checkpoints(broken_off):
        (checkpoint / name).write_bytes(pickled.bomb)
        seal(checkpoint)  # its checksums fit
    with pytest.raises(LabError, match=r"more than tensors and numbers.*could run code.*Fix: delete") as refused:
        sft()
    assert "weights_only" not in str(refused.value)  # torch's own message advises to switch the guard off
    assert not pickled.mark.exists()
    torch.load(checkpoint / name, weights_only=False)
    assert pickled.mark.exists()  # the test can fail
