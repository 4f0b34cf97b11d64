"""The meaning of each axis of each tensor, followed through the graph and never guessed from sizes.

Convolutions and pools are channels-first by definition; Transposes permute axes, Reshapes merge and split them,
elementwise operators keep them. A transformer's token axis is a merged grid, perhaps behind class and register tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder, Value

__all__ = ["Axis", "Layout", "channels_first", "follow", "frames_of", "label_input", "letters", "window"]


@dataclass(frozen=True)
class Axis:
    """The meaning of one axis.

    Attributes:
        kind: `N` batch, `C` channels, `c` a part of the channels (attention heads), `S` one spatial dimension, `s` the
            positions in each cell of one that was split into cells, `r` a spatial dimension whose positions were
            rolled (shifted windows) and not yet rolled back, `T` tokens (a merged grid), `*` any other product
            of axes, or the identity of an input axis (`0`, `1` ...) while the layout of the input is being found.
        grid: for tokens, the sizes of the grid (in the example binding of free dimensions).
        before: for tokens, how many class or register tokens come before the grid.
        after: how many come after it.
        place: for a spatial dimension, which of the image's it is: 0 the height, 1 the width.
        shift: for a rolled one, by how many positions.
        parts: for a product, its factors and their sizes.
    """

    kind: str
    grid: tuple[int, ...] = ()
    before: int = 0
    after: int = 0
    place: int = 0
    shift: int = 0
    parts: tuple[Factor, ...] = ()


Factor = tuple["Axis | None", int]
"""The meaning and the size of (a part of) an axis."""

Layout = tuple["Axis | None", ...]
"""The meaning of every axis of a tensor; `None` if unknown."""

BATCH, CHANNEL, HEAD = Axis("N"), Axis("C"), Axis("c")

_CHANNELS_FIRST = {
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
    "LRN",
    "DepthToSpace",
    "SpaceToDepth",
    "QLinearConv",
    "ConvInteger",
    "MaxRoiPool",
}
_NORMALISED = {"BatchNormalization", "InstanceNormalization", "GroupNormalization"}
_REDUCTIONS = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"}
_RESHAPES = {"Reshape", "Flatten"}


def follow(t: Builder, known: Mapping[ir.Value, Layout] | None = None) -> dict[ir.Value, Layout]:
    """The layouts of all tensors whose axes can be followed, from the convolutions and those `known` on."""
    layouts: dict[ir.Value, Layout] = dict(known or {})
    for node in t.nodes:
        x = node.inputs[0] if node.op_type in _CHANNELS_FIRST else None
        before = layouts.get(x) if x is not None else None
        if x is not None and before is not None and frames_of(before) and before[1] is None:
            # Frames of one channel, whose axis a Reshape adds.
            layouts[x] = _replaced(before, 1, CHANNEL)
        elif x is not None and any(map(_is_unclear, before or (None,))) and t.wrap(x).known_shape is not None:
            # The input of a convolution or pool is channels-first whatever computed it.
            layouts[x] = channels_first(t.wrap(x).rank)
        layout = _after(t, node, layouts)
        for output in node.outputs:
            value = t.wrap(output)
            if layout is not None and value.known_shape is not None and value.rank == len(layout):
                layouts.setdefault(output, layout)
    return layouts


def _is_unclear(axis: Axis | None) -> bool:
    """Whether an axis is unknown, or one that no convolution has: positions within several cells."""
    return axis is None or {part.kind if part else "" for part, _ in axis.parts} == {"s"}


def label_input(t: Builder, image: Value) -> Layout | None:
    """The layout of the image input, from the first convolution or pool that it reaches.

    An image without a batch axis, which the graph adds in front, has a layout without one.
    """
    layouts: dict[ir.Value, Layout] = {image.core: tuple(Axis(str(i)) for i in range(image.rank))}
    for node in t.nodes:
        x = node.inputs[0] if node.inputs else None
        seen = layouts.get(x) if x is not None else None
        if node.op_type in _CHANNELS_FIRST | _NORMALISED and seen is not None:
            layout = _of_convolved(seen, image.rank)
            if layout is not None:
                return layout
            continue
        layout = _after(t, node, layouts)
        for output in node.outputs:
            if layout is not None and any(axis and axis.kind.isdigit() for axis in layout):
                layouts.setdefault(output, layout)
    return None


def _of_convolved(seen: Layout, rank: int) -> Layout | None:
    """The layout of an input of `rank` axes, from where these are in the input of a convolution."""
    kinds = [axis.kind if axis else "" for axis in seen]
    names = [str(i) for i in range(rank)]
    if _has_frames(kinds, seen[0], rank):
        return _of_frames(kinds, rank)
    lost = set(names) - set(kinds)
    added = len(kinds) - rank
    if rank in {2, 3} and added == 1 and kinds[0] and sorted(filter(None, kinds)) == names:
        # A signal or spectrogram to which the graph adds an axis of size one.
        meaning = dict(zip(kinds, channels_first(len(kinds)), strict=True))
        return _renumbered(tuple(meaning[name] for name in names))
    if len(lost) == 1 and "" in kinds[added:]:
        # A Reshape may replace the Transpose of a single channel, whose axis it moves without a trace.
        kinds[kinds.index("", added)] = lost.pop()
    if added not in {0, 1} or kinds[:added] != [""] * added or sorted(kinds[added:]) != names:
        return None
    meaning = dict(zip(kinds[added:], channels_first(len(kinds))[added:], strict=True))
    return tuple(meaning[name] for name in names)


def _has_frames(kinds: Sequence[str], first: Axis | None, rank: int) -> bool:
    """Whether the batch of a convolution is the product of the input's first two axes: samples and their frames.

    A batch of one leaves no trace in the product.
    """
    parts = [part.kind if part else "" for part, _ in first.parts] if first is not None else []
    single = kinds[0] == "1" and "0" not in kinds
    return rank >= len(kinds) > 3 and (parts == ["0", "1"] or single)


def _of_frames(kinds: Sequence[str], rank: int) -> Layout | None:
    """The layout of an input whose frames are images of their own to the convolution, by the places of its axes there.

    Frames of one channel may lack its axis, `[N, T, H, W]`.
    """
    inside = channels_first(len(kinds))
    meaning: dict[str, Axis | None] = {"0": BATCH, "1": Axis("S", place=0)}
    for name, axis in zip(kinds[1:], inside[1:], strict=True):
        if axis is not None and name:
            meaning[name] = replace(axis, place=axis.place + 1) if axis.kind == "S" else axis
    if set(meaning) != {str(i) for i in range(rank)}:
        return None
    return tuple(meaning[str(i)] for i in range(rank))


def _renumbered(layout: Layout) -> Layout:
    """A layout whose spatial axes are counted without the one that the graph adds."""
    places = sorted(axis.place for axis in layout if axis is not None and axis.kind == "S")
    return tuple(replace(a, place=places.index(a.place)) if a is not None and a.kind == "S" else a for a in layout)


def channels_first(rank: int) -> Layout:
    """The layout of convolutions, pools and most normalisations."""
    return (BATCH, CHANNEL, *(Axis("S", place=i) for i in range(rank - 2)))


def letters(layout: Layout) -> str:
    """A layout in the usual letters, e.g. `NCHW`, `NHWC` or `NTC`; `?` for unknown axes."""
    names = {2: "HW", 3: "DHW"}.get(sum(axis is not None and axis.kind == "S" for axis in layout), "WWW")
    return "".join("?" if a is None else names[a.place] if a.kind == "S" else a.kind for a in layout)


def _after(t: Builder, node: ir.Node, layouts: dict[ir.Value, Layout]) -> Layout | None:
    """The layout of the node's outputs, from those of its inputs."""
    if node.op_type in _CHANNELS_FIRST:
        return _convolved(t, node, layouts)
    inputs = [layouts.get(i) if i is not None else None for i in node.inputs]
    if not any(inputs):
        return None
    special = _RULES.get(node.op_type)
    if special is not None:
        return special(t, node, inputs)
    if node.op_type in _REDUCTIONS:
        return _reduce(t, node, inputs[0])
    if node.op_type in _RESHAPES:
        return _reshape(t, node, inputs[0])
    return _elementwise(t, node, inputs)


