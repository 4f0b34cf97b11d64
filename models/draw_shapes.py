"""Draw the demo's images: colored shapes on textured, noisy backgrounds, with ground-truth boxes.

Everything comes from one seeded generator, so a seed determines an image. Color, size, angle, position and texture are
independent of the class: only the outline distinguishes a star from a ring. Lengths are fractions of the image's side,
so the same code draws the 96-pixel training images and the larger example images.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

LABELS = ("circle", "cross", "ring", "square", "star", "triangle")
"""Class names; the position is the class index."""

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_SHIFT = 4  # fractional bits of the corner coordinates given to cv2
_OVERLAP = 0.1  # fraction of the smaller of two shapes, holes included; both stay recognizable
_PLACEMENTS = 40  # positions tried before a shape is omitted
_COLOURS = 8  # colors tried for a shape; the one that differs most from its background is used


class Style(NamedTuple):
    """How hard an image is.

    Attributes:
        radius: smallest and largest circumscribed circle, as fractions of the image's side.
        beyond: how far a shape may extend beyond the border, as a fraction of its radius.
        strokes: at most this many lines and arcs are drawn behind the shapes.
    """

    radius: tuple[float, float] = (0.12, 0.23)
    beyond: float = 0.0
    strokes: int = 0


PLAIN = Style()
"""Shapes of middle size, whole, on a background."""

CROWDED = Style(radius=(0.1, 0.28), beyond=0.5, strokes=4)
"""Smaller and larger shapes, some of them cut by the border, among lines and arcs."""


class Shape(NamedTuple):
    """One drawn shape: its class and its box `(x0, y0, x1, y1)` in pixels, `x1` and `y1` exclusive."""

    index: int
    box: tuple[int, int, int, int]


class Scene(NamedTuple):
    """An image, RGB uint8 `[side, side, 3]`, and its shapes, back to front."""

    pixels: Pixels
    shapes: tuple[Shape, ...]


def draw_image(rng: np.random.Generator, indices: list[int], side: int = 96, style: Style = PLAIN) -> Scene:
    """Draw one image with a shape for each class index, back to front.

    Args:
        rng: the random generator.
        indices: class indices into `LABELS`; a shape without a free position is omitted, which is rare for up to
            three.
        side: width and height in pixels.
        style: how hard the image is.

    Returns:
        The image and its shapes.
    """
    canvas = _background(rng, side)
    if style.strokes:
        for _ in range(rng.integers(style.strokes + 1)):
            canvas += _stroke(rng, side)[..., None] * (_colours(rng, 1) - canvas)
    placed: list[Shape] = []
    taken: list[Mask] = []
    for index in indices:
        mask = _place(rng, index, side, style, taken)
        if mask is not None:
            _paint(rng, canvas, mask)
            placed.append(Shape(index, _box(taken[-1])))
    grain = np.float32(rng.uniform(0.0, 14.0))
    canvas += grain * rng.standard_normal(canvas.shape, np.float32)
    return Scene(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), tuple(placed))


def draw_images(
    seed: int, count: int, least: int = 1, most: int = 3, side: int = 96, style: Style = PLAIN
) -> list[Scene]:
    """Draw `count` images with `least` to `most` shapes of different classes each."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        shapes = int(rng.integers(least, most + 1))
        images.append(draw_image(rng, rng.permutation(len(LABELS))[:shapes].tolist(), side, style))
    return images


def outline(rng: np.random.Generator, index: int) -> list[Floats]:
    """Contours of a shape within the unit circle, each `[points, 2]`; a second contour is a hole."""
    label = LABELS[index]
    if label == "circle":
        return [_polygon(64)]
    if label == "ring":
        return [_polygon(64), _polygon(64) * np.float32(rng.uniform(0.5, 0.68))]
    if label == "square":
        return [_polygon(4)]
    if label == "triangle":
        return [_polygon(3)]
    if label == "star":
        points = _polygon(10)
        points[1::2] *= np.float32(rng.uniform(0.38, 0.48))
        return [points]
    arm = rng.uniform(0.26, 0.38)  # half the width of a cross's arms
    quarter = np.array([[1.0, -arm], [1.0, arm], [arm, arm]], np.float32)
    points = np.concatenate([quarter @ _rotation(-turn * np.pi / 2) for turn in range(4)])
    return [points / np.hypot(1.0, arm, dtype=np.float32)]


def _polygon(corners: int) -> Floats:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def _rotation(angle: float) -> Floats:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]], np.float32)


