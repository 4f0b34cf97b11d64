"""MXNet's dense layers, matrix products, reductions and normalizations."""

from __future__ import annotations

import numpy as np

from onnx_gradcam.errors import ExportError
from onnx_gradcam.exporters.writer import Writer
from onnx_gradcam.graph.builder import Value

from .operator_table import SHAPE_REMEDY, FeatureMismatchError, Ints, Rule, SizeError, fixed, mxnet_operator

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
    features = fixed(data.shape[-1], "the number of features that its weights take")
    if weight.rank != 2 or weight.shape[0] != num_hidden:
        raise SizeError(
            f"its weights {weight.name!r} have shape {list(weight.shape)}, but its num_hidden is {num_hidden}; "
            "give the .params that belongs to the symbol"
        )
    expected = weight.shape[1]
    if isinstance(expected, int) and features != expected:
        raise FeatureMismatchError(features, expected)
    bias = None if no_bias else bias
    if bias is not None and bias.shape != (num_hidden,):
        raise SizeError(
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
            raise ExportError(
                f"its inputs have {lhs.rank} and {rhs.rank} dimensions; {name} is supported for dense tensors of {rank}"
            )
        swap = [*range(rank - 2), rank - 1, rank - 2]
        return (t.transpose(lhs, swap) if transpose_a else lhs) @ (t.transpose(rhs, swap) if transpose_b else rhs)

    return rule


mxnet_operator("dot", layout="lost")(_product("dot", 2))
mxnet_operator("batch_dot", layout="lost")(_product("batch_dot", 3))


def _reduced(t: Writer, x: Value, kind: str, axis: Ints | None, *, keepdims: bool, exclude: bool) -> Value:
    """MXNet `src/operator/tensor/broadcast_reduce_op.h`; a full reduction has one dimension, not none."""
    if any(not -x.rank <= i < x.rank for i in axis or ()):
        raise ExportError(f"its axis is {axis}, but its input has {x.rank} dimensions; save the symbol again")
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


for _names in (["mean"], ["sum", "sum_axis"], ["max", "max_axis"], ["min", "min_axis"], ["prod"]):
    mxnet_operator(*_names, layout="lost")(_reduction(f"Reduce{_names[0].title()}"))


@mxnet_operator("norm", layout="lost")
def norm(t: Writer, data: Value, *, ord: int = 2, axis: Ints | None = None, keepdims: bool = False) -> Value:  # noqa: A002
    """Sum of magnitudes, or root of the sum of squares."""
    kinds = {1: "ReduceL1", 2: "ReduceL2"}
    if ord not in kinds:
        raise ExportError(f"its ord is {ord}; known are 1 and 2")
    return _reduced(t, data, kinds[ord], axis, keepdims=keepdims, exclude=False)


def _check_vectors(dim: int | str | None, *vectors: Value) -> None:
    size = fixed(dim, "the number of its weights")
    for vector in vectors:
        if vector.shape != (size,):
            raise SizeError(
                f"its {vector.name!r} has shape {list(vector.shape)}, but its input has {size} channels; "
                f"give the .params that belongs to the symbol, or {SHAPE_REMEDY}"
            )


@mxnet_operator(
    "BatchNorm",
    "BatchNorm_v1",
    "CuDNNBatchNorm",
    ignored=("momentum", "use_global_stats", "cudnn_off", "min_calib_range", "max_calib_range"),
)
def batch_normalization(
    t: Writer,
    data: Value,
    gamma: Value,
    beta: Value,
    moving_mean: Value,
    moving_var: Value,
    *,
    eps: float = 1e-3,
    fix_gamma: bool = True,
    output_mean_var: bool = False,
    axis: int = 1,
) -> Value:
    """MXNet `src/operator/nn/batch_norm.cc`; with `fix_gamma`, the default, a stored gamma counts as one."""
    if axis % data.rank != 1 or output_mean_var:
        raise ExportError(
            f"its axis is {axis} and its output_mean_var {output_mean_var}; known are axis 1 and one output"
        )
    _check_vectors(data.shape[1], gamma, beta, moving_mean, moving_var)
    if fix_gamma:
        gamma = t.const(np.ones(gamma.dims(), gamma.dtype))
    return t.op("BatchNormalization", data, gamma, beta, moving_mean, moving_var, epsilon=eps)


@mxnet_operator("InstanceNorm")
def instance_normalization(t: Writer, data: Value, gamma: Value, beta: Value, *, eps: float = 1e-3) -> Value:
    """MXNet `src/operator/instance_norm-inl.h`."""
    _check_vectors(data.shape[1], gamma, beta)
    return t.op("InstanceNormalization", data, gamma, beta, epsilon=eps)


@mxnet_operator("LayerNorm")
def layer_normalization(
    t: Writer,
    data: Value,
    gamma: Value,
    beta: Value,
    *,
    axis: int = -1,
    eps: float = 1e-5,
    output_mean_var: bool = False,
) -> Value:
    """MXNet `src/operator/nn/layer_norm.cc`; ONNX normalizes the last axis."""
    if output_mean_var or not -data.rank <= axis < data.rank:
        raise ExportError(f"its axis is {axis} and its output_mean_var {output_mean_var}; save it with one output")
    axis %= data.rank
    _check_vectors(data.shape[axis], gamma, beta)
    last = data.rank - 1
    perm = [i for i in range(data.rank) if i != axis] + [axis]
    normal = t.op("LayerNormalization", t.transpose(data, perm), gamma, beta, axis=-1, epsilon=eps)
    return t.transpose(normal, [*range(axis), last, *range(axis, last)])


@mxnet_operator("L2Normalization")
def l2_normalization(t: Writer, data: Value, *, eps: float = 1e-10, mode: str = "instance") -> Value:
    """MXNet `src/operator/l2_normalization-inl.h`: x / sqrt(sum x^2 + eps)."""
    axes = {"instance": range(1, data.rank), "channel": range(1, 2), "spatial": range(2, data.rank)}
    if mode not in axes:
        raise ExportError(f"its mode is {mode}; known are {', '.join(axes)}")
    return data / t.op("Sqrt", t.sum(data * data, axes[mode]) + eps)


@mxnet_operator("LRN")
def local_response_normalization(
    t: Writer, data: Value, *, nsize: int, alpha: float = 1e-4, beta: float = 0.75, knorm: float = 2.0
) -> Value:
    """MXNet `src/operator/nn/lrn-inl.h`; alpha is divided by the size, as in ONNX."""
    if not 1 <= nsize < 2**20 or nsize % 2 == 0:
        raise ExportError(f"its nsize is {nsize}; known are odd numbers")
    return t.op("LRN", data, size=nsize, alpha=alpha, beta=beta, bias=knorm)