def _convolved(t: Builder, node: ir.Node, layouts: dict[ir.Value, Layout]) -> Layout | None:
    """Channels first; height and width that were swapped before stay swapped."""
    shape, x = t.wrap(node.outputs[0]).known_shape, node.inputs[0]
    if shape is None or len(shape) < 3:
        return None
    before = layouts.get(x) if x is not None else None
    if before is not None and len(before) == len(shape) and all(a and a.kind == "S" for a in before[2:]):
        return (before[0] if frames_of(before) else BATCH, CHANNEL, *before[2:])
    return channels_first(len(shape))


def frames_of(layout: Layout) -> int:
    """How many frames of a clip the first axis holds for each sample; 0 where it is the batch alone."""
    first = layout[0] if layout else None
    parts = first.parts if first is not None and first.kind == "*" else ()
    kinds = [axis.kind if axis is not None else "" for axis, _ in parts]
    return parts[1][1] if kinds == ["N", "S"] else 0


def _elementwise(t: Builder, node: ir.Node, inputs: Sequence[Layout | None]) -> Layout | None:
    """An operator whose output has the shape of its (broadcast) inputs; any other loses the layout."""
    shape = _example(t, node.outputs[0])
    for value, layout in zip(node.inputs, inputs, strict=True):
        if value is not None and layout is not None and shape is not None and _example(t, value) == shape:
            return layout
    return None


