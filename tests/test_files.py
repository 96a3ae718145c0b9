"""Writing is all or nothing."""

import errno
import pickle

import pytest

from labkit.errors import LabError
from labkit.files import new_folder, write_json, write_text, writing


def test_an_error_says_input_rule_and_fix_and_survives_pickling():
    error = LabError("rank=0", "rank must be at least 1", "try rank=8")
    assert str(error) == "rank=0: rank must be at least 1. Fix: try rank=8."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_write_replaces_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "一")
    write_text(path, "二")
    assert path.read_text(encoding="utf-8") == "二"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_full_disk_keeps_the_old_file_and_names_the_fix(tmp_path, monkeypatch):
    path = write_text(tmp_path / "a.txt", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(LabError, match=r"a\.txt.*No space left.*Fix: free some space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("path", "other"), [("/root/runs/a", True), ("/root/autodl-tmp/labkit/runs/a", False)])
def test_a_full_disk_is_not_advised_to_use_itself(path, other):
    with pytest.raises(LabError) as told, writing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert ("AutoDL: /root/autodl-tmp" in told.value.fix) == other
    assert told.value.fix.startswith("free some space")


def test_a_parent_that_is_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LabError, match="cannot write there"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_not_a_number_never_reaches_a_json_file(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not (tmp_path / "a.json").exists()


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("whole")
    assert (tmp_path / "run" / "a").read_text() == "whole"
    with pytest.raises(LabError, match="finished work is kept"), new_folder(tmp_path / "run"):
        pass
