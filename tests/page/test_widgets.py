"""Explorers that need the kernel: every value of every control is drawn, and what they say agrees with numpy."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from labkit.errors import LabError
from labkit.page.widgets import VIEW, Explorer, menu, rank_steps, rank_widget, slider

GENERATOR = torch.Generator().manual_seed(0)


def explorer(**controls):
    fig = Figure()
    (line,) = fig.subplots().plot([0, 1], [0, 1])

    def redraw(**values):
        line.set_ydata([0, values.get("slope", 0)])
        return " ".join(f"{name} {value}" for name, value in values.items())

    return Explorer(fig, redraw, controls, alt="A line")


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    return shown


def test_a_static_figure_comes_first_then_the_controls(displayed):
    made = explorer(slope=slider("slope", range(5), 2))
    made._ipython_display_()
    static, live = displayed
    assert 'alt="A line. slope 2"' in static["text/html"]
    assert live["text/plain"] == "[slider] slope 2"
    assert live[VIEW]["model_id"] == made._box.model_id
    assert bytes(made.image.value).startswith(b"\x89PNG")


def test_moving_a_control_draws_the_kept_figure_again_and_says_the_result():
    made = explorer(slope=slider("slope", range(5), 2), colour=menu("colour", ["red", "blue"], "red"))
    fig, pictures = made.fig, []
    for slope in (0, 4):
        made.controls["slope"].value = slope
        pictures.append(made.image.value)
        assert repr(made) == f"slope {slope} colour red"
        assert repr(made) in made.status.value
    made.controls["colour"].value = "blue"
    assert made.values == {"slope": 4, "colour": "blue"}
    assert made.fig is fig
    assert pictures[0] != pictures[1] == made.image.value


def test_a_slider_reports_when_it_is_let_go():
    assert slider("slope", [1, 2], 1).continuous_update is False


@pytest.mark.parametrize("make", [slider, menu])
def test_a_start_that_is_no_option_is_refused(make):
    with pytest.raises(LabError, match="slope is one of"):
        make("slope", [1, 2], 3)


def test_an_explorer_without_controls_is_refused():
    with pytest.raises(LabError, match="something to move"):
        explorer()


def test_the_module_needs_neither_widgets_nor_torch_nor_pyplot_before_it_is_used():
    code = (
        "import labkit.page.widgets, sys; print([m for m in ('torch', 'ipywidgets', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("limit", [1, 2, 16, 17, 48, 64, 128, 576, 2048])
def test_rank_steps_rise_to_the_limit(limit):
    ranks = rank_steps(limit)
    assert ranks[0] == 1
    assert ranks[-1] == limit
    assert ranks == sorted(set(ranks))
    assert len(ranks) < 45


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (60, 60), (1, 7), (7, 1)])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_rank_is_drawn_and_the_line_agrees_with_numpy(shape, lang, monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", lang)
    weight = torch.randn(shape, generator=GENERATOR)
    left, values, right = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    made = rank_widget(weight, name="W")
    ranks = list(made.controls["rank"].options)
    assert ranks[-1] == min(shape)
    for rank in ranks:
        line = made.redraw(rank=rank)
        kept, error, share = map(float, re.findall(r"(\d+\.\d+)", line))
        best = left[:, :rank] * values[:rank] @ right[:rank]
        assert kept == pytest.approx(100 * (values[:rank] ** 2).sum() / (values**2).sum(), abs=0.06)
        assert error == pytest.approx(np.linalg.norm(weight - best) / np.linalg.norm(weight), abs=6e-4)
        assert share == pytest.approx(100 * rank * sum(shape) / weight.numel(), abs=0.06)


def test_the_picture_is_the_corner_of_the_approximation():
    weight = torch.randn(70, 90, generator=GENERATOR)
    made = rank_widget(weight, rank=500)
    (exact, kept) = (axes.images[0].get_array() for axes in made.fig.axes[2:])
    assert made.values == {"rank": 70}
    np.testing.assert_allclose(exact, weight[:48, :48], atol=1e-4)
    np.testing.assert_allclose(kept, exact, atol=1e-6)
    made.controls["rank"].value = 1
    assert np.linalg.matrix_rank(made.fig.axes[3].images[0].get_array(), tol=1e-4) == 1


def test_two_explorers_do_not_share_a_figure():
    first, second = rank_widget(torch.eye(9), rank=3), rank_widget(torch.eye(9), rank=3)
    first.controls["rank"].value = 9
    assert repr(first).startswith("rank 9")
    assert repr(second).startswith("rank 3")


@pytest.mark.parametrize("bad", [torch.zeros(3, 3), torch.ones(3), torch.full((2, 2), torch.nan), torch.ones(0, 3)])
def test_a_matrix_without_directions_is_refused(bad):
    with pytest.raises(LabError):
        rank_widget(bad)
