"""TFLite models: what is refused without TensorFlow, layer names, real quantised models against their references."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import onnx
import pytest
from support.fake_python import interpreter
from support.graphs import graph, run

from onnx_gradcam import attach
from onnx_gradcam.errors import ExportError, InputError
from onnx_gradcam.exporters.elsewhere import read_tflite
from onnx_gradcam.exporters.finishing import finish_export

needs_tensorflow = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tensorflow", "tf2onnx"))), reason="needs TensorFlow and tf2onnx"
)


@pytest.mark.parametrize("content", [None, b"", b"TFL3", b"\x1c\x00\x00\x00ONNX and more"])
def test_files_that_are_no_tflite_models(content, tmp_path):
    path = tmp_path / "m.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        InputError if content is None else ExportError, match=r"m\.tflite: (cannot be read|not a TFLite model)"
    ):
        read_tflite(path)


@pytest.mark.skipif(importlib.util.find_spec("tf2onnx") is not None, reason="tf2onnx is installed")
def test_what_it_takes_is_said(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"\x1c\x00\x00\x00TFL3 and more")
    with pytest.raises(ExportError, match=r"'tf2onnx' is missing .* -m pip install tensorflow tf2onnx"):
        read_tflite(tmp_path / "m.tflite")


QUANTISED = """
    c = Conv(x, w)
    r = Relu(c)
    q = QuantizeLinear(r, scale, zero)
    back = DequantizeLinear(q, scale, zero)
    s = Conv(back, v)
    sq = QuantizeLinear(s, scale, zero)
    one = DequantizeLinear(sq, scale, zero)
    two = DequantizeLinear(sq, scale, zero)
    sum = Add(one, two)
    p = GlobalAveragePool(sum)
    f = Flatten(p)
    y = Gemm(f, d)
"""
NAMES = {
    "q": "net/relu_1/Relu;net/bn_1/FusedBatchNormV3;net/conv_1/Conv2D",
    "back": "net/relu_1/Relu;net/bn_1/FusedBatchNormV3;net/conv_1/Conv2D_dequant",
    "sq": "net/conv_2/BiasAdd;net/conv_2/Conv2D1",
    "sum": "net/add/add_prequant__12:0",
}


@pytest.mark.skipif(os.name == "nt", reason="scripts with a first line")
def test_layers_are_read_off_fused_names(tmp_path):
    model = graph(QUANTISED, w=(5, 3, 3, 3), v=(5, 5, 3, 3), d=(5, 4), scale=np.float32(0.1), zero=np.int8(0))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [NAMES.get(name, name) for name in names]
    onnx.save(model, tmp_path / "made.onnx")
    (tmp_path / "m.tflite").write_bytes(b"\x1c\x00\x00\x00TFL3 and more")
    body = f"import shutil; shutil.copy({str(tmp_path / 'made.onnx')!r}, folder / 'model.onnx'); answer()"
    product = read_tflite(tmp_path / "m.tflite", python=interpreter(tmp_path, body))
    assert {name: (layer.tensor, layer.kind) for name, layer in product.layers.items()} == {
        # Dequantised once: those numbers. Several times: the numbers before they are rounded.
        "relu_1": (NAMES["back"], "Relu"),
        "conv_2": ("s", "BiasAdd"),
        "add": (NAMES["sum"], "add"),
    }
    made = finish_export(product, "conv_2")
    assert made.target == "conv_2"
    assert list(made.carried.layers) == ["relu_1", "conv_2", "add"]


@pytest.mark.real
@pytest.mark.tensorflow
@needs_tensorflow
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mlperf_tiny_resnet8_int8", ("activation_2", "conv2d_5", "activation_6")),
        ("st_mobilenetv1_050_224_flowers_int8", ("conv_pw_1_relu", "conv_dw_6_relu", "conv_pw_13_relu")),
    ],
)
def test_real_quantised_models(name, layers, real_data):
    made = finish_export(read_tflite(real_data / "models" / "tflite" / f"{name}.tflite"), layers[-1])
    proto = made.to_proto()
    ref = np.load(real_data / "refs" / f"tflite__{name}.tflite.npz")
    results = run(proto, **{made.image: ref["x"]})
    assert np.array_equal(results[made.score], ref["y"]), "TFLite's own numbers, bit for bit"
    assert made.target == layers[-1]
    assert made.carried.score_kind == "softmax"
    for layer in layers:
        explained = attach(proto, layer=layer)
        results = run(explained.to_proto(), **{made.image: ref["x"]})
        assert np.array_equal(results[made.score], ref["y"])
        assert np.isfinite(results["cam"]).all()
        assert results["heatmap"].max() <= 1
