"""Hidden checks of lesson 01."""

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from labkit.course.grading.hidden import Hidden
from labkit.models.shapes import ModelShape, shape_of
from labkit.page.exercises import Wrong
from labkit.page.questions.q01 import wanted_static

Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Text = Annotated[str, Field(max_length=4001)]
Changes = dict[Annotated[str, Field(max_length=40)], bool | Number | Annotated[str, Field(max_length=40)]]

# No catalogue has it: a count that was looked up, or that takes q_proj for square, fails here.
ODD = ModelShape("odd", "llama", 1009, 96, 200, 5, 6, 3, 24, False)


def explained_peak(value: dict[str, Any]) -> None:
    """The record of a right answer holds the peak beside the changes."""
    if not isinstance(value.get("changes"), dict) or not isinstance(value.get("peak_gib"), float):
        raise Wrong("the record lacks the changes or the peak", "记录里缺少改动或峰值")


HIDDEN = {
    "q1_1": Hidden(
        function="static_bytes",
        reference=wanted_static,
        cases=(
            (ODD, "full", 4),
            (ODD, "lora", 3),
            (replace(shape_of("qwen3-0.6b"), n_layers=1), "lora", 2),
            (shape_of("qwen3-32b"), "lora", 128),
        ),
        tolerance=1e-9,
    ),
    "q1_2": Hidden(shape=Number),
    "q1_3": Hidden(
        shape=dict[Annotated[str, Field(max_length=40)], Changes | Number | bool | str],
        unwrap=lambda value: value.get("changes", value),
        also=explained_peak,
    ),
    "q1_4": Hidden(shape=Text),
}
