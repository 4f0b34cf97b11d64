"""Faithfulness metrics: does the score of a class depend on the pixels that a heatmap marks?

Each metric changes the image as the heatmap says and runs the model again. An image is the model's input, channels
first, ``float32 [C, H, W]``; a heatmap is ``[H, W]`` in [0, 1] over it; the score is the probability of the class.
`metrics` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "PERCENTILES",
    "Trial",
    "average_drop",
    "blurred",
    "deletion",
    "deletion_drop",
    "impute",
    "increase",
    "insertion",
    "road",
    "road_accuracy",
    "road_combined",
]

Array = npt.NDArray[Any]
Scores = Callable[[Array], Array]

PERCENTILES: Final = (10, 20, 30, 40, 50, 60, 70, 80, 90)
"""Percentages of the pixels that ROAD keeps, as in pytorch-grad-cam."""

_NOISE: Final = 0.01
"""Standard deviation of the noise that ROAD adds to imputed pixels, relative to that of the image's values.

pytorch-grad-cam adds the same noise to inputs of any range; those of its examples have a standard deviation near one.
"""

_BLUR: Final = 5.0
"""Standard deviation of insertion's blur, in pixels of a 224x224 image; from RISE's own code."""

_ACCURACY: Final = 1e-5
"""Step at which solving stops, relative to the image's largest value; the error is up to a hundred times larger."""

_MOST_STEPS: Final = 2000


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """One image, one class, and the model's probability of it.

    Attributes:
        image: the model's input, ``float32 [C, H, W]``.
        scores: maps images ``[M, C, H, W]`` to the probability of the class in each, ``[M]``.
        score: probability of the class in the image itself.
        steps: number of steps of deletion and insertion.
        batch_size: number of images to run at once.
        seed: random seed for the order of equal pixels and for the noise.
        right: maps images to whether each is predicted to be of the class, ``bool [M]``; `None` for a detector.
        explain: maps images, and a class or `None` for the explained one, to the method's heatmaps ``[M, H, W]``.
        others: the indices of the model's other classes; empty for a detector.
        gap: sum of an attribution, and the score of the image less that of the input zero; `None` without attribution.
        mosaic: a mosaic of 2x2 images ``[C, H, W]``, and which pixels are of the class, ``bool [H, W]``.
    """

    image: Array
    scores: Scores
    score: float
    steps: int = 50
    batch_size: int = 8
    seed: int = 0
    right: Callable[[Array], Array] | None = None
    explain: Callable[[Array, int | None], Array] | None = None
    others: Sequence[int] = ()
    gap: tuple[float, float] | None = None
    mosaic: tuple[Array, npt.NDArray[np.bool_]] | None = None

    @property
    def rng(self) -> np.random.Generator:
        """A generator that starts anew for every metric and heatmap."""
        return np.random.default_rng(self.seed)

    def ask(self, images: Iterable[Array]) -> npt.NDArray[np.float64]:
        """The scores ``[M]`` of images; no more than a batch exist at once."""
        return np.array([score for some in self.batches(images) for score in self.scores(some).tolist()], np.float64)

    def batches(self, images: Iterable[Array]) -> Iterator[Array]:
        """The images, so many at once as the model is to run."""
        numbered = iter(images)
        while batch := list(islice(numbered, self.batch_size)):
            yield np.stack(batch)

    def order(self, heatmap: Array) -> npt.NDArray[np.intp]:
        """The pixels from the hottest to the coldest, ``[H * W]``; equal ones in random order.

        Many pixels are exactly zero after the ReLU, and reading order would favour one side of the image.
        """
        shuffled = self.rng.permutation(heatmap.size)
        return shuffled[np.argsort(-heatmap.reshape(-1)[shuffled], kind="stable")]


def deletion(trial: Trial, heatmap: Array) -> float:
    """Area under the score while the hottest pixels become zero first; Petsiuk et al. 2018 (RISE), section 4.2."""
    return _area(trial, heatmap, trial.image, np.zeros_like(trial.image))


def insertion(trial: Trial, heatmap: Array) -> float:
    """Area under the score while the hottest pixels are put into a blurred image first; as `deletion`."""
    return _area(trial, heatmap, blurred(trial.image), trial.image)


def _area(trial: Trial, heatmap: Array, before: Array, after: Array) -> float:
    """Trapezoidal area under the score over the share of changed pixels, the hottest first."""
    order = trial.order(heatmap)

    def changed() -> Iterator[Array]:
        for step in range(trial.steps + 1):
            image = before.reshape(len(before), -1).copy()
            done = order[: round(step * order.size / trial.steps)]
            image[:, done] = after.reshape(len(after), -1)[:, done]
            yield image.reshape(before.shape)

    scores = trial.ask(changed())
    return float((scores.sum() - (scores[0] + scores[-1]) / 2) / trial.steps)


def road(trial: Trial, heatmap: Array) -> float:
    """How much more the score suffers when the hottest pixels are removed than when the coldest are.

    Rong et al. 2022, section 4: removed pixels are filled in by noisy linear imputation, so that the shape of the hole
    tells the model little. Half the difference of the mean scores over `PERCENTILES`, least relevant first minus most
    relevant first: ROADCombined of pytorch-grad-cam's metrics/road.py, for heatmaps without equal values.
    """
    return road_combined(trial, heatmap, PERCENTILES)


def road_combined(trial: Trial, heatmap: Array, percentiles: Sequence[int]) -> float:
    """`road` with other percentages of the pixels."""
    order, rng = trial.order(heatmap), trial.rng
    least, most = (trial.ask(_imputed(trial, ranked, percentiles, rng)).mean() for ranked in (order, order[::-1]))
    return float(least - most) / 2


