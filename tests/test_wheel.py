"""The wheel: what `pip install` from the repository brings, and that it finds its data without a checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_it_holds_the_package_and_all_of_the_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "labkit").rglob("*.py")}
    data = {f"labkit/_data/{path.relative_to(ROOT / 'data').as_posix()}" for path in files(ROOT / "data")}
    assert data
    page = {path.relative_to(ROOT).as_posix() for path in files(ROOT / "labkit" / "page") if path.suffix != ".py"}
    assert {"labkit/page/hints.json", "labkit/page/lecture.toml", "labkit/page/browser/explorer.js"} <= page
    assert modules | data | page <= names


def test_it_holds_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"labkit"}
    assert [name for name in names if "instructor" in name or "rubric.toml" in name or "/hidden/" in name] == []
    assert {"labkit/course/grading/pages/feedback.html.j2", "labkit/course/grading/inside.py"} <= names


def test_unpacked_elsewhere_it_finds_its_data(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import labkit, labkit.paths; print(labkit.__file__); print(labkit.paths.data_folder())"
    # -I: neither the checkout nor PYTHONPATH; the unpacked wheel comes first, before an editable install of the book.
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == [str(tmp_path / "labkit" / "__init__.py"), str(tmp_path / "labkit" / "_data")]


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
