"""The closed form against autograd, published measurements and a dry run of the real stack."""

from __future__ import annotations

import itertools
import weakref
from dataclasses import replace

import bitsandbytes as bnb
import peft
import pytest
import torch

from labkit.errors import LabError
from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape, shape_of
from labkit.theory import activations, memory, transients
from labkit.theory.memory import COMPONENTS, PHASES, predict
from labkit.training.ledger import random_model
from tests.theory.built import MLP, QV, SMALL, method, with_adapters

MIB = 2**20


# --- activations: what autograd really saves -------------------------------------------------------------------------


def quantized(layer: torch.nn.Module) -> torch.nn.Module:
    """The layer with every linear in bitsandbytes' NF4 (the constructor quantizes on the move to a device)."""
    for parent in list(layer.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                made = bnb.nn.Linear4bit(
                    child.in_features, child.out_features, child.bias is not None, torch.bfloat16, quant_type="nf4"
                )
                made.weight = bnb.nn.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
                if child.bias is not None:
                    made.bias = child.bias
                setattr(parent, name, made.to("cpu"))
    return layer


def one_layer(shape: ModelShape, chosen: Method, attention: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A real decoder layer with the method applied, and the model's rotary embedding."""
    model = random_model(shape, dtype=chosen.dtype, attention=attention)
    layer, rotary = model.model.layers[0], model.model.rotary_emb
    if chosen.kind in ("full", "spectrum"):
        return layer.train(), rotary
    layer.requires_grad_(False)
    holder = torch.nn.ModuleDict({"layer": quantized(layer) if chosen.quantized else layer})
    holder.is_loaded_in_4bit = chosen.quantized
    if chosen.kbit_prepare:
        holder = peft.prepare_model_for_kbit_training(holder, use_gradient_checkpointing=False)
    return with_adapters(holder, chosen).base_model.model["layer"].train(), rotary


def saved_by_autograd(shape: ModelShape, chosen: Method, step: Step) -> int:
    """Bytes of the storages that one decoder layer saves for its backward pass, parameters and rotary tables apart."""
    layer, rotary = one_layer(shape, chosen, step.attention)
    dtype = torch.float32 if chosen.kbit_prepare else getattr(torch, chosen.dtype)
    hidden = torch.randn(step.batch, step.seq_len, shape.hidden_size, dtype=dtype, requires_grad=True)
    tables = rotary(hidden, torch.arange(step.seq_len)[None])
    mask = None
    if step.attention == "eager":
        mask = torch.zeros(1, 1, step.seq_len, step.seq_len, dtype=dtype)
    elif step.padded:
        mask = torch.ones(step.batch, 1, step.seq_len, step.seq_len, dtype=torch.bool).tril()
    known = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *tables)}
    nodes = weakref.WeakSet()

    def keep(tensor: torch.Tensor) -> Saved:
        nodes.add(saved := Saved(tensor))
        return saved

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=activations.autocast(chosen))
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved.tensor):
        out = layer(hidden, position_embeddings=tables, attention_mask=mask)
    assert (out if isinstance(out, torch.Tensor) else out[0]).requires_grad
    storages = {node.tensor.untyped_storage().data_ptr(): node.tensor.untyped_storage() for node in nodes}
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in known)


