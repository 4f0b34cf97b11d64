"""Principal components with the sign that NumPy's SVD gives them, as pytorch-grad-cam shows them.

The sign of a component is arbitrary. LAPACK's depends on the order in which it eliminates, which no operator of ONNX
follows, so these methods are computed outside of the model. A file of its own, since all other projections are nodes of
the model.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .catalogue import method
from .probe import Array, Probe

_by_numpy = partial(
    method, passes="one forward pass and a decomposition in NumPy", outside="takes the sign of NumPy's decomposition"
)


@_by_numpy(
    "eigencam-pytorch-grad-cam",
    title="Eigen-CAM of pytorch-grad-cam",
    reference="pytorch-grad-cam 1.5.7 eigen_cam.py, utils/svd_on_activations.py: Eigen-CAM with NumPy's sign",
    uses=("A",),
)
def eigen_cam_of_pytorch_grad_cam(probe: Probe) -> Array:
    """The projection of A on its leading principal component, with NumPy's sign."""
    return _projection(probe.maps)


@_by_numpy(
    "eigengradcam-pytorch-grad-cam",
    title="EigenGrad-CAM of pytorch-grad-cam",
    reference="pytorch-grad-cam 1.5.7 eigen_grad_cam.py: EigenGrad-CAM with NumPy's sign",
    uses=("A", "G"),
)
def eigen_grad_cam_of_pytorch_grad_cam(probe: Probe) -> Array:
    """The projection of G A on its leading principal component, with NumPy's sign."""
    maps, cotangents = probe.maps_and_cotangents(probe.x[None])
    return _projection(maps[0] * cotangents[0])


def _projection(maps: Array) -> Array:
    """Maps `[C, h, w]` projected on their leading component, `[h, w]`."""
    rows = maps.reshape(len(maps), -1).T
    rows = rows - rows.mean(axis=0)
    # The thin decomposition has the same sign as the full one, at a hundredth of the time for 2048 channels.
    component = np.linalg.svd(rows, full_matrices=False)[2][0]
    projection: Array = (rows @ component).reshape(maps.shape[1:])
    return projection
