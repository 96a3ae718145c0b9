"""Hidden checks of lesson 03."""

import math
from typing import Annotated, Any

from pydantic import Field

from labkit.course.grading.hidden import Hidden
from labkit.page.exercises import Wrong
from labkit.page.questions.q03 import nearest_lower, nf4_levels

Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Level = Annotated[float, Field(ge=-1e3, le=1e3)]
Text = Annotated[str, Field(max_length=4001)]
Levels = Annotated[list[Level], Field(max_length=64)]


def quantize(block: Any, table: Any) -> tuple[list[int], float]:
    """The nearest level, the lower one at a tie, and the absmax; tensors or lists."""
    block, table = (value.tolist() if hasattr(value, "tolist") else value for value in (block, table))
    return nearest_lower(block, table)


def bits_per_weight(block_size: int, double_quant: bool) -> float:
    """4 bits, and the block's constant."""
    return 4 + (8 + 32 / 256 if double_quant else 32) / block_size


def tensor_cases() -> tuple[tuple[Any, ...], ...]:
    """Blocks and tables that no text shows: one weight, all alike, a table of four, a negative peak."""
    import torch

    nf4 = torch.tensor(nf4_levels())
    coarse = torch.tensor([-1.0, -0.25, 0.0, 1.0])
    blocks = (([-3.0], nf4), ([0.5, 0.5, 0.5], nf4), ([0.1, -0.7, 0.35, 0.02, -0.4], nf4), ([0.0, 0.0], coarse),
              ([4.0, -1.0, 2.1, -2.6, 0.4], coarse), ([-0.9, 0.3, 0.6, 0.0], coarse))  # fmt: skip
    return tuple((torch.tensor(block), table) for block, table in blocks)


def own_error(value: Any) -> None:
    """The recorded error is that of the recorded levels."""
    from labkit.page.questions.q03 import code_error

    recorded = value.get("error") if isinstance(value, dict) else None
    if not isinstance(recorded, float) or not math.isclose(recorded, code_error(value["levels"]), rel_tol=1e-4):
        raise Wrong("the recorded error is not that of the recorded levels", "记录的误差不是这些量化级的误差")


HIDDEN = {
    "q3_1": Hidden(function="nf4_quantize", reference=quantize, cases=tensor_cases, tolerance=1e-6),
    "q3_2": Hidden(
        function="bits",
        reference=bits_per_weight,
        cases=((16, True), (512, False), (2048, True), (96, True)),
        tolerance=1e-6,
    ),
    "q3_3": Hidden(
        shape=Annotated[list[Number | Annotated[str, Field(max_length=9)]], Field(min_length=2, max_length=2)]
    ),
    "q3_4": Hidden(
        shape=dict[Annotated[str, Field(max_length=20)], Levels | Number] | Levels,
        unwrap=lambda value: value.get("levels") if isinstance(value, dict) else value,
        also=own_error,
    ),
    "q3_5": Hidden(shape=Text),
}
