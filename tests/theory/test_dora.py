"""DoRA by hand against PEFT (start, forward, gradients, merge), the paper's gradient, autograd, numpy and scipy."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from labkit.errors import LabError
from labkit.models.methods import Method
from labkit.models.shapes import shape_of
from labkit.theory.dora import (
    DoRALinear,
    WeightChange,
    add_dora,
    correlate,
    direction_gradient,
    kept_bytes,
    magnitudes,
    weight_change,
)
from labkit.theory.lora import LoRALinear
from labkit.training.ledger import add_adapters, random_model

SIZES = [(16, 16), (24, 8), (8, 24), (5, 7)]  # (in, out)
TRAINED = ("lora_A", "lora_B", "magnitude")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(d_in=24, d_out=8, *, rank=4, dropout=0.0, use_rslora=False, bias=False, dtype=torch.float32, move=True):
    """Our layer and PEFT's, on equal bases, with the same A, B and m; ``move``: B and m are not those of the start."""
    torch.manual_seed(d_in * d_out)
    base = nn.Linear(d_in, d_out, bias=bias, dtype=dtype)
    options = {"lora_dropout": dropout, "use_rslora": use_rslora, "use_dora": True}
    config = LoraConfig(r=rank, lora_alpha=7, target_modules=["0"], **options)
    theirs = get_peft_model(nn.Sequential(copy.deepcopy(base)), config).base_model.model[0]
    ours = DoRALinear(base, rank=rank, alpha=7, dropout=dropout, use_rslora=use_rslora)
    with torch.no_grad():
        if move:
            ours.lora_B.normal_()
            ours.magnitude.mul_(torch.rand(d_out) + 0.5)
            their_parameters(theirs)["magnitude"].copy_(ours.magnitude)
        theirs.lora_A["default"].weight.copy_(ours.lora_A)
        theirs.lora_B["default"].weight.copy_(ours.lora_B)
    return ours, theirs


def their_parameters(theirs):
    names = {"lora_A": theirs.lora_A, "lora_B": theirs.lora_B, "magnitude": theirs.lora_magnitude_vector}
    return {name: module["default"].weight for name, module in names.items()}


# --- the layer, against PEFT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
@pytest.mark.parametrize("rank", [1, 3, 40])  # 40 is above min(in, out)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_gradients_are_pefts_to_the_last_bit(d_in, d_out, rank, bias, dropout, dtype):
    ours, theirs = pair(d_in, d_out, rank=rank, bias=bias, dropout=dropout, dtype=dtype)
    x = torch.randn(2, 3, d_in, generator=seeded()).to(dtype)
    inputs, outputs = [x.clone().requires_grad_() for _ in range(2)], []
    for layer, each in zip((ours, theirs), inputs, strict=True):
        torch.manual_seed(3)  # the same dropout mask
        outputs.append(layer.train()(each))
        outputs[-1].float().square().sum().backward()
    assert torch.equal(*outputs)
    assert outputs[0].dtype == dtype
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    for name, parameter in their_parameters(theirs).items():
        assert torch.equal(getattr(ours, name).grad, parameter.grad), name
        assert getattr(ours, name).grad.any()
    assert ours.base.weight.grad is None
    assert {name for name, p in ours.named_parameters() if p.requires_grad} == set(TRAINED)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_and_unmerging_are_pefts_to_the_last_bit(d_in, d_out, dtype):
    ours, theirs = pair(d_in, d_out, bias=True, dtype=dtype)
    x = torch.randn(3, d_in, generator=seeded()).to(dtype)
    before, weight, untouched = ours(x), ours.weight().to(dtype), ours.base.weight.clone()
    for layer in (ours, theirs):
        layer.merge()
    assert torch.equal(ours.base.weight, theirs.base_layer.weight)
    assert ours.weight() is ours.base.weight
    torch.testing.assert_close(ours.weight(), weight)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype] * float(before.detach().abs().max())
    torch.testing.assert_close(ours(x), before, atol=tolerance, rtol=0)
    for layer in (ours, theirs):
        layer.unmerge()
    assert torch.equal(ours.base.weight, theirs.base_layer.weight)
    torch.testing.assert_close(ours.base.weight, untouched, atol=4 * tolerance, rtol=0)


def test_merging_twice_is_refused():
    ours, _ = pair()
    with pytest.raises(LabError, match="call merge first"):
        ours.unmerge()
    ours.merge()
    with pytest.raises(LabError, match="call unmerge first"):
        ours.merge()


