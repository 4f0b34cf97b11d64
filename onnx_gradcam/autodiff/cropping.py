"""Cotangents that are zero outside of a small window, and the steps of the reverse pass that stay within it.

The score of one box is read from one position of a feature map. Its cotangent is a single point there, and grows by a
kernel with every convolution on the way back: behind a head of two 3x3 convolutions it has 5x5 positions, where the map
has 80x80. A window is cut out where `backward` is told that there is a single point, its centre is found when the
model runs, and it is put back into a map of zeros in front of the first node that is neither a convolution of stride 1
nor computes every position from itself alone.

Cutting and putting back are products with matrices of ones and zeros, which change no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder, Value

from .registry import attributes
from .rules._windows import windows

__all__ = ["Spot", "Window", "added", "crop_of", "cut_out", "through_convolution"]

Pair = tuple[int, int]
"""A number along the height and one along the width."""

_POSITIONWISE = {
    *(
        "Abs",
        "Add",
        "BatchNormalization",
        "Cast",
        "Celu",
        "Clip",
        "DynamicQuantizeLinear",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
    ),
    *("HardSwish", "Identity", "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Relu", "Selu", "Sigmoid"),
    *("Softplus", "Softsign", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu"),
}
"""Operators whose result at a position depends on this position of their inputs alone, and whose derivative is finite
at zero, which is what a window has beyond the edges of the map."""


@dataclass(frozen=True, eq=False)
class Spot:
    """One position of every sample's map.

    Attributes:
        rows: one in its row and zeros elsewhere, `[N, 1, H, 1]`; all zeros where the sample has no such position.
        columns: the same along the width, `[N, 1, 1, W]`.
        made: what has been computed already, by its key.
    """

    rows: Value
    columns: Value
    made: dict[tuple[object, ...], Value] = field(default_factory=dict, repr=False)

    def shifted(self, t: Builder, axis: int, before: int, size: int) -> Value:
        """For every row (`axis` 0) or column (1) of a window that begins `before` the spot, the map's row that it is.

        Ones and zeros, `[N, size, H, 1]` or `[N, size, 1, W]`. A row beyond the map's edge has zeros alone.
        """
        key = ("shifted", axis, before, size)
        if key not in self.made:
            vector = (self.rows, self.columns)[axis]
            after = size - 1 - before
            kernel = np.eye(size)[::-1].reshape(size, 1, *((size, 1), (1, size))[axis])
            pads = [(after, 0), (0, after)][axis] + [(before, 0), (0, before)][axis]
            weight = t.const(np.ascontiguousarray(kernel), vector.dtype)
            self.made[key] = t.op("Conv", vector, weight, pads=list(pads), strides=[1, 1])
        return self.made[key]


@dataclass(frozen=True, eq=False)
class Window:
    """A cotangent within a window around a spot; it is zero elsewhere.

    Attributes:
        value: the cotangent, `[N, C, *size]`; zero beyond the map's edges.
        spot: where it is.
        before: the rows and the columns of the window before the spot.
        size: the rows and the columns of the window.
    """

    value: Value
    spot: Spot
    before: Pair
    size: Pair

    def with_value(self, value: Value) -> Window:
        """Another cotangent in the same window."""
        return replace(self, value=value)

    def _shifted(self, t: Builder) -> tuple[Value, Value]:
        """The map's row of each row of the window, and its column of each column; see `Spot.shifted`."""
        rows, columns = (self.spot.shifted(t, i, self.before[i], self.size[i]) for i in (0, 1))
        return rows, columns

    def crop(self, t: Builder, x: Value) -> Value:
        """The same window of a tensor `[N, C, H, W]`, zero beyond its edges."""
        key = ("crop", x.core, self.before, self.size)
        if key not in self.spot.made:
            rows, columns = self._shifted(t)
            exact = t.cast(x, rows.dtype)
            high = t.op("MatMul", t.transpose(rows, [0, 3, 1, 2]), exact)
            self.spot.made[key] = t.cast(t.op("MatMul", high, t.transpose(columns, [0, 2, 3, 1])), x.dtype)
        return self.spot.made[key]

    def placed(self, t: Builder) -> Value:
        """The whole cotangent, `[N, C, H, W]`."""
        rows, columns = self._shifted(t)
        high = t.op("MatMul", t.transpose(rows, [0, 3, 2, 1]), self.value)
        return t.op("MatMul", high, t.transpose(columns, [0, 2, 1, 3]))

    def masked(self, t: Builder, value: Value) -> Window:
        """Another cotangent in the same window, set to zero beyond the map's edges."""
        key = ("inside", self.before, self.size)
        if key not in self.spot.made:
            rows, columns = self._shifted(t)
            down = t.transpose(t.sum(rows, [2]), [0, 2, 1, 3])
            across = t.transpose(t.sum(columns, [3]), [0, 2, 3, 1])
            self.spot.made[key] = down * across
        return self.with_value(value * self.spot.made[key])

    def widened(self, t: Builder, before: Pair, size: Pair) -> Window:
        """The same cotangent in a window that contains this one."""
        if (before, size) == (self.before, self.size):
            return self
        begin = [b - own for b, own in zip(before, self.before, strict=True)]
        end = [s - own - b for s, own, b in zip(size, self.size, begin, strict=True)]
        value = t.op("Pad", self.value, t.ints(0, 0, *begin, 0, 0, *end))
        return replace(self, value=value, before=before, size=size)


