"""Normalisations."""

from __future__ import annotations

import numpy as np

from onnx_gradcam.errors import ShapeError, UnsupportedError
from onnx_gradcam.export.writer import Writer
from onnx_gradcam.graph.builder import Value

from .registry import mxnet_operator
from .sizes import fixed

__all__: list[str] = []


def _check_vectors(dim: int | str | None, *vectors: Value) -> None:
    size = fixed(dim, "the number of its weights")
    for vector in vectors:
        if vector.shape != (size,):
            raise ShapeError(
                f"its {vector.name!r} has shape {list(vector.shape)}, where its input has {size} channels; "
                "give the .params that belongs to the symbol, or pass input_shape"
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
    """MXNet `src/operator/nn/batch_norm.cc`; with `fix_gamma`, the default, gamma is one whatever the file says."""
    if axis % data.rank != 1 or output_mean_var:
        raise UnsupportedError(
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
    """MXNet `src/operator/nn/layer_norm.cc`; ONNX's operator has its axis last."""
    if output_mean_var or not -data.rank <= axis < data.rank:
        raise UnsupportedError(f"its axis is {axis} and its output_mean_var {output_mean_var}; save it with one output")
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
        raise UnsupportedError(f"its mode is {mode}; known are {', '.join(axes)}")
    return data / t.op("Sqrt", t.sum(data * data, axes[mode]) + eps)


@mxnet_operator("LRN")
def local_response_normalization(
    t: Writer, data: Value, *, nsize: int, alpha: float = 1e-4, beta: float = 0.75, knorm: float = 2.0
) -> Value:
    """MXNet `src/operator/nn/lrn-inl.h`; alpha is divided by the size, as in ONNX."""
    if not 1 <= nsize < 2**20 or nsize % 2 == 0:
        raise UnsupportedError(f"its nsize is {nsize}; known are odd numbers")
    return t.op("LRN", data, size=nsize, alpha=alpha, beta=beta, bias=knorm)
