"""Where a heatmap is hot, and the ways to show it: a mask, a contour, a box, colours that fade out, a signed map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, near_matches

from .decoding import Image, check_image, cv2_module
from .drawing import check_colormap, check_same_size, colorize, overlay

__all__ = ["STYLES", "Look", "Style", "hot_box", "hot_region"]

Style = Literal["overlay", "mask", "contour", "box", "alpha", "signed"]
STYLES: Final = get_args(Style)
"""The ways to show a heatmap, as `Look` explains them."""

_LINE: Final = (255, 221, 0)
_EDGE: Final = (32, 32, 32)


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a heatmap is shown.

    Attributes:
        style: `overlay`: colours over the image; `mask`: what is not hot is darkened; `contour`: a line around what
            is hot; `box`: the bounding box of the largest hot region; `alpha`: the colours alone, fading out where the
            heatmap is low, RGBA; `signed`: the raw map, negative values too, as ink on the image in grey.
        colormap: one of `render.COLORMAPS`; by default `bwr` for signed maps and `jet` for others.
        opacity: 0 to 1: of the colours; of the darkness around a mask; of the hottest place of `alpha`; how far the
            image under a signed map fades to white.
        threshold: hot is what reaches this part of the heatmap's largest value (Zhou et al. 2016, section 4.1, take 0.2
            for their boxes).
        top_percent: hot are so many percent of the pixels that the model saw instead, the hottest ones.

    Raises:
        InputError: no such style or colour map, or a number out of its range.
    """

    style: Style = "overlay"
    colormap: str | None = None
    opacity: float = 0.5
    threshold: float = 0.5
    top_percent: float | None = None

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise InputError(
                f"there is no style {self.style!r}{near_matches(self.style, STYLES)} (known: {', '.join(STYLES)})"
            )
        check_colormap(self.colours)
        if not 0 <= self.opacity <= 1:
            raise InputError(f"the opacity is {self.opacity}: choose one from 0 (image only) to 1 (colours only)")
        if not 0 < self.threshold <= 1:
            raise InputError(f"the threshold is {self.threshold}: choose one above 0, 1 at the most")
        if self.top_percent is not None and not 0 < self.top_percent <= 100:
            raise InputError(f"{self.top_percent} percent of the pixels make no region: choose one above 0 up to 100")

    @property
    def colours(self) -> str:
        """The colour map."""
        return self.colormap or ("bwr" if self.style == "signed" else "jet")

    @property
    def ends(self) -> tuple[str, str] | None:
        """What the two ends of the colour bar stand for; `None` where colours say nothing."""
        if self.style in {"overlay", "alpha"}:
            return "0", "1"
        return ("-1", "1") if self.style == "signed" else None

    def draw(self, image: Image, shown: npt.NDArray[Any]) -> Image:
        """A map on its image.

        Args:
            image: uint8 RGB ``[H, W, 3]``.
            shown: ``[H, W]`` in [0, 1], or in [-1, 1] for the signed style; NaN where the model did not look.

        Returns:
            uint8 RGB ``[H, W, 3]``, and RGBA ``[H, W, 4]`` for `alpha`.

        Raises:
            InputError, InputError: as `overlay`.
        """
        check_image(image)
        check_same_size(shown, image, "heatmap")
        if self.style == "overlay":
            return overlay(image, shown, colormap=self.colours, opacity=self.opacity)
        if self.style == "signed":
            return self._inked(image, shown)
        if self.style == "alpha":
            strength = np.nan_to_num(np.clip(shown, 0, 1))
            alpha = np.rint(strength * self.opacity * 255).astype(np.uint8)
            return np.dstack([colorize(strength, self.colours), alpha])
        region = hot_region(shown, threshold=self.threshold, top_percent=self.top_percent)
        if self.style == "mask":
            return np.where(region[:, :, None], image, np.rint(image * (1 - self.opacity)).astype(np.uint8))
        return _outlined(image, region, boxed=self.style == "box")

    def _inked(self, image: Image, shown: npt.NDArray[Any]) -> Image:
        """The image in grey, faded where the model looked, times the colours: white leaves it as it is."""
        grey: Image = np.repeat(cv2_module().cvtColor(image, cv2_module().COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
        seen = ~np.isnan(shown)
        ink = colorize(np.where(seen, (shown + 1) / 2, 0.5), self.colours) / 255
        faded = 255 - (255.0 - grey) * (1 - self.opacity)
        return np.where(seen[:, :, None], np.rint(faded * ink).astype(np.uint8), grey)


def hot_region(
    heatmap: npt.NDArray[Any], *, threshold: float = 0.5, top_percent: float | None = None
) -> npt.NDArray[np.bool_]:
    """Where a heatmap is hot, bool ``[H, W]``.

    Args:
        heatmap: ``[H, W]``; NaN where the model did not look, which is never hot. Neither is what is not above zero.
        threshold: hot is what reaches this part of the largest value.
        top_percent: hot are so many percent of the pixels that the model saw instead; of equal ones at the limit all.

    Raises:
        InputError: `heatmap` is not of rank 2.
    """
    if heatmap.ndim != 2 or heatmap.size == 0:
        raise InputError(f"A heatmap is [height, width], not of shape {list(heatmap.shape)}: pass one sample's.")
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

    Zhou et al. 2016, section 4.1. `None` where there is no region.
    """
    _, _, parts, _ = cv2_module().connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    if len(parts) < 2:
        return None
    left, top, width, height, _ = (int(n) for n in parts[1 + int(np.argmax(parts[1:, 4]))])
    return left, top, left + width, top + height


def _outlined(image: Image, region: npt.NDArray[np.bool_], *, boxed: bool) -> Image:
    """The image with a line around a region, or its box; the line has a dark edge, to be seen on any image."""
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
