"""Lesson 07's figures and arms: every position of the controls draws, the arms are scipy's numbers."""

import pytest
from scipy import stats

from labkit.errors import LabError
from labkit.models.methods import Step
from labkit.models.shapes import shape_of
from labkit.page.advice import ADVICE, advice_rows, show_advice
from labkit.page.arms import arms_of, difference, table
from labkit.page.lecture import ledger
from labkit.page.spectrum_figures import SIDES, SPIKES, arms_figure, edge_widget, share_widget, snr_map
from labkit.theory.selection import select
from labkit.training.scan import scores_of


def rows(name, losses, *, rate=1e-3, params=10):
    return [
        {
            "blocks": [name],
            "settings": {"learning_rate": rate, "seed": seed},
            "heldout_loss_after": loss,
            "trainable_params": params,
            "peak_memory": {"predicted_bytes": 2**20},
        }
        for seed, loss in enumerate(losses)
    ]


def test_an_arm_is_its_best_rate():
    (arm,) = arms_of(rows("a", [3, 3.2, 3.1]) + rows("a", [2, 2.2, 2.4], rate=1e-2) + rows("a", [5], rate=1e-1))
    assert (arm.learning_rate, arm.losses, arm.edge) == (1e-2, (2, 2.2, 2.4), False)
    assert arm.rates == {1e-3: pytest.approx(3.1), 1e-2: pytest.approx(2.2), 1e-1: 5}


def test_a_rate_with_one_seed_or_a_failure_never_wins():
    (arm,) = arms_of(rows("a", [3, 3.2]) + rows("a", [1], rate=1e-2) + rows("a", [1, None], rate=1e-1))
    assert (arm.learning_rate, arm.edge) == (1e-3, True)
    with pytest.raises(LabError, match="no learning rate"):
        arms_of(rows("a", [None, 2]))


def test_a_difference_is_welchs():
    first, second = (arms_of(rows(name, losses))[0] for name, losses in (("a", [1, 2, 3]), ("b", [2.1, 2.2, 2.6, 9])))
    gap = difference(first, second)
    expected = stats.ttest_ind(second.losses, first.losses, equal_var=False)
    assert (gap.low, gap.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert gap.holds_zero == (expected.pvalue > 0.05)
    with pytest.raises(LabError, match="single runs"):
        difference(first, arms_of(rows("c", [1]))[0])


def test_the_table_says_noise_where_zero_is_inside():
    found = arms_of(rows("base", [2, 2.1, 2.2]) + rows("same", [2, 2.15, 2.3]) + rows("worse", [3, 3.1, 3.2]))
    lines = {line[0]: line[-1] for line in table(found, baseline="base")}
    assert lines["base"] == ""
    assert lines["same"].endswith("noise")
    assert lines["worse"].endswith("worse")
    assert len(arms_figure(found).axes[0].get_yticklabels()) == 3


def test_the_shipped_arms_are_whole_and_of_equal_size():
    from labkit.jsonl import read_rows
    from labkit.paths import data_folder

    found = {arm.name: arm for arm in arms_of(read_rows(data_folder() / "results" / "spectrum_tiny.jsonl"))}
    assert {name: arm.trainable_params for name, arm in found.items()} == {
        **dict.fromkeys(("full, high", "full, low", "full, random"), 196_608),
        **dict.fromkeys(("LoRA, high", "LoRA, low", "LoRA, random", "LoRA, everywhere"), 77_824),
    }
    assert all(len(arm.losses) == 3 for arm in found.values())


def test_every_position_of_the_edge_widget_draws():
    widget = edge_widget(rows=256, columns=64)
    for n in SIDES[:3]:
        for m in SIDES[:3]:
            for spike in SPIKES:
                assert f"{n} x {m}" in widget.redraw(n, m, spike)
    assert "8 clear of the edge" in widget.redraw(256, 256, 4)
    assert "0 clear of the edge" in widget.redraw(256, 256, 0)


def test_the_map_frames_what_is_chosen():
    scores = scores_of("tiny")
    assert len(snr_map(scores, chosen=select(scores, top_percent=25)).axes[0].patches) == 7
    with pytest.raises(LabError, match="nothing to draw"):
        snr_map({})


def test_the_share_widget_counts_what_select_does():
    scores, shape = scores_of("tiny"), shape_of("tiny")
    widget = share_widget(shape, scores, Step(seq_len=64), rank=4)
    assert widget.redraw(50).startswith("50 % are 14 modules: whole 393,216 parameters")
    assert [*widget.controls["share"].options] == [25, 33, 50, 75, 100]  # below, int(4 * share) is 0


def test_every_claim_behind_the_advice_exists(capsys):
    known = {row.id for row in ledger()}
    assert all(set(line.claims) <= known for line in ADVICE)
    assert len(advice_rows()) == len(ADVICE) == 9
    assert {row.id for row in ledger(topic="spectrum")} <= {id for line in ADVICE for id in line.claims}
    show_advice()
    assert "bfloat16" in capsys.readouterr().out


def test_the_verdict_on_the_lectures_claim_follows_from_the_stored_arms():
    row = next(row for row in ledger(topic="spectrum") if row.id == "spectrum-better")
    assert row.computed
    assert (row.verdict == "wrong") == (not any(reading.value for reading in row.readings))
