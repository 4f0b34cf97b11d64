"""Which part of the image a tensor covers: crops and padding inside the graph are followed from the image on.

The maps of a layer are stretched over what the layer covers. That is the whole image unless the graph crops or pads it.
Padding that belongs to a convolution or pooling does not count, even if it is a Pad of its own in front of one that has
none: the maps behind it cover the image, as everywhere in the literature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.fold import computed

from .axes import Layout, follow

__all__ = ["CUTS", "Extent", "Span", "edges", "follow_extents"]

CUTS = {"Slice", "Pad", "CenterCropPad", "Gather", "Split"}
"""Operators that can crop or pad an image."""

_WINDOWS = {"Conv", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool", "LpPool"}

_END = 2**31 - 1
"""Bounds of a Slice from here on mean the end of an axis of any size."""

Edge = npt.NDArray[np.float64]
"""A position along one side of the image, or a width: (pixels, share of the side)."""


@dataclass(frozen=True, eq=False)
class Span:
    """What a tensor covers along one side of the image.

    Attributes:
        start: the first position of the image that it covers.
        end: the last one.
        low: the width of the padding before `start`.
        high: the width of the padding behind `end`.
        side: the size of this side, in the example binding of free dimensions.
    """

    start: Edge
    end: Edge
    low: Edge
    high: Edge
    side: int

    @property
    def ends(self) -> tuple[Edge, Edge]:
        """Both ends, with the padding."""
        return self.start - self.low, self.end + self.high

    @property
    def is_whole(self) -> bool:
        """Whether the ends are those of the image, to half a pixel."""
        first, last = map(self.pixels, self.ends)
        return abs(first) < 0.5 and abs(last - self.side) < 0.5

    def pixels(self, edge: Edge) -> float:
        """A position or width in pixels."""
        return float(edge[0] + edge[1] * self.side)

    def cell(self, count: int, *, fixed: bool) -> Edge:
        """The width of one of `count` cells; where the count is not `fixed`, a ratio of sizes that is."""
        first, last = self.ends
        width = (last - first) / count
        return width if fixed else np.array([self.pixels(width), 0.0])

    def between(self, first: Edge, last: Edge) -> Span | None:
        """The same with other ends, with their padding; `None` if nothing is left."""
        if self.pixels(last) - self.pixels(first) <= 0:
            return None
        start = first if self.pixels(first) > self.pixels(self.start) else self.start
        end = last if self.pixels(last) < self.pixels(self.end) else self.end
        return replace(self, start=start, end=end, low=start - first, high=last - end)

    def behind_window(self, loss: float) -> Span:
        """The same behind a window that loses `loss` pixels at the ends; the padding is lost first."""
        low, high = self.pixels(self.low), self.pixels(self.high)
        if loss <= 0 or low + high <= 0:
            return self
        if loss >= low + high - 1e-6:
            return replace(self, low=self.low * 0, high=self.high * 0)
        kept = [max(0.0, 1 - loss / 2 / width) if width > 0 else 0.0 for width in (low, high)]
        return replace(self, low=self.low * kept[0], high=self.high * kept[1])


Extent = tuple[Span, Span]
"""What a tensor covers of the image's height and width."""


def follow_extents(t: Builder, image: Value, layout: Layout) -> tuple[dict[ir.Value, Extent], list[ir.Node]]:
    """What each tensor that depends on the image covers, and the nodes behind which that cannot be told.

    `layout` is that of the image. A tensor behind such a node has an extent again where another branch gives it one.
    """
    layouts = follow(t, {image.core: layout})
    places = [axis.place for axis in layout if axis is not None and axis.kind == "S"]
    sides = dict(zip(places, _spatial(t, image.core, layouts), strict=True))
    extents: dict[ir.Value, Extent] = {image.core: (_whole(sides[0]), _whole(sides[1]))}
    lost: list[ir.Node] = []
    for node in t.nodes:
        if not any(i in extents for i in node.inputs if i is not None):
            continue
        extent = _RULES.get(node.op_type, _joined)(_Step(t, node, layouts, extents))
        if extent is None:
            lost.append(node)
        else:
            # Shapes and indices cover nothing.
            extents.update({output: extent for output in node.outputs if t.wrap(output).is_real})
    return extents, lost


def _whole(side: int) -> Span:
    return Span(np.zeros(2), np.array([0.0, 1.0]), np.zeros(2), np.zeros(2), side)


def _spatial(t: Builder, value: ir.Value, layouts: Mapping[ir.Value, Layout]) -> list[int]:
    """The spatial sizes of a tensor, in the example binding."""
    shape = t.wrap(value).probe_shape or ()
    return [d for d, axis in zip(shape, layouts.get(value, ()), strict=False) if axis is not None and axis.kind in "ST"]


