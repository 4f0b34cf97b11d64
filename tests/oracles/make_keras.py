"""Small Keras models, saved by Keras, and what Keras computes with them: `tests/oracles/keras`.

Run in an environment with Keras 3 on PyTorch, and in one with TensorFlow and tf_keras, Keras 2's continuation:

    KERAS_BACKEND=torch python tests/oracles/make_keras.py keras tests/oracles/keras
    python tests/oracles/make_keras.py tf_keras tests/oracles/keras [MODEL ...]

Every model is saved in both formats, the archives compressed but for one. `<model>.npz` holds the inputs, in Keras's
order, the output of every layer that has one, by the name that the exported model gives it, and the provenance:
library, version, backend and seed.
"""

from __future__ import annotations

import importlib
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

SEED = 20


def convolutions(K, L):
    """Two-dimensional convolutions."""
    x = K.Input((7, 8, 4), name="image")
    return x, [
        L.Conv2D(6, 3, name="valid", activation="relu")(x),
        L.Conv2D(5, (3, 2), strides=2, padding="same", use_bias=False, name="same_stride")(x),
        L.Conv2D(5, 4, padding="same", dilation_rate=2, activation="tanh", name="same_dilated")(x),
        L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2, name="depthwise")(x),
        L.DepthwiseConv2D(2, use_bias=False, activation="relu6", name="depthwise_plain")(x),
        L.SeparableConv2D(7, 3, strides=2, padding="same", depth_multiplier=2, name="separable")(x),
        L.SeparableConv2D(3, 2, use_bias=False, name="separable_plain")(x),
        L.Conv2DTranspose(3, 3, strides=2, padding="same", name="transposed_same")(x),
        L.Conv2DTranspose(3, 4, strides=2, padding="same", name="transposed_even")(x),
        L.Conv2DTranspose(3, 3, strides=2, name="transposed_valid", activation="elu")(x),
        L.Conv2DTranspose(3, 2, strides=3, name="transposed_wide")(x),
        L.Conv2DTranspose(2, 3, strides=2, padding="same", output_padding=1, name="transposed_padded")(x),
        L.Dense(5, activation="sigmoid", name="dense_on_maps")(x),
    ]


def other_ranks(K, L):
    """Convolutions and pools of one and of three dimensions."""
    s = K.Input((13, 4), name="sequence")
    v = K.Input((7, 7, 5, 2), name="volume")
    c = L.Conv1D(5, 3, padding="causal", dilation_rate=2, name="conv1d_causal")(s)
    d = L.Conv3D(4, (2, 3, 2), strides=2, padding="same", name="conv3d")(v)
    return [s, v], [
        c,
        L.Conv1D(3, 3, strides=2, padding="same", name="conv1d")(c),
        L.SeparableConv1D(6, 3, padding="same", name="separable1d")(s),
        L.Conv1DTranspose(3, 3, strides=2, padding="same", name="transposed1d")(s),
        L.MaxPooling1D(3, strides=2, padding="same", name="max1d")(c),
        L.AveragePooling1D(2, name="average1d")(c),
        L.GlobalAveragePooling1D(name="global1d")(c),
        L.GlobalMaxPooling1D(name="global_max1d")(s),
        L.UpSampling1D(3, name="up1d")(c),
        L.ZeroPadding1D((2, 1), name="pad1d")(c),
        L.Cropping1D((1, 2), name="crop1d")(s),
        L.SpatialDropout1D(0.5, name="drop1d")(s),
        L.Dense(3, name="dense_on_sequence")(s),
        L.Dense(3, name="dense_on_sequence_maps")(c),
        L.LayerNormalization(name="norm_sequence")(c),
        L.BatchNormalization(name="batch_norm_sequence")(s),
        L.Flatten(name="flat_sequence")(c),
        L.Permute((2, 1), name="turned_sequence")(c),
        L.RepeatVector(3, name="repeated")(L.GlobalMaxPooling1D(name="vector")(c)),
        d,
        L.Conv3DTranspose(2, 3, strides=2, padding="same", name="transposed3d")(d),
        L.MaxPooling3D(2, name="max3d")(v),
        L.AveragePooling3D(3, strides=2, padding="same", name="average3d")(v),
        L.GlobalAveragePooling3D(name="global3d")(d),
        L.UpSampling3D(2, name="up3d")(d),
        L.ZeroPadding3D(((1, 0), (0, 2), (1, 1)), name="pad3d")(d),
        L.Cropping3D(1, name="crop3d")(v),
        L.Flatten(name="flat_volume")(d),
    ]