def cut_out(t: Builder, g: Value) -> Window:
    """The window of one position of a cotangent `[N, C, H, W]` that has no other."""
    rows, columns = (t.op("Sign", t.reduce("ReduceMax", t.op("Abs", g), axes)) for axes in ((1, 3), (1, 2)))
    window = Window(g, Spot(rows, columns), (0, 0), (1, 1))
    return window.with_value(window.crop(t, g))


def added(t: Builder, parts: Sequence[Window]) -> Window | None:
    """The sum of windows around one spot; `None` if they are around several."""
    spot = parts[0].spot
    if any(part.spot is not spot for part in parts):
        return None
    before, size = [], []
    for i in (0, 1):
        start = max(part.before[i] for part in parts)
        before.append(start)
        size.append(start + max(part.size[i] - part.before[i] for part in parts))
    wide = [part.widened(t, (before[0], before[1]), (size[0], size[1])) for part in parts]
    value = t.op("Sum" if len(wide) > 2 else "Add", *(part.value for part in wide))
    return wide[0].with_value(value)


def crop_of(t: Builder, window: Window, node: ir.Node) -> list[Value | None] | None:
    """The inputs of a node as its rule sees them within a window; `None` if other positions have a part in it.

    Tensors that are the same at all positions stay as they are.
    """
    if node.domain or node.op_type not in _POSITIONWISE:
        return None
    grid = t.wrap(node.outputs[0]).known_shape
    inputs: list[Value | None] = []
    for i, core in enumerate(node.inputs):
        x = None if core is None else t.wrap(core)
        if x is None or _same_everywhere(x, node, i):
            inputs.append(x)
        elif x.known_shape is not None and grid is not None and x.rank == 4 and x.shape[2:] == grid[2:]:
            inputs.append(window.crop(t, x))
        else:
            return None
    return inputs


def _same_everywhere(x: Value, node: ir.Node, index: int) -> bool:
    """Whether an input of a node is no map but numbers that all positions share."""
    if x.known_shape is None:
        return False
    return set(x.shape[-2:]) <= {1} or (index > 0 and node.op_type == "BatchNormalization")


def through_convolution(t: Builder, window: Window, node: ir.Node) -> Window | None:
    """The cotangent of the image of a convolution of stride 1 that keeps the size of a map; `None` for another one.

    Each convolution widens the window by its kernel, up to the size of the map.
    """
    if node.domain or node.op_type != "Conv":
        return None
    image, kernel = node.inputs[:2]
    assert image is not None  # noqa: S101 - a convolution has both
    assert kernel is not None  # noqa: S101
    x, weight, options = t.wrap(image), t.wrap(kernel), attributes(node)
    group = options.pop("group", 1)
    over = windows(t, x, options.pop("kernel_shape", None) or weight, **options)
    pads, extent = over.pads(), [e.known for e in over.extent]
    if x.known_shape is None or x.rank != 4 or pads is None or None in extent or any(s != 1 for s in over.strides):
        return None
    reach = [e - 1 for e in extent if e is not None]
    if any(reach[i] != pads[i] + pads[i + 2] or min(pads[i], pads[i + 2]) < 0 for i in (0, 1)):
        return None
    size = window.size[0] + reach[0], window.size[1] + reach[1]
    if any(isinstance(n, int) and s >= n for s, n in zip(size, x.shape[2:], strict=True)):
        return None
    before = window.before[0] + pads[0], window.before[1] + pads[1]
    # The pass may compute in another type than the model.
    weight = t.cast(weight, window.value.dtype)
    value = t.op("ConvTranspose", window.value, weight, dilations=list(over.dilations), group=group, strides=[1, 1])
    wider = Window(value, window.spot, before, size)
    return wider.masked(t, value) if any(reach) else wider
