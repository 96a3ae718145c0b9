"""Lesson 03: the weights that its exercises are about; seeded, so that every student sees the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def two_layers() -> dict[str, torch.Tensor]:
    """Two layers of 256 x 256: A has one large weight in each block of 64, B has rows of very different size."""
    import torch

    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    a[:, ::64] *= 10
    b *= torch.logspace(-2, 0, 256)[:, None]
    return {"A": a, "B": b}


def pruned_weights() -> torch.Tensor:
    """The sample of q3_4, 1024 x 64: a pruned layer with 60 % near zero and the rest in two wide humps; seeded."""
    import torch

    generator = torch.Generator().manual_seed(34)
    small = 0.05 * torch.randn(1024, 64, generator=generator)
    large = 0.25 * torch.randn(1024, 64, generator=generator)
    sign = torch.rand(1024, 64, generator=generator).round() * 2 - 1
    keep = torch.rand(1024, 64, generator=generator) < 0.4
    return torch.where(keep, sign + large, small)
