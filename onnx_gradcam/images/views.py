"""Pictures of inputs that are no images: signals, volumes, video clips, and any number of channels.

A view is a picture of the input, and shows a map of the input's positions in the same arrangement, so that what draws a
heatmap over an image draws it over any input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .decoding import Image, cv2_module

__all__ = ["View", "view_of"]

Array = npt.NDArray[Any]

_WIDEST: Final = 1600
_NARROWEST: Final = 640
_ROW: Final = 72
"""Pixels of the height of a curve."""
_MOST_CURVES: Final = 12
_MOST_SLICES: Final = 12
_MOST_FRAMES: Final = 8
_ACROSS: Final = 4
"""Tiles in a row."""
_LEAST_SIDE: Final = 96
_GAP: Final = 2
_COLORS: Final = 3


@dataclass(frozen=True, eq=False)
class View:
    """A picture of an input.

    Attributes:
        image: the picture, `uint8 [H, W, 3]`.
        flat: a map of the input's positions, `[*spatial]`, in the arrangement of the picture, `[H, W]`; NaN where the
            picture shows no position.
        note: what the picture leaves out, in a sentence; empty for nothing.
    """

    image: Image
    flat: Callable[[Array], npt.NDArray[np.float32]]
    note: str = ""


def view_of(tensor: Array, layout: str) -> View:
    """The view of an input without its batch axis.

    One spatial axis is a signal: a curve for each channel. Two are a picture, in gray unless it has three channels.
    Three are a volume: slices along the first axis, and the largest values along each axis; with three channels, the
    frames of a clip.

    Args:
        tensor: the input.
        layout: its axes, such as `CW` or `DCHW`; spatial ones in the order `DHW`.
    """
    spatial = [axis for axis, letter in enumerate(layout) if letter != "C"]
    channels = [layout.index("C")] if "C" in layout else []
    values = np.nan_to_num(np.asarray(tensor, np.float32)).transpose(*channels, *spatial)
    values = values if channels else values[None]
    return {1: _signal, 2: _picture, 3: _volume}[len(spatial)](values)


def _signal(curves: Array) -> View:
    """Channels `[C, T]` as curves under each other, each between its own extremes."""
    shown = curves[:_MOST_CURVES]
    length = curves.shape[1]
    width = int(np.clip(length, _NARROWEST, _WIDEST))
    image = np.full((_ROW * len(shown), width, 3), 255, np.uint8)
    across = np.linspace(0, width - 1, length)
    for row, curve in enumerate(shown):
        low, high = float(curve.min()), float(curve.max())
        share = (curve - low) / (high - low) if high > low else np.full(length, 0.5)
        down = _ROW * (row + 0.9 - 0.8 * share)
        points = np.rint(np.stack([across, down], 1)).astype(np.int32)
        cv2_module().polylines(image, [points.reshape(-1, 1, 2)], isClosed=False, color=(0, 0, 0), thickness=1)
    more = len(curves) - len(shown)
    places = (np.arange(width) + 0.5) * length / width - 0.5

    def flat(heat: Array) -> npt.NDArray[np.float32]:
        line = np.interp(places, np.arange(len(heat)) * (length / len(heat)), heat).astype(np.float32)
        return np.repeat(line[None], len(image), axis=0)

    return View(image, flat, f"the picture shows the first {len(shown)} of {len(curves)} channels" if more else "")


def _picture(planes: Array) -> View:
    """Channels `[C, H, W]` in colors if there are three, else their mean in gray."""
    image = _levels(planes if len(planes) == _COLORS else planes.mean(0, keepdims=True))
    note = "" if len(planes) in {1, _COLORS} else f"the picture shows the mean of {len(planes)} channels"
    return View(image, lambda heat: _resampled(heat, image.shape[:2]), note)


def _volume(volume: Array) -> View:
    """Channels `[C, D, H, W]`: the frames of a clip of three channels, else slices and projections of their mean."""
    clip = len(volume) == _COLORS
    count = min(volume.shape[1], _MOST_FRAMES if clip else _MOST_SLICES)
    chosen = np.unique(np.rint(np.linspace(0, volume.shape[1] - 1, count)).astype(int))
    planes = volume if clip else volume.mean(0, keepdims=True)
    pictures = _levels(planes[:, chosen])
    tiles = list(pictures)
    if not clip:
        tiles += [_levels(planes.max(axis)) for axis in (1, 2, 3)]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    scale = max(1, -(-_LEAST_SIDE // max(height, width)))

    def flat(heat: Array) -> npt.NDArray[np.float32]:
        full = _resampled(heat, volume.shape[1:])
        parts = [full[index] for index in chosen]
        parts += [] if clip else [full.max(axis) for axis in (0, 1, 2)]
        return _tiled(parts, (height, width), scale, np.nan).astype(np.float32)

    kind = "frames" if clip else "slices"
    note = f"the picture shows {len(chosen)} of {volume.shape[1]} {kind}" if len(chosen) < volume.shape[1] else ""
    return View(_tiled(tiles, (height, width), scale, 0).astype(np.uint8), flat, note)


def _tiled(tiles: Sequence[Array], size: tuple[int, int], scale: int, empty: float) -> Array:
    """Tiles of at most a size in rows, enlarged by a whole number; `empty` between them."""
    height, width = size[0] * scale + _GAP, size[1] * scale + _GAP
    rows = -(-len(tiles) // _ACROSS)
    across = min(len(tiles), _ACROSS)
    sheet = np.full((rows * height, across * width, *tiles[0].shape[2:]), empty, np.float32)
    for number, tile in enumerate(tiles):
        top, left = number // _ACROSS * height, number % _ACROSS * width
        large = np.repeat(np.repeat(tile, scale, axis=0), scale, axis=1)
        sheet[top : top + large.shape[0], left : left + large.shape[1]] = large
    return sheet


def _levels(planes: Array) -> Image:
    """Channels `[C, ...]`, one or three, as pixels `uint8 [..., 3]` from the 1st to the 99th percentile."""
    low, high = (float(v) for v in np.percentile(planes, (1, 99)))
    share = (planes - low) / (high - low) if high > low else np.zeros_like(planes)
    pixels = np.moveaxis(np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8), 0, -1)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:-1], 3)))


def _resampled(heat: Array, size: Sequence[int]) -> npt.NDArray[np.float32]:
    """A map at the positions of an input: that of the cell each position is in, where the map is coarser."""
    places = [np.arange(n) * cells // n for n, cells in zip(size, heat.shape, strict=True)]
    values: npt.NDArray[np.float32] = np.asarray(heat, np.float32)[np.ix_(*places)]
    return values
