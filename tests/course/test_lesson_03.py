"""The numbers that lesson 03 quotes are those of the stored measurement and of the theory, in both languages."""

import json
import re

import pytest

from labkit.course.lessons import lesson_paths, read_lesson
from labkit.models.shapes import CATALOGUE
from labkit.paths import data_folder
from labkit.theory.codes import entropy_bits, normal_error, normal_usage
from labkit.theory.nf4 import bits_per_weight

MEASURED = json.loads((data_folder() / "measurements" / "nf4_laptop.json").read_text(encoding="utf-8"))
EFFECTS = {effect["label"]: effect for effect in MEASURED["effects"]}
QUOTED = ("nf4", "lloyd", "lloyd with 0", "lloyd with -1, 1", "lloyd with -1, 0, 1", "nf4, double quantization")
QUOTED += ("nf4, block 32", "nf4, block 4096")


@pytest.fixture(params=["en", "zh"])
def prose(request):
    (path,) = (path for path in lesson_paths() if path.stem.startswith("03"))
    return "\n".join(cell.prose[request.param] for cell in read_lesson(path).cells if cell.prose)


@pytest.mark.parametrize("label", QUOTED)
def test_the_change_of_loss_is_quoted_as_measured(prose, label):
    assert f"{EFFECTS[label]['loss_change']:.3f}" in prose


def test_what_is_said_of_the_order_holds_in_the_measurement():
    error = {label: effect["weight_error"] for label, effect in EFFECTS.items()}
    loss = {label: effect["loss_change"] for label, effect in EFFECTS.items()}
    codes = ("nf4", "fp4", "int4", "uniform", "af4", "lloyd")
    assert min(codes, key=error.get) == "lloyd"
    assert min(codes, key=loss.get) == "nf4"
    assert max(codes, key=loss.get) == "uniform"
    assert error["lloyd"] < error["lloyd with 0"] < error["nf4"]
    assert error["uniform"] < min(error["fp4"], error["int4"])
    doubt = EFFECTS["nf4"]["loss_change_standard_error"] + EFFECTS["lloyd with -1, 0, 1"]["loss_change_standard_error"]
    assert abs(loss["nf4"] - loss["lloyd with -1, 0, 1"]) < doubt
    ratio = EFFECTS["nf4, down_proj only"]["divergence"] / EFFECTS["nf4, q_proj only"]["divergence"]
    assert ratio == pytest.approx(6, abs=0.5)


def test_numbers_of_the_theory_are_quoted_right(prose):
    shape = CATALOGUE["qwen3-8b"]
    numbers = [
        f"{bits_per_weight(64, double_quant=True):.3f}",
        f"{bits_per_weight(64) - bits_per_weight(64, double_quant=True):.3f}",
        f"{normal_error('nf4'):.5f}",
        f"{normal_error('lloyd'):.5f}",
        f"{entropy_bits(normal_usage('nf4')):.3f}",
        f"{100 * shape.linear_params() / shape.n_params:.1f}",
    ]
    assert [number for number in numbers if number not in prose] == []
    assert 1 - normal_error("lloyd", 4096) / normal_error("nf4", 4096) == pytest.approx(0.20, abs=0.005)
    assert 1 - normal_error("lloyd") / normal_error("nf4") == pytest.approx(0.10, abs=0.005)
    assert re.search(r"\b20 ?%", prose)
