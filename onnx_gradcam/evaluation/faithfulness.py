"""Pixels that are taken away and filled in from what is left.

How well a heatmap tells what the score of a class depends on.

Each metric changes the image as the heatmap says and asks the model again. An image is the model's input, channels
first, ``float32 [C, H, W]``; a heatmap is ``[H, W]`` in [0, 1] over it; the score is the probability of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError

__all__ = ["METRICS", "PERCENTILES", "Metric", "Trial", "blurred", "gini", "impute", "measure"]

_ACCURACY: Final = 1e-5
"""Of a step, relative to the image's largest value; what is left is up to a hundred times as much."""

_MOST_STEPS: Final = 2000


def impute(image: Array, kept: npt.NDArray[np.bool_], start: Array | None = None) -> npt.NDArray[np.float32]:
    """Linear imputation: every missing pixel is the mean of its eight neighbours, missing ones among them.

    Rong et al. 2022 (A consistent and efficient evaluation strategy for attribution methods), section 4.2: neighbours
    along a side weigh 1/6, along a diagonal 1/12, and those outside of the image nothing. The system of equations is
    symmetric, and is solved by conjugate gradients.

    Args:
        image: float ``[C, H, W]``.
        kept: the pixels that are there, bool ``[H, W]``, at least one.
        start: a guess of the result, ``[C, H, W]``: the same with fewer pixels missing is a good one.
    """
    known = np.where(kept, image, 0).astype(np.float32)
    missing = (~kept).astype(np.float32)
    present = _neighbours(np.ones(kept.shape, np.float32))

    def equations(values: Array) -> Array:
        found: Array = missing * (present * values - _neighbours(values))
        return found

    mean = (known.sum((1, 2)) / kept.sum())[:, None, None]
    values = missing * (mean if start is None else start)
    left = missing * _neighbours(known) - equations(values)
    step = way = left / present
    size, enough = _dot(left, way), _ACCURACY * float(np.abs(known).max())
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
    """The weighted sum of the eight neighbours of every pixel of ``[..., H, W]``; zero lies around the image."""
    wide = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1), (1, 1)])
    rows = wide[..., :-2, :] + 2 * wide[..., 1:-1, :] + wide[..., 2:, :]
    block = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    found: Array = (block - 4 * values) / 12
    return found


def _dot(a: Array, b: Array) -> Array:
    """The scalar product of each channel, ``[C, 1, 1]``."""
    product: Array = (a * b).sum((1, 2), keepdims=True)
    return product


Array = npt.NDArray[Any]
Scores = Callable[[Array], Array]

PERCENTILES: Final = (10, 20, 30, 40, 50, 60, 70, 80, 90)
"""The parts of the pixels that ROAD leaves, in percent; as pytorch-grad-cam."""

_NOISE: Final = 0.01
"""Standard deviation of what ROAD adds to pixels that it fills in, relative to that of the image's values.

pytorch-grad-cam adds as much to inputs of any range; those of its examples have a standard deviation of about one.
"""

