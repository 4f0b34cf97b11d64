"""The result of an explanation: maps, scores and drawings of one image."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError
from onnx_gradcam.images.decoding import Placement
from onnx_gradcam.images.drawing import draw_boxes, encode_image, save_image, sheet
from onnx_gradcam.images.masks import Look, LookChoices, hot_box, hot_region
from onnx_gradcam.images.overlays import OVERLAYS, library_overlay
from onnx_gradcam.images.views import View

from .answers import Box, Target, class_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ClassMap", "Drawing", "Explanation", "library_of", "method_sheet"]

Array = npt.NDArray[Any]

_HIDDEN = 0.2
"""The share of the heat beside the image from which on it is said."""


@dataclass(frozen=True, eq=False)
class ClassMap:
    """The explanation of one class.

    Attributes:
        target: the class.
        heatmap: `float32 [H, W]` in [0, 1], over the model's input.
        cam: `float32 [h, w]`, the raw signed map at the layer's resolution.
        attribution: one value for each value of the model's input, with the input's axes; `None` for methods that
            explain by a layer.
        completeness: what is left of the score when the sum of the image times its gradient and what biases contribute
            are taken away, near 0; `None` where the gradient is not made complete (`modifier="libra"`).
        boxes: for a detector, the box that is explained, or the several whose maps are summed.
    """

    target: Target
    heatmap: npt.NDArray[np.float32]
    cam: npt.NDArray[np.float32]
    attribution: Array | None = None
    boxes: Sequence[Box] = ()
    completeness: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Drawing:
    """An RGB image, `uint8 [H, W, 3]`, or an RGBA one, `uint8 [H, W, 4]`."""

    pixels: npt.NDArray[np.uint8]

    def save(self, path: str | Path) -> None:
        """Write the image in the format of the path's suffix.

        Raises:
            InputError: the suffix is unknown, or the file cannot be written.
        """
        save_image(self.pixels, path)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:  # noqa: FBT001 - NumPy's
        """The pixels, so that `np.asarray` and Matplotlib's `imshow` take a drawing."""
        return self.pixels.astype(dtype or np.uint8, copy=bool(copy))

    def __repr__(self) -> str:
        """One line."""
        return f"<Drawing {self.pixels.shape[0]}x{self.pixels.shape[1]}>"

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return encode_image(self.pixels, ".png")


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What a model looked at in one image; a notebook shows its `sheet`.

    Attributes:
        image: the image, `uint8 [H, W, 3]` RGB, as it was read.
        placement: which part of the image the model sees.
        scores: the model's scores, one for each class.
        labels: class names, or `None`.
        maps: one map for each explained class.
        preset: the conventions that the maps follow; overlays are drawn as its library draws them.
        one_layer: whether a heatmap is computed from its `cam` alone.
        covered: top, left, bottom and right of the part of the model's input that the layer's maps cover, in pixels of
            the heatmap; `None` for the whole input.
        boxes: for a detector, the list of the boxes in the image, the surest first.
        probabilities: one for each class, `None` where the model does not tell; see `Target`.
        notes: what you should know about the choice of boxes.
        probabilities: the probability of every class, `float64 [K]`; `None` where the scores have none.
        view: how an array (a signal, a volume, a clip) and its maps, `[*spatial]`, are drawn; `None` for an image.

    Example::

        explanation = Explainer("model.onnx", preprocess="torchvision")("photo.jpg", target=["tabby", "tiger cat"])
        explanation.heatmap  # of the first class, float32 [H, W] in [0, 1], over the model's input
        explanation.heatmap_on_image(1)  # of the second class, over the whole image
        explanation.sheet().save("sheet.png")
    """

    image: npt.NDArray[np.uint8]
    placement: Placement
    scores: Array
    labels: Sequence[str] | None
    maps: Sequence[ClassMap]
    preset: str = "default"
    one_layer: bool = True
    covered: tuple[int, int, int, int] | None = None
    boxes: Sequence[Box] = ()
    notes: Sequence[str] = ()
    probabilities: npt.NDArray[np.float64] | None = None
    view: View | None = None

    def __repr__(self) -> str:
        """One line: what is explained, and sizes."""
        named = ", ".join(_caption(m) for m in self.maps[:3])
        more = f" and {len(self.maps) - 3} more" if len(self.maps) > 3 else ""
        sizes = "x".join(map(str, self.heatmap.shape)), "x".join(map(str, self.image.shape[:2]))
        return f"<Explanation of {named}{more}: heatmap {sizes[0]}, image {sizes[1]}>"

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return encode_image(self.sheet().pixels, ".png")

    def plot(self, ax: Any = None, which: int = 0, **look: Unpack[LookChoices]) -> Any:
        """Draw the image with a heatmap over it into axes of Matplotlib, and return these.

        Args:
            ax: the axes; by default the current ones.
            which: index of the map.
            look: as for `overlay`.

        Raises:
            InputError: Matplotlib is not installed, or as for `overlay`.

        Example::

            figure, (left, right) = plt.subplots(1, 2)
            explainer("photo.jpg", "cat").plot(left)
            explainer("photo.jpg", "dog").plot(right)
        """
        if ax is None:
            try:
                ax = importlib.import_module("matplotlib.pyplot").gca()
            except ImportError as exc:
                raise InputError("there is no Matplotlib to plot with; install it, or use `overlay`") from exc
        ax.imshow(np.asarray(self.overlay(which, **look)))
        ax.set_title(_caption(self.maps[which]))
        ax.set_axis_off()
        return ax

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

    @property
    def warnings(self) -> list[str]:
        """What you should know about the maps, as of which boxes they are, and which are blank or hot in padding."""
        blank = [
            f"the heatmap of {m.target.label!r} is zero everywhere: nothing in the image speaks for this class"
            for m in self.maps
            if not np.any(m.heatmap)
        ]
        hidden = [
            f"{100 * share:.0f} % of the heat of {m.target.label!r} lies in the padding around the image, where it is "
            "not drawn"
            for m in self.maps
            if self.view is None and (share := self.placement.beside(m.heatmap)) >= _HIDDEN
        ]
        left_out = [self.view.note] if self.view is not None and self.view.note else []
        return [*self.notes, *blank, *hidden, *left_out]

    def arrays(self) -> dict[str, Any]:
        """All maps: `heatmap` [classes, H, W], `cam` [classes, h, w], and the `classes` with their `scores`.

        Those of a detector have the indices of their `boxes` too, the surest one's where several are summed.
        """
        return {
            "heatmap": np.stack([m.heatmap for m in self.maps]),
            "cam": np.stack([m.cam for m in self.maps]),
            "classes": np.array([m.target.index for m in self.maps], np.int64),
            "scores": np.array([m.target.score for m in self.maps], np.float64),
            **({"boxes": np.array([m.boxes[0].index for m in self.maps], np.int64)} if self._of_boxes else {}),
        }

    @property
    def _of_boxes(self) -> bool:
        return all(m.boxes for m in self.maps)

    def top(self, count: int = 5) -> list[Target]:
        """The classes with the highest scores."""
        best = np.argsort(-self.scores.astype(np.float64), kind="stable")[:count]
        return [class_of(int(i), self.scores, self.labels, self.probabilities) for i in best]

    def heatmap_on_image(self, which: int = 0) -> npt.NDArray[np.float32]:
        """A heatmap over the whole image, `float32 [H, W]`: zero where the model does not see it."""
        heatmap = self.maps[which].heatmap
        return np.nan_to_num(self.view.flat(heatmap)) if self.view is not None else self.placement.project(heatmap)

    def region(
        self, which: int = 0, *, threshold: float = 0.5, top_percent: float | None = None
    ) -> npt.NDArray[np.bool_]:
        """The hot region of a map, `bool [H, W]`; see `onnx_gradcam.images.masks.hot_region`."""
        return hot_region(self.shown(which, Look()), threshold=threshold, top_percent=top_percent)

    def box(
        self, which: int = 0, *, threshold: float = 0.5, top_percent: float | None = None
    ) -> tuple[int, int, int, int] | None:
        """The bounding box (x0, y0, x1, y1) of the largest connected hot region; `None` for a blank heatmap."""
        return hot_box(self.region(which, threshold=threshold, top_percent=top_percent))

    def overlay(self, which: int = 0, *, preset: str | None = None, **look: Unpack[LookChoices]) -> Drawing:
        """The image with a heatmap over it, and around what is explained the box of a detector.

        Args:
            which: index of the map.
            preset: draw as the library of this preset does (`onnx_gradcam.images.overlays`); by default the preset of
                the explanation, unless you choose a style, a colour map or an opacity.
            look: fields of `onnx_gradcam.images.masks.Look`: `style`, by default `grey` for attributions of single
                pixels and `overlay` for other maps, `colormap`, `opacity`, `threshold`, `top_percent`.

        Raises:
            InputError: there is no such preset, style or colour map, or a number is out of range.
        """
        drawn_as, library = self.look(**look), library_of(preset, look, self.preset)
        if library is not None:
            return Drawing(self.boxed(self.drawn_by(library, which), which))
        drawn = drawn_as.draw(self.image, self.shown(which, drawn_as))
        return Drawing(drawn if drawn_as.style == "alpha" else self.boxed(drawn, which))

    def look(self, **choices: Unpack[LookChoices]) -> Look:
        """How the maps are shown: as chosen, else in the style that suits them.

        Attributions of single pixels hide in the image that they would be laid over, unless its opacity is chosen.
        """
        fine = "opacity" not in choices and all(m.attribution is not None for m in self.maps)
        choices.setdefault("style", "grey" if fine else "overlay")
        return Look(**choices)

    def boxed(self, drawn: npt.NDArray[np.uint8], which: int) -> npt.NDArray[np.uint8]:
        """A drawing of the size of the image with the boxes of a map, each with its class and score."""
        placed = [(box.xyxy, box.caption) for box in self.maps[which].boxes if box.xyxy is not None]
        return draw_boxes(drawn, placed) if placed else drawn

    def panel(self, which: int, look: Look, library: str | None) -> Array:
        """A map as a sheet shows it: `[H, W]`, to be drawn in its size, or drawn already, uint8 `[H, W, 3]`."""
        placed = any(box.xyxy is not None for box in self.maps[which].boxes)
        if library is not None:
            return self.boxed(self.drawn_by(library, which), which)
        values = self.shown(which, look)
        return self.boxed(look.draw(self.image, values), which) if placed or not look.over_image else values

    def numbered(self) -> npt.NDArray[np.uint8]:
        """The image with the boxes of all maps, each with its number in the list, its class and score."""
        boxes = {box.index: box for m in self.maps for box in m.boxes}
        placed = [
            (box.xyxy, box.caption if box.n is None else f"{box.n} {box.caption}")
            for box in boxes.values()
            if box.xyxy is not None
        ]
        return draw_boxes(self.image, placed) if placed else self.image

    def sheet(self, *, preset: str | None = None, **look: Unpack[LookChoices]) -> Drawing:
        """The image and, beside it, one panel for each explained class with its name and score.

        Args:
            preset: as for `overlay`.
            look: as for `overlay`.

        Raises:
            InputError: as for `overlay`, or the style is `alpha`, which has no image beside it.
        """
        return method_sheet({"": self}, preset=preset, **look)

    def drawn_by(self, library: str, which: int = 0) -> npt.NDArray[np.uint8]:
        """The overlay, `uint8 [H, W, 3]`, as the library of a preset draws it.

        Raises:
            InputError: there is no such preset.
        """
        explained = self.maps[which]
        cam = explained.cam if self.one_layer else explained.heatmap
        if self.covered is None:
            return library_overlay(
                library, self.image, explained.heatmap, cam, self.placement, attribution=explained.attribution
            )
        top, left, bottom, right = self.covered
        height, width = explained.heatmap.shape
        if min(top, left) < 0 or bottom > height or right > width:
            return library_overlay(library, self.image, self.heatmap_on_image(which), self._seen.project(cam))
        heatmap = explained.heatmap[top:bottom, left:right]
        return library_overlay(library, self.image, heatmap, cam if self.one_layer else heatmap, self._seen)

    def shown(self, which: int, look: Look) -> npt.NDArray[np.float32]:
        """The values of a map that a look shows, over the whole image `[H, W]`; NaN where the model does not see it."""
        explained = self.maps[which]
        if self.view is not None:
            if look.style == "signed":
                return self.view.flat(_symmetric(explained.cam, spread=explained.attribution is not None))
            return self.view.flat(explained.heatmap if look.over_image else _clipped(explained.heatmap))
        if look.style == "signed":
            return self._seen.project(_symmetric(explained.cam, spread=explained.attribution is not None), np.nan)
        values = explained.heatmap if look.over_image else _clipped(explained.heatmap)
        shown = self.placement.project(values, np.nan)
        if self.covered is not None:
            shown[np.isnan(self._seen.project(explained.heatmap, np.nan))] = np.nan
        return shown

    @property
    def _seen(self) -> Placement:
        """The part of the image that the layer's maps cover."""
        if self.covered is None:
            return self.placement
        height, width = self.heatmap.shape
        top, left, bottom, right = self.covered
        return self.placement.part(top / height, left / width, bottom / height, right / width)


