"""Comparison of an explained model with the original: both have to give the same outputs on a random input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import ModelError

from .session import InputInfo

__all__ = ["Difference", "Precision", "check_agreement", "differences", "random_feeds"]

Precision = Literal["float32", "float16", "quantised"]
"""The lowest precision in a model."""

# Half precision and 8-bit steps may round differently if an extra output keeps ONNX Runtime from fusing nodes.
_TOLERANCES: dict[Precision, float] = {"float32": 1e-5, "float16": 2e-3, "quantised": 2e-2}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Difference:
    """The difference between an output of the explained model and of the original.

    Attributes:
        output: the name of the output.
        relative: the largest difference, relative to the original's largest value; infinite if only one of the two is
            NaN or infinite, or if the shapes differ.
    """

    output: str
    relative: float


_LARGEST_INPUT = 2**28
"""Numbers in the largest input that is tried; one of 32 images of 1600x1600 is within it."""


def random_feeds(inputs: Sequence[InputInfo], shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Array]:
    """A random value for each input: normal for floats, the full range for 8-bit integers, else zero."""
    for info in inputs:
        if info.dtype in {"string", "bfloat16"} or "(" in info.dtype:
            raise ModelError(f"the input {info.name!r} takes {info.dtype}, for which there are no random numbers")
        if math.prod(shapes[info.name]) > _LARGEST_INPUT:
            sizes = " x ".join(map(str, shapes[info.name]))
            raise ModelError(f"the input {info.name!r} of {sizes} is too large to be tried")
    rng = np.random.default_rng(seed)
    return {i.name: _random(rng, np.dtype(i.dtype), tuple(shapes[i.name])) for i in inputs}


def differences(original: Mapping[str, Array], explained: Mapping[str, Array]) -> list[Difference]:
    """The difference of each output of the original, none of which the explained model may lack."""
    compared = []
    for name, expected in original.items():
        if name not in explained:
            raise ModelError(f"the explained model has lost the output {name!r}; this is a bug, please report it")
        compared.append(Difference(name, _relative(expected, explained[name])))
    return compared


def check_agreement(
    original: Mapping[str, Array], explained: Mapping[str, Array], precision: Precision = "float32"
) -> float:
    """Check the outputs of the explained model against those of the original; the largest relative difference.

    Floats may differ by 1e-5 of the output's largest value in a float32 model, by 2e-3 in a float16 one and by 2e-2 in
    a quantised one, where 8-bit outputs may too; anything else has to be equal.

    Raises:
        ModelError: they differ.
    """
    worst = 0.0
    for difference in differences(original, explained):
        dtype = original[difference.output].dtype
        allowed = _TOLERANCES[precision] if dtype.kind == "f" or dtype.itemsize == 1 else 0.0
        if not difference.relative <= allowed:
            raise ModelError(
                f"the explained model's output {difference.output!r} differs from the original's by "
                f"{difference.relative:.1e} of its largest value ({allowed:.0e} is allowed)"
            )
        worst = max(worst, difference.relative)
    return worst


def _random(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype in (np.uint8, np.int8):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    # Larger integers are indices, lengths or switches; only zero is always valid.
    return np.zeros(shape, dtype)


def _relative(expected: Array, actual: Array) -> float:
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    if expected.dtype.kind not in "fiu":
        return 0.0 if np.array_equal(expected, actual) else float("inf")
    wide, other = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(wide)
    if not np.array_equal(finite, np.isfinite(other)) or not np.array_equal(
        wide[~finite], other[~finite], equal_nan=True
    ):
        return float("inf")
    wide, other = wide[finite], other[finite]
    largest = max(float(np.abs(wide).max(initial=0)), float(np.finfo(np.float32).tiny))
    return float(np.abs(wide - other).max(initial=0)) / largest
