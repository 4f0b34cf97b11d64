"""Decompositions of quantised operators: dequantise, run the operator on real numbers, quantise again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .builder import Builder, Value
from .decompose import MICROSOFT, decomposes, to_channels_first, to_channels_last


def _real(t: Builder, x: Value, scale: Value, zero: Value | None, axis: int | None = None) -> Value:
    """The real numbers of a quantised tensor: one tensor for all operators that read it, so that it can be a layer."""
    inputs = [v.core for v in (x, scale, zero) if v is not None]
    for node in x.core.consumers() if axis is None else ():
        standard = (node.domain, node.op_type) == ("", "DequantizeLinear")
        if standard and [i for i in node.inputs if i is not None] == inputs:
            real = t.wrap(node.outputs[0])
            if real.is_float and real.known_shape is not None:
                return real
    (value,) = t.ops("DequantizeLinear", x, scale, zero, outputs=1, stem=f"{x.name}/real", axis=axis)
    return value


def _quantised(t: Builder, x: Value, scale: Value, zero: Value | None) -> Value:
    return t.op("QuantizeLinear", x, scale, zero, shape=x.known_shape)


@decomposes("DequantizeLinear")
def dequantize_linear(
    t: Builder, x: Value, scale: Value, zero: Value | None = None, *, axis: int | None = None
) -> Value | None:
    """ONNX Runtime's copy of the standard operator, which takes 16 bits from opset 21 on."""
    covered = _eight_bits(x) or t.opset >= 21
    return t.op("DequantizeLinear", x, scale, zero, axis=axis) if covered else None


@decomposes("QuantizeLinear")
def quantize_linear(
    t: Builder, x: Value, scale: Value, zero: Value | None = None, *, axis: int | None = None
) -> Value | None:
    """ONNX Runtime's copy of the standard operator, which takes 16 bits from opset 21 on."""
    covered = zero is None or _eight_bits(zero) or t.opset >= 21
    return t.op("QuantizeLinear", x, scale, zero, axis=axis) if covered else None


def _eight_bits(x: Value) -> bool:
    return x.dtype is not None and x.dtype.itemsize == 1


@decomposes("QLinearConv", domain=MICROSOFT)
@decomposes("QLinearConv", domain="")
def qlinear_conv(
    t: Builder, x: Value, x_scale: Value, x_zero: Value, w: Value, w_scale: Value, w_zero: Value, y_scale: Value,
    y_zero: Value, bias: Value | None = None,
    *, channels_last: int = 0, **window: Any,
) -> Value:  # fmt: skip
    """Conv; the scale of the bias is the product of the other two. Channels last in ONNX Runtime's own copy only."""
    offset = None if bias is None else _real(t, bias, t.op("Mul", x_scale, w_scale), None, 0)
    kernel = _real(t, w, w_scale, w_zero, 0)
    real = _real(t, x, x_scale, x_zero)
    y = t.op("Conv", to_channels_first(t, real) if channels_last else real, kernel, offset, **window)
    return _quantised(t, to_channels_last(t, y) if channels_last else y, y_scale, y_zero)


@decomposes("QLinearMatMul", domain="")
def qlinear_matmul(
    t: Builder, a: Value, a_scale: Value, a_zero: Value, b: Value, b_scale: Value, b_zero: Value, y_scale: Value,
    y_zero: Value,
) -> Value | None:  # fmt: skip
    """MatMul; one scale per column of `b` is possible, one per row of `a` is not covered."""
    if a_scale.rank and a_scale.shape != (1,):
        return None
    y = _real(t, a, a_scale, a_zero) @ _real(t, b, b_scale, b_zero, b.rank - 1)
    return _quantised(t, y, y_scale, y_zero)


@decomposes("ConvInteger", domain="")
def conv_integer(
    t: Builder, x: Value, w: Value, x_zero: Value | None = None, w_zero: Value | None = None, **window: Any
) -> Value | None:
    """Exact in float32 up to 2^24; only if all readers of the result cast it to floating-point."""
    if not _only_cast_to_float(t, x, w, "ConvInteger"):
        return None
    if w_zero is not None and w_zero.rank:
        w_zero = t.op("Reshape", w_zero, t.ints(-1, *(1,) * (w.rank - 1)))
    return t.op("Conv", _shifted(t, x, x_zero), _shifted(t, w, w_zero), **window)


