"""Windows that slide over the spatial axes, which the rules of convolutions and pools share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import Size, cut, sizes

__all__ = ["Windows", "spread", "windows"]

T = TypeVar("T")


@dataclass(frozen=True)
class Windows:
    """The geometry of an operator's windows; every tuple has one entry a spatial axis.

    `kernel` counts taps; `strides` and `dilations` are the distances between windows and between taps; `begin` and
    `end` are padding; `ceil` keeps a last window that is not full.
    """

    kernel: tuple[Size, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[Size, ...]
    end: tuple[Size, ...]
    ceil: bool = False

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes of a tensor `[N, C, *spatial]`."""
        return tuple(range(2, 2 + self.rank))

    @property
    def extent(self) -> tuple[Size, ...]:
        """The length of a window from its first tap to its last."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def taps(self) -> list[int]:
        """The kernel of a pool, which is always a constant."""
        return [k.known or 0 for k in self.kernel]

    def along(self, axis: int) -> Windows:
        """The windows along one spatial axis, one element wide along the others."""

        def only(values: Sequence[T], other: T) -> tuple[T, ...]:
            return tuple(v if i == axis else other for i, v in enumerate(values))

        zero = self.kernel[0] * 0
        kernel, begin, end = only(self.kernel, zero + 1), only(self.begin, zero), only(self.end, zero)
        return Windows(kernel, only(self.strides, 1), only(self.dilations, 1), begin, end, self.ceil)

    def pads(self) -> list[int] | None:
        """The padding as the ONNX attribute; `None` where it is unknown."""
        amounts = [p.known for p in (*self.begin, *self.end)]
        return None if None in amounts else [p for p in amounts if p is not None]

    def covered(self, outputs: Sequence[Size]) -> tuple[Size, ...]:
        """The length that `outputs` windows cover, from the start of the padding."""
        return tuple((o - 1) * s + e for o, s, e in zip(outputs, self.strides, self.extent, strict=True))


def windows(
    t: Builder, x: Value, kernel: Sequence[int] | Value, *, auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Windows:  # fmt: skip
    """The windows over `x`, `[N, C, *spatial]`, by an operator's attributes.

    `kernel` is the number of taps along each axis, or a weight `[M, C, *kernel]` of that many taps.
    """
    taps = sizes(t, kernel, range(2, kernel.rank)) if isinstance(kernel, Value) else [Size(t, k) for k in kernel]
    n = len(taps)
    strides, dilations = tuple(strides or [1] * n), tuple(dilations or [1] * n)
    zero = (Size(t, 0),) * n
    plain = Windows(tuple(taps), strides, dilations, zero, zero, bool(ceil_mode))
    if auto_pad == "VALID":
        return plain
    if auto_pad == "NOTSET":
        amounts = [Size(t, p) for p in pads or [0] * (2 * n)]
        begin, end = tuple(amounts[:n]), tuple(amounts[n:])
    else:
        totals = [
            extent - 1 if s == 1 else (((h + s - 1) // s - 1) * s + extent - h).least(0)
            for h, s, extent in zip(sizes(t, x, plain.axes), strides, plain.extent, strict=True)
        ]
        small = tuple(total // 2 for total in totals)
        large = tuple(total - half for total, half in zip(totals, small, strict=True))
        begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    return Windows(tuple(taps), strides, dilations, begin, end, bool(ceil_mode))


def spread(t: Builder, g: Value, weight: Value, x: Value, over: Windows, *, group: int = 1) -> Value:
    """The adjoint of sliding `weight` over `x`: every window's `g` goes back to the positions of its taps.

    A ConvTranspose with the forward weight, cropped or padded to the size of `x`. Where a size is unknown, the widest
    output that a stride allows is computed and cut.
    """
    heights, outputs = sizes(t, x, over.axes), sizes(t, g, over.axes)
    begins, ends, extras, starts = [], [], [], []
    exact = True
    for h, reach, s, extent, p, q in zip(
        heights, over.covered(outputs), over.strides, over.extent, over.begin, over.end, strict=True
    ):
        surplus = (reach - p - h).known
        if surplus is not None and p.known is not None:
            begin, end, extra, start = p.known, max(surplus, 0), max(-surplus, 0), Size(t, 0)
        elif p.known is not None and q.known is not None:
            slack = s - 1 - q.known
            begin, end, extra, start = p.known, max(-slack, 0), max(slack, 0), Size(t, 0)
            exact = exact and s == 1 and not over.ceil
        else:
            begin, end, start = 0, 0, p
            extra = s - 1 if extent.known is None else max(s - extent.known, 0)
            exact = False
        begins.append(begin)
        ends.append(end)
        extras.append(extra)
        starts.append(start)
    pads, extra, free = begins + ends, extras if any(extras) else None, (None,) * x.rank
    steps = {"strides": list(over.strides), "dilations": list(over.dilations)}
    full = t.op("ConvTranspose", g, weight, **steps, group=group, pads=pads, output_padding=extra, shape=free)
    return full if exact else cut(t, full, over.axes, starts, heights)