def pools(K, L):
    """Pools, and layers that move places."""
    x = K.Input((11, 9, 3), name="image")
    return x, [
        L.MaxPooling2D(3, strides=2, padding="same", name="max_same")(x),
        L.MaxPooling2D((2, 3), name="max_valid")(x),
        L.AveragePooling2D(3, strides=2, padding="same", name="average_same")(x),
        L.AveragePooling2D(2, name="average_valid")(x),
        L.MaxPooling2D(3, strides=2, name="max_of_padded")(L.ZeroPadding2D(1, name="padded")(x)),
        L.GlobalAveragePooling2D(name="global_average")(x),
        L.GlobalAveragePooling2D(keepdims=True, name="global_average_kept")(x),
        L.GlobalMaxPooling2D(name="global_max")(x),
        L.UpSampling2D((2, 3), name="up_nearest")(x),
        L.UpSampling2D(2, interpolation="bilinear", name="up_bilinear")(x),
        L.ZeroPadding2D(((1, 2), (0, 3)), name="pad_uneven")(x),
        L.Cropping2D(((1, 0), (2, 3)), name="crop")(x),
        L.Flatten(name="flat")(x),
        L.Reshape((9, 33), name="reshape_sequence")(x),
        L.Reshape((3, -1, 3), name="reshape_maps")(x),
        L.Permute((3, 1, 2), name="permuted")(x),
        L.Permute((2, 1, 3), name="turned")(x),
        L.SpatialDropout2D(0.3, name="dropped")(x),
    ]


def activations(K, L):
    """Activation functions by name."""
    x = K.Input((4, 3, 4), name="image")
    names = ["relu", "elu", "selu", "sigmoid", "tanh", "softplus", "softsign", "exponential", "hard_sigmoid", "swish"]
    names += ["gelu", "softmax", "linear", "relu6", "leaky_relu", "mish"]
    if K.__name__ == "keras":
        names += ["hard_silu", "log_softmax"]
    return x, [
        *(L.Activation(name, name=f"{name}_activation")(x) for name in names if hasattr(K.activations, name)),
        L.Dense(4, activation="softmax", name="dense_softmax")(x),
    ]


def normalisations(K, L):
    """Normalisation layers, and activation functions that are layers."""
    x = K.Input((4, 5, 4), name="image")
    threes = [L.GroupNormalization(2, name="group_norm"), L.GroupNormalization(-1, scale=False, name="instance_norm")]
    alpha = {"negative_slope": 0.4} if K.__name__ == "keras" else {"alpha": 0.4}
    return x, [
        L.BatchNormalization(name="batch_norm")(x),
        L.BatchNormalization(scale=False, epsilon=0.1, name="batch_norm_no_scale")(x),
        L.BatchNormalization(center=False, axis=3, name="batch_norm_no_center")(x),
        L.LayerNormalization(name="layer_norm")(x),
        L.LayerNormalization(axis=[1, 2, 3], center=False, name="layer_norm_all")(x),
        *(layer(x) for layer in threes),
        L.ReLU(name="relu_layer")(x),
        L.ReLU(max_value=0.5, name="relu_bounded")(x),
        L.ReLU(negative_slope=0.25, max_value=0.7, name="relu_sloped")(x),
        L.LeakyReLU(**alpha, name="leaky")(x),
        L.PReLU(name="prelu")(x),
        L.PReLU(shared_axes=[1, 2], name="prelu_shared")(x),
        L.ELU(0.7, name="elu_layer")(x),
        L.Softmax(name="softmax_layer")(x),
        L.Softmax(axis=1, name="softmax_rows")(x),
    ]


