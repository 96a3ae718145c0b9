"""What a training step really allocates, tensor by tensor, on a CPU: the instruments of lesson 01.

A `Ledger` sees every operation and books each storage when it appears and when it is released, so its peak is what
``torch.cuda.max_memory_allocated`` would report, but for the temporaries that a kernel keeps to itself.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from labkit.models.methods import Method
from labkit.models.shapes import ModelShape
from labkit.training.loading import lora_config, quiet

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(slots=True)
class Entry:
    """One storage in the books: how large, what made it, and between which points of the curve it was held.

    Attributes:
        size_bytes: its size.
        kind: what a resident tensor was said to be; empty for what an operation made.
        operation: name of the operation that made it; empty for a resident one.
        shape: of the tensor that it was made for.
        phase: the phase in which it was made (see `Ledger.mark`).
        recorded: whether autograd was recording then: a forward pass, also one that is run again.
        since, until: first index of the curve at which it is held, and at which it no longer is (None: still there).
        gradient_since: index at which it became a parameter's gradient.
    """

    size_bytes: int
    kind: str
    operation: str
    shape: tuple[int, ...]
    phase: str
    recorded: bool
    since: int
    until: int | None = None
    gradient_since: int | None = None

    def held_at(self, index: int) -> bool:
        """Whether it was held at this point of the curve."""
        return self.since <= index and (self.until is None or index < self.until)


class Ledger(TorchDispatchMode):
    """Books the storages of a block: ``with Ledger([...]) as ledger: ...``. CPU and meta tensors only.

    On CUDA, autograd's own thread runs the backward pass, where no mode of this thread is active.

    Args:
        resident: tensors that are there already; they count from the start, until they are released.
        device: book only tensors on this type of device, e.g. ``meta``; None books all.

    Attributes:
        curve: bytes held at the start and after every allocation and release inside the block.
        entries: every storage that was in the books.
        starts: phase -> index in ``curve`` at which it began (see `mark`).
    """

    def __init__(self, resident: Iterable[torch.Tensor] = (), *, device: str | None = None) -> None:
        super().__init__()
        self._held: dict[int, Entry] = {}
        self._now, self._open, self._operation = 0, False, ""
        self._device = device
        self.curve: list[int] = []
        self.entries: list[Entry] = []
        self.starts: dict[str, int] = {}
        self.add(resident)

    def __enter__(self) -> Ledger:
        self._open = True
        self.curve.append(self._now)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._open = False

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self._operation = str(operation)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._book(tensor)
        return result

    @property
    def peak_bytes(self) -> int:
        """The most that was held at once inside the block."""
        return max(self.curve)

    def add(self, tensors: Iterable[torch.Tensor], kind: str = "") -> None:
        """Book tensors that are there already, as ``kind``. What is in the books keeps its first entry."""
        self._operation = ""
        for tensor in tensors:
            self._book(tensor, kind)

    def mark(self, phase: str) -> None:
        """Note that ``phase`` begins now."""
        self.starts[phase] = len(self.curve) - 1

    def mark_gradient(self, gradient: torch.Tensor) -> None:
        """Note that this tensor is a parameter's gradient from now on."""
        self._held[gradient.untyped_storage()._cdata].gradient_since = len(self.curve) - 1

    def _recorded(self) -> bool:
        return torch.is_grad_enabled()

    def _book(self, tensor: torch.Tensor, kind: str = "") -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._held or self._device not in (None, tensor.device.type):
            return
        phase, since = next(reversed(self.starts), ""), len(self.curve) if self._open else 0
        shape = tuple(tensor.shape)
        entry = Entry(storage.nbytes(), kind, self._operation, shape, phase, self._recorded(), since)
        self._held[storage._cdata] = entry
        self.entries.append(entry)
        weakref.finalize(storage, self._release, storage._cdata).atexit = False
        self._change(entry.size_bytes)

    def _release(self, key: int) -> None:
        entry = self._held.pop(key)
        entry.until = len(self.curve)
        self._change(-entry.size_bytes)

    def _change(self, size_bytes: int) -> None:
        self._now += size_bytes
        if self._open:
            self.curve.append(self._now)


def peak_bytes(run: Callable[[], object], *, resident: Iterable[torch.Tensor] = ()) -> int:
    """Bytes that ``run()`` holds at its peak, beyond the ``resident`` tensors."""
    with Ledger(resident) as ledger:
        run()
    return ledger.peak_bytes - ledger.curve[0]


