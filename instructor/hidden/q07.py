"""Hidden checks of lesson 07."""

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from labkit.course.grading.hidden import Hidden

Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Text = Annotated[str, Field(max_length=4001)]


def published_snr(values: np.ndarray, n: int, m: int) -> float:
    """The score of Spectrum's code: signal over noise at sigma (1 + sqrt(beta)), divided by the largest value."""
    values = np.asarray(values, dtype=float)
    upper, lower = np.quantile(values, [0.75, 0.25])
    threshold = (upper - lower) / 1.349 * (1 + math.sqrt(min(n, m) / max(n, m)))
    below = values[values <= threshold].sum() if (values <= threshold).any() else 1.0
    return float(values[values > threshold].sum() / below / values[0])


def highest(scores: dict[str, float], percent: float) -> list[str]:
    """The highest ``percent`` of each type, rounded down."""
    chosen: list[str] = []
    for kind in {name.split(".")[1] for name in scores}:
        own = sorted((name for name in scores if name.split(".")[1] == kind), key=scores.__getitem__, reverse=True)
        chosen += own[: int(len(own) * percent / 100)]
    return chosen


def spectrum(seed: int, rows: int, columns: int, spike: float) -> tuple[np.ndarray, int, int]:
    """Singular values of noise with one planted direction, and the sizes."""
    rng = np.random.default_rng(3000 + seed)
    matrix = rng.standard_normal((rows, columns)) * 0.05
    matrix[0] += spike * rng.standard_normal(columns)
    return np.linalg.svd(matrix, compute_uv=False), rows, columns


def scores(seed: int, n_layers: int, kinds: tuple[str, ...]) -> dict[str, float]:
    """Random scores; types differ in size."""
    rng = np.random.default_rng(4000 + seed)
    return {f"{n}.{kind}": float(10**place * rng.random()) for n in range(n_layers) for place, kind in enumerate(kinds)}


HIDDEN = {
    "q7_1": Hidden(
        function="my_snr",
        reference=published_snr,
        cases=(
            spectrum(0, 40, 30, 0.0),
            spectrum(1, 24, 90, 3.0),
            spectrum(2, 16, 16, 1.0),
            (np.array([2.0, 1.99]), 2, 2),
        ),
        tolerance=1e-6,
    ),
    "q7_2": Hidden(shape=Number),
    "q7_3": Hidden(
        function="select_top",
        reference=highest,
        cases=(
            (scores(0, 5, ("q_proj", "up_proj")), 30),
            (scores(1, 16, ("v_proj", "o_proj", "down_proj")), 12.5),
            (scores(2, 6, ("k_proj",)), 100),
            (scores(3, 3, ("gate_proj", "q_proj")), 20),
        ),
        view=lambda names: sorted(set(names)),
    ),
    "q7_4": Hidden(shape=Number),
    "q7_5": Hidden(shape=Text),
}
