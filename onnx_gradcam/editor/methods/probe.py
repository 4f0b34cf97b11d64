"""The interface between methods that run the model many times and the code that runs it, in NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Probe", "chunks", "leading_projection"]

Array = npt.NDArray[np.floating[Any]]


class Probe(Protocol):
    """One image, one class, and the functions of the model that a method may evaluate.

    Images are `float32 [M, C, H, W]` as the model receives them, whatever its own layout. A method passes chunks of at
    most `batch_size` rows, never all of its images at once.

    Attributes:
        x: the image, `float32 [C, H, W]`.
        maps: its activation maps, `float32 [C, h, w]`.
        size: height and width of the image, or the spatial sizes of another input.
        box: top, left, bottom and right of the part of the image that the maps cover, in pixels.
        rng: the random number generator, seeded by the user.
        batch_size: the most rows to run at once.
        settings: the options that the method takes, by the names of their fields; see `Method.takes`.
    """

    x: Array
    size: tuple[int, ...]
    box: tuple[int, ...]
    rng: np.random.Generator
    batch_size: int
    settings: Mapping[str, Any]

    @property
    def maps(self) -> Array: ...  # noqa: D102 - see the class

    def at(self, image: Array) -> Probe:
        """A probe of another image `[C, H, W]`, with the same random numbers ahead."""

    @property
    def baselines(self) -> Sequence[Array]:
        """The images that stand for no information, `float32 [C, H, W]` each."""

    def scores(self, images: Array) -> Array:
        """The explained score of each image, `[M]`."""

    def probabilities(self, images: Array) -> Array:
        """The probability of the class for each image, `[M]`: the softmax, or the sigmoid, of the scores."""

    def similarities(self, images: Array) -> Array:
        """How like the explained box the most alike box of each image is, `[M]` from 0 to 1; of detectors only."""

    def box_scores(self, images: Array) -> Array:
        """The probability of the explained box, the same row of the table, in each image, `[M]`; of detectors only."""

    def head(self, maps: Array) -> Array:
        """The explained score for activation maps `[M, C, h, w]` instead of those of the image, `[M]`."""

    def gradients(self, images: Array) -> Array:
        """The gradient of the score with respect to each image, `[M, C, H, W]`."""

    def gradients_and_scores(self, images: Array) -> tuple[Array, Array]:
        """The gradient of the score with respect to each image, `[M, C, H, W]`, and the score, `[M]`, of one pass."""

    def maps_and_cotangents(self, images: Array) -> tuple[Array, Array]:
        """The activation maps of each image, and the gradient with respect to them, `[M, C, h, w]` each."""

    def total(self, maps: Array, weights: Array) -> Array:
        """The sum of maps `[C, h, w]` times weights `[C]`, with eigen smoothing their leading component, `[h, w]`."""

    def steps(self, total: int) -> Iterator[range]:
        """The numbers below `total` in chunks of `batch_size`; each chunk advances the progress bar."""


def leading_projection(maps: Array) -> Array:
    """Maps `[C, h, w]`, one point of C values per position, projected on their leading component, `[h, w]`.

    Its sign makes the value of largest magnitude positive (Chung and Ying 2025, eq. 13).
    """
    rows = maps.reshape(len(maps), -1).T.astype(np.float64)
    left, sizes, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    projection: Array = (left[:, 0] * sizes[0]).reshape(maps.shape[1:])
    return projection if projection.max() >= -projection.min() else -projection


def chunks(numbers: Sequence[int] | range, size: int) -> Iterable[Sequence[int]]:
    """Split `numbers` into chunks of at most `size`."""
    return (numbers[start : start + size] for start in range(0, len(numbers), size))
