"""Hidden checks of lesson 06."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from scipy import stats

from labkit.course.grading.hidden import Hidden

Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Text = Annotated[str, Field(max_length=4001)]


def forward(x: Any, w: Any, a: Any, b: Any, m: Any, scale: float) -> Any:
    """x times the transpose of m V / |V|, V = W0 + scale B A, one norm for each row."""
    v = w + scale * b @ a
    return x @ v.T * (m / v.norm(dim=1))


def forward_case(seed: int, leading: tuple[int, ...], d_in: int, d_out: int, rank: int) -> tuple[Any, ...]:
    """x, W0, A, B, m: random, the same every time, of sizes that no text shows."""
    import torch

    generator = torch.Generator().manual_seed(2000 + seed)
    sizes = ((*leading, d_in), (d_out, d_in), (rank, d_in), (d_out, rank))
    drawn = tuple(torch.randn(size, generator=generator) for size in sizes)
    return *drawn, 0.5 + torch.rand(d_out, generator=generator)


def decide(lora: Sequence[float], dora: Sequence[float]) -> str:
    """The method with the lower loss, if a paired t interval at 95 % leaves zero out."""
    differences = [a - b for a, b in zip(lora, dora, strict=True)]
    n, mean = len(differences), sum(differences) / len(differences)
    if n < 2:
        return "noise"
    half = float(stats.t.ppf(0.975, n - 1)) * math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return "noise" if abs(mean) <= half else "DoRA" if mean > 0 else "LoRA"


HIDDEN = {
    "q6_1": Hidden(
        function="dora_forward",
        reference=forward,
        cases=lambda: (
            (*forward_case(0, (3,), 4, 4, 1), 1.0),
            (*forward_case(1, (), 2, 9, 2), 8.0),
            (*forward_case(2, (2, 1), 8, 3, 3), 0.25),
            (*forward_case(3, (1, 5), 6, 6, 4), 2.0),
        ),
        tolerance=1e-4,
    ),
    "q6_2": Hidden(shape=Number),
    "q6_3": Hidden(shape=Number),
    "q6_4": Hidden(
        function="decide",
        reference=decide,
        cases=(
            ([1.0, 1.2, 1.1, 1.3, 0.9], [1.05, 1.26, 1.16, 1.35, 0.95]),
            ([1.0, 1.2, 1.1, 1.3, 0.9], [1.2, 1.1, 1.3, 1.0, 1.1]),
            ([5.0, 4.0, 3.0, 2.0], [4.9, 3.9, 2.91, 1.9]),
            ([2.0], [9.0]),
            ([2.0, 2.5], [1.0, 1.2]),
        ),
    ),
    "q6_5": Hidden(shape=Text),
}
