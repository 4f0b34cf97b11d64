"""Drawing and saving: colours of a heatmap, overlays, and sheets of several overlays side by side."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, near_matches
from onnx_gradcam.files import check_replaceable, write_file

from .decoding import QUIET, Image, check_heatmap, check_image, cv2_module, resized

__all__ = ["COLORMAPS", "SUFFIXES", "TRANSPARENT", "colorize", "encode_image", "overlay", "save_image", "sheet"]
__all__ += ["check_colormap", "check_same_size", "check_suffix", "draw_boxes"]

COLORMAPS: Final = (
    "jet",
    "turbo",
    "viridis",
    "inferno",
    "magma",
    "plasma",
    "cividis",
    "hot",
    "bone",
    "parula",
    "bwr",
    "gray",
)
"""The colour maps: those of OpenCV by these names, and two of Matplotlib: `bwr`, blue, white, red, and `gray`."""

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
"""The suffixes of images that can be saved."""

TRANSPARENT: Final = (".png", ".webp", ".tif", ".tiff")
"""Those of images with transparency."""

_SMALLEST_SIDE, _LARGEST_SIDE = 224, 1000  # of a panel in a sheet, the longer side, in pixels
_LEAST_CELL_HEIGHT, _LEAST_CELL_WIDTH = 40, 160  # room for the colour bar and the captions
_MARGIN, _BAR = 12, 10
_LONGEST_CAPTION = 2000  # characters, so that measuring one takes no time
_INK = (32, 32, 32)


def colorize(heatmap: npt.NDArray[Any], colormap: str = "jet") -> Image:
    """The colours of a heatmap `[H, W]` in [0, 1]: uint8 RGB `[H, W, 3]`, 256 steps."""
    check_heatmap(heatmap)
    check_colormap(colormap)
    low, high = float(heatmap.min()), float(heatmap.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # refuses NaN too
        raise InputError(f"the heatmap has values from {low:.4g} to {high:.4g}; scale it to [0, 1] before you draw it")
    if colormap == "bwr":
        rising = np.clip(heatmap[:, :, None] * (2, 2, -2) + (0, 0, 2), 0, 1)
        rising[:, :, 1] = np.minimum(rising[:, :, 0], rising[:, :, 2])
        return np.asarray(np.rint(rising * 255).astype(np.uint8))
    cv2 = cv2_module()
    levels = np.rint(np.clip(heatmap, 0, 1) * 255).astype(np.uint8)
    if colormap == "gray":
        return np.repeat(levels[:, :, None], 3, axis=2)
    blue_first = cv2.applyColorMap(levels, getattr(cv2, f"COLORMAP_{colormap.upper()}"))
    colours: Image = cv2.cvtColor(blue_first, cv2.COLOR_BGR2RGB)
    return colours


def check_colormap(name: str) -> None:
    """Refuse a name that is not in `COLORMAPS`."""
    if name not in COLORMAPS:
        raise InputError(
            f"there is no colour map {name!r}{near_matches(name, COLORMAPS)} (allowed: {', '.join(COLORMAPS)})"
        )


def overlay(image: Image, heatmap: npt.NDArray[Any], *, colormap: str = "jet", opacity: float = 0.5) -> Image:
    """A heatmap over its image, `(1 - opacity) * image + opacity * colours`, as in pytorch-grad-cam.

    The image is uint8 RGB `[H, W, 3]`, the heatmap `[H, W]` in [0, 1]; NaN leaves the image unchanged.

    Raises:
        InputError: the colour map is unknown, or heatmap or image are of another size or range.
    """
    check_image(image)
    if not 0 <= opacity <= 1:
        raise InputError(f"the opacity is {opacity}; choose one from 0 (image only) to 1 (colours only)")
    check_same_size(heatmap, image, "heatmap")
    unseen = np.isnan(heatmap)
    colours = colorize(np.where(unseen, 0, heatmap), colormap)
    blended: Image = cv2_module().addWeighted(image, 1 - opacity, colours, opacity, 0.0)
    blended[unseen] = image[unseen]
    return blended


def draw_boxes(image: Image, boxes: Sequence[tuple[tuple[float, float, float, float], str]]) -> Image:
    """An image with boxes, x0 y0 x1 y1 in its pixels, each with its caption: uint8 RGB `[H, W, 3]`.

    A line is white between dark ones, so that it can be seen on any colours. A caption is inside the image, beside a
    corner of its box where it covers no other caption if there is such a place.
    """
    check_image(image)
    cv2 = cv2_module()
    drawn: Image = np.ascontiguousarray(image.copy())
    height, width = image.shape[:2]
    longer = max(height, width)
    line, scale = max(1, round(longer / 450)), min(max(longer / 1150, 0.35), 3.0)
    corners = [tuple(round(side) for side in box) for box, _ in boxes]
    for thickness, colour in ((line + 2, _INK), (line, (255, 255, 255))):
        for x0, y0, x1, y1 in corners:
            cv2.rectangle(drawn, (x0, y0), (min(x1, width - 1), min(y1, height - 1)), colour, thickness)
    taken: list[tuple[int, ...]] = []
    for corner, (_, caption) in zip(corners, boxes, strict=True):
        taken.append(_label(drawn, caption, corner, scale, taken))
    return drawn


def _label(
    drawn: Image, caption: str, box: tuple[int, ...], scale: float, taken: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
    """Write a caption beside a box in white on dark ground, in place; where it is, x0 y0 x1 y1."""
    cv2 = cv2_module()
    height, width = drawn.shape[:2]
    weight, pad = max(1, round(1.4 * scale)), max(2, round(6 * scale))
    text = _shortened(_drawable(caption), width - 2 * pad, scale)
    (wide, ascent), descent = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
    wide, tall = wide + 2 * pad, ascent + descent + pad
    x0, y0, x1, y1 = box
    places = [(x, y) for y in (y0 - tall, y0, y1, y1 - tall) for x in (x0, x1 - wide)]
    inside = [(x, y) for x, y in places if y >= 0 and y + tall <= height] or [(x0, min(max(y0, 0), height - tall))]
    moved = [(max(0, min(x, width - wide)), max(0, y)) for x, y in inside]
    left, top = min(moved, key=lambda at: sum(_shared((*at, at[0] + wide, at[1] + tall), other) for other in taken))
    cv2.rectangle(drawn, (left, top), (left + wide, top + tall), _INK, cv2.FILLED)
    origin = left + pad, top + pad // 2 + ascent
    cv2.putText(drawn, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), weight, cv2.LINE_AA)
    return left, top, left + wide, top + tall


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """The area that two rectangles, x0 y0 x1 y1, have in common."""
    wide, tall = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0) * max(tall, 0)


def sheet(
    image: Image,
    panels: Sequence[tuple[str, npt.NDArray[Any]]],
    *,
    title: str = "",
    first: str = "photo",
    colormap: str = "jet",
    draw: Callable[[Image, npt.NDArray[Any]], Image] = overlay,
    ends: tuple[str, str] | None = ("0", "1"),
    row: int | None = None,
) -> Image:
    """The image and its overlays side by side, each under its caption, with a colour bar at the right: uint8 RGB.

    A panel is a caption and a heatmap `[H, W]` in [0, 1] of the image's size, which `draw` draws in the size in which
    it is shown, or an overlay that is drawn already. `first` is the caption of the image, `ends` are the values at the
    ends of the colour bar; `None` for no bar. `row` is the number of panels in a row, after the image in the first one;
    by default as many as look good.

    Small images are enlarged by an integer factor, large ones reduced to 1000 pixels. Panels that do not fit beside
    each other continue below, in rows of about the same length. A long caption takes two lines; one that is longer
    still loses its middle, and its last words, the score, stay.
    """
    check_image(image)
    displayed = _for_display(image)
    height, width = displayed.shape[:2]
    cells = [(first, displayed)]
    for caption, heatmap in panels:
        if heatmap.ndim == image.ndim:
            cells.append((caption, _for_display(heatmap)))
            continue
        check_same_size(heatmap, image, f"heatmap of {caption!r}")
        cells.append((caption, draw(displayed, resized(heatmap.astype(np.float32), height, width))))
    cell = max(height, _LEAST_CELL_HEIGHT), max(width, _LEAST_CELL_WIDTH)
    scale = min(max(cell[1] / 700, 0.5), 1.3)
    captions = [_wrapped(_drawable(caption), cell[1], scale) for caption, _ in cells]
    deepest = max(map(len, captions))
    tiles = [_tile(lines, deepest, shown, cell, scale) for lines, (_, shown) in zip(captions, cells, strict=True)]
    empty = np.full_like(tiles[0], 255)
    if row is None:
        most = min(len(tiles), max(1, round(4.5 * cell[0] / cell[1])))
        columns = math.ceil(len(tiles) / math.ceil(len(tiles) / most))  # rows of about the same length
    else:
        image_tile, columns = tiles[0], row + 1
        rows = [tiles[at : at + row] for at in range(1, len(tiles), row)]
        tiles = [tile for i, others in enumerate(rows) for tile in (empty if i else image_tile, *others)]
    tiles += [empty] * (-len(tiles) % columns)
    grid = np.vstack([np.hstack(tiles[at : at + columns]) for at in range(0, len(tiles), columns)])
    if ends is not None:
        lowest = tiles[0].shape[0] - _MARGIN
        grid = np.hstack([grid, _colour_bar(grid.shape[0], (lowest - cell[0], lowest), colormap, scale, ends)])
    body = grid
    if title:
        text = _shortened(_drawable(title), body.shape[1] - _MARGIN, scale)
        body = np.vstack([_line(text, body.shape[1], scale), body])
    return np.pad(body, ((_MARGIN, 0), (_MARGIN, 0), (0, 0)), constant_values=255)


def save_image(image: Image, path: str | Path) -> None:
    """Write an image, uint8 RGB `[H, W, 3]` or RGBA `[H, W, 4]`, in the format of the suffix, one of `SUFFIXES`.

    The file appears complete or not at all; an existing image is replaced, and any other file refused.
    """
    check_suffix(path)
    check_replaceable(path, "an image")
    write_file(path, encode_image(image, Path(path).suffix.lower()))


def check_suffix(path: str | Path, *, transparent: bool = False) -> None:
    """Refuse a path whose suffix is not that of an image, or of one that can be `transparent`."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{str(path)!r} does not end in the suffix of an image{near_matches(suffix, SUFFIXES)} "
            f"(allowed: {', '.join(SUFFIXES)})"
        )
    if transparent and suffix not in TRANSPARENT:
        raise InputError(f"a {suffix} file cannot hold transparency; save it as one of {', '.join(TRANSPARENT)}")


