"""A task whose true rank is known: one layer must learn an update that was planted. Test bench of lesson 02."""

from __future__ import annotations

import torch
from torch import nn

from labkit.theory.lora import LoRALinear, fit, planted_update


class PlantedTask:
    """A frozen linear of ``in`` inputs and ``out`` outputs whose update must become the planted one, ΔW*.

    The inputs are the unit vectors, so the loss is exactly the squared distance ‖ΔW − ΔW*‖² (Frobenius), and no
    adapter of rank r gets below the tail of ΔW* (Eckart and Young): 1 - r/k of ‖ΔW*‖² for k equal singular values.

    Args:
        in_features, out_features: sizes of the layer.
        rank: k, the rank of ΔW*, at most min(in, out).
        seed: draws ΔW*.

    Raises:
        LabError: a rank that such a matrix cannot have.

    Example:
        >>> task = PlantedTask(64, 48, rank=8)
        >>> losses = task.train(task.layer(4, 8), steps=300)
        >>> round(losses[0], 3), round(losses[-1], 3)
        (1.0, 0.5)
    """

    def __init__(self, in_features: int, out_features: int, *, rank: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.target = planted_update(out_features, in_features, rank=rank, generator=generator)  # (out, in)
        self.inputs = torch.eye(in_features)  # (in inputs, in)
        self.rank = rank

    def __repr__(self) -> str:
        out_features, in_features = self.target.shape
        return f"learn an update of shape ({out_features}, {in_features}) and rank {self.rank}"

    def layer(
        self, rank: int, alpha: float, *, seed: int = 0, make: type[LoRALinear] = LoRALinear, **options: object
    ) -> LoRALinear:
        """A new layer of the task's sizes; the same seed gives the same frozen weight and the same A.

        Args:
            rank, alpha, options: of the layer.
            seed: draws the frozen weight and A.
            make: `LoRALinear` or a class that is made with the same arguments.
        """
        torch.manual_seed(seed)
        out_features, in_features = self.target.shape
        return make(nn.Linear(in_features, out_features, bias=False), rank=rank, alpha=alpha, **options)

    @torch.no_grad()
    def distance(self, layer: LoRALinear) -> float:
        """‖ΔW − ΔW*‖² / ‖ΔW*‖² now: 1 where ΔW is zero, 0 where the task is learned."""
        return float((layer.delta_weight() - self.target).square().sum() / self.target.square().sum())

    def loss(self, layer: LoRALinear) -> torch.Tensor:
        """‖ΔW − ΔW*‖², to be differentiated."""
        return (layer(self.inputs) - layer.base(self.inputs) - self.inputs @ self.target.T).square().sum()

    def train(
        self, layer: LoRALinear, *, learning_rate: float = 0.01, steps: int = 100, optimizer: str = "Adam"
    ) -> list[float]:
        """Train A and B; the `distance` before each step and after the last (steps + 1 numbers)."""
        first, wished = self.distance(layer), layer.base(self.inputs) + self.inputs @ self.target.T
        losses = fit(layer, self.inputs, wished, learning_rate=learning_rate, steps=steps, optimizer=optimizer)
        return [first * loss for loss in losses]
