"""Hidden checks of lesson 00."""

from typing import Annotated

from pydantic import Field

from labkit.course.grading.hidden import Hidden

Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Text = Annotated[str, Field(max_length=4001)]

HIDDEN = {
    "q0_1": Hidden(shape=Annotated[list[Number], Field(min_length=2, max_length=2)]),
    "q0_2": Hidden(
        function="weight_bytes",
        reference=lambda n_params, bits_per_weight: (n_params * bits_per_weight + 7) // 8,
        cases=(
            (5, 4),
            (7, 8),
            (1, 4),
            (9_007_199_254_740_993, 16),
            (70_553_706_496, 4),
        ),  # one beyond float64's integers
        tolerance=0.0,
    ),
    "q0_3": Hidden(shape=Number),
    "q0_4": Hidden(shape=Text),
}
