import math
from html.parser import HTMLParser

import numpy as np
import pytest

from labkit.errors import LabError
from labkit.page.training_figures import LiveRun, kept_figure, loss_figure, running_mean
from labkit.theory.intervals import wilson_interval


def point(step, loss=1.0):
    return {"step": step, "loss": loss, "learning_rate": 1e-3 / step, "tokens": 100 * step}


def test_live_run_prints_once_outside_a_notebook(capsys):
    live = LiveRun(steps=3)
    for step in (1, 2, 3):
        live("step", point(step, loss=4 - step))
    live("phase", {"name": "after"})
    printed = capsys.readouterr()
    assert printed.out.startswith("step 3/3 · loss 1.000")
    assert printed.out.count("\n") == 1
    assert printed.err == ""


@pytest.mark.parametrize(("lang", "wanted"), [("en", "step 1/2"), ("zh", "第 1/2 步")])
def test_live_run_speaks_the_students_language(monkeypatch, lang, wanted):
    monkeypatch.setenv("LABKIT_LANG", lang)
    live = LiveRun(steps=2, every_s=0)
    live("step", point(1))
    assert wanted in live.status()
    assert wanted in live.as_html()


def test_live_html_is_well_formed_and_survives_a_loss_that_is_not_finite():
    live = LiveRun(steps=4)
    for step, loss in enumerate((2.0, math.nan, 1.0), start=1):
        live.points.append(point(step, loss))
    seen = {}

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen[tag] = dict(attributes)

    Parser().feed(live.as_html())
    assert (seen["progress"]["value"], seen["progress"]["max"]) == ("3", "4")
    assert seen["polyline"]["points"] == "0.0,0.0 240.0,60.0"  # top left, then 2 of 3 steps to the right at the bottom


def test_loss_figure_draws_every_curve_and_the_heldout_losses():
    curves = {"all rows": [point(1, 3.0), point(2, 2.0)], "few rows": [point(1, 3.0), point(2, 1.0)]}
    loss, rate = loss_figure(curves, heldout=[(0, 3.5), (2, 2.5)]).axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in loss.lines}
    assert drawn["few rows"] == ([1, 2], [3.0, 1.0])
    assert drawn["held-out loss"] == ([0, 2], [3.5, 2.5])
    assert list(rate.lines[0].get_ydata()) == [1e-3, 5e-4]
    assert loss.lines[1].get_linestyle() != loss.lines[3].get_linestyle()


@pytest.mark.parametrize("window", [1, 2, 5, 9])
def test_running_mean_is_numpys_convolution_once_the_window_is_full(window):
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    means = running_mean(values, window)
    full = np.convolve(values, np.ones(window) / window, mode="valid") if window <= len(values) else []
    np.testing.assert_allclose(means[window - 1 :], full)
    np.testing.assert_allclose(means[: window - 1], [np.mean(values[:n]) for n in range(1, window)][: len(values)])


@pytest.mark.parametrize("curves", [{}, {"empty": []}])
def test_a_curve_needs_points(curves):
    with pytest.raises(LabError):
        loss_figure(curves)


def test_kept_figure_shows_shares_intervals_and_counts():
    before, after = {"bullets": (0, 4), "yes_no": (1, 2)}, {"bullets": (4, 4), "yes_no": (2, 2)}
    axes = kept_figure(before, after, interval=wilson_interval).axes[0]
    assert sorted(bar.get_width() for bar in axes.patches) == [0, 0.5, 1, 1]
    ends = {tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2}
    assert ends == {wilson_interval(*share) for share in (*before.values(), *after.values())}
    assert sorted(line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1) == [0, 0.5, 1, 1]
    assert {"0/4", "1/2", "4/4", "2/2"} <= {text.get_text() for text in axes.texts}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["yes_no", "bullets"]


@pytest.mark.parametrize(("before", "after"), [({}, {}), ({"bullets": (0, 1)}, {"quoted": (0, 1)})])
def test_kept_figure_compares_the_same_kinds(before, after):
    with pytest.raises(LabError):
        kept_figure(before, after, interval=wilson_interval)