def library_of(preset: str | None, look: Mapping[str, Any], default: str) -> str | None:
    """The preset whose library draws an overlay, `default` if none was chosen; `None` if it is drawn as `look` says."""
    chosen = look.get("style", "overlay") != "overlay" or not {"colormap", "opacity"}.isdisjoint(look)
    if preset is None:
        # A library that returns maps and draws none has no overlay.
        preset = "default" if chosen or default not in OVERLAYS else default
    elif chosen and preset != "default":
        raise InputError(
            "the overlay of a preset has its own colours; leave out the preset, or style, colour map and opacity"
        )
    return None if preset == "default" else preset


def method_sheet(
    explanations: Mapping[str, Explanation], *, preset: str | None = None, **look: Unpack[LookChoices]
) -> Drawing:
    """The image and, beside it, one panel for each method and class; with several classes a row for each method.

    Args:
        explanations: explanations of the same image, by the names that the sheet shows.
        preset: the library that draws the overlays; by default that of each explanation.
        look: fields of `onnx_gradcam.images.masks.Look`.

    Returns:
        The sheet, `uint8 [H, W, 3]`.

    Raises:
        InputError: as for `Explanation.sheet`.

    Example::

        explanations = {name: Explainer("model.onnx", method=name)("photo.jpg") for name in ("gradcam", "layercam")}
        method_sheet(explanations).save("methods.png")
    """
    looks = {name: explanation.look(**look) for name, explanation in explanations.items()}
    if any(drawn_as.style == "alpha" for drawn_as in looks.values()):
        raise InputError("a sheet is not transparent; for the style alpha draw one overlay, of one class and method")
    panels: list[tuple[str, Array]] = []
    # One colour bar: of the maps that are laid over the image, where there are both kinds.
    drawn_as = next((one for one in looks.values() if one.over_image), next(iter(looks.values())))
    ends = drawn_as.ends
    for name, explanation in explanations.items():
        library = library_of(preset, look, explanation.preset)
        for i, m in enumerate(explanation.maps):
            panels.append((f"{name} {_caption(m)}".lstrip(), explanation.panel(i, looks[name], library)))
        if library is not None:
            ends = None
    first = next(iter(explanations.values()))
    row = len(first.maps) if len(explanations) > 1 and len(first.maps) > 1 else None
    image = first.numbered() if len(first.maps) > 1 else first.image
    caption = "photo" if first.view is None else "input"
    colours = drawn_as.colours
    return Drawing(sheet(image, panels, first=caption, colormap=colours, draw=drawn_as.draw, ends=ends, row=row))