def encode_image(image: Image, suffix: str) -> bytes:
    """The file of an image, uint8 RGB `[H, W, 3]` or RGBA `[H, W, 4]`, in the format of a suffix."""
    check_image(image[:, :, :3])
    transparent = image.shape[2] == 4
    check_suffix(f"image{suffix}", transparent=transparent)
    cv2 = cv2_module()
    order = cv2.COLOR_RGBA2BGRA if transparent else cv2.COLOR_RGB2BGR
    try:
        with QUIET:
            done, encoded = cv2.imencode(suffix, cv2.cvtColor(image, order))
    except cv2.error:
        done = False
    if not done:
        raise InputError(
            f"an image of {image.shape[0]}x{image.shape[1]} (height x width) cannot be saved as {suffix}; "
            "save it as .png"
        )
    return bytes(encoded.tobytes())


def check_same_size(heatmap: npt.NDArray[Any], image: Image, name: str) -> None:
    """Refuse a heatmap whose height and width are not those of its image."""
    if heatmap.shape != image.shape[:2]:
        raise InputError(
            f"the {name} is {list(heatmap.shape)} and the image {list(image.shape[:2])} (height, width); "
            "project the heatmap on the image first"
        )


def _for_display(image: Image) -> Image:
    """The image in a size in which a panel can be read: enlarged by an integer factor, or reduced."""
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer > _LARGEST_SIDE:
        return resized(image, *(max(1, round(side * _LARGEST_SIDE / longer)) for side in (height, width)))
    factor = math.ceil(_SMALLEST_SIDE / longer)
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _tile(caption: Sequence[str], lines: int, image: Image, cell: tuple[int, int], scale: float) -> Image:
    """An image under its caption in a cell of (height, width), with a margin at the right and below."""
    height, width = cell
    panel = _white(height + _MARGIN, width + _MARGIN)
    panel[: image.shape[0], : image.shape[1]] = image
    padded = [*[""] * (lines - len(caption)), *caption]
    return np.vstack([*[_line(text, width + _MARGIN, scale) for text in padded], panel])