def road_accuracy(trial: Trial, heatmap: Array) -> float | None:
    """The share of `PERCENTILES` at which the class is still the predicted one without the hottest pixels.

    Rong et al. 2022, section 5: its mean over images is the area under the accuracy, which is the paper's own figure.
    """
    if trial.right is None:
        return None
    images = _imputed(trial, trial.order(heatmap)[::-1], PERCENTILES, trial.rng)
    return float(np.concatenate([trial.right(some) for some in trial.batches(images)]).mean())


def _imputed(
    trial: Trial, ranked: npt.NDArray[np.intp], percentiles: Sequence[int], rng: np.random.Generator
) -> Iterator[Array]:
    """The image of which only the first pixels of `ranked` are kept, at each percentage from the largest down."""
    deviation, shape, imputed = _NOISE * float(trial.image.std()), trial.image.shape[1:], None
    for percentile in reversed(percentiles):
        kept = np.zeros(ranked.size, bool)
        kept[ranked[: max(1, -(-percentile * (ranked.size - 1) // 100))]] = True
        visible = kept.reshape(shape)
        imputed = impute(trial.image, visible, imputed)
        noise = deviation * rng.standard_normal(imputed.shape).astype(np.float32)
        yield np.where(visible, imputed, imputed + noise)


def average_drop(trial: Trial, heatmap: Array) -> float:
    """The share of the score that is lost when the image is multiplied by the heatmap, 0 to 1.

    Chattopadhay et al. 2018, section 4.1; on the model's input, as in pytorch-grad-cam's metrics.
    """
    return _lost(trial, trial.image * heatmap)


def increase(trial: Trial, heatmap: Array) -> float:
    """1 if the image multiplied by the heatmap scores higher than the image, else 0; as `average_drop`."""
    (score,) = trial.ask([trial.image * heatmap])
    return float(score > trial.score)


def deletion_drop(trial: Trial, heatmap: Array) -> float:
    """The share of the score that is lost when the image is multiplied by one minus the heatmap, 0 to 1.

    Jung and Oh 2021 (Towards better explanations of class activation mapping), section 4: the average drop of the
    inverted heatmap.
    """
    return _lost(trial, trial.image * (1 - heatmap))


def _lost(trial: Trial, image: Array) -> float:
    (score,) = trial.ask([image])
    return max(0.0, trial.score - float(score)) / trial.score if trial.score > 0 else 0.0


def blurred(image: Array) -> Array:
    """The image ``[C, H, W]`` blurred by a Gaussian window, in which the class is no longer recognisable.

    The standard deviation is 5 pixels in a 224x224 image (the window is 11 pixels wide), as in RISE's own code,
    proportionally more in larger images and no less in smaller ones. The image's border is mirrored.
    """
    for axis in (1, 2):
        image = _blurred_along(image, axis)
    return image


def _blurred_along(image: Array, axis: int) -> Array:
    side = image.shape[axis]
    deviation = _BLUR * max(1.0, max(image.shape[1:]) / 224)
    radius = round(deviation)
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    # The image and its mirror image, repeated: every shift reaches a pixel.
    period = np.concatenate([np.arange(side), np.arange(side)[::-1]])
    total = np.zeros(image.shape, np.float64)
    for shift, weight in zip(range(-radius, radius + 1), window / window.sum(), strict=True):
        total += weight * image.take(period[(np.arange(side) + shift) % (2 * side)], axis=axis)
    return np.asarray(total.astype(np.float32))


def impute(image: Array, kept: npt.NDArray[np.bool_], start: Array | None = None) -> npt.NDArray[np.float32]:
    """Linear imputation: every missing pixel becomes the weighted mean of its eight neighbours.

    Rong et al. 2022 (A consistent and efficient evaluation strategy for attribution methods), section 4.2: neighbours
    along a side weigh 1/6, along a diagonal 1/12, and those outside of the image nothing; missing neighbours count as
    well, so this is a symmetric system of equations, solved by conjugate gradients. `image` and `start`, a guess of the
    result, are ``[C, H, W]``; `kept` is ``[H, W]``, and true somewhere.
    """
    kept_values = np.where(kept, image, 0).astype(np.float32)
    missing = (~kept).astype(np.float32)
    present = _neighbours(np.ones(kept.shape, np.float32))

    def equations(values: Array) -> Array:
        residual: Array = missing * (present * values - _neighbours(values))
        return residual

    mean = (kept_values.sum((1, 2)) / kept.sum())[:, None, None]
    values = missing * (mean if start is None else start)
    left = missing * _neighbours(kept_values) - equations(values)
    step = way = left / present
    size, enough = _dot(left, way), _ACCURACY * float(np.abs(kept_values).max())
    for _ in range(_MOST_STEPS):
        if np.abs(step).max() <= enough:
            break
        change = equations(way)
        length = size / np.maximum(_dot(way, change), np.finfo(np.float32).tiny)
        values = values + length * way
        left = left - length * change
        step = left / present
        before, size = size, _dot(left, step)
        way = step + size / np.maximum(before, np.finfo(np.float32).tiny) * way
    return np.where(kept, image, values).astype(np.float32)


def _neighbours(values: Array) -> Array:
    """The weighted sum of the eight neighbours of every pixel of ``[..., H, W]``; zero outside of the image."""
    wide = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1), (1, 1)])
    rows = wide[..., :-2, :] + 2 * wide[..., 1:-1, :] + wide[..., 2:, :]
    block = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    total: Array = (block - 4 * values) / 12
    return total


def _dot(a: Array, b: Array) -> Array:
    """The scalar product of each channel, ``[C, 1, 1]``."""
    product: Array = (a * b).sum((1, 2), keepdims=True)
    return product
