"""All forty networks of `keras.applications` against Keras itself, on PyTorch."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnxruntime as ort
import pytest

pytest.importorskip("h5py")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not installed")

from keras.src.applications import nasnet  # noqa: E402 - behind the check for Keras

from onnx_gradcam.exporters.keras import read_keras  # noqa: E402 - behind the check for Keras
from onnx_gradcam.images.preprocessing import parse_preprocessing  # noqa: E402

pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-5

SIZES = {"InceptionV3": 107, "InceptionResNetV2": 107, "Xception": 107, "EfficientNetB6": 96, "EfficientNetB7": 96}
"""Input sizes other than 64: odd ones, which tell `same` padding before from padding behind, and larger ones for the
deepest networks, whose last maps would have four places and amplify the rounding of float32."""

CAFFE = ["ResNet50", "ResNet101", "ResNet152", "VGG16", "VGG19"]
TF = ["ResNet50V2", "ResNet101V2", "ResNet152V2", "InceptionV3", "InceptionResNetV2", "Xception", "MobileNet"]
TF += ["MobileNetV2", "NASNetMobile", "NASNetLarge"]
TORCH = ["DenseNet121", "DenseNet169", "DenseNet201"]
OWN = ["MobileNetV3Small", "MobileNetV3Large"]
OWN += [f"EfficientNetB{i}" for i in range(8)]
OWN += [f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")]
OWN += [f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")]
MODES = {
    **dict.fromkeys(CAFFE, "keras-caffe"),
    **dict.fromkeys(TF, "keras-tf"),
    **dict.fromkeys(TORCH, "keras-torch"),
    **dict.fromkeys(OWN, "none"),
}


DEEPER = ["ResNet101", "ResNet152", "VGG19", "ResNet101V2", "ResNet152V2", "NASNetLarge", "DenseNet169", "DenseNet201"]
DEEPER += [f"EfficientNetB{i}" for i in range(1, 8)]
DEEPER += [f"EfficientNetV2{size}" for size in ("B1", "B2", "B3", "M", "L")]
DEEPER += [f"ConvNeXt{size}" for size in ("Small", "Base", "Large", "XLarge")]
"""Networks with the layers of another one, only more or wider ones: they are left to the nightly run."""
NETWORKS = [pytest.param(name, marks=[pytest.mark.nightly] * (name in DEEPER)) for name in MODES]


def randomise(model, x, rng):
    """Give every normalisation scales and statistics that make a difference.

    The statistics are of the size of the activations: with any others a deep random network amplifies the rounding of
    float32 beyond the tolerance, as it does where the mean is taken off that all images have in common.
    """
    for weight in model.weights:
        name = weight.path.split("/")[-1]
        if name in {"gamma", "variance"}:
            weight.assign(rng.uniform(0.75, 1.25, weight.shape))
        elif name in {"beta", "mean", "bias"}:
            weight.assign(rng.normal(0, 0.1, weight.shape))
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0
    model(x, training=True)
    for layer in norms:
        mean, variance = (keras.ops.convert_to_numpy(v) for v in (layer.moving_mean, layer.moving_variance))
        square = mean**2 + variance
        layer.moving_mean.assign(0.5 * mean + rng.normal(0, 0.2, mean.shape) * np.sqrt(square))
        layer.moving_variance.assign(square * rng.uniform(0.7, 1.4, mean.shape) + 1e-3)


class _AnyBackend:
    """Keras's backend, which does not say that it is PyTorch: NASNet refuses that by name."""

    def __init__(self, backend):
        self._backend = backend

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def backend(self):
        return "any"


def images(count, size, rng):
    """Patches of colour with noise on them, each of a brightness and contrast of its own; from 0 to 255."""
    coarse = rng.uniform(0, 1, (count, 4, 4, 3)).repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)[:, :size, :size]
    contrast, noise = rng.uniform(0.2, 0.9, (count, 1, 1, 3)), rng.uniform(0, 0.1, (count, size, size, 3))
    return (255 * (coarse * contrast + (0.9 - contrast) * rng.uniform(0, 1, contrast.shape) + noise)).astype(np.float32)


def difference(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def some_layers(model, count):
    """Layers spread over the network, the last one among them, with a single output of their own."""
    usable = [
        layer for layer in model.layers if hasattr(layer, "call") and not isinstance(layer, keras.layers.InputLayer)
    ]
    picked = np.linspace(len(usable) // 10, len(usable) - 1, count).round().astype(int)
    return [usable[i] for i in dict.fromkeys(picked.tolist())]


def channels_first(array):
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def exported(path, names):
    """A session of the exported model that also gives the tensors of the layers."""
    product = read_keras(path)
    tensors = {name: product.layers[name].tensor for name in names}
    proto = product.model.to_proto()
    have = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=t) for t in set(tensors.values()) - have)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return product, session, tensors


@pytest.mark.parametrize("network", NETWORKS)
def test_the_exported_network_is_the_same(network, tmp_path, monkeypatch):
    monkeypatch.setattr(nasnet, "backend", _AnyBackend(nasnet.backend))
    rng = np.random.default_rng(40)
    size = SIZES.get(network, 64)
    keras.utils.set_random_seed(4)
    model = getattr(keras.applications, network)(weights=None, input_shape=(size, size, 3), classes=17)
    x = images(8, size, rng)
    if MODES[network] != "none":
        x = x / np.float32(127.5) - np.float32(1)
    randomise(model, x, rng)
    x = x[:2]
    layers = some_layers(model, 6)
    names = [layer.name for layer in layers]
    theirs = keras.Model(model.inputs, [layer.output for layer in layers])(x, training=False)
    theirs = [channels_first(keras.ops.convert_to_numpy(tensor)) for tensor in theirs]
    path = tmp_path / f"{network}.keras"
    model.save(path)
    product, session, tensors = exported(path, names)
    ours = session.run([tensors[name] for name in names], {session.get_inputs()[0].name: channels_first(x)})
    differences = {name: difference(a, b) for name, a, b in zip(names, ours, theirs, strict=True)}
    print(network, len(product.layers), f"{max(differences.values()):.1e}")  # noqa: T201 - the table of the report
    assert names[-1] == session.get_outputs()[0].name
    assert max(differences.values()) <= TOLERANCE, differences
    for name, tensor in tensors.items():
        assert tensor == name or tensor.startswith(f"{name}/"), "tensors bear the layers' names"
    assert product.preprocessing is not None
    stated = parse_preprocessing(product.preprocessing)
    assert stated.size == (size, size)
    assert stated.mean == parse_preprocessing(MODES[network]).mean
