"""Keras's normalization layers, and the layers that preprocess images inside the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.exporters.keras.call import Call, Tensor
from onnx_gradcam.exporters.keras.layer_table import keras_layer
from onnx_gradcam.exporters.keras.weights import Slot
from onnx_gradcam.graph.builder import Value

from .convolutions import numbers

__all__: list[str] = []

_GAMMA = Slot("gamma", when="scale")
_BETA = Slot("beta", when="center")


def _single_axis(call: Call, axis: Any, rank: int) -> int:
    (only,) = axis if isinstance(axis, (list, tuple)) else [axis]
    if not -rank <= only < rank or only % rank == 0:
        call.refuse(f"its axis {axis!r} does not fit a tensor of rank {rank}")
    return int(only % rank)


def _channels_second(call: Call, x: Tensor, axis: int) -> Tensor:
    """`x` with Keras's `axis` second."""
    if x.axis(axis) == 1:
        return x
    turned = call.move(x) if axis == x.rank - 1 else call.plain(x)
    if turned.axis(axis) != 1:
        call.refuse(f"its axis is {axis} of a tensor of rank {x.rank}")
    return turned


def _affine(call: Call, channels: int) -> tuple[Value, Value]:
    """Scale and shift per channel; one and zero where the layer has none."""
    gamma, beta = (call.weight(s, [channels]) if s in call.layer.variables else None for s in ("gamma", "beta"))
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    return gamma or call.writer.const(ones), beta or call.writer.const(zeros)


@keras_layer(
    "BatchNormalization",
    "BatchNormalizationV1",
    "BatchNormalizationV2",
    "SyncBatchNormalization",
    weights=[_GAMMA, _BETA, Slot("moving_mean", trained=False), Slot("moving_variance", trained=False)],
    neutral=["momentum", "synchronized", "fused", "renorm", "renorm_clipping", "renorm_momentum", "mode"],
)
def batch_normalization(call: Call, x: Tensor, *, axis: Any = -1, epsilon: Any = 1e-3) -> Tensor:
    """Normalization by the statistics of training."""
    x = _channels_second(call, x, _single_axis(call, axis, x.rank))
    (channels,) = call.shape_of("moving_mean")
    gamma, beta = _affine(call, channels)
    statistics = [call.weight(slot, [x.value.shape[1]]) for slot in ("moving_mean", "moving_variance")]
    return Tensor(call.op("BatchNormalization", x.value, gamma, beta, *statistics, epsilon=float(epsilon)), x.moved)


@keras_layer("LayerNormalization", weights=[_GAMMA, _BETA])
def layer_normalization(
    call: Call,
    x: Tensor,
    *,
    axis: Any = -1,
    epsilon: Any = 1e-3,
    center: Any = True,
    scale: Any = True,
    rms_scaling: Any = False,
) -> Tensor:
    """Normalization of each sample over its last axes."""
    if rms_scaling:
        call.refuse("it scales by the root mean square")
    axes = sorted(a % x.rank for a in (axis if isinstance(axis, (list, tuple)) else [axis]))
    if axes != list(range(axes[0], x.rank)) or axes[0] == 0:
        call.refuse(f"its axes {axis!r} are not the last ones")
    plain = call.plain(x)
    sizes = plain.shape[axes[0] :]
    if not all(isinstance(d, int) for d in sizes):
        call.refuse(f"some of the sizes {list(sizes)} that it normalizes over are unknown")
    gamma = call.weight("gamma", sizes) if scale else call.writer.const(np.ones([int(d or 0) for d in sizes], "f4"))
    beta = [call.weight("beta", sizes)] if center else []
    y = call.op("LayerNormalization", plain.value, gamma, *beta, axis=axes[0], epsilon=float(epsilon))
    return call.move(Tensor(y)) if x.moved else Tensor(y)