def test_rslora_divides_by_the_root_of_the_rank():
    ours, theirs = pair(rank=4, use_rslora=True)
    x = torch.randn(5, 24, generator=seeded())
    assert ours.scale == 3.5
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_pefts_and_the_output_is_the_bases(d_in, d_out, dtype):
    ours, theirs = pair(d_in, d_out, dtype=dtype, move=False)
    x = torch.randn(3, d_in, generator=seeded()).to(dtype)
    assert torch.equal(ours.magnitude, their_parameters(theirs)["magnitude"])
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]  # the start is rounded to the base's type
    torch.testing.assert_close(ours(x), ours.base(x), atol=tolerance, rtol=tolerance)
    off = (ours.row_scale() - 1).abs().max()
    assert off < 1e-6 if dtype == torch.float32 else 1e-4 < off < 2**-8


def test_a_whole_model_has_pefts_logits():
    method = Method(kind="dora", rank=2, dropout=0.0)
    ours = random_model(shape_of("tiny"), dtype="float32")
    theirs, ids = add_adapters(copy.deepcopy(ours), method), torch.arange(16)[None]
    adapted = add_dora(ours, method)
    for name, layer in adapted.items():
        other = their_parameters(theirs.base_model.model.get_submodule(name))
        with torch.no_grad():
            layer.lora_B.normal_(std=0.1)
            layer.magnitude.mul_(1.1)
            for own, parameter in other.items():
                parameter.copy_(getattr(layer, own))
    assert len(adapted) == 7 * shape_of("tiny").n_layers
    assert all(isinstance(layer, DoRALinear) for layer in adapted.values())
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


# --- the axis --------------------------------------------------------------------------------------------------------


class ByColumn(DoRALinear):
    """The wrong axis: the norm of every *column* of an (out, in) weight; it only runs where the two sizes are equal."""

    def norm(self):
        return magnitudes((self.base.weight + self.delta_weight()).T).detach()


def test_a_magnitude_belongs_to_an_output():
    ours, theirs = pair(24, 8)
    assert ours.magnitude.shape == their_parameters(theirs)["magnitude"].shape == (8,)
    lengths = np.linalg.norm(ours.base.weight.detach().numpy(), axis=1)
    np.testing.assert_allclose(magnitudes(ours.base.weight).detach().numpy(), lengths, rtol=1e-6)


def test_the_wrong_axis_breaks_a_layer_that_is_not_square():
    layer = ByColumn(nn.Linear(24, 8), rank=2, alpha=4)
    with pytest.raises(RuntimeError, match="size of tensor"):
        layer(torch.randn(3, 24))


def test_the_wrong_axis_runs_on_a_square_layer_and_computes_something_else():
    ours, theirs = pair(16, 16)
    wrong = ByColumn(copy.deepcopy(ours.base), rank=4, alpha=7)
    wrong.load_state_dict(ours.state_dict())  # shapes fit: nothing warns
    x = torch.randn(3, 16, generator=seeded())
    assert torch.equal(ours(x), theirs(x))
    assert (wrong(x) - theirs(x)).norm() > 0.05 * theirs(x).norm()
    assert not torch.allclose(magnitudes(wrong.weight()), wrong.magnitude, rtol=0.01)


def test_the_rows_of_the_weight_are_as_long_as_the_magnitudes_say():
    ours, _ = pair(24, 8)
    torch.testing.assert_close(magnitudes(ours.weight()), ours.magnitude)


# --- the gradient, with and without the norm's own part ---------------------------------------------------------------


