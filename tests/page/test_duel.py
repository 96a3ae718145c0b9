"""A duel takes each method at its own best rate, seed by seed; checked against scipy on rows made by hand."""

import pytest
import scipy.stats

from labkit.errors import LabError
from labkit.page.duel import duel
from labkit.page.results import Results

LOSSES = {
    ("lora", 0.01): (2.0, 2.2, 2.1),
    ("lora", 0.1): (2.5, 2.4, 2.9),
    ("dora", 0.01): (2.3, 2.3, 2.4),
    ("dora", 0.1): (1.9, 2.15, 2.02),
}


def race(losses=LOSSES, before=3.0):
    rows = [
        {"settings": {"kind": kind, "learning_rate": rate, "seed": seed}, "heldout_loss_after": loss}
        | {"heldout_loss_before": before, "blocks": [], "error": None}
        for (kind, rate), seeds in losses.items()
        for seed, loss in enumerate(seeds)
    ]
    return Results(tuple(rows), "by hand")


def test_each_method_is_taken_at_its_own_best_rate_and_seed_by_seed():
    found = duel(race())
    assert found.rates == {"lora": 0.01, "dora": 0.1}
    wanted = scipy.stats.ttest_rel(LOSSES["dora", 0.1], LOSSES["lora", 0.01]).confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((wanted.low, wanted.high))
    assert found.gain == pytest.approx(0.9)
    assert found.percent[0] == pytest.approx(100 * found.difference.mean / 0.9)
    assert found.verdict == "better"


@pytest.mark.parametrize(
    ("dora", "verdict"), [((2.01, 2.19, 2.1), "noise"), ((2.1, 2.31, 2.2), "worse"), ((1.9, 2.09, 2.0), "better")]
)
def test_the_verdict_is_about_the_second_method(dora, verdict):
    only = {("lora", 0.01): LOSSES["lora", 0.01], ("dora", 0.01): dora}
    assert duel(race(only)).verdict == verdict


def test_a_method_that_never_ran_is_named():
    with pytest.raises(LabError, match="no finished trial of qdora"):
        duel(race(), "lora", "qdora")
