"""CAM methods: activation maps weighted by gradients, and their principal components.

A method returns the raw signed map `[N, *spatial]` of `A`, the activation maps `[N, C, *spatial]`, and `G`, the
gradient of the score S with respect to them. `G` may be of size one along the spatial axes if it is the same at all
positions: products broadcast it, sums over positions expand it first. Methods that end with `total` support eigen
smoothing. In the formulas k counts channels and i spatial positions.
"""

from __future__ import annotations

from collections.abc import Callable

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
@method(
    "gradcam",
    title="Grad-CAM",
    reference="Selvaraju et al. 2017, eq. 1 and 2 (the ReLU is part of the post-processing)",
)
def grad_cam(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """sum_k w_k A_k with w_k = mean_i G_ki; Finer-CAM takes G of its own objective."""
    return total(A, spatial_mean(t, G))


@method("cam", title="CAM", reference="Zhou et al. 2016, eq. 2", linear_head=True)
def cam(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """sum_k w_k A_k, with w_k the weight of channel k in the linear layer behind the pooling."""
    return total(A, spatial_sum(t, G, A))


@method("hirescam", title="HiResCAM", reference="Draelos and Carin 2020, eq. 4", additive=True)
def hires_cam(t: Builder, A: Value, G: Value, total: Total) -> Value:  # noqa: ARG001 - every method takes the builder
    """sum_k G_ki A_ki at each position i."""
    return total(A, G)


@method(
    "gradcam-elementwise",
    title="Element-wise Grad-CAM",
    reference="Pillai and Pirsiavash 2021, section 3; pytorch-grad-cam grad_cam_elementwise.py",
    additive=True,
)
def elementwise(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """sum_k max(G_ki A_ki, 0) at each position i."""
    return total(t.op("Relu", t.op("Mul", G, A)))


@method("layercam", title="LayerCAM", reference="Jiang et al. 2021, eq. 4 and 5", additive=True)
def layer_cam(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """sum_k max(G_ki, 0) A_ki at each position i."""
    return total(A, t.op("Relu", G))


@method("xgradcam", title="XGrad-CAM", reference="Fu et al. 2020, eq. 8; pytorch-grad-cam xgrad_cam.py for the 1e-7")
def xgrad_cam(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """sum_k w_k A_k with w_k = sum_i G_ki A_ki / (sum_i A_ki + 1e-7)."""
    axes = range(2, A.rank)
    return total(A, t.sum(t.op("Mul", G, A), axes) / (t.sum(A, axes) + 1e-7))


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
    """sum_k w_k A_k with w_k = sum_i alpha_ki max(G_ki, 0), alpha = G^2 / (2 G^2 + sum_i(A) G^3 + 1e-6)."""
    square = t.op("Mul", G, G)
    filled = t.sum(A, range(2, A.rank))
    alpha = square / (square * 2.0 + t.op("Mul", filled, t.op("Mul", square, G)) + 1e-6)
    return total(A, spatial_sum(t, t.op("Mul", t.op("Relu", G), alpha), A))


@method(
    "gradcam++-torch-cam",
    title="Grad-CAM++ of torch-cam",
    reference="torch-cam 0.5.0 gradient.py: divides a copy, so that alpha stays G^2",
)
def grad_cam_plus_plus_of_torch_cam(t: Builder, A: Value, G: Value, total: Total) -> Value:
    """sum_k w_k A_k with w_k = sum_i G_ki^2 max(G_ki, 0)."""
    return total(A, spatial_sum(t, t.op("Mul", t.op("Mul", G, G), t.op("Relu", G)), A))


@method(
    "gradcam++-paper",
    title="Grad-CAM++ of the paper",
    reference="Chattopadhay et al. 2018, eq. 19 and 7, for the exponential of the score",
)
def grad_cam_plus_plus_of_the_paper(t: Builder, A: Value, G: Value, score: Value) -> Value:
    """sum_k w_k A_k with w_k = sum_i alpha_ki exp(S) max(G_ki, 0), alpha = G^2 / (2 G^2 + sum_i(A) G^3)."""
    weights = t.op("Mul", _exponential(t, score, G), t.op("Mul", t.op("Relu", G), _alpha(t, A, G)))
    return weighted_sum(t, A, spatial_sum(t, weights, A))


@method(
    "gradcam++-tf-keras-vis",
    title="Grad-CAM++ of tf-keras-vis",
    reference="tf-keras-vis 0.8.7 gradcam_plus_plus.py: exp(S) in alpha too, whose sum over positions is one",
)
def grad_cam_plus_plus_of_tf_keras_vis(t: Builder, A: Value, G: Value, score: Value) -> Value:
    """Grad-CAM++ of the paper, with alpha divided by its sum over all positions."""
    alpha = _alpha(t, A, t.expand_like(G, A) if is_constant(G) else G)
    alpha = _divided(t, alpha, t.sum(alpha, range(2, A.rank)))
    weights = t.op("Mul", _exponential(t, score, G), t.op("Mul", t.op("Relu", G), alpha))
    return weighted_sum(t, A, spatial_sum(t, weights, A))


def _alpha(t: Builder, A: Value, G: Value) -> Value:
    """Eq. 19: G^2 / (2 G^2 + sum(A) G^3); the common factor exp(S) cancels."""
    square = t.op("Mul", G, G)
    total = t.sum(A, range(2, A.rank))
    return _divided(t, square, square * 2.0 + t.op("Mul", total, t.op("Mul", square, G)))


def _divided(t: Builder, part: Value, whole: Value) -> Value:
    """`part / whole`, and `part` itself where `whole` is zero."""
    return part / (whole + t.cast(t.op("Equal", whole, 0.0), np.float32))


def _exponential(t: Builder, score: Value, G: Value) -> Value:
    """exp(S), with the axes of `G`; clipped to the range of float32, which only scales the map."""
    axes = (1,) * (G.rank - 1)
    clipped = t.op("Max", t.op("Min", score, 80.0), -80.0)
    return t.op("Reshape", t.op("Exp", clipped), t.ints(-1, *axes), shape=(score.shape[0], *axes))


@method("shapleycam", title="ShapleyCAM", reference="Cai 2025, eq. 9; pytorch-grad-cam shapley_cam.py")
def shapley_cam(t: Builder, A: Value, G: Value, HA: Value, total: Total) -> Value:
    """sum_k w_k A_k with w_k = mean_i (G - HA / 2)_ki, where HA is the Hessian of the score times A."""
    return total(A, spatial_mean(t, G - HA * 0.5))


def spatial_mean(t: Builder, G: Value) -> Value:
    """The mean of every channel, `[N, C, 1 ...]`."""
    return G if is_constant(G) else t.mean(G, range(2, G.rank))


def spatial_sum(t: Builder, G: Value, A: Value) -> Value:
    """The sum of every channel of `G` over the positions of `A`, `[N, C, 1 ...]`."""
    return t.sum(t.expand_like(G, A) if is_constant(G) else G, range(2, A.rank))


def is_constant(G: Value) -> bool:
    """Whether a tensor is of size one along all spatial axes."""
    return all(G.shape[i] == 1 for i in range(2, G.rank))


def weighted_sum(t: Builder, A: Value, weights: Value) -> Value:
    """sum_k w_k A_k, `[N, *spatial]`, of maps `[N, C, *spatial]` and weights that broadcast."""
    if not is_constant(weights):
        return t.sum(t.op("Mul", weights, A), [1], keepdims=False)
    # A row times a matrix for each sample is several times faster than a product and a sum over channels.
    row = t.op("Reshape", weights, t.ints(0, 1, -1), shape=(A.shape[0], 1, A.shape[1]))
    return as_map(t, row @ t.merged(A, 2), A)


def as_map(t: Builder, values: Value, A: Value) -> Value:
    """One value per position, in any shape, as `[N, *spatial]` of the activation maps `A`."""
    grid = A.shape[2:]
    free = sum(not isinstance(d, int) for d in grid)
    # A size cannot be inferred from the elements of an empty batch.
    if free == 0 or (free == 1 and isinstance(A.shape[0], int)):
        size = t.ints(0, *(d if isinstance(d, int) else -1 for d in grid))
    else:
        size = t.op("Concat", t.ints(0), t.op("Shape", A, start=2), axis=0)
    return t.op("Reshape", values, size, shape=(A.shape[0], *grid))


_SQUARINGS = 16
"""Squarings of a Gram matrix: worth 2^16 steps of power iteration, enough for a relative gap of one in ten thousand."""

_TINY = 1e-30


@method("activationmap", title="Activation map", reference="the mean over channels; see Zagoruyko and Komodakis 2017")
def activation_map(t: Builder, A: Value) -> Value:
    """mean_k A_k."""
    return t.mean(A, [1], keepdims=False)


@method("fem", title="FEM", reference="Ahmed Asif Fuad et al. 2020, section 3; pytorch-grad-cam fem.py with k = 2")
def fem(t: Builder, A: Value) -> Value:
    """sum_k w_k A_k, with w_k the share of positions where A_k is over two standard deviations above its mean."""
    axes = range(2, A.rank)
    centred = A - t.mean(A, axes)
    deviation = t.op("Sqrt", t.mean(t.op("Mul", centred, centred), axes))
    strong = t.cast(centred > deviation * 2.0, A.dtype)
    return weighted_sum(t, A, t.mean(strong, axes))


@method("eigencam", title="Eigen-CAM", reference="Muhammad and Yeasin 2020, eq. 3 and 4, after centring")
def eigen_cam(t: Builder, A: Value) -> Value:
    """The projection of A on its leading principal component."""
    return leading_projection(t, A)


@method("eigengradcam", title="EigenGrad-CAM", reference="Eigen-CAM of G A; pytorch-grad-cam eigen_grad_cam.py")
def eigen_grad_cam(t: Builder, A: Value, G: Value) -> Value:
    """The projection of G A on its leading principal component."""
    return leading_projection(t, t.op("Mul", t.expand_like(G, A) if is_constant(G) else G, A))


@method("segeigencam", title="Seg-Eigen-CAM", reference="Chung and Ying 2025, eq. 10 to 13")
def seg_eigen_cam(t: Builder, A: Value, G: Value) -> Value:
    """The projection of |G| A on its leading principal component."""
    return leading_projection(t, t.op("Mul", t.op("Abs", t.expand_like(G, A) if is_constant(G) else G), A))


@method(
    "kpcacam",
    title="KPCA-CAM",
    reference="Karmani et al. 2024, section 3, sigmoid kernel; pytorch-grad-cam kpca_cam.py, scikit-learn's KernelPCA",
)
def kpca_cam(t: Builder, A: Value) -> Value:
    """The projection of A on its leading kernel principal component, for the kernel tanh(a b / C + 1)."""
    rows = _centred_rows(t, A)
    width = t.cast(t.op("Shape", A, start=1, end=2), A.dtype)
    kernel = t.op("Tanh", (rows @ t.transpose(rows, [0, 2, 1])) / width + 1.0)
    over_rows, over_columns = t.mean(kernel, [1]), t.mean(kernel, [2])
    centred = kernel - over_rows - over_columns + t.mean(kernel, [1, 2])
    # The kernel has negative eigenvalues as well: adding its norm to all makes the largest the leading one.
    norm = t.op("Sqrt", t.sum(t.op("Mul", centred, centred), [1, 2]))
    identity = t.op("EyeLike", t.op("ConstantOfShape", t.op("Shape", centred, start=1)))
    vector = _leading_vector(t, centred + t.op("Mul", norm, identity))
    eigenvalue = t.sum(t.op("Mul", vector, centred @ vector), [1])
    return as_map(t, _signed(t, t.op("Mul", vector, t.op("Sqrt", t.op("Relu", eigenvalue)))), A)


def leading_projection(t: Builder, A: Value) -> Value:
    """`A`, one point of C values per position, centred and projected on its leading component, `[N, *spatial]`.

    The sign of a component is arbitrary: here the value of largest magnitude is positive (Chung and Ying 2025, eq. 13).
    """
    rows = _centred_rows(t, A)
    transposed = t.transpose(rows, [0, 2, 1])
    positions, channels = rows.shape[1], rows.shape[2]
    if isinstance(positions, int) and isinstance(channels, int) and positions <= channels:
        gram = rows @ transposed
        vector = _leading_vector(t, gram)
        # The component has one value per channel; the projection on it is the matrix times its transpose times u.
        size = t.op("Sqrt", t.sum(t.op("Mul", vector, gram @ vector), [1]))
        return as_map(t, _signed(t, t.op("Mul", vector, size)), A)
    return as_map(t, _signed(t, rows @ _leading_vector(t, transposed @ rows)), A)


def _centred_rows(t: Builder, A: Value) -> Value:
    """`[N, positions, C]`, with mean zero over the positions."""
    rows = t.transpose(t.merged(A, 2), [0, 2, 1])
    return rows - t.mean(rows, [1])


def _leading_vector(t: Builder, gram: Value) -> Value:
    """The leading eigenvector of `[N, n, n]`, positive semidefinite: `[N, n, 1]` of length one; zero for zero."""
    for _ in range(_SQUARINGS):
        trace = t.op("Max", t.reduce("ReduceMax", t.op("Abs", gram), [1, 2]), _TINY)
        gram = gram / trace
        gram = gram @ gram
    # The limit is a multiple of v v^T, so its columns are multiples of v; the largest one is the most precise.
    norms = t.sum(t.op("Mul", gram, gram), [1])
    best = t.op("ArgMax", norms, axis=2, keepdims=1)
    index = t.op("Expand", best, t.op("Concat", t.op("Shape", gram, end=2), t.ints(1), axis=0))
    column = t.op("GatherElements", gram, index, axis=2)
    length = t.op("Sqrt", t.sum(t.op("Mul", column, column), [1]))
    return column / t.op("Max", length, _TINY)


def _signed(t: Builder, values: Value) -> Value:
    """`[N, n, 1]`, with the sign that makes its value of largest magnitude positive."""
    flipped = t.reduce("ReduceMax", -values, [1]) > t.reduce("ReduceMax", values, [1])
    return t.op("Where", flipped, -values, values)
