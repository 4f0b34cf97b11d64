"""Keras layers that shape and combine tensors: dense, neutral, reshaping, padding, upsampling and merging layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from onnx_gradcam.exporters.keras.call import Call, Tensor
from onnx_gradcam.exporters.keras.layer_table import keras_layer
from onnx_gradcam.exporters.keras.weights import Slot
from onnx_gradcam.graph.builder import Value

from .activations import activate
from .convolutions import numbers

__all__ = ["END", "reshaped"]


@keras_layer("Dense", weights=[Slot("kernel"), Slot("bias", when="use_bias")])
def dense(call: Call, x: Tensor, *, units: Any, activation: Any = None, use_bias: Any = True) -> Tensor:
    """A linear map of the last axis; on maps, a 1x1 convolution."""
    inputs = x.shape[-1]
    if x.moved:
        n = x.rank - 2
        shape = [units, call.shape_of("kernel")[0], *[1] * n]
        kernel = call.weight("kernel", [inputs, units], perm=[1, 0], shape=shape)
        bias = [call.weight("bias", [units])] if use_bias else []
        return activate(call, Tensor(call.op("Conv", x.value, kernel, *bias), moved=True), activation)
    y = x.value @ call.weight("kernel", [inputs, units])
    if use_bias:
        y = y + call.weight("bias", [units])
    return activate(call, Tensor(y), activation)


_NEUTRAL = (
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianDropout", "GaussianNoise",
    "AlphaDropout", "ActivityRegularization", "Identity", "RandomFlip", "RandomRotation", "RandomZoom",
    "RandomTranslation", "RandomContrast", "RandomBrightness", "RandomHeight", "RandomWidth",
)  # fmt: skip


@keras_layer(*_NEUTRAL, neutral=["*"])
def nothing(call: Call, x: Tensor) -> Tensor:
    """Layers without effect at inference."""
    del call
    return x


@keras_layer(
    "LayerScale",
    weights=[Slot("gamma")],
    neutral=["init_values"],
    modules=["keras.src.applications.convnext", "keras.applications.convnext"],
)
def layer_scale(call: Call, x: Tensor, *, projection_dim: Any) -> Tensor:
    """ConvNeXt's learned factor per channel."""
    shape = [projection_dim, *[1] * (x.rank - 2)] if x.moved else None
    return Tensor(x.value * call.weight("gamma", [projection_dim], shape=shape), x.moved)


@keras_layer(
    "CustomScaleLayer", modules=["keras.src.applications.inception_resnet_v2", "keras.applications.inception_resnet_v2"]
)
def custom_scale(call: Call, x: Tensor, y: Tensor, *, scale: Any) -> Tensor:
    """InceptionResNetV2's `x + scale * y`."""
    (a, b), moved = call.aligned([x, y])
    return Tensor(a + b * float(scale), moved)


END = np.iinfo(np.int64).max  # of a slice


@keras_layer("Flatten")
def flatten(call: Call, x: Tensor, *, data_format: str | None = None) -> Tensor:
    """All axes but the batch as one, in the order of `[N, H, W, C]`."""
    plain = call.plain(x)
    if data_format == "channels_first" and x.rank > 2:
        plain = Tensor(call.op("Transpose", plain.value, perm=[0, *range(2, x.rank), 1]))
    return Tensor(call.op("Flatten", plain.value, axis=1))


