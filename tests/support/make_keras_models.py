"""Keras models that take Keras to run, and what Keras computes of them: `python make_keras_models.py FOLDER`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import numpy as np
import tf_keras
from own_layers import Gate, Net

FOLDER = Path(sys.argv[1])
IMAGES = np.random.default_rng(0).random((3, 32, 32, 3)).astype(np.float32)


def functional(keras, special):
    """A graph of layers with a branch, a nested model, a depthwise convolution and one layer that `special` makes."""
    layers = keras.layers
    x = image = layers.Input((32, 32, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    side = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = special(layers.Add(name="sum")([x, side]))
    inner = keras.Sequential(
        [layers.InputLayer((16, 16, 8)), layers.Conv2D(6, 3, name="conv"), layers.ReLU(name="act")], name="inner"
    )
    x = layers.GlobalAveragePooling2D(name="pool")(inner(x))
    return keras.Model(image, layers.Dense(4, activation="softmax", name="predictions")(x), name="net")


def randomised(model, seed):
    rng = np.random.default_rng(seed)
    values = [rng.normal(0, 0.3, w.shape).astype(np.float32) for w in model.get_weights()]
    names = [w.path if hasattr(w, "path") else w.name for w in model.weights]
    model.set_weights([np.abs(v) + 0.5 if "variance" in n else v for n, v in zip(names, values, strict=True)])
    return model


def graph_outputs(keras, model, names):
    layers = [model.get_layer(name) for name in names]
    # To Keras 2 the output of a nested model is the one inside itself.
    outputs = [x.get_output_at(0) if keras is tf_keras and hasattr(x, "layers") else x.output for x in layers]
    return keras.Model(model.inputs, outputs).predict(IMAGES, verbose=0)


def record(name, model, layers, maps):
    found = dict(zip(layers, maps, strict=True))
    np.savez(FOLDER / f"{name}.npz", images=IMAGES, scores=model.predict(IMAGES, verbose=0), **found)


def main():
    common = ["stem", "norm", "relu", "depthwise", "sum", "inner"]
    plain = randomised(functional(keras, lambda x: x), 1)
    plain.save(FOLDER / "plain.keras")
    plain.export(FOLDER / "saved", verbose=False)
    for name in ("plain", "saved"):
        record(name, plain, common, graph_outputs(keras, plain, common))
    custom = randomised(functional(keras, Gate(name="gate")), 2)
    custom.save(FOLDER / "custom.keras")
    record("custom", custom, [*common, "gate"], graph_outputs(keras, custom, [*common, "gate"]))
    coded = randomised(functional(keras, keras.layers.Lambda(lambda x: x * 0.5 + 0.1, name="code")), 3)
    coded.save(FOLDER / "coded.keras")
    record("coded", coded, [*common, "code"], graph_outputs(keras, coded, [*common, "code"]))
    old = randomised(functional(tf_keras, lambda x: x), 4)
    old.save(FOLDER / "old.h5")
    old.save(FOLDER / "old_saved", save_format="tf")
    for name in ("old", "old_saved"):
        record(name, old, common, graph_outputs(tf_keras, old, common))
    net = Net(name="mine")
    net(IMAGES)
    randomised(net, 5)
    net.save(FOLDER / "subclassed.keras")
    first = net.first(IMAGES)
    block = net.block(first)
    conv = net.block.layers[0](first)
    maps = {"first": first, "block/conv": conv, "block": block, "gate": net.gate(block)}
    np.savez(
        FOLDER / "subclassed.npz",
        images=IMAGES,
        scores=net.predict(IMAGES, verbose=0),
        **{name.replace("/", "__"): np.asarray(value) for name, value in maps.items()},
    )


if __name__ == "__main__":
    main()
