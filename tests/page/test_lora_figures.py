"""The figures of lesson 02 show the numbers that they are given."""

import math

import pytest

from labkit.errors import LabError
from labkit.page.lora_figures import by_rank, loss_curves, loss_grid


def test_by_rank_draws_every_number_and_names_every_rank():
    fig = by_rank([1, 2, 8], {"energy": [0.1, 0.2, 0.9], "gain": [0.5, 0.7, 1.0]}, ylabel="share", true_rank=2)
    (axes,) = fig.axes
    assert [list(line.get_ydata()) for line in axes.lines[:2]] == [[0.1, 0.2, 0.9], [0.5, 0.7, 1.0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "8"]
    assert len({line.get_marker() for line in axes.lines[:2]}) == 2
    assert [text.get_text() for text in axes.texts] == ["k = 2"]


@pytest.mark.parametrize("curves", [{}, {"a": []}, {"a": [1.0]}])
def test_by_rank_refuses_what_it_cannot_draw(curves):
    with pytest.raises(LabError):
        by_rank([1, 2], curves, ylabel="share")


def test_loss_curves_tell_lines_apart_without_colour():
    fig = loss_curves({"a": [1, 0.5], "b": [1, 0.9], "c": [1, 1]})
    assert [line.get_linestyle() for line in fig.axes[0].lines] == ["-", "--", "-."]
    assert fig.axes[0].get_yscale() == "log"


def test_loss_curves_without_a_curve():
    with pytest.raises(LabError):
        loss_curves({})


def test_a_grid_writes_each_loss_and_frames_the_best_of_a_row():
    losses = [[0.5, 0.25, math.nan], [0.9, 123.0, 0.125]]
    fig = loss_grid(losses, rows={"alpha": [1, 2]}, columns={"lr": [0.1, 0.2, 0.3]})
    (axes,) = fig.axes
    assert [text.get_text() for text in axes.texts] == ["0.500", "0.250", "-", "0.900", "-", "0.125"]
    assert [round(patch.get_x() + 0.47) for patch in axes.patches] == [1, 2]
