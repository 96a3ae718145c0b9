"""Singular values against LAPACK's SVD, Marchenko and Pastur against quadrature and against noise, the published score
against torch, operation by operation."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg

from labkit.errors import LabError
from labkit.theory import spectrum
from labkit.theory.spectrum import (
    finite_edge,
    mp_cdf,
    mp_density,
    mp_median,
    mp_support,
    noise_edge,
    published_snr,
    published_threshold,
    robust_sigma,
    singular_values,
    snr,
)

SHAPES = [(1, 1), (1, 9), (9, 1), (64, 64), (48, 96), (96, 48), (200, 7)]


def noise(*shape, seed=0, sigma=0.02):
    return np.random.default_rng(seed).standard_normal(shape) * sigma


def spiked(matrix, *, rank, size, seed=1):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in matrix.shape)
    return matrix + size * left @ right.T


# --- singular values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_those_of_an_svd(shape):
    matrix = noise(*shape)
    assert np.allclose(singular_values(matrix), linalg.svdvals(matrix), rtol=1e-9, atol=1e-9)


def test_blocks_change_nothing(monkeypatch):
    matrix = noise(300, 40)
    whole = singular_values(matrix)
    monkeypatch.setattr(spectrum, "BLOCK_BYTES", 8 * 40 * 7)  # 43 pieces of 7 rows
    assert np.allclose(singular_values(matrix), whole, rtol=1e-12)
    assert np.allclose(singular_values(matrix.T), whole, rtol=1e-12)


def test_float32_gram_loses_small_values_and_float64_does_not():
    """Ten decades of known values: float32 returns 0 below 1.4e-3 of the largest, float64 below 6e-8."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((size, 41)))[0] for size in (60, 50))
    true = 10.0 ** -np.linspace(0, 10, 41)
    matrix = left * true @ right.T
    for dtype, floor in (("float32", 4 * math.sqrt(np.finfo("float32").eps)), ("float64", 6e-8)):
        found = singular_values(matrix, dtype=dtype)[:41]
        assert (found[true < floor / 2] == 0).all()
        clear = true > 10 * floor
        assert np.abs(found[clear] / true[clear] - 1).max() < 0.02
    torch_svd = torch.linalg.svdvals(torch.tensor(matrix, dtype=torch.float32))[:41].double().numpy()
    assert np.abs(torch_svd[true > 1e-5] / true[true > 1e-5] - 1).max() < 0.05


def test_a_tensor_of_torch_is_taken_in_its_own_precision():
    matrix = torch.randn(40, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.linalg.svdvals(matrix.double()).numpy()
    assert np.allclose(singular_values(matrix), expected, rtol=1e-9)


@pytest.mark.parametrize(
    "bad", [np.zeros(5), np.zeros((2, 3, 4)), np.zeros((0, 4)), [[1.0, math.nan]], [[math.inf, 1.0]]]
)
def test_what_is_no_matrix_of_numbers_is_refused(bad):
    with pytest.raises(LabError, match=r"rows and columns|not finite"):
        snr(bad)


def test_nan_is_refused_in_a_streamed_matrix_too():
    block = noise(8, 4)
    block[3, 2] = math.nan
    with pytest.raises(LabError, match="not finite"):
        spectrum.values_of_blocks([block], (8, 4))
    with pytest.raises(LabError, match="float32 or float64"):
        spectrum.values_of_blocks([block], (8, 4), dtype="float16")


# --- Marchenko and Pastur --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.02, 0.25, 1 / 3, 0.5, 0.9, 1.0])
def test_the_closed_distribution_is_the_integral_of_the_density(beta):
    low, high = mp_support(beta)
    for share in (0.05, 0.3, 0.5, 0.8, 0.99):
        x = low + share * (high - low)
        area, _ = integrate.quad(lambda t: float(mp_density(t, beta)), low, x, limit=200)
        assert mp_cdf(x, beta) == pytest.approx(area, abs=1e-6)
    assert (mp_cdf(low, beta), mp_cdf(high, beta)) == (0, 1)
    assert mp_cdf(mp_median(beta), beta) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(400, 400), (300, 600), (900, 200)])
def test_noise_has_the_distribution_that_it_should(n, m):
    values = singular_values(noise(n, m, sigma=1)) ** 2 / max(n, m)
    beta = min(n, m) / max(n, m)
    places = np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9])
    assert [mp_cdf(x, beta) for x in places] == pytest.approx([0.1, 0.25, 0.5, 0.75, 0.9], abs=0.02)


@pytest.mark.parametrize("beta", [0, -1, 1.5])
def test_a_ratio_of_sides_is_at_most_one(beta):
    with pytest.raises(LabError, match="shorter side"):
        mp_support(beta)