def _caption(m: ClassMap) -> str:
    """What is explained, and its probability or score; a map that shows nothing is said to be blank."""
    numbered = m.boxes[0].n if m.boxes else None
    count = f"{len(m.boxes)} x " if len(m.boxes) > 1 else "" if numbered is None else f"{numbered} "
    return f"{'' if np.any(m.heatmap) else 'blank map: '}{count}{m.target.caption}"


def _clipped(heatmap: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A heatmap in [0, 1] whose brightest percent of the pixels is 1, as a few are far brighter than all others.

    PAIR's saliency library does the same (`VisualizeImageGrayscale`, percentile 99).
    """
    largest = float(np.percentile(heatmap, 99)) or float(heatmap.max(initial=0))
    return np.clip(heatmap / np.float32(largest), 0, 1) if largest > 0 else heatmap


def _symmetric(cam: npt.NDArray[np.float32], *, spread: bool) -> npt.NDArray[np.float32]:
    """A signed map in [-1, 1], zero staying zero.

    With `spread`, outliers are ignored, since a few values of an attribution are far larger than all others: the
    largest ones, 2 % of the sum of the magnitudes, become 1 (captum 0.9, `visualize_image_attr`).
    """
    magnitudes = np.sort(np.abs(cam), axis=None).astype(np.float64)
    sums = np.cumsum(magnitudes)
    largest = float(magnitudes[np.searchsorted(sums, 0.98 * sums[-1])] if spread else magnitudes[-1])
    return np.clip(cam / largest, -1, 1) if largest > 0 else cam