@keras_layer("GroupNormalization", weights=[_GAMMA, _BETA])
def group_normalization(
    call: Call,
    x: Tensor,
    *,
    groups: Any = 32,
    axis: Any = -1,
    epsilon: Any = 1e-3,
    center: Any = True,
    scale: Any = True,
) -> Tensor:
    """Normalization of each sample over groups of channels.

    Written as InstanceNormalization with groups as channels, as ONNX's GroupNormalization of opset 18 scales groups.
    """
    x = _channels_second(call, x, _single_axis(call, axis, x.rank))
    channels = x.value.shape[1]
    if not isinstance(channels, int):
        call.refuse("its number of channels is unknown")
    count = channels if groups == -1 else int(groups)
    if count < 1 or channels % count:
        call.refuse(f"{channels} channels do not split into {groups} groups")
    one, zero = (call.writer.const(np.full(count, fill, np.float32)) for fill in (1, 0))
    grouped = call.op("Reshape", x.value, call.writer.ints(0, count, -1))
    y = call.op("InstanceNormalization", grouped, one, zero, epsilon=float(epsilon))
    y = call.writer.reshape_like(y, x.value)
    wide = [channels, *[1] * (x.rank - 2)]
    if scale:
        y = y * call.weight("gamma", [channels], shape=wide)
    if center:
        y = y + call.weight("beta", [channels], shape=wide)
    return Tensor(y, x.moved)


def _plain_number(value: Any) -> npt.NDArray[np.float32]:
    """A number or list; Keras 3 wraps arrays."""
    if isinstance(value, Mapping):
        value = value["config"]["value"]
    return np.asarray(value, np.float32)


@keras_layer("Rescaling")
def rescaling(call: Call, x: Tensor, *, scale: Any, offset: Any = 0.0) -> Tensor:
    """`scale * x + offset`."""
    factor, shift = _plain_number(scale), _plain_number(offset)
    if (factor.ndim or shift.ndim) and not call.channels_last:
        call.refuse("its scale is a list, whose axis depends on a setting of Keras that is not in the file")
    y = x.value * call.constant(factor, x)
    return Tensor(y + call.constant(shift, x) if shift.any() else y, x.moved)


_STATISTICS = [Slot(name, when="no mean", trained=False) for name in ("mean", "variance", "count")]


@keras_layer("Normalization", weights=_STATISTICS)
def normalization(
    call: Call, x: Tensor, *, axis: Any = -1, mean: Any = None, variance: Any = None, invert: Any = False
) -> Tensor:
    """(x - mean) / max(sqrt(variance), 1e-7), the statistics given or learned."""
    axes = sorted(a % x.rank for a in ([] if axis is None else axis if isinstance(axis, (list, tuple)) else [axis]))
    if mean is None:
        center, spread = call.content("mean"), call.content("variance")
    else:
        center, spread = _plain_number(mean), _plain_number(variance)
    sizes = [size if i in axes else 1 for i, size in enumerate(x.shape)]
    if not all(isinstance(size, int) for size in sizes):
        call.refuse(f"some of the sizes {sizes} that it keeps are unknown")
    if center.ndim:
        center, spread = (a.reshape([int(size or 0) for size in sizes]) for a in (center, spread))
    deviation = np.maximum(np.sqrt(spread), np.float32(1e-7))
    if invert:
        return Tensor(x.value * call.constant(deviation, x) + call.constant(center, x), x.moved)
    return Tensor((x.value - call.constant(center, x)) / call.constant(deviation, x), x.moved)


@keras_layer("Resizing", neutral=["fill_mode", "fill_value"])
def resizing(
    call: Call,
    x: Tensor,
    *,
    height: Any,
    width: Any,
    interpolation: str = "bilinear",
    crop_to_aspect_ratio: Any = False,
    pad_to_aspect_ratio: Any = False,
    antialias: Any = False,
    data_format: str | None = None,
) -> Tensor:
    """Interpolation to a fixed size, with half-pixel centers."""
    if crop_to_aspect_ratio or pad_to_aspect_ratio or antialias:
        call.refuse("it keeps the aspect ratio or antialiases, which ONNX's Resize does differently")
    modes = {"bilinear": "linear", "nearest": "nearest"}
    if interpolation not in modes:
        call.refuse(f"its interpolation {interpolation!r} is not supported")
    maps, size = call.maps(x, data_format), call.writer.ints(*numbers([height, width], 2))
    rounding = {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}
    y = call.op("Resize", maps, None, None, size, axes=[2, 3], mode=modes[interpolation], **rounding)
    return call.mapped(y, data_format)
