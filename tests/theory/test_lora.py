"""LoRA by hand against PEFT (forward, init, merge, counts) and autograd; the rank view against numpy and scipy."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from labkit.errors import LabError
from labkit.models.methods import TARGETS, Method
from labkit.models.shapes import CATALOGUE, shape_of
from labkit.theory.lora import (
    LoRALinear,
    add_lora,
    decompose,
    fit,
    lora_param_count,
    mean_energy,
    planted_update,
    truncate,
)
from labkit.training.ledger import add_adapters, random_model

SIZES = [(16, 16), (24, 8), (8, 24), (5, 7)]  # (in, out)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(d_in=24, d_out=8, *, rank=4, alpha=8, dropout=0.0, use_rslora=False, bias=False, dtype=torch.float32):
    """Our layer and PEFT's, on equal bases, with the same A and the same B (not zero)."""
    torch.manual_seed(d_in * d_out)
    base = nn.Linear(d_in, d_out, bias=bias, dtype=dtype)
    host = nn.Sequential(nn.Linear(d_in, d_out, bias=bias, dtype=dtype))
    host[0].load_state_dict(base.state_dict())
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=["0"], use_rslora=use_rslora, bias="none"
    )
    theirs = get_peft_model(host, config).base_model.model[0]
    ours = LoRALinear(base, rank=rank, alpha=alpha, dropout=dropout, use_rslora=use_rslora)
    with torch.no_grad():
        ours.lora_B.normal_()
        theirs.lora_A["default"].weight.copy_(ours.lora_A)
        theirs.lora_B["default"].weight.copy_(ours.lora_B)
    return ours, theirs


# --- the layer, against PEFT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
@pytest.mark.parametrize("rank", [1, 3, 40])  # 40 is above min(in, out)
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_delta_and_merge_are_pefts_to_the_last_bit(d_in, d_out, rank, use_rslora, dtype):
    ours, theirs = pair(d_in, d_out, rank=rank, alpha=7, use_rslora=use_rslora, bias=True, dtype=dtype)
    x = torch.randn(2, 3, d_in, generator=seeded()).to(dtype)
    assert ours.lora_A.dtype == theirs.lora_A["default"].weight.dtype == torch.float32
    assert ours.scale == theirs.scaling["default"]
    assert ours(x).dtype == dtype
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.delta_weight(), theirs.get_delta_weight("default"))
    before = ours(x)
    ours.merge()
    theirs.merge()
    assert torch.equal(ours.base.weight, theirs.base_layer.weight)
    assert torch.equal(ours(x), theirs(x))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype] * float(before.detach().abs().max())
    torch.testing.assert_close(ours(x), before, atol=tolerance, rtol=0)


def test_gradients_are_pefts_and_the_base_gets_none():
    ours, theirs = pair()
    inputs = [torch.randn(5, 24, generator=seeded(), requires_grad=True) for _ in range(2)]
    for layer, x in zip((ours, theirs), inputs, strict=True):
        layer(x).square().sum().backward()
    assert torch.equal(ours.lora_A.grad, theirs.lora_A["default"].weight.grad)
    assert torch.equal(ours.lora_B.grad, theirs.lora_B["default"].weight.grad)
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert ours.base.weight.grad is None
    assert {name for name, p in ours.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_the_input_gradient_passes_through_the_frozen_weight():
    ours, _ = pair(rank=1)
    x = torch.randn(5, 24, generator=seeded(), requires_grad=True)
    dy = torch.randn(5, 8, generator=seeded(1))
    ours(x).backward(dy)
    torch.testing.assert_close(x.grad, dy @ (ours.base.weight + ours.delta_weight()))


def test_gradients_agree_with_finite_differences():
    layer = LoRALinear(nn.Linear(5, 4).double(), rank=2, alpha=3).double()
    nn.init.normal_(layer.lora_B)
    assert torch.autograd.gradcheck(layer, torch.randn(3, 5, dtype=torch.double, requires_grad=True))


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_is_on_the_adapters_input_and_only_while_training(dropout):
    ours, theirs = pair(dropout=dropout)
    x = torch.randn(50, 24, generator=seeded())
    outputs = []
    for layer in (ours, theirs):
        torch.manual_seed(3)
        outputs.append(layer.train()(x))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], ours.eval()(x))
    assert torch.equal(ours(x), theirs.eval()(x))