class Saved:
    """What the autograd graph holds in place of a tensor: it dies with its node, so only live nodes are counted."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


LLAMA = replace(SMALL, architecture="llama", qk_norm=False)
QWEN2 = replace(SMALL, architecture="qwen2", qk_norm=False, attention_bias=True)
WIDE = replace(SMALL, n_heads=6, n_kv_heads=6)  # q wider than the residual, no grouped queries


@pytest.mark.parametrize(
    "chosen",
    [
        method("full"),
        method("full", dtype="float32"),
        method("lora"),
        method("lora", rank=1, targets=QV),
        method("lora", targets=MLP),
        method("lora", targets=("o_proj",)),
        method("lora", adapter_dtype="bfloat16"),
        method("lora", adapter_dtype="bfloat16", targets=("o_proj", "up_proj")),
        method("lora", dtype="float32"),
        method("dora"),
        method("dora", targets=QV, adapter_dtype="bfloat16"),
        method("qlora"),
        method("qlora", adapter_dtype="bfloat16"),
        method("qlora", kbit_prepare=True),
        method("qdora"),
        method("lora", adapter_dtype="autocast"),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [SMALL, LLAMA, QWEN2, WIDE], ids=["qwen3", "llama", "qwen2", "wide"])
def test_a_layer_saves_what_autograd_saves(shape, chosen):
    step = Step(batch=2, seq_len=48)
    adapted = chosen.uses_adapters
    mine = activations.layer_bytes(shape, chosen, step, trains=not adapted, adapted=adapted)
    assert mine + activations.autocast_bytes(shape, chosen) == saved_by_autograd(shape, chosen, step)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("shape", [SMALL, WIDE], ids=["grouped", "ungrouped"])
def test_a_padded_batch_saves_a_mask_and_repeated_keys(shape, kind):
    step, adapted = Step(batch=2, seq_len=40, padded=True), kind == "lora"
    mine = activations.layer_bytes(shape, method(kind), step, trains=not adapted, adapted=adapted)
    assert mine == saved_by_autograd(shape, method(kind), step)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_eager_attention_saves_every_score(kind):
    step, adapted = Step(batch=2, seq_len=40, attention="eager"), kind == "lora"
    mine = activations.layer_bytes(SMALL, method(kind), step, trains=not adapted, adapted=adapted)
    assert mine == saved_by_autograd(SMALL, method(kind), step)


def test_dropout_keeps_a_mask_beside_the_input():
    # CUDA's fused dropout keeps a one-byte mask; the CPU keeps the noise, as large as the float32 input. Else equal.
    step, chosen = Step(batch=1, seq_len=32), method("lora", dropout=0.1)
    mine = activations.layer_bytes(SMALL, chosen, step, trains=False, adapted=True)
    inputs = step.tokens * sum(d_in for d_in, _ in SMALL.linears().values())
    assert mine + (4 - 1) * inputs == saved_by_autograd(SMALL, chosen, step)


# --- the whole step --------------------------------------------------------------------------------------------------

# MiB at the peak, from a dry run of the installed stack on fake tensors (torch 2.13.0, transformers 5.23.0,
# peft 0.21.2, bitsandbytes 0.50.2), second step. Batch 1, rank 16 on all linears; transformers' loss.
CHECKPOINTED = {"checkpointing": True}
CHUNKED = {"checkpointing": True, "loss": "chunked"}
TRACED = [
    ("qwen3-1.7b", "full", {}, {}, 19_608.6),
    ("qwen3-1.7b", "full", {}, CHECKPOINTED | {"optimizer": "adamw_foreach"}, 16_408.9),
    ("qwen3-1.7b", "full", {}, CHUNKED, 14_314.2),
    ("qwen3-1.7b", "full", {}, CHUNKED | {"optimizer": "adamw_8bit"}, 11_084.3),
    ("qwen3-1.7b", "lora", {}, {"seq_len": 1024}, 9_423.3),
    ("qwen3-1.7b", "lora", {}, {}, 15_365.2),
    ("qwen3-1.7b", "lora", {}, CHECKPOINTED | {"seq_len": 1024}, 5_382.5),
    ("qwen3-1.7b", "lora", {}, CHECKPOINTED, 7_283.5),
    ("qwen3-1.7b", "lora", {"adapter_dtype": "autocast"}, {}, 13_370.0),
    ("qwen3-1.7b", "lora", {"adapter_dtype": "bfloat16"}, {}, 12_341.0),
    ("qwen3-1.7b", "lora", {}, CHUNKED, 4_182.6),
    ("qwen3-1.7b", "lora", {}, {"attention": "eager"}, 26_113.7),
    ("qwen3-1.7b", "qlora", {}, {}, 13_370.9),
    ("qwen3-1.7b", "qlora", {}, CHECKPOINTED, 5_289.2),
    ("qwen3-1.7b", "qlora", {"kbit_prepare": True}, CHECKPOINTED, 6_107.9),
    ("qwen3-1.7b", "dora", {}, {}, 22_098.4),
    ("qwen3-1.7b", "dora", {}, CHECKPOINTED, 7_290.2),
    ("qwen3-1.7b", "spectrum", {"layers": (24, 25, 26, 27)}, {}, 8_493.2),
    ("qwen3-1.7b", "spectrum", {"layers": (24, 25, 26, 27)}, CHECKPOINTED, 7_851.9),
    ("qwen3-0.6b", "lora", {}, CHECKPOINTED, 4_934.6),
    ("qwen3-0.6b", "qlora", {"kbit_prepare": True}, CHECKPOINTED, 4_721.6),
    ("qwen3-0.6b", "full", {}, CHECKPOINTED, 7_100.9),
    ("qwen3-8b", "lora", {}, CHECKPOINTED, 20_292.4),
    ("qwen3-8b", "qlora", {}, CHECKPOINTED, 10_462.0),
    ("qwen3-8b", "qlora", {"kbit_prepare": True}, CHECKPOINTED, 13_413.6),
    ("qwen3-8b", "full", {}, CHECKPOINTED, 62_506.6),
]


@pytest.mark.parametrize(("name", "kind", "options", "how", "traced_mib"), TRACED)
def test_peaks_of_a_dry_run(name, kind, options, how, traced_mib):
    step = Step(**{"seq_len": 2048, "checkpointing": False, "loss": "full"} | how)
    prediction = predict(shape_of(name), method(kind, **options), step)
    assert prediction.peak_allocated_bytes / MIB == pytest.approx(traced_mib, rel=0.001)


# PEFT's public benchmark on an L40S (method_comparison/MetaMathQA at 5d602fdb): Llama-3.2-3B, batch 4, outputs kept,
# foreach-free AdamW, peak *reserved*. Its longest padded batch is unknown (768 tokens at most), hence 8 %.
BENCHMARK = [
    ("lora", {"rank": 32, "targets": QV}, 20.762),
    ("lora", {"rank": 64, "targets": QV}, 21.004),
    ("dora", {"rank": 32, "targets": QV}, 22.848),
    ("lora", {"rank": 10, "targets": MLP}, 23.002),
    ("full", {}, 36.199),
]


@pytest.mark.parametrize(("kind", "options", "measured_gib"), BENCHMARK)
def test_a_public_benchmark_on_a_real_gpu(kind, options, measured_gib):
    step = Step(batch=4, seq_len=768, checkpointing=False, loss="full", keep_logits=True)
    prediction = predict(shape_of("llama-3.2-3b"), method(kind, **options), step)
    assert prediction.peak_allocated_bytes / 2**30 == pytest.approx(measured_gib, rel=0.08)


GRID = [
    (chosen, step)
    for chosen in (
        method("full"),
        method("lora"),
        method("lora", adapter_dtype="autocast", dropout=0.05),
        method("qlora", kbit_prepare=True, targets=("o_proj",)),
        method("qlora", kbit_prepare=True, adapter_dtype="autocast"),
        method("dora", dropout=0.05, targets=MLP),
        method("qdora", adapter_dtype="bfloat16"),
        method("spectrum", layers=(3, 9)),
        method("lora", layers=(0, 5), targets=("down_proj",)),
    )
    for step in (
        Step(),
        Step(checkpointing=False, loss="full", keep_logits=True, optimizer="adamw_foreach"),
        Step(loss="chunked", optimizer="paged_adamw_8bit", attention="eager"),
        Step(checkpointing=False, padded=True, optimizer="sgd", seq_len=2),
    )
]


@pytest.mark.parametrize(("chosen", "step"), GRID)
def test_components_sum_to_the_peak_and_phases_contain_it(chosen, step):
    prediction = predict(shape_of("smollm2-135m"), chosen, step)
    assert tuple(prediction.components) == COMPONENTS
    assert sum(prediction.components.values()) == prediction.peak_allocated_bytes
    assert all(isinstance(size, int) and size >= 0 for size in prediction.components.values())
    assert tuple(prediction.phases) == PHASES
    assert prediction.phases[prediction.peak_phase] == max(prediction.phases.values())
    assert prediction.phases[prediction.peak_phase] == prediction.peak_allocated_bytes
    resident = ("parameters", "quantization_constants", "adapters", "optimizer_states")
    if prediction.peak_phase != "load":
        assert prediction.static_bytes == sum(prediction.components[name] for name in resident)


@pytest.mark.parametrize(("chosen", "step"), GRID)
def test_more_of_anything_never_takes_less(chosen, step):
    def peak(**changes) -> int:
        return predict(shape_of("qwen3-0.6b"), chosen, replace(step, **changes)).peak_allocated_bytes

    by_length = [peak(seq_len=tokens) for tokens in (2, 3, 64, 255, 256, 257, 1000, 4096, 5000, 20_000)]
    by_batch = [peak(batch=sequences) for sequences in (1, 2, 3, 8, 64)]
    assert by_length == sorted(by_length)
    assert by_batch == sorted(by_batch)


@pytest.mark.parametrize("kind", ["lora", "qlora", "dora", "qdora"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_higher_rank_takes_more(kind, checkpointing):
    def peak(rank: int) -> int:
        chosen = method(kind, rank=rank)
        return predict(shape_of("qwen3-8b"), chosen, Step(checkpointing=checkpointing)).peak_allocated_bytes

    peaks = [peak(rank) for rank in (1, 2, 8, 64, 512)]
    assert all(lower < higher for lower, higher in itertools.pairwise(peaks))


def test_what_lora_saves_and_what_it_adds():
    step = Step(seq_len=1024, checkpointing=False)
    full, lora = (predict(shape_of("qwen3-1.7b"), method(kind), step) for kind in ("full", "lora"))
    assert lora.static_bytes < full.static_bytes / 2
    layer = {
        kind: activations.layer_bytes(
            shape_of("qwen3-1.7b"), method(kind), step, trains=kind == "full", adapted=kind == "lora"
        )
        for kind in ("full", "lora")
    }
    assert layer["full"] / 1024 == 112_640 + 64 + 4 * 26  # the logsumexp of 16 heads, and 26 rsqrt
    assert 1.30 < layer["lora"] / layer["full"] < 1.40


def test_kept_logits_cost_two_bytes_a_logit():
    shape, step = shape_of("qwen3-1.7b"), Step(seq_len=2048, loss="full")
    kept, freed = (predict(shape, method("lora"), replace(step, keep_logits=k)) for k in (True, False))
    assert kept.peak_allocated_bytes - freed.peak_allocated_bytes == 2 * 2048 * shape.vocab_size
    assert freed.components["logits"] == 12 * 2048 * shape.vocab_size


def test_the_fused_head_is_the_installed_one():
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    assert chunked_logprob.TOKEN_CHUNK_SIZE == transients.FUSED_TOKENS
    assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == transients.FUSED_VOCAB


@pytest.mark.parametrize("kind", ["spectrum", "lora"])
def test_a_layer_that_the_model_does_not_have(kind):
    with pytest.raises(LabError, match=r"layers=\(5, 28\).*layers 0 to 27"):
        predict(shape_of("qwen3-1.7b"), method(kind, layers=(5, 28)), Step())


def test_autocast_over_a_float32_base_is_refused():
    with pytest.raises(LabError, match="autocast over a float32 base"):
        predict(SMALL, method("lora", adapter_dtype="autocast", dtype="float32"), Step())


def test_the_capacity_of_the_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory.gpu_capacity() is None
    card = type("Card", (), {"total_memory": 15_835_660_288})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: card)
    assert memory.gpu_capacity() == 15_835_660_288