def test_detaching_leaves_out_the_part_along_the_row_as_equation_6_says():
    torch.manual_seed(0)
    base, update, x, dy = nn.Linear(6, 5), torch.randn(5, 6), torch.randn(7, 6), torch.randn(7, 5)
    held, v = direction_gradient(base, update, x, dy, detach=True)
    exact, _ = direction_gradient(base, update, x, dy, detach=False)
    torch.testing.assert_close(v, base.weight + update)
    rows = nn.functional.normalize(v, dim=1)  # (out, in)
    along = (held * rows).sum(dim=1, keepdim=True) * rows
    torch.testing.assert_close(exact, held - along, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(held, (magnitudes(base.weight) / magnitudes(v))[:, None] * (dy.T @ x))  # equation 11
    assert along.norm() > 0.01 * held.norm()


def test_the_gradient_of_the_magnitudes_does_not_change_by_detaching():
    found = []
    for detach in (True, False):
        torch.manual_seed(0)
        layer = DoRALinear(nn.Linear(6, 5), rank=2, alpha=4, detach_norm=detach)
        nn.init.normal_(layer.lora_B)
        layer(torch.randn(7, 6)).backward(torch.randn(7, 5))
        found.append(layer.magnitude.grad)
    torch.testing.assert_close(*found)


def test_without_detaching_the_gradient_is_that_of_the_function():
    layer = DoRALinear(nn.Linear(5, 4).double(), rank=2, alpha=3, detach_norm=False).double()
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    parameters = [layer.lora_A, layer.lora_B, layer.magnitude]
    assert torch.autograd.gradcheck(lambda *_: layer(x), parameters)


def test_detaching_keeps_no_matrix_of_the_weights_size():
    x = torch.randn(4, 200)
    layers = {detach: DoRALinear(nn.Linear(200, 300), rank=2, alpha=4, detach_norm=detach) for detach in (True, False)}
    kept = {detach: kept_bytes(layer, x) for detach, layer in layers.items()}
    assert kept[True] < 4 * 200 * 300 <= kept[False]


def test_kept_bytes_are_those_of_a_product():
    linear = nn.Linear(10, 7, bias=False)
    assert kept_bytes(linear, torch.randn(5, 10)) == 4 * 5 * 10  # dW = dY^T X needs X, and W is a parameter
    assert kept_bytes(linear.requires_grad_(False), torch.randn(5, 10)) == 0


@pytest.mark.parametrize(
    ("base", "options", "rule"),
    [
        (nn.Linear(4, 4), {"rank": 0}, "rank"),
        (nn.Linear(4, 4), {"dropout": 1.0}, "dropout"),
        (nn.Conv1d(4, 4, 1), {}, "torch.nn.Linear"),
    ],
)
def test_bad_input_is_refused_as_in_lora(base, options, rule):
    with pytest.raises(LabError, match=rule):
        DoRALinear(base, **{"rank": 2, "alpha": 4} | options)


def test_a_row_of_zeros_has_no_direction():
    base = nn.Linear(4, 3)
    base.weight.data[1] = 0
    with pytest.raises(LabError, match="1 rows of zeros"):
        DoRALinear(base, rank=2, alpha=4)
    assert LoRALinear(base, rank=2, alpha=4)(torch.ones(4)).isfinite().all()


@pytest.mark.parametrize("bad", [torch.ones(3), torch.ones(2, 2, 2), torch.ones(0, 4)])
def test_magnitudes_want_a_matrix(bad):
    with pytest.raises(LabError, match="a row for each output"):
        magnitudes(bad)


# --- a change of weights ---------------------------------------------------------------------------------------------


def test_a_longer_weight_and_a_turned_weight():
    weight = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    longer = weight_change(weight, 1.5 * weight)
    assert longer.magnitude == pytest.approx((2.5 + 1) / 2)
    assert longer.relative == pytest.approx(0.5)
    assert longer.direction == pytest.approx(0, abs=1e-12)
    turned = weight_change(weight, weight @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    assert turned.direction == pytest.approx(1)
    assert turned.magnitude == pytest.approx(0, abs=1e-6)


def test_a_change_is_the_papers_equations_by_numpy():
    before, after = (torch.randn(7, 5, generator=seeded(seed)) for seed in (0, 1))
    old, new = before.double().numpy(), after.double().numpy()
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(old, new, strict=True)]
    lengths = np.abs(np.linalg.norm(new, axis=1) - np.linalg.norm(old, axis=1))
    found = weight_change(before, after)
    assert found.magnitude == pytest.approx(lengths.mean())
    assert found.direction == pytest.approx(1 - np.mean(cosines))


def test_no_change_is_zero_even_after_rounding():
    weight = torch.randn(50, 30, generator=seeded())
    assert weight_change(weight, weight) == WeightChange(0.0, pytest.approx(0, abs=1e-15), 0.0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.ones(2, 3), torch.ones(3, 2)),
        (torch.zeros(2, 2), torch.ones(2, 2)),
        (torch.ones(2, 2), torch.zeros(2, 2)),
    ],
)
def test_a_change_that_has_no_meaning_is_refused(before, after):
    with pytest.raises(LabError):
        weight_change(before, after)


def test_a_correlation_is_numpys_and_its_interval_fishers():
    values = torch.randn(24, 2, generator=seeded()).abs().tolist()
    changes = [WeightChange(moved, turned + moved, 2 * moved) for moved, turned in values]
    found = correlate(changes)
    moved, turned = np.array([(change.magnitude, change.direction) for change in changes]).T
    assert found.r == pytest.approx(np.corrcoef(moved, turned)[0, 1])
    half = 1.959964 / np.sqrt(24 - 3)
    assert (found.low, found.high) == pytest.approx(tuple(np.tanh(np.arctanh(found.r) + np.array([-half, half]))))
    assert correlate(changes, relative=True).r == pytest.approx(found.r)
    assert found.n == 24
    assert str(found) == f"{found.r:+.2f} ({found.low:+.2f} to {found.high:+.2f}), n =  24"


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_points_have_no_correlation(count):
    with pytest.raises(LabError, match="at least 4 points"):
        correlate([WeightChange(place, place, place) for place in range(count)])


def test_points_that_do_not_vary_have_no_correlation():
    with pytest.raises(LabError, match="that differ"):
        correlate([WeightChange(1.0, place, 1.0) for place in range(9)])