@dataclass(frozen=True, eq=False)
class _Step:
    """A node, and what is known of the tensors before it."""

    t: Builder
    node: ir.Node
    layouts: Mapping[ir.Value, Layout]
    extents: Mapping[ir.Value, Extent]

    @property
    def source(self) -> ir.Value | None:
        """The first input."""
        return self.node.inputs[0]

    @property
    def before(self) -> tuple[int, ...] | None:
        return None if self.source is None else self.t.wrap(self.source).probe_shape

    @property
    def after(self) -> tuple[int, ...] | None:
        return self.t.wrap(self.node.outputs[0]).probe_shape

    def constant(self, index: int) -> list[int] | None:
        """The integers of an input; `None` if it is missing or depends on more than fixed sizes."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        shape_of, opsets = lambda v: self.t.wrap(v).known_shape, self.t.model.core.opset_imports
        array = None if value is None else computed(value, shape_of, opsets)
        return None if array is None else [int(i) for i in array.reshape(-1)]

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def is_fixed(self, axis: int) -> bool:
        """Whether an axis of the first input has the same size for every image."""
        return self.source is not None and isinstance(self.t.wrap(self.source).shape[axis], int)

    def changed(self, change: Callable[[int, Span], Span | None]) -> Extent | None:
        """The extent of the first input with `(axis, span) -> span` applied to the axes whose size changes.

        `None` if the meaning of such an axis is unknown, or the change is.
        """
        extent, layout = self.extents.get(self.source), self.layouts.get(self.source)  # type: ignore[arg-type]
        before, after = self.before, self.after
        if extent is None or layout is None or before is None or after is None or len(before) != len(after):
            return None
        spans = list(extent)
        for i, axis in enumerate(layout):
            kind = "" if axis is None else axis.kind
            if before[i] == after[i] and kind != "S":
                continue
            if kind in {"", "s", "*"}:
                return None
            if axis is not None and kind == "S":
                span = change(i, spans[axis.place])
                if span is None:
                    return None
                spans[axis.place] = span
        return spans[0], spans[1]


def _sliced(step: _Step) -> Extent | None:
    starts, ends = step.constant(1), step.constant(2)
    if step.before is None:
        return None
    if starts is None or ends is None or any(step.has(i) and step.constant(i) is None for i in (3, 4)):
        return step.changed(lambda i, span: span if _same(step, i) else None)
    axes = [axis % len(step.before) for axis in step.constant(3) or range(len(starts))]
    strides = step.constant(4) or [1] * len(axes)

    def change(i: int, span: Span) -> Span | None:
        if i not in axes or step.before is None:
            return span
        start, end, stride = (values[axes.index(i)] for values in (starts, ends, strides))
        count, fixed = step.before[i], step.is_fixed(i)
        if stride != 1:
            # Every second row, say, still covers the whole side.
            return span if 0 <= start < stride and end >= count else None
        if not fixed and count <= end < _END:
            return None
        cell = span.cell(count, fixed=fixed)
        first, last = span.ends
        new_first = first + max(start, 0) * cell if start >= 0 else last + max(start, -count) * cell
        new_last = last if end >= count else first + end * cell if end >= 0 else last + end * cell
        new_first = first if start <= -count else new_first
        return span.between(new_first, new_last)

    return step.changed(change)


def _same(step: _Step, axis: int) -> bool:
    """Whether an axis keeps its size, known for every image."""
    return (
        step.is_fixed(axis)
        and step.before is not None
        and step.after is not None
        and (step.before[axis] == step.after[axis])
    )


def _padded(step: _Step) -> Extent | None:
    pads, readers = step.constant(1), [use.node for use in step.node.outputs[0].uses()]
    if pads is None and readers and all(reader.op_type in _WINDOWS for reader in readers):
        # SAME padding whose widths the graph computes belongs to the windows behind it.
        return step.extents.get(step.source) if step.source is not None else None
    if step.before is None:
        return None
    if pads is None or (step.has(3) and step.constant(3) is None):
        return step.changed(lambda i, span: span if _same(step, i) else None)
    rank = len(step.before)
    axes = [axis % rank for axis in (step.constant(3) if step.has(3) else None) or range(rank)]

    def change(i: int, span: Span) -> Span | None:
        if i not in axes or step.before is None:
            return span
        low, high = pads[axes.index(i)], pads[axes.index(i) + len(axes)]
        cell = span.cell(step.before[i], fixed=step.is_fixed(i))
        first, last = span.ends
        return span.between(first - low * cell, last + high * cell)

    return step.changed(change)


def _center_cropped(step: _Step) -> Extent | None:
    """CenterCropPad: of an odd difference, the smaller half comes first."""

    def change(i: int, span: Span) -> Span | None:
        if step.before is None or step.after is None or not step.is_fixed(i):
            return None
        cell, missing = span.cell(step.before[i], fixed=True), step.after[i] - step.before[i]
        low = missing // 2 if missing >= 0 else -(-missing // 2)
        first, last = span.ends
        return span.between(first - low * cell, last + (missing - low) * cell)

    return step.changed(change)


def _unchanged_sizes(step: _Step) -> Extent | None:
    """A node that picks from an axis: the extent of its input, unless it picks positions."""
    extent, layout = step.extents.get(step.source), step.layouts.get(step.source)  # type: ignore[arg-type]
    if extent is None or layout is None:
        return _joined(step) if extent is not None else None
    where = step.node.attributes.get_int("axis", 0) % len(layout)
    axis = layout[where]
    return extent if axis is not None and axis.kind not in {"S", "s", "*"} else None


def _windowed(step: _Step) -> Extent | None:
    """A convolution or pooling without padding of its own, behind a Pad, loses that padding."""
    source, attributes = step.source, step.node.attributes
    extent = step.extents.get(source)  # type: ignore[arg-type]
    layout, before = step.layouts.get(source, ()), step.before  # type: ignore[arg-type]
    second = step.node.inputs[1] if step.has(1) else None
    weight = None if second is None else step.t.wrap(second).known_shape
    kernel = [k for k in attributes.get_ints("kernel_shape", (weight or ())[2:]) if isinstance(k, int)]
    if extent is None or before is None or len(kernel) != len(before) - 2:
        return extent
    rank = len(kernel)
    auto = attributes.get_string("auto_pad", "NOTSET")
    pads = [0] * 2 * rank if auto == "VALID" else attributes.get_ints("pads", [0] * 2 * rank)
    dilations = attributes.get_ints("dilations", [1] * rank)
    spans = list(extent)
    for i, axis in enumerate(layout[2:]):
        if axis is not None and axis.kind == "S" and not auto.startswith("SAME"):
            loss = (kernel[i] - 1) * dilations[i] - pads[i] - pads[i + rank]
            span = spans[axis.place]
            cell = span.pixels(span.cell(before[i + 2], fixed=step.is_fixed(i + 2)))
            spans[axis.place] = span.behind_window(loss * cell)
    return spans[0], spans[1]


def _concatenated(step: _Step) -> Extent | None:
    """Joined along other axes; parts of a side that lie next to each other, rolled or not, cover what all cover."""
    layout = next((step.layouts[i] for i in step.node.inputs if i is not None and i in step.layouts), None)
    axis = layout[step.node.attributes["axis"].as_int() % len(layout)] if layout is not None else None
    if axis is not None and axis.kind in {"N", "C", "c", "T"}:
        return _joined(step)
    parts = [step.extents.get(i) for i in step.node.inputs]  # type: ignore[arg-type]
    known = [part for part in parts if part is not None]
    if layout is None or len(known) < len(parts):
        return None
    hull = []
    for spans in zip(*known, strict=True):
        first = min((s.ends[0] for s in spans), key=spans[0].pixels)
        last = max((s.ends[1] for s in spans), key=spans[0].pixels)
        hull.append(replace(spans[0], start=first, end=last, low=np.zeros(2), high=np.zeros(2)))
    return hull[0], hull[1]


def _joined(step: _Step) -> Extent | None:
    """The extent on which all inputs of the output's size agree to one cell."""
    target = step.node.outputs[0]
    sizes = _spatial(step.t, target, step.layouts)
    inputs = [i for i in step.node.inputs if i is not None and i in step.extents]
    fitting = [i for i in inputs if _spatial(step.t, i, step.layouts) == sizes] or inputs
    found = [step.extents[i] for i in fitting]
    # Of two that differ by less than a cell, the whole image is what the others are shifted against.
    chosen = next((extent for extent in found if all(span.is_whole for span in extent)), found[0])
    count = max(sizes, default=1)
    return chosen if all(_close(a, b, count) for extent in found for a, b in zip(chosen, extent, strict=True)) else None


def _close(one: Span, other: Span, count: int) -> bool:
    cell = one.pixels(one.cell(count, fixed=True))
    return all(abs(one.pixels(a - b)) <= cell + 1e-6 for a, b in zip(one.ends, other.ends, strict=True))


def _resized(step: _Step) -> Extent | None:
    """A Resize keeps what is covered, unless it crops."""
    crops = step.node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    return None if crops else _joined(step)


_RULES: dict[str, Callable[[_Step], Extent | None]] = {
    "Slice": _sliced,
    "Pad": _padded,
    "CenterCropPad": _center_cropped,
    "Gather": _unchanged_sizes,
    "Split": _unchanged_sizes,
    "Concat": _concatenated,
    "Resize": _resized,
    **dict.fromkeys(_WINDOWS, _windowed),
}


def edges(extent: Extent) -> list[list[float]]:
    """Top, left, bottom and right of an extent, each as [pixels, share of the side]; empty for the whole image."""
    if all(span.is_whole for span in extent):
        return []
    height, width = extent
    return [[round(float(x), 6) for x in e] for e in (height.ends[0], width.ends[0], height.ends[1], width.ends[1])]
