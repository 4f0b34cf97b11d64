"""Rules of Fourier transforms: the adjoint of a transform is its inverse, apart from a factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import Size, cut, identity, numbers, pad, reshape, sizes
from ._windows import spread, windows
from .sampling import size_value


@vjp("DFT")
def dft(
    t: Builder, g: Value, y: Value, x: Value, dft_length: Value | None = None, axis_input: Value | None = None,
    *, axis: int = 1, inverse: int = 0, onesided: int = 0,
) -> Sequence[Cotangent]:  # fmt: skip
    """N times the inverse transform, or the transform divided by N.

    A one-sided spectrum is padded with zeros; a real input takes the real part.
    """
    if t.opset >= 20:
        along = -2 if axis_input is None else axis_input.array()
        if along is None:
            raise UnsupportedError("the VJP rule of DFT needs a constant axis; choose a later layer")
        axis = int(along)
    axis %= x.rank
    (samples,), (bins,) = sizes(t, x, [axis]), sizes(t, y, [axis])

    def back() -> Value:
        if dft_length is not None:
            constant = dft_length.array()
            n = Size(t, t.op("Reshape", dft_length, t.ints(1)) if constant is None else int(constant))
        else:
            n = (samples - 1) * 2 if inverse and onesided else samples
        factor = size_value(t, n, g)
        if inverse:
            spectrum = _transform(t, g, n, axis, onesided=onesided) / factor
            if onesided:
                spectrum = spectrum * _shares(t, n, x, axis)
            return _fitted(t, _parts(t, spectrum, x), axis, samples)
        whole = pad(t, g, [axis], [Size(t, 0)], [n - bins])
        return _fitted(t, _parts(t, _transform(t, whole, n, axis, inverse=1), x) * factor, axis, samples)

    return [back, None, None]


def _transform(t: Builder, x: Value, n: Size, axis: int, *, inverse: int = 0, onesided: int = 0) -> Value:
    """The complex transform of length `n`."""
    length = t.op("Squeeze", n.vector(), t.ints(0))
    bins = (n // 2 + 1 if onesided else n).known
    shape = (*x.shape[:axis], bins, *x.shape[axis + 1 : -1], 2)
    options: dict[str, Any] = {"inverse": inverse, "onesided": onesided, "shape": shape}
    if t.opset >= 20:
        return t.op("DFT", x, length, t.const(np.int64(axis)), **options)
    return t.op("DFT", x, length, axis=axis, **options)


def _shares(t: Builder, n: Size, x: Value, axis: int) -> Value:
    """How often each entry of a one-sided spectrum occurs in the whole one: once at its ends, else twice."""
    k = numbers(t, n // 2 + 1)
    ends = t.op("Or", t.op("Equal", k, t.const(np.int64(0))), t.op("Equal", k * 2, n.vector()))
    share = t.op("Where", ends, t.const(1, x.dtype), t.const(2, x.dtype))
    return reshape(t, share, [-1 if i == axis else 1 for i in range(x.rank)])


def _parts(t: Builder, spectrum: Value, x: Value) -> Value:
    """The real part where `x` is real."""
    last = x.rank - 1
    return cut(t, spectrum, [last], [Size(t, 0)], [Size(t, 1)]) if x.shape[last] == 1 else spectrum


def _fitted(t: Builder, signal: Value, axis: int, samples: Size) -> Value:
    """`signal` cut to the input's length, or padded with zeros for samples that the transform did not read."""
    (length,) = sizes(t, signal, [axis])
    kept = cut(t, signal, [axis], [Size(t, 0)], [length.most(samples)])
    return pad(t, kept, [axis], [Size(t, 0)], [(samples - length).least(0)])


@vjp("STFT")
def stft(
    t: Builder, g: Value, y: Value, signal: Value, frame_step: Value, window: Value | None = None,
    frame_length: Value | None = None,
    *, onesided: int = 1,
) -> Sequence[Cotangent]:  # fmt: skip
    """A transposed convolution of the spectra with the windowed transforms of unit pulses."""
    step = frame_step.array()
    length = None if frame_length is None else frame_length.array()
    size = int(length) if length is not None else None if window is None else window.shape[0]
    if step is None or not isinstance(size, int) or signal.shape[-1] == 2:
        raise UnsupportedError(
            f"the VJP rule of STFT needs a constant step and length and a real signal, but {signal.name!r} is "
            f"{list(signal.shape)}; choose a later layer"
        )

    def back() -> Value:
        pulses = reshape(t, identity(t, Size(t, size), signal.dtype), [size, size, 1])
        waves = _transform(t, pulses, Size(t, size), 1, onesided=onesided)
        if window is not None:
            waves = waves * t.op("Unsqueeze", window, t.ints(1, 2))
        bins = size // 2 + 1 if onesided else size
        weight = reshape(t, t.transpose(waves, (1, 2, 0)), [-1, 1, size])
        batch, samples = sizes(t, signal, [0, 1])
        frames = sizes(t, y, [1])[0]
        columns = reshape(t, t.transpose(g, (0, 2, 3, 1)), [batch, 2 * bins, frames])
        plane = reshape(t, signal, [batch, 1, samples])
        over = windows(t, plane, [size], strides=[int(step)])
        return t.reshape_like(spread(t, columns, weight, plane, over), signal)

    return [back, None, None, None]
