"""Where the boxes of a table are: `[N, boxes, 4]`, x0 y0 x1 y1 in pixels of the model's input.

How a detector writes its boxes is not told by names or shapes. Where the graph decodes them, the decoder is run by
itself with zeros in place of all that convolutions compute. What is left are the boxes at rest, one around each
position of a grid over the image, and of all ways to write a box only the right one puts them there: `corners` or a
centre and sizes, `x` before `y` or after it, pixels or shares of the image. Boxes that the graph leaves undecoded are
known by their family. Boxes that are neither are not placed at all: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.shapes import TensorInfo

from .decoder import Decoder
from .selection import all_rows
from .tables import rearranged

__all__ = ["Boxes", "Coordinates", "Encoding", "ImageInput", "find_coordinates"]

Array = npt.NDArray[Any]
Encoding = Literal["decoded", "grid", "bins", "dense", "queries", "chosen"]
"""How boxes are written: by the graph's own decoder; as YOLOX's offsets to a grid; as bins of distances from the
positions of a grid; as FastestDet's offsets; as the sigmoids that DETR and its like put out; decoded after they were
chosen, as by torchvision's detectors."""

_STRIDES = (8, 16, 32, 64, 128)
_MOST_TRIED = 24
"""Tensors of the shape of a table of boxes that are tried."""


@dataclass(frozen=True)
class ImageInput:
    """The model's input.

    Attributes:
        value: the input.
        height: its axis of the height.
        width: its axis of the width.
    """

    value: Value
    height: int
    width: int

    @property
    def sizes(self) -> tuple[int, int] | None:
        """Height and width for the choice of free dimensions that shapes were inferred with."""
        shape = self.value.probe_shape
        return None if shape is None else (shape[self.height], shape[self.width])

    @property
    def fixed(self) -> tuple[int, int] | None:
        """Height and width; `None` if one is free."""
        height, width = (self.value.shape[axis] for axis in (self.height, self.width))
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def scale(self, t: Builder, dtype: Any) -> Value:
        """Width, height, width and height as factors of shares of the image."""
        if self.fixed is not None:
            height, width = self.fixed
            return t.const(np.array([width, height, width, height]), dtype)
        return t.cast(t.op("Gather", t.op("Shape", self.value), t.ints(*[self.width, self.height] * 2)), dtype)


