"""Metrics that compare how much heat a part of the image has with what the score loses without that part.

Pixels that are taken away are *black*: they become the smallest value of the image in all channels at once, which is
what Quantus calls black. Images, heatmaps and scores are as in `faithfulness`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .faithfulness import Trial

__all__ = [
    "correlation_of_parts",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "infidelity",
    "infidelity_terms",
    "irof",
    "pearson",
    "pixel_flipping",
    "region_curve",
    "region_perturbation",
    "removal_of_segments",
]

Array = npt.NDArray[Any]

_RUNS: Final = 100
_SUBSET: Final = 224
"""Runs, and pixels in each, of the faithfulness correlation; as Quantus."""
_CELLS: Final = 16
"""Cells along each side of region perturbation and infidelity: of 14 pixels in an image of 224, as LATEC."""
_REGIONS: Final = 100
"""Cells that region perturbation takes away, as Samek et al. 2017."""
_SEGMENTS: Final = 100
_COMPACT: Final = 10.0
_ROUNDS: Final = 5


def faithfulness_correlation(trial: Trial, heatmap: Array) -> float:
    """Correlation of the heat of 100 random sets of 224 pixels with what the score loses when each is black.

    Bhatt et al. 2020 (Evaluating and aggregating feature-based model explanations), eq. 1. Of images below 30x30 a
    quarter of the pixels.
    """
    rng, size = trial.rng, min(_SUBSET, max(1, heatmap.size // 4))
    return correlation_of_parts(trial, heatmap, [rng.choice(heatmap.size, size, replace=False) for _ in range(_RUNS)])


def faithfulness_estimate(trial: Trial, heatmap: Array) -> float:
    """The same correlation over blocks of pixels from the hottest to the coldest, as many as `trial.steps`.

    Alvarez-Melis and Jaakkola 2018 (Towards robust interpretability with self-explaining networks), section 5.2.
    """
    return correlation_of_parts(trial, heatmap, _blocks(trial, heatmap))


def correlation_of_parts(trial: Trial, heatmap: Array, parts: Sequence[Array]) -> float:
    """Pearson's correlation of the heat of parts (indices of pixels) with the loss of score when each is black."""
    heat = heatmap.reshape(-1)
    lost = trial.score - trial.ask(_black(trial.image, part) for part in parts)
    return pearson(np.array([heat[part].sum() for part in parts]), lost)


def pixel_flipping(trial: Trial, heatmap: Array) -> float:
    """Mean of the score while blocks of pixels become black, the hottest first.

    Bach et al. 2015, section "Pixel-flipping"; the trapezoidal area under the curve over the number of blocks,
    `trial.steps`. Quantus does not divide.
    """
    done = np.cumsum([len(block) for block in _blocks(trial, heatmap)])
    order = trial.order(heatmap)
    scores = trial.ask(_black(trial.image, order[:count]) for count in done)
    return _trapezoid(scores) / len(scores)


def _blocks(trial: Trial, heatmap: Array) -> list[Array]:
    """The pixels from the hottest to the coldest in equal blocks."""
    order, steps = trial.order(heatmap), min(max(2, trial.steps), heatmap.size)
    edges = [round(step * order.size / steps) for step in range(steps + 1)]
    return [order[edges[i] : edges[i + 1]] for i in range(steps)]


