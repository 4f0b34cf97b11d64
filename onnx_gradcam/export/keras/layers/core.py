"""Dense layers, layers that do nothing at inference, and the two of keras.applications' own."""

from __future__ import annotations

from typing import Any

from onnx_gradcam.export.keras.call import Call, Tensor
from onnx_gradcam.export.keras.registry import keras_layer
from onnx_gradcam.export.keras.weights import Slot

from .activation import activate

__all__: list[str] = []


@keras_layer("Dense", weights=[Slot("kernel"), Slot("bias", when="use_bias")])
def dense(call: Call, x: Tensor, *, units: Any, activation: Any = None, use_bias: Any = True) -> Tensor:
    """A linear map of the last axis; on maps it is a convolution with windows of one place."""
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


@keras_layer(
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "GaussianDropout",
    "GaussianNoise",
    "AlphaDropout",
    "ActivityRegularization",
    "Identity",
    "RandomFlip",
    "RandomRotation",
    "RandomZoom",
    "RandomTranslation",
    "RandomContrast",
    "RandomBrightness",
    "RandomHeight",
    "RandomWidth",
    neutral=["*"],
)
def nothing(call: Call, x: Tensor) -> Tensor:
    """Layers that only act in training."""
    del call
    return x


@keras_layer(
    "LayerScale",
    weights=[Slot("gamma")],
    neutral=["init_values"],
    modules=["keras.src.applications.convnext", "keras.applications.convnext"],
)
def layer_scale(call: Call, x: Tensor, *, projection_dim: Any) -> Tensor:
    """A learned factor a channel, of ConvNeXt."""
    shape = [projection_dim, *[1] * (x.rank - 2)] if x.moved else None
    return Tensor(x.value * call.weight("gamma", [projection_dim], shape=shape), x.moved)


@keras_layer(
    "CustomScaleLayer",
    modules=["keras.src.applications.inception_resnet_v2", "keras.applications.inception_resnet_v2"],
)
def custom_scale(call: Call, x: Tensor, y: Tensor, *, scale: Any) -> Tensor:
    """The sum of a tensor and another times a constant, of InceptionResNetV2."""
    (a, b), moved = call.aligned([x, y])
    return Tensor(a + b * float(scale), moved)