@dataclass(frozen=True, eq=False)
class Boxes:
    """Numbers of boxes among the tensors of a graph, as a family of detectors has them.

    Attributes:
        tables: the tensors, each with its axis of the numbers of a box; the levels of a pyramid in the order of their
            scores.
        encoding: how a box is written.
        first: the first of its numbers.
        rows_of: the scores that boxes were `chosen` by.
    """

    tables: Sequence[tuple[Value, int]]
    encoding: Encoding = "decoded"
    first: int = 0
    rows_of: Sequence[Value] = ()


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Boxes that are placed.

    Attributes:
        how: how they are written, in words.
        boxes: appends them, `[N, boxes, 4]`, x0 y0 x1 y1 in pixels of the input.
    """

    how: str
    boxes: Callable[[], Value] = field(repr=False)


def find_coordinates(t: Builder, image: ImageInput, boxes: Boxes | None, rows: int | None) -> Coordinates | None:
    """The boxes of a table of `rows` rows; `None` where they cannot be placed for certain."""
    if boxes is not None and boxes.encoding != "decoded":
        return _UNDECODED[boxes.encoding](t, image, boxes, rows)
    tables = [] if boxes is None or len(boxes.tables) != 1 else [(*boxes.tables[0], boxes.first)]
    for value, axis, first in (*tables, *_tables(t, rows)):
        form = _form_of(t, value, axis, first, image)
        if form is not None:
            return Coordinates(form.words, partial(_placed, t, value, axis, first, form, image))
    return None


def _placed(t: Builder, value: Value, axis: int, first: int, form: _Form, image: ImageInput) -> Value:
    return form.placed(t, _cut(t, value, axis, first), image)


def _tables(t: Builder, rows: int | None) -> Iterator[tuple[Value, int, int]]:
    """Tensors with four numbers for each of `rows` boxes, the last ones first."""
    if rows is None or rows == 4:
        return
    tried = 0
    for node in reversed(t.nodes):
        for output in node.outputs:
            value = t.wrap(output)
            shape = value.probe_shape
            if tried == _MOST_TRIED or shape is None or len(shape) != 3 or not value.is_float:
                continue
            if shape[1:] in {(rows, 4), (4, rows)}:
                tried += 1
                yield value, 2 if shape[2] == 4 else 1, 0


def _cut(t: Builder, value: Value, axis: int, first: int) -> Value:
    table = rearranged(t, value, axis)
    if first == 0 and table.shape[2] == 4:
        return table
    return t.op("Slice", table, t.ints(first), t.ints(first + 4), t.ints(2))


# ----- decoded boxes -----------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """One way to write a box."""

    centred: bool
    x_first: bool
    pixels: bool

    @property
    def words(self) -> str:
        x, y = ("x", "y") if self.x_first else ("y", "x")
        sizes = ("w", "h") if self.x_first else ("h", "w")
        numbers = (f"c{x}", f"c{y}", *sizes) if self.centred else (f"{x}0", f"{y}0", f"{x}1", f"{y}1")
        return f"{' '.join(numbers)} in {'pixels' if self.pixels else 'shares of the input'}"

    def corners(self, boxes: Array, height: int, width: int) -> Array:
        """x0 y0 x1 y1 in pixels, of boxes `[boxes, 4]`."""
        a, b = boxes[:, :2], boxes[:, 2:]
        low, high = (a - b / 2, a + b / 2) if self.centred else (a, b)
        if not self.x_first:
            low, high = low[:, ::-1], high[:, ::-1]
        corners: Array = np.concatenate([low, high], axis=1)
        return corners if self.pixels else corners * (width, height, width, height)

    def placed(self, t: Builder, table: Value, image: ImageInput) -> Value:
        """The same in the graph, of boxes `[N, boxes, 4]`."""
        if not self.x_first:
            table = t.op("Gather", table, t.ints(1, 0, 3, 2), axis=2)
        corners = _from_centres(t, table) if self.centred else table
        return corners if self.pixels else corners * image.scale(t, corners.dtype)


_FORMS = [
    _Form(centred, x_first, pixels)
    for pixels in (True, False)
    for centred in (True, False)
    for x_first in (True, False)
]


def _from_centres(t: Builder, table: Value) -> Value:
    centre = t.op("Slice", table, t.ints(0), t.ints(2), t.ints(2))
    half = t.op("Slice", table, t.ints(2), t.ints(4), t.ints(2)) * 0.5
    return t.op("Concat", centre - half, centre + half, axis=2)


def _form_of(t: Builder, value: Value, axis: int, first: int, image: ImageInput) -> _Form | None:
    """How a table of boxes is written; `None` unless exactly one form is possible."""
    if image.sizes is None or value.probe_shape is None or value.rank not in {2, 3}:
        return None
    rest = _numbers_at(t, value, axis, first, image, seed=None)
    if rest is None:
        return None
    height, width = image.sizes
    forms = [form for form in _FORMS if _covers(form.corners(rest, height, width) / (width, height, width, height))]
    if len(forms) != 1:
        return None
    moved = _numbers_at(t, value, axis, first, image, seed=0)
    # Anchors alone stay where they are.
    return None if moved is None or not (rest != moved).any(0).all() else forms[0]


def _numbers_at(
    t: Builder, value: Value, axis: int, first: int, image: ImageInput, *, seed: int | None
) -> Array | None:
    """The four numbers of every box that a decoder alone computes, `[boxes, 4]`."""
    decoder = Decoder.of(t, value)
    contents = decoder.contents(image.value.free_batch, None if seed is None else np.random.default_rng(seed))
    table = None if contents is None or decoder.chooses else decoder.run(contents)
    if table is None:
        return None
    rows = np.moveaxis(table.reshape(-1, *table.shape[-2:])[0], axis - value.rank, 1)
    numbers = rows[:, first : first + 4].astype(np.float64)
    return numbers if numbers.shape[1] == 4 and np.isfinite(numbers).all() else None


def _covers(corners: Array) -> bool:
    """Whether boxes at rest, in shares of the image, are around the positions of grids over it, line by line."""
    size, centre = corners[:, 2:] - corners[:, :2], (corners[:, 2:] + corners[:, :2]) / 2
    if size.min() < -1e-6 or centre.min() < -0.1 or centre.max() > 1.1:
        return False
    if (centre.min(0) > 0.3).any() or (centre.max(0) < 0.7).any():
        return False
    across, down = np.abs(np.diff(centre, axis=0)).sum(0)
    return bool(across > 2 * down) and all(_unrelated(size[:, i], centre[:, i]) for i in (0, 1))


def _unrelated(sizes: Array, positions: Array) -> bool:
    """Whether sizes do not grow with the position, as a corner taken for a size does."""
    spread = float(sizes.std())
    return spread <= 1e-6 * max(1.0, float(np.abs(sizes).max())) or abs(np.corrcoef(sizes, positions)[0, 1]) < 0.5


# ----- undecoded boxes ----------------------------------------------------------------


def _levels(image: ImageInput, rows: int) -> list[tuple[int, int, int]] | None:
    """Height, width and stride of the grids whose positions are `rows` boxes, from stride 8 on."""
    if image.fixed is None:
        return None
    height, width = image.fixed
    grids = [(-(-height // stride), -(-width // stride), stride) for stride in _STRIDES]
    for count in (3, 4):
        if sum(h * w for h, w, _ in grids[:count]) == rows:
            return grids[:count]
    return None


def _positions(h: int, w: int) -> Array:
    """X and y of every cell of a grid, line by line, `[h * w, 2]`."""
    rows, columns = np.mgrid[:h, :w]
    return np.stack([columns, rows], axis=-1).reshape(-1, 2)


def _grid(t: Builder, image: ImageInput, boxes: Boxes, rows: int | None) -> Coordinates | None:
    """YOLOX (`yolox/models/yolo_head.py`, `decode_outputs`): centre (o + cell) * stride, size exp(o) * stride."""
    ((value, axis),) = boxes.tables
    levels = None if rows is None else _levels(image, rows)
    if levels is None:
        return None
    strides = np.concatenate([np.full((h * w, 1), stride) for h, w, stride in levels])
    cells = np.concatenate([_positions(h, w) for h, w, _ in levels])

    def appended() -> Value:
        table = _cut(t, value, axis, boxes.first)
        stride, cell = (t.const(array[None], table.dtype) for array in (strides, cells))
        offsets = t.op("Slice", table, t.ints(0), t.ints(2), t.ints(2))
        sizes = t.op("Exp", t.op("Slice", table, t.ints(2), t.ints(4), t.ints(2)))
        return _from_centres(t, t.op("Concat", (offsets + cell) * stride, sizes * stride, axis=2))

    shown = ", ".join(str(stride) for *_, stride in levels)
    return Coordinates(f"offsets to the cells of grids of strides {shown}, as of YOLOX", appended)


def _bins(t: Builder, image: ImageInput, boxes: Boxes, rows: int | None) -> Coordinates | None:  # noqa: ARG001
    """NanoDet and PicoDet: the expected bin of a softmax times the stride, from the middle of the cell to each side."""
    grids = []
    for value, axis in boxes.tables:
        count = [size for i, size in enumerate(value.shape) if i not in {0, axis}]
        fixed = image.fixed
        fitting = [
            (-(-fixed[0] // s), -(-fixed[1] // s), s)
            for s in _STRIDES
            if fixed is not None and count == [-(-fixed[0] // s) * -(-fixed[1] // s)]
        ]
        if len(fitting) != 1:
            return None
        grids += fitting

    def appended() -> Value:
        levels = []
        for (value, axis), (h, w, stride) in zip(boxes.tables, grids, strict=True):
            table = rearranged(t, value, axis)
            count = table.shape[2]
            assert isinstance(count, int)  # noqa: S101 - the family counted it
            bins = t.op("Softmax", t.op("Reshape", table, t.ints(0, 0, 4, count // 4)), axis=3)
            steps = t.const(np.arange(count // 4) * stride, table.dtype)
            sides = t.sum(bins * steps, [3], keepdims=False)
            middle = t.const((_positions(h, w)[None] + 0.5) * stride, table.dtype)
            before, behind = (t.op("Slice", sides, t.ints(i), t.ints(i + 2), t.ints(2)) for i in (0, 2))
            levels.append(t.op("Concat", middle - before, middle + behind, axis=2))
        return levels[0] if len(levels) == 1 else t.op("Concat", *levels, axis=1)

    shown = ", ".join(str(stride) for *_, stride in grids)
    return Coordinates(f"bins of distances from the cells of grids of strides {shown}, as of NanoDet", appended)


def _dense(t: Builder, image: ImageInput, boxes: Boxes, rows: int | None) -> Coordinates | None:  # noqa: ARG001
    """FastestDet (`utils/tool.py`, `handle_preds`): centre (cell + tanh(o)) / cells, size sigmoid(o), in shares."""
    ((value, axis),) = boxes.tables
    h, w = value.shape[2], value.shape[3]
    if not isinstance(h, int) or not isinstance(w, int):
        return None

    def appended() -> Value:
        table = _cut(t, value, axis, boxes.first)
        offsets = t.op("Tanh", t.op("Slice", table, t.ints(0), t.ints(2), t.ints(2)))
        sizes = t.op("Sigmoid", t.op("Slice", table, t.ints(2), t.ints(4), t.ints(2)))
        cells = t.const(_positions(h, w)[None], table.dtype)
        centres = (offsets + cells) / t.const(np.array([w, h]), table.dtype)
        corners = _from_centres(t, t.op("Concat", centres, sizes, axis=2))
        return corners * image.scale(t, corners.dtype)

    return Coordinates(f"offsets to the cells of a grid of {h}x{w}, as of FastestDet", appended)


def _queries(t: Builder, image: ImageInput, boxes: Boxes, rows: int | None) -> Coordinates | None:  # noqa: ARG001
    """DETR and its like: centre and size in shares of the image."""
    ((value, axis),) = boxes.tables
    form = _Form(centred=True, x_first=True, pixels=False)
    return Coordinates(f"{form.words}, as of DETR", lambda: form.placed(t, _cut(t, value, axis, boxes.first), image))


def _chosen(t: Builder, image: ImageInput, boxes: Boxes, rows: int | None) -> Coordinates | None:
    """torchvision: x0 y0 x1 y1 in pixels of the input, whose decoder is repeated for the boxes that are not chosen."""
    ((value, axis),) = boxes.tables
    table = all_rows(t, value, boxes.rows_of)
    if table is None:
        return None
    table = t.refine(table, (rows, 4))
    shapes = [v.probe_shape for v in boxes.rows_of]
    probe = None if None in shapes else (sum(shape[0] for shape in shapes if shape is not None), 4)
    replace(TensorInfo.of(table.core), probe_shape=probe).keep_on(table.core)
    t.adopt()
    form = _form_of(t, table, axis, 0, image)
    return None if form is None else Coordinates(form.words, partial(_placed, t, table, axis, 0, form, image))


_UNDECODED: dict[Encoding, Callable[[Builder, ImageInput, Boxes, int | None], Coordinates | None]] = {
    "grid": _grid,
    "bins": _bins,
    "dense": _dense,
    "queries": _queries,
    "chosen": _chosen,
}
