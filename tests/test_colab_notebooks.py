"""Notebooks saved by Colab: they open, they are exported, and a build neither stops at one nor throws it away.

That they are graded like any other stands in tests/course/grading/test_grade.py.
"""

import copy
import json
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from jupyter_server.services.contents.filemanager import FileContentsManager
from typer.testing import CliRunner

from labkit.cli import app
from labkit.course.build import keep_work, student_folder
from labkit.course.execute import export_page
from labkit.course.lessons import sources_hash
from labkit.page.nf4_explorer import make_explorer
from labkit.paths import checkout
from tests.course.grading import classroom

LESSON = "00_start_here"


@pytest.fixture
def saved(tmp_path):
    """A solved lesson as Colab saves it, with a widget's output and an explorer's."""
    notebook = classroom.solved(LESSON)
    shown = nbformat.v4.new_output("display_data", data={"text/html": make_explorer().html()})
    classroom.code_cells(notebook)[1]["outputs"].append(shown)
    return classroom.save(tmp_path / "in", "ada", classroom.as_colab(notebook), LESSON)


def test_it_opens_in_jupyterlab_without_complaint(saved):
    served = FileContentsManager(root_dir=str(saved.parent)).get(saved.name)  # what JupyterLab's server hands out
    assert served.get("message") is None
    assert served["content"]["cells"]
    nbformat.validate(nbformat.read(saved, as_version=4))


def test_it_is_exported_with_figures_and_sliders(saved, visit, tmp_path):
    notebook = nbformat.read(saved, as_version=4)
    before = copy.deepcopy(notebook)
    page = export_page(notebook, tmp_path / "page.html", title=LESSON, lang="en")
    assert notebook == before
    seen = visit(page.as_uri())
    live(seen.page)
    assert seen.page.locator(".labkit-explorer figure img").get_attribute("alt")
    assert "HTML(value='moved')" in seen.page.content()
    assert (seen.errors, seen.refused) == ([], [])


def live(page):
    """Wait until the explorer on the page answers."""
    page.locator(".labkit-explorer iframe").element_handle().content_frame().wait_for_selector("html.live")


def test_the_guides_command_makes_a_page_of_it_that_moves(saved, visit):
    (command,) = {
        line for name in ("colab.md", "colab.zh.md") for line in re.findall(r"`jupyter (nbconvert [^`]+)`", guide(name))
    }
    words = command.replace("FILE.ipynb", saved.name).split()
    done = subprocess.run([sys.executable, "-m", "jupyter", *words], cwd=saved.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    live(visit(saved.with_suffix(".html").as_uri()).page)


def guide(name):
    return (checkout() / "docs" / name).read_text(encoding="utf-8")


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A checkout of one lesson with its notebooks built; build(*options) builds it again, with what it says."""
    root = tmp_path / "book"
    lesson = checkout() / "lessons" / f"{LESSON}.py"
    monkeypatch.setattr("labkit.course.build.checkout", lambda: root)
    monkeypatch.setattr("labkit.course.build.lesson_paths", lambda *_: [lesson])
    monkeypatch.setattr("labkit.course.build.HINTS_FILE", root / "hints.json")

    def build(*options):
        return CliRunner().invoke(app, ["build", *options])

    assert build().exit_code == 0
    return root, build


def kept(root):
    return sorted(path.relative_to(root / "build" / "kept").as_posix() for path in (root / "build").rglob("*.ipynb"))


def test_a_build_keeps_what_colab_saved_in_its_place(book, saved):
    root, build = book
    notebook = root / "notebooks" / f"{LESSON}.ipynb"
    fresh = notebook.read_bytes()
    for number in (1, 2):
        shutil.copy(saved, notebook)
        done = build()
        assert done.exit_code == 0, done.output
        assert f"{LESSON}.ipynb had been worked in" in done.output
        assert notebook.read_bytes() == fresh
        copied = root / "build" / "kept" / "notebooks" / f"{LESSON}-{number}.ipynb"
        assert copied.read_bytes() == saved.read_bytes()
    assert "worked in" not in build().output


def answered(notebook):
    """Typed in JupyterLab, nothing run: all that a front end adds is what it says of the kernel."""
    notebook["metadata"]["language_info"]["version"] = "3.13.15"


def typed_in_an_editor(notebook):
    """Nothing run, nothing added by a front end: one line of one cell."""
    classroom.code_cells(notebook)[-1]["source"][-1] += "\nanswer = 42"


def deleted(notebook):
    """A cell is gone."""
    del notebook["cells"][-1]


def built_before_there_was_a_hash(notebook):
    """Nobody can tell whether it was edited."""
    del notebook["metadata"]["labkit"]["sources"]


def executed(notebook):
    classroom.code_cells(notebook)[0]["execution_count"] = 1


def cut_off(notebook):
    """Half a file."""
    return json.dumps(notebook)[:1000]


@pytest.mark.parametrize(
    "touch",
    [
        answered,
        typed_in_an_editor,
        deleted,
        built_before_there_was_a_hash,
        executed,
        cut_off,
        lambda notebook: "[]",
        lambda notebook: '{"cells": [1]}',
    ],
)
def test_a_build_keeps_whatever_a_student_has_in_the_folder(book, touch):
    root, build = book
    notebook = root / "notebooks" / "zh" / f"{LESSON}.ipynb"
    data = json.loads(notebook.read_text(encoding="utf-8"))
    text = touch(data) or json.dumps(data)
    notebook.write_text(text, encoding="utf-8")
    assert build("--check").exit_code == 1
    assert kept(root) == []
    assert build().exit_code == 0
    assert kept(root) == [f"notebooks/zh/{LESSON}-1.ipynb"]
    assert (root / "build" / "kept" / kept(root)[0]).read_text(encoding="utf-8") == text


def test_an_older_build_is_replaced_without_a_copy(book):
    root, build = book
    notebook = root / "notebooks" / f"{LESSON}.ipynb"
    fresh = notebook.read_text(encoding="utf-8")
    older = json.loads(fresh.replace("Start here", "Begin here"))
    older["metadata"]["labkit"]["sources"] = sources_hash(older["cells"])
    notebook.write_text(json.dumps(older), encoding="utf-8")
    assert build().exit_code == 0
    assert (notebook.read_text(encoding="utf-8"), kept(root)) == (fresh, [])


def test_no_built_notebook_looks_worked_in():
    newer = {path: path.read_text(encoding="utf-8") + "\n" for path in student_folder("en").glob("*.ipynb")}
    assert newer
    assert keep_work(newer) == {}
