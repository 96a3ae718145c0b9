"""The dry run against real CPU allocations and published traces, and the closed form against the dry run."""

import contextlib
from dataclasses import replace

import pytest
import torch
from bitsandbytes import functional

from labkit.errors import LabError
from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape, shape_of
from labkit.theory.memory import COMPONENTS, PHASES, predict
from labkit.theory.selection import select
from labkit.training import dryrun, meta_model
from labkit.training.autocast import MetaAutocast
from labkit.training.dryrun import trace
from labkit.training.ledger import Ledger, add_adapters, make_optimizer, random_model, run_step
from labkit.training.meta_kernels import as_on_cuda
from labkit.training.scan import scores_of

MIB = 2**20
SMALL = ModelShape("small", "qwen3", 49_152, 128, 384, 2, 4, 2, 32, tied_embeddings=True, qk_norm=True)
QV = ("q_proj", "v_proj")


def method(kind: str, **changes) -> Method:
    return Method(**{"kind": kind, "rank": 16, "dropout": 0.0, **changes})


# --- the same step on real tensors -----------------------------------------------------------------------------------

REAL = [
    (method("full"), Step(loss="full", checkpointing=False)),
    (method("full"), Step(loss="chunked", optimizer="adamw_foreach")),
    (method("lora"), Step(loss="full", checkpointing=False)),
    (method("lora"), Step(loss="full", attention="eager", optimizer="sgd")),
    (method("lora", targets=QV, adapter_dtype="bfloat16"), Step(loss="full", padded=True)),
    (method("lora", dtype="float32"), Step(loss="full", keep_logits=True, checkpointing=False)),
    (method("dora"), Step(loss="full")),
    (method("spectrum", layers=(1,)), Step(loss="full")),
    (method("spectrum", modules=("0.v_proj", "1.up_proj")), Step(loss="full", checkpointing=False)),
]


@pytest.mark.parametrize(("chosen", "step"), REAL)
def test_the_dry_run_is_what_a_real_step_allocates(chosen, step):
    step = replace(step, batch=2, seq_len=128)
    model = meta_model.build(SMALL, chosen, step, device="cpu")
    booked = dryrun.book_step(model, chosen, step, Ledger(device="cpu"))
    counters = 4 * len(list(model.parameters())) if step.optimizer == "adamw_foreach" else 0  # foreach's are on the CPU
    assert trace(SMALL, chosen, step).peak_allocated_bytes == booked.peak_bytes - counters


@pytest.mark.parametrize(("chosen", "step"), [REAL[0], REAL[2], REAL[6], REAL[7]])
def test_the_dry_run_is_what_torchs_profiler_sees(chosen, step):
    step = replace(step, batch=2, seq_len=128)
    model = meta_model.build(SMALL, chosen, step, device="cpu")
    optimizer = make_optimizer(model, step.optimizer)
    states = list(meta_model.optimizer_states(optimizer))
    batch = dryrun.batch_of(step, device="cpu")
    there = {t.untyped_storage().data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers(), *states)}
    inputs = sum(tensor.nbytes for tensor in batch.values())
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as profile:
        run_step(lambda: dryrun.forward_pass(model, batch, chosen, step), optimizer)
    measured = sum(there.values()) + inputs + profiled_peak(profile)
    assert trace(SMALL, chosen, step).peak_allocated_bytes == pytest.approx(measured, rel=0.001)


def profiled_peak(profile: torch.profiler.profile) -> int:
    """The largest sum of the allocator's events, in the order of time."""
    found = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(found, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("targets", [QV, ("down_proj",)])
def test_autocast_allocates_what_torchs_own_does(targets):
    """On the CPU both exist; the CPU's own rules are the same for these operations."""
    chosen, peaks = method("lora", targets=targets), []
    ids = torch.zeros(2, 128, dtype=torch.long)
    for region in (torch.autocast("cpu", torch.bfloat16), MetaAutocast()):
        model = add_adapters(random_model(SMALL), chosen)
        with Ledger([*model.parameters(), ids]) as ledger:
            with region if isinstance(region, torch.autocast) else attention_too(region):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
        peaks.append(ledger.peak_bytes)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.001)