def _transpose(t: Builder, node: ir.Node, inputs: Sequence[Layout | None]) -> Layout | None:  # noqa: ARG001
    layout = inputs[0]
    if layout is None:
        return None
    attribute = node.attributes.get("perm")
    perm = attribute.as_ints() if attribute is not None else range(len(layout))[::-1]
    return tuple(layout[i] for i in perm)


def _same_axes(t: Builder, node: ir.Node, inputs: Sequence[Layout | None]) -> Layout | None:
    """Sizes may change, meanings do not; a resized or padded token axis is no grid any more, nor a product one.

    The sizes can be computed from the input and unknown here; the rank is enough for all other axes.
    """
    layout = inputs[0]
    if layout is None:
        return None
    unknown = (None,) * len(layout)
    before, after = _example(t, node.inputs[0]) or unknown, _example(t, node.outputs[0]) or unknown
    if len(before) != len(after):
        return None
    return tuple(
        None if axis is not None and axis.kind in "Ts*" and (a is None or a != b) else axis
        for axis, a, b in zip(layout, before, after, strict=True)
    )


def _concat(t: Builder, node: ir.Node, inputs: Sequence[Layout | None]) -> Layout | None:
    rank = next(len(k) for k in inputs if k is not None)
    where = node.attributes["axis"].as_int() % rank
    placed = [i for i, k in enumerate(inputs) if k is not None and k[where] is not None]
    layout = inputs[placed[0]] if placed else next(k for k in inputs if k is not None)
    axis = layout[where] if layout is not None else None
    if layout is None or axis is None or axis.kind not in "SsrT*":
        return layout
    roll = _roll_of_slices(t, node, where) if axis.kind in "Sr" else None
    if roll is not None:
        return _replaced(layout, where, _rolled(axis, *roll))
    sizes = [_example(t, i) for i in node.inputs]
    if axis.kind != "T" or len(placed) > 1 or any(s is None for s in sizes):
        # Joined positions: which is where cannot be told any more.
        return _replaced(layout, where, None)
    lengths = [s[where] for s in sizes if s is not None]
    before, after = sum(lengths[: placed[0]]), sum(lengths[placed[0] + 1 :])
    return _replaced(layout, where, replace(axis, before=axis.before + before, after=axis.after + after))


def _roll_of_slices(t: Builder, node: ir.Node, axis: int) -> tuple[int, int] | None:
    """Shift and size of a roll, if a Concat puts the end of an axis before its beginning."""
    slices = [None if value is None else value.producer() for value in node.inputs]
    if len(slices) != 2 or any(s is None or s.op_type != "Slice" for s in slices):
        return None
    first, second = (s for s in slices if s is not None)
    size = _example(t, first.inputs[0])
    if first.inputs[0] is not second.inputs[0] or size is None:
        return None
    tail, head = (window(t, s, axis, size[axis]) for s in (first, second))
    if tail is None or head is None or tail[1] != size[axis] or head != (0, tail[0]):
        return None
    return tail[0], size[axis]


def _rolled(axis: Axis, shift: int, size: int) -> Axis:
    """A spatial dimension with position `i + shift` at `i`, modulo its size; rolled back it is itself again."""
    total = (axis.shift + shift) % size
    return replace(axis, kind="r" if total else "S", shift=total)


def _slice(t: Builder, node: ir.Node, inputs: Sequence[Layout | None]) -> Layout | None:
    layout = _same_axes(t, node, inputs)
    source, size = inputs[0], _example(t, node.inputs[0])
    if layout is None or source is None or size is None:
        return layout
    for where, axis in enumerate(source):
        if axis is None or axis.kind != "T" or layout[where] is not None:
            continue
        kept = window(t, node, where, size[where])
        if kept is None:
            continue
        start, end = kept
        first, last = axis.before, axis.before + math.prod(axis.grid)
        if start <= first and end >= last:
            layout = _replaced(layout, where, replace(axis, before=first - start, after=end - last))
    return layout