def merges(K, L):
    """Layers of several tensors."""
    a, b = K.Input((5, 4, 3), name="a"), K.Input((5, 4, 3), name="b")
    v, s = K.Input((3,), name="v"), K.Input((6, 3), name="s")
    return [a, b, v, s], [
        L.Add(name="add")([a, b, a]),
        L.Subtract(name="subtract")([a, b]),
        L.Multiply(name="multiply")([a, b]),
        L.Average(name="average")([a, b, b]),
        L.Maximum(name="maximum")([a, b]),
        L.Minimum(name="minimum")([a, b]),
        L.Concatenate(name="beside")([a, b]),
        L.Concatenate(axis=1, name="below")([a, b]),
        L.Multiply(name="gate")([a, L.Reshape((1, 1, 3), name="as_maps")(v)]),
        L.Multiply(name="broadcast")([a, v]),
        L.Dot(axes=1, name="dot_vectors")([v, L.Dense(3, name="to_vector")(v)]),
        L.Dot(axes=2, name="dot_sequences")([s, L.Dense(3, name="to_sequence")(s)]),
        L.Dot(axes=(2, 1), name="dot_mixed")([s, v]),
    ]


def structure(K, L):
    """Models in models, shared layers, frozen layers, several outputs."""
    inside = K.Input((6, 6, 4), name="inside")
    y = L.Conv2D(4, 3, padding="same", name="conv")(inside)
    y = L.BatchNormalization(name="norm", trainable=False)(y)
    block = K.Model(inside, L.Add(name="sum")([inside, y]), name="block")
    twin_in = K.Input((6, 6, 4), name="twin_in")
    shared = L.Conv2D(4, 1, name="shared_inside")
    once = shared(twin_in)
    twins = K.Model(twin_in, [shared(once), L.Conv2D(2, 1, name="second_head")(once)], name="twins")
    frozen = K.Sequential(
        [K.Input((6, 6, 4)), L.Conv2D(4, 3, padding="same", name="cold"), L.BatchNormalization(name="ice")],
        name="frozen",
    )
    frozen.trainable = False
    outer_in = K.Input((6, 6, 4), name="outer_in")
    outer = K.Model(outer_in, L.ReLU(name="after")(block(frozen(outer_in))), name="outer")
    x = K.Input((6, 6, 4), name="image")
    y = outer(x)
    first, second = twins(y)
    again, _ = twins(first)
    shared_outside = L.DepthwiseConv2D(3, padding="same", name="shared")
    z = L.Conv2D(4, 1, name="conv")(shared_outside(shared_outside(again)))
    pooled = L.GlobalAveragePooling2D(name="pool")(L.Concatenate(name="both")([z, second]))
    hidden = L.Dropout(0.5, name="drop")(pooled)
    return x, [L.Dense(3, activation="softmax", name="classes")(hidden), L.Dense(1, name="number")(hidden)]


def wrapped(K, L):
    """A model whose outputs are two calls of another model."""
    inside = K.Input((5, 5, 3), name="inside")
    block = K.Model(inside, L.Conv2D(3, 3, padding="same", activation="tanh", name="conv")(inside), name="block")
    x = K.Input((5, 5, 3), name="image")
    once = block(x)
    return x, [once, block(once)]


def uneven_pools(K, L):
    """Means over windows whose padding is uneven, which Keras on PyTorch computes otherwise than on TensorFlow."""
    x = K.Input((6, 8, 3), name="image")
    return x, [L.AveragePooling2D(3, strides=2, padding="same", name="average")(x)]


def sequential(K, L):
    """A sequential model with a sequential model in it."""
    head = K.Sequential([L.Dense(6, activation="relu", name="hidden"), L.Dense(4, name="scores")], name="head")
    layers = [K.Input((8, 8, 3), name="image"), L.Conv2D(5, 3, strides=2, activation="relu", name="conv")]
    layers += [L.MaxPooling2D(2, name="pool"), L.Flatten(name="flat"), head, L.Softmax(name="probabilities")]
    return K.Sequential(layers, name="sequential")


