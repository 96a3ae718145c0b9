"""A run's folder: refused in the first second, published whole or not at all."""

import os
import shutil

import pytest

from labkit.errors import LabError
from labkit.training import draft
from labkit.training.draft import draft_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_made_appears_at_once_and_nothing_else_stays(tmp_path):
    with draft_folder(tmp_path / "deep" / "run", needed_bytes=1) as made:
        (made.folder / "a").write_text("1")
        assert not (tmp_path / "deep" / "run").exists()
    assert names(tmp_path / "deep") == ["run"] and names(tmp_path / "deep" / "run") == ["a"]
    assert os.stat(tmp_path / "deep" / "run").st_mode & 0o777 == 0o755  # not mkdtemp's 0700


def test_an_empty_folder_may_be_filled_and_a_filled_one_is_kept(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with draft_folder(out, needed_bytes=1) as made:
        (made.folder / "a").write_text("1")
    with pytest.raises(LabError, match="holds something already"), draft_folder(out, needed_bytes=1):
        pass
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(LabError, match="holds something already"), draft_folder(file, needed_bytes=1):
        pass
    assert (out / "a").read_text() == "1" and file.read_text() == "mine"


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_only_what_was_worth_keeping_stays(tmp_path, keep, error):
    with pytest.raises(error), draft_folder(tmp_path / "run", needed_bytes=1) as made:
        (made.folder / "adapter").write_text("trained")
        made.keep = keep
        raise error
    assert names(tmp_path) == (["run"] if keep else [])


def test_too_little_room_is_told_before_anything_is_made(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(LabError, match="GB are free"), draft_folder(tmp_path / "run", needed_bytes=free):
        pytest.fail("the block must not run")
    assert names(tmp_path) == []


def test_no_permission_is_told_before_anything_is_made(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(draft.tempfile, "mkdtemp", refuse)
    with pytest.raises(LabError, match="Permission denied"), draft_folder(tmp_path / "r", needed_bytes=1):
        pytest.fail("the block must not run")


def test_a_file_in_the_way_of_the_parent_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LabError, match="cannot write there"), draft_folder(tmp_path / "file" / "run", needed_bytes=1):
        pytest.fail("the block must not run")
