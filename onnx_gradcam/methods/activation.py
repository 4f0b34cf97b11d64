"""Methods that look at activation maps alone, whatever the class; and projections on their leading component."""

from __future__ import annotations

from onnx_gradcam.graph.builder import Builder, Value

from .gradient import as_map, is_constant, weighted_sum
from .registry import method

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
