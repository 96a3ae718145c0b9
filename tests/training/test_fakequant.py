"""Fake quantization against bitsandbytes' own model, and both measures of its effect against torch."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from labkit.errors import LabError
from labkit.training.evaluate import heldout_loss
from labkit.training.fakequant import answer_logprobs, decoder_linears, divergence, fake_quantized, loss_change


def test_the_linears_are_those_that_bitsandbytes_quantizes(load):
    import bitsandbytes

    quantized = load("qlora").get_decoder().layers.named_modules()
    theirs = {name for name, module in quantized if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert set(decoder_linears(load("lora"))) == theirs != set()


def test_a_model_that_is_stored_in_4_bits_is_refused(load):
    with pytest.raises(LabError, match="floating-point"):
        decoder_linears(load("qlora"))


def test_it_computes_what_the_stored_4_bit_model_computes(load, tokenizer, rows):
    stored, _ = answer_logprobs(load("qlora"), tokenizer, rows[:4])
    model = load("lora")
    with fake_quantized(model, double_quant=True):
        fake, _ = answer_logprobs(model, tokenizer, rows[:4])
    torch.testing.assert_close(fake, stored, atol=1e-5, rtol=1e-5)


def test_the_old_weights_come_back_exactly_even_after_an_error(load):
    model = load("lora")
    before = {name: linear.weight.data.clone() for name, linear in decoder_linears(model).items()}
    with pytest.raises(RuntimeError, match="stop"), fake_quantized(model, code="uniform") as errors:
        assert errors.keys() == before.keys()
        assert all(0.05 < error < 0.2 for error in errors.values())
        assert not any(torch.equal(linear.weight, before[name]) for name, linear in decoder_linears(model).items())
        raise RuntimeError("stop")
    assert all(torch.equal(linear.weight, before[name]) for name, linear in decoder_linears(model).items())


def test_a_bad_weight_leaves_the_model_as_it_was(load):
    model = load("lora")
    *others, last = decoder_linears(model).values()
    before = others[0].weight.data.clone()
    last.weight.data[0, 0] = torch.inf
    with pytest.raises(LabError, match="not finite"), fake_quantized(model):
        pass
    assert torch.equal(others[0].weight, before)


def test_some_linears_only(load):
    model = load("lora")
    first, second, *_ = decoder_linears(model)
    before = decoder_linears(model)[second].weight.data.clone()
    with fake_quantized(model, only=[first]) as errors:
        assert list(errors) == [first]
        assert torch.equal(decoder_linears(model)[second].weight, before)
    with pytest.raises(LabError, match="no such linear"), fake_quantized(model, only=["lm_head"]):
        pass


def test_the_mean_log_probability_is_the_heldout_loss(load, tokenizer, rows):
    model = load("lora")
    found, tokens = answer_logprobs(model, tokenizer, rows)
    loss, n = heldout_loss(model, tokenizer, rows)
    assert len(tokens) == n
    assert -float(found.gather(1, tokens[:, None]).mean()) == pytest.approx(loss, rel=1e-5)
    with pytest.raises(LabError, match="0 held-out rows"):
        answer_logprobs(model, tokenizer, [])


def test_divergence_and_change_of_loss_are_torchs():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(50, 9, generator=generator).log_softmax(-1) for _ in range(2))
    tokens = torch.randint(0, 9, (50,), generator=generator)
    assert divergence(one, two) == pytest.approx(float(kl_div(two, one, log_target=True, reduction="batchmean")))
    assert divergence(one, one) == 0
    change, standard_error = loss_change(one, two, tokens)
    assert change == pytest.approx(float(cross_entropy(two, tokens) - cross_entropy(one, tokens)), rel=1e-4)
    each = cross_entropy(two, tokens, reduction="none") - cross_entropy(one, tokens, reduction="none")
    assert standard_error == pytest.approx(float(each.std()) / 50**0.5, rel=1e-4)
