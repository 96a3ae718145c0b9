"""Pictures of codes: every value of every control is drawn, and the line agrees with bitsandbytes."""

import re
import subprocess
import sys
from itertools import product

import bitsandbytes.functional as bnb
import pytest
import torch

from labkit.errors import LabError
from labkit.models.methods import BLOCK_SIZES
from labkit.page.code_figures import BINS, MOST_WEIGHTS, CodePicture, error_figure, levels_figure, qq_figure, view
from labkit.page.widgets import tensor_widget
from labkit.theory.codes import CODES, levels

GENERATOR = torch.Generator().manual_seed(0)
TENSORS = {"normal": torch.randn(96, 130, generator=GENERATOR), "odd": torch.randn(77, generator=GENERATOR) ** 3}


def numbers(line):
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_setting_is_drawn_and_the_line_agrees_with_bitsandbytes(lang, monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", lang)
    made = tensor_widget(TENSORS)
    options = {name: list(control.options) for name, control in made.controls.items()}
    assert options["code"] == list(CODES)
    assert options["block_size"] == list(BLOCK_SIZES)
    if lang == "zh":
        options["code"], options["block_size"] = ["nf4"], [32, 4096]
    for tensor, code, size, double in product(*options.values()):
        error, bits, entropy = numbers(made.redraw(tensor=tensor, code=code, block_size=size, double_quant=double))
        assert 0 < error < 0.5 and 4 < bits < 6 and 0 < entropy <= 4
        if code not in ("nf4", "fp4"):
            continue
        weight = TENSORS[tensor]
        packed, state = bnb.quantize_4bit(weight, quant_type=code, blocksize=size, compress_statistics=double)
        stored = packed.nbytes + state.absmax.nbytes
        stored += state.state2.absmax.nbytes + state.offset.nbytes if double else 0
        off = (bnb.dequantize_4bit(packed, state).reshape(weight.shape) - weight).norm() / weight.norm()
        assert error == pytest.approx(float(off), abs=6e-5)
        assert bits == pytest.approx(8 * stored / weight.numel(), abs=6e-4)


def test_the_artists_move_with_the_controls():
    picture = CodePicture(TENSORS)
    picture.redraw("normal", "fp4", 64, False)
    assert len(picture.lines.get_segments()) == 15  # FP4 has its zero twice
    assert sum(bar.get_height() for bar in picture.bars) == pytest.approx(1)
    before = picture.steps.get_data().values.copy()
    picture.redraw("normal", "nf4", 4096, False)
    assert [segment[0][0] for segment in picture.lines.get_segments()] == pytest.approx(levels("nf4").tolist())
    assert not (picture.steps.get_data().values == before).all()
    assert picture.bars[15].get_height() < 0.01  # few weights are near the largest of 4,096


def test_a_control_repaints(monkeypatch):
    made = tensor_widget(TENSORS, block_size=32)
    made.controls["code"].value = "uniform"
    assert made.values == {"tensor": "normal", "code": "uniform", "block_size": 32, "double_quant": False}
    assert repr(made) in made.status.value
    assert bytes(made.image.value).startswith(b"\x89PNG")


def test_a_view_holds_shares():
    seen = view(TENSORS["odd"], code="fp4", block_size=32)
    assert seen.heights.numel() == BINS
    assert float(seen.heights.sum()) == pytest.approx(1)
    assert float(seen.shares.sum()) == pytest.approx(1)
    assert len(seen.levels) == len(seen.shares) == 15


def test_only_the_first_weights_of_a_large_tensor_are_used():
    picture = CodePicture({"large": torch.ones(MOST_WEIGHTS + 64)})
    assert picture.tensors["large"].numel() == MOST_WEIGHTS


def test_a_zero_tensor_can_be_looked_at():
    assert view(torch.zeros(70), code="nf4", block_size=64).relative_error == 0


def test_levels_figure_has_a_panel_a_view():
    seen = view(TENSORS["normal"], code="nf4", block_size=64)
    fig = levels_figure({"one": seen, "two": seen})
    assert [axes.get_title()[:3] for axes in fig.axes] == ["one", "two"]


def test_the_quantiles_of_a_normal_sample_lie_on_the_line():
    fig = qq_figure({"normal": torch.randn(20000, generator=GENERATOR), "cubed": TENSORS["odd"]})
    assert len(fig.axes) == 2
    x, y = fig.axes[0].lines[0].get_data()
    assert max(abs(x - y.numpy() if hasattr(y, "numpy") else x - y)) < 0.2


def test_errors_by_block_size_have_a_line_a_code():
    fig = error_figure({"one": [1, 2], "two": [2, 3]}, [32, 64])
    assert [line.get_label() for line in fig.axes[0].lines] == ["one", "two"]


@pytest.mark.parametrize(
    "call",
    [lambda: tensor_widget({}), lambda: levels_figure({}), lambda: qq_figure({}), lambda: error_figure({}, [])],
)
def test_nothing_to_draw_is_explained(call):
    with pytest.raises(LabError, match="nothing to"):
        call()


def test_a_start_that_is_no_option_is_refused():
    with pytest.raises(LabError, match="block size is one of"):
        tensor_widget(TENSORS, block_size=65)


def test_the_module_imports_no_torch():
    code = "import labkit.page.code_figures, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
