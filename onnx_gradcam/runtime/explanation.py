"""What comes out of an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .image import Placement
from .render import overlay, save_image, sheet

__all__ = ["ClassMap", "Explanation", "Picture", "Target", "class_of"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Target:
    """A class: its index, its name and the model's score for it.

    The score is what the model itself puts out: a logit, a probability, whatever its last operator gives.
    """

    index: int
    label: str
    score: float


@dataclass(frozen=True, eq=False)
class ClassMap:
    """The explanation of one class.

    Attributes:
        target: the class.
        heatmap: `float32 [H, W]` in [0, 1], over the model's input.
        cam: `float32 [h, w]`, the raw signed map at the layer's resolution.
        attribution: a number for every value of the model's input, with the input's axes; `None` for methods that
            look at a layer.
    """

    target: Target
    heatmap: npt.NDArray[np.float32]
    cam: npt.NDArray[np.float32]
    attribution: Array | None = None


@dataclass(frozen=True, eq=False)
class Picture:
    """An RGB picture, `uint8 [H, W, 3]`."""

    pixels: npt.NDArray[np.uint8]

    def save(self, path: str | Path) -> None:
        """Write it in the format of the path's suffix.

        Raises:
            ImageError: an unknown suffix, or a folder that cannot be written.
        """
        save_image(self.pixels, path)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model looked at in one picture.

    Attributes:
        image: the picture, `uint8 [H, W, 3]` RGB, as it was read.
        placement: which part of it the model saw.
        scores: the model's scores, one a class.
        labels: class names, or `None`.
        maps: one map for each explained class.
    """

    image: npt.NDArray[np.uint8]
    placement: Placement
    scores: Array
    labels: Sequence[str] | None
    maps: Sequence[ClassMap]

    @property
    def heatmap(self) -> npt.NDArray[np.float32]:
        """The (first) heatmap, over the model's input."""
        return self.maps[0].heatmap

    @property
    def cam(self) -> npt.NDArray[np.float32]:
        """The (first) raw map."""
        return self.maps[0].cam

    @property
    def target(self) -> Target:
        """The (first) explained class."""
        return self.maps[0].target

    def top(self, count: int = 5) -> list[Target]:
        """The classes with the highest scores."""
        best = np.argsort(-self.scores.astype(np.float64), kind="stable")[:count]
        return [class_of(int(i), self.scores, self.labels) for i in best]

    def heatmap_on_image(self, which: int = 0) -> npt.NDArray[np.float32]:
        """A heatmap laid on the whole picture: zero where the model did not look, as in the cut-off margins."""
        return self.placement.project(self.maps[which].heatmap)

    def overlay(self, which: int = 0, *, colormap: str = "jet", opacity: float = 0.5) -> Picture:
        """The picture with a heatmap over it."""
        return Picture(overlay(self.image, self.heatmap_on_image(which), colormap=colormap, opacity=opacity))

    def sheet(self, *, colormap: str = "jet", opacity: float = 0.5) -> Picture:
        """The picture, and beside it one overlay for each explained class with its name and score."""
        panels = [(f"{m.target.label} {m.target.score:.3g}", self.heatmap_on_image(i)) for i, m in enumerate(self.maps)]
        return Picture(sheet(self.image, panels, colormap=colormap, opacity=opacity))


def class_of(index: int, scores: Array, labels: Sequence[str] | None) -> Target:
    """The class of an index, with its name where there are names."""
    label = labels[index] if labels is not None and index < len(labels) else f"class {index}"
    return Target(index, label, float(scores[index]))
