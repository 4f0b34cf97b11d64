"""Convert the demo classifier to Keras and MXNet files, with the trained weights of `shapes.pt2`.

    KERAS_BACKEND=torch python models/convert_shapes.py keras     needs torch 2.13, keras 3.15 and h5py
    python models/convert_shapes.py mxnet                          needs mxnet 1.9.1, numpy 1.26 and h5py

The first command reads `shapes.pt2` and writes `shapes.keras`; the second reads `shapes.keras` and writes
`shapes-symbol.json` and `shapes-0000.params`. Each compares its logits with those of `shapes.onnx` in ONNX Runtime.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FILTERS = (16, 32, 48, 48, 64, 64, 64)
POOLED = (1, 2, 4)
"""The blocks that are followed by a pooling layer."""

EPSILON = 1e-5
"""PyTorch's default, which differs from those of Keras and MXNet."""


def write_keras() -> None:
    """Write `shapes.keras` from `shapes.pt2`."""
    import keras  # noqa: PLC0415 - each command needs one framework only
    import torch  # noqa: PLC0415
    from keras import layers  # noqa: PLC0415

    weights = {
        name: value.detach().numpy() for name, value in torch.export.load(HERE / "shapes.pt2").state_dict.items()
    }
    convolutions = [value for name, value in weights.items() if value.ndim == 4]
    norms = [name.removesuffix(".running_var") for name in weights if name.endswith(".running_var")]
    x = image = keras.Input((96, 96, 3), name="image")
    for block, filters in enumerate(FILTERS, 1):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"block{block}_conv")(x)
        x = layers.BatchNormalization(epsilon=EPSILON, name=f"block{block}_bn")(x)
        x = layers.ReLU(name=f"block{block}_relu")(x)
        if block in POOLED:
            x = layers.MaxPooling2D(name=f"block{block}_pool")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, layers.Dense(6, name="logits")(x), name="shapes")
    for block, (kernel, norm) in enumerate(zip(convolutions, norms, strict=True), 1):
        model.get_layer(f"block{block}_conv").set_weights([kernel.transpose(2, 3, 1, 0)])
        parts = ("weight", "bias", "running_mean", "running_var")
        model.get_layer(f"block{block}_bn").set_weights([weights[f"{norm}.{part}"] for part in parts])
    model.get_layer("logits").set_weights([weights["head.weight"].T, weights["head.bias"]])
    check(lambda x: np.asarray(model(x.transpose(0, 2, 3, 1), training=False).detach()))
    model.save(HERE / "shapes.keras")


def write_mxnet() -> None:
    """Write `shapes-symbol.json` and `shapes-0000.params` from `shapes.keras`."""
    import io  # noqa: PLC0415
    import zipfile  # noqa: PLC0415

    import h5py  # noqa: PLC0415

    np.bool = np.bool_  # type: ignore[misc] - MXNet 1.9.1 needs a name that NumPy removed
    import mxnet as mx  # noqa: PLC0415

    with zipfile.ZipFile(HERE / "shapes.keras") as archive:
        stored = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    read = lambda layer, i: np.asarray(stored[f"layers/{layer}/vars/{i}"])  # noqa: E731 - one line, used three times
    x, weights = mx.sym.var("image"), {}
    for block, filters in enumerate(FILTERS, 1):
        name, end = f"block{block}", f"_{block - 1}" if block > 1 else ""
        x = mx.sym.Convolution(x, kernel=(3, 3), pad=(1, 1), num_filter=filters, no_bias=True, name=f"{name}_conv")
        x = mx.sym.BatchNorm(x, eps=EPSILON, fix_gamma=False, name=f"{name}_bn")
        x = mx.sym.Activation(x, act_type="relu", name=f"{name}_relu")
        weights[f"arg:{name}_conv_weight"] = read(f"conv2d{end}", 0).transpose(3, 2, 0, 1)
        parts = ("arg:{}_gamma", "arg:{}_beta", "aux:{}_moving_mean", "aux:{}_moving_var")
        for i, part in enumerate(parts):
            weights[part.format(f"{name}_bn")] = read(f"batch_normalization{end}", i)
        if block in POOLED:
            x = mx.sym.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max", name=f"{name}_pool")
    x = mx.sym.Pooling(x, global_pool=True, pool_type="avg", kernel=(1, 1), name="pool")
    x = mx.sym.FullyConnected(mx.sym.Flatten(x, name="flat"), num_hidden=6, name="logits")
    weights["arg:logits_weight"], weights["arg:logits_bias"] = read("dense", 0).T, read("dense", 1)
    arrays = {name: mx.nd.array(np.ascontiguousarray(value)) for name, value in weights.items()}
    x.save(str(HERE / "shapes-symbol.json"))
    mx.nd.save(str(HERE / "shapes-0000.params"), arrays)
    block = mx.gluon.SymbolBlock.imports(
        str(HERE / "shapes-symbol.json"), ["image"], str(HERE / "shapes-0000.params"), ctx=mx.cpu()
    )
    check(lambda images: block(mx.nd.array(images)).asnumpy())


def check(run) -> None:  # noqa: ANN001 - any function from images to logits
    """Check that the logits are those of `shapes.onnx`."""
    import onnxruntime  # noqa: PLC0415

    images = np.random.default_rng(0).random((4, 3, 96, 96), np.float32)
    (expected,) = onnxruntime.InferenceSession(HERE / "shapes.onnx").run(["logits"], {"image": images})
    gap = float(np.abs(run(images) - expected).max() / np.abs(expected).max())
    print(f"logits differ from those of shapes.onnx by {gap:.1e} of the largest")
    assert gap < 1e-5, gap


if __name__ == "__main__":
    {"keras": write_keras, "mxnet": write_mxnet}[sys.argv[1]]()
