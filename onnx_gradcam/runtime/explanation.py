"""What comes out of an explanation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError
from onnx_gradcam.images.decoding import Placement
from onnx_gradcam.images.drawing import save_image, sheet
from onnx_gradcam.images.masks import Look, hot_box, hot_region
from onnx_gradcam.images.overlays import library_overlay

__all__ = ["ClassMap", "Drawing", "Explanation", "Target", "class_of", "method_sheet"]

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
class Drawing:
    """An RGB image, `uint8 [H, W, 3]`, or an RGBA one, `uint8 [H, W, 4]`."""

    pixels: npt.NDArray[np.uint8]

    def save(self, path: str | Path) -> None:
        """Write it in the format of the path's suffix.

        Raises:
            InputError: an unknown suffix, or a folder that cannot be written.
        """
        save_image(self.pixels, path)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model looked at in one image.

    Attributes:
        image: the image, `uint8 [H, W, 3]` RGB, as it was read.
        placement: which part of it the model saw.
        scores: the model's scores, one a class.
        labels: class names, or `None`.
        maps: one map for each explained class.
        preset: the conventions that it follows; overlays are drawn as its library draws them.
        one_layer: whether a heatmap follows from its `cam` alone, and not from several.
    """

    image: npt.NDArray[np.uint8]
    placement: Placement
    scores: Array
    labels: Sequence[str] | None
    maps: Sequence[ClassMap]
    preset: str = "default"
    one_layer: bool = True

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
        """A heatmap laid on the whole image: zero where the model did not look, as in the cut-off margins."""
        return self.placement.project(self.maps[which].heatmap)

    def region(
        self, which: int = 0, *, threshold: float = 0.5, top_percent: float | None = None
    ) -> npt.NDArray[np.bool_]:
        """Where the image is hot, bool `[H, W]`; see `onnx_gradcam.images.masks.hot_region`."""
        return hot_region(self._laid(which, Look()), threshold=threshold, top_percent=top_percent)

    def box(
        self, which: int = 0, *, threshold: float = 0.5, top_percent: float | None = None
    ) -> tuple[int, int, int, int] | None:
        """The box (x0, y0, x1, y1) of the largest connected hot region; `None` for a blank heatmap."""
        return hot_box(self.region(which, threshold=threshold, top_percent=top_percent))

    def overlay(self, which: int = 0, *, preset: str | None = None, **look: Any) -> Drawing:
        """The image with a heatmap over it.

        Args:
            which: of the maps.
            preset: draw it as the library of this preset does (`onnx_gradcam.images.overlays`); by default that of
                the explanation, unless a style, colours or an opacity are asked for.
            look: fields of `onnx_gradcam.images.masks.Look`: `style`, `colormap`, `opacity`, `threshold`,
                `top_percent`.

        Raises:
            InputError: there is no such preset, style or colour map, or a number is out of its range.
        """
        shown, library = Look(**look), self._library(preset, look)
        if library != "default":
            return Drawing(self._drawn(which, library))
        return Drawing(shown.draw(self.image, self._laid(which, shown)))

    def sheet(self, *, preset: str | None = None, **look: Any) -> Drawing:
        """The image, and beside it one panel for each explained class with its name and score.

        Args:
            preset: as for `overlay`.
            look: as for `overlay`.

        Raises:
            InputError: as `overlay`, and for the style `alpha`, which has no photo beside it.
        """
        return method_sheet({"": self}, preset=preset, **look)

    def _library(self, preset: str | None, look: Mapping[str, Any]) -> str:
        """The preset whose library draws; `default` for what `look` says."""
        own = look.get("style", "overlay") != "overlay" or not {"colormap", "opacity"}.isdisjoint(look)
        if preset is None:
            return "default" if own else self.preset
        if own and preset != "default":
            raise InputError(
                "a preset's overlay has its own colours: leave out the preset, or style, colour map and opacity"
            )
        return preset

    def _drawn(self, which: int, library: str) -> npt.NDArray[np.uint8]:
        found = self.maps[which]
        cam = found.cam if self.one_layer else found.heatmap
        return library_overlay(library, self.image, found.heatmap, cam, self.placement)

    def _laid(self, which: int, look: Look) -> npt.NDArray[np.float32]:
        """What `look` shows of a map, on the whole image; NaN where the model did not look."""
        found = self.maps[which]
        if look.style != "signed":
            return self.placement.project(found.heatmap, np.nan)
        return self.placement.project(_symmetric(found.cam, spread=found.attribution is not None), np.nan)


def method_sheet(explanations: Mapping[str, Explanation], *, preset: str | None = None, **look: Any) -> Drawing:
    """One image, and beside it what several methods make of it: one panel for each method and class.

    With several classes each method has a row of its own.

    Args:
        explanations: of one image and the same classes, by the names of their methods.
        preset: as for `Explanation.overlay`.
        look: as for `Explanation.overlay`.

    Raises:
        InputError: as `Explanation.sheet`.
    """
    shown = Look(**look)
    if shown.style == "alpha":
        raise InputError("a sheet is not transparent: take one overlay, of one class and method, for the style alpha")
    panels, ends = [], shown.ends
    for name, explanation in explanations.items():
        library = explanation._library(preset, look)  # noqa: SLF001
        for i, m in enumerate(explanation.maps):
            plain = library == "default"
            panel = explanation._laid(i, shown) if plain else explanation._drawn(i, library)  # noqa: SLF001
            panels.append((f"{name} {m.target.label} {m.target.score:.3g}".lstrip(), panel))
        if library != "default":
            ends = None
    first = next(iter(explanations.values()))
    row = len(first.maps) if len(explanations) > 1 and len(first.maps) > 1 else None
    return Drawing(sheet(first.image, panels, colormap=shown.colours, draw=shown.draw, ends=ends, row=row))


def _symmetric(cam: npt.NDArray[np.float32], *, spread: bool) -> npt.NDArray[np.float32]:
    """A signed map in [-1, 1], zero staying zero.

    Args:
        cam: raw map.
        spread: a few values of an attribution are far larger than all others, so that the largest ones, which make up
            2 % of the sum of the magnitudes, count as one (captum 0.9, `visualize_image_attr`, its outliers).
    """
    sizes = np.sort(np.abs(cam), axis=None).astype(np.float64)
    whole = np.cumsum(sizes)
    largest = float(sizes[np.searchsorted(whole, 0.98 * whole[-1])] if spread else sizes[-1])
    return np.clip(cam / largest, -1, 1) if largest > 0 else cam


def class_of(index: int, scores: Array, labels: Sequence[str] | None) -> Target:
    """The class of an index, with its name where there are names."""
    label = labels[index] if labels is not None and index < len(labels) else f"class {index}"
    return Target(index, label, float(scores[index]))
