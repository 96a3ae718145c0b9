"""Measuring a step: with CUDA's counters replaced by a ledger of the CPU, the very same code must find the dry run."""

import pytest
import torch

from labkit.models.methods import Method, Step
from labkit.models.profiles import PROFILES
from labkit.models.shapes import ModelShape, shape_of
from labkit.theory.memory import PHASES, predict
from labkit.training import meta_model
from labkit.training.autocast import MetaAutocast
from labkit.training.dryrun import trace
from labkit.training.ledger import Ledger
from labkit.training.real_step import measure_step, measure_twin, measured_peak_bytes

SMALL = ModelShape("small", "qwen3", 4096, 64, 192, 2, 2, 1, 32, tied_embeddings=True, qk_norm=True)
STEP = Step(batch=2, seq_len=64, loss="full")


class Counters:
    """The calls of ``torch.cuda`` that a measurement makes, answered by a ledger of the CPU's tensors."""

    def __init__(self, ledger: Ledger, *, already: int = 0) -> None:
        self.ledger, self.already, self.since, self.waited = ledger, already, 0, 0

    def memory_allocated(self):
        return self.already + self.ledger.curve[-1]

    def max_memory_allocated(self):
        return self.already + max(self.ledger.curve[self.since :])

    def max_memory_reserved(self):
        return self.max_memory_allocated() + 100

    def memory_reserved(self):
        return self.memory_allocated() + 100

    def reset_peak_memory_stats(self):
        self.since = len(self.ledger.curve) - 1

    def synchronize(self):
        self.waited += 1

    def mem_get_info(self):
        return 10**9 - self.memory_reserved() - 7, 10**9

    def get_device_name(self):
        return "a CPU"

    def get_device_capability(self):
        return (0, 0)


def measured(method, step, **options):
    meta_model.build(SMALL, method, step, device="cpu")  # libraries that are imported now make tensors of their own
    with Ledger(device="cpu") as ledger:
        counters = Counters(ledger, **options)
        return measure_step(SMALL, method, step, device="cpu", counters=counters), counters


@pytest.mark.parametrize("kind", ["full", "lora", "dora"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_every_phase_is_what_the_dry_run_says(kind, checkpointing):
    method = Method(kind=kind, rank=4, dropout=0.0)
    step = Step(batch=2, seq_len=64, loss="full", checkpointing=checkpointing)
    found, counters = measured(method, step, already=12_345)
    assert found.phases == trace(SMALL, method, step).phases
    assert tuple(found.phases) == PHASES
    assert counters.waited >= len(PHASES)  # CUDA's queue is empty at each border
    assert found.outside_bytes == 7
    assert found.reserved_bytes > max(found.phases.values())


def test_a_quantized_twin_holds_what_the_dry_run_says():
    method = Method(kind="qlora", rank=4, dropout=0.0)
    found, _ = measured(method, STEP)
    assert found.phases["load"] == trace(SMALL, method, STEP).phases["load"]
    assert found.phases["backward"] > found.phases["load"]


def test_a_quantized_twin_learns_and_is_wholly_there():
    method = Method(kind="qdora", rank=4, dropout=0.0, kbit_prepare=True)
    model = meta_model.build(SMALL, method, STEP, device="cpu")
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert model.get_base_model().lm_head.weight is model.get_base_model().model.embed_tokens.weight
    ids = torch.randint(0, SMALL.vocab_size, (2, 16))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in tensors[:-1] if parameter.requires_grad)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_autocast_runs_as_torchs_own_on_real_tensors(checkpointing, monkeypatch):
    never = lambda *_: pytest.fail("the dry run's autocast on real tensors")  # noqa: E731
    method = Method(kind="lora", rank=4, dropout=0.0, adapter_dtype="autocast")
    step = Step(batch=2, seq_len=64, loss="full", checkpointing=checkpointing)
    wanted = trace(SMALL, method, step).phases["backward"]
    monkeypatch.setattr(MetaAutocast, "__enter__", never)
    found, _ = measured(method, step)
    assert found.phases["backward"] == pytest.approx(wanted, rel=0.02)


def test_without_cuda_nothing_is_measured_and_nothing_built(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(meta_model, "build", lambda *_, **__: pytest.fail("built"))
    assert measure_twin(shape_of("qwen3-8b"), Method(kind="full"), Step()) is None


def test_the_tiny_profile_is_measured_and_a_model_too_large_for_a_cpu_is_not(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    profile = PROFILES["tiny"]
    shape_step = Step(seq_len=64, loss="full")
    wanted = predict(shape_of(profile.model), profile.method, shape_step).peak_allocated_bytes
    assert measured_peak_bytes(profile, profile.method, seq_len=64) == pytest.approx(wanted, rel=0.05)
    assert measured_peak_bytes(PROFILES["gpu"], PROFILES["gpu"].method, seq_len=64) is None
