"""ONNX's reference evaluator with corrected operators, to compute gradients in float64.

`evaluator` and `evaluate` run a model, `as_double` converts it to float64. The classes are operators that ONNX's own
evaluator lacks, computes wrongly for some attributes, or computes in float32 whatever its inputs are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

__all__ = ["as_double", "evaluate", "evaluator"]

Array = npt.NDArray[Any]


class _Operator(OpRun):
    """An operator of the default domain that replaces ONNX's own."""

    op_domain = ""


class MaxPool(_Operator):
    """The maximum of every window; ONNX's own fails for odd SAME padding and for kernels one element wide."""

    def _run(
        self, x: Array, auto_pad: str | None = None, ceil_mode: int | None = None, dilations: list[int] | None = None,
        kernel_shape: list[int] | None = None, pads: list[int] | None = None, storage_order: int | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array, ...]:  # fmt: skip
        kernel = kernel_shape or []
        n = len(kernel)
        strides, dilations = strides or [1] * n, dilations or [1] * n
        pads = [0] * (2 * n) if pads is None else list(pads)
        outputs = []
        for i, (h, k, s, d) in enumerate(zip(x.shape[2:], kernel, strides, dilations, strict=True)):
            extent = (k - 1) * d + 1
            if (auto_pad or "NOTSET").startswith("SAME"):
                total = max((-(-h // s) - 1) * s + extent - h, 0)
                pads[i] = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
                pads[i + n] = total - pads[i]
            room = h + pads[i] + pads[i + n] - extent
            count = (-(-room // s) if ceil_mode else room // s) + 1
            # A window that starts behind the image does not count.
            outputs.append(count - 1 if ceil_mode and (count - 1) * s >= h + pads[i] else count)
        widths = [(pads[i], pads[i + n] + max(strides)) for i in range(n)]
        image = np.pad(x, [(0, 0), (0, 0), *widths], constant_values=-np.inf)
        spatial = range(2, x.ndim)
        order = (0, 1, *(reversed(spatial) if storage_order else spatial))
        numbers = np.arange(x.size).reshape([x.shape[i] for i in order]).transpose(order)
        positions = np.pad(numbers, [(0, 0), (0, 0), *widths], constant_values=-1)
        taps = []
        for offset in np.ndindex(*kernel):
            steps = zip(offset, dilations, outputs, strides, strict=True)
            inner = (slice(j * d, j * d + (o - 1) * s + 1, s) for j, d, o, s in steps)
            taps.append((slice(None), slice(None), *inner))
        values = np.stack([image[tap] for tap in taps])
        best = values.argmax(0)[None]
        y = np.take_along_axis(values, best, 0)[0]
        if len(self.onnx_node.output) == 1:
            return (y,)
        indices = np.stack([positions[tap] for tap in taps])
        return y, np.take_along_axis(indices, best, 0)[0]


class GlobalMaxPool(_Operator):
    """The maximum over all spatial axes; ONNX's own knows planes only."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GlobalLpPool(_Operator):
    """The p-norm over all spatial axes; ONNX has none."""

    def _run(self, x: Array, p: int | None = None) -> tuple[Array]:
        p = 2 if p is None else p
        return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p),)


class Pad(_Operator):
    """Padding; ONNX's own rejects negative amounts, which crop."""

    def _run(
        self, x: Array, pads: Array, constant_value: Array | None = None, axes: Array | None = None,
        mode: str | None = None,
    ) -> tuple[Array]:  # fmt: skip
        over = range(x.ndim) if axes is None else [int(a) % x.ndim for a in axes]
        widths, kept = [(0, 0)] * x.ndim, [slice(None)] * x.ndim
        for i, axis in enumerate(over):
            before, after = int(pads[i]), int(pads[i + len(over)])
            widths[axis] = max(before, 0), max(after, 0)
            kept[axis] = slice(max(-before, 0), x.shape[axis] - max(-after, 0))
        if (mode or "constant") != "constant":
            return (np.pad(x[tuple(kept)], widths, mode=cast("Any", mode)),)
        fill = 0 if constant_value is None else constant_value.item()
        return (np.pad(x[tuple(kept)], widths, constant_values=fill).astype(x.dtype, copy=False),)


class GridSample(_Operator):
    """Sampling on a grid; ONNX's own computes positions in float32 whatever the inputs are."""

    def _run(
        self, x: Array, grid: Array, align_corners: int | None = None, mode: str | None = None,
        padding_mode: str | None = None,
    ) -> tuple[Array]:  # fmt: skip
        y = np.zeros((*x.shape[:2], *grid.shape[1:-1]), x.dtype)
        mode, padding = mode or "linear", padding_mode or "zeros"
        for n in np.ndindex(*grid.shape[:-1]):
            value = x[n[0]]
            for length, position in zip(x.shape[2:], grid[n][::-1], strict=True):
                value = self._along_first_axis(value, float(position), length, mode, padding, bool(align_corners))
            np.moveaxis(y, 1, -1)[n] = value
        return (y,)

    def _along_first_axis(
        self, image: Array, position: float, length: int, mode: str, padding: str, align: bool,  # noqa: FBT001
    ) -> Array:  # fmt: skip
        """Interpolate `[C, length, ...]` to `[C, ...]`."""
        v = (position + 1) / 2 * (length - 1) if align else ((position + 1) * length - 1) / 2
        if mode == "nearest":
            v = np.rint(v)
        # Cubic interpolation clamps neighbours only, in ONNX Runtime as in PyTorch.
        if mode in {"nearest", "linear", "bilinear"} or padding != "border":
            v = self._inside(v, length, padding, align)
        first = int(np.floor(v))
        f = v - first
        if mode == "nearest":
            taps = {first: 1.0}
        elif mode in {"linear", "bilinear"}:
            taps = {first: 1 - f, first + 1: f}
        else:
            taps = {first + k: _cubic(abs(f - k)) for k in (-1, 0, 1, 2)}
        total = np.zeros_like(image[:, 0])
        for index, share in taps.items():
            nearest = round(self._inside(index, length, padding, align))
            if padding == "border":
                nearest = min(max(nearest, 0), length - 1)
            if 0 <= nearest < length:
                total = total + share * image[:, nearest]
        return total

    @staticmethod
    def _inside(v: float, length: int, padding: str, align: bool) -> float:  # noqa: FBT001
        low, high = (0.0, length - 1.0) if align else (-0.5, length - 0.5)
        if low <= v <= high or padding == "zeros":
            return v
        if padding == "border":
            return min(max(v, 0.0), length - 1.0)
        while not low <= v <= high:
            v = 2 * low - v if v < low else 2 * high - v
        return v


class AffineGrid(_Operator):
    """A transformed grid of positions; ONNX's own computes in float32 whatever the input is."""

    def _run(self, theta: Array, size: Array, align_corners: int | None = None) -> tuple[Array]:
        axes = []
        for n in size[2:]:
            centres = np.arange(n, dtype=theta.dtype)
            axes.append(centres * 2 / max(n - 1, 1) - 1 if align_corners else (2 * centres + 1) / n - 1)
        columns = np.meshgrid(*axes, indexing="ij")[::-1]
        plain = np.stack([*columns, np.ones_like(columns[0])], axis=-1)
        return (np.einsum("...j,nij->n...i", plain, theta),)


def _cubic(z: float, a: float = -0.75) -> float:
    """The convolution kernel of Keys 1981."""
    if z <= 1:
        return ((a + 2) * z - (a + 3)) * z * z + 1
    return ((a * z - 5 * a) * z + 8 * a) * z - 4 * a


class ConvTranspose(_Operator):
    """Transposed convolution; ONNX's own slices grouped weights along the wrong axis."""

    def _run(
        self, X: Array, W: Array, B: Array | None = None, auto_pad: str | None = None,
        dilations: list[int] | None = None, group: int | None = None,
        kernel_shape: list[int] | None = None,  # noqa: ARG002
        output_padding: list[int] | None = None, output_shape: list[int] | None = None,
        pads: list[int] | None = None, strides: list[int] | None = None,
    ) -> tuple[Array]:  # fmt: skip
        n, kernel, kind = X.ndim - 2, W.shape[2:], X.dtype
        if kind.itemsize < 4:  # NumPy neither multiplies bfloat16 nor adds up float16 as runtimes do
            X, W, B = X.astype(np.float32), W.astype(np.float32), None if B is None else B.astype(np.float32)
        group, strides, dilations = group or 1, strides or [1] * n, dilations or [1] * n
        extra, pads = output_padding or [0] * n, pads or [0] * (2 * n)
        full = [
            s * (x - 1) + d * (k - 1) + 1 + e
            for s, x, d, k, e in zip(strides, X.shape[2:], dilations, kernel, extra, strict=True)
        ]
        auto_pad = auto_pad or "NOTSET"
        if output_shape or auto_pad.startswith("SAME"):
            outputs = output_shape or [s * x for s, x in zip(strides, X.shape[2:], strict=True)]
            totals = [max(f - o, 0) for f, o in zip(full, outputs[-n:], strict=True)]
            small, large = [p // 2 for p in totals], [p - p // 2 for p in totals]
            pads = small + large if auto_pad == "SAME_UPPER" else large + small
            full = [max(f, o) for f, o in zip(full, outputs[-n:], strict=True)]
        elif auto_pad == "VALID":
            pads = [0] * (2 * n)
        out = np.zeros((X.shape[0], group, W.shape[1], *full), X.dtype)
        x = X.reshape(X.shape[0], group, X.shape[1] // group, *X.shape[2:])
        w = W.reshape(group, W.shape[0] // group, *W.shape[1:])
        for offset in np.ndindex(*kernel):
            steps = zip(dilations, offset, strides, X.shape[2:], strict=True)
            where = tuple(slice(d * o, d * o + s * (size - 1) + 1, s) for d, o, s, size in steps)
            if x.size:
                tap = w[(slice(None),) * 3 + offset]
                out[(slice(None),) * 3 + where] += np.einsum("ngi...,gio->ngo...", x, tap)
        inside = tuple(slice(p, f - q) for p, f, q in zip(pads[:n], full, pads[n:], strict=True))
        y = out.reshape(X.shape[0], group * W.shape[1], *full)[(slice(None),) * 2 + inside]
        if B is not None:
            y = y + B.reshape(1, -1, *[1] * n)
        return (np.ascontiguousarray(y, kind),)


class Erf(_Operator):
    """The error function; ONNX's own computes in float32 whatever the input is."""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x).reshape(x.shape),)


class Mean(_Operator):
    """The mean of several tensors; ONNX's own does not broadcast all of them."""

    def _run(self, *xs: Array) -> tuple[Array]:
        return (np.asarray(np.mean(np.stack(np.broadcast_arrays(*xs)), axis=0)),)


class LRN(_Operator):
    """Local response normalisation; ONNX's own iterates over as many channels as there are samples."""

    def _run(self, x: Array, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int = 1) -> tuple[Array]:
        channels = range(x.shape[1])
        windows = [x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1] for c in channels]
        square = np.stack([(w**2).sum(1) for w in windows], axis=1)
        return (x / (bias + alpha / size * square) ** beta,)


class LpNormalization(_Operator):
    """Division by the p-norm; ONNX's own adds up signed powers."""

    def _run(self, x: Array, axis: int = -1, p: int = 2) -> tuple[Array]:
        norm = np.linalg.norm(x, p, axis, keepdims=True)
        return ((x / np.where(norm == 0, 1, norm)).astype(x.dtype),)


class GroupNormalization(_Operator):
    """Group normalisation; ONNX's function body computes in float32 whatever the inputs are."""

    def _run(
        self, x: Array, scale: Array, bias: Array, epsilon: float = 1e-5, num_groups: int = 1,
        stash_type: int | None = None,  # noqa: ARG002
    ) -> tuple[Array]:  # fmt: skip
        grouped = x.reshape(x.shape[0], num_groups, -1)
        centred = grouped - grouped.mean(2, keepdims=True)
        y = (centred / np.sqrt((centred**2).mean(2, keepdims=True) + epsilon)).reshape(x.shape)
        # Scale and bias have one number a group before opset 21, and one a channel since.
        a, b = (np.repeat(v, x.shape[1] // len(v)).reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, bias))
        return (y * a + b,)


class MeanVarianceNormalization(_Operator):
    """Mean-variance normalisation; ONNX's function body has float32 constants."""

    def _run(self, x: Array, axes: Sequence[int] = (0, 2, 3)) -> tuple[Array]:
        over = tuple(axes)
        centred = x - x.mean(over, keepdims=True)
        return (centred / (np.sqrt((centred**2).mean(over, keepdims=True)) + 1e-9),)


class GatherElements(_Operator):
    """Elements by their indices along an axis; ONNX's own fails for an axis of more than 64."""

    def _run(self, x: Array, indices: Array, axis: int = 0) -> tuple[Array]:
        axis %= x.ndim
        within = tuple(slice(None if i == axis else size) for i, size in enumerate(indices.shape))
        return (np.take_along_axis(x[within], indices % max(x.shape[axis], 1), axis),)


_CORRECTED = (
    AffineGrid, ConvTranspose, Erf, GatherElements, GlobalLpPool, GlobalMaxPool, GridSample, GroupNormalization, LRN,
    LpNormalization, MaxPool, Mean, MeanVarianceNormalization, Pad,
)  # fmt: skip

_DOUBLE = onnx.TensorProto.DOUBLE
_NARROW = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


class _Evaluator(ReferenceEvaluator):
    """The reference evaluator with the corrections, also inside of function bodies."""

    def __init__(self, proto: Any, **options: Any) -> None:
        options.setdefault("new_ops", list(_CORRECTED))
        super().__init__(proto, **options)


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """The corrected reference evaluator for `model`."""
    return _Evaluator(model)


def evaluate(
    model: ReferenceEvaluator, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
) -> list[Array]:
    """Run `model` without floating-point warnings; `outputs` are all by default."""
    with np.errstate(all="ignore"):
        results = model.run(None if outputs is None else list(outputs), dict(feeds))
    return [np.asarray(r) for r in results]


def as_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model that computes in float64, so that differences of its outputs are precise."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    _retype_graph(double.graph)
    for function in double.functions:
        for node in function.node:
            _retype_node(node)
    return double


def _retype_graph(graph: onnx.GraphProto) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.elem_type in _NARROW:
            info.type.tensor_type.elem_type = _DOUBLE
    for tensor in graph.initializer:
        _retype_tensor(tensor)
    for node in graph.node:
        _retype_node(node)


def _retype_node(node: onnx.NodeProto) -> None:
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.zeros(1))))
    for attribute in node.attribute:
        if attribute.name in {"to", "dtype"} and attribute.i in _NARROW:
            attribute.i = _DOUBLE
        elif attribute.type == onnx.AttributeProto.TENSOR:
            _retype_tensor(attribute.t)
        elif attribute.type == onnx.AttributeProto.GRAPH:
            _retype_graph(attribute.g)
        elif node.op_type == "Constant" and attribute.name in {"value_float", "value_floats"}:
            array = np.asarray(onnx.helper.get_attribute_value(attribute), np.float64)
            attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(array)))


def _retype_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _NARROW:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
