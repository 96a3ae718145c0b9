"""The dry run: the training step that the installed libraries would run, traced on tensors without memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape
from labkit.theory.activations import autocast
from labkit.theory.memory import COMPONENTS, PHASES, Prediction, check_settings
from labkit.theory.transients import CHUNK_TOKENS, FUSED_VOCAB
from labkit.training import meta_model
from labkit.training.autocast import MetaAutocast
from labkit.training.ledger import Entry, Ledger, make_optimizer
from labkit.training.loading import quiet
from labkit.training.meta_kernels import MetaLedger, as_on_cuda


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


def trace(shape: ModelShape, method: Method, step: Step) -> DryRun:
    """Trace one training step in a steady state (the optimizer's states exist); no weights, no GPU, no numbers.

    Raises:
        LabError: what `labkit.theory.memory.predict` refuses; a block size that transformers cannot load.
    """
    check_settings(shape, method)
    with quiet(), as_on_cuda(method, step):  # bitsandbytes prints a note about optional kernels when it is imported
        model = meta_model.build(shape, method, step)
        trained, total = meta_model.count(model)
        ledger = book_step(model, method, step, MetaLedger())
    loaded = sum(entry.size_bytes for entry in ledger.entries if entry.kind in COMPONENTS[:3])
    static = loaded + sum(entry.size_bytes for entry in ledger.entries if entry.kind == "optimizer_states")
    phases = {"load": loaded} | _phase_peaks(ledger)
    peak = ledger.curve.index(ledger.peak_bytes)
    widths = {shape.vocab_size} | ({FUSED_VOCAB} if step.loss == "fused" else set())
    return DryRun(
        settings={"model": shape.name, "method": asdict(method), "step": asdict(step)},
        trainable_params=trained,
        total_params=total,
        static_bytes=static,
        peak_allocated_bytes=max(phases.values()),
        peak_phase=max(PHASES, key=phases.get),
        peak_operation=_operation(ledger, peak),
        components=_components(ledger, peak, widths=widths),
        phases=phases,
    )


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
    batch = _batch(step, device=held[0].device)
    ledger.add(batch.values(), "temporary")
    gc.collect()  # a storage in a cycle would be released at some later moment
    with quiet(), ledger:
        _run(model, optimizer, batch, method, step, mark=ledger.mark)
    return ledger


def _batch(step: Step, *, device: torch.device) -> dict[str, torch.Tensor]:
    ids = torch.zeros(step.batch, step.seq_len, dtype=torch.long, device=device)
    seen = torch.ones_like(ids)
    if step.padded:
        seen[0, -1] = 0
    return {"input_ids": ids, "labels": torch.zeros_like(ids), "attention_mask": seen}


def _run(model, optimizer, batch: dict, method: Method, step: Step, *, mark: Callable[[str], None]) -> None:
    """Forward pass and loss, backward pass, update."""
    mark("forward")
    region = MetaAutocast() if autocast(method) else nullcontext()
    with region:
        loss, output = _loss(model, batch, method, step)
    if not step.keep_logits:
        output = None
    mark("backward")
    loss.backward()
    del loss, output
    mark("optimizer")
    optimizer.step()
    optimizer.zero_grad()


def _loss(model, batch: dict, method: Method, step: Step) -> tuple[torch.Tensor, Any]:
    """The loss, and the output that holds the logits where there are any."""
    if step.loss == "full":
        output = model(**batch, use_cache=False)
        return output.loss, output
    if step.loss == "fused":
        return model(**batch, fused_lm_head=True).loss, None
    return _chunked_loss(model, batch, method), None


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
    return sum(checkpoint(chunk_loss, *chunk, **meta_model.recomputing(method)) for chunk in chunks) / wanted.numel()


def _phase_peaks(ledger: MetaLedger) -> dict[str, int]:
    bounds = [*ledger.starts.values(), len(ledger.curve) - 1]
    spans = zip(ledger.starts, bounds, bounds[1:], strict=False)
    return {phase: max(ledger.curve[first : last + 1]) for phase, first, last in spans}


def _operation(ledger: MetaLedger, peak: int) -> str:
    made = [entry for entry in ledger.entries if entry.since == peak and entry.operation]
    return f"{made[-1].operation} {list(made[-1].shape)}" if made else "none: what is there when the step begins"


def _components(ledger: MetaLedger, peak: int, *, widths: set[int]) -> dict[str, int]:
    """Bytes at the peak by component; ``widths`` are those of logits."""
    sizes = dict.fromkeys(COMPONENTS, 0)
    for entry in ledger.entries:
        if entry.held_at(peak):
            sizes[_component(entry, peak, widths, ledger.starts)] += entry.size_bytes
    return sizes


def _component(entry: Entry, peak: int, widths: set[int], starts: dict[str, int]) -> str:
    if entry.kind:
        return entry.kind
    if entry.gradient_since is not None and entry.gradient_since <= peak:
        return "gradients"
    if entry.shape[-1:] and entry.shape[-1] in widths and len(entry.shape) < 4:
        return "logits"
    outlives = entry.until is None or entry.until > starts["backward"]
    if entry.recorded and (entry.phase != "forward" or outlives):
        return "activations"
    return "temporary"
