"""Layers that make one tensor of several."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from onnx_gradcam.export.keras.call import Call, Tensor
from onnx_gradcam.export.keras.registry import keras_layer
from onnx_gradcam.graph.builder import Value

__all__: list[str] = []


def _of_one_rank(call: Call, xs: Sequence[Tensor]) -> tuple[list[Value], bool]:
    """The values of the tensors; those of a lower rank get axes behind the batch, as in Keras's `Merge.call`."""
    rank = max(x.rank for x in xs)
    raised = []
    for x in xs:
        if x.rank == rank:
            raised.append(x)
            continue
        axes = call.writer.ints(*range(1, 1 + rank - x.rank))
        raised.append(Tensor(call.op("Unsqueeze", call.plain(x).value, axes)))
    return call.aligned(raised)


def _merged(call: Call, op_type: str, xs: Sequence[Tensor]) -> Tensor:
    if len(xs) < 2:
        call.refuse("it is called with fewer than two tensors")
    values, moved = _of_one_rank(call, xs)
    return Tensor(reduce(lambda a, b: call.op(op_type, a, b), values), moved)


@keras_layer("Add")
def add(call: Call, *xs: Tensor) -> Tensor:
    """The sum."""
    return _merged(call, "Add", xs)


@keras_layer("Multiply")
def multiply(call: Call, *xs: Tensor) -> Tensor:
    """The product."""
    return _merged(call, "Mul", xs)


@keras_layer("Subtract")
def subtract(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """The difference."""
    return _merged(call, "Sub", [x, y])


@keras_layer("Maximum")
def maximum(call: Call, *xs: Tensor) -> Tensor:
    """The largest."""
    return _merged(call, "Max", xs)


@keras_layer("Minimum")
def minimum(call: Call, *xs: Tensor) -> Tensor:
    """The smallest."""
    return _merged(call, "Min", xs)


@keras_layer("Average")
def average(call: Call, *xs: Tensor) -> Tensor:
    """The mean."""
    total = _merged(call, "Add", xs)
    return Tensor(total.value / float(len(xs)), total.moved)


@keras_layer("Concatenate")
def concatenate(call: Call, *xs: Tensor, axis: Any = -1) -> Tensor:
    """The tensors side by side along one axis."""
    values, moved = call.aligned(xs)
    return Tensor(call.op("Concat", *values, axis=Tensor(values[0], moved).axis(axis)), moved)


@keras_layer("Dot")
def dot(call: Call, x: Tensor, y: Tensor, *, axes: Any, normalize: Any = False) -> Tensor:
    """Products summed over one axis of each, sample by sample."""
    if normalize:
        call.refuse("it normalises its inputs")
    if max(x.rank, y.rank) > 3:
        call.refuse(f"its inputs have the ranks {x.rank} and {y.rank}")
    pair = axes if isinstance(axes, list) else [axes, axes]
    left = _summed_last(call, x, pair[0] % x.rank)
    right = call.op("Transpose", _summed_last(call, y, pair[1] % y.rank), perm=[0, 2, 1])
    product = left @ right
    kept = [i for i, t in ((1, x), (2, y)) if t.rank == 2]
    if len(kept) == 2:
        kept = [2]
    return Tensor(call.op("Squeeze", product, call.writer.ints(*kept)) if kept else product)


def _summed_last(call: Call, x: Tensor, axis: int) -> Value:
    """`x` as `[N, rest, summed]`."""
    value = call.plain(x).value
    if x.rank == 2:
        return call.op("Unsqueeze", value, call.writer.ints(1))
    return value if axis == 2 else call.op("Transpose", value, perm=[0, 2, 1])
