"""Softmax and its kin, written from the output."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_gradcam.autodiff.registry import Cotangent, vjp, zero_gradient
from onnx_gradcam.graph.builder import Builder, Value

# One at the greatest element, zero elsewhere: a step function.
zero_gradient("Hardmax")


@vjp("Softmax")
def softmax(t: Builder, g: Value, y: Value, x: Value, *, axis: int = -1) -> Sequence[Cotangent]:
    """The cotangent is y (g - sum(g y))."""
    weighted = g * y
    return [weighted - y * t.sum(weighted, [axis])]


@vjp("LogSoftmax")
def log_softmax(t: Builder, g: Value, y: Value, x: Value, *, axis: int = -1) -> Sequence[Cotangent]:
    """The cotangent is g - e^y sum(g)."""
    return [g - t.op("Exp", y) * t.sum(g, [axis])]