_BLUR: Final = 5.0
"""Standard deviation, in pixels of an image of 224, of what insertion begins with; RISE's own code has it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """One image, one class, and a model to ask.

    Attributes:
        image: the model's input, ``float32 [C, H, W]``.
        scores: from images ``[M, C, H, W]`` to the probability of the class in each, ``[M]``.
        score: that of the image itself.
        steps: in how many steps deletion and insertion go from one end to the other.
        batch_size: images to ask for at once.
        seed: of the order among equal pixels, and of the noise.
    """

    image: Array
    scores: Scores
    score: float
    steps: int = 50
    batch_size: int = 8
    seed: int = 0

    @property
    def rng(self) -> np.random.Generator:
        """Random numbers, the same for every metric and heatmap."""
        return np.random.default_rng(self.seed)

    def ask(self, images: Iterator[Array]) -> npt.NDArray[np.float64]:
        """The scores of images, of which no more than a batch exist at once."""
        found: list[float] = []
        waiting: list[Array] = []
        for image in images:
            waiting.append(image)
            if len(waiting) == self.batch_size:
                found += self.scores(np.stack(waiting)).tolist()
                waiting = []
        if waiting:
            found += self.scores(np.stack(waiting)).tolist()
        return np.array(found, np.float64)

    def order(self, heatmap: Array) -> npt.NDArray[np.intp]:
        """The pixels from the hottest to the coldest, ``[H * W]``; equal ones in random order.

        Much of a heatmap is exactly zero behind its ReLU, and reading order would favour one side of the image.
        """
        shuffled = self.rng.permutation(heatmap.size)
        return shuffled[np.argsort(-heatmap.reshape(-1)[shuffled], kind="stable")]


# ----- pixel by pixel ----------------------------------------------------------


def deletion(trial: Trial, heatmap: Array) -> float:
    """Area under the score while the hottest pixels become zero first; Petsiuk et al. 2018 (RISE), section 4.2."""
    return _area(trial, heatmap, trial.image, np.zeros_like(trial.image))


def insertion(trial: Trial, heatmap: Array) -> float:
    """Area under the score while the hottest pixels come into a blurred image first; as `deletion`."""
    return _area(trial, heatmap, blurred(trial.image), trial.image)


def _area(trial: Trial, heatmap: Array, before: Array, after: Array) -> float:
    """Trapezoidal area under the score over the part of the pixels that is changed, the hottest first."""
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
    """How much more the score suffers from the loss of the hottest pixels than from that of the coldest.

    Rong et al. 2022, section 4: lost pixels are filled in by noisy linear imputation, so that the shape of the hole
    itself tells the model little. Half the difference of the mean scores over `PERCENTILES`, least relevant first minus
    most relevant first: ROADCombined of pytorch-grad-cam's metrics/road.py, where heatmaps have no equal values.
    """
    order, rng = trial.order(heatmap), trial.rng
    deviation = _NOISE * float(trial.image.std())

    def filled(ranked: npt.NDArray[np.intp]) -> Iterator[Array]:
        found = None
        for percentile in reversed(PERCENTILES):
            kept = np.zeros(heatmap.size, bool)
            kept[ranked[: max(1, -(-percentile * (heatmap.size - 1) // 100))]] = True
            seen = kept.reshape(heatmap.shape)
            found = impute(trial.image, seen, found)
            noise = deviation * rng.standard_normal(found.shape).astype(np.float32)
            yield np.where(seen, found, found + noise)

    return float(trial.ask(filled(order)).mean() - trial.ask(filled(order[::-1])).mean()) / 2


# ----- the image times the heatmap -------------------------------------------


def average_drop(trial: Trial, heatmap: Array) -> float:
    """The part of the score that is lost when only what the heatmap shows is left, 0 to 1.

    Chattopadhay et al. 2018, section 4.1; the model's input is multiplied, as pytorch-grad-cam's metrics do.
    """
    return _lost(trial, trial.image * heatmap)


def increase(trial: Trial, heatmap: Array) -> float:
    """1 where what the heatmap shows scores higher than the whole image, else 0; as `average_drop`."""
    (score,) = trial.ask(iter([trial.image * heatmap]))
    return float(score > trial.score)


def deletion_drop(trial: Trial, heatmap: Array) -> float:
    """The part of the score that is lost without what the heatmap shows, 0 to 1.

    Jung and Oh 2021 (Towards better explanations of class activation mapping), section 4: the average drop of the
    inverted heatmap.
    """
    return _lost(trial, trial.image * (1 - heatmap))


def _lost(trial: Trial, image: Array) -> float:
    (score,) = trial.ask(iter([image]))
    return max(0.0, trial.score - float(score)) / trial.score if trial.score > 0 else 0.0


# ----- the heatmap alone -------------------------------------------------------


def gini(trial: Trial, heatmap: Array) -> float:  # noqa: ARG001 - the model is not asked
    """Sparsity: the Gini index of the heatmap's values, 0 where all are equal, near 1 where few hold everything.

    Hurley and Rickard 2009 (Comparing measures of sparsity), eq. 1; for explanations Chalasani et al. 2020. 0 for a
    blank heatmap.
    """
    values = np.sort(heatmap, axis=None).astype(np.float64)
    total = values.sum()
    if total <= 0:
        return 0.0
    ranks = np.arange(1, values.size + 1)
    return float(1 - 2 * np.sum(values / total * (values.size - ranks + 0.5) / values.size))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that says how good a heatmap is.

    Attributes:
        name: in JSON, and for the command line.
        title: for people.
        better: whether a `higher` or a `lower` one is better; nothing where neither is.
        function: from a trial and a heatmap; `None` for those that look at boxes (`onnx_gradcam.evaluation.boxes`).
    """

    name: str
    title: str
    better: Literal["higher", "lower", ""]
    function: Callable[[Trial, Array], float] | None


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric(name="deletion", title="deletion AUC", better="lower", function=deletion),
        Metric(name="insertion", title="insertion AUC", better="higher", function=insertion),
        Metric(name="road", title="ROAD", better="higher", function=road),
        Metric(name="average_drop", title="average drop", better="lower", function=average_drop),
        Metric(name="increase", title="increase", better="higher", function=increase),
        Metric(name="deletion_drop", title="drop in deletion", better="higher", function=deletion_drop),
        Metric(name="sparsity", title="sparsity (Gini)", better="", function=gini),
        Metric(name="pointing", title="pointing game", better="higher", function=None),
        Metric(name="energy", title="energy in the box", better="higher", function=None),
    )
}


def measure(trial: Trial, heatmap: Array, metrics: Sequence[str]) -> dict[str, float]:
    """Those of the metrics, names of `METRICS`, that need no boxes.

    Raises:
        InputError: the heatmap is not of the image's size.
    """
    if heatmap.shape != trial.image.shape[1:]:
        raise InputError(
            f"the heatmap is {list(heatmap.shape)} and the model's input {list(trial.image.shape[1:])} (height, "
            "width): pass the heatmap over the input"
        )
    found = {}
    for name in metrics:
        function = METRICS[name].function
        if function is not None:
            found[name] = function(trial, heatmap)
    return found


def blurred(image: Array) -> Array:
    """The image ``[C, H, W]`` without what the class could be told by: blurred by a Gaussian window.

    Its standard deviation is 5 pixels at 224 pixels (11 pixels wide there), as in RISE's own code, proportionally more
    in larger images, and no less in smaller ones. The image's border is mirrored.
    """
    for axis in (1, 2):
        image = _blurred_along(image, axis)
    return image


def _blurred_along(image: Array, axis: int) -> Array:
    side = image.shape[axis]
    deviation = _BLUR * max(1.0, max(image.shape[1:]) / 224)
    radius = round(deviation)
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    # The image and its mirror image, over and over: any radius finds a pixel.
    period = np.concatenate([np.arange(side), np.arange(side)[::-1]])
    total = np.zeros(image.shape, np.float64)
    for shift, weight in zip(range(-radius, radius + 1), window / window.sum(), strict=True):
        total += weight * image.take(period[(np.arange(side) + shift) % (2 * side)], axis=axis)
    return np.asarray(total.astype(np.float32))