@decomposes("MatMulInteger", domain="")
def matmul_integer(
    t: Builder, a: Value, b: Value, a_zero: Value | None = None, b_zero: Value | None = None
) -> Value | None:
    """Exact in float32 up to 2^24; only if all readers of the result cast it to floating-point."""
    if not _only_cast_to_float(t, a, b, "MatMulInteger") or (
        a_zero is not None and a_zero.rank and a_zero.shape != (1,)
    ):
        return None
    return _shifted(t, a, a_zero) @ _shifted(t, b, b_zero)


def _shifted(t: Builder, x: Value, zero: Value | None) -> Value:
    number = t.cast(x, np.float32)
    return number if zero is None else number - t.cast(zero, np.float32)


def _only_cast_to_float(t: Builder, x: Value, w: Value, op_type: str) -> bool:
    """Whether the 32-bit integers of this node are only cast to floating-point numbers."""
    node = next(n for n in x.core.consumers() if n.op_type == op_type and w.core in n.inputs)
    consumers = node.outputs[0].consumers()
    return bool(consumers) and all(c.op_type == "Cast" and t.wrap(c.outputs[0]).is_float for c in consumers)


@decomposes("MatMulIntegerToFloat")
def matmul_integer_to_float(
    t: Builder, a: Value, b: Value, a_scale: Value, b_scale: Value, a_zero: Value | None = None,
    b_zero: Value | None = None, bias: Value | None = None,
) -> Value:  # fmt: skip
    """The product of two quantised matrices, dequantised."""
    y = _real(t, a, a_scale, a_zero) @ _real(t, b, b_scale, b_zero, b.rank - 1)
    return y if bias is None else y + bias


@decomposes("DynamicQuantizeMatMul")
def dynamic_quantize_matmul(
    t: Builder, a: Value, b: Value, b_scale: Value, b_zero: Value | None = None, bias: Value | None = None
) -> Value:
    """Quantise `a`, then multiply as `matmul_integer_to_float`."""
    quantised, scale, zero = t.ops("DynamicQuantizeLinear", a, outputs=3)
    return matmul_integer_to_float(t, quantised, b, scale, b_scale, zero, b_zero, bias)


@decomposes("QGemm")
def qgemm(
    t: Builder, a: Value, a_scale: Value, a_zero: Value, b: Value, b_scale: Value, b_zero: Value,
    c: Value | None = None, y_scale: Value | None = None, y_zero: Value | None = None,
    *, alpha: float = 1.0, transA: int = 0, transB: int = 0,
) -> Value:  # fmt: skip
    """Gemm; floating-point without an output scale. The scale of the bias is the product of the other two."""
    first, second = _real(t, a, a_scale, a_zero), _real(t, b, b_scale, b_zero, 0 if transB else 1)
    y = t.op("Gemm", first, second, alpha=alpha, transA=transA, transB=transB)
    if c is not None:
        y = y + _real(t, c, t.op("Mul", a_scale, b_scale) * alpha, None, c.rank - 1)
    return y if y_scale is None else _quantised(t, y, y_scale, y_zero)


def _register_binary(op_type: str) -> None:
    @decomposes(f"QLinear{op_type}")
    def binary(
        t: Builder, a: Value, a_scale: Value, a_zero: Value | None, b: Value, b_scale: Value, b_zero: Value | None,
        y_scale: Value, y_zero: Value | None = None,
    ) -> Value:  # fmt: skip
        y = t.op(op_type, _real(t, a, a_scale, a_zero), _real(t, b, b_scale, b_zero))
        return _quantised(t, y, y_scale, y_zero)


