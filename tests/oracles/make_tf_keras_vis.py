"""Writes `tf_keras_vis.npz`: what tf-keras-vis makes of the network of `pytorch_grad_cam_runs.npz`, which it reads.

Needs tensorflow 2.21, tf-keras 2.21 and tf-keras-vis 0.8.7: `python tests/oracles/make_tf_keras_vis.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
from tf_keras_vis.scorecam import Scorecam
from tf_keras_vis.utils.scores import CategoricalScore

FOLDER = Path(__file__).parent
keras = tf.keras


def network(facts):
    """Logits. Its linear layer reads the maps channel by channel, as PyTorch flattens them."""
    image = keras.Input((15, 15, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="first")(image)
    x = keras.layers.Conv2D(12, 3, name="second")(x)
    x = keras.layers.Permute((3, 1, 2))(keras.layers.ReLU()(x))
    x = keras.layers.Dense(16, activation="relu", name="hidden")(keras.layers.Flatten()(x))
    model = keras.Model(image, keras.layers.Dense(5, name="last")(x))
    for name in ("first", "second", "hidden", "last"):
        weight = facts[f"weight/{name}.weight"]
        turned = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        model.get_layer(name).set_weights([turned, facts[f"weight/{name}.bias"]])
    return model


def main():
    source = dict(np.load(FOLDER / "pytorch_grad_cam_runs.npz"))
    model, x = network(source), source["x"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(model.predict(x, verbose=0), source["scores"], rtol=1e-4, atol=1e-4)
    cam = Scorecam(model)(
        CategoricalScore(source["classes"].tolist()),
        x,
        penultimate_layer="second",
        seek_penultimate_conv_layer=False,
        activation_modifier=None,
        expand_cam=False,
        normalize_cam=False,
    )
    said = {"library": "tf-keras-vis 0.8.7", "tensorflow": tf.__version__, "network": "tests/oracles/rectified.py"}
    facts = {name: value for name, value in source.items() if name in {"x", "classes", "scores"} or "weight/" in name}
    facts |= {"cam/scorecam-tf-keras-vis": np.asarray(cam), "provenance": np.array(json.dumps(said))}
    np.savez_compressed(FOLDER / "tf_keras_vis.npz", **facts)


if __name__ == "__main__":
    main()