def preparation(K, L):
    """Layers and operations that prepare images."""
    x = K.Input((8, 9, 3), name="image")
    mean, variance = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    y = L.Rescaling(0.5, offset=-0.25, name="rescaled")(x)
    outputs = [
        y,
        L.Rescaling([0.5, 1.0, 2.0], offset=[0.0, 1.0, 2.0], name="rescaled_each")(x),
        L.Normalization(mean=mean, variance=variance, name="normalised_given")(x),
        L.Normalization(mean=mean, variance=variance, invert=True, name="normalised_back")(x),
        L.Normalization(name="normalised_learned")(x),
        L.Resizing(5, 14, name="resized")(x),
        L.Resizing(5, 14, interpolation="nearest", name="resized_nearest")(x),
        L.RandomFlip(name="flipped")(x),
        L.GaussianNoise(0.1, name="noise")(x),
    ]
    z = y / 0.7 - 0.3
    z = (z + 3.0) * 0.5
    outputs.append(L.Activation("linear", name="scalars")(z))
    outputs.append(L.Activation("linear", name="reversed")(2.0 - (1.5 / (x + 1.0))))
    outputs.append(L.Activation("linear", name="two_tensors")(y * z + x))
    if K.__name__ == "keras":
        ops = K.ops
        outputs.append(L.Activation("linear", name="ops_mean")(ops.mean(ops.relu(x), axis=[1, 2])))
        outputs.append(L.Activation("linear", name="ops_mean_kept")(ops.mean(x, axis=-1, keepdims=True)))
        outputs.append(L.Activation("linear", name="ops_max_rows")(ops.max(ops.sigmoid(x), axis=1)))
        outputs.append(L.Activation("linear", name="ops_clip")(ops.clip(x, 0.2, 0.8)))
        outputs.append(L.Activation("linear", name="ops_beside")(ops.concatenate([x, y], axis=-1)))
        outputs.append(L.Activation("linear", name="ops_reshape")(ops.reshape(x, (-1, 72, 3))))
        outputs.append(L.Activation("linear", name="ops_softmax")(ops.softmax(x, axis=1)))
        outputs.append(L.Activation("linear", name="ops_array")(x - np.array([0.1, 0.2, 0.3], "float32")))
    else:
        tf = importlib.import_module("tensorflow")
        outputs.append(L.Activation("linear", name="tf_mean")(tf.reduce_mean(tf.nn.relu(x), axis=[1, 2])))
        outputs.append(L.Activation("linear", name="tf_clip")(tf.clip_by_value(tf.math.sigmoid(x), 0.2, 0.6)))
        outputs.append(L.Activation("linear", name="tf_beside")(tf.concat([x, y], axis=-1)))
        outputs.append(L.Activation("linear", name="tf_reshape")(tf.reshape(x, (-1, 72, 3))))
    return x, outputs


def channels_first(K, L):
    """A model whose maps are `[N, C, H, W]` in Keras."""
    first = {"data_format": "channels_first"}
    x = K.Input((3, 9, 8), name="image")
    y = L.Conv2D(6, 3, padding="same", strides=2, activation="relu", **first, name="conv")(x)
    y = L.BatchNormalization(axis=1, name="norm")(y)
    z = L.SeparableConv2D(6, 3, padding="same", **first, name="separable")(y)
    y = L.Concatenate(axis=1, name="beside")([y, z])
    y = L.MaxPooling2D(2, **first, name="pool")(L.ZeroPadding2D(1, **first, name="padded")(y))
    return x, [
        L.GlobalAveragePooling2D(**first, name="global_average")(y),
        L.Flatten(**first, name="flat_first")(y),
        L.Flatten(name="flat_plain")(y),
        L.UpSampling2D(2, **first, name="up")(y),
        L.Softmax(axis=1, name="softmax")(y),
        L.Dense(3, name="dense_of_rows")(y),
    ]


def mixed_precision(K, L):
    """A model of the policy `mixed_bfloat16`; what is stored is computed in float32."""
    x = K.Input((8, 8, 3), name="image")
    y = L.Conv2D(4, 3, activation="relu", name="conv", dtype="mixed_bfloat16")(x)
    y = L.BatchNormalization(name="norm", dtype="mixed_bfloat16")(y)
    y = L.GlobalAveragePooling2D(name="pool", dtype="mixed_bfloat16")(y)
    return x, [L.Dense(3, activation="softmax", name="scores")(y)]


