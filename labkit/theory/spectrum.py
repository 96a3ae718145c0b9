"""Signal and noise in a weight matrix: singular values, the Marchenko-Pastur edge, and Spectrum's score (lesson 07).

Two answers to "which singular values are more than noise", for an n x m matrix whose noise has the standard deviation
sigma:

- the edge: random matrices have none above about sigma (sqrt n + sqrt m) (Marchenko and Pastur 1967), and sigma can be
  read off the median singular value, which a few strong directions do not move (Gavish and Donoho 2014, 1305.5870);
- Spectrum's threshold (Hartford et al. 2024, 2406.06623), as its repository computes it
  (cognitivecomputations/spectrum, ``spectrum.py``): IQR / 1.349 * (1 + sqrt beta), where IQR is the interquartile
  range *of the singular values* and beta the shorter side over the longer. It is no edge of anything: pure noise lies
  above it for the most part. The score divides the sum above by the sum below, and that by the largest value.

Only NumPy and SciPy: a scan needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.errors import LabError

NORMAL_IQR = 1.349  # interquartile range of a standard normal
TRACY_WIDOM_99 = (
    2.0234  # 99 % quantile of the Tracy-Widom law of real matrices (Johnstone 2001, The Annals of Statistics 29)
)
ROUNDING = 4  # times sqrt(eps) of the largest: what a squared value cannot tell from 0
BLOCK_BYTES = 2**25  # of a float64 block on the way into the Gram matrix


# --- singular values -------------------------------------------------------------------------------------------------


def singular_values(matrix: Any, *, dtype: str = "float64") -> np.ndarray:
    """Singular values of an (n, m) matrix, largest first: square roots of the eigenvalues of its smaller Gram matrix.

    Squaring costs accuracy at the small end: below 4 sqrt(eps) of the largest value there is nothing but rounding, and
    0 is returned. That is 1.4e-3 of the largest in float32, and 6e-8 in float64 (an SVD in float32 reaches 1e-7).

    Args:
        matrix: array or tensor of finite numbers, both sides at least 1.
        dtype: ``float64`` or ``float32``, in which the Gram matrix is summed.

    Returns:
        (min(n, m),) float64.

    Raises:
        LabError: not a matrix, or numbers that are not finite.

    Example:
        >>> singular_values([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
        array([4., 3.])
    """
    array = as_matrix(matrix)
    length = max(1, BLOCK_BYTES // (8 * min(array.shape)))
    along = 0 if array.shape[0] >= array.shape[1] else 1
    starts = range(0, max(array.shape), length)
    blocks = (array[start : start + length] if along == 0 else array[:, start : start + length] for start in starts)
    return values_of_blocks(blocks, array.shape, dtype=dtype)


def values_of_blocks(blocks: Iterable[np.ndarray], shape: tuple[int, int], *, dtype: str = "float64") -> np.ndarray:
    """`singular_values` of a matrix that is never whole in memory.

    Args:
        blocks: the matrix cut along its longer side (along the rows if it is square), every piece once.
        shape: (n, m) of the whole.
        dtype: see `singular_values`.

    Raises:
        LabError: numbers that are not finite, or an unknown dtype.
    """
    from scipy.linalg import blas, eigvalsh

    if dtype not in ("float32", "float64"):
        raise LabError(f"dtype={dtype!r}", "the Gram matrix is summed in float32 or float64", 'use dtype="float64"')
    update = blas.dsyrk if dtype == "float64" else blas.ssyrk
    tall = shape[0] >= shape[1]
    gram = np.zeros((min(shape), min(shape)), dtype=dtype, order="F")
    for block in blocks:
        # One triangle, in place: a product that is made first and added then would double the memory.
        piece = np.ascontiguousarray(block, dtype=dtype).T  # the transposed view is what BLAS calls its own order
        gram = update(1.0, piece, beta=1.0, c=gram, trans=not tall, overwrite_c=True)
    if not np.isfinite(np.trace(gram)):
        rule = "it holds numbers that are not finite, or too large to square"
        raise LabError(f"a matrix of shape {shape}", rule, "find out where they came from")
    squares = eigvalsh(gram, lower=False, overwrite_a=True, check_finite=False)[::-1].astype(np.float64)
    squares[squares <= ROUNDING**2 * np.finfo(dtype).eps * squares[0]] = 0.0
    return np.sqrt(squares)


def as_matrix(matrix: Any) -> np.ndarray:
    """A tensor, array or nested list as a two-dimensional array of finite floating-point numbers.

    Raises:
        LabError: it has another number of dimensions, is empty, or holds NaN or infinity.
    """
    if hasattr(matrix, "detach"):  # a tensor of torch, which this module does not import
        matrix = matrix.detach().cpu().double().numpy()
    array = np.asarray(matrix)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    given = f"an array of shape {array.shape}"
    if array.ndim != 2 or not array.size:
        raise LabError(given, "a matrix has rows and columns", "pass a weight of shape (out, in)")
    if not np.isfinite(array).all():
        raise LabError(given, "it holds numbers that are not finite", "find out where they came from")
    return array


# --- Marchenko and Pastur --------------------------------------------------------------------------------------------


def mp_support(beta: float) -> tuple[float, float]:
    """Where the eigenvalues of X X' / m lie for a random k x m X of variance 1 and beta = k / m: (1 -+ sqrt beta)^2.

    Raises:
        LabError: beta outside (0, 1].
    """
    if not 0 < beta <= 1:
        raise LabError(f"beta={beta!r}", "beta is the shorter side over the longer", "use min(n, m) / max(n, m)")
    return (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2


def mp_density(x: np.ndarray | float, beta: float) -> np.ndarray:
    """Density of those eigenvalues: sqrt((b - x)(x - a)) / (2 pi beta x) between a and b of `mp_support`, else 0."""
    low, high = mp_support(beta)
    x = np.asarray(x, dtype=np.float64)
    inside = np.clip((high - x) * (x - low), 0.0, None)
    return np.sqrt(inside) / (2 * math.pi * beta * np.where(x > 0, x, 1.0)) * (x > 0)


def mp_cdf(x: float, beta: float) -> float:
    """Share of those eigenvalues up to ``x``, in closed form (the integral of `mp_density`)."""
    low, high = mp_support(beta)
    if x <= low:
        return 0.0
    if x >= high:
        return 1.0
    ratio = math.sqrt((high - x) / (x - low))
    total = math.pi * beta + math.sqrt((high - x) * (x - low))
    total -= (1 + beta) * math.atan((ratio**2 - 1) / (2 * ratio))
    if beta < 1:
        total += (1 - beta) * math.atan((low * ratio**2 - high) / (2 * (1 - beta) * ratio))
    return total / (2 * math.pi * beta)


def mp_median(beta: float) -> float:
    """The eigenvalue that half of them do not reach; 1 for a very long matrix, about 0.65 for a square one."""
    from scipy.optimize import brentq

    return brentq(lambda x: mp_cdf(x, beta) - 0.5, *mp_support(beta))


def noise_edge(shape: tuple[int, int], sigma: float) -> float:
    """sigma (sqrt n + sqrt m): pure noise of that size has (hardly ever) a singular value above it.

    Example:
        >>> noise_edge((1024, 4096), 0.02)
        1.92
    """
    return sigma * (math.sqrt(shape[0]) + math.sqrt(shape[1]))


def finite_edge(shape: tuple[int, int], sigma: float) -> float:
    """What 99 of 100 matrices of pure noise stay below: `noise_edge` and the spread of the largest value around it.

    The square of that value is mu + s t, where mu = (sqrt(n - 1/2) + sqrt(m - 1/2))^2 is nearly the square of the edge
    and t follows Tracy and Widom's law; the margin is 1 % at 512 x 512 and 0.4 % at 2048 x 2048.
    """
    roots = [math.sqrt(side - 0.5) for side in shape]
    spread = sum(roots) * sum(1 / root for root in roots) ** (1 / 3)
    return sigma * math.sqrt(sum(roots) ** 2 + TRACY_WIDOM_99 * spread)


def robust_sigma(values: np.ndarray, shape: tuple[int, int]) -> float:
    """The noise's standard deviation, from the median singular value over that of noise of variance 1.

    It holds as long as much fewer than half of the directions carry signal; strong ones do not move a median.
    """
    beta = min(shape) / max(shape)
    return float(np.median(values)) / math.sqrt(max(shape) * mp_median(beta))


# --- Spectrum's score ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Signal:
    """What `judge` finds in one matrix.

    Attributes:
        snr: Spectrum's score as published; infinite where nothing lies below the threshold but zeros.
        threshold: the published one, IQR / 1.349 * (1 + sqrt beta).
        share_above: share of the singular values above ``threshold``.
        edge: sigma (sqrt n + sqrt m) with ``sigma``.
        sigma: noise of an entry by `robust_sigma`.
        n_spikes: singular values above `finite_edge`, that is, clear of the edge's own spread.
        largest: the largest singular value.
    """

    snr: float
    threshold: float
    share_above: float
    edge: float
    sigma: float
    n_spikes: int
    largest: float


def published_threshold(values: np.ndarray, shape: tuple[int, int]) -> float:
    """IQR(singular values) / 1.349 * (1 + sqrt beta), as the repository has it."""
    upper, lower = np.quantile(values, [0.75, 0.25])
    return float(upper - lower) / NORMAL_IQR * (1 + math.sqrt(min(shape) / max(shape)))


def published_snr(values: np.ndarray, shape: tuple[int, int]) -> float:
    """Sum above the threshold over sum below it, over the largest: the number that Spectrum ranks modules by.

    As in the repository: with nothing below, the denominator is 1; with zeros only, the score is infinite (so an empty
    layer ranks first). Doubling a matrix halves its score, because only the last division has a unit.

    Args:
        values: (min(n, m),) singular values, largest first.
        shape: (n, m).
    """
    above = values > published_threshold(values, shape)
    noise = float(values[~above].sum()) if (~above).any() else 1.0
    if noise == 0 or values[0] == 0:
        return math.inf
    return float(values[above].sum()) / noise / float(values[0])


def judge(values: np.ndarray, shape: tuple[int, int]) -> Signal:
    """Both answers for a matrix with these singular values, largest first."""
    threshold, sigma = published_threshold(values, shape), robust_sigma(values, shape)
    edge = noise_edge(shape, sigma)
    return Signal(
        snr=published_snr(values, shape),
        threshold=threshold,
        share_above=float((values > threshold).mean()),
        edge=edge,
        sigma=sigma,
        n_spikes=int((values > finite_edge(shape, sigma)).sum()),
        largest=float(values[0]),
    )


def snr(matrix: Any) -> Signal:
    """`judge` for a matrix: array, tensor or nested list of shape (n, m).

    Raises:
        LabError: see `singular_values`.
    """
    array = as_matrix(matrix)
    return judge(singular_values(array), array.shape)
