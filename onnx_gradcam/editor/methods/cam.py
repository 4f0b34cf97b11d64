"""Methods that weigh activation maps by their cotangents.

`G` may be of size one along the spatial axes, where it is the same at every place: products broadcast it, and sums over
places have to expand it first. All end with `total`, so that all of them can be smoothed.

Methods that look at activation maps alone, whatever the class; and projections on their leading component.

Methods for vision transformers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnx_gradcam.graph.builder import Builder, Value

from .catalogue import method

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


_SQUARINGS = 16
"""Of a Gram matrix: as good as 2^16 steps of power iteration, so a gap of one in ten thousand is enough."""

_TINY = 1e-30


@method("activationmap", title="Activation map", reference="the mean over channels; see Zagoruyko and Komodakis 2017")
def activation_map(t: Builder, A: Value) -> Value:
    """The mean of all channels."""
    return t.mean(A, [1], keepdims=False)


@method("fem", title="FEM", reference="Ahmed Asif Fuad et al. 2020, section 3; pytorch-grad-cam fem.py with k = 2")
def fem(t: Builder, A: Value) -> Value:
    """Channels weighed by how many places lie two standard deviations above their mean."""
    places = range(2, A.rank)
    centred = A - t.mean(A, places)
    deviation = t.op("Sqrt", t.mean(t.op("Mul", centred, centred), places))
    strong = t.cast(centred > deviation * 2.0, A.dtype)
    return weighted_sum(t, A, t.mean(strong, places))


@method("eigencam", title="Eigen-CAM", reference="Muhammad and Yeasin 2020, eq. 3 and 4, after centring")
def eigen_cam(t: Builder, A: Value) -> Value:
    """The activation maps projected on their leading principal component."""
    return leading_projection(t, A)


@method(
    "eigengradcam",
    title="EigenGrad-CAM",
    reference="Eigen-CAM of G A; pytorch-grad-cam eigen_grad_cam.py",
)
def eigen_grad_cam(t: Builder, A: Value, G: Value) -> Value:
    """The products of activation maps and cotangents projected on their leading principal component."""
    return leading_projection(t, t.op("Mul", t.expand_like(G, A) if is_constant(G) else G, A))


@method("segeigencam", title="Seg-Eigen-CAM", reference="Chung and Ying 2025, eq. 10 to 13")
def seg_eigen_cam(t: Builder, A: Value, G: Value) -> Value:
    """Eigen-CAM of |G| A."""
    return leading_projection(t, t.op("Mul", t.op("Abs", t.expand_like(G, A) if is_constant(G) else G), A))


@method(
    "kpcacam",
    title="KPCA-CAM",
    reference="Karmani et al. 2024, section 3, sigmoid kernel; pytorch-grad-cam kpca_cam.py, scikit-learn's KernelPCA",
)
def kpca_cam(t: Builder, A: Value) -> Value:
    """The activation maps projected on their leading kernel principal component."""
    rows = _centred_rows(t, A)
    width = t.cast(t.op("Shape", A, start=1, end=2), A.dtype)
    kernel = t.op("Tanh", (rows @ t.transpose(rows, [0, 2, 1])) / width + 1.0)
    over_rows, over_columns = t.mean(kernel, [1]), t.mean(kernel, [2])
    centred = kernel - over_rows - over_columns + t.mean(kernel, [1, 2])
    # The kernel has negative eigenvalues as well: adding its norm to all makes the largest the leading one.
    norm = t.op("Sqrt", t.sum(t.op("Mul", centred, centred), [1, 2]))
    identity = t.op("EyeLike", t.op("Squeeze", t.op("Slice", centred, t.ints(0), t.ints(1), t.ints(0)), t.ints(0)))
    vector = _leading_vector(t, centred + t.op("Mul", norm, identity))
    eigenvalue = t.sum(t.op("Mul", vector, centred @ vector), [1])
    return as_map(t, _signed(t, t.op("Mul", vector, t.op("Sqrt", t.op("Relu", eigenvalue)))), A)


def leading_projection(t: Builder, A: Value) -> Value:
    """`A` as one point of C numbers a place, centred, projected on the leading principal component: `[N, *spatial]`.

    The sign of a component is arbitrary; the one is taken that makes the value of largest magnitude positive
    (Chung and Ying 2025, eq. 13).
    """
    rows = _centred_rows(t, A)
    turned = t.transpose(rows, [0, 2, 1])
    places, channels = rows.shape[1], rows.shape[2]
    if isinstance(places, int) and isinstance(channels, int) and places <= channels:
        gram = rows @ turned
        vector = _leading_vector(t, gram)
        # The component itself has one number a channel; the projection on it is the matrix times its transpose times u.
        size = t.op("Sqrt", t.sum(t.op("Mul", vector, gram @ vector), [1]))
        return as_map(t, _signed(t, t.op("Mul", vector, size)), A)
    return as_map(t, _signed(t, rows @ _leading_vector(t, turned @ rows)), A)


def _centred_rows(t: Builder, A: Value) -> Value:
    """`[N, places, C]`, of mean zero over the places."""
    rows = t.transpose(t.op("Reshape", A, t.ints(0, 0, -1)), [0, 2, 1])
    return rows - t.mean(rows, [1])


def _leading_vector(t: Builder, gram: Value) -> Value:
    """The leading eigenvector of `[N, n, n]`, positive semidefinite: `[N, n, 1]` of length one; zero for zero."""
    for _ in range(_SQUARINGS):
        trace = t.op("Max", t.reduce("ReduceMax", t.op("Abs", gram), [1, 2]), _TINY)
        gram = gram / trace
        gram = gram @ gram
    # The limit is a multiple of v v^T: its columns are multiples of v, and that of the largest norm is the safest.
    norms = t.sum(t.op("Mul", gram, gram), [1])
    best = t.op("ArgMax", norms, axis=2, keepdims=1)
    index = t.op("Expand", best, t.op("Concat", t.op("Shape", gram, end=2), t.ints(1), axis=0))
    column = t.op("GatherElements", gram, index, axis=2)
    length = t.op("Sqrt", t.sum(t.op("Mul", column, column), [1]))
    return column / t.op("Max", length, _TINY)


def _signed(t: Builder, values: Value) -> Value:
    """`[N, n, 1]` with its value of largest magnitude made positive."""
    flipped = t.reduce("ReduceMax", -values, [1]) > t.reduce("ReduceMax", values, [1])
    return t.op("Where", flipped, -values, values)


@method("legrad", title="LeGrad", reference="Bousselham et al. 2024, eq. 5 to 8; its own minimum and maximum left out")
def le_grad(t: Builder, A: Value, attentions: Sequence[tuple[Value, int]]) -> Value:
    """How much attention to each token raises the score that each block's output alone would have.

    Positive derivatives by every block's attention maps, averaged over heads and over the tokens that attend, summed
    over the blocks; the columns of class and register tokens are left out.
    """
    terms = []
    for gradient, before in attentions:
        columns = t.mean(t.op("Relu", gradient), [1, 2], keepdims=False)
        count = math.prod(A.dims_behind_batch()[1:])
        terms.append(t.op("Slice", columns, t.ints(before), t.ints(before + count), t.ints(1)))
    return as_map(t, terms[0] if len(terms) == 1 else t.op("Sum", *terms), A)
