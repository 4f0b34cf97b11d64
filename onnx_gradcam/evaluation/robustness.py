"""Metrics of one heatmap alone, and those that explain again: a noisy image, another class, a mosaic.

Images, heatmaps and scores are as in `faithfulness`. A metric that cannot be computed for a trial is `None`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .faithfulness import Trial, average_drop, road_combined
from .flipping import pearson
from .similarity import ssim

__all__ = [
    "adcc",
    "arcc",
    "avg_sensitivity",
    "changes",
    "completeness",
    "complexity",
    "effective_complexity",
    "entropy",
    "focus",
    "gini",
    "lipschitz",
    "mosaic",
    "random_logit",
    "relative_stability",
    "sensitivity",
]

Array = npt.NDArray[Any]

_DRAWS: Final = 3
"""Noisy images: the maximum grows with them, so figures of other counts cannot be compared."""
_RADIUS: Final = 0.05
"""Uniform noise relative to the range of the image; in an image of range 4 it is Quantus' 0.2."""
_DEVIATION: Final = 0.025
"""Gaussian noise of the Lipschitz estimate relative to the range; Quantus' 0.1 in an image of range 4."""
_ARCC: Final = (20, 40, 60, 80)
_LEAST: Final = 1e-8
_VISIBLE: Final = 0.01
"""From this share of the largest value on, a pixel counts as relevant; as LATEC."""


def gini(trial: Trial, heatmap: Array) -> float:  # noqa: ARG001 - the model is not run
    """Sparsity: the Gini index of the heatmap's values, 0 if all are equal, near 1 if a few hold the whole sum.

    Hurley and Rickard 2009 (Comparing measures of sparsity), eq. 1; for explanations Chalasani et al. 2020. 0 for a
    blank heatmap.
    """
    values = np.sort(heatmap, axis=None).astype(np.float64)
    total = values.sum()
    if total <= 0:
        return 0.0
    ranks = np.arange(1, values.size + 1)
    return float(1 - 2 * np.sum(values / total * (values.size - ranks + 0.5) / values.size))


def complexity(trial: Trial, heatmap: Array) -> float:  # noqa: ARG001 - the model is not run
    """Entropy of the heatmap as a distribution over pixels, in nats, from 0 for a single pixel to ln(H * W).

    Bhatt et al. 2020 (Evaluating and aggregating feature-based model explanations), eq. 4. 0 for a blank heatmap.
    """
    return entropy(heatmap)


def entropy(heatmap: Array) -> float:
    """Entropy of a map's absolute values over their sum, in nats; 0 for a blank one."""
    values = np.abs(heatmap).reshape(-1).astype(np.float64)
    shares = values[values > 0] / max(float(values.sum()), np.finfo(np.float64).tiny)
    return float(-(shares * np.log(shares)).sum())


def effective_complexity(trial: Trial, heatmap: Array) -> float:  # noqa: ARG001 - the model is not run
    """The share of the pixels above a hundredth of the largest value; Nguyen and Martinez 2020, simplified."""
    return float((np.abs(heatmap) > _VISIBLE * np.abs(heatmap).max()).mean())


def sensitivity(trial: Trial, heatmap: Array) -> float | None:
    """The largest relative change of the heatmap among three images with uniform noise of 5 % of the range.

    Yeh et al. 2019 (On the (in)fidelity and sensitivity of explanations), definition 4, relative to the norm of the
    heatmap.
    """
    return _over(changes(trial, heatmap, _uniform(trial)), np.max)


def avg_sensitivity(trial: Trial, heatmap: Array) -> float | None:
    """The mean in place of the maximum of `sensitivity`."""
    return _over(changes(trial, heatmap, _uniform(trial)), np.mean)


def lipschitz(trial: Trial, heatmap: Array) -> float | None:
    """The largest change of the heatmap over the change of the image, of three images with Gaussian noise of 2.5 %.

    Alvarez-Melis and Jaakkola 2018 (On the robustness of interpretability methods), eq. 2. The heatmap is in [0, 1]
    and the image as the model receives it, so figures of models with other preprocessing cannot be compared.
    """
    width = _DEVIATION * float(np.ptp(trial.image))
    rng = trial.rng
    noises = [width * rng.standard_normal(trial.image.shape) for _ in range(_DRAWS)]
    relative = changes(trial, heatmap, noises)
    if relative is None:
        return None
    own = float(np.linalg.norm(heatmap))
    return float(max(change * own / np.linalg.norm(noise) for change, noise in zip(relative, noises, strict=True)))


def relative_stability(trial: Trial, heatmap: Array) -> float | None:
    """The largest relative change of the heatmap over the relative change of the image, pixel by pixel.

    Agarwal et al. 2022 (Rethinking stability for attribution-based explanations), eq. 2: relative input stability.
    Values below 1e-3 of the largest count as that much.
    """
    if trial.explain is None or not heatmap.any():
        return None
    image, ratios = trial.image, []
    for noise in _uniform(trial):
        (other,) = _explained(trial, [image + noise])
        ratios.append(_relative(heatmap, other) / max(_relative(image, image + noise), _LEAST))
    return float(max(ratios))


def _relative(before: Array, after: Array) -> float:
    size = np.abs(before)
    return float(np.linalg.norm((before - after) / np.maximum(size, 1e-3 * size.max())))


