"""Methods that run the head again, inside of the model, on activation maps of which only a part is left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

from .registry import method

_GAUSS = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


@method(
    "reciprocam",
    title="Recipro-CAM",
    reference="Byun and Lee 2022, eq. 1 to 4, with the Gaussian mask; on tokens it is ViT-ReciproCAM (2023)",
)
def recipro_cam(t: Builder, A: Value, head: Callable[[Value, int], Value]) -> Value:
    """The score when one place of the activation maps and its neighbours are left, above the lowest such score."""
    return _scores(t, A, head, _smooth)


@method(
    "reciprocam-openvino-xai",
    title="Recipro-CAM of OpenVINO XAI",
    reference="OpenVINO XAI 1.1.0 methods/white_box/recipro_cam.py: eq. 1 to 4 with one place for each mask",
)
def recipro_cam_of_openvino_xai(t: Builder, A: Value, head: Callable[[Value, int], Value]) -> Value:
    """The score when one place of the activation maps is left, above the lowest such score."""
    return _scores(t, A, head, _single)


def _scores(
    t: Builder, A: Value, head: Callable[[Value, int], Value], masks_of: Callable[[int, int], npt.NDArray[np.float64]]
) -> Value:
    places = [d for d in A.shape[2:] if isinstance(d, int)]
    if len(places) != 2:
        raise UnsupportedError("Recipro-CAM needs a layer of fixed size; export the model with fixed height and width")
    rows, columns = places
    count = rows * columns
    masks = t.const(masks_of(rows, columns).reshape(1, count, 1, rows, columns).astype(np.float32))
    left = t.op("Mul", t.op("Unsqueeze", A, t.ints(1)), masks)
    scores = head(t.op("Reshape", left, t.ints(-1, *A.dims_behind_batch())), count)
    lifted = scores - t.reduce("ReduceMin", scores, [1])
    return t.op("Reshape", lifted, t.ints(-1, rows, columns), shape=(A.shape[0], rows, columns))


def _single(rows: int, columns: int) -> npt.NDArray[np.float64]:
    """One mask a place, `[rows * columns, rows, columns]`."""
    return np.eye(rows * columns).reshape(-1, rows, columns)


def _smooth(rows: int, columns: int) -> npt.NDArray[np.float64]:
    """As `_single`, with the places around it in the weights of a Gaussian."""
    masks = np.zeros((rows, columns, rows + 2, columns + 2))
    for row in range(rows):
        for column in range(columns):
            masks[row, column, row : row + 3, column : column + 3] = _GAUSS
    return masks[:, :, 1:-1, 1:-1].reshape(-1, rows, columns)