@pytest.mark.parametrize("d_in", [4, 64, 100])
def test_the_init_is_pefts_distribution(d_in):
    host = get_peft_model(nn.Sequential(nn.Linear(d_in, 6)), LoraConfig(r=500, target_modules=["0"]))
    theirs = host.base_model.model[0].lora_A["default"].weight.detach().flatten()
    ours = LoRALinear(nn.Linear(d_in, 6), rank=500, alpha=1)
    drawn, bound = ours.lora_A.detach().flatten(), 1 / math.sqrt(d_in)
    assert not ours.lora_B.any()
    assert bound * 0.99 < drawn.abs().max() <= bound >= theirs.abs().max() > bound * 0.99
    assert scipy.stats.kstest(drawn.numpy(), scipy.stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
    assert scipy.stats.ks_2samp(drawn.numpy(), theirs.numpy()).pvalue > 1e-3


def test_at_the_start_the_output_is_the_bases_to_the_last_bit():
    base = nn.Linear(7, 5)
    x = torch.randn(3, 7, generator=seeded())
    expected = base(x)
    assert torch.equal(LoRALinear(base, rank=2, alpha=4)(x), expected)


def test_unmerging_gives_the_weight_back_up_to_rounding_and_never_twice():
    ours, _ = pair()
    before = ours.base.weight.clone()
    with pytest.raises(LabError, match="call merge first"):
        ours.unmerge()
    ours.merge()
    with pytest.raises(LabError, match="call unmerge first"):
        ours.merge()
    ours.unmerge()
    torch.testing.assert_close(ours.base.weight, before, atol=1e-6, rtol=0)


def test_no_alpha_means_twice_the_rank_as_in_a_method():
    assert LoRALinear(nn.Linear(4, 4), rank=3, alpha=None).scale == Method(kind="lora", rank=3).scale == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"rank": 0},
        {"rank": -1},
        {"rank": 2.5},
        {"rank": True},
        {"alpha": 0},
        {"alpha": -4},
        {"alpha": math.nan},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"base": nn.Embedding(4, 4)},
        {"base": nn.Conv1d(4, 4, 1)},
    ],
)
def test_bad_input_is_refused_with_a_rule(bad):
    settings = {"base": nn.Linear(4, 4), "rank": 2, "alpha": 4} | bad
    with pytest.raises(LabError):
        LoRALinear(settings.pop("base"), **settings)


# --- a whole model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "v_proj"), ("down_proj",)])
@pytest.mark.parametrize("layers", [(), (1, 3)])
def test_a_whole_model_is_pefts(targets, layers):
    method = Method(kind="lora", rank=3, alpha=5, dropout=0.0, targets=targets, layers=layers)
    shape, ids = shape_of("tiny"), torch.arange(20)[None]
    torch.manual_seed(0)
    ours = random_model(shape, dtype="float32")
    host = random_model(shape, dtype="float32")
    host.load_state_dict(ours.state_dict())
    theirs = add_adapters(host, method)
    plain = ours(ids).logits
    adapted = add_lora(ours, method)
    assert torch.equal(ours(ids).logits, plain)
    modules = {name.removeprefix("base_model.model."): module for name, module in theirs.named_modules()}
    with torch.no_grad():
        for name, layer in adapted.items():
            layer.lora_B.normal_(std=0.1)
            modules[name].lora_A["default"].weight.copy_(layer.lora_A)
            modules[name].lora_B["default"].weight.copy_(layer.lora_B)
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert not torch.equal(ours(ids).logits, plain)
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)]
    share = (len(layers) or shape.n_layers) / shape.n_layers
    assert trained[0] == trained[1] == share * lora_param_count(shape, rank=3, targets=targets)


def test_a_model_without_the_targets_is_refused():
    with pytest.raises(LabError, match="no linear of that name"):
        add_lora(nn.Sequential(nn.Linear(3, 3)), Method(kind="lora"))


# facts.md of the course: counted on the real architectures, rank 32, all seven linears and attention only
@pytest.mark.parametrize(
    ("name", "every", "attention"),
    [
        ("qwen3-0.6b", 20_185_088, 9_175_040),
        ("qwen3-1.7b", 34_865_152, 12_845_056),
        ("qwen3-4b", 66_060_288, 23_592_960),
        ("qwen3-8b", 87_293_952, 30_670_848),
        ("qwen3-14b", 128_450_560, 41_943_040),
        ("qwen3-32b", 268_435_456, 79_691_776),
    ],
)
def test_counts_of_every_qwen3(name, every, attention):
    assert lora_param_count(CATALOGUE[name], rank=32) == every
    assert lora_param_count(CATALOGUE[name], rank=32, targets=TARGETS[:4]) == attention


@pytest.mark.parametrize("name", ["qwen3-0.6b", "smollm2-135m", "qwen2.5-1.5b"])
def test_counts_are_pefts_on_the_real_architecture(name):
    shape = shape_of(name)
    model = add_adapters(random_model(shape, device="meta"), Method(kind="lora", rank=1))
    assert lora_param_count(shape, rank=1) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rank": 1, "targets": ()}, {"rank": 1, "targets": ("lm_head",)}])
def test_a_count_of_nothing_is_refused(bad):
    with pytest.raises(LabError):
        lora_param_count(shape_of("tiny"), **bad)


