"""The visible checks of lesson 03; right answers come from bitsandbytes or from arithmetic written out here."""

import bitsandbytes.functional as bnb
import pytest
import torch

from labkit.models.shapes import CATALOGUE
from labkit.page.exercises import judge
from labkit.page.questions import q03
from labkit.page.questions.q03_samples import pruned_weights, two_layers
from labkit.theory.codes import levels
from labkit.theory.nf4 import dequantize, quantize, relative_error
from labkit.theory.normal_blocks import sample_levels


def scaled_by(scale, pick=lambda distance: distance.argmin(-1)):
    def answer(block, table):
        size = scale(block)
        return pick((block[:, None] / size - table).abs()), size

    return answer


def absmax(block):
    return block.abs().max()


def safe(block):
    return block.abs().max().clamp(min=1e-38)


def right(block, table):
    size = absmax(block)
    scaled = block / size if size else block
    return torch.bucketize(scaled, (table[1:] + table[:-1]) / 2), size


def in_plain_python(block, table):
    size = max(abs(x) for x in block.tolist())
    return [int((x / size if size else x).sub(table).abs().argmin()) for x in block], size


def divides_in_python(block, table):
    size = float(absmax(block))
    return [int((table - x / size).abs().argmin()) for x in block.tolist()], size


def upper(block, table):
    size = absmax(block)
    scaled = block / size if size else block
    return torch.bucketize(scaled, (table[1:] + table[:-1]) / 2, right=True), size