def changes(trial: Trial, heatmap: Array, noises: Iterable[Array]) -> list[float] | None:
    """How far the heatmap of the image with each noise is from its own, relative to its norm."""
    size = float(np.linalg.norm(heatmap))
    if trial.explain is None or size == 0:
        return None
    others = _explained(trial, (trial.image + noise for noise in noises))
    return [float(np.linalg.norm(heatmap - other)) / size for other in others]


def _uniform(trial: Trial) -> Iterator[Array]:
    radius, rng = _RADIUS * float(np.ptp(trial.image)), trial.rng
    return (rng.uniform(-radius, radius, trial.image.shape) for _ in range(_DRAWS))


def _over(values: list[float] | None, reduce: Callable[[list[float]], Any]) -> float | None:
    return None if values is None else float(reduce(values))


def _explained(trial: Trial, images: Iterable[Array], index: int | None = None) -> Iterator[Array]:
    """The heatmaps of some images, by a trial that can explain."""
    explain = trial.explain
    if explain is not None:
        for some in trial.batches(np.asarray(image, np.float32) for image in images):
            yield from explain(some, index)


def random_logit(trial: Trial, heatmap: Array) -> float | None:
    """Structural similarity of the heatmap and that of another, random class: 1 if the class makes no difference.

    Sixt et al. 2020 (When explanations lie: why many modified BP attributions fail), section 4.
    """
    if trial.explain is None or not trial.others:
        return None
    index = int(trial.rng.choice(trial.others))
    (other,) = _explained(trial, [trial.image], index)
    return ssim(heatmap, other)


def completeness(trial: Trial, heatmap: Array) -> float | None:  # noqa: ARG001 - of the attribution behind it
    """How far an attribution's sum is from the score less that of the input zero, relative to that difference.

    Sundararajan et al. 2017 (Axiomatic attribution for deep networks), proposition 1; 0 is complete. Only of methods
    with an attribution; the score is the one that is differentiated, not the probability.
    """
    if trial.gap is None:
        return None
    total, difference = trial.gap
    return abs(total - difference) / max(abs(difference), float(np.finfo(np.float32).tiny))


def focus(trial: Trial, heatmap: Array) -> float | None:  # noqa: ARG001 - of the mosaic's heatmap
    """The share of heat on the two images of the class in a mosaic with two images of other classes.

    Arias-Duart et al. 2022 (Focus! Rating XAI methods and finding biases), eq. 1; a half is chance. No annotation is
    needed. `None` if the images are all predicted to be of one class, and for detectors.
    """
    if trial.mosaic is None or trial.explain is None:
        return None
    image, own = trial.mosaic
    (heat,) = _explained(trial, [image])
    total = float(heat.sum())
    return float(heat[own].sum()) / total if total > 0 else 0.0


def mosaic(
    image: Array, alike: Sequence[Array], unlike: Sequence[Array], rng: np.random.Generator
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Four images at half their size in random order, and which pixels are of the class of the first.

    They are the image itself, one of `alike` (its mirror image if there is none) and two of `unlike`, ``[C, H, W]``.
    """
    second = alike[int(rng.integers(len(alike)))] if alike else image[:, :, ::-1]
    chosen = rng.choice(len(unlike), 2, replace=len(unlike) < 2)
    tiles = [(image, True), (second, True), *((unlike[int(i)], False) for i in chosen)]
    height, width = (size // 2 for size in image.shape[1:])
    whole, own = np.zeros_like(image), np.zeros(image.shape[1:], bool)
    for place, which in enumerate(rng.permutation(4)):
        tile, mine = tiles[which]
        top, left = place // 2 * height, place % 2 * width
        cells = tile[:, : 2 * height, : 2 * width].reshape(len(tile), height, 2, width, 2)
        whole[:, top : top + height, left : left + width] = cells.mean((2, 4))
        own[top : top + height, left : left + width] = mine
    return whole, own


def adcc(trial: Trial, heatmap: Array) -> float | None:
    """Harmonic mean of coherency, 1 - complexity (the heatmap's mean) and 1 - average drop.

    Poppi et al. 2021 (Revisiting the evaluation of class activation mapping for explainability), eq. 4. Coherency is
    (1 + Pearson) / 2 of the heatmap and that of the image times the heatmap.
    """
    return _harmonic(trial, heatmap, lambda: 1 - average_drop(trial, heatmap))


def arcc(trial: Trial, heatmap: Array) -> float | None:
    """As `adcc` with ROAD, twice `road` of four percentages and clipped to [0, 1], in place of the average drop.

    pytorch-grad-cam's metrics/arcc.py after 1.5.7.
    """
    return _harmonic(trial, heatmap, lambda: min(1.0, max(0.0, 2 * road_combined(trial, heatmap, _ARCC))))


def _harmonic(trial: Trial, heatmap: Array, third: Callable[[], float]) -> float | None:
    if trial.explain is None:
        return None
    (again,) = _explained(trial, [trial.image * heatmap])
    parts = ((1 + pearson(again.astype(np.float64), heatmap.astype(np.float64))) / 2, 1 - float(heatmap.mean()))
    return float(3 / sum(1 / max(part, _LEAST) for part in (*parts, third())))
