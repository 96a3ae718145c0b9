"""The memory of one training step in closed form: who holds how many bytes, at which moment of the step.

A step passes through a few moments that can be its peak: loading, the end of the forward pass, the cross-entropy's
gradient, the backward pass of the top and of the bottom layer, the embedding's gradient, the optimizer's update. Each
is a dictionary of bytes; the prediction is the largest of them. It is a steady state (second step or later: optimizer
states exist), in bytes as requested: CUDA rounds each tensor up to 512, and the CUDA context, cuBLAS workspaces and
the allocator's unused reserve (``reserved`` - ``allocated``) come on top.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from labkit.errors import LabError
from labkit.models.methods import DTYPE_BYTES, Method, Step
from labkit.models.shapes import ModelShape
from labkit.theory import activations as act
from labkit.theory import transients as moving
from labkit.theory.resident import adapter_tensors, n_bytes, n_elements, resident_bytes, trainable_tensors

COMPONENTS = (
    "parameters",
    "quantization_constants",
    "adapters",
    "gradients",
    "optimizer_states",
    "activations",
    "logits",
    "temporary",
)
PHASES = ("load", "forward", "backward", "optimizer")

Moment = tuple[str, dict[str, int]]  # phase, bytes by component


@dataclass(frozen=True)
class Prediction:
    """What `predict` returns; all sizes in bytes.

    Attributes:
        settings: model, method and step as plain values.
        trainable_params: elements that get a gradient.
        total_params: elements of the base model (tied once) and of the adapters.
        static_bytes: parameters + quantization constants + adapters + optimizer states on the GPU.
        peak_allocated_bytes: the step's largest moment; comparable with ``torch.cuda.max_memory_allocated``.
        peak_phase: the phase (see `PHASES`) of that moment.
        components: bytes at that moment by component (see `COMPONENTS`); they sum to the peak.
        phases: the peak of each phase.
    """

    settings: dict[str, Any]
    trainable_params: int
    total_params: int
    static_bytes: int
    peak_allocated_bytes: int
    peak_phase: str
    components: dict[str, int]
    phases: dict[str, int]


def predict(shape: ModelShape, method: Method, step: Step) -> Prediction:
    """Predict the peak GPU memory of one training step.

    Raises:
        LabError: a selected layer that the model does not have, or autocast over a base that is not bfloat16.
    """
    passed = moments(shape, method, step)
    phases = {phase: max(sum(held.values()) for name, held in passed if name == phase) for phase in PHASES}
    peak_phase, peak = max(passed, key=lambda moment: sum(moment[1].values()))
    settings = {"model": shape.name, "method": asdict(method), "step": asdict(step)}
    return Prediction(
        settings=settings,
        trainable_params=n_elements(trainable_tensors(shape, method)),
        total_params=shape.n_params + n_elements(adapter_tensors(shape, method)),
        static_bytes=sum(resident_bytes(shape, method, step).values()),
        peak_allocated_bytes=sum(peak.values()),
        peak_phase=peak_phase,
        components={name: peak.get(name, 0) for name in COMPONENTS},
        phases=phases,
    )


def gpu_capacity() -> int | None:
    """Bytes of memory of the current CUDA device, to hold a prediction against; None without one.

    Not all of it is for tensors: the CUDA context, cuBLAS workspaces and other programs take some.
    """
    import torch

    return torch.cuda.get_device_properties().total_memory if torch.cuda.is_available() else None


def check_settings(shape: ModelShape, method: Method) -> None:
    """Refuse what neither the closed form nor the dry run treats; see `predict`."""
    if method.layers and method.layers[-1] >= shape.n_layers:
        rule = f"{shape.name} has the layers 0 to {shape.n_layers - 1}"
        raise LabError(f"layers={method.layers}", rule, "name layers that exist")
    if method.uses_adapters and method.adapter_dtype == "autocast" and method.dtype != "bfloat16":
        rule = f"bf16 autocast over a {method.dtype} base keeps a second copy of it and is not treated here"
        raise LabError(f"adapter_dtype='autocast' with dtype={method.dtype!r}", rule, "load the base in bfloat16")


def moments(shape: ModelShape, method: Method, step: Step) -> list[Moment]:
    """Every moment that can be the peak, in the order of a step, as (phase, bytes by component).

    How many there are, and which phases, depends on the method's kind alone. `predict` is the largest of them.

    Raises:
        LabError: see `predict`.
    """
    check_settings(shape, method)
    resident = resident_bytes(shape, method, step)
    loaded = {name: size for name, size in resident.items() if name != "optimizer_states"}
    later = [*_layers_backward(shape, method, step), *_embedding_backward(shape, method, step)]
    kept = {"logits": moving.kept_logit_bytes(shape, method, step)}
    passing = [
        *(("forward", held) for held in _forward(shape, method, step)),
        *(("backward", held) for held in _loss_backward(shape, method, step)),
        *(("backward", held | kept) for held in later),
        ("optimizer", _update(shape, method, step)),
    ]
    return [("load", loaded), *((phase, resident | held) for phase, held in passing)]


def _forward(shape: ModelShape, method: Method, step: Step) -> list[dict[str, int]]:
    """Inside the last layer, and at the loss."""
    saved, head = act.saved_bytes(shape, method, step), act.head_saved_bytes(shape, method, step)
    kinds = set(filter(None, map(method.at, range(shape.n_layers)))) if method.modules else {method}
    work = max(moving.forward_layer_bytes(shape, here, step) for here in kinds)
    layer = {"activations": saved, "temporary": work}
    logits = moving.logit_bytes(shape, method, step, backward=False)
    cast = moving.head_cast_bytes(shape, method, step, backward=False)
    if step.loss == "fused":  # the tokens that carry loss are copied; the model's output is there beside the copy
        cast += step.tokens * act.element_bytes(method) * shape.hidden_size
    return [layer, {"activations": saved + head, "logits": logits, "temporary": cast}]


def _loss_backward(shape: ModelShape, method: Method, step: Step) -> list[dict[str, int]]:
    """At the logits' gradient, and at the LM head's."""
    activations = act.saved_bytes(shape, method, step) + act.head_saved_bytes(shape, method, step)
    moved = moving.head_cast_bytes(shape, method, step, backward=True)
    moved += moving.head_gradient_bytes(shape, method, step)
    logits = moving.logit_bytes(shape, method, step, backward=True)
    weight = moving.head_weight_gradient_bytes(shape, method, step)
    return [
        {"activations": activations, "logits": logits, "temporary": moved},
        {"activations": activations, "logits": moving.kept_logit_bytes(shape, method, step), "temporary": weight},
    ]


def _layers_backward(shape: ModelShape, method: Method, step: Step) -> list[dict[str, int]]:
    """Inside the top layer or the highest selected one, inside the lowest, and at its first norm.

    On top are all activations and few gradients, at the bottom the reverse.
    The LM head's gradient waits for the embedding's if the two are tied: it is temporary until they are added.
    """
    residual = step.tokens * act.element_bytes(method) * shape.hidden_size
    matrix = DTYPE_BYTES[method.dtype] * shape.embedding_params() if method.kind == "full" else 0
    waiting, done = (matrix, 0) if shape.tied_embeddings else (0, matrix)
    if method.modules:  # every layer may be another
        upper = _through_modules(shape, method, step)
    else:
        tops = {shape.n_layers - 1, max(method.layers, default=shape.n_layers - 1)}
        kept, flight = max((_down_to(shape, method, step, layer) for layer in tops), key=sum)
        upper = [{"gradients": done, "activations": kept, "temporary": flight + waiting}]
    lowest = 0 if step.checkpointing else min(method.layers, default=0)
    one, flight, own = _layer_backward(shape, method, step, lowest)
    gradients = n_bytes(trainable_tensors(shape, method)) - matrix
    kept = one + (residual if step.checkpointing else 0) + act.mask_bytes(method, step)
    bottom = {"gradients": gradients - own, "activations": kept, "temporary": flight + waiting}
    norm = step.tokens * 4 * shape.hidden_size + (residual if step.checkpointing else 0)
    last = {"gradients": gradients, "activations": norm + act.mask_bytes(method, step)}
    return [*upper, bottom, last | {"temporary": moving.norm_gradient_bytes(shape, method, step) + waiting}]


def _through_modules(shape: ModelShape, method: Method, step: Step) -> list[dict[str, int]]:
    """Inside each layer from the top down to the lowest that trains, beside the gradients of those above it."""
    found, gradients = [], 0
    for layer in range(shape.n_layers - 1, min(method.layers) - 1, -1):
        kept, flight = _down_to(shape, method, step, layer)
        found.append({"gradients": gradients, "activations": kept, "temporary": flight})
        gradients += _layer_backward(shape, method, step, layer)[2]
    return found


def _down_to(shape: ModelShape, method: Method, step: Step, layer: int) -> tuple[int, int]:
    """Bytes kept, and in flight, when the backward pass is inside ``layer``; those above are done."""
    one, flight, _ = _layer_backward(shape, method, step, layer)
    saved, above = act.saved_bytes(shape, method, step), shape.n_layers - 1 - layer
    if step.checkpointing:
        return saved + one - above * step.tokens * act.element_bytes(method) * shape.hidden_size, flight
    if method.modules:
        return saved - sum(act.kept_in_layer(shape, method, step, j) for j in range(layer + 1, shape.n_layers)), flight
    return saved - above * act.layer_bytes(shape, method, step, trains=False, adapted=False), flight


def _layer_backward(shape: ModelShape, method: Method, step: Step, layer: int) -> tuple[int, int, int]:
    """Of one layer: bytes kept or recomputed, bytes in flight, bytes of the gradients that it will leave.

    A float32 residual stream (no cast) makes the checkpoint itself the first norm's input: 4h are not held twice.
    """
    here = method.at(layer)
    trains, adapted = (here is not None and method.uses_adapters == adapts for adapts in (False, True))
    method, selected = here or method, here is not None
    kept = act.layer_bytes(shape, method, step, trains=trains, adapted=adapted)
    if step.checkpointing and act.element_bytes(method) == 4:
        kept -= step.tokens * 4 * shape.hidden_size
    flight = moving.backward_layer_bytes(shape, method, step, trains=trains, adapted=adapted)
    if not selected:
        return kept, flight, 0
    if trains and not method.modules:
        return kept, flight, DTYPE_BYTES[method.dtype] * shape.layer_params()
    return kept, flight, n_bytes(trainable_tensors(shape, method)) // (len(method.layers) or shape.n_layers)


def _embedding_backward(shape: ModelShape, method: Method, step: Step) -> list[dict[str, int]]:
    """The embedding's gradient, the last of full fine-tuning: e V h, dense, beside every other gradient.

    A tied matrix already has one from the LM head, and autograd adds the two into a third.
    """
    if method.kind != "full":
        return []
    size = DTYPE_BYTES[method.dtype]
    matrix, incoming = size * shape.embedding_params(), step.tokens * size * shape.hidden_size
    temporary = max(3 * matrix, 2 * matrix + incoming) if shape.tied_embeddings else matrix + incoming
    return [{"gradients": n_bytes(trainable_tensors(shape, method)) - matrix, "temporary": temporary}]


def _update(shape: ModelShape, method: Method, step: Step) -> dict[str, int]:
    """All gradients; foreach AdamW adds the square roots of all second moments, one set as large as the gradients."""
    gradients = n_bytes(trainable_tensors(shape, method))
    return {"gradients": gradients, "temporary": gradients if step.optimizer == "adamw_foreach" else 0}