def reshaped(call: Call, x: Tensor, target: list[int]) -> Tensor:
    """`x` with another shape after the batch axis."""
    plain = call.plain(x)
    sizes = numbers(target, len(target), -1)
    own = plain.shape[1:]
    if -1 in sizes and all(isinstance(d, int) for d in own):
        total = math.prod(d for d in own if isinstance(d, int))
        sizes = [total // -math.prod(sizes) if d == -1 else d for d in sizes]
    return call.settle(Tensor(call.op("Reshape", plain.value, call.writer.ints(0, *sizes))))


@keras_layer("Reshape")
def reshape(call: Call, x: Tensor, *, target_shape: Any) -> Tensor:
    """Another shape, with the elements in Keras's order."""
    return reshaped(call, x, list(target_shape))


@keras_layer("Permute")
def permute(call: Call, x: Tensor, *, dims: Any) -> Tensor:
    """Permuted axes after the batch, counted from one."""
    order = [0, *numbers(dims, x.rank - 1)]
    return call.settle(Tensor(call.op("Transpose", call.plain(x).value, perm=order)))


@keras_layer("RepeatVector")
def repeat_vector(call: Call, x: Tensor, *, n: Any) -> Tensor:
    """Each vector repeated `n` times along a new axis."""
    times = call.writer.ints(1, *numbers([n], 1), 1)
    return Tensor(call.op("Tile", call.op("Unsqueeze", x.value, call.writer.ints(1)), times))


def _pairs(value: Any, count: int) -> list[list[int]]:
    """Padding or cropping as a pair per axis, from a number, a number per axis, or one pair."""
    if count == 1 and isinstance(value, (list, tuple)) and len(value) == 2:
        value = [value]
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    pairs = [numbers(v, 2, 0) for v in values]
    if len(pairs) != count:
        raise ValueError(f"{value!r} is not {count} pairs of numbers")
    return pairs


@keras_layer("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D")
def zero_padding(call: Call, x: Tensor, *, padding: Any = 1, data_format: str | None = None) -> Tensor:
    """Zero padding, written as -0.0: ONNX Runtime would merge 0.0 into a following MaxPool, which pads with -inf."""
    maps = call.maps(x, data_format)
    pairs = [[0, 0], [0, 0], *_pairs(padding, maps.rank - 2)]
    pads = call.writer.ints(*(p[0] for p in pairs), *(p[1] for p in pairs))
    y = call.op("Pad", maps, pads, call.writer.const(np.float32(-0.0)))
    return call.mapped(y, data_format)


@keras_layer("Cropping1D", "Cropping2D", "Cropping3D")
def cropping(call: Call, x: Tensor, *, cropping: Any = 1, data_format: str | None = None) -> Tensor:
    """Positions cropped at the borders."""
    maps = call.maps(x, data_format)
    pairs = _pairs(cropping, maps.rank - 2)
    ints = call.writer.ints
    starts, ends = ints(*(p[0] for p in pairs)), ints(*(-p[1] or END for p in pairs))
    return call.mapped(call.op("Slice", maps, starts, ends, ints(*range(2, maps.rank))), data_format)


_INTERPOLATIONS = {
    "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "bilinear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
}


@keras_layer("UpSampling1D", "UpSampling2D", "UpSampling3D")
def up_sampling(
    call: Call, x: Tensor, *, size: Any = 2, data_format: str | None = None, interpolation: str = "nearest"
) -> Tensor:
    """Nearest or bilinear upsampling by a factor."""
    if interpolation not in _INTERPOLATIONS:
        call.refuse(f"its interpolation {interpolation!r} is not supported")
    maps = call.maps(x, data_format)
    scales = call.writer.const(np.array([1, 1, *numbers(size, maps.rank - 2)], np.float32))
    return call.mapped(call.op("Resize", maps, None, scales, **_INTERPOLATIONS[interpolation]), data_format)


def _of_one_rank(call: Call, xs: Sequence[Tensor]) -> tuple[list[Value], bool]:
    """The tensors' values; lower ranks get axes after the batch, as in Keras's `Merge.call`."""
    rank = max(x.rank for x in xs)
    raised = []
    for x in xs:
        if x.rank == rank:
            raised.append(x)
            continue
        axes = call.writer.ints(*range(1, 1 + rank - x.rank))
        raised.append(Tensor(call.op("Unsqueeze", call.plain(x).value, axes)))
    return call.aligned(raised)


def _merging(op_type: str) -> Callable[..., Tensor]:
    def merged(call: Call, *xs: Tensor) -> Tensor:
        """An elementwise operator of two or more tensors."""
        if len(xs) < 2:
            call.refuse("it is called with fewer than two tensors")
        values, moved = _of_one_rank(call, xs)
        return Tensor(reduce(lambda a, b: call.op(op_type, a, b), values), moved)

    return merged


for _kind, _op_type in {"Add": "Add", "Multiply": "Mul", "Maximum": "Max", "Minimum": "Min"}.items():
    keras_layer(_kind)(_merging(_op_type))


@keras_layer("Subtract")
def subtract(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """Elementwise difference."""
    return _merging("Sub")(call, x, y)


@keras_layer("Average")
def average(call: Call, *xs: Tensor) -> Tensor:
    """Elementwise mean."""
    total = _merging("Add")(call, *xs)
    return Tensor(total.value / float(len(xs)), total.moved)


@keras_layer("Concatenate")
def concatenate(call: Call, *xs: Tensor, axis: Any = -1) -> Tensor:
    """Concatenation along one axis."""
    values, moved = call.aligned(xs)
    return Tensor(call.op("Concat", *values, axis=Tensor(values[0], moved).axis(axis)), moved)


@keras_layer("Dot")
def dot(call: Call, x: Tensor, y: Tensor, *, axes: Any, normalize: Any = False) -> Tensor:
    """Dot products over one axis of each tensor, per sample."""
    if normalize:
        call.refuse("it normalizes its inputs")
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