def random_model(
    shape: ModelShape, *, dtype: str = "bfloat16", device: str = "cpu", attention: str = "sdpa"
) -> PreTrainedModel:
    """transformers' model of this shape with random weights, ready to train; on ``meta`` it takes no memory.

    Attention sees the whole sequence: Mistral's class would by default slide a window of 4,096 over it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        shape.architecture,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied_embeddings,
        **({"sliding_window": None} if shape.architecture == "mistral" else {}),
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation=attention)
    return model.train()


def add_adapters(model: PreTrainedModel, method: Method) -> PeftModel:
    """``model`` with the adapters of ``method``, in its adapter type (PEFT's default: float32)."""
    in_float32 = method.adapter_dtype != "bfloat16"
    on_meta = next(model.parameters()).is_meta
    with quiet():
        from peft import get_peft_model

        options = {"autocast_adapter_dtype": in_float32, "low_cpu_mem_usage": on_meta}
        return get_peft_model(model, lora_config(method), **options).train()


def checkpointed(model: Any, **options: Any) -> Any:
    """``model`` with gradient checkpointing of every decoder layer, as transformers' Trainer switches it on.

    ``options`` go to ``torch.utils.checkpoint``; without any, transformers chooses.
    """
    with quiet():
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable(options or None)
        model.enable_input_require_grads()  # else no gradient would enter the checkpointed layers of a frozen base
    return model


def make_optimizer(model: torch.nn.Module, name: str = "adamw") -> torch.optim.Optimizer:
    """The optimizer of a `Step` over the parameters that train; ``adamw`` is torch's fused, transformers' default."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(trained, lr=0.1)
    if name in ("adamw", "adamw_foreach"):
        return torch.optim.AdamW(trained, **{"fused" if name == "adamw" else "foreach": True})
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    return (AdamW8bit if name == "adamw_8bit" else PagedAdamW8bit)(trained)


def run_step(
    forward: Callable[[], tuple[torch.Tensor, object]],
    optimizer: torch.optim.Optimizer,
    mark: Callable[[str], object] = lambda phase: None,
) -> None:
    """Forward pass and loss, backward pass, update; the gradients are gone afterwards.

    Args:
        forward: makes the loss, and whatever its caller keeps until after the backward pass.
        mark: called with ``forward``, ``backward`` and ``optimizer`` as each begins.
    """
    mark("forward")
    loss, kept = forward()
    mark("backward")
    loss.backward()
    del loss, kept
    mark("optimizer")
    optimizer.step()
    optimizer.zero_grad()


def train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    ids: torch.Tensor,
    mark: Callable[[str], object] = lambda phase: None,
) -> None:
    """`run_step` with transformers' own loss on token ids (batch, seq_len), which are also the labels."""
    with quiet():
        run_step(lambda: (model(input_ids=ids, labels=ids, use_cache=False).loss, None), optimizer, mark)


def record_step(model: torch.nn.Module, ids: torch.Tensor) -> Ledger:
    """The ledger of a second step on the CPU (the first one makes the optimizer's states)."""
    optimizer = make_optimizer(model)
    train_step(model, optimizer, ids)
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    with Ledger([*model.parameters(), *model.buffers(), *states, ids]) as ledger:
        train_step(model, optimizer, ids, ledger.mark)
    return ledger


def step_seconds(model: torch.nn.Module, ids: torch.Tensor, *, repeats: int = 5) -> float:
    """Seconds of the fastest of ``repeats`` steps on the CPU: the one that other programs disturbed least."""
    optimizer, times = make_optimizer(model), []
    for _ in range(repeats + 1):  # the first one warms up and is not counted
        started = time.perf_counter()
        train_step(model, optimizer, ids)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def step_flops(shape: ModelShape, method: Method, *, length: int = 1024) -> int:
    """Floating-point operations of one forward and backward pass over a sequence of ``length`` tokens.

    PyTorch counts matrix products and attention, two per multiplication and addition, on the real architecture with
    tensors that hold no numbers (``meta``); nothing is computed. Without checkpointing.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model = random_model(shape, device="meta")
    if method.uses_adapters:
        model = add_adapters(model, method)
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    mask = torch.zeros(1, 1, length, length, dtype=model.dtype, device="meta")  # else transformers reads the ids
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, attention_mask=mask, use_cache=False).loss.backward()
    return counter.get_total_flops()
