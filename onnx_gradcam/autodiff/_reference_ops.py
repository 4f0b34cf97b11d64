"""Pools and padding for the reference evaluator, which lacks one and gets others wrong for some amounts and ranks."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

__all__ = ["WINDOWED"]

Array = npt.NDArray[Any]


class MaxPool(OpRun):
    """Maximum of every window; the evaluator's own fails for odd SAME padding and for kernels one element wide."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: list[int] | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        storage_order: int | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array, ...]:
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
            # A window that starts behind the image is none.
            outputs.append(count - 1 if ceil_mode and (count - 1) * s >= h + pads[i] else count)
        widths = [(pads[i], pads[i + n] + max(strides)) for i in range(n)]
        ground = np.pad(x, [(0, 0), (0, 0), *widths], constant_values=-np.inf)
        spatial = range(2, x.ndim)
        order = (0, 1, *(reversed(spatial) if storage_order else spatial))
        numbers = np.arange(x.size).reshape([x.shape[i] for i in order]).transpose(order)
        places = np.pad(numbers, [(0, 0), (0, 0), *widths], constant_values=-1)
        taps = []
        for offset in np.ndindex(*kernel):
            steps = zip(offset, dilations, outputs, strides, strict=True)
            inner = (slice(j * d, j * d + (o - 1) * s + 1, s) for j, d, o, s in steps)
            taps.append((slice(None), slice(None), *inner))
        values = np.stack([ground[tap] for tap in taps])
        best = values.argmax(0)[None]
        y = np.take_along_axis(values, best, 0)[0]
        if len(self.onnx_node.output) == 1:
            return (y,)
        indices = np.stack([places[tap] for tap in taps])
        return y, np.take_along_axis(indices, best, 0)[0]


class GlobalMaxPool(OpRun):
    """Maximum over all spatial axes; the evaluator's own knows planes only."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GlobalLpPool(OpRun):
    """The p-norm over all spatial axes; the evaluator has none."""

    op_domain = ""

    def _run(self, x: Array, p: int | None = None) -> tuple[Array]:
        p = 2 if p is None else p
        return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p),)


class Pad(OpRun):
    """Padding; the evaluator's own knows no negative amounts, which cut."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        pads: Array,
        constant_value: Array | None = None,
        axes: Array | None = None,
        mode: str | None = None,
    ) -> tuple[Array]:
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


class GridSample(OpRun):
    """Sampling on a grid; the evaluator's own computes positions in float32 whatever it is given."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        grid: Array,
        align_corners: int | None = None,
        mode: str | None = None,
        padding_mode: str | None = None,
    ) -> tuple[Array]:
        y = np.zeros((*x.shape[:2], *grid.shape[1:-1]), x.dtype)
        mode, padding = mode or "linear", padding_mode or "zeros"
        for n in np.ndindex(*grid.shape[:-1]):
            value = x[n[0]]
            for length, position in zip(x.shape[2:], grid[n][::-1], strict=True):
                value = self._along_first_axis(value, float(position), length, mode, padding, bool(align_corners))
            np.moveaxis(y, 1, -1)[n] = value
        return (y,)

    def _along_first_axis(
        self,
        image: Array,
        position: float,
        length: int,
        mode: str,
        padding: str,
        align: bool,  # noqa: FBT001
    ) -> Array:
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
            place = round(self._inside(index, length, padding, align))
            if padding == "border":
                place = min(max(place, 0), length - 1)
            if 0 <= place < length:
                total = total + share * image[:, place]
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


class AffineGrid(OpRun):
    """A grid of positions, transformed; the evaluator's own computes in float32 whatever it is given."""

    op_domain = ""

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


WINDOWED = (MaxPool, GlobalMaxPool, GlobalLpPool, GridSample, AffineGrid, Pad)
