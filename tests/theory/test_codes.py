"""Levels against bitsandbytes' tables, the paper's equation and published errors; exact errors against sampling."""

from __future__ import annotations

import math

import bitsandbytes.functional as bnb
import pytest
import torch
from scipy import integrate
from scipy.stats import norm

from labkit.errors import LabError
from labkit.theory import normal_blocks
from labkit.theory.codes import (
    CODES,
    dynamic_map,
    entropy_bits,
    equation_4,
    levels,
    normal_error,
    normal_map,
    normal_usage,
)
from labkit.theory.nf4 import dequantize, quantize, usage

# Mean squared errors on N(0, 1): sampled by someone else, to five decimals.
ERRORS = {"nf4": 0.00846, "fp4": 0.01487, "int4": 0.01157, "uniform": 0.01009, "af4": 0.00915, "lloyd": 0.00765}
NF4_BY_BLOCK = {32: 0.00762, 64: 0.00846, 128: 0.00913, 256: 0.00974, 512: 0.01031, 1024: 0.01089, 4096: 0.01210}


def sample(block_size, n=2**21):
    n -= n % block_size
    return torch.randn(n, generator=torch.Generator().manual_seed(block_size))


@pytest.mark.parametrize("code", ["nf4", "fp4", "af4"])
def test_tables_are_bitsandbytes(code):
    theirs = bnb.get_4bit_type(code, device="cpu")
    mine = levels(code)
    assert torch.equal(mine.sort().values if code == "af4" else mine, theirs.sort().values if code == "af4" else theirs)


def test_the_generator_gives_bitsandbytes_nf4():
    theirs = bnb.create_normal_map()
    assert torch.equal(normal_map(), torch.cat([theirs[theirs < 0], torch.zeros(1), theirs[theirs > 0]]))
    assert torch.equal(normal_map(), bnb.get_4bit_type("nf4", device="cpu"))


def test_equation_4_does_not():
    printed = equation_4()
    assert printed.numel() == 15
    assert torch.equal(printed, -printed.flip(0))
    assert float(printed[7]) == 0
    n = 17
    by_scipy = [(norm.ppf(i / n) + norm.ppf((i + 1) / n)) / 2 for i in range(1, 16)]
    assert torch.allclose(printed, torch.tensor(by_scipy, dtype=torch.float32) / max(by_scipy))
    assert math.isinf(norm.ppf(0) + norm.ppf(1 / n))  # why i = 0 is left out
    gaps = (printed[:, None] - normal_map()[None]).abs().min(1).values
    assert float(gaps.max()) > 0.05


def test_the_8_bit_levels_are_bitsandbytes():
    assert torch.equal(dynamic_map(), bnb.create_dynamic_map())


@pytest.mark.parametrize("code", CODES)
def test_tables_are_sane_and_private(code):
    table = levels(code)
    assert table.dtype == torch.float32
    assert table.numel() == (15 if code == "int4" else 16)
    assert float(table.abs().max()) <= 1
    assert bool((table == 0).any()) == (code not in ("uniform", "lloyd"))
    table.zero_()
    assert float(levels(code).abs().max()) > 0.9


@pytest.mark.parametrize("code", CODES)
def test_errors_are_the_known_ones(code):
    # The known Lloyd-Max code was fitted to normalized values, not to the weights' own error: this one is a bit better.
    assert normal_error(code) == pytest.approx(ERRORS[code], abs=6e-5)


@pytest.mark.parametrize("block_size", NF4_BY_BLOCK)
def test_nf4_by_block_size(block_size):
    assert normal_error("nf4", block_size) == pytest.approx(NF4_BY_BLOCK[block_size], abs=3e-5)
    assert normal_error("lloyd", block_size) < normal_error("nf4", block_size)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("block_size", [2, 32, 64, 1024])
def test_exact_errors_and_usage_agree_with_sampling(code, block_size):
    weight = sample(block_size)
    quantized = quantize(weight, block_size=block_size, code=code)
    off = (dequantize(quantized) - weight).double().abs()
    for power in (1, 2):
        sigma = float((off**power).std()) / math.sqrt(weight.numel() / block_size)
        exact = normal_error(code, block_size, power=power)
        assert abs(exact - float((off**power).mean())) < 5 * sigma + 1e-9
    shares = usage(quantized)[torch.argsort(levels(code, block_size), stable=True)]
    assert torch.allclose(normal_usage(code, block_size), shares, atol=3e-3 if block_size < 1024 else 1e-2)