def cut(offset, right):
    def answer(block, table):
        size = absmax(block)
        scaled = block / size if size else block
        return torch.searchsorted(table, scaled, right=right) - offset, size

    return answer


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (right, "right", "right"),
        (in_plain_python, "right", "right"),
        (scaled_by(lambda block: block.max()), "wrong", "largest *magnitude*"),
        (scaled_by(lambda block: torch.tensor(1.0)), "wrong", "not divided by its absmax"),
        (scaled_by(absmax), "wrong", "absmax 0"),
        (divides_in_python, "wrong", "absmax 0"),
        (upper, "wrong", "takes the lower level"),
        (cut(1, True), "wrong", "the level below the value"),
        (cut(0, False), "wrong", "the level above the value"),
        (lambda block, table: (table[right(block, table)[0]], absmax(block)), "wrong", "places in the table"),
        (lambda block, table: (right(block, table)[0], 2 * absmax(block)), "wrong", "the absmax is 2 and not 4"),
        (lambda block, table: right(block, torch.tensor(q03.nf4_levels())), "wrong", "for the block [0.5"),
        (lambda block, table: right(block, table)[0], "wrong", "return indices, absmax"),
        (lambda block, table: 7, "wrong", "return indices, absmax"),
        (lambda block, table: ([float("nan")] * len(block), 1.0), "wrong", "the indices are"),
        (lambda block, table: None, "not attempted", "not attempted"),
        (lambda block: 1, "error", "TypeError"),
        ([1, 2], "wrong", "a function is asked for"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_nf4_quantize(value, state, reason):
    found, message, _ = judge("q3_1", value)
    assert (found, reason in message) == (state, True), message


@pytest.mark.parametrize("block", [block for block, table in q03.BLOCKS if table is None])
def test_the_blocks_with_nf4_are_judged_as_bitsandbytes_does(block):
    padded = torch.zeros(64)
    padded[: len(block)] = torch.tensor(block)
    packed, state = bnb.quantize_4bit(padded, quant_type="nf4")
    wanted, scale = q03.nearest_lower(block, q03.nf4_levels())
    theirs = torch.stack([packed[:, 0] >> 4, packed[:, 0] & 15], 1).flatten()[: len(block)]
    assert theirs.tolist() == wanted
    assert float(state.absmax[0]) == scale


def test_every_mistake_shows_on_some_block():
    for mistake, en, _ in q03.MISTAKES:
        wrong = []
        for block, table in q03.BLOCKS:
            table = q03.nf4_levels() if table is None else table
            wrong.append(mistake(block, table)[0] != q03.nearest_lower(block, table)[0])
        assert any(wrong), en


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (lambda size, double: 4 + (8 / size + 32 / (256 * size) if double else 32 / size), "right", "right"),
        (lambda size, double: 4.5, "wrong", "4.5 is right for blocks of 64 only"),
        (lambda size, double: 4, "wrong", "the indices alone"),
        (lambda size, double: 4 + (8 if double else 32) / size, "wrong", "second-level constants are missing"),
        (lambda size, double: 4 + 4 / size, "wrong", "adds bytes to bits"),
        (lambda size, double: 4 + 16 / size, "wrong", "16-bit absmax"),
        (lambda size, double: 4 + (8 / size + 32 / 256 if double else 32 / size), "wrong", "256 *blocks*"),
        (lambda size, double: 0.5 + (1 / size + 4 / (256 * size) if double else 4 / size), "wrong", "bytes per weight"),
        (lambda size, double: 4 + 32 / size, "wrong", "double_quant is ignored"),
        (lambda size, double: 5.0, "wrong", "should be 4.5"),
        (lambda size, double: "many", "wrong", "gives many"),
        (lambda size, double: None, "not attempted", "not attempted"),
        (lambda size: 4.5, "error", "TypeError"),
        (4.5, "wrong", "a function is asked for"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_bits(value, state, reason):
    found, message, _ = judge("q3_2", value)
    assert (found, reason in message) == (state, True), message


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (("A", 6.07), "right", "right"),
        (["A", 6.1], "right", "right"),
        (("B", 6.07), "wrong", "no block of B mixes rows"),
        (("a", 6.07), "wrong", '"A" or "B"'),
        (("A", 4.23), "wrong", "embedding and the LM head in 4 bits"),
        (("A", 4.1), "wrong", "every parameter"),
        (("A", 5), "wrong", "LLaMA-7B"),
        (("A", 6.4), "wrong", "without double quantization"),
        (("A", 3.58), "wrong", "the linears alone"),
        (("A", 8.56), "wrong", "in float32"),
        (("A", 16.38), "wrong", "bfloat16 throughout"),
        (("A", 5.66), "wrong", "GiB"),
        (("A", 6.07e9), "wrong", "bytes"),
        (("A", 9.9), "wrong", "is not it"),
        (("A", "six"), "wrong", "is not it"),
        (("A", ...), "not attempted", "not attempted"),
        ((..., 6.07), "not attempted", "not attempted"),
        (6.07, "wrong", "a pair is asked for"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_suffering_and_gb(value, state, reason):
    found, message, _ = judge("q3_3", value)
    assert (found, reason in message) == (state, True), message


def test_layer_a_suffers_more():
    errors = {name: relative_error(layer, dequantize(quantize(layer))) for name, layer in two_layers().items()}
    assert errors["A"] > 1.5 * errors["B"]


def test_gigabytes_are_counted_by_hand():
    shape = CATALOGUE[q03.MODEL]
    linears = shape.linear_params()
    tables = 7 * shape.n_layers * (64 + 1024 + 4)  # each tensor's own copy of both codes, and its offset
    by_hand = linears * (0.5 + 1 / 64 + 4 / 64 / 256) + tables + 2 * (shape.n_params - linears)
    assert q03.nf4_gb() == pytest.approx(by_hand / 1e9, rel=1e-12)
    assert round(q03.nf4_gb(), 2) == 6.07


def fitted():
    weights = pruned_weights()
    scale = weights.abs().amax(1, keepdim=True)
    code = sample_levels(weights / scale, (scale**2).expand_as(weights))
    for value in q03.DEMANDED:
        code[(code - value).abs().argmin()] = value
    return code


NF4 = levels("nf4").tolist()


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (fitted(), "right", "right"),
        (fitted().tolist()[::-1], "right", "right"),
        (NF4, "wrong", "NF4 itself"),
        (torch.linspace(-1, 1, 16).tolist(), "wrong", "0 must be one of the levels"),
        ([*torch.linspace(-0.9, 0.9, 15).tolist(), 0.1], "wrong", "-1 must be one"),
        ((torch.arange(-7, 8) / 7).tolist(), "wrong", "I count 15"),
        ([*(torch.arange(-7, 8) / 7).tolist(), 0.05], "wrong", "of NF4's"),
        ([0.0] * 16, "wrong", "I count 1"),
        ([4.0 * level for level in NF4], "wrong", "between -1 and 1"),
        ([float("nan"), *NF4[1:]], "wrong", "finite"),
        (["a"], "wrong", "16 numbers"),
        (0.5, "wrong", "16 numbers"),
        ([...] * 16, "not attempted", "not attempted"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_better_code(value, state, reason):
    found, message, _ = judge("q3_4", value)
    assert (found, reason in message) == (state, True), message


def test_the_codes_of_the_lesson_are_not_good_enough():
    assert min(
        q03.code_error(code) for code in ("nf4", "fp4", "int4", "uniform", "af4", "lloyd")
    ) > 0.5 * q03.code_error("nf4")
    assert q03.code_error(fitted()) < 0.45 * q03.code_error("nf4")