@contextlib.contextmanager
def attention_too(region: MetaAutocast):
    with as_on_cuda(method("lora"), Step(loss="full")), region:
        yield


# --- published traces ------------------------------------------------------------------------------------------------

# MiB, second step, batch 1, 2,048 tokens, traced elsewhere with FakeTensorMode; 512-byte rounding: hence 0.05 %.
TRACED = [
    ("lora", {}, {"checkpointing": False}, 15_365.2),
    ("lora", {"adapter_dtype": "autocast"}, {"checkpointing": False}, 13_370.0),
    ("lora", {}, {"attention": "eager", "checkpointing": False}, 26_113.7),
    ("qlora", {"kbit_prepare": True}, {}, 6_107.9),
    ("dora", {}, {"checkpointing": False}, 22_098.4),
    ("full", {}, {"loss": "chunked"}, 14_314.2),
]


@pytest.mark.parametrize(("kind", "options", "how", "traced_mib"), TRACED)
def test_peaks_that_another_tracer_found(kind, options, how, traced_mib):
    step = Step(**{"seq_len": 2048, "loss": "full"} | how)
    traced = trace(shape_of("qwen3-1.7b"), method(kind, **options), step)
    assert traced.peak_allocated_bytes / MIB == pytest.approx(traced_mib, rel=0.0005)


# --- the closed form against the dry run -----------------------------------------------------------------------------

SLICE = [
    (method("full"), Step(loss="fused")),
    (method("full"), Step(loss="full", checkpointing=False, optimizer="adamw_foreach")),
    (method("full"), Step(loss="chunked", optimizer="adamw_8bit")),
    (method("lora"), Step(loss="fused")),
    (method("lora", dropout=0.05), Step(loss="full", keep_logits=True)),
    (method("lora", targets=QV, adapter_dtype="bfloat16"), Step(loss="full", padded=True, checkpointing=False)),
    (method("lora", adapter_dtype="autocast"), Step(loss="full", checkpointing=False)),
    (method("lora"), Step(loss="full", attention="eager", checkpointing=False)),
    (method("qlora"), Step(loss="fused", optimizer="paged_adamw_8bit")),
    (method("qlora", kbit_prepare=True), Step(loss="full")),
    (method("qlora", double_quant=False), Step(loss="full", checkpointing=False)),
    (method("dora"), Step(loss="full")),
    (method("qdora", targets=QV), Step(loss="full", checkpointing=False)),
    (method("spectrum", layers=(1,)), Step(loss="full", optimizer="sgd")),
]

FEW = ("0.q_proj", "0.down_proj", "1.v_proj", "1.gate_proj", "1.up_proj")
MLP = ("1.up_proj", "1.down_proj")  # nothing trains below, and no attention
SLICE += [
    (method("spectrum", modules=FEW), Step(loss="full", checkpointing=False)),
    (method("spectrum", modules=FEW), Step(loss="fused", optimizer="adamw_8bit")),
    (method("spectrum", modules=MLP), Step(loss="chunked", checkpointing=False)),
    (method("spectrum", modules=("0.up_proj", "1.o_proj")), Step(loss="fused", checkpointing=False)),
    (method("lora", modules=FEW, dropout=0.05), Step(loss="full", checkpointing=False)),
    (method("lora", modules=MLP), Step(loss="fused")),
    (method("qlora", modules=FEW), Step(loss="full", checkpointing=False)),
    (method("dora", modules=FEW), Step(loss="full")),
]


@pytest.mark.parametrize(("chosen", "step"), SLICE)
@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen2.5-1.5b"])
def test_the_closed_form_is_within_one_percent(name, chosen, step):
    shape, step = replace(shape_of(name), n_layers=2), replace(step, batch=2, seq_len=512)
    predicted, traced = predict(shape, chosen, step), trace(shape, chosen, step)
    assert predicted.peak_allocated_bytes == pytest.approx(traced.peak_allocated_bytes, rel=0.01)
    assert predicted.trainable_params == traced.trainable_params
    assert predicted.total_params == traced.total_params
    assert predicted.static_bytes == pytest.approx(traced.static_bytes, rel=1e-4)  # the rotary table is a buffer


