"""Hidden checks of lesson 05."""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from scipy import stats

from labkit.course.grading.hidden import Hidden

Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Short = Annotated[str, Field(max_length=40)]
Text = Annotated[str, Field(max_length=4001)]
Numbers = Annotated[list[Number], Field(max_length=64)]


def paired_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The 95 % t interval of the mean of second - first."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    n, mean = len(differences), sum(differences) / len(differences)
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return mean - half, mean + half


HIDDEN = {
    "q5_1": Hidden(
        function="difference",
        reference=paired_interval,
        cases=(
            ([0.5, 0.7, 0.4, 0.9], [0.4, 0.8, 0.2, 0.7]),
            ([3.0, 3.0, 3.0], [3.5, 3.5, 3.5]),
            ([10.0, 20.0], [11.0, 19.0]),
            ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [1.1, 2.3, 2.8, 4.4, 5.0, 6.6, 7.7]),
        ),
        tolerance=1e-4,
    ),
    "q5_2": Hidden(shape=dict[Short, Numbers | Short]),
    "q5_3": Hidden(shape=dict[Short, Numbers]),
    "q5_4": Hidden(shape=Number),
    "q5_5": Hidden(shape=Text),
}
