"""Hidden checks of lesson 04."""

import math
from typing import Annotated, Any

from pydantic import BaseModel, Field

from labkit.course.grading.hidden import Hidden
from labkit.models.profiles import PROFILES
from labkit.page.exercises import Wrong

Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Text = Annotated[str, Field(max_length=4001)]


class Choice(BaseModel):
    """A run that was chosen."""

    learning_rate: Annotated[float, Field(gt=0, lt=10)]
    steps: Annotated[int, Field(ge=1, le=10**6)]
    batch: Annotated[int, Field(ge=1, le=10**6)]


class Run(BaseModel):
    """What q4_4 records."""

    choice: Choice
    heldout_loss: Annotated[float, Field(ge=0, le=1e6)]
    baseline: Annotated[float, Field(ge=0, le=1e6)]
    row_budget: Annotated[int, Field(ge=1, le=10**6)]


def possible(value: dict[str, Any]) -> None:
    """The budget is a profile's, and a loss is one that a vocabulary allows."""
    budgets = {(profile.steps // 6) * profile.rows_per_step for profile in PROFILES.values()}
    if value["row_budget"] not in budgets:
        raise Wrong("the recorded budget is that of no profile", "记录里的样本预算不属于任何一个配置")
    if not 0.01 < value["heldout_loss"] < math.log(152_000) + 1 or not 0.01 < value["baseline"] < math.log(152_000) + 1:
        raise Wrong("no run has such a loss", "训练不会得到这样的损失")


HIDDEN = {
    "q4_1": Hidden(
        function="loss_tokens",
        reference=lambda labels: sum(label != -100 for row in labels for label in row[1:]),
        cases=(
            ([[-100, 1]],),
            ([[1], [2], [-100]],),
            ([[0, 0, 0], [-100, -100, 5], [5, -100, -100]],),
            ([[9, 8, 7, -100, 6]] * 3,),
        ),
        tolerance=0.0,
    ),
    "q4_2": Hidden(shape=dict[Annotated[str, Field(max_length=4)], Annotated[str, Field(max_length=40)]]),
    "q4_3": Hidden(shape=Number),
    "q4_4": Hidden(shape=Run, also=possible),
    "q4_5": Hidden(shape=Text),
}