def free_sizes(K, L):
    """A fully convolutional model of free height and width."""
    x = K.Input((None, None, 3), name="image")
    y = L.Conv2D(4, 3, padding="same", strides=2, activation="relu", name="conv")(x)
    y = L.DepthwiseConv2D(3, padding="same", dilation_rate=2, name="depthwise")(y)
    y = L.GroupNormalization(2, name="group_norm")(L.MaxPooling2D(3, strides=2, padding="same", name="pool")(y))
    z = L.Reshape((1, 1, 4), name="gate")(L.GlobalAveragePooling2D(name="squeeze")(y))
    return x, [L.UpSampling2D(2, name="up")(L.Multiply(name="gated")([y, z]))]


def applications(K, L):
    """The two layers of keras.applications' own, in the classes of their modules."""
    modules = "keras.src.applications"
    scale = importlib.import_module(f"{modules}.convnext").LayerScale
    custom = importlib.import_module(f"{modules}.inception_resnet_v2").CustomScaleLayer
    x = K.Input((4, 4, 3), name="image")
    y = scale(0.5, 3, name="layer_scale")(L.Conv2D(3, 1, name="conv")(x))
    return x, [custom(0.3, name="custom_scale")([x, y])]


def tensorflow_functions(K, L):
    """Functions whose defaults are not those of Keras's operations of the same name."""
    tf = importlib.import_module("tensorflow")
    x = K.Input((4, 3, 4), name="image")
    y = L.Conv2D(5, 1, name="conv")(x)
    return x, [tf.nn.gelu(y), tf.nn.gelu(y, approximate=True)]


def tensorflow_slices(K, L):
    """Indices, slices and products that Keras 2 keeps as functions of TensorFlow, with `preprocess_input` of VGG16."""
    tf = sys.modules["tensorflow"]
    x = K.Input((8, 9, 3), name="image")
    y = L.Conv2D(4, 3, padding="same", name="conv")(K.applications.vgg16.preprocess_input(x) / 100.0)
    y = K.applications.resnet_v2.preprocess_input(y)[:, 1:, ::2, :3]
    y = tf.transpose(tf.stack([y[:, :, :, 0], y[..., -1]], axis=1), [0, 2, 3, 1])
    first, second = tf.split(tf.reshape(y, [-1, 35, 2]), 2, axis=-1)
    y = tf.squeeze(tf.expand_dims(tf.concat([second, first], -1), 1), [1])
    y = L.MultiHeadAttention(2, 3, name="mha")(y, tf.linalg.matmul(y, y, transpose_b=True))
    y = tf.unstack(tf.tile(tf.roll(tf.gather(y, [0, 2, 5], axis=1), 1, axis=1), [1, 2, 1]), axis=1)
    return x, [L.Dense(2, name="scores")(y[0]), L.Dense(3, name="others")(y[4])]


def indexing(K, L):
    """Operations that index and stack: `preprocess_input` of VGG16 inside of the model, and slices."""
    x = K.Input((8, 9, 3), name="image")
    y = L.Conv2D(4, 3, padding="same", name="conv")(K.applications.vgg16.preprocess_input(x) / 100.0)
    y = y[:, ::2, 1:-2]
    y = K.ops.stack([y[:, :, :, -1], y[:, :, :, 0]], axis=1)
    return x, [L.Dense(3, name="scores")(L.Flatten(name="flat")(y))]


