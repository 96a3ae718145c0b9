"""What has to be put in place so that a step on meta tensors allocates what the same step allocates on CUDA.

A meta tensor has a shape and a type and no memory, so most operations run on it unchanged. The exceptions are here, one
function each: kernels that PyTorch chooses by device, kernels written in CUDA or Triton, questions about a tensor's
numbers. Nothing else of transformers, peft, trl or bitsandbytes is replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from labkit.models.methods import Method, Step
from labkit.training.autocast import MetaAutocast
from labkit.training.ledger import Ledger

FUNCTIONAL = torch.nn.functional
MASK_ALIGNMENT = 8  # CUDA's memory-efficient attention pads a mask's rows to this many elements


class Recomputation:
    """``with Recomputation(): ...`` is a forward pass that checkpointing runs again."""

    active = False

    def __enter__(self) -> None:
        Recomputation.active = True

    def __exit__(self, *error: Any) -> None:
        Recomputation.active = False


class MetaLedger(Ledger):
    """A ledger of meta tensors that also books the one large scratch tensor of CUDA's kernels.

    Its entries are ``recorded`` if a forward pass made them, inside bitsandbytes' own functions too.

    CUDA's softmax backward multiplies gradient and output into a tensor of its own (ATen, `softmax_backward_cuda_out`).
    """

    def __init__(self) -> None:
        super().__init__(device="meta")

    def _recorded(self) -> bool:
        return "backward" not in self.starts or Recomputation.active

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        scratch = None
        if operation is torch.ops.aten._softmax_backward_data.default:
            self._operation = str(operation)
            scratch = torch.empty_like(args[0])
            self._book(scratch)
        result = super().__torch_dispatch__(operation, types, args, kwargs)
        del scratch
        return result


@contextlib.contextmanager
def as_on_cuda(method: Method, step: Step) -> Iterator[None]:
    """Inside the block, models on meta are built and trained along the paths that they take on CUDA."""
    with contextlib.ExitStack() as stack:
        put = _putter(stack)
        put(FUNCTIONAL, "scaled_dot_product_attention", attention)
        put(FUNCTIONAL, "dropout", dropout)
        put(FUNCTIONAL, "softmax", softmax)
        _fused_optimizers(put)
        _masks(put, padded=step.padded)
        _autocast_state(put)
        if method.quantized or "8bit" in step.optimizer:
            _bitsandbytes(put)
        if step.loss == "fused":
            _fused_head(put)
        yield


Put = Callable[[Any, str, Any], None]


def _putter(stack: contextlib.ExitStack) -> Put:
    def put(owner: Any, name: str, value: Any) -> None:
        stack.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    return put


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Fused attention: keeps queries, keys, values, output and logsumexp; no score matrix.

    On meta PyTorch would choose the plain formula. The CPU's fused kernel keeps what CUDA's keep.
    """
    if MetaAutocast.active:
        query, key, value = map(MetaAutocast.active.lowered, (query, key, value))
    mask = None if attn_mask is None else additive_mask(attn_mask, query.dtype)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale)[0]


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as ATen makes it (`convert_boolean_attn_mask`), its rows padded to a multiple of 8."""
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, -torch.inf).to(dtype)
    missing = -mask.shape[-1] % MASK_ALIGNMENT
    return FUNCTIONAL.pad(mask, (0, missing))[..., :-missing] if missing else mask


def dropout(input, p=0.5, training=True, inplace=False):
    """CUDA's fused dropout, which keeps a one-byte mask; other devices keep the noise, as large as the input."""
    return torch.native_dropout(input, p, True)[0] if training and 0 < p < 1 else input


def softmax(input, dim=None, _stacklevel=3, dtype=None):
    """CUDA's kernel reads float16 and writes float32; every other pair of types is cast first (ATen, `softmax`)."""
    inside = input.dtype == torch.float16 and dtype == torch.float32
    return torch.ops.aten._softmax(input, dim, True) if inside else torch.softmax(input, dim, dtype=dtype)


def _fused_optimizers(put: Put) -> None:
    """torch's fused AdamW accepts meta parameters: the operation exists, only the list of devices lacks it."""
    from torch.optim import optimizer

    known = optimizer._get_fused_kernels_supported_devices
    put(optimizer, "_get_fused_kernels_supported_devices", lambda: [*known(), "meta"])


def _masks(put: Put, *, padded: bool) -> None:
    """Whether every token counts is a question about numbers, which meta tensors do not have."""
    from transformers import masking_utils

    put(masking_utils, "fast_all", lambda mask: not padded)


def _autocast_state(put: Put) -> None:
    """Whoever asks whether meta is under autocast gets CUDA's answer (`MetaAutocast` sets it); torch knows no meta."""
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        real = getattr(torch, name)

        def answer(*device, real=real):
            return real(*("cuda" if name == "meta" else name for name in device))

        put(torch, name, answer)


def _bitsandbytes(put: Put) -> None:
    """4-bit products as `backends/cuda/ops.py` computes them above 1,536 tokens; paged states outside the books."""
    from bitsandbytes import functional
    from bitsandbytes.nn import Params4bit

    put(Params4bit, "__deepcopy__", lambda weight, memo: weight.to("meta"))  # its own begins with a CPU tensor
    put(torch.ops.bitsandbytes, "gemm_4bit", SimpleNamespace(default=gemm_4bit))
    put(functional, "name2qmap", {})  # bitsandbytes keeps code tables; meta ones must not be found by a real run
    put(functional.GlobalPageManager.get_instance(), "paged_tensors", [])
    put(functional, "get_paged", _paged)
    put(functional, "fill", lambda *_, **__: None)
    put(functional, "prefetch_tensor", lambda *_, **__: None)


def gemm_4bit(inputs, packed, shape, absmax, block_size, code, bias=None, absmax_8bit=None, **second_level):
    """bitsandbytes' `_dequant_linear_fallback`: both absmax arrays stay until the product is done.

    For fewer tokens a CUDA kernel may take its place, depending on GPU and shape; it needs no dequantized weight.
    """
    with torch._C.DisableTorchFunctionSubclass():
        held = []
        if absmax_8bit is not None:
            held.append(torch.empty_like(absmax_8bit, dtype=torch.float32))
            held.append(held[0] + second_level["absmax_offset"])
        weight = torch.empty(tuple(shape), dtype=inputs.dtype, device=inputs.device)
        return torch.ops.aten.linear.default(inputs, weight, bias)


def _paged(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Managed memory is not the CUDA allocator's; bitsandbytes marks such a tensor itself."""
    with _disable_current_modes():
        states = torch.empty(shape, dtype=dtype, device=device)
    states.is_paged = True
    return states


def _fused_head(put: Put) -> None:
    """TRL's fused LM head: its Triton kernels work inside the tile and allocate nothing; all tokens carry loss."""
    from torch.fx.experimental import _config
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    put(chunked_logprob, "_forward_tile", lambda *_, **__: None)
    put(chunked_logprob, "_backward_tile", lambda *_, **__: None)
    put(chunked_logprob, "_addmm_fp32", lambda total, a, b: None)  # on CUDA addmm writes float32 sums in place
    put(utils, "_use_triton", lambda device: True)  # only the tokens that carry loss enter the head
    put(_config, "meta_nonzero_assume_all_nonzero", True)
