"""Methods that weigh activation maps by their cotangents."""

from __future__ import annotations

from onnx_gradcam.graph.builder import Builder, Value

from .registry import method


@method("gradcam", title="Grad-CAM", reference="Selvaraju et al. 2017, eq. 1 and 2 (the ReLU is the finishing's)")
def grad_cam(t: Builder, A: Value, G: Value) -> Value:
    """sum_k w_k A_k, where w_k is the mean of G_k over all places."""
    weights = t.mean(G, range(2, G.rank))
    return t.sum(A * weights, [1], keepdims=False)
