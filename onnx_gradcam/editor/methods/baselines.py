"""Baselines: images that stand for no information, which path methods start from and games put in place of a part.

Their words are in `onnx_gradcam.options.BASELINES`. Two of them and files need the model's preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from onnx_gradcam.errors import InputError
from onnx_gradcam.graph.builder import Builder, Value

from .probe import Array

__all__ = ["IN_GRAPH", "baseline", "blurred", "gaussian"]

_LEVELS = {"black": 0, "white": 255}
"""Images of one level, whatever the preprocessing makes of it."""


def baseline(text: str, x: Array, prepared: Callable[[Path | int], Array]) -> Array:
    """An image that stands for no information.

    Args:
        text: a word of `onnx_gradcam.options.BASELINES`, or the name of a file.
        x: the image, `float32 [C, *spatial]`.
        prepared: makes the model's input from a file, or from an image of one level from 0 to 255.

    Returns:
        The baseline, `float32 [C, *spatial]`.

    Raises:
        InputError: the file does not fit the image, the model carries no preprocessing, or only images have a blur.

    Example::

        baseline("mean", x, prepared)
    """
    word, _, number = text.partition(":")
    if word in _MADE:
        return np.broadcast_to(_MADE[word](x, number), x.shape).astype(np.float32)
    made = prepared(_LEVELS.get(word, Path(text)))
    if made.shape != x.shape:
        raise InputError(
            f"the baseline {text!r} is {list(made.shape)} and the image {list(x.shape)}; give one of the same size"
        )
    return made


def _uniform(x: Array, seed: str) -> Array:
    drawn: Array = np.random.default_rng(int(seed)).uniform(x.min(), x.max(), x.shape)
    return drawn


def _blurred_by(x: Array, width: str) -> Array:
    if x.ndim != 3:
        raise InputError("the baseline blur is for images; take mean or a .npy file")
    return blurred(x, float(width))


_MADE: dict[str, Callable[[Array, str], Array]] = {
    "zero": lambda x, _: np.zeros_like(x),
    "darkest": lambda x, _: x.min(keepdims=True),
    "lightest": lambda x, _: x.max(keepdims=True),
    "mean": lambda x, _: x.mean(tuple(range(1, x.ndim)), keepdims=True),
    "uniform": _uniform,
    "blur": _blurred_by,
}
"""The baselines that are made from the image alone."""


IN_GRAPH: dict[str, Callable[[Builder, Value], Value]] = {
    "zero": lambda t, x: t.full_like(x, 0.0),
    "darkest": lambda t, x: t.reduce("ReduceMin", x, range(1, x.rank)),
    "lightest": lambda t, x: t.reduce("ReduceMax", x, range(1, x.rank)),
    "mean": lambda t, x: t.mean(x, range(2, x.rank)),
}
"""The same as parts of a model, from the image `[N, C, *spatial]`; sizes may be one."""


def blurred(image: Array, width: float) -> Array:
    """An image `[C, H, W]` with a Gaussian blur of `width` pixels, four widths wide; beyond the border it is zero."""
    rows, columns = (gaussian(size, width) for size in image.shape[1:])
    smooth: Array = rows @ image.astype(np.float64) @ columns.T
    return smooth


def gaussian(size: int, width: float, *, mirrored: bool = False) -> Array:
    """A Gaussian blur along one axis, cut off at four widths, as a matrix `[size, size]`.

    Beyond the border is zero, or the mirrored image: SciPy's `constant` and `reflect`.
    """
    if width == 0:
        return np.eye(size)
    radius = int(4 * width + 0.5)
    distance = np.arange(-radius, radius + 1)
    taps = np.exp(-0.5 * (distance / width) ** 2)
    taps /= taps.sum()
    read = np.arange(size)[:, None] + distance
    if mirrored:
        folded = read % (2 * size)
        read = np.minimum(folded, 2 * size - 1 - folded)
    matrix = np.zeros((size, size))
    row, tap = np.nonzero((read >= 0) & (read < size))
    np.add.at(matrix, (row, read[row, tap]), taps[tap])
    return matrix