def window(t: Builder, node: ir.Node, axis: int, size: int) -> tuple[int, int] | None:
    """Start and end of a contiguous constant Slice along `axis`."""
    inputs = [None if i is None else t.wrap(i).array() for i in node.inputs[1:]]
    starts, ends = inputs[:2]
    if starts is None or ends is None:
        return None
    axes = list(range(len(starts)))
    if len(inputs) > 2 and inputs[2] is not None:
        axes = [int(a) % len(t.wrap(node.outputs[0]).shape) for a in inputs[2]]
    steps = inputs[3] if len(inputs) > 3 and inputs[3] is not None else [1] * len(axes)
    if axis not in axes or steps[axes.index(axis)] != 1:
        return None
    return slice(int(starts[axes.index(axis)]), int(ends[axes.index(axis)])).indices(size)[:2]


def _gather(t: Builder, node: ir.Node, inputs: Sequence[Layout | None]) -> Layout | None:
    layout = inputs[0]
    indices = node.inputs[1]
    if layout is None or indices is None or t.wrap(indices).known_shape is None:
        return None
    attribute = node.attributes.get("axis")
    where = (attribute.as_int() if attribute is not None else 0) % len(layout)
    axis = layout[where]
    order = t.wrap(indices).array()
    if axis is not None and axis.kind in "Sr" and order is not None and order.ndim == 1:
        size = _example(t, node.inputs[0])
        if size is not None and [int(i) % size[where] for i in order] == _from(int(order[0]), size[where]):
            return _replaced(layout, where, _rolled(axis, int(order[0]), size[where]))
    kept = None if axis is None or axis.kind in "SsrT*" else axis
    return (*layout[:where], *(kept,) * t.wrap(indices).rank, *layout[where + 1 :])


def _from(start: int, size: int) -> list[int]:
    return [(start + i) % size for i in range(size)]


def _matmul(t: Builder, node: ir.Node, inputs: Sequence[Layout | None]) -> Layout | None:
    """A constant matrix mixes channels; of two activations the rows of one meet the columns of the other."""
    left, right = inputs[:2]
    if left is None or node.inputs[1] is None:
        return None
    if right is not None:
        if len(left) != len(right):
            return None
        common = [a if a is not None else b for a, b in zip(left[:-2], right[:-2], strict=True)]
        return (*common, left[-2], right[-1])
    channels = left[-1] is not None and left[-1].kind in "Cc"
    matrix = t.wrap(node.inputs[1])
    return left if channels and matrix.known_shape is not None and matrix.rank == 2 else None


def _gemm(t: Builder, node: ir.Node, inputs: Sequence[Layout | None]) -> Layout | None:
    return None if node.attributes.get_int("transA", 0) else _matmul(t, node, inputs)


def _squeeze(t: Builder, node: ir.Node, inputs: Sequence[Layout | None]) -> Layout | None:
    axes = t.wrap(node.inputs[1]).array() if len(node.inputs) > 1 and node.inputs[1] is not None else None
    layout = inputs[0]
    if layout is None or axes is None:
        return _reshape(t, node, layout)
    if node.op_type == "Squeeze":
        gone = {int(a) % len(layout) for a in axes}
        return tuple(axis for i, axis in enumerate(layout) if i not in gone)
    rank, rest = len(layout) + len(axes), iter(layout)
    new = {int(a) % rank for a in axes}
    # In front of the channels and positions of one image, a new axis is that of its batch.
    batch = BATCH if CHANNEL in layout and BATCH not in layout and 0 in new else None
    return tuple((batch if i == 0 else None) if i in new else next(rest) for i in range(rank))


def _reduce(t: Builder, node: ir.Node, layout: Layout | None) -> Layout | None:
    before, after = _example(t, node.inputs[0]), _example(t, node.outputs[0])
    if layout is None or before is None or after is None:
        return None
    if len(before) == len(after):
        return tuple(axis if a == b else None for axis, a, b in zip(layout, before, after, strict=True))
    axes = t.wrap(node.inputs[1]).array() if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if axes is None:
        return None
    gone = {int(a) % len(before) for a in axes}
    return tuple(axis for i, axis in enumerate(layout) if i not in gone)


def _reshape(t: Builder, node: ir.Node, layout: Layout | None) -> Layout | None:
    """Match runs of axes with equal products: a merged grid becomes tokens, split tokens become their grid again."""
    before, after = _example(t, node.inputs[0]), _example(t, node.outputs[0])
    if layout is None or before is None or after is None or 0 in before:
        return None
    result: list[Axis | None] = []
    for left, right in _runs(before, after):
        sources = [layout[i] for i in left]
        result.extend(_regroup(sources, [before[i] for i in left], [after[i] for i in right]))
    return tuple(result)


