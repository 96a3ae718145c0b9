"""Hidden checks of lesson 02."""

from typing import Annotated, Any

from pydantic import Field

from labkit.course.grading.hidden import Hidden
from labkit.models.methods import TARGETS
from labkit.models.shapes import ModelShape, shape_of
from labkit.page.questions.q02 import counts

Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Text = Annotated[str, Field(max_length=4001)]

ODD = ModelShape("odd", "llama", 1009, 96, 200, 5, 6, 3, 24, False)


def forward_case(seed: int, leading: tuple[int, ...], d_in: int, d_out: int, rank: int) -> tuple[Any, ...]:
    """x, W0, A, B: random, the same every time, of sizes that no text shows."""
    import torch

    generator = torch.Generator().manual_seed(1000 + seed)
    sizes = ((*leading, d_in), (d_out, d_in), (rank, d_in), (d_out, rank))
    return tuple(torch.randn(size, generator=generator) for size in sizes)


def forward(x: Any, w: Any, a: Any, b: Any, alpha: float) -> Any:
    """W0 x + (alpha/r) B A x."""
    return x @ w.T + alpha / a.shape[0] * (x @ a.T @ b.T)


HIDDEN = {
    "q2_1": Hidden(
        function="lora_param_count",
        reference=lambda shape, rank, targets: counts(shape, rank, targets)["right"],
        cases=(
            (ODD, 3, TARGETS),
            (ODD, 1, ("v_proj",)),
            (ODD, 7, ("gate_proj", "o_proj")),
            (shape_of("llama-3.1-8b"), 2, ("up_proj", "k_proj", "q_proj")),
        ),
        tolerance=1e-9,
    ),
    "q2_2": Hidden(
        function="lora_forward",
        reference=forward,
        cases=lambda: (
            (*forward_case(0, (2, 1, 3), 7, 3, 1), 5.0),
            (*forward_case(1, (), 2, 9, 2), 0.5),
            (*forward_case(2, (5,), 3, 3, 3), 3.0),
            (*forward_case(3, (1, 4), 8, 5, 6), 32.0),
        ),
        tolerance=1e-4,
    ),
    "q2_3": Hidden(shape=Number),
    "q2_4": Hidden(shape=Text),
}
