"""Executing notebooks: an error, an error hidden in a widget, and the exported page."""

import re

import nbformat
import pytest

from labkit.course.execute import run_notebook


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.course.execute.solution_folder", lambda lang: tmp_path / "build" / "solutions" / lang)

    def run_cells(*sources, html=None):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        path = tmp_path / "99_trial.ipynb"
        nbformat.write(notebook, path)
        return run_notebook(path, lang="zh", profile="tiny", html=html)

    return run_cells


def test_a_kernel_gets_profile_and_language_and_its_memory_is_measured(run):
    allocate = "import time\nblock = bytearray(200 * 2**20)\nblock[::4096] = b'1' * len(block[::4096])\ntime.sleep(1)"
    result = run(
        allocate, "from os import environ as e\nassert e['LABKIT_PROFILE'] == 'tiny' and e['LABKIT_LANG'] == 'zh'"
    )
    assert result.ok, result.error
    assert 200 * 2**20 < result.peak_rss_bytes < 2**30
    assert 1 < result.seconds < 120


def test_a_failing_cell_is_reported_and_the_notebook_is_kept(run, tmp_path):
    result = run("1 + 1", "raise ValueError('broken on purpose')", "3")
    assert not result.ok
    assert "broken on purpose" in result.error
    executed = nbformat.read(tmp_path / "build" / "executed" / "zh" / "99_trial.ipynb", as_version=4)
    assert executed.cells[0].outputs[0].data["text/plain"] == "2"


def test_an_error_inside_a_widget_is_an_error(run):
    hidden = "import ipywidgets as w\nbox = w.Output()\nwith box:\n    raise ValueError('hidden')\nbox"
    result = run(hidden)
    assert not result.ok
    assert "hidden" in result.error


def test_the_page_holds_figures_and_survives_without_widget_state(run, tmp_path):
    figure = (
        "import matplotlib.figure, labkit\nfig = matplotlib.figure.Figure()\n"
        "fig.subplots().plot([1, 2])\nlabkit.show(fig, alt='a line from 1 to 2')"
    )
    result = run(figure, html=tmp_path / "pages")
    assert result.ok, result.error
    page = (tmp_path / "pages" / "zh" / "99_trial.html").read_text(encoding="utf-8")
    assert 'alt="a line from 1 to 2"' in page
    assert 'lang="zh"' in page
    assert "data:image/png;base64," in page
    assert re.findall(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?https?:""", page) == []