def test_one_of_a_hundred_noise_matrices_passes_the_finite_edge():
    """And about one of six the asymptotic one (Tracy and Widom's law is above 0 with probability 0.17)."""
    largest = np.array([singular_values(noise(60, 90, seed=seed, sigma=1))[0] for seed in range(300)])
    assert (largest > finite_edge((60, 90), 1)).mean() <= 0.03
    assert 0.08 < (largest > noise_edge((60, 90), 1)).mean() < 0.3


@pytest.mark.parametrize("shape", [(512, 512), (256, 1024), (1024, 256)])
def test_sigma_is_found_under_a_spike(shape):
    matrix = spiked(noise(*shape), rank=8, size=40)
    assert robust_sigma(singular_values(matrix), shape) == pytest.approx(0.02, rel=0.02)
    assert matrix.std() > 0.03  # which the plain standard deviation is not


# --- noise and spikes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "above"), [((2048, 2048), 0.24), ((1024, 2048), 0.65), ((6144, 2048), 0.91), ((384, 128), 0.91)]
)
def test_most_of_pure_noise_passes_the_published_threshold_and_none_the_edge(shape, above):
    found = snr(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    assert found.share_above == pytest.approx(above, abs=0.02)
    assert found.n_spikes == 0
    assert found.sigma == pytest.approx(1, rel=0.01)


def test_a_planted_spike_lowers_the_score_and_is_counted_exactly():
    plain = noise(1024, 512)
    before, after = snr(plain), snr(spiked(plain, rank=8, size=10 * noise_edge(plain.shape, 0.02)))
    assert after.snr < before.snr / 5
    assert (before.n_spikes, after.n_spikes) == (0, 8)
    assert after.share_above == pytest.approx(before.share_above, abs=0.02)


def test_a_spike_below_the_edge_cannot_be_seen():
    """Benaych-Georges and Nadakuditi 2012: below sigma (n m)^(1/4) a direction drowns in the noise."""
    plain = noise(400, 400, sigma=1)
    weak, strong = (snr(spiked(plain, rank=4, size=factor * 20)) for factor in (0.8, 2.0))
    assert (weak.n_spikes, strong.n_spikes) == (0, 4)


# --- the published score ---------------------------------------------------------------------------------------------


def as_the_repository_does(weights):
    """The operations of the repository's ``calculate_snr_for_layer``, on torch's own SVD in float32."""
    values = torch.linalg.svdvals(weights)
    sigma = (torch.quantile(values, 0.75) - torch.quantile(values, 0.25)) / 1.349
    n, m = weights.shape
    threshold = sigma * (1 + math.sqrt(min(n, m) / max(n, m)))
    signal, rest = values[values > threshold].sum(), values[values <= threshold]
    below = rest.sum() if len(rest) else torch.tensor(1.0)
    return (signal / below / values[0]).item()


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (64, 64), (128, 40), (40, 128)])
def test_the_score_is_the_repositorys(shape):
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.05
    assert snr(weights).snr == pytest.approx(as_the_repository_does(weights), rel=1e-5)


def test_doubling_a_matrix_halves_its_score_and_moves_nothing_else():
    one, two = snr(noise(90, 60)), snr(2 * noise(90, 60))
    assert two.snr == pytest.approx(one.snr / 2)
    assert (two.share_above, two.n_spikes) == (one.share_above, one.n_spikes)
    assert two.edge == pytest.approx(2 * one.edge)


def test_transposing_or_shuffling_rows_moves_nothing():
    """GGUF files hold q_proj and k_proj with their rows in another order: no matter."""
    matrix = noise(90, 60)
    one = snr(matrix)
    for other in (matrix.T, matrix[np.random.default_rng(1).permutation(90)]):
        assert snr(other).snr == pytest.approx(one.snr, rel=1e-9)
        assert snr(other).n_spikes == one.n_spikes


def test_nothing_below_the_threshold_makes_the_denominator_one():
    values = np.array([5.0, 4.9, 4.8, 4.7])  # close together: the threshold is far below all of them
    assert published_threshold(values, (4, 4)) < 4.7
    assert published_snr(values, (4, 4)) == pytest.approx(values.sum() / 1.0 / 5.0)


def test_an_empty_layer_ranks_first():
    """Only zeros below the threshold: a division by zero, in the repository too, and so the best score there is."""
    assert snr(np.zeros((4, 6))).snr == math.inf
    constant = snr(np.ones((5, 7)))
    assert (constant.snr, constant.n_spikes) == (math.inf, 1)


def test_a_single_row_is_one_value_and_no_spike():
    for shape in ((1, 9), (9, 1)):
        found = snr(noise(*shape, sigma=1))
        assert (found.share_above, found.n_spikes, found.snr) == (1.0, 0, pytest.approx(1.0))


def test_a_scan_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, labkit.theory.spectrum as s; s.snr([[1.0, 2.0]]); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
