"""Attribution methods: a number for every value of the image, from the gradient of the score S with respect to it.

FullGrad, which adds the gradients of all biases, returns a map of the image's size instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx_gradcam.graph.builder import Builder, Value

from .cam import spatial_mean, weighted_sum
from .catalogue import method
from .maps import bilinear, spatial_size

Spread = Callable[[Value], Value]
"""`raw map [N, *spatial] -> factors of the pixels [N, H, W]`."""


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
    """dS/dx; `guided-backprop` and `deconvnet` change how rectifiers pass the gradient back."""
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
    """The product x dS/dx."""
    return t.op("Mul", x, gx)


@method(
    "guided-gradcam",
    title="Guided Grad-CAM",
    reference="Selvaraju et al. 2017, section 3.2",
    family="attribution",
    modifier="guided",
)
def guided_grad_cam(t: Builder, A: Value, G: Value, gx: Value, spread: Spread) -> Value:
    """The guided gradient dS/dx times the rectified Grad-CAM map, resized to the image."""
    return t.op("Mul", gx, t.op("Unsqueeze", spread(weighted_sum(t, A, spatial_mean(t, G))), t.ints(1)))


@method(
    "fullgrad",
    title="FullGrad",
    reference="Srinivas and Fleuret 2019, eq. 5 and 6; scaled per channel as pytorch-grad-cam fullgrad_cam.py",
)
def full_grad(t: Builder, x: Value, gx: Value, biases: Sequence[Value]) -> Value:
    """|x dS/dx| + sum |b dS/db| over all biases b, each channel scaled to [0, 1] and summed."""
    size = spatial_size(t, x)
    terms = [_scaled(t, t.op("Mul", x, gx)), *(bilinear(t, _scaled(t, term), size) for term in biases)]
    return terms[0] if len(terms) == 1 else t.op("Sum", *terms, shape=terms[0].known_shape)


@method("fullgrad-paper", title="FullGrad (paper)", reference="Srinivas and Fleuret 2019, eq. 6")
def full_grad_paper(t: Builder, x: Value, gx: Value, constants: Sequence[Value]) -> Value:
    """psi(x dS/dx) + sum psi(b dS/db) over everything that is added to maps or tokens; psi scales each to [0, 1]."""
    size = spatial_size(t, x)
    terms = [_stretched(t, t.op("Mul", x, gx)), *(bilinear(t, _stretched(t, term), size) for term in constants)]
    return terms[0] if len(terms) == 1 else t.op("Sum", *terms, shape=terms[0].known_shape)


def _stretched(t: Builder, term: Value) -> Value:
    """Absolute values, those of each sample scaled to [0, 1] together, summed over channels: `[N, h, w]`."""
    magnitude = t.op("Abs", term)
    lifted = magnitude - t.reduce("ReduceMin", magnitude, [1, 2, 3])
    return t.sum(lifted / (t.reduce("ReduceMax", lifted, [1, 2, 3]) + 1e-7), [1], keepdims=False)


def _scaled(t: Builder, term: Value) -> Value:
    """Absolute values, each channel of each sample scaled to [0, 1], summed over channels: `[N, h, w]`."""
    magnitude = t.op("Abs", term)
    lifted = magnitude - t.reduce("ReduceMin", magnitude, [2, 3])
    return t.sum(lifted / (t.reduce("ReduceMax", lifted, [2, 3]) + 1e-7), [1], keepdims=False)
