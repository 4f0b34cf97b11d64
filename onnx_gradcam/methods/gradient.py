"""Methods that weigh activation maps by their cotangents.

`G` may be of size one along the spatial axes, where it is the same at every place: products broadcast it, and sums over
places have to expand it first. All end with `total`, so that all of them can be smoothed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnx_gradcam.graph.builder import Builder, Value

from .registry import method

Total = Callable[..., Value]
"""`(maps [N, C, *spatial], weights that broadcast, if any) -> [N, *spatial]`."""


@method(
    "finercam",
    title="Finer-CAM",
    reference="Zhang et al. 2025, eq. 4; pytorch-grad-cam finer_cam.py, with its three most similar classes",
    objective="finer",
)
@method("gradcam", title="Grad-CAM", reference="Selvaraju et al. 2017, eq. 1 and 2 (the ReLU is the finishing's)")
def grad_cam(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """sum_k w_k A_k, where w_k is the mean of G_k over all places."""
    return total(A, mean_over_places(t, G))


@method("cam", title="CAM", reference="Zhou et al. 2016, eq. 2", linear_head=True)
def cam(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """sum_k w_k A_k, where w_k is the weight of channel k in the linear layer behind the pooling."""
    return total(A, sum_over_places(t, G, A))


@method("hirescam", title="HiResCAM", reference="Draelos and Carin 2020, eq. 4")
def hires_cam(t: Builder, A: Value, G: Value, total: Total) -> Value:  # noqa: ARG001 - every method takes the builder
    """sum_k G_k A_k, place by place."""
    return total(A, G)


@method(
    "gradcam-elementwise",
    title="Element-wise Grad-CAM",
    reference="Pillai and Pirsiavash 2021, section 3; pytorch-grad-cam grad_cam_elementwise.py",
)
def elementwise(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """sum_k max(G_k A_k, 0), place by place."""
    return total(t.op("Relu", t.op("Mul", G, A)))


@method("layercam", title="LayerCAM", reference="Jiang et al. 2021, eq. 4 and 5")
def layer_cam(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """sum_k max(G_k, 0) A_k, place by place."""
    return total(A, t.op("Relu", G))


@method("xgradcam", title="XGrad-CAM", reference="Fu et al. 2020, eq. 8; pytorch-grad-cam xgrad_cam.py for the 1e-7")
def xgrad_cam(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """Grad-CAM with w_k = sum(G_k A_k) / sum(A_k)."""
    places = range(2, A.rank)
    return total(A, t.sum(t.op("Mul", G, A), places) / (t.sum(A, places) + 1e-7))


@method(
    "refinecam",
    title="RefineCAM",
    reference="pytorch-grad-cam refine_cam.py: the product of Grad-CAM++ over several layers",
    combine="product",
)
@method(
    "gradcam++",
    title="Grad-CAM++",
    reference="Chattopadhay et al. 2018, eq. 19 and 7, G for exp(S) G; pytorch-grad-cam grad_cam_plusplus.py",
)
def grad_cam_plus_plus(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """Grad-CAM with w_k = sum(alpha_k max(G_k, 0)), alpha = G^2 / (2 G^2 + sum(A) G^3 + 1e-6)."""
    square = t.op("Mul", G, G)
    filled = t.sum(A, range(2, A.rank))
    alpha = square / (square * 2.0 + t.op("Mul", filled, t.op("Mul", square, G)) + 1e-6)
    return total(A, sum_over_places(t, t.op("Mul", t.op("Relu", G), alpha), A))


@method(
    "gradcam++-paper",
    title="Grad-CAM++ of the paper",
    reference="Chattopadhay et al. 2018, eq. 19 and 7, for the exponential of the score",
)
def grad_cam_plus_plus_of_the_paper(t: Builder, A: Value, G: Value, score: Value) -> Value:
    """Grad-CAM++ of exp(S): G in alpha, exp(S) G in the weights."""
    weights = t.op("Mul", _exponential(t, score, G), t.op("Mul", t.op("Relu", G), _alpha(t, A, G)))
    return weighted_sum(t, A, sum_over_places(t, weights, A))


@method(
    "gradcam++-tf-keras-vis",
    title="Grad-CAM++ of tf-keras-vis",
    reference="tf-keras-vis 0.8.7 gradcam_plus_plus.py: exp(S) in alpha too, whose sum over places is one",
)
def grad_cam_plus_plus_of_tf_keras_vis(t: Builder, A: Value, G: Value, score: Value) -> Value:
    """Grad-CAM++ of exp(S), alpha divided by its sum over all places."""
    alpha = _alpha(t, A, t.expand_like(G, A) if is_constant(G) else G)
    alpha = _divided(t, alpha, t.sum(alpha, range(2, A.rank)))
    weights = t.op("Mul", _exponential(t, score, G), t.op("Mul", t.op("Relu", G), alpha))
    return weighted_sum(t, A, sum_over_places(t, weights, A))


def _alpha(t: Builder, A: Value, G: Value) -> Value:
    """Eq. 19: G^2 / (2 G^2 + sum(A) G^3); the factor exp(S) that all terms have is left out."""
    square = t.op("Mul", G, G)
    total = t.sum(A, range(2, A.rank))
    return _divided(t, square, square * 2.0 + t.op("Mul", total, t.op("Mul", square, G)))


def _divided(t: Builder, part: Value, whole: Value) -> Value:
    """As it is where it would be divided by zero."""
    return part / (whole + t.cast(t.op("Equal", whole, 0.0), np.float32))


def _exponential(t: Builder, score: Value, G: Value) -> Value:
    """exp(S), with the axes of the cotangent; what float32 cannot hold is cut off, which only scales the map."""
    axes = (1,) * (G.rank - 1)
    held = t.op("Max", t.op("Min", score, 80.0), -80.0)
    return t.op("Reshape", t.op("Exp", held), t.ints(-1, *axes), shape=(score.shape[0], *axes))


@method("shapleycam", title="ShapleyCAM", reference="Cai 2025, eq. 9; pytorch-grad-cam shapley_cam.py")
def shapley_cam(t: Builder, A: Value, G: Value, HA: Value, total: Total) -> Value:
    """Grad-CAM with G - HA / 2 in place of G, where HA is the Hessian of the score times A."""
    return total(A, mean_over_places(t, G - HA * 0.5))


def mean_over_places(t: Builder, G: Value) -> Value:
    """The mean of every channel, `[N, C, 1 ...]`."""
    return G if is_constant(G) else t.mean(G, range(2, G.rank))


def sum_over_places(t: Builder, G: Value, A: Value) -> Value:
    """The sum of every channel of `G`, spread to the places of `A`: `[N, C, 1 ...]`."""
    return t.sum(t.expand_like(G, A) if is_constant(G) else G, range(2, A.rank))


def is_constant(G: Value) -> bool:
    """Whether a cotangent is the same at every place."""
    return all(G.shape[i] == 1 for i in range(2, G.rank))


def weighted_sum(t: Builder, A: Value, weights: Value) -> Value:
    """sum_k w_k A_k: `[N, C, *spatial]` and weights that broadcast -> `[N, *spatial]`."""
    if not is_constant(weights):
        return t.sum(t.op("Mul", weights, A), [1], keepdims=False)
    # A row times a matrix for each sample is several times faster than a product and a sum over channels.
    row = t.op("Reshape", weights, t.ints(0, 1, -1), shape=(A.shape[0], 1, A.shape[1]))
    return as_map(t, row @ t.op("Reshape", A, t.ints(0, 0, -1)), A)


def as_map(t: Builder, values: Value, A: Value) -> Value:
    """One number a place, in any shape, as `[N, *spatial]` of the activation maps `A`."""
    grid = A.shape[2:]
    if sum(not isinstance(d, int) for d in grid) <= 1:
        size = t.ints(0, *(d if isinstance(d, int) else -1 for d in grid))
    else:
        size = t.op("Concat", t.ints(0), t.op("Shape", A, start=2), axis=0)
    return t.op("Reshape", values, size, shape=(A.shape[0], *grid))