@pytest.mark.parametrize("kind", ["spectrum", "lora"])
@pytest.mark.parametrize("order", ["high", "low", "random"])
def test_the_closed_form_is_within_one_percent_for_what_spectrum_selects(kind, order):
    """SmolLM2-135M, all thirty layers, a quarter of each type by its shipped scan."""
    shape, chosen = shape_of("smollm2-135m"), select(scores_of("smollm2-135m"), top_percent=25, order=order)
    step = Step(batch=2, seq_len=256, loss="fused", checkpointing=order == "low")
    predicted, traced = (give(shape, method(kind, modules=chosen), step) for give in (predict, trace))
    assert predicted.peak_allocated_bytes == pytest.approx(traced.peak_allocated_bytes, rel=0.01)
    assert predicted.trainable_params == traced.trainable_params


# --- what it reports -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "qdora"])
def test_components_sum_to_the_peak_and_it_is_in_a_phase(kind):
    traced = trace(SMALL, method(kind), Step(seq_len=128, loss="full"))
    assert tuple(traced.components) == COMPONENTS
    assert sum(traced.components.values()) == traced.peak_allocated_bytes
    assert tuple(traced.phases) == PHASES
    assert traced.phases[traced.peak_phase] == traced.peak_allocated_bytes
    assert traced.peak_operation == "aten._log_softmax_backward_data.default [128, 49152]"
    assert traced.components["logits"] == 12 * 128 * 49_152


def test_gradients_are_found_and_temporaries_are_not_taken_for_activations():
    shape = replace(SMALL, vocab_size=512)
    traced = trace(shape, method("full"), Step(seq_len=2, loss="full", optimizer="adamw_foreach"))
    parameters = traced.components["parameters"]
    assert traced.peak_phase == "optimizer"
    assert traced.components["gradients"] == pytest.approx(parameters, rel=0.001)
    assert traced.components["temporary"] == pytest.approx(parameters, rel=0.001)  # foreach's square roots
    assert traced.components["activations"] < 1000


def test_paged_states_are_not_the_allocators():
    shape = replace(SMALL, n_layers=1)
    plain, paged = (
        trace(shape, method("full"), Step(seq_len=8, optimizer=o)) for o in ("adamw_8bit", "paged_adamw_8bit")
    )
    large = sum(n * size for n, size in shape.tensors().values() if size >= 100_000)
    assert plain.static_bytes - paged.static_bytes == 2 * large


@pytest.mark.parametrize("padded", [True, False])
def test_a_mask_is_built_only_where_there_is_padding(padded):
    odd = Step(seq_len=101, loss="full", padded=padded, checkpointing=False)  # rows of CUDA's mask are padded to 104
    assert trace(SMALL, method("lora"), odd).peak_allocated_bytes > 0


def test_what_is_replaced_is_put_back():
    before = torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.dropout, torch.is_autocast_enabled
    trace(SMALL, method("qlora", adapter_dtype="autocast"), Step(seq_len=16))
    after = torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.dropout, torch.is_autocast_enabled
    assert before == after
    assert not torch.is_autocast_enabled()
    assert MetaAutocast.active is None
    _, state = functional.quantize_4bit(torch.randn(64, 64), compress_statistics=True, quant_type="nf4")
    assert state.state2.code.device.type == "cpu"


def test_what_cannot_be_traced_says_so():
    with pytest.raises(LabError, match="block_size=128"):
        trace(SMALL, method("qlora", block_size=128), Step(seq_len=16))
    with pytest.raises(LabError, match="autocast over a float32 base"):
        trace(SMALL, method("lora", adapter_dtype="autocast", dtype="float32"), Step(seq_len=16))
    with pytest.raises(LabError, match=r"layers=\(2,\)"):
        trace(SMALL, method("lora", layers=(2,)), Step(seq_len=16))
