"""Bars against the predictions they draw, choices against Method and Step."""

import pytest

from labkit.errors import LabError
from labkit.models.methods import TARGETS, Method, Step
from labkit.models.shapes import CATALOGUE
from labkit.page.memory_figures import (
    GIB,
    describe,
    memory_bars,
    predict_choice,
    settle,
    spare_gib,
    verdict,
)
from labkit.theory.memory import predict

CHOICE = {"model": "qwen3-8b", "kind": "qlora", "seq_len": 2048, "loss": "full", "targets": "q_proj,v_proj"}


def predictions():
    kinds = ("full", "lora", "qlora")
    return {kind: predict(CATALOGUE["qwen3-8b"], Method(kind=kind), Step(loss="full")) for kind in kinds}


def test_a_choice_is_a_method_and_a_step():
    model, method, step = settle(CHOICE)
    assert (model, step) == ("qwen3-8b", Step(seq_len=2048, loss="full"))
    assert method == Method(kind="qlora", targets=("q_proj", "v_proj"))
    assert settle({**CHOICE, "targets": "all"})[1].targets == TARGETS
    assert predict_choice(CHOICE) == predict(CATALOGUE["qwen3-8b"], method, step)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"kind": "lora"}, "without model"),
        ({"model": "qwen3-8b"}, "without kind"),
        ({**CHOICE, "sequence_len": 3}, "did you mean seq_len"),
        ({**CHOICE, "zzz": 3}, "use one of model, kind"),
        ({**CHOICE, "rank": 0}, "rank=0"),
        ({**CHOICE, "model": "qwen3-9b"}, "qwen3-8b"),
    ],
)
def test_a_bad_choice_says_what_to_mend(choice, said):
    with pytest.raises(LabError, match=said):
        predict_choice(choice)


def test_the_pieces_of_a_bar_add_up_to_its_peak():
    drawn = predictions()
    axes = memory_bars(drawn).axes[0]
    ends = [
        max(patch.get_x() + patch.get_width() for patch in axes.patches if row_of(patch) == row) for row in range(3)
    ]
    assert ends == pytest.approx([prediction.peak_allocated_bytes / GIB for prediction in drawn.values()])
    assert [label.get_text() for label in axes.get_yticklabels()] == list(drawn)
    assert len({(patch.get_facecolor(), patch.get_hatch()) for patch in axes.patches}) == len(axes.get_legend().texts)


def row_of(patch):
    return round(patch.get_y() + patch.get_height() / 2)


def test_cards_are_lines_and_those_far_away_are_left_out():
    drawn = {"lora": predictions()["lora"]}
    axes = memory_bars(drawn, cards_gib=(16, 24, 80)).axes[0]
    assert [line.get_xdata()[0] for line in axes.lines] == [16, 24]
    assert axes.get_xlim()[1] > 24
    only = memory_bars(drawn, cards_gib=(80,)).axes[0]
    assert [line.get_xdata()[0] for line in only.lines] == [80]
    assert len(memory_bars(drawn, cards_gib=()).axes[0].lines) == 0


def test_words_carry_the_key_numbers():
    prediction = predictions()["qlora"]
    said = describe({"mine": prediction})
    assert f"mine {prediction.peak_allocated_bytes / GIB:.2f} GiB" in said
    assert "the largest part parameters" in said


def test_fitting_keeps_a_gib_free(monkeypatch):
    prediction = predictions()["qlora"]
    peak = prediction.peak_allocated_bytes / GIB
    assert spare_gib(prediction, peak + 1) == pytest.approx(0, abs=1e-9)
    assert verdict(prediction, peak + 3) == f"fits {peak + 3:g} GiB: 2.00 GiB spare"
    assert verdict(prediction, 4).startswith("does not fit 4 GiB: ")
    monkeypatch.setenv("LABKIT_LANG", "zh")
    assert verdict(prediction, 4).startswith("4 GiB 放不下：还差")


def test_nothing_to_draw_is_said():
    with pytest.raises(LabError, match="nothing to draw"):
        memory_bars({})