def transformer(K, L):
    """Vision transformers: attention over tokens and over maps, with scores, Einstein sums, an embedding."""
    x, words = K.Input((8, 6, 3), name="image"), K.Input((7,), dtype="int32", name="words")
    patches = L.Reshape((12, 8), name="patches")(L.Conv2D(8, 2, strides=2, name="embed")(x))
    normed = L.LayerNormalization(name="norm")(patches)
    tokens = L.Add(name="attended")([patches, L.MultiHeadAttention(2, 4, name="mha")(normed, normed)])
    wide = L.EinsumDense("abc,cde->abde", output_shape=(12, 2, 6), bias_axes="de", activation="gelu", name="wide")(
        tokens
    )
    tokens = L.Add(name="mixed")(
        [tokens, L.EinsumDense("abde,dec->abc", output_shape=(12, 8), bias_axes="c", name="narrow")(wide)]
    )
    across = L.EinsumDense("abc,bd->adc", output_shape=(7, 8), name="across")(tokens)
    looked_up = L.Embedding(9, 8, name="looked_up")(words)
    crossed, scores = L.MultiHeadAttention(3, 5, value_dim=4, output_shape=6, name="crossed")(
        across, value=looked_up, return_attention_scores=True
    )
    maps = L.Conv2D(6, 3, name="maps")(x)
    return [x, words], [
        L.GlobalAveragePooling1D(name="pooled")(crossed),
        L.Dense(3, name="from_scores")(L.Flatten(name="flat_scores")(scores)),
        L.MultiHeadAttention(2, 3, use_bias=False, dropout=0.1, name="on_maps")(maps, maps),
    ]


def rearranging(K, L):
    """Operations that rearrange tensors: patches, heads written by hand, shifted windows, reductions."""
    ops = K.ops
    x = K.Input((8, 8, 3), name="image")
    y = L.Conv2D(6, 3, padding="same", name="conv")(x)
    patches = L.Dense(6, name="patched")(ops.reshape(ops.image.extract_patches(x, 2), (-1, 16, 12)))
    q, k, v = ops.unstack(
        ops.transpose(ops.reshape(L.Dense(18, name="qkv")(patches), (-1, 16, 3, 2, 3)), (2, 0, 3, 1, 4))
    )
    weights = ops.softmax(ops.matmul(q / 1.7, ops.swapaxes(k, -1, -2)), axis=-1)
    heads = ops.reshape(ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3)), (-1, 16, 6))
    shifted = ops.roll(y, (-1, 2), (1, 2))
    windows = ops.transpose(ops.reshape(shifted, (-1, 2, 4, 2, 4, 6)), (0, 1, 3, 2, 4, 5))
    windows = L.Dense(6, activation="relu", name="in_windows")(ops.reshape(windows, (-1, 16, 6)))
    back = ops.reshape(ops.transpose(ops.reshape(windows, (-1, 2, 2, 4, 4, 6)), (0, 1, 3, 2, 4, 5)), (-1, 8, 8, 6))
    first, second, third = ops.split(y, [1, 3], axis=-1)
    taken = (
        ops.take(ops.flip(y, axis=2), [0, 2, 5], axis=1) - ops.expand_dims(ops.mean(y, axis=(1, 2)), (1, 2))[:, :, :1]
    )
    spread = ops.rsqrt(ops.var(y, axis=-1, keepdims=True) + 0.1) + ops.std(y, axis=1, keepdims=True)
    edges = ops.tile(ops.pad(ops.repeat(first, 2, axis=2), ((0, 0), (1, 0), (0, 2), (0, 0))), (1, 1, 2, 1))
    picked = ops.einsum("nhwc,nhwd->ncd", second, ops.moveaxis(third, 1, 2))[:, None, :, 0]
    folded = ops.squeeze(ops.min(y, axis=1, keepdims=True), axis=1) + ops.log_softmax(ops.sin(y[:, 1]), axis=1)
    return x, [
        L.Flatten(name=name)(value)
        for name, value in {
            "heads": heads, "back": back, "taken": taken, "spread": spread, "edges": edges, "picked": picked,
            "folded": folded,
        }.items()
    ]  # fmt: skip


MODELS = [convolutions, other_ranks, pools, activations, normalisations, merges, structure, sequential, preparation]
MODELS += [wrapped, uneven_pools, channels_first, mixed_precision, free_sizes, applications]
MODELS += [tensorflow_functions, tensorflow_slices, indexing, transformer, rearranging]
ONLY_KERAS_3 = {channels_first, mixed_precision, applications, indexing, rearranging}
"""TensorFlow cannot compute channels first on a processor."""

ONLY_KERAS_2 = {uneven_pools, tensorflow_functions, tensorflow_slices}
ONLY_HDF5 = {tensorflow_slices}
"""Keras 2 cannot write an ellipsis into its other format."""


