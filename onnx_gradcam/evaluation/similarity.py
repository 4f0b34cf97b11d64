"""How far two explanations of one image agree: their scores and their heatmaps, number by number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError
from onnx_gradcam.runtime.answers import LEAST_PROBABILITY

__all__ = ["METRICS", "MapAgreement", "Metric", "compare_maps", "kl_divergence", "ssim"]

Array = npt.NDArray[Any]
Wide = npt.NDArray[np.float64]

_TOP_PART: Final = 0.2
_SAME: Final = 1e-5
"""Differences that rounding alone may cause; ranks and hottest pixels must not depend on them."""


@dataclass(frozen=True)
class Metric:
    """A metric of agreement: its key in JSON, its title in tables, whether larger is better, and its meaning."""

    name: str
    title: str
    rising: bool
    meaning: str


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric("pearson", "Pearson", rising=True, meaning="correlation of the heatmaps' values, -1 to 1"),
        Metric("spearman", "Spearman", rising=True, meaning="correlation of their ranks, -1 to 1"),
        Metric("cosine", "cosine", rising=True, meaning="cosine of the angle between the heatmaps, 0 to 1"),
        Metric("ssim", "SSIM", rising=True, meaning="structural similarity, -1 to 1"),
        Metric("overlap", "IoU of top 20 %", rising=True, meaning="IoU of the hottest 20 % of the pixels, 0 to 1"),
        Metric("difference", "max difference", rising=False, meaning="largest difference of two pixels, 0 to 1"),
        Metric("shift", "shift (pixels)", rising=False, meaning="distance between the hottest pixels of the image"),
        Metric("shift_part", "shift / diagonal", rising=False, meaning="shift over the diagonal compared, 0 to 1"),
        Metric("divergence", "KL divergence", rising=False, meaning="from the first model's probabilities, in nats"),
    )
}


@dataclass(frozen=True, kw_only=True)
class MapAgreement:
    """Two heatmaps ``[H, W]`` in [0, 1] against each other.

    Correlations of a blank map (zero everywhere) are undefined. By convention two blank maps agree fully, and a blank
    map and another not at all. The correlations treat constant maps the same way.

    Attributes:
        difference: largest absolute difference of two pixels, 0 to 1; 0 is best.
        cosine: cosine of the angle between the maps as vectors, 0 to 1.
        pearson: correlation of the values, -1 to 1.
        spearman: correlation of the ranks, -1 to 1; values that are equal when rounded to 1e-5 share their mean rank.
        ssim: mean structural similarity, -1 to 1; see `ssim`.
        overlap: intersection over union (IoU) of the hottest 20 % of the pixels, 0 to 1. Pixels of value zero are
            never hot; all pixels equal to the threshold are.
        shift: distance between the hottest pixels, in pixels; of equal ones the first in reading order counts.
        shift_part: `shift` over the diagonal, 0 to 1.
        blank: whether the first and the second map are blank.
    """

    difference: float
    cosine: float
    pearson: float
    spearman: float
    ssim: float
    overlap: float
    shift: float
    shift_part: float
    blank: tuple[bool, bool]


def compare_maps(first: Array, second: Array) -> MapAgreement:
    """Compare two heatmaps ``[H, W]`` in [0, 1] on one grid of pixels."""
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise InputError(
            f"heatmaps of shapes {list(first.shape)} and {list(second.shape)} cannot be compared; project both on one "
            "grid [height, width] first"
        )
    a, b = first.astype(np.float64), second.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("a heatmap with NaN or infinite values cannot be compared; check the model it comes from")
    diagonal = math.hypot(*a.shape)
    blank = not a.any(), not b.any()
    if any(blank):
        same = float(all(blank))
        cosine = pearson = spearman = overlap = same
        shift = (1.0 - same) * diagonal
    else:
        cosine, pearson, spearman = _cosine(a, b), _correlation(a, b), _correlation(_ranks(a), _ranks(b))
        overlap, shift = _overlap(a, b), math.dist(_hottest(a), _hottest(b))
    return MapAgreement(
        difference=float(np.abs(a - b).max()),
        cosine=cosine,
        pearson=pearson,
        spearman=spearman,
        ssim=ssim(a, b),
        overlap=overlap,
        shift=shift,
        shift_part=shift / diagonal,
        blank=blank,
    )


def ssim(first: Array, second: Array) -> float:
    """Mean structural similarity of two maps ``[H, W]`` of range 1.

    Wang, Bovik, Sheikh and Simoncelli 2004 (Image quality assessment: from error visibility to structural similarity),
    eq. 13, with the paper's constants (0.01, 0.03) and its Gaussian window of 11x11 pixels and deviation 1.5; averaged
    over the positions where the whole window fits into the map. On a narrower map the window is of the map's size.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a = _blurred(a * a) - mean_a**2
    var_b = _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(alike / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def kl_divergence(reference: Wide, other: Wide) -> float:
    """Kullback-Leibler divergence of `other` from `reference`, in nats; 0 where they are equal.

    Probabilities below 1e-12 count as 1e-12, so that the result is never above 27.7.
    """
    p, q = (np.maximum(x, LEAST_PROBABILITY) for x in (reference, other))
    return max(0.0, float(np.sum(reference * np.log(p / q))))


def _blurred(values: Wide) -> Wide:
    """Gaussian-weighted means of the windows that fit into `values`."""
    return np.asarray(_along_rows(_along_rows(values).T).T)


def _along_rows(values: Wide) -> Wide:
    radius = min(5, (len(values) - 1) // 2)
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 1.5) ** 2)
    count = len(values) - 2 * radius
    total = np.zeros((count, values.shape[1]))
    for start, weight in enumerate(window / window.sum()):
        total += weight * values[start : start + count]
    return total


def _cosine(a: Wide, b: Wide) -> float:
    return min(1.0, float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))))


def _correlation(a: Wide, b: Wide) -> float:
    a, b = a - a.mean(), b - b.mean()
    flat = [float(np.abs(x).max()) < _SAME for x in (a, b)]
    if any(flat):
        return float(all(flat))
    return max(-1.0, min(1.0, float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))))


def _ranks(values: Wide) -> Wide:
    """The rank of every pixel; equal values share their mean rank."""
    levels = np.rint(values / _SAME).astype(np.int64)
    _, which, counts = np.unique(levels, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[which].reshape(values.shape))


def _overlap(a: Wide, b: Wide) -> float:
    hot_a, hot_b = _hot(a), _hot(b)
    return float(np.sum(hot_a & hot_b) / np.sum(hot_a | hot_b))


def _hot(values: Wide) -> npt.NDArray[np.bool_]:
    count = math.ceil(_TOP_PART * values.size)
    limit = np.partition(values, -count, axis=None)[-count]
    return np.asarray((values >= limit) & (values > 0))


def _hottest(values: Wide) -> tuple[int, int]:
    index = int(np.argmax(values >= values.max() - _SAME))
    row, column = divmod(index, int(values.shape[1]))
    return row, column
