"""Methods that weigh activation maps by their cotangents."""

from __future__ import annotations

from onnx_gradcam.graph.builder import Builder, Value

from .registry import method


@method("gradcam", title="Grad-CAM", reference="Selvaraju et al. 2017, eq. 1 and 2 (the ReLU is the finishing's)")
def grad_cam(t: Builder, A: Value, G: Value) -> Value:
    """sum_k w_k A_k, where w_k is the mean of G_k over all places."""
    return weighted_sum(t, A, mean_over_places(t, G))


def mean_over_places(t: Builder, G: Value) -> Value:
    """The mean of every channel, `[N, C, 1 ...]`."""
    places = range(2, G.rank)
    return G if all(G.shape[i] == 1 for i in places) else t.mean(G, places)


def weighted_sum(t: Builder, A: Value, weights: Value) -> Value:
    """sum_k w_k A_k: `[N, C, *spatial]` and `[N, C, 1 ...]` -> `[N, *spatial]`."""
    # A row times a matrix for each sample is several times faster than a product and a sum over channels.
    row = t.op("Reshape", weights, t.ints(0, 1, -1), shape=(A.shape[0], 1, A.shape[1]))
    cam = row @ t.op("Reshape", A, t.ints(0, 0, -1))
    grid = A.shape[2:]
    if sum(not isinstance(d, int) for d in grid) <= 1:
        size = t.ints(0, *(d if isinstance(d, int) else -1 for d in grid))
    else:
        size = t.op("Concat", t.ints(0), t.op("Shape", A, start=2), axis=0)
    return t.op("Reshape", cam, size, shape=(A.shape[0], *grid))
