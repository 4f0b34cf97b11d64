"""Dense layers, products and reductions."""

from __future__ import annotations

from onnx_gradcam.errors import ShapeError, UnsupportedError
from onnx_gradcam.export.writer import Writer
from onnx_gradcam.graph.builder import Value

from .registry import Ints, Rule, mxnet_operator
from .sizes import FeatureMismatchError, fixed

__all__: list[str] = []


@mxnet_operator("FullyConnected", layout="lost")
def fully_connected(
    t: Writer,
    data: Value,
    weight: Value,
    bias: Value | None = None,
    *,
    num_hidden: int,
    no_bias: bool = False,
    flatten: bool = True,
) -> Value:
    """MXNet `src/operator/nn/fully_connected.cc`."""
    if flatten and data.rank != 2:
        data = t.op("Flatten", data, axis=1)
    have = fixed(data.shape[-1], "the number of features that its weights take")
    if weight.rank != 2 or weight.shape[0] != num_hidden:
        raise ShapeError(
            f"its weights {weight.name!r} have shape {list(weight.shape)}, where its num_hidden is {num_hidden}; "
            "give the .params that belongs to the symbol"
        )
    want = weight.shape[1]
    if isinstance(want, int) and have != want:
        raise FeatureMismatchError(have, want)
    bias = None if no_bias else bias
    if bias is not None and bias.shape != (num_hidden,):
        raise ShapeError(
            f"its bias {bias.name!r} has shape {list(bias.shape)}, not [{num_hidden}]; give the right .params"
        )
    if data.rank == 2:
        return t.op("Gemm", data, weight, bias, transB=1)
    product = data @ t.transpose(weight, (1, 0))
    return product if bias is None else product + bias


def _product(name: str, rank: int) -> Rule[Value]:
    def rule(
        t: Writer,
        lhs: Value,
        rhs: Value,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        forward_stype: str | None = None,
    ) -> Value:
        """MXNet `src/operator/tensor/dot-inl.h`."""
        if (lhs.rank, rhs.rank) != (rank, rank) or forward_stype not in (None, "default"):
            raise UnsupportedError(
                f"its inputs have {lhs.rank} and {rhs.rank} dimensions, where {name} is known for dense ones of {rank}"
            )
        swap = [*range(rank - 2), rank - 1, rank - 2]
        return (t.transpose(lhs, swap) if transpose_a else lhs) @ (t.transpose(rhs, swap) if transpose_b else rhs)

    return rule


mxnet_operator("dot", layout="lost")(_product("dot", 2))
mxnet_operator("batch_dot", layout="lost")(_product("batch_dot", 3))


def _reduced(t: Writer, x: Value, kind: str, axis: Ints | None, *, keepdims: bool, exclude: bool) -> Value:
    """MXNet `src/operator/tensor/broadcast_reduce_op.h`; a full reduction has one dimension, not none."""
    if any(not -x.rank <= i < x.rank for i in axis or ()):
        raise UnsupportedError(f"its axis is {axis}, but its input has {x.rank} dimensions; save the symbol again")
    axes = sorted({i % x.rank for i in axis or range(x.rank)})
    if exclude and axis:
        axes = [i for i in range(x.rank) if i not in axes]
    result = t.reduce(kind, x, axes, keepdims=keepdims)
    return t.op("Reshape", result, t.ints(1)) if len(axes) == x.rank and not keepdims else result


def _reduction(kind: str) -> Rule[Value]:
    def rule(
        t: Writer, data: Value, *, axis: Ints | None = None, keepdims: bool = False, exclude: bool = False
    ) -> Value:
        return _reduced(t, data, kind, axis, keepdims=keepdims, exclude=exclude)

    return rule


for _names, _kind in {
    ("mean",): "ReduceMean",
    ("sum", "sum_axis"): "ReduceSum",
    ("max", "max_axis"): "ReduceMax",
    ("min", "min_axis"): "ReduceMin",
    ("prod",): "ReduceProd",
}.items():
    mxnet_operator(*_names, layout="lost")(_reduction(_kind))


@mxnet_operator("norm", layout="lost")
def norm(t: Writer, data: Value, *, ord: int = 2, axis: Ints | None = None, keepdims: bool = False) -> Value:  # noqa: A002
    """Sum of magnitudes, or root of the sum of squares."""
    kinds = {1: "ReduceL1", 2: "ReduceL2"}
    if ord not in kinds:
        raise UnsupportedError(f"its ord is {ord}; known are 1 and 2")
    return _reduced(t, data, kinds[ord], axis, keepdims=keepdims, exclude=False)