def region_perturbation(trial: Trial, heatmap: Array) -> float:
    """What the score loses on average while up to 100 of 16x16 cells become black, the hottest first.

    Samek et al. 2017 (Evaluating the visualization of what a deep neural network has learned), eq. 12 (AOPC).
    """
    side = -(-max(heatmap.shape) // _CELLS)
    return float(region_curve(trial, heatmap, side, _REGIONS).mean())


def region_curve(trial: Trial, heatmap: Array, side: int, count: int) -> Array:
    """The loss of score after each of the `count` hottest cells of `side` pixels, one after another."""
    cells = sorted(_cells(heatmap.shape, side), key=lambda cell: -float(heatmap[cell].sum()))[:count]

    def changed() -> Iterator[Array]:
        image, black = trial.image.copy(), trial.image.min()
        for cell in cells:
            image[:, cell[0], cell[1]] = black
            yield image.copy()

    lost: Array = trial.score - trial.ask(changed())
    return lost


def _cells(shape: Sequence[int], side: int) -> list[tuple[slice, slice]]:
    rows, columns = (range(0, size, side) for size in shape)
    return [(slice(row, row + side), slice(column, column + side)) for row in rows for column in columns]


def infidelity(trial: Trial, heatmap: Array) -> float:
    """How badly the heat of each of 16x16 cells foretells what the score loses when the cell is black, 0 to 1.

    Yeh et al. 2019 (On the (in)fidelity and sensitivity of explanations), eq. 1, at the best scale of the heatmap
    (section 3.2), relative to the mean square of the loss: a heatmap in [0, 1] has no scale of its own. 1 is no better
    than a blank heatmap.
    """
    side = -(-max(heatmap.shape) // _CELLS)
    images = [_cell_black(trial.image, cell) for cell in _cells(heatmap.shape, side)]
    told, lost = infidelity_terms(trial, heatmap, images)
    square, total = float((told**2).mean()), float((lost**2).mean())
    scale = float((told * lost).mean()) / square if square else 0.0
    return float(((scale * told - lost) ** 2).mean()) / total if total else 0.0


def infidelity_terms(trial: Trial, heatmap: Array, images: Iterable[Array]) -> tuple[Array, Array]:
    """For changed images, the product of the change and the heatmap, and the loss of score, ``[M]`` each."""
    images = list(images)
    told = np.array([float(((trial.image - image) * heatmap).sum(dtype=np.float64)) for image in images])
    lost: Array = trial.score - trial.ask(images)
    return told, lost


def _cell_black(image: Array, cell: tuple[slice, slice]) -> Array:
    changed = image.copy()
    changed[:, cell[0], cell[1]] = image.min()
    return np.asarray(changed)


def irof(trial: Trial, heatmap: Array) -> float:
    """What share of the score is lost on average while superpixels take the image's mean, the hottest first.

    Rieger and Hansen 2020 (IROF: a low resource evaluation metric for explanation methods), section 3; about 100
    superpixels by colour and place. Quantus does not divide by their number.
    """
    segments = _superpixels(trial.image.tobytes(), trial.image.shape)
    kept = removal_of_segments(trial, heatmap, segments, trial.image.mean())
    return 1 - _trapezoid(kept) / len(kept)


def removal_of_segments(trial: Trial, heatmap: Array, segments: Array, value: float) -> Array:
    """The share of the score that is kept after each segment, the hottest on average first, has taken a value."""
    count = int(segments.max()) + 1
    heat = np.bincount(segments.reshape(-1), heatmap.reshape(-1), count) / np.bincount(segments.reshape(-1))

    def changed() -> Iterator[Array]:
        image = trial.image.copy()
        for segment in np.argsort(-heat, kind="stable"):
            image[:, segments == segment] = value
            yield image.copy()

    kept: Array = trial.ask(changed()) / trial.score if trial.score else np.zeros(count)
    return kept


@lru_cache(maxsize=1)
def _superpixels(values: bytes, shape: tuple[int, ...]) -> Array:
    """About 100 segments ``[H, W]``, numbered from 0: k-means of colour and place from a grid of centres (SLIC)."""
    image = np.frombuffer(values, np.float32).reshape(shape)
    colours = (image - image.min()) / max(float(np.ptp(image)), 1e-12) * 100
    step = max(1.0, (shape[1] * shape[2] / _SEGMENTS) ** 0.5)
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    places = np.stack([rows, columns]) * (_COMPACT / step)
    points = np.concatenate([colours, places]).reshape(len(image) + 2, -1).T
    starts = [np.arange(step / 2, size, step).astype(int) for size in shape[1:]]
    centres = points[(starts[0][:, None] * shape[2] + starts[1]).reshape(-1)]
    for _ in range(_ROUNDS):
        nearest = ((centres**2).sum(1) - 2 * points @ centres.T).argmin(1)
        counts = np.bincount(nearest, minlength=len(centres))
        sums = np.stack([np.bincount(nearest, column, len(centres)) for column in points.T], 1)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    _, segments = np.unique(nearest, return_inverse=True)
    return np.asarray(segments.reshape(shape[1:]))


def _black(image: Array, pixels: Array) -> Array:
    changed = image.reshape(len(image), -1).copy()
    changed[:, pixels] = image.min()
    return np.asarray(changed.reshape(image.shape))


def _trapezoid(values: Array) -> float:
    return float(values.sum() - (values[0] + values[-1]) / 2)


def pearson(first: Array, second: Array) -> float:
    """Pearson's correlation; 0 if either does not vary."""
    a, b = first - first.mean(), second - second.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b)) / size if size > 0 else 0.0
