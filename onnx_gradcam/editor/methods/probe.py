"""What methods that run the model many times see of it: NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Probe", "chunks", "leading_projection"]

Array = npt.NDArray[np.floating[Any]]


class Probe(Protocol):
    """One image, one class, and a model that answers questions about them.

    Images are `float32 [M, C, H, W]` as the model gets them, whatever its own layout; every method runs at most
    `batch_size` rows at once, so a method hands over chunks and never all of its images together.

    Attributes:
        x: the image, `float32 [C, H, W]`.
        maps: its activation maps, `float32 [C, h, w]`.
        size: height and width of the image.
        rng: the source of random numbers; its seed is the user's.
        batch_size: rows to run at once.
    """

    x: Array
    size: tuple[int, int]
    rng: np.random.Generator
    batch_size: int

    @property
    def maps(self) -> Array: ...  # noqa: D102 - see the class

    def scores(self, images: Array) -> Array:
        """The explained score of each image, `[M]`."""

    def probabilities(self, images: Array) -> Array:
        """The probability of the class for each image, `[M]`: the softmax, or the sigmoid, of the scores."""

    def head(self, maps: Array) -> Array:
        """The explained score for activation maps `[M, C, h, w]` in place of the image's own, `[M]`."""

    def gradients(self, images: Array) -> Array:
        """The cotangent of each image, `[M, C, H, W]`."""

    def maps_and_cotangents(self, images: Array) -> tuple[Array, Array]:
        """The activation maps of each image and their cotangents, `[M, C, h, w]` each."""

    def total(self, maps: Array, weights: Array) -> Array:
        """The sum over channels of maps `[C, h, w]` times weights `[C]`, `[h, w]`, or their leading component.

        Every method that weighs activation maps ends with it, so that all of them can be smoothed.
        """

    def steps(self, total: int) -> Iterator[range]:
        """The numbers below `total` in chunks of `batch_size`; a progress bar moves with them."""


def leading_projection(maps: Array) -> Array:
    """Maps `[C, h, w]`, one point of C numbers a place, centred, on their leading principal component, `[h, w]`.

    Its sign is the one that makes the value of largest magnitude positive (Chung and Ying 2025, eq. 13).
    """
    rows = maps.reshape(len(maps), -1).T.astype(np.float64)
    left, sizes, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    projection: Array = (left[:, 0] * sizes[0]).reshape(maps.shape[1:])
    return projection if projection.max() >= -projection.min() else -projection


def chunks(numbers: Sequence[int] | range, size: int) -> Iterable[Sequence[int]]:
    """`numbers` in pieces of at most `size`."""
    return (numbers[start : start + size] for start in range(0, len(numbers), size))
