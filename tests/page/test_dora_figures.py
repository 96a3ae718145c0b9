"""The pictures of lesson 06 show the numbers that they are given; every value of every slider is drawn."""

import itertools
import math
import re

import numpy as np
import pytest

from labkit.errors import LabError
from labkit.page.dora_figures import cost_ratios, moves
from labkit.page.dora_picture import ROW, plane_widget, pushed, turn_degrees


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_value_of_the_plane_is_drawn_and_the_line_agrees_with_numpy(lang, monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", lang)
    made = plane_widget()
    row = np.array(ROW)
    for push, angle, m in itertools.product(*(control.options for control in made.controls.values())):
        turn, before, lora, dora = map(float, re.findall(r"\d+(?:\.\d+)?", made.redraw(push, angle, m)))
        turned = np.deg2rad(angle)
        spin = np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]])
        end = row + push * spin @ row / np.linalg.norm(row)
        cosine = end @ row / np.linalg.norm(end) / np.linalg.norm(row)
        assert (before, lora, dora) == pytest.approx((np.linalg.norm(row), np.linalg.norm(end), m), abs=0.006)
        assert turn == pytest.approx(np.degrees(np.arccos(np.clip(cosine, -1, 1))), abs=0.51)


def test_dora_keeps_loras_direction_at_its_own_length():
    ends = pushed(1.5, 60, 3.0)
    assert math.hypot(*ends["dora"]) == pytest.approx(3)
    assert turn_degrees(ends["dora"]) == pytest.approx(turn_degrees(ends["lora"]))
    assert pushed(0, 90, math.hypot(*ROW))["dora"] == pytest.approx(ROW)


def test_the_arrows_are_where_the_numbers_say():
    made = plane_widget()
    made.controls["magnitude"].value = 4
    axes = made.fig.axes[0]
    tips = {(round(float(arrow.U[0]), 6), round(float(arrow.V[0]), 6)) for arrow in axes.collections}
    ends = pushed(**made.values)
    assert tips == {(round(x, 6), round(y, 6)) for x, y in ends.values()}
    assert axes.patches[0].radius == 4


def test_moves_draws_every_point_and_a_line_for_each_method():
    points = {"LoRA": {6: [(0.1, 1.0), (0.2, 2.0)], 12: [(0.3, 3.0)]}, "full": {6: [(0.1, 0.0)], 12: [(0.2, 1.0)]}}
    fig = moves(points)
    assert [axes.get_title() for axes in fig.axes] == ["LoRA", "full"]
    drawn = [tuple(point) for scatter in fig.axes[0].collections for point in scatter.get_offsets()]
    assert drawn == [(0.1, 1.0), (0.2, 2.0), (0.3, 3.0)]
    slope = np.diff(fig.axes[0].lines[0].get_ydata()) / np.diff(fig.axes[0].lines[0].get_xdata())
    assert slope == pytest.approx(10)


@pytest.mark.parametrize("points", [{}, {"LoRA": {}}, {"LoRA": {1: [(0.1, 0.2)]}}])
def test_moves_needs_points(points):
    with pytest.raises(LabError, match="two points"):
        moves(points)


def test_cost_ratios_draws_ratio_and_interval():
    rows = [{"method": name, "tokens": 128, "ratio": 1.5, "low": 1.4, "high": 1.7} for name in ("dora", "qdora")]
    fig = cost_ratios([*rows, {"method": "dora", "tokens": 512, "ratio": 1.2, "low": 1.1, "high": 1.3}])
    (axes,) = fig.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["128", "512"]
    assert list(axes.lines[0].get_ydata()) == [1.5, 1.2]
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"dora", "qdora"}
    unsorted = [rows[0] | {"tokens": tokens, "ratio": ratio} for tokens, ratio in ((512, 1.5), (128, 1.6), (1024, 1.4))]
    (axes,) = cost_ratios(unsorted).axes
    assert list(axes.lines[0].get_xdata()) == [0, 1, 2]
    assert list(axes.lines[0].get_ydata()) == [1.6, 1.5, 1.4]
    with pytest.raises(LabError):
        cost_ratios([])
