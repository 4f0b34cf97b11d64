"""Regions of an image, by its colours (Felzenszwalb and Huttenlocher 2004) or a grid, and XRAI, which ranks regions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, UnsupportedError
from onnx_gradcam.files import open_file

from .averaged import sampling
from .baselines import gaussian
from .integrated import evenly
from .maps import half_pixel
from .probe import Array, Probe

__all__ = ["Labels", "dilated", "players", "ranked", "segmented", "segments"]

Labels = npt.NDArray[np.int64]
Masks = npt.NDArray[np.bool_]

_SCALES = (50, 100, 150, 250, 500, 1200)
"""Of XRAI's segmentations; a larger scale makes larger regions."""

_SIDE, _WIDTH, _LEAST, _MARGIN = 224, 0.8, 150, 5
"""XRAI: side of the image that is segmented, blur, fewest pixels of a region there, and by how much regions grow."""

_CHUNK = 32768
"""Pairs of pixels between two looks at which are joined."""

_GAIN = 50
"""XRAI: the fewest new pixels that a region has to add."""

_STEPS = 100


def segmented(image: Array, scale: float, width: float = _WIDTH, least: int = _LEAST) -> Labels:
    """The regions of an image, a number from 0 on for each pixel.

    Args:
        image: float `[C, H, W]`, from -1 to 1 as XRAI scales it.
        scale: how unlike neighbouring regions are before they stay apart, as scikit-image's `felzenszwalb` counts it.
        width: the Gaussian blur before, in pixels.
        least: regions of fewer pixels join the neighbour that is most like them.

    Example::

        labels = segmented(image, 250)
    """
    rows, columns = (gaussian(size, width, mirrored=True) for size in image.shape[1:])
    smooth = rows @ image.astype(np.float64) @ columns.T
    first, second, cost = _edges(smooth)
    order = np.argsort(cost, kind="stable")
    edges = first[order], second[order], cost[order]
    forest = _Forest(smooth[0].size, scale / 255.0)
    for i, j, difference in forest.apart(*edges):
        if difference < min(forest.limit[i], forest.limit[j]):
            forest.join(i, j, difference)
    for i, j, difference in forest.apart(*edges):
        if min(forest.size[i], forest.size[j]) < least:
            forest.join(i, j, difference)
    labels: Labels = np.unique(forest.roots(), return_inverse=True)[1].reshape(image.shape[1:])
    return labels


class _Forest:
    """Sets of pixels that are joined two by two; `limit` says, by its root, how unlike a set may be to be joined."""

    def __init__(self, count: int, tolerance: float) -> None:
        self.parent, self.size, self.limit = list(range(count)), [1] * count, [tolerance] * count
        self._tolerance = tolerance

    def join(self, i: int, j: int, difference: float) -> None:
        """Join the sets of two roots that differ by so much."""
        self.parent[j] = i
        self.size[i] += self.size[j]
        self.limit[i] = difference + self._tolerance / self.size[i]

    def roots(self) -> Labels:
        """The root of every pixel."""
        roots = np.array(self.parent)
        while (roots[roots] != roots).any():
            roots = roots[roots]
        return roots

    def apart(self, first: Labels, second: Labels, cost: Array) -> Iterator[tuple[int, int, float]]:
        """The roots of each pair of pixels that are in different sets by then, and their difference, in order."""
        for start in range(0, len(cost), _CHUNK):
            # Most pairs are joined already, which NumPy finds faster than this loop.
            part, roots = slice(start, start + _CHUNK), self.roots()
            open_ = np.nonzero(roots[first[part]] != roots[second[part]])[0] + start
            columns = (column[open_].tolist() for column in (first, second, cost))
            for one, two, difference in zip(*columns, strict=True):
                i, j = self._root(one), self._root(two)
                if i != j:
                    yield i, j, difference

    def _root(self, pixel: int) -> int:
        parent = self.parent
        while parent[pixel] != pixel:
            parent[pixel] = pixel = parent[parent[pixel]]
        return pixel


