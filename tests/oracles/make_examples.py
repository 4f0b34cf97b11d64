"""Makes the thin stand-ins of `tests/examples`: InceptionV3 and ResNet50v2, with fewer channels.

    python tests/oracles/make_examples.py images P.npz          with opencv
    python tests/oracles/make_examples.py inceptionv3 P.npz       with keras 3.15 on torch
    python tests/oracles/make_examples.py resnet50_v2 P.npz       with mxnet 1.9.1, numpy 1.26

Nothing comes from elsewhere: ResNet50v2 learns the shapes that `models/draw_shapes.py` draws, one in each image, and
InceptionV3 is random. Names, order and kinds of the layers are those of the originals. To keep the files small,
channels are a sixteenth, and weights are rounded to 63 levels a tensor.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
OUT = ROOT / "tests" / "examples"
SIDE, COUNT, HELD_BACK, BATCH = 160, 6000, 400, 32
LEVELS = 31


def write_images(path):
    """Six thousand images `[N, 160, 160, 3]` and the class of the one shape on each."""
    sys.path.insert(0, str(ROOT / "models"))
    import draw_shapes  # noqa: PLC0415 - beside the models

    drawn = draw_shapes.draw_images(5, COUNT, 1, 1, SIDE)
    np.savez(path, images=[p.pixels for p in drawn], classes=[p.shapes[0].index for p in drawn])


def batches(path, steps):
    """Batches of training images, turned and mirrored at random."""
    with np.load(path) as stored:
        images, classes = stored["images"][HELD_BACK:], stored["classes"][HELD_BACK:]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(len(images), size=BATCH)
        batch = np.rot90(images[rows], rng.integers(4), (1, 2))
        yield (batch[:, :, ::-1] if rng.integers(2) else batch).astype(np.float32), classes[rows]


def rounded(value):
    """At most 63 values, which compress well."""
    step = np.abs(value).max() / LEVELS if value.ndim > 1 else 0
    return np.round(value / step) * step if step else value


def rate(step, steps, peak):
    """Learning rate: rises for a tenth of the steps, then falls to zero as a cosine does."""
    done = step / steps
    return peak * (done / 0.1 if done < 0.1 else 0.5 * (1 + np.cos(np.pi * (done - 0.1) / 0.9)))


def say(what, figure):
    """A figure of what was made."""
    print(what, figure)  # noqa: T201 - for whoever runs this


# ----- Keras -------------------------------------------------------------------


def inceptionv3(keras):
    """InceptionV3 of a sixteenth of the channels, its layers numbered from one as Keras 2 did."""
    config = keras.applications.InceptionV3(weights=None, classes=6, input_shape=(203, 203, 3)).get_config()
    text = {}
    for layer in config["layers"]:
        layer.pop("build_config", None)
        if layer["class_name"] == "Conv2D":
            layer["config"]["filters"] = max(4, layer["config"]["filters"] // 16)
        if layer["class_name"] == "BatchNormalization":
            layer["config"]["momentum"] = 0.0
        for kind in ("conv2d", "batch_normalization", "activation"):
            if layer["name"] == kind or layer["name"].startswith(f"{kind}_"):
                number = int(layer["name"].removeprefix(kind).removeprefix("_") or 0)
                text[layer["name"]] = f"{kind}_{number + 1}"
    return keras.Model.from_config(renamed(config, text))


def renamed(part, names):
    """A configuration with other names of layers."""
    if isinstance(part, dict):
        return {key: renamed(value, names) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [renamed(value, names) for value in part]
    return names.get(part, part) if isinstance(part, str) else part


def random_keras(path):
    """Random weights, each normalisation's statistics those of a batch."""
    import keras  # noqa: PLC0415 - each framework only where it is asked for

    keras.utils.set_random_seed(0)
    model = inceptionv3(keras)
    with np.load(path) as stored:
        x = stored["images"][:BATCH].astype(np.float32)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.set_weights([rounded(w) for w in layer.get_weights()])
    model(keras.ops.image.resize(x, (203, 203)) / 127.5 - 1, training=True)
    save_small(model, OUT / "inceptionv3.keras")


def save_small(model, path):
    """As Keras saves it, the archive compressed."""
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    write_archive(path, members)


def write_archive(path, members):
    """A compressed archive that is the same whenever it is written."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    say("bytes:", path.stat().st_size)


# ----- MXNet -------------------------------------------------------------------


def train_mxnet(path):
    np.bool = np.bool_  # MXNet 1.9.1 asks for a name that NumPy has dropped
    import mxnet as mx  # noqa: PLC0415 - each framework only where it is asked for
    from mxnet.gluon.model_zoo.vision import BottleneckV2, ResNetV2  # noqa: PLC0415

    mx.random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - MXNet's initialisers draw from it
    steps = 700
    network = ResNetV2(BottleneckV2, [3, 4, 6, 3], [4, 16, 32, 64, 128], classes=6, prefix="resnetv20_")
    network.initialize(mx.init.Xavier(magnitude=2))
    network.hybridize(static_alloc=True)
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    trainer = mx.gluon.Trainer(network.collect_params(), "adam", {"learning_rate": 1e-3, "wd": 1e-4})
    for step, (x, c) in enumerate(batches(path, steps)):
        trainer.set_learning_rate(rate(step, steps, 4e-3))
        with mx.autograd.record():
            value = loss(network(mx.nd.array(gluon(x))), mx.nd.array(c))
        value.backward()
        trainer.step(BATCH)
    for parameter in network.collect_params().values():
        parameter.set_data(mx.nd.array(rounded(parameter.data().asnumpy())))
    with np.load(path) as stored:
        x, c = stored["images"][:HELD_BACK].astype(np.float32), stored["classes"][:HELD_BACK]
    found = network(mx.nd.array(gluon(x))).asnumpy().argmax(1)
    say("right:", (found == c).mean())
    network.export(str(OUT / "resnet50_v2"))
    names = ("resnet50_v2-symbol.json", "resnet50_v2-0000.params")
    write_archive(OUT / "resnet50_v2.zip", {name: (OUT / name).read_bytes() for name in names})
    for name in names:
        (OUT / name).unlink()


def gluon(x):
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return np.ascontiguousarray(((x / 255 - mean) / deviation).transpose(0, 3, 1, 2))


if __name__ == "__main__":
    what, file = sys.argv[1:]
    {"images": write_images, "resnet50_v2": train_mxnet, "inceptionv3": random_keras}[what](file)
