"""Four-bit blocks against bitsandbytes, bit for bit; storage against what bitsandbytes allocates."""

from __future__ import annotations

import math
from dataclasses import replace

import bitsandbytes.functional as bnb
import pytest
import torch
from torch._C import DispatchKey

from labkit.errors import LabError
from labkit.models.methods import Method
from labkit.models.shapes import CATALOGUE
from labkit.theory import codes, nf4
from labkit.theory.codes import CODES, dynamic_map, levels
from labkit.theory.nf4 import (
    bits_per_weight,
    dequantize,
    double_quantize,
    pack,
    quantize,
    relative_error,
    restore,
    stored_bytes,
    unpack,
    usage,
)
from labkit.theory.resident import quantization_bytes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STORED = ("nf4", "fp4")  # what bitsandbytes can store
SIZES = [(1,), (2,), (63,), (64,), (65,), (127,), (128,), (1000,), (64, 64), (33, 65), (7, 3, 11), (300, 128)]


def normal(*shape, seed=0, dtype=torch.float32, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def with_zero_block(dtype):
    weight = normal(5, 64, dtype=dtype)
    weight[2] = 0
    return weight


def on_boundaries(code, absmax=2.0):
    """Blocks whose values, once divided by a power of two, are the levels and exactly the edges between them."""
    table = levels(code).sort().values
    edges = (table[:-1] + table[1:]) / 2
    values = torch.cat([table, edges, torch.nextafter(edges, edges + 1), torch.nextafter(edges, edges - 1)])
    values = torch.cat([values, torch.zeros(-values.numel() % 63)]).reshape(-1, 63)
    ends = torch.ones(len(values), 1)
    return absmax * torch.cat([torch.cat([ends, values], 1), torch.cat([-ends, values], 1)])


def tensors():
    """Label -> tensor: everything that is compared with bitsandbytes."""
    cases = {f"normal {size} {dtype}": normal(*size, dtype=dtype) for size in SIZES for dtype in DTYPES}
    for dtype in DTYPES:
        cases[f"zero block {dtype}"] = with_zero_block(dtype)
        cases[f"all zero, short tail {dtype}"] = torch.zeros(100, dtype=dtype)
        cases[f"negative zero {dtype}"] = -torch.zeros(64, dtype=dtype)
        cases[f"one value {dtype}"] = torch.full((3, 64), -0.3, dtype=dtype)
        cases[f"tiny {dtype}"] = normal(4, 64, dtype=dtype, scale=1e-7)
        cases[f"heavy tails {dtype}"] = normal(50, 64, seed=5, dtype=dtype) ** 3
        for code in STORED:
            cases[f"boundaries of {code} {dtype}"] = on_boundaries(code).to(dtype)
    for exponent in (-37, -38, -39, -41, -44):  # float32's normal numbers end at 1.2e-38
        cases[f"about 1e{exponent}"] = normal(3, 64, scale=1.0) * 10.0**exponent
        cases[f"about 1e{exponent}, short tail"] = normal(90, seed=1) * 10.0**exponent
    cases["large"] = normal(4, 64, scale=1e37)
    cases["not contiguous"] = normal(65, 40).T
    cases["trainable"] = normal(3, 50).requires_grad_()
    return cases


CASES = tensors()


@pytest.mark.parametrize("block_size", [32, 64, 256, 4096])
@pytest.mark.parametrize("code", STORED)
@pytest.mark.parametrize("label", CASES)
def test_indices_absmax_and_bytes_equal_bitsandbytes(label, code, block_size):
    weight = CASES[label].detach()
    packed, state = bnb.quantize_4bit(weight.contiguous(), quant_type=code, blocksize=block_size)
    mine = quantize(weight, block_size=block_size, code=code)
    assert torch.equal(pack(mine), packed.flatten())
    assert torch.equal(mine.absmax.view(torch.int32), state.absmax.view(torch.int32))
    assert torch.equal(unpack(packed.flatten(), weight.numel()), mine.indices.flatten())
    assert mine.indices.shape == weight.shape


@pytest.mark.parametrize("code", STORED)
@pytest.mark.parametrize("label", [label for label, weight in CASES.items() if weight.shape[-1] % 2 == 0])
def test_dequantized_weights_equal_bitsandbytes(label, code):
    weight = CASES[label].detach().contiguous()
    theirs = bnb.dequantize_4bit(*bnb.quantize_4bit(weight, quant_type=code))
    mine = dequantize(quantize(weight, code=code))
    assert mine.dtype == weight.dtype
    assert torch.equal(mine, theirs.reshape(weight.shape))


@pytest.mark.parametrize("block_size", [1, 3, 64, 500])
@pytest.mark.parametrize("n", [1, 63, 64, 129, 1001])
@pytest.mark.parametrize("code", ["nf4", "int4", (0.5,)])
def test_dequantized_is_level_times_constant_wherever_it_is_cut(monkeypatch, block_size, n, code):
    monkeypatch.setattr(nf4, "AT_ONCE", 100)
    monkeypatch.setattr(codes, "AT_ONCE", 7)  # weights at a time: blocks that fit once, many times, and not at all
    whole = quantize(normal(2 * n).bfloat16(), block_size=block_size, code=code)
    for mine in (whole, replace(whole, indices=whole.indices[::2], shape=torch.Size([n]))):  # the second has strides
        levels_times = whole.table[mine.indices.long()]
        expected = levels_times * whole.absmax.repeat_interleave(block_size)[: len(levels_times)]
        assert torch.equal(dequantize(mine, whole.absmax[: -(-len(levels_times) // block_size)]), expected.bfloat16())


@pytest.mark.parametrize("label", CASES)
def test_double_quantized_constants_equal_bitsandbytes(label):
    weight = CASES[label].detach().contiguous()
    _, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    mine = double_quantize(quantize(weight).absmax)
    assert torch.equal(mine.indices, state.absmax)
    assert torch.equal(mine.outer, state.state2.absmax)
    assert torch.equal(mine.offset, state.offset)
    assert torch.equal(restore(mine), bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset)


@pytest.mark.parametrize("n_blocks", [1, 2, 255, 256, 257, 4000])
def test_many_constants_equal_bitsandbytes_by_either_rule(n_blocks):
    absmax = quantize(normal(n_blocks, 64, seed=n_blocks)).absmax
    indices, state = bnb.quantize_blockwise(absmax - absmax.mean(), blocksize=256)
    mine = double_quantize(absmax)
    assert torch.equal(mine.indices, indices)
    assert torch.equal(mine.outer, state.absmax)
    operator = torch.ops.bitsandbytes.quantize_blockwise.default  # its Python implementation, below the CPU's kernel
    arguments = (absmax - absmax.mean(), dynamic_map(), 256)
    indices, outer = operator._op_dk(DispatchKey.CompositeExplicitAutograd, *arguments)
    plain = double_quantize(absmax, rule="nearest")
    assert torch.equal(plain.indices, indices)
    assert torch.equal(plain.outer, outer)


def test_the_compiled_kernel_misses_the_nearest_level_now_and_then():
    absmax = quantize(normal(4000, 64)).absmax
    rules = [double_quantize(absmax, rule=rule) for rule in ("table", "nearest")]
    differ = (rules[0].indices != rules[1].indices).double().mean()
    assert 0 < differ < 0.01
    errors = [(restore(double) - absmax).abs().mean() for double in rules]
    assert errors[1] <= errors[0] < 1.01 * errors[1]


def test_constants_that_are_all_equal_survive_double_quantization():
    absmax = torch.full((300,), 0.25)
    assert torch.equal(restore(double_quantize(absmax)), absmax)


def test_double_quantization_changes_weights_by_little():
    weight = normal(256, 64)
    plain = quantize(weight)
    restored = dequantize(plain, restore(double_quantize(plain.absmax)))
    assert relative_error(weight, dequantize(plain)) < relative_error(weight, restored) < 0.0935


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_not_finite_are_refused(bad, dtype):
    weight = normal(70, dtype=dtype)
    weight[69] = bad
    with pytest.raises(LabError, match="not finite"):
        quantize(weight)


@pytest.mark.parametrize(
    ("weight", "changes", "said"),
    [
        (torch.empty(0), {}, "0 elements"),
        (torch.ones(4, dtype=torch.float64), {}, "float64"),
        (torch.ones(4, dtype=torch.int32), {}, "int32"),
        (torch.ones(4), {"block_size": 0}, "block_size=0"),
        (torch.ones(4), {"block_size": 64.0}, "block_size=64.0"),
        (torch.ones(4), {"block_size": True}, "block_size=True"),
        (torch.ones(4), {"code": "nf5"}, "nf5"),
        (torch.ones(4), {"code": [0.0] * 17}, "17 levels"),
        (torch.ones(4), {"code": [0.0, 1.5]}, "between -1 and 1"),
    ],
)
def test_bad_input_is_explained(weight, changes, said):
    with pytest.raises(LabError, match=said):
        quantize(weight, **changes)


@pytest.mark.parametrize("absmax", [torch.ones(3, dtype=torch.bfloat16), torch.ones(2, 2), torch.ones(0)])
def test_double_quantization_wants_flat_float32(absmax):
    with pytest.raises(LabError, match="flat float32"):
        double_quantize(absmax)


def test_double_quantization_explains_an_overflow_and_an_unknown_rule():
    with pytest.raises(LabError, match="not a finite number"):
        double_quantize(torch.full((4,), 3e38))
    with pytest.raises(LabError, match="table, nearest"):
        double_quantize(torch.ones(3), rule="best")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("block_size", [1, 2, 48, 64, 100])
def test_every_code_takes_the_nearest_level(code, block_size):
    weight = normal(333)
    mine = quantize(weight, block_size=block_size, code=code)
    scales = torch.stack([block.abs().max() for block in weight.split(block_size)])
    assert torch.equal(mine.absmax, scales)
    scales = scales.repeat_interleave(block_size)[: weight.numel()].double()
    distances = (mine.table.double() * scales[:, None] - weight[:, None].double()).abs()
    taken = distances.gather(1, mine.indices.long()[:, None])[:, 0]
    assert float((taken - distances.min(1).values).max()) < 1e-6


def test_a_code_of_ones_own_need_not_be_sorted():
    weight = normal(640)
    table = levels("nf4")
    shuffled = quantize(weight, code=table.flip(0))
    assert shuffled.code == "own"
    assert torch.equal(dequantize(shuffled), dequantize(quantize(weight)))


def test_a_single_level_is_a_code():
    assert dequantize(quantize(torch.tensor([2.0, -1.0]), code=[0.5])).tolist() == [1.0, 1.0]


def test_an_index_that_the_table_lacks_is_no_silent_zero():
    mine = quantize(normal(64), code="int4")  # 15 levels
    broken = dequantize(replace(mine, indices=mine.indices.clone().fill_(15)))
    assert bool(broken.isnan().all())
    with pytest.raises(IndexError):
        dequantize(replace(mine, indices=mine.indices.clone().fill_(16)))


@pytest.mark.parametrize("n", [1, 2, 64, 65])
def test_levels_are_looked_up_from_any_place_of_a_tensor(n):
    table, many = levels("nf4"), quantize(normal(2 * n + 3)).indices
    for part in (*(many[start : start + n] for start in range(4)), many[3::2]):
        assert torch.equal(codes.look_up(part, table), table[part.long()])


@pytest.mark.parametrize("n", [1, 2, 3, 64, 65])
def test_unpacking_undoes_packing(n):
    mine = quantize(normal(n, seed=n))
    assert torch.equal(unpack(pack(mine), n), mine.indices)
    with pytest.raises(LabError, match="are packed in"):
        unpack(pack(mine), n + 2)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 4097, 2**16, 2**16 + 64, 10**6 + 1])
@pytest.mark.parametrize("block_size", [32, 64, 4096])
@pytest.mark.parametrize("double", [False, True])
def test_stored_bytes_are_what_bitsandbytes_allocates(n, block_size, double):
    packed, state = bnb.quantize_4bit(torch.ones(n), quant_type="nf4", blocksize=block_size, compress_statistics=double)
    constants = state.absmax.nbytes + (state.state2.absmax.nbytes + state.offset.nbytes if double else 0)
    assert stored_bytes(n, block_size=block_size, double_quant=double) == packed.nbytes + constants
    exact = bits_per_weight(block_size, double_quant=double, n_weights=n)
    assert exact * n == pytest.approx(8 * (packed.nbytes + constants))


def test_bits_per_weight_are_the_papers():
    assert bits_per_weight(64) == 4.5
    assert bits_per_weight(64, double_quant=True) == 4 + 8 / 64 + 32 / (64 * 256) == 4.126953125
    assert round(bits_per_weight(64) - bits_per_weight(64, double_quant=True), 3) == 0.373
    assert bits_per_weight(64, double_quant=True, n_weights=4096**2) == pytest.approx(4.127, abs=1e-4)


@pytest.mark.parametrize(
    ("n", "block_size", "said"), [(0, 64, "n_weights=0"), (1, 0, "block_size=0"), (2.0, 64, "2.0")]
)
def test_storage_wants_whole_numbers(n, block_size, said):
    with pytest.raises(LabError, match=said):
        stored_bytes(n, block_size=block_size)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-8b", "smollm2-135m"])
@pytest.mark.parametrize("double", [False, True])
def test_storage_agrees_with_the_memory_formula(name, double):
    shape, method = CATALOGUE[name], Method(kind="qlora", double_quant=double)
    tables = 64 + 1024 * double  # the formula also counts each tensor's own copy of the codes
    wanted = sum(
        shape.n_layers * (stored_bytes(a * b, double_quant=double) - a * b // 2 + tables)
        for a, b in shape.linears().values()
    )
    assert quantization_bytes(shape, method) == wanted


def test_relative_error_at_its_edges():
    zeros = torch.zeros(3)
    assert relative_error(zeros, zeros) == 0
    assert relative_error(zeros, torch.ones(3)) == math.inf
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(0.2)
    with pytest.raises(LabError, match="one shape"):
        relative_error(zeros, torch.zeros(4))


def test_usage_counts_every_index():
    shares = usage(quantize(torch.tensor([1.0, 0.0, 0.0, -1.0])))
    assert shares[[0, 7, 15]].tolist() == [0.25, 0.5, 0.25]
    assert float(shares.sum()) == 1
