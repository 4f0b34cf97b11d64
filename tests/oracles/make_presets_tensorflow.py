"""Writes `presets_tensorflow.npz`: heatmaps and overlays of tf-keras-vis, tf-explain, xplique and Keras's own helpers.

Needs tensorflow 2.21, tf-keras 2.21, tf-keras-vis 0.8.7, tf-explain 0.3.1, xplique 2.0.2, OpenCV, Pillow and
matplotlib: `TF_USE_LEGACY_KERAS=1 python tests/oracles/make_presets_tensorflow.py`. What is kept for each case:

| name | what |
| --- | --- |
| `heatmap/LIBRARY` | `[H, W]`; tf-explain has none and is not here, xplique's is not normalised |
| `overlay/LIBRARY` | `uint8 [H, W, 3]`, the library's own, for tf-keras-vis as its examples draw it |
| `overlay/keras-io` | what keras.io makes of the layer's map, with the `array_to_img` of Keras |
"""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import matplotlib as mpl
import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt
from preset_network import CASES, HEIGHT, WIDTH, images, inputs, weights
from tf_explain.core.grad_cam import GradCAM as TfExplain
from tf_keras_vis.gradcam import Gradcam
from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
from tf_keras_vis.utils.model_modifiers import ReplaceToLinear
from tf_keras_vis.utils.scores import CategoricalScore
from xplique.attributions import GradCAM as Xplique
from xplique.plots import plot_attribution

mpl.use("Agg")
keras = tf.keras


def network():
    """Probabilities; the layers are called as their weights."""
    numbers = weights()
    image = keras.Input((HEIGHT, WIDTH, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="first")(image)
    x = keras.layers.Conv2D(12, 3, name="second")(x)
    x = keras.layers.Activation("sigmoid")(x)
    x = keras.layers.Conv2D(16, 3, activation="sigmoid", name="third")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(5, activation="softmax", name="last")(x))
    for name in ("first", "second", "third", "last"):
        kernel = numbers[name].transpose(2, 3, 1, 0) if name != "last" else numbers[name].T
        model.get_layer(name).set_weights([kernel, numbers[f"{name}_bias"]])
    return model


def drawn(draw):
    """What `draw` puts on axes that have a pixel for each of the image: `uint8 [H, W, 3]`."""
    figure = plt.figure(figsize=(WIDTH / 10, HEIGHT / 10), dpi=10)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    draw(axes)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return pixels


def on_image(heatmap, image):
    """As the examples of tf-keras-vis draw it."""

    def draw(axes):
        axes.imshow(image)
        axes.imshow(np.uint8(mpl.colormaps["jet"](heatmap)[..., :3] * 255), cmap="jet", alpha=0.5)

    return drawn(draw)


def superimposed(cells, image):
    """The page of keras.io, from the map of the layer at its own size."""
    colours = mpl.colormaps["jet"](np.arange(256))[:, :3][np.uint8(255 * cells)]
    drawing = keras.utils.array_to_img(colours).resize(image.shape[1::-1])
    both = keras.utils.img_to_array(drawing) * 0.4 + keras.utils.img_to_array(image)
    return np.asarray(keras.utils.array_to_img(both))


def main():
    model = network()
    linear = keras.models.clone_model(model)
    linear.set_weights(model.get_weights())
    linear.layers[-1].activation = keras.activations.linear
    facts = {}
    for case, (sample, index) in CASES.items():
        x, image = inputs()[sample : sample + 1].transpose(0, 2, 3, 1), images()[sample]
        found = {"scores": model(x).numpy()}
        score, layer = CategoricalScore([index]), "second"
        # Its search for a convolution knows the classes of Keras 3 alone.
        where = {"penultimate_layer": layer, "seek_penultimate_conv_layer": False}
        bare = {**where, "expand_cam": False, "normalize_cam": False}
        for name, kind in (("tf-keras-vis", Gradcam), ("gradcam++-tf-keras-vis", GradcamPlusPlus)):
            found[f"heatmap/{name}"] = kind(model)(score, x, **where)[0]
            found[f"heatmap/{name}/logit"] = kind(model, ReplaceToLinear(), clone=True)(score, x, **where)[0]
            found[f"cells/{name}"] = kind(model)(score, x, **bare)[0]
        found["overlay/tf-keras-vis"] = on_image(found["heatmap/tf-keras-vis"], image)

        maps, cotangent = TfExplain.get_gradients_and_filters(model, x, layer, index, True)
        found["cam/tf-explain"] = TfExplain.generate_ponderated_output(maps, cotangent)[0]
        unscaled = (image[None].astype(np.float32) / 127.5 - 1).astype(np.float32)
        found["overlay/tf-explain"] = TfExplain().explain((unscaled, None), model, index, layer)

        explanation = Xplique(linear, conv_layer=layer).explain(x, np.eye(5, dtype=np.float32)[[index]])
        found["heatmap/xplique"] = np.asarray(explanation)[0, ..., 0]
        found["overlay/xplique"] = drawn(
            lambda axes, e=explanation, x=x: plt.sca(axes) or plot_attribution(np.asarray(e)[0], x[0])
        )

        with tf.GradientTape() as tape:
            maps, scores = keras.Model(linear.input, [linear.get_layer(layer).output, linear.output])(x)
            value = scores[:, index]
        cells = tf.squeeze(maps[0] @ tf.reduce_mean(tape.gradient(value, maps), axis=(0, 1, 2))[..., tf.newaxis])
        cells = (tf.maximum(cells, 0) / tf.math.reduce_max(cells)).numpy()
        found["cells/keras-io"] = cells
        found["overlay/keras-io"] = superimposed(cells, image)
        found["overlay/keras-io/large"] = superimposed(cells, image.repeat(3, axis=0).repeat(3, axis=1))
        facts |= {f"{case}/{name}": np.asarray(value) for name, value in found.items()}
    versions = {"tensorflow": tf.__version__, "tf-keras-vis": "0.8.7", "tf-explain": "0.3.1", "xplique": "2.0.2"}
    versions |= {"matplotlib": mpl.__version__, "network": "preset_network.py"}
    path = Path(__file__).with_name("presets_tensorflow.npz")
    np.savez_compressed(path, provenance=np.array(json.dumps(versions)), **facts)


if __name__ == "__main__":
    main()
