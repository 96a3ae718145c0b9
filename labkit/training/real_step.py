"""One real training step, measured: a random twin of a model phase by phase on a GPU, and a profile's own model."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape
from labkit.training import meta_model
from labkit.training.dryrun import batch_of, forward_pass
from labkit.training.ledger import add_adapters, checkpointed, make_optimizer, record_step, run_step, train_step
from labkit.training.loading import load_base, load_tokenizer, quiet

if TYPE_CHECKING:
    from labkit.models.profiles import Profile


@dataclass(frozen=True)
class Measured:
    """What PyTorch's allocator counted on a GPU, in bytes; what other tensors of the process held before is left out.

    Attributes:
        phases: phase -> ``max_memory_allocated``; for ``load`` what the loaded model holds.
        reserved_bytes: ``max_memory_reserved`` over loading and two steps.
        outside_bytes: what is used on the GPU and not reserved by this process's PyTorch: the CUDA context, and
            whatever other programs hold.
        gpu: the GPU's name.
        capability: its compute capability.
    """

    phases: dict[str, int]
    reserved_bytes: int
    outside_bytes: int
    gpu: str
    capability: tuple[int, int]


def measure_twin(shape: ModelShape, method: Method, step: Step) -> Measured | None:
    """Build a model of this shape with random weights on the GPU and measure its second step; None without CUDA.

    The numbers in the weights do not matter to memory. Nothing of the twin is left on the GPU afterwards.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    if not torch.cuda.is_available():
        return None
    empty_gpu()
    try:
        return measure_step(shape, method, step)
    finally:
        empty_gpu()


def empty_gpu() -> None:
    """Give back what the allocator holds without using it, and start its counters anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_step(
    shape: ModelShape, method: Method, step: Step, *, device: str = "cuda", counters: Any = None
) -> Measured:
    """`measure_twin` on a device that is there, with ``torch.cuda``'s counters or others that answer the same calls.

    Raises:
        torch.OutOfMemoryError: it does not fit; a note on the error names the phase.
    """
    marks = _PhasePeaks(counters or torch.cuda)
    try:
        _two_steps(shape, method, step, device, marks)
    except torch.OutOfMemoryError as error:
        error.add_note(f"in the phase {marks.phase}")
        raise
    return marks.measured()


def _two_steps(shape: ModelShape, method: Method, step: Step, device: str, marks: _PhasePeaks) -> None:
    """Load, and train two steps; the first one makes optimizer states and workspaces, the second one is counted."""
    marks.begin("load")
    with quiet():
        model = meta_model.build(shape, method, step, device=device)
        marks.settle()
        optimizer, batch = make_optimizer(model, step.optimizer), batch_of(step, device=device)
        for mark in (marks.pass_by, marks.begin):
            run_step(lambda: forward_pass(model, batch, method, step), optimizer, mark)
        marks.end()


class _PhasePeaks:
    """Told as each phase begins, it keeps the peak of each phase."""

    def __init__(self, counters: Any) -> None:
        self._cuda, self._reserved, self._counting = counters, 0, False
        self._already = counters.memory_allocated()
        self.phase, self.phases = "", {}

    def pass_by(self, phase: str) -> None:
        """A phase begins that is not to be counted."""
        self.end()
        self.phase = phase

    def begin(self, phase: str) -> None:
        """A phase begins; the one before is over."""
        self.end()
        self.phase, self._counting = phase, True

    def settle(self) -> None:
        """End a phase with what is held now: loading passes through more than it leaves."""
        self._cuda.reset_peak_memory_stats()
        self.end()

    def end(self) -> None:
        """The phase is over."""
        self._cuda.synchronize()
        if self._counting:
            self.phases[self.phase] = self._cuda.max_memory_allocated() - self._already
        self._reserved = max(self._reserved, self._cuda.max_memory_reserved())
        self._cuda.reset_peak_memory_stats()
        self._counting = False

    def measured(self) -> Measured:
        free, total = self._cuda.mem_get_info()
        outside = total - free - self._cuda.memory_reserved()
        name, capability = self._cuda.get_device_name(), self._cuda.get_device_capability()
        return Measured(self.phases, self._reserved, outside, name, tuple(capability))


def real_model(profile: Profile, method: Method) -> torch.nn.Module:
    """The profile's pretrained model with the adapters of ``method``, checkpointed, on the GPU if there is one."""
    from labkit.models.weights import locate

    weights = locate(profile)
    with quiet():
        base = load_base(weights, method, tokenizer=load_tokenizer(weights))
    return checkpointed(add_adapters(base, method))


def measured_peak_bytes(profile: Profile, method: Method, *, seq_len: int) -> int | None:
    """Peak of a second step of the profile's real model on one sequence: by CUDA's own counter, or by a ledger.

    None where a model that needs CUDA has none: then nothing is loaded.
    """
    has_cuda = torch.cuda.is_available()
    if profile.needs_cuda and not has_cuda:
        return None
    model = real_model(profile, method)
    ids = torch.randint(0, model.config.vocab_size, (1, seq_len), device=model.device)
    if not has_cuda:
        return record_step(model, ids).peak_bytes
    optimizer = make_optimizer(model)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        train_step(model, optimizer, ids)
    return torch.cuda.max_memory_allocated()
