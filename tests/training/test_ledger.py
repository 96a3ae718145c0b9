"""The ledger against arithmetic on tensors, and the closed form of lesson 01 against the ledger."""

import pytest
import torch

from labkit.models.methods import Method, Step
from labkit.models.shapes import CATALOGUE, ModelShape, shape_of
from labkit.theory.memory import predict
from labkit.training.ledger import (
    Ledger,
    add_adapters,
    checkpointed,
    peak_bytes,
    random_model,
    record_step,
    step_flops,
    step_seconds,
)

SMALL = ModelShape("small", "qwen3", 1024, 64, 192, 2, 2, 1, 64, True, qk_norm=True)
KIB = 1024


def ids(batch=2, seq_len=64):
    return torch.randint(0, SMALL.vocab_size, (batch, seq_len), generator=torch.Generator().manual_seed(0))


def test_a_ledger_books_allocations_releases_and_temporaries():
    with Ledger() as ledger:
        first = torch.zeros(KIB)  # 4 KiB
        second = first * 2 + 1  # a temporary of 4 KiB besides
        del first
    assert [size // KIB for size in ledger.curve] == [0, 4, 8, 12, 8, 4]
    assert ledger.peak_bytes == 12 * KIB
    del second
    assert ledger.curve[-1] == 4 * KIB  # the block is over


def test_views_and_in_place_operations_take_nothing():
    base = torch.zeros(KIB)
    with Ledger([base]) as ledger:
        base.view(32, 32).t().add_(1)
    assert ledger.curve == [4 * KIB]


def test_a_resident_tensor_counts_once_and_until_it_is_released():
    base = torch.zeros(KIB)
    with Ledger([base, base[:10]]) as ledger:
        del base
    assert ledger.curve == [4 * KIB, 0]


def test_the_peak_of_a_block_leaves_out_what_was_there():
    base = torch.zeros(KIB)
    assert peak_bytes(lambda: base * 2, resident=[base]) == 4 * KIB
    assert peak_bytes(lambda: None) == 0


@pytest.mark.parametrize("name", ["qwen3-0.6b", "smollm2-135m", "qwen2.5-1.5b", "mistral-7b"])
def test_a_random_model_has_the_shape_it_was_given(name):
    model = random_model(CATALOGUE[name], device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == CATALOGUE[name].n_params
    assert model.training


def test_adapters_keep_their_type():
    for adapter_dtype, wanted in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = add_adapters(random_model(SMALL), Method(kind="lora", rank=4, adapter_dtype=adapter_dtype))
        assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {wanted}


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_closed_form_agrees_with_a_recorded_step(kind, checkpointing):
    method = Method(kind=kind, rank=4, dropout=0.0)
    model = random_model(SMALL) if kind == "full" else add_adapters(random_model(SMALL), method)
    ledger = record_step(checkpointed(model) if checkpointing else model, ids())
    step = Step(batch=2, seq_len=64, checkpointing=checkpointing, loss="full")
    assert ledger.peak_bytes == pytest.approx(predict(SMALL, method, step).peak_allocated_bytes, rel=0.03)
    assert list(ledger.starts) == ["forward", "backward", "optimizer"]
    assert sorted(ledger.starts.values()) == list(ledger.starts.values())


def test_a_step_ends_where_it_began():
    ledger = record_step(random_model(SMALL), ids())
    assert ledger.curve[-1] == ledger.curve[0]


def test_seconds_are_of_real_steps():
    assert 0 < step_seconds(random_model(SMALL), ids(1, 8), repeats=1) < 60


def linears_flops(shape, *, products):
    """Two operations a weight, token and product, over the decoder's linears."""
    return 2 * products * shape.linear_params()


def test_flops_of_a_full_step_are_three_products_and_lora_skips_one():
    shape, length = shape_of("tiny"), 32
    full, lora = (step_flops(shape, Method(kind=kind, rank=1, dropout=0.0), length=length) for kind in ("full", "lora"))
    head = 2 * shape.vocab_size * shape.hidden_size
    attention = full - length * (linears_flops(shape, products=3) + 3 * head)
    assert 0 <= attention < 0.1 * full
    adapters = 3 * 2 * shape.n_layers * sum(a + b for a, b in shape.linears().values())  # A, B, three products each
    saved = full - lora
    # the first layer's q, k and v need no gradient for their input, nor do the adapters on them
    assert saved == pytest.approx(length * (linears_flops(shape, products=1) + head - adapters), rel=0.05)


def test_flops_grow_with_the_rank_and_nothing_is_computed():
    shape = shape_of("qwen3-8b")
    ranks = [step_flops(shape, Method(kind="lora", rank=rank, dropout=0.0), length=16) for rank in (1, 64)]
    full = step_flops(shape, Method(kind="full"), length=16)
    assert 0.6 * full < ranks[0] < ranks[1] < 0.75 * full
