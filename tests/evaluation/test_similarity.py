"""The agreement of two heatmaps and of two distributions, against other libraries and by hand."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from onnx_gradcam.errors import InputError
from onnx_gradcam.evaluation.similarity import compare_maps, kl_divergence, ssim
from onnx_gradcam.runtime.answers import distribution


def smooth() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:40, 0:56]
    a = np.exp(-((y - 12) ** 2 + (x - 20) ** 2) / 80)
    b = 0.8 * np.exp(-((y - 15) ** 2 + (x - 24) ** 2) / 120) + 0.2 * np.exp(-((y - 30) ** 2 + (x - 45) ** 2) / 30)
    return a, b


def tied() -> tuple[np.ndarray, np.ndarray]:
    a, b = smooth()
    return np.floor(a * 8) / 8, np.floor(b * 5) / 5


# scikit-image 0.26.0: structural_similarity(a, b, data_range=1, gaussian_weights=True, sigma=1.5,
# use_sample_covariance=False). SciPy 1.17.1: spearmanr, pearsonr; of the smooth maps, ranks of np.rint(map / 1e-5).
ORACLE = {
    "smooth": {"ssim": 0.4206538774719119, "spearman": 0.7864569704706301, "pearson": 0.8165057619606414},
    "tied": {"ssim": 0.5719839466911345, "spearman": 0.7324785174846924, "pearson": 0.7722282262253714},
}


@pytest.mark.parametrize("maps", [smooth, tied])
@pytest.mark.parametrize("metric", ["ssim", "spearman", "pearson"])
def test_other_libraries_say_the_same(maps, metric):
    assert getattr(compare_maps(*maps()), metric) == pytest.approx(ORACLE[maps.__name__][metric], abs=1e-12)


def test_scipy_and_scikit_image_where_they_are_installed():
    stats = pytest.importorskip("scipy.stats")
    a, b = tied()
    assert compare_maps(a, b).spearman == pytest.approx(float(stats.spearmanr(a.ravel(), b.ravel())[0]), abs=1e-12)


def test_a_map_agrees_fully_with_itself():
    a, _ = smooth()
    same = compare_maps(a, a.copy())
    numbers = (same.cosine, same.pearson, same.spearman, same.ssim, same.overlap)
    assert numbers == pytest.approx((1, 1, 1, 1, 1), abs=1e-12)
    assert max(numbers) <= 1
    assert (same.difference, same.shift, same.shift_part) == (0, 0, 0)
    assert same.blank == (False, False)


def test_rounding_alone_changes_nothing():
    """Noise of 1e-7, on plateaus and beside zeros, moves neither ranks nor the hottest pixel."""
    rng = np.random.default_rng(0)
    a = np.kron(np.array([[1.0, 0.5], [0.25, 0.0]]), np.ones((20, 20)))
    noisy = a + 1e-7 * rng.random(a.shape)
    found = compare_maps(a, noisy)
    assert found.shift == 0
    assert found.spearman == pytest.approx(1, abs=1e-12)
    assert found.pearson == pytest.approx(1, abs=1e-9)


def test_overlap_and_shift_by_hand():
    a, b = np.zeros((10, 10)), np.zeros((10, 10))
    a[0, 0:10] = np.linspace(1, 0.1, 10)
    b[0, 5:10] = 0.5
    b[1, 0:5] = np.linspace(1, 0.6, 5)
    found = compare_maps(a, b)
    # Ten positive pixels each, below the twenty that 20 % would be: five of them in common, fifteen in all.
    assert found.overlap == pytest.approx(5 / 15)
    # From (0, 0) to (1, 0) on a square of ten.
    assert found.shift == 1
    assert found.shift_part == pytest.approx(1 / math.hypot(10, 10))
    assert found.difference == 1
    assert found.cosine == pytest.approx((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def test_the_hottest_fifth_is_a_fifth():
    values = np.random.default_rng(1).permutation(100).reshape(10, 10) + 1.0
    other = np.where(values > 80, values, 101 - values)
    # The first's are 81 to 100; the second's are those, and nothing of 101 - 80 = 21 or 101 - 1 = 100 below them.
    expected_other = np.sort(other, axis=None)[-20]
    hot, hot_other = values > 80, other >= expected_other
    expected = (hot & hot_other).sum() / (hot | hot_other).sum()
    assert compare_maps(values / 100, other / 100).overlap == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (1, 30), (3, 200)])
def test_blank_maps_have_conventions_and_no_nan(shape):
    blank, warm = np.zeros(shape), np.zeros(shape)
    warm[0, -1] = 1
    both = compare_maps(blank, blank)
    assert (both.cosine, both.pearson, both.spearman, both.overlap) == (1, 1, 1, 1)
    assert both.ssim == pytest.approx(1)
    assert (both.difference, both.shift, both.shift_part, both.blank) == (0, 0, 0, (True, True))
    for pair, flags in (((blank, warm), (True, False)), ((warm, blank), (False, True))):
        one = compare_maps(*pair)
        assert (one.cosine, one.pearson, one.spearman, one.overlap) == (0, 0, 0, 0)
        assert (one.difference, one.shift_part, one.blank) == (1, 1, flags)
        assert one.shift == pytest.approx(math.hypot(*shape))
        assert -1 <= one.ssim < 1


def test_constant_maps_have_conventions():
    full, varied = np.ones((6, 6)), np.random.default_rng(2).random((6, 6))
    assert compare_maps(full, 0.5 * full).pearson == 1
    assert compare_maps(full, varied).pearson == 0
    assert compare_maps(full, varied).spearman == 0
    assert compare_maps(full, np.zeros((6, 6))).pearson == 0


def test_opposite_maps_disagree():
    rng = np.random.default_rng(3)
    a = rng.random((30, 30))
    found = compare_maps(a, 1 - a)
    assert found.pearson == pytest.approx(-1)
    assert found.spearman == pytest.approx(-1)
    assert found.overlap == 0
    assert found.ssim < 0


def test_ssim_of_narrow_maps_is_finite():
    a = np.random.default_rng(4).random((4, 7))
    assert ssim(a, a) == pytest.approx(1)
    assert math.isfinite(ssim(a, a[::-1]))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(4), np.zeros(4)),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (np.full((2, 2), np.nan), np.zeros((2, 2))),
        (np.zeros((2, 2)), np.full((2, 2), np.inf)),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second):
    with pytest.raises(InputError, match=r"cannot be compared|can be compared"):
        compare_maps(first, second)


def test_kl_divergence():
    # the number is that of SciPy's entropy
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.25, 0.25])
    assert kl_divergence(p, q) == pytest.approx(0.09927278218459168, abs=1e-12)
    assert kl_divergence(p, p) == 0
    sure, excluded = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert kl_divergence(sure, excluded) == pytest.approx(12 * math.log(10))


LOGITS = np.array([1.0, 2.0, 0.5, -1.0], np.float32)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum()


@pytest.mark.parametrize(
    ("scores", "activation"),
    [
        (LOGITS, ""),
        (LOGITS + 300, ""),
        (SOFTMAX, "softmax"),
        (SOFTMAX, ""),
        (np.log(SOFTMAX), "logsoftmax"),
        (1 / (1 + np.exp(-LOGITS)), "sigmoid"),
    ],
)
def test_scores_of_every_kind_are_one_distribution(scores, activation):
    np.testing.assert_allclose(distribution(scores.astype(np.float32), activation), SOFTMAX, rtol=1e-5)


def test_a_class_of_no_chance_gives_no_nan():
    found = distribution(np.array([0.0, -np.inf], np.float32), "logsoftmax")
    np.testing.assert_array_equal(found, [1, 0])
    assert kl_divergence(np.array([0.5, 0.5]), found) == pytest.approx(
        0.5 * (12 * math.log(10)) - math.log(2), rel=1e-6
    )


def test_a_single_logit_is_its_sigmoid():
    chance = 1 / (1 + math.exp(-1.5))
    for scores, activation in (([-1.5, 1.5], ""), ([1 - chance, chance], "sigmoid")):
        found = distribution(np.array(scores, np.float32), activation, single_logit=True)
        np.testing.assert_allclose(found, [1 - chance, chance], rtol=1e-6)


def test_quantised_scores_have_no_distribution():
    assert distribution(np.array([3, -7], np.int8), "softmax") is None


def test_memory_stays_small():
    a = np.random.default_rng(5).random((512, 512))
    tracemalloc.start()
    compare_maps(a, a[::-1])
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()
