"""The dry run: the training step that the installed libraries would run, traced on tensors without memory."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape
from labkit.theory.activations import autocast
from labkit.theory.memory import PHASES, Prediction, check_settings
from labkit.theory.transients import CHUNK_TOKENS, FUSED_VOCAB
from labkit.training import meta_model
from labkit.training.autocast import MetaAutocast
from labkit.training.ledger import Ledger, make_optimizer, run_step
from labkit.training.loading import quiet
from labkit.training.meta_kernels import MetaLedger, as_on_cuda
from labkit.training.timeline import Timeline, timeline


@dataclass(frozen=True)
class DryRun(Prediction):
    """What `trace` returns: the fields of a `Prediction`, found by tracing, and the operation at the peak.

    ``activations`` is here what a forward pass made and what the backward pass still needs, or what it makes again
    under checkpointing; ``logits`` is as wide as the vocabulary; ``gradients`` belong to parameters; ``temporary`` is
    the rest.

    Attributes:
        peak_operation: the operation whose allocation makes the peak, with the shape that it allocates.
    """

    peak_operation: str


@dataclass(frozen=True)
class TracedStep:
    """One traced step: its books, and what can be read from them.

    Attributes:
        shape, method, step: what was traced.
        trainable_params, total_params: see `Prediction`.
        ledger: every storage of the step.
    """

    shape: ModelShape
    method: Method
    step: Step
    trainable_params: int
    total_params: int
    ledger: MetaLedger

    @cached_property
    def timeline(self) -> Timeline:
        """Live bytes by component at every moment of the step."""
        widths = {self.shape.vocab_size} | ({FUSED_VOCAB} if self.step.loss == "fused" else set())
        return timeline(self.ledger, widths=widths)

    @cached_property
    def dry_run(self) -> DryRun:
        """The peak: its bytes by component, its phase and its operation."""
        line = self.timeline
        phases, begin = line.phases, line.at(line.starts["forward"])
        peak_phase = max(PHASES, key=phases.get)
        peak = line.peaks[peak_phase]
        return DryRun(
            settings={"model": self.shape.name, "method": asdict(self.method), "step": asdict(self.step)},
            trainable_params=self.trainable_params,
            total_params=self.total_params,
            static_bytes=phases["load"] + begin["optimizer_states"],
            peak_allocated_bytes=phases[peak_phase],
            peak_phase=peak_phase,
            peak_operation=self.operation_at(peak),
            components=line.at(peak),
            phases=phases,
        )

    def operation_at(self, moment: int) -> str:
        """The operation that allocated at a moment of the timeline, with the shape that it allocated."""
        made = [entry for entry in self.ledger.entries if entry.since == moment - 1 and entry.operation]
        return f"{made[-1].operation} {list(made[-1].shape)}" if made else "none: what is there when the step begins"


def trace(shape: ModelShape, method: Method, step: Step) -> DryRun:
    """Trace one training step in a steady state (the optimizer's states exist); no weights, no GPU, no numbers.

    Raises:
        LabError: what `labkit.theory.memory.predict` refuses; a block size that transformers cannot load.
    """
    return trace_step(shape, method, step).dry_run


def trace_step(shape: ModelShape, method: Method, step: Step) -> TracedStep:
    """`trace` with the books: for the timeline of the step, or to replay its allocations. Raises what `trace` does."""
    check_settings(shape, method)
    with quiet(), as_on_cuda(method, step):  # bitsandbytes prints a note about optional kernels when it is imported
        model = meta_model.build(shape, method, step)
        trained, total = meta_model.count(model)
        ledger = book_step(model, method, step, MetaLedger())
    return TracedStep(shape, method, step, trained, total, ledger)


def book_step(model: torch.nn.Module, method: Method, step: Step, ledger: Ledger) -> Ledger:
    """Run one step in a steady state under ``ledger``, which holds the model and the optimizer's states before it."""
    ledger.add(meta_model.quantization_constants(model), "quantization_constants")
    held = [*model.parameters(), *model.buffers()]
    adapters = [parameter for parameter in held if parameter.requires_grad and method.uses_adapters]
    ledger.add(adapters, "adapters")
    ledger.add(held, "parameters")
    optimizer = make_optimizer(model, step.optimizer)
    ledger.add(meta_model.optimizer_states(optimizer), "optimizer_states")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda trained: ledger.mark_gradient(trained.grad))
    batch = batch_of(step, device=held[0].device)
    ledger.add(batch.values(), "temporary")
    gc.collect()  # a storage in a cycle would be released at some later moment
    with quiet(), ledger:
        run_step(lambda: forward_pass(model, batch, method, step), optimizer, ledger.mark)
    return ledger


def batch_of(step: Step, *, device: torch.device | str) -> dict[str, torch.Tensor]:
    """Token ids, labels and attention mask of a step, each (batch, seq_len); with padding, one token is masked."""
    ids = torch.zeros(step.batch, step.seq_len, dtype=torch.long, device=device)
    seen = torch.ones_like(ids)
    if step.padded:
        seen[0, -1] = 0
    return {"input_ids": ids, "labels": torch.zeros_like(ids), "attention_mask": seen}


def forward_pass(model, batch: dict, method: Method, step: Step) -> tuple[torch.Tensor, Any]:
    """The step's loss, and the output that its caller keeps until after the backward pass (None: it keeps none)."""
    with _region(method, batch["input_ids"].device.type):
        if step.loss == "fused":
            return model(**batch, fused_lm_head=True).loss, None
        if step.loss == "chunked":
            return _chunked_loss(model, batch, method), None
        output = model(**batch, use_cache=False)
        return output.loss, output if step.keep_logits else None


def _region(method: Method, device: str) -> contextlib.AbstractContextManager:
    if not autocast(method):
        return contextlib.nullcontext()
    return MetaAutocast() if device == "meta" else torch.autocast(device, torch.bfloat16)


def _chunked_loss(model, batch: dict, method: Method) -> torch.Tensor:
    """Cross-entropy of 256 tokens at a time, each chunk's logits made again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    base = model.get_base_model() if hasattr(model, "peft_config") else model
    seen = {name: batch[name] for name in ("input_ids", "attention_mask")}
    hidden = base.model(**seen, use_cache=False).last_hidden_state.flatten(0, 1)
    wanted = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[..., 1:].flatten()

    def chunk_loss(some: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(base.lm_head(some).float(), labels, reduction="sum")

    chunks = zip(hidden.split(CHUNK_TOKENS), wanted.split(CHUNK_TOKENS), strict=True)
    del hidden
    again = meta_model.recomputing(method, device=wanted.device.type)
    return sum(checkpoint(chunk_loss, *chunk, **again) for chunk in chunks) / wanted.numel()