def test_one_case_by_scipys_quadrature():
    table = levels("nf4").double().numpy()

    def error(w, m):
        return min(abs(w - m * q) for q in table) ** 2 * norm.pdf(w) / (2 * norm.cdf(m) - 1)

    def inside(m):
        edges = m * (table[1:] + table[:-1]) / 2
        return sum(integrate.quad(error, a, b, args=(m,))[0] for a, b in zip([-m, *edges], [*edges, m], strict=True))

    block = 4
    density = [lambda m: 2 * block * norm.pdf(m) * (2 * norm.cdf(m) - 1) ** (block - 1)]
    value = integrate.quad(lambda m: density[0](m) * inside(m), 0, 9, epsrel=1e-7, limit=200)[0] * (1 - 1 / block)
    assert normal_error("nf4", block) == pytest.approx(value, rel=1e-5)  # NF4 holds -1 and 1: the absmax has no error


@pytest.mark.parametrize("code", ["nf4", "fp4", "lloyd"])
def test_a_weight_alone_in_its_block_has_no_error(code):
    assert normal_error(code, 1) == pytest.approx(0, abs=1e-12)


def test_entropy_of_nf4_is_below_four_bits():
    shares = normal_usage("nf4")
    assert float(shares.sum()) == pytest.approx(1)
    assert entropy_bits(shares) == pytest.approx(3.885, abs=5e-4)
    assert entropy_bits(torch.full((16,), 1 / 16)) == 4
    assert entropy_bits(torch.tensor([1.0, 0.0])) == 0


@pytest.mark.parametrize("block_size", [2, 64, 4096])
def test_no_small_move_improves_lloyd_max(block_size):
    best = normal_blocks.lloyd_levels(block_size)
    least = normal_blocks.expected_error(best, block_size)
    for place in range(16):
        for step in (-1e-3, 1e-3):
            moved = best.clone()
            moved[place] += step
            assert normal_blocks.expected_error(moved, block_size) > least


def test_lloyd_max_with_fixed_levels():
    fixed = normal_blocks.lloyd_levels(64, fixed=(-1.0, 0.0, 1.0))
    assert {-1.0, 0.0, 1.0} <= set(fixed.tolist())
    assert normal_blocks.expected_error(fixed, 64) == pytest.approx(0.00800, abs=1e-5)
    with pytest.raises(LabError, match="cannot fix 3"):
        normal_blocks.lloyd_levels(64, n=2, fixed=(-1.0, 0.0, 1.0))


def test_lloyd_max_of_a_sample_finds_the_exact_one():
    weight = sample(64)
    rows = weight.reshape(-1, 64)
    absmax = rows.abs().amax(1, keepdim=True)
    found = normal_blocks.sample_levels(rows / absmax, (absmax**2).expand_as(rows))
    assert torch.allclose(found, normal_blocks.lloyd_levels(64), atol=0.01)
    assert normal_blocks.expected_error(found, 64) == pytest.approx(normal_error("lloyd"), rel=1e-3)


def test_lloyd_max_of_a_small_sample():
    values = torch.arange(16) / 15
    assert torch.allclose(normal_blocks.sample_levels(values), values.double())
    with pytest.raises(LabError, match="16 different values"):
        normal_blocks.sample_levels(torch.zeros(100))


@pytest.mark.parametrize("block_size", [64, 4096])
def test_equal_mass_edges_cut_a_sample_into_equal_parts(block_size):
    rows = sample(block_size).reshape(-1, block_size)
    values = (rows / rows.abs().amax(1, keepdim=True)).flatten().double()
    counts = torch.bincount(torch.bucketize(values, normal_blocks.equal_mass_edges(block_size)), minlength=16)
    assert torch.allclose(counts / values.numel(), torch.full((16,), 1 / 16), atol=4e-3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: levels("int8"), "nf4, fp4"),
        (lambda: levels([]), "0 levels"),
        (lambda: levels([float("nan")]), "between -1 and 1"),
        (lambda: levels(["a"]), "list of numbers"),
        (lambda: normal_map(1.0), "between 1/2 and 1"),
        (lambda: normal_map(0.5), "between 1/2 and 1"),
        (lambda: equation_4(0), "at least one bit"),
        (lambda: normal_error("nf4", 0), "block_size=0"),
        (lambda: normal_error("nf4", 64, power=3), "power=3"),
        (lambda: normal_blocks.expected_error(torch.empty(0), 64), "0 levels"),
    ],
)
def test_bad_input_is_explained(call, said):
    with pytest.raises(LabError, match=said):
        call()
