"""bf16 autocast for meta tensors, which PyTorch's own autocast passes by: it is chosen by device, and meta is none.

The rules are those of CUDA's autocast (ATen/autocast_mode.h, torch 2.13): matrix products and attention take their
floating-point inputs in bf16, and the copies of float32 parameters that train are kept until the region ends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# AT_FORALL_LOWER_PRECISION_FP, as far as a decoder calls it. Attention is redirected, see `meta_kernels.attention`.
# Its list of float32 operations changes nothing here: transformers and PEFT cast by hand before each of them.
LOWERED = {
    torch.nn.functional.linear,
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.mm,
    torch.Tensor.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
}


class MetaAutocast(TorchFunctionMode):
    """``with MetaAutocast(): ...`` computes as under ``torch.autocast("cuda", torch.bfloat16)``; on any device.

    Inside, ``torch.is_autocast_enabled()`` says so, which is what PEFT's bitsandbytes layer asks.
    """

    active: MetaAutocast | None = None

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __enter__(self) -> MetaAutocast:
        self._outside = MetaAutocast.active, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        MetaAutocast.active = self
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        MetaAutocast.active, enabled, dtype = self._outside
        torch.set_autocast_enabled("cuda", enabled)
        torch.set_autocast_dtype("cuda", dtype)
        self._copies.clear()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in LOWERED and "out" not in kwargs:
            args, kwargs = tree_map(self.lowered, args), tree_map(self.lowered, kwargs)
        return function(*args, **kwargs)

    def lowered(self, value: Any) -> Any:
        """``value`` in bf16 if it is a tensor of another floating type (float64 is left alone); else itself."""
        eligible = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
        if not eligible or value.dtype == torch.bfloat16:
            return value
        kept = value.dtype == torch.float32 and value.requires_grad and value.is_leaf and not value._is_view()
        if not kept:
            return value.to(torch.bfloat16)
        if id(value) not in self._copies:
            self._copies[id(value)] = value, value.to(torch.bfloat16)
        return self._copies[id(value)][1]
