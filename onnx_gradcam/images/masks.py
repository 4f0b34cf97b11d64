"""The hot region of a heatmap, and the styles of showing a heatmap: mask, contour, box, transparent, signed ..."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, TypedDict, get_args

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, near_matches
from onnx_gradcam.options import Style

from .decoding import Image, check_heatmap, check_image, cv2_module
from .drawing import check_colormap, check_same_size, colorize, overlay

__all__ = ["STYLES", "Look", "LookChoices", "hot_box", "hot_region"]

STYLES: Final = get_args(Style)
"""The styles of showing a heatmap; see `Look`."""

_COLOURS: Final = {"signed": "bwr", "grey": "gray"}
_ENDS: Final = {**dict.fromkeys(("overlay", "alpha", "grey"), ("0", "1")), "signed": ("-1", "1")}
_LINE: Final = (255, 221, 0)
_EDGE: Final = (32, 32, 32)


class LookChoices(TypedDict, total=False):
    """The fields of `Look` as keyword arguments."""

    style: Style
    colormap: str | None
    opacity: float
    threshold: float
    top_percent: float | None


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a heatmap is shown.

    Attributes:
        style: `overlay`: colours over the image; `mask`: everything outside the hot region darkened; `contour`: a line
            around the hot region; `box`: the bounding box of its largest connected part; `alpha`: the colours alone,
            more transparent where the heatmap is lower, RGBA; `signed`: the raw map with its negative values, as ink
            on the grey image; `grey`: the values alone, without the image, from black to white, which suits
            attributions of single pixels (PAIR's saliency library, `VisualizeImageGrayscale`).
        colormap: one of `onnx_gradcam.images.drawing.COLORMAPS`; by default `bwr` for signed maps, `gray` for the style
            `grey`, else `jet`.
        opacity: 0 to 1: opacity of the colours, of the darkness around a mask, or of the hottest position of `alpha`;
            for signed maps, how far the image fades to white.
        threshold: the hot region reaches this fraction of the heatmap's largest value (Zhou et al. 2016, section 4.1,
            use 0.2 for their boxes).
        top_percent: the hot region is instead this percentage of the pixels that the model sees, the hottest ones.

    Raises:
        InputError: there is no such style or colour map, or a number is out of range.
    """

    style: Style = "overlay"
    colormap: str | None = None
    opacity: float = 0.5
    threshold: float = 0.5
    top_percent: float | None = None

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise InputError(
                f"there is no style {self.style!r}{near_matches(self.style, STYLES)} (allowed: {', '.join(STYLES)})"
            )
        check_colormap(self.colours)
        if not 0 <= self.opacity <= 1:
            raise InputError(f"the opacity is {self.opacity}; choose one from 0 (image only) to 1 (colours only)")
        if not 0 < self.threshold <= 1:
            raise InputError(f"the threshold is {self.threshold}; choose one above 0 and up to 1")
        if self.top_percent is not None and not 0 < self.top_percent <= 100:
            raise InputError(f"the percentage of pixels is {self.top_percent}; choose one above 0 and up to 100")

    @property
    def colours(self) -> str:
        """The colour map, the style's own if none was chosen."""
        return self.colormap or _COLOURS.get(self.style, "jet")

    @property
    def ends(self) -> tuple[str, str] | None:
        """The values at the two ends of the colour bar; `None` if colours stand for nothing."""
        return _ENDS.get(self.style)

    @property
    def over_image(self) -> bool:
        """Whether the image can be seen below the values."""
        return self.style != "grey"

    def draw(self, image: Image, shown: npt.NDArray[Any]) -> Image:
        """Draw a map on its image: uint8 RGB `[H, W, 3]`, and RGBA `[H, W, 4]` for `alpha`.

        The map is `[H, W]` in [0, 1], or in [-1, 1] for the signed style; NaN where the model does not see the image.
        """
        check_image(image)
        check_same_size(shown, image, "heatmap")
        if self.style == "overlay":
            return overlay(image, shown, colormap=self.colours, opacity=self.opacity)
        if self.style == "signed":
            return self._inked(image, shown)
        if not self.over_image:
            seen = ~np.isnan(shown)
            return np.where(seen[:, :, None], colorize(np.where(seen, shown, 0), self.colours), np.uint8(255))
        if self.style == "alpha":
            strength = np.nan_to_num(np.clip(shown, 0, 1))
            alpha = np.rint(strength * self.opacity * 255).astype(np.uint8)
            return np.dstack([colorize(strength, self.colours), alpha])
        region = hot_region(shown, threshold=self.threshold, top_percent=self.top_percent)
        if self.style == "mask":
            return np.where(region[:, :, None], image, np.rint(image * (1 - self.opacity)).astype(np.uint8))
        return _outlined(image, region, boxed=self.style == "box")

    def _inked(self, image: Image, shown: npt.NDArray[Any]) -> Image:
        """The grey image, faded where the model sees it, times the colours: white leaves it unchanged."""
        grey: Image = np.repeat(cv2_module().cvtColor(image, cv2_module().COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
        seen = ~np.isnan(shown)
        ink = colorize(np.where(seen, (shown + 1) / 2, 0.5), self.colours) / 255
        faded = 255 - (255.0 - grey) * (1 - self.opacity)
        return np.where(seen[:, :, None], np.rint(faded * ink).astype(np.uint8), grey)


def hot_region(
    heatmap: npt.NDArray[Any], *, threshold: float = 0.5, top_percent: float | None = None
) -> npt.NDArray[np.bool_]:
    """The hot region of a heatmap `[H, W]`, bool: what reaches the fraction `threshold` of its largest value.

    With `top_percent` it is instead this percentage of the pixels that the model sees, and all that equal the lowest of
    them. NaN (where the model does not see the image), zero and negative values are never hot.
    """
    check_heatmap(heatmap)
    seen = heatmap[np.isfinite(heatmap)]
    if seen.size == 0:
        return np.zeros(heatmap.shape, bool)
    if top_percent is None:
        limit = threshold * float(seen.max())
    else:
        count = max(1, math.ceil(seen.size * top_percent / 100))
        limit = float(np.partition(seen, -count)[-count])
    return np.asarray((heatmap >= limit) & (heatmap > 0))


def hot_box(region: npt.NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """The bounding box (x0, y0, x1, y1) of the largest connected part of a region, x1 and y1 excluded.

    See Zhou et al. 2016, section 4.1. `None` for an empty region.
    """
    _, _, parts, _ = cv2_module().connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    if len(parts) < 2:
        return None
    left, top, width, height, _ = (int(n) for n in parts[1 + int(np.argmax(parts[1:, 4]))])
    return left, top, left + width, top + height


def _outlined(image: Image, region: npt.NDArray[np.bool_], *, boxed: bool) -> Image:
    """The image with a line around a region or its box; the dark edge makes the line visible on any image."""
    cv2 = cv2_module()
    drawn: Image = image.copy()
    thick = max(2, round(max(image.shape[:2]) / 150))
    box = hot_box(region) if boxed else None
    lines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for colour, width in ((_EDGE, thick + 2), (_LINE, thick)):
        if box is not None:
            cv2.rectangle(drawn, (box[0], box[1]), (box[2] - 1, box[3] - 1), colour, width)
        elif not boxed:
            cv2.drawContours(drawn, lines, -1, colour, width, cv2.LINE_AA)
    return drawn