def _register_unary(name: str, op_type: str, standard: Sequence[str]) -> None:
    @decomposes(name)
    def unary(
        t: Builder, x: Value, x_scale: Value, x_zero: Value | None, y_scale: Value, y_zero: Value | None = None,
        *, channels_last: int = 0, **attributes: Any,
    ) -> Value | None:  # fmt: skip
        real = _real(t, x, x_scale, x_zero)
        real = to_channels_first(t, real) if channels_last else real
        y = t.op(op_type, real, **{k: v for k, v in attributes.items() if k in standard})
        return _quantised(t, to_channels_last(t, y) if channels_last else y, y_scale, y_zero)


_WINDOW = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")

for _binary in ("Add", "Mul"):
    _register_binary(_binary)
_register_unary("QLinearSigmoid", "Sigmoid", ())
_register_unary("QLinearLeakyRelu", "LeakyRelu", ("alpha",))
_register_unary("QLinearSoftmax", "Softmax", ("axis",))
_register_unary("QLinearGlobalAveragePool", "GlobalAveragePool", ())
_register_unary("QLinearAveragePool", "AveragePool", _WINDOW)


@decomposes("QLinearConcat")
def qlinear_concat(t: Builder, y_scale: Value, y_zero: Value, *triples: Value, axis: int) -> Value:
    """Dequantise tensors of different scales, concatenate, quantise."""
    parts = [_real(t, *triple) for triple in zip(triples[::3], triples[1::3], triples[2::3], strict=True)]
    return _quantised(t, t.op("Concat", *parts, axis=axis), y_scale, y_zero)


@decomposes("QLinearWhere")
def qlinear_where(
    t: Builder, condition: Value, x: Value, x_scale: Value, x_zero: Value, y: Value, y_scale: Value, y_zero: Value,
    z_scale: Value, z_zero: Value,
) -> Value:  # fmt: skip
    """Choose between two quantised tensors."""
    chosen = t.op("Where", condition, _real(t, x, x_scale, x_zero), _real(t, y, y_scale, y_zero))
    return _quantised(t, chosen, z_scale, z_zero)


@decomposes("MatMulNBits")
def matmul_n_bits(
    t: Builder, a: Value, b: Value, scales: Value, zeros: Value | None = None, g_idx: Value | None = None,
    bias: Value | None = None, *, K: int, N: int, block_size: int, bits: int = 4, weight_prepacked: int = 0,
    accuracy_level: int = 0,  # noqa: ARG001 - only how a runtime may round
) -> Value | None:  # fmt: skip
    """MatMul with four-bit weights in blocks along K, two a byte, low half first; other widths are not covered."""
    if bits != 4 or g_idx is not None or weight_prepacked:
        return None
    blocks = -(-K // block_size)
    weights = t.op("Reshape", _halves(t, b, a), t.ints(N, blocks, block_size))
    if zeros is None:
        centred = weights - 8.0
    elif zeros.is_float:
        centred = weights - t.op("Reshape", zeros, t.ints(N, blocks, 1))
    else:
        # Zero points are packed row by row; an odd number of them leaves half a byte unused.
        unpacked = t.op("Reshape", _halves(t, zeros, a), t.ints(N, -1))
        used = t.op("Slice", unpacked, t.ints(0), t.ints(blocks), t.ints(1))
        centred = weights - t.op("Reshape", used, t.ints(N, blocks, 1))
    real = t.op("Reshape", centred * t.op("Reshape", scales, t.ints(N, blocks, 1)), t.ints(N, blocks * block_size))
    if blocks * block_size != K:
        real = t.op("Slice", real, t.ints(0), t.ints(K), t.ints(1))
    y = a @ t.transpose(real, [1, 0])
    return y if bias is None else y + bias


def _halves(t: Builder, packed: Value, like: Value) -> Value:
    """The two numbers in each byte, along a new last axis."""
    flat = t.op("Reshape", packed, t.ints(-1, 1))
    low = t.op("BitwiseAnd", flat, t.const(np.array(15, np.uint8)))
    high = t.op("BitShift", flat, t.const(np.array(4, np.uint8)), direction="RIGHT")
    return t.cast(t.op("Concat", low, high, axis=1), like.dtype)