# --- how much of a matrix a rank keeps -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 9), (9, 6), (7, 7), (1, 5), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_decomposition_is_scipys(size, dtype):
    matrix = torch.randn(size, generator=seeded()).to(dtype)
    expected = scipy.linalg.svdvals(matrix.double().numpy())
    parts = decompose(matrix)
    np.testing.assert_allclose(parts.values, expected, rtol=1e-5)
    assert len(parts.energy) == len(parts.relative_error) == min(size) + 1
    np.testing.assert_allclose(parts.energy[1:], np.cumsum(expected**2) / (expected**2).sum(), rtol=1e-5)
    assert (parts.energy[0], parts.energy[-1], parts.relative_error[-1]) == (0, 1, 0)
    for rank in range(min(size) + 1):
        left_out = torch.linalg.norm(matrix.double() - parts.truncated(rank).double()) / matrix.double().norm()
        assert float(parts.relative_error[rank]) == pytest.approx(float(left_out), abs=2e-6)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_factors_are_an_adapter_that_equals_the_truncation(rank):
    parts = decompose(torch.randn(6, 9, generator=seeded()))
    a, b = parts.factors(rank)
    assert (a.shape, b.shape) == ((rank, 9), (6, rank))
    torch.testing.assert_close(b @ a, parts.truncated(rank))


def test_the_mean_energy_counts_a_small_matrix_as_whole():
    small, large = decompose(torch.eye(2)), decompose(torch.eye(8))
    assert mean_energy([small, large], 4) == pytest.approx((1 + 0.5) / 2)


def test_no_other_matrix_of_that_rank_is_closer():
    matrix = torch.randn(8, 12, generator=seeded(), dtype=torch.float64)
    best, energy = truncate(matrix, 3)
    floor = float((matrix - best).norm())
    assert np.linalg.matrix_rank(best.numpy()) == 3
    assert floor**2 == pytest.approx((1 - energy) * float(matrix.norm()) ** 2)
    for seed in range(200):  # random rank-3 matrices near the best one, and the best one for a random column space
        noise = torch.randn(12, 3, generator=seeded(seed), dtype=torch.float64)
        near = torch.linalg.qr(best @ noise + 0.1 * torch.randn(8, 3, generator=seeded(seed), dtype=torch.float64)).Q
        assert float((matrix - near @ near.T @ matrix).norm()) >= floor - 1e-12


def test_a_rank_above_the_matrix_keeps_everything():
    matrix = torch.randn(4, 6, generator=seeded())
    same, energy = truncate(matrix, 99)
    torch.testing.assert_close(same, matrix)
    assert energy == 1


def test_a_small_tail_is_not_lost_in_rounding():
    parts = decompose(torch.diag(torch.tensor([1.0, 1e-5, 1e-6])))
    assert float(parts.relative_error[1]) == pytest.approx(math.hypot(1e-5, 1e-6), rel=1e-4)


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 2), torch.ones(4), torch.ones(0, 2), torch.ones(2, 2, 2), torch.full((2, 2), torch.inf)]
)
def test_no_matrix_to_decompose(bad):
    with pytest.raises(LabError):
        decompose(bad)


@pytest.mark.parametrize("rank", [0, -2, 1.5])
def test_no_rank_to_truncate_to(rank):
    with pytest.raises(LabError):
        truncate(torch.ones(2, 2), rank)


# --- experiments on one layer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "rank"), [((10, 6), 1), ((6, 10), 6), ((8, 8), 3)])
def test_a_planted_update_has_that_rank_and_equal_singular_values(size, rank):
    values = scipy.linalg.svdvals(planted_update(*size, rank=rank, generator=seeded()).numpy())
    np.testing.assert_allclose(values[:rank], 1, rtol=1e-5)
    np.testing.assert_allclose(values[rank:], 0, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 7])
def test_a_planted_rank_that_cannot_be(rank):
    with pytest.raises(LabError):
        planted_update(6, 10, rank=rank, generator=seeded())


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_training_finds_the_floor_of_eckart_and_young(rank):
    torch.manual_seed(1)
    base, target = nn.Linear(16, 12, bias=False), planted_update(12, 16, rank=4, generator=seeded())
    x = torch.eye(16)
    y = (base(x) + x @ target.T).detach()
    losses = fit(LoRALinear(base, rank=rank, alpha=2 * rank), x, y, learning_rate=0.02, steps=400)
    assert losses[0] == 1
    assert len(losses) == 401
    assert losses[-1] == pytest.approx(max(0, 1 - rank / 4), abs=1e-3)


def test_fit_is_torchs_own_loop():
    torch.manual_seed(2)
    layer, x, y = LoRALinear(nn.Linear(5, 4), rank=2, alpha=2), torch.randn(9, 5), torch.randn(9, 4)
    start = [layer.lora_A.detach().clone(), layer.lora_B.detach().clone()]
    losses = fit(layer, x, y, learning_rate=0.01, steps=1, optimizer="SGD")
    a, b = start
    error = layer.base(x) + x @ a.T @ b.T * layer.scale - y
    torch.testing.assert_close(layer.lora_B.detach(), b - 0.01 * 2 * layer.scale * error.T @ x @ a.T)
    after = layer.base(x) + x @ layer.lora_A.T @ layer.lora_B.T * layer.scale - y
    assert losses == [1, pytest.approx((after.square().sum() / error.square().sum()).item())]
