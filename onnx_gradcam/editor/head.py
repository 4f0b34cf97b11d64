"""The gradient of the head behind global pooling, without a backward pass: in closed form or by central differences.

Behind global average pooling the gradient is the same at all positions, so one value per channel is enough.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnx_gradcam.errors import ModelError, UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import RESHAPES, VIEWS, keeps_order, row_coupling
from onnx_gradcam.graph.shapes import declare

from .targets.layer import Candidate
from .targets.score import Score

__all__ = ["Head", "copy_behind", "evaluate_behind", "finite_cotangent", "linear_cotangent", "linear_maps", "read_head"]


_STEP = 2.0**-6
"""Half the distance of the two evaluations, relative to the root mean square of the pooled vector.

Rounding costs about 1e-7/step of the score, truncation step^2/6 of its third derivative; in float32 the two meet near
one hundredth.
"""


@dataclass(frozen=True, eq=False)
class Head:
    """The model between the target tensor and the score.

    Attributes:
        pooled: the output of global pooling, `[N, C]` or with axes of size one.
        average: whether the pooling divides by the number of positions (a sum does not).
        matrix: the weights of the one linear layer, `[C, K]`, `[K, C]` or `[K, C, 1 ...]`, or `None` if pooled
            channels are the scores themselves.
        class_axis: the axis of classes in `matrix`.
        scale: constant factors on the pooled channels and on the score, `[C]` or a scalar.
        linear: whether these are all there is behind the pooling.
        why: what the head is, or what in it is not linear, in words.
    """

    pooled: Value
    average: bool
    matrix: Value | None
    class_axis: int
    scale: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    linear: bool
    why: str


def read_head(t: Builder, target: Candidate, score: Value, path: Sequence[ir.Node]) -> Head | None:
    """The head, from the nodes between target and score; `None` if it does not start with global pooling."""
    here = target.tensor
    if target.frames:
        # Pooling leaves a vector for each frame.
        return None
    for i, node in enumerate(path):
        if not node.inputs or node.inputs[0] is not here.core:
            return None
        out = t.wrap(node.outputs[0])
        average = _pools_all(t, target, node, here)
        if average is not None:
            return _behind(t, out, average=average, score=score, rest=path[i + 1 :], channels=target.channels)
        if node.op_type not in {"Identity", "Dropout", "Cast"}:
            return None
        here = out
    return None


def _pools_all(t: Builder, target: Candidate, node: ir.Node, here: Value) -> bool | None:
    """Whether `node` averages (`True`) or sums (`False`) over all positions; `None` if it does neither."""
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type == "AveragePool":
        pads, auto = node.attributes.get("pads"), node.attributes.get("auto_pad")
        plain = (pads is None or not any(pads.as_ints())) and (auto is None or auto.as_string() in {"NOTSET", "VALID"})
        whole = tuple(node.attributes["kernel_shape"].as_ints()) == here.shape[2:]
        return True if plain and whole and "dilations" not in node.attributes else None
    if node.op_type in {"ReduceMean", "ReduceSum"} and len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = t.wrap(node.inputs[1]).array()
        spatial = {i for i, axis in enumerate(target.layout) if axis is not None and axis.kind in "ST"}
        if axes is not None and {int(a) % here.rank for a in axes} == spatial:
            return node.op_type == "ReduceMean"
    return None


def _behind(
    t: Builder, pooled: Value, *, average: bool, score: Value, rest: Sequence[ir.Node], channels: int | str | None
) -> Head:
    """Read what follows the pooling while it is linear."""

    def curved(why: str) -> Head:
        return Head(pooled, average, None, 1, np.ones(()), linear=False, why=why)

    matrix, class_axis, here = None, 1, pooled
    scale = np.ones(())
    for node in rest:
        where = next((i for i, v in enumerate(node.inputs) if v is here.core), None)
        if where is None:
            return curved("several branches read the pooled vector")
        # Permuting or broadcasting the vector is left to the backward pass.
        kept = keeps_order(t, node, where)
        factor = _factor(t, node, where, channels if matrix is None else None) if kept else None
        if factor is not None:
            scale = scale * factor
        elif where == 0 and matrix is None and (layer := _matrix(t, node, channels)) is not None:
            matrix, class_axis, alpha = layer
            scale = scale * alpha
        else:
            return curved(f"{node.op_type} behind the pooling is not linear")
        here = t.wrap(node.outputs[0])
    if here is not score or not isinstance(channels, int):
        return curved("the pooling does not lead straight to the score")
    why = "pooling and one linear layer" if matrix is not None else "pooling alone: its channels are the classes"
    return Head(pooled, average, matrix, class_axis, scale, linear=True, why=why)


def _factor(
    t: Builder, node: ir.Node, where: int, channels: int | str | None
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None:
    """The constant that `node` multiplies the vector by, `[C]` or a scalar; `None` if it does something else."""
    if node.op_type in VIEWS and where == 0:
        return np.ones(())
    others = [t.wrap(v).array() for i, v in enumerate(node.inputs) if i != where and v is not None]
    if any(o is None for o in others):
        return None
    constants = [np.asarray(o, np.float64) for o in others]
    if node.op_type == "Add" or (node.op_type == "Sub" and where == 0):
        return np.ones(())
    if node.op_type == "Mul" or (node.op_type == "Div" and where == 0):
        constant = constants[0] if node.op_type == "Mul" else 1.0 / constants[0]
        return (
            constant.reshape(-1) if constant.size == channels else constant.reshape(()) if constant.size == 1 else None
        )
    if node.op_type == "BatchNormalization" and where == 0 and channels is not None:
        weight, _, _, variance = constants
        epsilon = node.attributes.get("epsilon")
        return weight / np.sqrt(variance + (epsilon.as_float() if epsilon is not None else 1e-5))
    return None


def _matrix(t: Builder, node: ir.Node, channels: int | str | None) -> tuple[Value, int, float] | None:
    """Weights, class axis and factor of a linear layer over all channels: a product or a 1x1 convolution."""
    if node.op_type not in {"Gemm", "MatMul", "Conv"} or node.inputs[1] is None:
        return None
    matrix, number = t.wrap(node.inputs[1]), node.attributes
    class_axis = 0 if node.op_type == "Conv" or number.get_int("transB", 0) != 0 else 1
    if matrix.core.const_value is None or number.get_int("transA", 0) != 0 or matrix.shape[1 - class_axis] != channels:
        return None
    if math.prod(matrix.dims()[2:]) != 1 or any(number.get_ints("pads", ())):
        return None
    return matrix, class_axis, number.get_float("alpha", 1.0)


def linear_cotangent(
    t: Builder,
    head: Head,
    score: Score,
    target: Value,
    classes: Value,
    *,
    sign: Value | None,
    seed: Value | None = None,
) -> Value:
    """The cotangent of the maps `target`, `[N, C, *spatial]`, of a linear head: a row of its weights, `[N, C, 1 ...]`.

    `sign`, `float32 [N, 1]`, is +1 or -1 for a single logit. `seed` is the cotangent of the score, `float32 [N, K]`;
    `None` stands for one at the class and zero elsewhere.
    """
    if seed is not None:
        row = seed if head.matrix is None else seed @ _row_by_class(t, head, head.matrix)
    elif head.matrix is None:
        width = target.shape[1]
        channels = t.const(np.arange(int(width or 0), dtype=np.int64).reshape(1, -1))
        row = t.cast(t.op("Equal", t.op("Unsqueeze", classes, t.ints(1)), channels), np.float32)
    else:
        index = t.op("Mul", classes, t.const(np.array(0, np.int64))) if score.single_logit else classes
        row = t.cast(t.op("Gather", head.matrix, index, axis=head.class_axis), np.float32)
        row = t.transpose(row, [1, 0]) if head.class_axis == 1 else t.merged(row, 1)
    row = row if sign is None else row * sign
    if not np.array_equal(head.scale, 1.0):
        row = t.op("Mul", row, t.const(head.scale.astype(np.float32)))
    return _over_positions(t, row, head, target)


def linear_maps(t: Builder, head: Head, score: Score, target: Value) -> Value:
    """The weighted sums of the maps `target`, `float32 [N, C, *spatial]`, for all classes by one product.

    Returns `float32 [N, K, *spatial]`; for a single logit its complement and itself.
    """
    width = int(target.shape[1] or 0)
    rows = t.const(np.eye(width, dtype=np.float32)) if head.matrix is None else _row_by_class(t, head, head.matrix)
    if not np.array_equal(head.scale, 1.0):
        rows = t.op("Mul", rows, t.const(head.scale.astype(np.float32)))
    if score.single_logit:
        rows = t.op("Concat", -rows, rows, axis=0)
    maps = rows @ t.merged(target, 2)
    if head.average:
        maps = t.op("Div", maps, _position_count(t, head, target))
    size = t.op("Concat", t.ints(0, score.classes or -1), t.op("Shape", target, start=2), axis=0)
    return t.op("Reshape", maps, size, shape=(target.shape[0], score.classes, *target.shape[2:]))


def _row_by_class(t: Builder, head: Head, matrix: Value) -> Value:
    """The weights of the linear layer, a row for each class: `float32 [K, C]`."""
    flat = t.op("Reshape", matrix, t.ints(*matrix.dims()[:2])) if matrix.rank > 2 else matrix
    weights = t.cast(flat, np.float32)
    return weights if head.class_axis == 0 else t.transpose(weights, [1, 0])


def _over_positions(t: Builder, row: Value, head: Head, target: Value) -> Value:
    """`[N, C]` -> `[N, C, 1 ...]`, divided by the number of positions if the pooling averages."""
    if head.average:
        count = _position_count(t, head, target)
        row = row / count if isinstance(count, Value) else row * (1.0 / count)
    ones = [1] * (target.rank - 2)
    return t.op("Reshape", row, t.ints(0, 0, *ones), shape=(row.shape[0], row.shape[1], *ones))


def _position_count(t: Builder, head: Head, target: Value) -> Value | float:
    """The number of values that one mean is over, with class and register tokens."""
    node = head.pooled.core.producer()
    source = t.wrap(node.inputs[0]) if node is not None and node.inputs[0] is not None else target
    sizes = [d for d in source.shape[1:] if isinstance(d, int)]
    width = target.shape[1]
    if len(sizes) == source.rank - 1 and isinstance(width, int):
        return float(math.prod(sizes) // width)
    return t.cast(t.op("ReduceProd", t.op("Shape", target, start=2), keepdims=0), np.float32)


def finite_cotangent(
    t: Builder, head: Head, score: Score, target: Value, seed: Value, path: Sequence[ir.Node]
) -> Value:
    """The cotangent of the maps `target`, `[N, C, *spatial]`, by central differences over the pooled vector.

    Returns `[N, C, 1 ...]`. All channels, up and down, are one batched evaluation of a copy of the head, which is
    refused if it needs a fixed batch size. `seed` is the cotangent of the score, `path` the nodes from the maps to the
    score.
    """
    width = target.shape[1]
    if not isinstance(width, int):
        raise UnsupportedError("finite weights need a known number of channels; use --weights gradient")
    pooled = t.op("Reshape", head.pooled, t.ints(-1, 1, width))
    square = t.mean(t.op("Mul", pooled, pooled), [2])
    step = t.op("Sqrt", square) * _STEP + 1e-12
    channel = np.arange(width, dtype=np.int64)
    unit = t.cast(t.op("Equal", t.const(channel[:, None]), t.const(channel[None])), pooled.dtype)
    moves = t.op("Concat", unit, -unit, axis=0)
    moved = pooled + t.op("Mul", step, t.op("Unsqueeze", moves, t.ints(0)))
    tail = [d if isinstance(d, int) else -1 for d in head.pooled.shape[1:]]
    start = t.op("Reshape", moved, t.ints(-1, *tail), shape=(None, *tail))
    behind = path[[n.outputs[0] for n in path].index(head.pooled.core) + 1 :]
    scores = evaluate_behind(t, behind, head.pooled, start, score.tensor)
    total = math.prod(score.tensor.dims_behind_batch())
    flat = t.op("Reshape", scores, t.ints(-1, 2 * width, total))
    weights = t.op("Reshape", seed, t.ints(-1, 1, total))
    picked = t.sum(t.op("Mul", flat, weights), [2], keepdims=False)
    ups, downs = t.ops("Split", picked, t.ints(width, width), outputs=2, axis=1)
    slope = t.op("Div", ups - downs, t.op("Reshape", step, t.ints(-1, 1)) * 2.0)
    return _over_positions(t, t.cast(slope, np.float32), head, target)


def evaluate_behind(t: Builder, nodes: Sequence[ir.Node], old: Value, start: Value, score: Value) -> Value:
    """The output `score` of a copy of `nodes`, those behind `old`, for another input `start` of any batch size.

    Raises:
        UnsupportedError: the nodes need a fixed batch size, or read more of the image than `old`.
    """
    coupling = row_coupling(nodes)
    if coupling is not None and start.shape[0] != old.shape[0]:
        raise UnsupportedError(
            f"{coupling.op_type} (node {coupling.name!r}) computes a range or a mean over the whole batch, so the head "
            "cannot be run for several activation maps at once; choose another method"
        )
    copies: dict[ir.Value, Value] = {old.core: start}
    try:
        for node in nodes:
            inputs = [None if i is None else copies.get(i, t.wrap(i)) for i in node.inputs]
            if node.op_type in RESHAPES and node.inputs[0] in copies:
                tail = t.wrap(node.outputs[0]).dims_behind_batch()
                outputs = [t.op("Reshape", inputs[0], t.ints(-1, *tail))]
            else:
                _refuse_other_inputs(t, node, copies)
                outputs = _copied(t, node, inputs)
                for copy, original in zip(outputs, map(t.wrap, node.outputs), strict=True):
                    if copy.dtype is None and original.known_shape is not None:  # not an operator of ONNX's own
                        declare(copy.core, original.elem_type, (None,) * original.rank)
            copies.update(zip(node.outputs, outputs, strict=True))
    except ModelError as exc:
        raise UnsupportedError(f"the head cannot be evaluated on a larger batch: {exc}") from exc
    return copies[score.core]


def copy_behind(t: Builder, nodes: Sequence[ir.Node], old: Value, start: Value) -> dict[ir.Value, Value]:
    """The outputs of a copy of `nodes`, those behind `old`, for another input `start` of the same batch.

    All shapes stay the same, so what the nodes read besides `old` serves the copy as well: it must not depend on the
    image.
    """
    copies = {old.core: start}
    for node in nodes:
        inputs = [None if i is None else copies.get(i, t.wrap(i)) for i in node.inputs]
        for original, copy in zip(node.outputs, _copied(t, node, inputs), strict=True):
            value = t.wrap(original)
            if value.known_shape is not None and copy.dtype is None:  # not an operator of ONNX's own
                declare(copy.core, value.elem_type, value.known_shape)
            copies[original] = copy if value.known_shape is None else t.refine(copy, value.known_shape)
    return copies


def _copied(t: Builder, node: ir.Node, inputs: Sequence[Value | None]) -> list[Value]:
    """The outputs of a copy of one node."""
    attributes = {k: a.value for k, a in node.attributes.items()}
    return list(t.ops(node.op_type, *inputs, outputs=len(node.outputs), domain=node.domain, **attributes))


def _refuse_other_inputs(t: Builder, node: ir.Node, copies: Container[ir.Value]) -> None:
    """Refuse nodes that read another tensor, whose rows do not match those of the copy."""
    for value in node.inputs:
        if value is not None and value not in copies and t.wrap(value).array() is None:
            raise UnsupportedError(
                f"{node.op_type} (node {node.name!r}) behind the layer reads {value.name!r} as well, so the head "
                "cannot be run again for other activation maps; choose a layer on every path, or another method"
            )
