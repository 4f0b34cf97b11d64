"""Methods that look at all layers of the model at once."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.resizing import bilinear, places

from .registry import method


@method(
    "fullgrad",
    title="FullGrad",
    reference="Srinivas and Fleuret 2019, eq. 5 and 6; scaled channel by channel as pytorch-grad-cam fullgrad_cam.py",
)
def full_grad(t: Builder, x: Value, gx: Value, biases: Sequence[Value]) -> Value:
    """|x dS/dx| and |b dS/db| of every bias b, each channel from 0 to 1, added up over channels and layers."""
    size = places(t, x)
    terms = [_scaled(t, t.op("Mul", x, gx)), *(bilinear(t, _scaled(t, term), size) for term in biases)]
    return terms[0] if len(terms) == 1 else t.op("Sum", *terms, shape=terms[0].known_shape)


def _scaled(t: Builder, term: Value) -> Value:
    """Absolute values, every channel of every sample brought to 0 to 1, added up: `[N, h, w]`."""
    size = t.op("Abs", term)
    lifted = size - t.reduce("ReduceMin", size, [2, 3])
    return t.sum(lifted / (t.reduce("ReduceMax", lifted, [2, 3]) + 1e-7), [1], keepdims=False)
