"""Grad-CAM of the exported model against PyTorch's own gradients in the Keras model.

Selvaraju et al. 2017, equations 1 and 2, without the ReLU.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime as ort
import pytest

pytest.importorskip("h5py", reason="h5py is not installed")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not installed")
torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import onnx_gradcam  # noqa: E402 - behind the checks for the frameworks
from onnx_gradcam.exporters.finishing import finish_export  # noqa: E402
from onnx_gradcam.exporters.keras import read_keras  # noqa: E402

pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-4
CLASSES = 5


def native_maps(model, layer, x):
    """The raw signed map of each class: the layer's channels, weighted by the mean gradient of the logit, summed."""
    model.layers[-1].activation = keras.activations.linear
    both = keras.Model(model.inputs, [model.get_layer(layer).output, model.outputs[0]])
    maps, logits = both(torch.from_numpy(x), training=False)
    found = []
    for number in range(CLASSES):
        (gradient,) = torch.autograd.grad(logits[:, number].sum(), maps, retain_graph=True)
        found.append((maps * gradient.mean((1, 2), keepdim=True)).sum(-1).detach().numpy())
    return np.stack(found)


@pytest.mark.parametrize(("network", "layer", "size"), [("VGG16", "block5_conv3", 96), ("InceptionV3", "mixed10", 139)])
def test_the_map_is_that_of_the_framework(network, layer, size, tmp_path):
    keras.utils.set_random_seed(7)
    model = getattr(keras.applications, network)(weights=None, input_shape=(size, size, 3), classes=11)
    rng = np.random.default_rng(7)
    for weight in model.weights:
        if weight.path.endswith(("bias", "beta")):
            weight.assign(rng.normal(0, 0.1, weight.shape))
    model.save(tmp_path / "model.keras")
    x = rng.uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    theirs = native_maps(model, layer, x)
    exported = finish_export(read_keras(tmp_path / "model.keras"), layer)
    assert exported.target == layer
    explained = onnx_gradcam.attach(exported.to_proto(), layer=layer)
    explained.save(tmp_path / "explained.onnx")
    session = ort.InferenceSession(tmp_path / "explained.onnx", providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: x.transpose(0, 3, 1, 2)}
    numbers = [np.array([number], np.int64) for number in range(CLASSES)]
    ours = np.stack([session.run(["cam"], {**feeds, "target_class": number})[0] for number in numbers])
    assert ours.shape == theirs.shape
    assert (theirs > 0).any()
    assert (theirs < 0).any(), "signed maps tell more than those cut at zero"
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    print(network, layer, f"{difference:.1e}")  # noqa: T201
    assert difference <= TOLERANCE
