"""Methods that give every value of the picture a number, from the derivative of the score with respect to it."""

from __future__ import annotations

from onnx_gradcam.graph.builder import Builder, Value

from .registry import method


@method(
    "gradient",
    title="Gradient",
    reference="Simonyan et al. 2013, section 3, signed",
    family="attribution",
)
def gradient(t: Builder, gx: Value) -> Value:  # noqa: ARG001 - every method takes the builder
    """dS/dx, with its sign."""
    return gx


@method(
    "saliency",
    title="Saliency",
    reference="Simonyan et al. 2013, section 3.1",
    family="attribution",
    absolute=True,
)
def saliency(t: Builder, gx: Value) -> Value:
    """|dS/dx|."""
    return t.op("Abs", gx)
