"""Rectifiers and other activations, written from the output where that keeps runtimes' fusions."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value


@vjp("Relu")
def relu(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:  # noqa: ARG001
    """The gradient passes where the output is positive."""
    return [t.op("Where", y > 0.0, g, 0.0)]


@vjp("Sigmoid")
def sigmoid(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:  # noqa: ARG001
    """Y (1 - y)."""
    return [g * (y * (1.0 - y))]
