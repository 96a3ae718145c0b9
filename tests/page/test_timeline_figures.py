"""The picture of a step: what is stacked is the timeline, the mark is its peak, and the words carry the numbers."""

from dataclasses import dataclass

import numpy as np
import pytest

from labkit.errors import LabError
from labkit.page.timeline_figures import component_timelines, describe_timelines, phase_at
from labkit.theory.memory import COMPONENTS

GIB = 2**30


@dataclass
class Line:
    components: dict
    starts: dict
    moments: np.ndarray

    @property
    def total(self):
        return sum(self.components.values())


@pytest.fixture
def line():
    none = np.zeros(5, dtype=np.int64)
    parts = dict.fromkeys(COMPONENTS, none)
    parts["parameters"] = np.array([2, 2, 2, 2, 2]) * GIB
    parts["activations"] = np.array([0, 0, 1, 3, 0]) * GIB
    parts["temporary"] = np.array([0, 0, 0, 1, 0]) * GIB
    starts = {"load": 0, "forward": 1, "backward": 3, "optimizer": 4}
    return Line(parts, starts, np.array([0, 1, 40, 70, 100]))


def test_the_stack_reaches_the_total_and_the_mark_is_the_peak(line):
    axes = component_timelines({"mine": line}).axes[0]
    assert axes.get_title() == "mine: 6.00 GiB in backward"
    tops = [collection.get_paths()[0].vertices[:, 1].max() for collection in axes.collections]
    assert tops == [2, 5, 6]  # parameters, activations, temporary
    mark = next(drawn for drawn in axes.lines if drawn.get_marker() == "v")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (70, pytest.approx(6, rel=0.05))
    bars = [patch.get_height() for patch in axes.patches]
    assert bars == [2, 3, 1]  # the parts at the peak once more, wide enough to be seen
    looks = {(tuple(c.get_facecolor()[0]), c.get_hatch()) for c in axes.collections}
    assert len({hatch for _, hatch in looks}) == len(looks) == 3  # told apart without colour too


def test_every_phase_has_its_line_and_the_legend_only_what_is_drawn(line):
    fig = component_timelines({"mine": line})
    dotted = [drawn.get_xdata()[0] for drawn in fig.axes[0].lines if drawn.get_linestyle() == ":"]
    assert dotted == [-10, 1, 70, 100]  # the loaded model has a stretch of its own
    assert [entry.get_text() for entry in fig.legends[0].texts] == ["parameters", "activations", "temporary"]


def test_panels_share_one_scale_and_an_odd_one_leaves_a_gap(line):
    fig = component_timelines({"a": line, "b": line, "c": line})
    shown = [axes for axes in fig.axes if axes.get_visible()]
    assert len(shown) == 3
    for axes in shown:
        assert axes.get_ylim() == pytest.approx((0, 6 * 1.15))  # room for the mark and the phases


def test_the_words_name_peak_phase_and_parts(line):
    said = describe_timelines({"mine": line})
    assert "mine 6.00 GiB in backward, of it activations 3.00 and parameters 2.00" in said
    assert [phase_at(line, moment) for moment in (0, 1, 2, 3, 4)] == [
        "load",
        "forward",
        "forward",
        "backward",
        "optimizer",
    ]


def test_nothing_to_draw_is_said():
    with pytest.raises(LabError, match="nothing to draw"):
        component_timelines({})