def _edges(image: Array) -> tuple[Labels, Labels, Array]:
    """The pairs of neighbouring pixels, eight a pixel, and the Euclidean distances of their colours."""
    numbers = np.arange(image[0].size).reshape(image.shape[1:])
    everything, before, after = slice(None), slice(None, -1), slice(1, None)
    pairs = [
        ((everything, after), (everything, before)),
        ((after, everything), (before, everything)),
        ((after, after), (before, before)),
        ((after, before), (before, after)),
    ]
    parts = [(numbers[one].ravel(), numbers[two].ravel(), _distance(image, one, two).ravel()) for one, two in pairs]
    first, second, cost = (np.concatenate(column) for column in zip(*parts, strict=True))
    return first, second, cost


def _distance(image: Array, one: tuple[slice, slice], two: tuple[slice, slice]) -> Array:
    difference = image[:, one[0], one[1]] - image[:, two[0], two[1]]
    distance: Array = np.sqrt((difference**2).sum(0))
    return distance


def segments(image: Array) -> Masks:
    """The regions that XRAI ranks, `[M, H, W]`: those of every scale, grown by five pixels.

    The image `[C, H, W]` is scaled to [-1, 1] and resized to 224 x 224, and the regions back. scikit-image, which XRAI
    uses, resizes with splines, so its regions differ in single pixels.
    """
    span = float(np.ptp(image))
    scaled = 2 * (image.astype(np.float64) - image.min()) / span - 1 if span else np.zeros(image.shape)
    size = image.shape[1:]
    rows, columns = (_matrix(side) for side in size)
    small = rows @ scaled @ columns.T
    across = [(np.arange(side) * _SIDE // side).astype(np.int64) for side in size]
    masks = []
    for scale in _SCALES:
        labels = segmented(small, scale, least=_LEAST)[np.ix_(*across)]
        masks += [dilated(labels == label, _MARGIN) for label in np.unique(labels)]
    return np.stack(masks)


def _matrix(side: int) -> Array:
    """From a side of any size to the size that is segmented: bilinear, behind a blur where that is smaller."""
    enlarge: Array = half_pixel(side, _SIDE).astype(np.float64)
    factor = side / _SIDE
    return enlarge if factor <= 1 else enlarge @ gaussian(side, (factor - 1) / 2, mirrored=True)


def dilated(mask: Masks, radius: int) -> Masks:
    """A mask `[H, W]` and everything within a radius of it, in pixels."""
    height, width = mask.shape
    grown = np.zeros((height, width), bool)
    reach = np.hypot(*np.ogrid[-radius : radius + 1, -radius : radius + 1]) <= radius
    down, right = np.nonzero(mask)
    if not len(down):
        return grown
    # Only around the mask: most regions are small.
    top, left = max(down.min() - radius, 0), max(right.min() - radius, 0)
    bottom, end = min(down.max() + radius + 1, height), min(right.max() + radius + 1, width)
    part = np.pad(mask[top:bottom, left:end], radius)
    here = grown[top:bottom, left:end]
    for i, j in zip(*np.nonzero(reach), strict=True):
        here |= part[i : i + here.shape[0], j : j + here.shape[1]]
    return grown


def players(image: Array, text: str) -> Labels:
    """The players of an image `[C, H, W]`, a number from 0 on for each pixel.

    `text` is `grid:ROWSxCOLUMNS`, `segments:SCALE` (Felzenszwalb and Huttenlocher 2004; a larger scale makes larger
    segments), or a `.npy` file of whole numbers `[H, W]`.

    Raises:
        InputError: the file cannot be read, is of another size, or the image is smaller than the grid.
    """
    size = image.shape[1:]
    if len(size) != 2:
        raise UnsupportedError("games are for images; take integrated-gradients or gradient")
    word, _, number = text.partition(":")
    if word == "grid":
        rows, columns = map(int, number.split("x"))
        if rows > size[0] or columns > size[1]:
            raise InputError(f"players {text!r} are more than the {size[0]} x {size[1]} pixels; choose a smaller grid")
        down, right = (np.arange(side) * cells // side for side, cells in zip(size, (rows, columns), strict=True))
        labels: Labels = down[:, None] * columns + right
        return labels
    if word == "segments":
        span = float(np.ptp(image))
        scaled = 2 * (image - image.min()) / span - 1 if span else np.zeros(image.shape)
        return segmented(scaled, float(number), least=max(math.prod(size) // 400, 1))
    try:
        with open_file(text) as file:
            found = np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError, MemoryError) as exc:
        raise InputError(f"cannot read the players {text!r} as an array: {exc}") from exc
    if found.shape != size or found.dtype.kind not in "iu":
        raise InputError(
            f"the players {text!r} are {found.dtype} {list(found.shape)}; give whole numbers {list(size)}, one a pixel"
        )
    return np.unique(found, return_inverse=True)[1].reshape(size)


_xrai = partial(
    sampling,
    reference="Kapishnikov et al. 2019, algorithm 1; saliency 0.2.1 xrai.py, whose defaults it takes",
    uses=("gx",),
    passes=f"{2 * _STEPS} forward and backward passes",
    takes={"baseline": ("darkest", "lightest"), "steps": _STEPS, "smooth": 0},
    image_map=True,
)


@_xrai("xrai", title="XRAI")
def xrai(probe: Probe) -> Array:
    """Regions by their mean attribution: the best first, each valued by the pixels that it adds to those before.

    The attribution is that of integrated gradients, largest over channels, averaged over baselines. The map adds up to
    the same as the attribution.
    """
    return ranked(_attribution(probe), segments(probe.x))


@_xrai("xrai-fast", title="XRAI, fast")
def xrai_fast(probe: Probe) -> Array:
    """As XRAI, in the order of the regions' own means."""
    return ranked(_attribution(probe), segments(probe.x), fast=True)


def _attribution(probe: Probe) -> Array:
    if len(probe.size) != 2:
        raise UnsupportedError("XRAI is for images; take integrated-gradients")
    parts = [evenly(probe, start, probe.settings["steps"]) for start in probe.baselines]
    attribution: Array = np.mean(parts, axis=0).max(0)
    return attribution


def ranked(attribution: Array, masks: Masks | Sequence[Masks], *, fast: bool = False, area: float = 1.0) -> Array:
    """XRAI's map of an attribution `[H, W]` and regions `[M, H, W]`, until the given share of the image is covered."""
    covered, values = np.zeros(attribution.shape, bool), np.full(attribution.shape, -np.inf)
    for new, mean in (_by_own_mean if fast else _by_gain)(attribution, masks, covered, area):
        values[new] = mean
        covered |= new
    rest = ~np.isfinite(values)
    if rest.any():
        values[rest] = attribution[rest].mean()
    return values


def _by_own_mean(
    attribution: Array, masks: Masks | Sequence[Masks], covered: Masks, _: float
) -> Iterator[tuple[Masks, float]]:
    for mask in sorted(filter(np.any, masks), key=lambda mask: -attribution[mask].mean()):
        new = mask & ~covered
        if new.sum() >= _GAIN:
            yield new, float(attribution[new].mean())


def _by_gain(
    attribution: Array, masks: Masks | Sequence[Masks], covered: Masks, area: float
) -> Iterator[tuple[Masks, float]]:
    """The new pixels of the region that adds the largest mean, and that mean; `covered` grows between the steps."""
    left = {i: (mask, float(attribution[mask].mean())) for i, mask in enumerate(masks) if mask.sum() >= _GAIN}
    while left and covered.mean() <= area:
        best = max(left, key=lambda i: left[i][1])
        taken, gain = left.pop(best)
        yield taken, gain
        for i, (new, _) in list(left.items()):
            if not (new & taken).any():
                continue
            rest = new & ~taken
            if rest.sum() >= _GAIN:
                left[i] = rest, float(attribution[rest].mean())
            else:
                del left[i]