def _runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split two factorisations of one number into the finest runs of equal product."""
    runs, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        left, right = ([i] if i < len(before) else []), ([j] if j < len(after) else [])
        i, j = i + len(left), j + len(right)
        while math.prod(before[k] for k in left) != math.prod(after[k] for k in right):
            if math.prod(before[k] for k in left) < math.prod(after[k] for k in right):
                if i == len(before):
                    break
                left.append(i)
                i += 1
            else:
                if j == len(after):
                    break
                right.append(j)
                j += 1
        runs.append((left, right))
    return runs


def _regroup(sources: Sequence[Axis | None], sizes: Sequence[int], targets: Sequence[int]) -> list[Axis | None]:
    """The axes that a run of axes becomes: its factors, dealt out again in order."""
    if len(sources) == len(targets) == 1:
        return [sources[0]]
    factors: list[Factor] = []
    for axis, size in zip(sources, sizes, strict=True):
        factors.extend(axis.parts if axis is not None and axis.parts else [(axis, size)])
    # Sizes of one come and go without a meaning, but for a batch that is fixed at one; what remains decides.
    factors = [f for f in factors if f[1] != 1 or f[0] == BATCH]
    result: list[Axis | None] = []
    for target in targets:
        taken = _take(factors, target)
        if taken is None:
            return [None] * len(targets)
        result.append(_merged(taken))
    return result


def _take(factors: list[Factor], size: int) -> list[Factor] | None:
    """Remove factors of the product `size` from the front; channels and a grid of tokens can be split for it."""
    taken: list[Factor] = []
    if size == 1 and factors and factors[0][1] == 1:
        taken.append(factors.pop(0))
    while size != 1:
        if not factors:
            # The declared sizes contradict each other.
            return None
        axis, width = factors[0]
        kind = axis.kind if axis is not None else ""
        if size % width == 0:
            taken.append(factors.pop(0))
            size //= width
        elif kind in {"C", "c"} and width % size == 0:
            taken.append((HEAD, size))
            factors[0] = HEAD, width // size
            size = 1
        elif axis is not None and kind in {"S", "r"} and width % size == 0:
            taken.append((axis, size))
            factors[0] = Axis("s", place=axis.place, shift=axis.shift), width // size
            size = 1
        elif axis is not None and kind == "T" and not axis.before and not axis.after:
            factors[:1] = [(Axis("S", place=i), side) for i, side in enumerate(axis.grid) if side != 1]
        else:
            return None
    return taken


def _merged(factors: Sequence[Factor]) -> Axis | None:
    factors = _rejoined(factors)
    kinds = {axis.kind if axis is not None else "" for axis, _ in factors}
    if len(factors) < 2 or kinds == {""}:
        return factors[0][0] if factors else None
    if kinds <= {"C", "c", "s"} and kinds != {"s"}:
        # Cells whose positions are adjacent channels: the input of a merging of patches.
        return CHANNEL
    places = [axis.place for axis, _ in factors if axis is not None]
    if kinds == {"S"} and places == sorted(places):
        return Axis("T", tuple(size for _, size in factors))
    return Axis("*", parts=tuple(factors))


def _rejoined(factors: Sequence[Factor]) -> list[Factor]:
    """Cells and the positions within them, if adjacent, are the whole dimension again."""
    result: list[Factor] = []
    for axis, size in factors:
        cell = result[-1][0] if result else None
        if axis is not None and axis.kind == "s" and cell is not None and cell == _whole(axis):
            result[-1] = cell, result[-1][1] * size
        else:
            result.append((axis, size))
    return result


def _whole(part: Axis) -> Axis:
    """The dimension that positions within cells are a part of."""
    return replace(part, kind="r" if part.shift else "S")


def _replaced(layout: Layout, where: int, axis: Axis | None) -> Layout:
    return (*layout[:where], axis, *layout[where + 1 :])


def _example(t: Builder, value: ir.Value | None) -> tuple[int, ...] | None:
    return None if value is None else t.wrap(value).probe_shape


_RULES: dict[str, Callable[[Builder, ir.Node, Sequence[Layout | None]], Layout | None]] = {
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Squeeze": _squeeze,
    "Unsqueeze": _squeeze,
    "Pad": _same_axes,
    "CenterCropPad": _same_axes,
    "Resize": _same_axes,
    "Split": _same_axes,
}
