"""Trained Keras models found in the wild, against what Keras made of real images."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest

pytest.importorskip("h5py", reason="h5py is not installed")

from onnx_gradcam.exporters.finishing import finish_export
from onnx_gradcam.exporters.keras import read_keras

MODELS = {
    "fer2013_mini_XCEPTION.102-0.66.hdf5": (46, "2.0.5"),
    "mlperf_tiny_resnet8_cifar10.h5": (30, "2.4.0"),
    "st_mobilenetv1_050_224_flowers.h5": (89, "2.8.0"),
}


@pytest.mark.real
@pytest.mark.parametrize("name", MODELS)
def test_a_trained_model_gives_the_same_scores(name, real_data, tmp_path):
    product = read_keras(real_data / "models" / "keras" / name)
    assert (len(product.layers), product.version) == MODELS[name]
    assert product.preprocessing is None, "none of them is a network of keras.applications"
    finish_export(product).save(tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(real_data / "refs" / f"keras__{name}.npz") as stored:
        x, theirs = stored["x"], stored["y"]
    ours = session.run(None, {session.get_inputs()[0].name: x.transpose(0, 3, 1, 2)})[0]
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    for row in range(len(x)):
        alone = session.run(None, {session.get_inputs()[0].name: x[row : row + 1].transpose(0, 3, 1, 2)})[0]
        np.testing.assert_allclose(alone[0], ours[row], rtol=1e-4, atol=1e-6)


def test_neither_keras_nor_tensorflow_is_imported(repository):
    model = repository / "tests" / "oracles" / "keras" / "keras_sequential.keras"
    code = (
        "import sys; from onnx_gradcam.exporters.keras import read_keras; "
        f"read_keras({str(model)!r}).model.to_proto(); "
        "print([m for m in ('keras', 'tensorflow', 'tf_keras', 'torch', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
