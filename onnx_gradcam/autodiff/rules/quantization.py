"""Rules of quantised tensors, by the straight-through estimator.

Rounding is a step function, whose derivative is zero almost everywhere. As in quantisation-aware training (Bengio et
al. 2013; Jacob et al. 2018), it counts as the identity where the quantised number is not saturated, and as a constant
where it is. The result is a surrogate gradient, and the metadata of an explained model says so. Binarised networks
(Hubara et al. 2016) round to one bit, by Sign in front of a convolution or matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import VIEWS

_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_BETWEEN = {*VIEWS, "Add", "MaxPool", "Mul", "Pad", "Sign"}
"""What may stand between a Sign and the product that reads it; Add and Mul only with a constant."""


@vjp("DequantizeLinear", stops=(1, 2))
def dequantize(
    t: Builder, g: Value, y: Value, x: Value, scale: Value, zero: Value | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0,
) -> Sequence[Cotangent]:  # fmt: skip
    """The cotangent times the scale, as if the quantised numbers were real."""
    _whole(y, block_size)
    return [g * t.cast(_along(t, scale, x, axis), g.dtype), None, None]


@vjp("QuantizeLinear", stops=(1, 2))
def quantize(
    t: Builder, g: Value, y: Value, x: Value, scale: Value, zero: Value | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0, saturate: int = 1, precision: int = 0,
) -> Sequence[Cotangent]:  # fmt: skip
    """The cotangent over the scale; zero where the number is beyond the range of the type and clipped."""
    _whole(y, block_size)
    if y.dtype is None or y.dtype.kind not in "iu":
        raise UnsupportedError(f"no straight-through estimator for {y.dtype} ({y.name!r}); choose a later layer")
    step = t.cast(_along(t, scale, x, axis), g.dtype)
    steps = t.cast(x, g.dtype) / step
    low, high = float(np.iinfo(y.dtype).min), float(np.iinfo(y.dtype).max)
    if zero is not None:
        steps = steps + t.cast(_along(t, zero, x, axis), g.dtype)
    # Up to half a step beyond the last number rounds to it.
    inside = t.op("And", steps >= low - 0.5, steps <= high + 0.5)
    return [t.op("Where", inside, g / step, 0.0), None, None]


def _along(t: Builder, scale: Value, x: Value, axis: int) -> Value:
    """A scale or zero point, per tensor or per slice along `axis`, reshaped to broadcast against `x`."""
    if scale.rank == 0 or x.rank == 1 or scale.shape == (1,):
        return scale
    shape = [1] * x.rank
    shape[axis % x.rank] = -1
    return t.op("Reshape", scale, t.ints(*shape))


def _whole(y: Value, block_size: int) -> None:
    """Refuse blocked quantisation."""
    if block_size:
        raise UnsupportedError(f"blocked quantisation of {y.name!r} has no VJP rule; choose a later layer")


@vjp("DynamicQuantizeLinear", all_outputs=True)
def dynamic_quantize(t: Builder, gs: Sequence[Value | None], ys: Sequence[Value], x: Value) -> Sequence[Cotangent]:
    """The cotangent over the scale, which counts as a constant; the scale fits the tensor, so nothing is clipped."""
    return [None if gs[0] is None else gs[0] / ys[1]]


def binarises(node: ir.Node) -> bool:
    """Whether all that reads a Sign are products of binary numbers, perhaps scaled, pooled or reshaped before."""
    readers = list(node.outputs[0].consumers())
    seen: set[ir.Node] = set()
    while readers:
        reader = readers.pop()
        if reader in seen or (reader.op_type in _PRODUCTS and not reader.domain):
            continue
        seen.add(reader)
        others = [i for i in reader.inputs if i is not None and ir.convenience.get_const_tensor(i) is None]
        after = reader.outputs[0].consumers()
        if reader.op_type not in _BETWEEN or reader.domain or len(others) > 1 or not after:
            return False
        readers.extend(after)
    return bool(node.outputs[0].consumers())


@vjp("Sign", where=binarises)
def sign(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    """The cotangent where the number is within [-1, 1], as its clipping in training; zero elsewhere.

    A Sign of numbers that are binary already (Larq writes two, so that zero counts as one) changes nothing.
    """
    if _is_binary(x.core):
        return [g]
    return [t.op("Where", t.op("Abs", x) <= 1.0, g, 0.0)]


def _is_binary(value: ir.Value) -> bool:
    """Whether a tensor is the output of a Sign, perhaps shifted by a constant."""
    node = value.producer()
    while node is not None and node.op_type == "Add":
        sources = [i for i in node.inputs if i is not None and ir.convenience.get_const_tensor(i) is None]
        node = sources[0].producer() if len(sources) == 1 else None
    return node is not None and node.op_type == "Sign"
