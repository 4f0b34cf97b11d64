"""Grad-CAM without a gradient: central differences of the model itself, moved at the target tensor.

The map at place q is sum_k w_k A_kq, and P w_k is how fast the score rises when channel k is raised at all P places
alike. So P times the map at q is how fast the score rises along the direction that has A_kq at every place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.graph.load import load
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.session import Session

Array = np.ndarray[Any, Any]


def numeric_grad_cam(model: onnx.ModelProto, x: Array, classes: list[int], step: float = 4e-3, **choices: Any) -> Array:
    """The raw Grad-CAM map, `[N, *spatial]`, of the layer that `attach` would choose."""
    work = make_plan(model, Options(**choices))
    target, score = work.layer.chosen, work.score
    session = Session(_moved(model, target.tensor.name, score.tensor.name).SerializeToString(), threads=1)

    def scores(delta: Array) -> Array:
        out = session.run({work.image.name: x, "delta": delta})[score.tensor.name]
        return out.reshape(len(x), -1).astype(np.float64)

    kinds = [axis.kind for axis in target.layout if axis is not None]
    (activation,) = (
        v
        for k, v in session.run({work.image.name: x, "delta": np.zeros((1,) * len(kinds), np.float32)}).items()
        if k == "activation"
    )
    spatial = [i for i, kind in enumerate(kinds) if kind in "ST"]
    order = [kinds.index("N"), kinds.index("C"), *spatial]
    start, count = (target.tokens.before, int(np.prod(target.tokens.grid))) if target.tokens is not None else (0, None)
    maps = activation.transpose(order)[:, :, slice(start, None if count is None else start + count)]
    flat = maps.reshape(*maps.shape[:2], -1)
    places = flat.shape[2]
    result = np.zeros((len(x), places))
    for q in range(places):
        direction = np.zeros_like(activation.transpose(order))
        window = direction[:, :, slice(start, None if count is None else start + count)]
        window += flat[:, :, q].reshape(*flat.shape[:2], *(1,) * (window.ndim - 2))
        delta = direction.transpose(np.argsort(order)) * np.float32(step)
        slope = (scores(delta) - scores(-delta)) / (2 * step)
        if score.single_logit:
            slope = np.concatenate([-slope, slope], axis=1)
        result[:, q] = slope[np.arange(len(x)), classes] / places
    return result.reshape(len(x), *(target.grid if target.tokens is not None else maps.shape[2:]))


def numeric_map(
    model: onnx.ModelProto,
    target: str,
    outputs: Sequence[str],
    score: Callable[[dict[str, Array]], Array],
    x: Array,
    *,
    local: bool,
    step: float = 4e-3,
) -> Array:
    """The raw map of any score of activation maps `[N, C, h, w]`, with no gradient: HiResCAM's, or Grad-CAM's.

    Args:
        model: the model, not explained.
        target: name of the activation maps.
        outputs: the tensors that the score is made of.
        score: from these to `[N]`.
        x: the input.
        local: move each place along its own activations (HiResCAM), rather than all places along them (Grad-CAM).
        step: how far to move.
    """
    session = Session(_moved(model, target, *outputs).SerializeToString(), threads=1)

    def run(delta: Array) -> dict[str, Array]:
        return session.run({session.inputs[0].name: x, "delta": delta.astype(np.float32)})

    maps = run(np.zeros((1, 1, 1, 1)))["activation"]
    height, width = maps.shape[2:]
    result = np.zeros((len(x), height, width))
    for i, j in np.ndindex(height, width):
        direction = np.zeros_like(maps)
        where = (slice(i, i + 1), slice(j, j + 1)) if local else (slice(None), slice(None))
        direction[:, :, where[0], where[1]] = maps[:, :, i : i + 1, j : j + 1]
        up, down = (score(run(sign * step * direction)).astype(np.float64) for sign in (1, -1))
        result[:, i, j] = (up - down) / (2 * step) / (1 if local else height * width)
    return result


def _moved(model: onnx.ModelProto, target: str, *scores: str) -> onnx.ModelProto:
    """The model with an input `delta` that is added to the target tensor."""
    moved = load(model).to_proto()
    nodes = moved.graph.node
    where = next(i for i, node in enumerate(nodes) if target in node.output)
    for node in nodes:
        node.input[:] = ["moved" if name == target else name for name in node.input]
    nodes.insert(where + 1, helper.make_node("Add", [target, "delta"], ["moved"]))
    nodes.insert(where + 1, helper.make_node("Identity", [target], ["activation"]))
    moved.graph.input.append(helper.make_tensor_value_info("delta", TensorProto.FLOAT, None))
    del moved.graph.output[:], moved.graph.value_info[:]
    for name in (*scores, "activation"):
        moved.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return moved