def _colour_bar(height: int, rows: tuple[int, int], colormap: str, scale: float, ends: tuple[str, str]) -> Image:
    """The colours in some of `height` rows, beside the first panels, labelled with the values at the two ends."""
    cv2 = cv2_module()
    (digit_width, digit_height), _ = cv2.getTextSize(max(ends, key=len), cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    bar = _white(height, _BAR + 2 * _MARGIN + digit_width)
    top, end = rows
    bar[top:end, :_BAR] = colorize(np.linspace(1, 0, end - top)[:, None].repeat(_BAR, axis=1), colormap)
    for digit, baseline in ((ends[1], top + digit_height), (ends[0], end - 1)):
        _write(bar, digit, (_BAR + _MARGIN // 2, baseline), scale)
    return bar


def _line(text: str, width: int, scale: float) -> Image:
    """One line of text on a white strip of `width`."""
    cv2 = cv2_module()
    (_, ascent), descent = cv2.getTextSize("Ag", cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    strip = _white(ascent + descent + _MARGIN // 2, width)
    _write(strip, text, (0, ascent), scale)
    return strip


def _write(canvas: Image, text: str, origin: tuple[int, int], scale: float) -> None:
    cv2 = cv2_module()
    cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, 1, cv2.LINE_AA)


def _fits(text: str, room: int, scale: float) -> bool:
    cv2 = cv2_module()
    return bool(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] <= room)


def _wrapped(text: str, room: int, scale: float) -> list[str]:
    """The text in one line of `room` pixels if it fits, else in two, the second shortened if it has to be."""
    text = text[:_LONGEST_CAPTION]
    if _fits(text, room, scale):
        return [text]
    words = text.split(" ")
    breaks = [n for n in range(len(words) - 1, 0, -1) if words[n] != "%"]
    kept = next((n for n in breaks if _fits(" ".join(words[:n]), room, scale)), 0)
    if not kept:
        return [_shortened(text, room, scale)]
    return [" ".join(words[:kept]), _shortened(" ".join(words[kept:]), room, scale)]


def _shortened(text: str, room: int, scale: float) -> str:
    """The text if it fits in `room` pixels, else its beginning, an ellipsis and its last words, a number and a unit."""
    text = text[:_LONGEST_CAPTION]
    if _fits(text, room, scale):
        return text
    dots = _drawable("…")
    head, _, score = text.rpartition(" ")
    if score == "%":
        head, _, number = head.rpartition(" ")
        score = f"{number} %"
    candidates = [f"{head[:kept].rstrip()}{dots} {score}" for kept in range(min(len(head), room), 0, -1)]
    candidates += [text[:kept] + dots for kept in range(min(len(text), room), 0, -1)]
    return next((candidate for candidate in candidates if _fits(candidate, room, scale)), "")


def _drawable(text: str) -> str:
    """One line that OpenCV can draw: version 5 any script, earlier ones ASCII, with `?` for other characters."""
    text = " ".join(text.split())
    if hasattr(cv2_module(), "FontFace"):
        return text
    plain = unicodedata.normalize("NFKD", text.replace("…", "..."))
    return "".join(c if c.isascii() else "?" for c in plain if not unicodedata.combining(c))


def _white(height: int, width: int) -> Image:
    return np.full((height, width, 3), 255, np.uint8)
