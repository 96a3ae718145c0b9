"""The student download: both languages, no solution, nothing of the instructor's; and the manifest that fits it."""

import hashlib
import json
import subprocess
import sys
import zipfile

import nbformat
import pytest
from typer.testing import CliRunner

from labkit.cli import app
from labkit.course.build import student_folder
from labkit.course.lessons import BEGIN, END, lesson_paths, read_lesson
from labkit.course.release import make_manifest, read_manifest, release
from labkit.errors import LabError
from labkit.page.records import cell_hash
from labkit.paths import checkout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A release: folder and manifest."""
    folder = tmp_path_factory.mktemp("release")
    return folder, release(folder)


@pytest.fixture(scope="module")
def unpacked(made, tmp_path_factory):
    """The download as a student unpacks it."""
    folder = tmp_path_factory.mktemp("student")
    with zipfile.ZipFile(made[0] / "labkit-course.zip") as archive:
        archive.extractall(folder)
    return folder / "labkit-course"


def test_both_languages_are_in(unpacked):
    for path in lesson_paths():
        for folder in ("notebooks", "notebooks/zh"):
            assert (unpacked / folder / f"{path.stem}.ipynb").is_file()


def test_nothing_of_the_instructors_is_in(unpacked):
    names = [path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")]
    assert [name for name in names if name.split("/")[0] in ("instructor", "lessons", "tests", "build", ".git")] == []
    assert [name for name in names if name.endswith(("rubric.toml", ".pyc"))] == []


def test_no_solution_is_in(unpacked):
    solutions = set()
    for path in lesson_paths():
        for cell in read_lesson(path).cells:
            if BEGIN in cell.code:
                inside = cell.code.split(BEGIN)[1].split(END)[0]
                solutions.add(max((line.strip() for line in inside.split("\n")), key=len))
    assert len(solutions) >= 15
    texts = [path.read_text(encoding="utf-8") for path in unpacked.rglob("*.ipynb")]
    code = "\n".join(
        cell.source for text in texts for cell in nbformat.reads(text, 4).cells if cell.cell_type == "code"
    )
    assert [line for line in solutions if line in code] == []


def test_the_manifest_has_every_files_hash(made, unpacked):
    folder, manifest = made
    found = {
        p.relative_to(unpacked).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in unpacked.rglob("*")
        if p.is_file()
    }
    assert found == manifest["files"]
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8")) == manifest


def test_the_manifest_knows_the_cells_that_are_handed_out(made):
    (entry,) = [entry for entry in made[1]["notebooks"]["zh"] if entry["lesson"] == "00_start_here"]
    cells = nbformat.read(student_folder("zh") / "00_start_here.ipynb", 4).cells
    hashes = {cell_hash(cell.source) for cell in cells if cell.cell_type == "code"}
    assert set(entry["given"]) < hashes
    assert entry["checks"]["q0_2"] == 'check("q0_2", weight_bytes)'
    assert set(entry["checks"]) == {"q0_1", "q0_2", "q0_3", "q0_4"}


def test_releasing_twice_gives_the_same_bytes(made, tmp_path):
    release(tmp_path)
    for name in ("labkit-course.zip", "manifest.json"):
        assert (tmp_path / name).read_bytes() == (made[0] / name).read_bytes()


def test_the_download_works_without_the_lessons(unpacked):
    code = "from labkit.paths import checkout, data_folder; from labkit.course.build import student_folder; "
    code += "print(sorted(path.name for path in student_folder('zh').glob('*.ipynb'))[0], data_folder().is_dir())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=unpacked, env={"PYTHONPATH": str(unpacked)}
    )
    assert done.stdout.split() == ["00_start_here.ipynb", "True"], done.stderr


def test_a_stale_notebook_stops_the_release(tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.course.release.stale", lambda files: ["notebooks/00_start_here.ipynb: stale"])
    with pytest.raises(LabError, match="labkit build"):
        release(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_grade_takes_that_manifest_and_no_other(made, tmp_path):
    notebooks = read_manifest(made[0] / "manifest.json")["notebooks"]
    assert notebooks == make_manifest()["notebooks"]
    for text in ("{}", "[]", "not json", '{"notebooks": {"en": [{"lesson": 1}]}}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(LabError, match="no release manifest"):
            read_manifest(tmp_path / "other.json")


def test_the_command_says_what_it_made(tmp_path):
    result = CliRunner().invoke(app, ["release", "--out", str(tmp_path / "r"), "--json"])
    assert result.exit_code == 0
    assert "README.md" in json.loads(result.stdout)["files"]
    assert (checkout() / "instructor").is_dir()