def _place(rng: np.random.Generator, index: int, side: int, style: Style, taken: list[Mask]) -> Floats | None:
    """Mask `[side, side]` in [0, 1] of a shape; `None` if there is no room.

    `taken` holds the filled outlines of the shapes placed so far; the new one is added to it.
    """
    for _ in range(_PLACEMENTS):
        radius = rng.uniform(*style.radius) * side
        margin = radius * (1 - rng.uniform(0, style.beyond)) if style.beyond else radius
        centre = rng.uniform(margin + 1, side - margin - 1, 2)
        squeeze = np.diag([1.0, rng.uniform(0.85, 1.0)]).astype(np.float32)
        turn = squeeze @ _rotation(rng.uniform(0, 2 * np.pi))
        # cv2 puts the centre of the first pixel at 0; ours is at 0.5.
        contours = [
            np.rint((points @ turn * radius + centre - 0.5) * 2**_SHIFT).astype(np.int32)
            for points in outline(rng, index)
        ]
        solid = _fill(contours[:1], side) > 0.5
        if all((solid & other).sum() <= _OVERLAP * min(solid.sum(), other.sum()) for other in taken):
            taken.append(solid)
            return _fill(contours, side)
    return None


def _stroke(rng: np.random.Generator, side: int) -> Floats:
    """Mask `[side, side]` in [0, 1] of a line with one bend, or of up to half of a circle's rim."""
    mask = np.zeros((side, side), np.uint8)
    thickness = max(1, round(rng.uniform(0.01, 0.04) * side))
    if rng.random() < 0.5:
        points = np.rint(rng.uniform(0, side, (3, 2)) * 2**_SHIFT).astype(np.int32)
        cv2.polylines(
            mask, [points], isClosed=False, color=255, thickness=thickness, lineType=cv2.LINE_AA, shift=_SHIFT
        )
    else:
        x, y, radius = (round(value * side) for value in rng.uniform([0, 0, 0.1], [1, 1, 0.4]))
        begin, extent = rng.uniform([0, 40], [360, 180])
        cv2.ellipse(mask, (x, y), (radius, radius), 0, begin, begin + extent, 255, thickness, cv2.LINE_AA)
    return mask.astype(np.float32) / 255


def _fill(contours: list[npt.NDArray[np.int32]], side: int) -> Floats:
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, contours, 255, cv2.LINE_AA, _SHIFT)
    return mask.astype(np.float32) / 255


def _paint(rng: np.random.Generator, canvas: Floats, mask: Floats) -> None:
    """Blend a shape into the canvas in a color that contrasts with its background."""
    behind = canvas[mask > 0.5]
    colours = _colours(rng, _COLOURS)
    distances = np.linalg.norm(behind - colours[:, None], axis=2)
    # The tenth percentile: the color must differ from nearly all of a striped background, not just from its mean.
    fill = colours[int(np.argmax(np.percentile(distances, 10, axis=1)))]
    shade = _ramp(rng, mask.shape[0])[..., None] * np.float32(rng.uniform(0.0, 40.0))
    canvas += mask[..., None] * (fill + shade - canvas)


def _background(rng: np.random.Generator, side: int) -> Floats:
    """A plain, graded, striped, blotched or grainy background `[side, side, 3]`, 0 to 255."""
    first, second = _colours(rng, 2)
    kind = rng.choice(["plain", "gradient", "stripes", "blobs", "grain"])
    if kind == "gradient":
        mix = _ramp(rng, side) / 2 + 0.5
    elif kind == "stripes":
        wave = np.sin(_ramp(rng, side) * rng.uniform(8.0, 40.0) + rng.uniform(0, 2 * np.pi))
        mix = np.clip(wave * rng.uniform(1.0, 6.0), -1, 1) * rng.uniform(0.1, 0.45) + 0.5
    elif kind == "blobs":
        cells = int(rng.integers(3, 10))
        mix = _upsample(rng.uniform(0, 1, (cells, cells)), side)
    elif kind == "grain":
        cells = int(rng.integers(24, 49))
        mix = _upsample(rng.normal(0.5, rng.uniform(0.1, 0.3), (cells, cells)), side)
    else:
        mix = np.zeros((side, side), np.float32)
    mix = mix[..., None].astype(np.float32)
    return np.clip(first + (second - first) * mix, 0, 255)


def _colours(rng: np.random.Generator, count: int) -> Floats:
    """Random colors of any hue, saturation and brightness, `[count, 3]`, 0 to 255."""
    hsv = rng.uniform([0, 0.0, 0.15], [360, 1.0, 1.0], (1, count, 3)).astype(np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] * np.float32(255)


def _ramp(rng: np.random.Generator, side: int) -> Floats:
    """A plane through the image's middle at a random angle, `[side, side]`, about -1 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32)
    return np.float32(np.cos(angle)) * axis + np.float32(np.sin(angle)) * axis[:, None]


def _upsample(cells: npt.NDArray[np.float64], side: int) -> Floats:
    return cv2.resize(cells.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)


def _box(solid: Mask) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(solid.any(axis=0)), np.flatnonzero(solid.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