def randomised(model, rng):
    """Give every variable a value that makes a difference."""
    for weight in model.weights:
        name = getattr(weight, "path", weight.name).split("/")[-1].split(":")[0]
        if not weight.shape:
            continue
        low, high = (0.5, 1.5) if name in {"gamma", "variance", "moving_variance"} else (-0.6, 0.6)
        weight.assign(rng.uniform(low, high, tuple(weight.shape)).astype("float32"))
    for layer in model.layers:
        if hasattr(layer, "finalize_state"):  # computes with what was in the variables before, otherwise
            layer.finalize_state()


def values(K, model, feeds):
    """The outputs of all layers with one output that the outer model shows, by name."""
    named = {}
    for layer in model.layers:
        if isinstance(layer, K.layers.InputLayer) or layer.__class__.__name__ in {"TFOpLambda", "SlicingOpLambda"}:
            continue
        if not isinstance(layer, K.layers.Layer):
            continue
        if len(layer._inbound_nodes) != 1 or isinstance(layer, K.Model) or isinstance(layer.output, (list, tuple)):
            continue
        named[layer.name] = layer.output
    if not named:
        return {}
    outputs = K.Model(model.inputs, list(named.values()))(feeds if len(feeds) > 1 else feeds[0], training=False)
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return {name: np.array(value, "float32") for name, value in zip(named, map(as_numpy, outputs), strict=True)}


def as_numpy(tensor):
    """The content of a tensor of any backend."""
    return tensor.detach().cpu().float().numpy() if hasattr(tensor, "detach") else np.asarray(tensor, "float32")


def pack(path):
    """Compress an archive that Keras has written, as a user may; the members stay what they are."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def made(K, build):
    """The model of a function above."""
    K.backend.clear_session()
    result = build(K, K.layers)
    return result if isinstance(result, K.Model) else K.Model(*result, name=build.__name__)


def main(library: str, folder: Path, only: list[str]) -> None:
    """Write the models and the values, by default all of them."""
    K = importlib.import_module(library)
    backend = K.backend.backend() if library == "keras" else "tensorflow"
    for build in MODELS:
        if build in (ONLY_KERAS_2 if library == "keras" else ONLY_KERAS_3):
            continue
        if only and build.__name__ not in only:
            continue
        rng = np.random.default_rng([SEED, zlib.crc32(build.__name__.encode())])
        model = made(K, build)
        randomised(model, rng)
        stem = f"{library}_{build.__name__}"
        for extension in ("h5",) if build in ONLY_HDF5 else ("keras", "h5"):
            model.save(folder / f"{stem}.{extension}")
        if build not in {sequential, *ONLY_HDF5}:
            pack(folder / f"{stem}.keras")
        shapes = [(2, *(d or 10 for d in x.shape[1:])) for x in model.inputs]
        feeds = [rng.uniform(-1, 1, shape).astype("float32") for shape in shapes]
        whole = [np.dtype(getattr(x.dtype, "name", x.dtype)).kind == "i" for x in model.inputs]
        feeds = [np.abs(feed * 9).astype("int32") if i else feed for feed, i in zip(feeds, whole, strict=True)]
        if build is mixed_precision:
            weights = model.get_weights()
            model = K.Model.from_config(_in_float32(model.get_config()))
            model.set_weights(weights)
        kept = values(K, model, feeds)
        kept |= {f"input/{x.name.split(':')[0]}": feed for x, feed in zip(model.inputs, feeds, strict=True)}
        answers = model(feeds if len(feeds) > 1 else feeds[0], training=False)
        answers = answers if isinstance(answers, (list, tuple)) else [answers]
        kept |= {f"output/{i}": as_numpy(answer) for i, answer in enumerate(answers)}
        provenance = f"{library} {K.__version__} on {backend}, seed {SEED}"
        np.savez_compressed(folder / f"{stem}.npz", provenance=provenance, **kept)


def _in_float32(config):
    """The configuration with every policy the plain one."""
    if isinstance(config, dict):
        return {k: "float32" if k == "dtype" else _in_float32(v) for k, v in config.items()}
    return [_in_float32(v) for v in config] if isinstance(config, list) else config


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
