"""A run's folder: refused in the first second, published whole or not at all."""

import os
import shutil

import pytest

from labkit.errors import LabError
from labkit.training import draft
from labkit.training.draft import destination, draft_folder


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


def test_a_link_stands_for_the_folder_that_it_names(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    for name in ("disk/there", "disk/not yet"):
        link = tmp_path / name.replace("/", " ")
        link.symlink_to(tmp_path / name)
        with draft_folder(destination(link), needed_bytes=1) as made:
            (made.folder / "a").write_text("1")
        assert link.is_symlink() and (link / "a").read_text() == "1"
    monkeypatch.chdir(tmp_path)
    assert destination("run") == tmp_path / "run"


@pytest.mark.parametrize("out", [".", "/"])
def test_a_folder_whose_place_cannot_be_taken_is_refused_at_once(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match=r"takes the place.*name a folder in it"):
        destination(out)


def test_what_is_published_is_on_the_disk_first(tmp_path, monkeypatch):
    """A power cut between the rename and the writing would leave empty files, and the checkpoints are gone by then."""
    flushed, renamed, real = [], [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(os.readlink(f"/proc/self/fd/{number}")))
    monkeypatch.setattr(os, "replace", lambda old, new: renamed.append(len(flushed)) or real(old, new))
    with draft_folder(tmp_path / "run", needed_bytes=1) as made:
        (made.folder / "adapter").mkdir()
        for name in ("adapter/a", "b"):
            (made.folder / name).write_text("1")
    assert sorted(map(os.path.basename, flushed)) == ["a", "b"]
    assert renamed == [2]
