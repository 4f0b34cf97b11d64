"""Methods that give every value of the image a number, from the derivative of the score with respect to it.

Methods that look at all layers of the model at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx_gradcam.graph.builder import Builder, Value

from .cam import mean_over_places, weighted_sum
from .catalogue import method
from .maps import bilinear, places


@method(
    "guided-backprop",
    title="Guided backpropagation",
    reference="Springenberg et al. 2015, section 3.4, signed",
    family="attribution",
    modifier="guided",
)
@method(
    "deconvnet",
    title="Deconvolutional network",
    reference="Zeiler and Fergus 2014, section 2.1, signed",
    family="attribution",
    modifier="deconvnet",
)
@method("gradient", title="Gradient", reference="Simonyan et al. 2013, section 3, signed", family="attribution")
def gradient(t: Builder, gx: Value) -> Value:  # noqa: ARG001 - every method takes the builder
    """dS/dx, with its sign."""
    return gx


@method(
    "saliency", title="Saliency", reference="Simonyan et al. 2013, section 3.1", family="attribution", absolute=True
)
def saliency(t: Builder, gx: Value) -> Value:
    """|dS/dx|."""
    return t.op("Abs", gx)


@method(
    "input-x-gradient", title="Input x gradient", reference="Shrikumar et al. 2016, section 2", family="attribution"
)
def input_x_gradient(t: Builder, x: Value, gx: Value) -> Value:
    """X dS/dx."""
    return t.op("Mul", x, gx)


@method(
    "guided-gradcam",
    title="Guided Grad-CAM",
    reference="Selvaraju et al. 2017, section 3.2",
    family="attribution",
    modifier="guided",
)
def guided_grad_cam(t: Builder, A: Value, G: Value, x: Value, gx: Value) -> Value:
    """The guided gradient of the image, times the Grad-CAM heatmap spread over the image."""
    cam = t.op("Relu", weighted_sum(t, A, mean_over_places(t, G)))
    spread = bilinear(t, cam, places(t, x))
    return t.op("Mul", gx, t.op("Unsqueeze", spread, t.ints(1)))


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
