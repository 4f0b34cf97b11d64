"""All networks of gluon's model zoo against MXNet 1.9.1, and its Grad-CAM."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.exporters.mxnet import read_mxnet
from onnx_gradcam.runtime.session import Session

from . import framework

pytestmark = pytest.mark.mxnet

SMALL, LARGE = 64, 224
SIDES = {
    **{f"resnet{depth}_v{version}": SMALL for version in (1, 2) for depth in (18, 34, 50, 101, 152)},
    **{f"mobilenet{width}": SMALL for width in ("1.0", "0.75", "0.5", "0.25")},
    **{f"mobilenetv2_{width}": SMALL for width in ("1.0", "0.75", "0.5", "0.25")},
    **{f"vgg{depth}{norm}": LARGE for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
    **{f"densenet{depth}": LARGE for depth in (121, 161, 169, 201)},
    "alexnet": LARGE,
    "squeezenet1.0": LARGE,
    "squeezenet1.1": LARGE,
    "inceptionv3": 299,
}


def image(side: int, rows: int) -> np.ndarray:
    return np.random.default_rng(0).random((rows, 3, side, side), dtype=np.float32)


def test_the_zoo_is_complete():
    assert len(SIDES) == 34


@pytest.mark.parametrize("name", SIDES)
def test_a_network_of_the_zoo(name, tmp_path):
    side = SIDES[name]
    x = image(side, 2 if side == SMALL else 1)
    files = framework.exported(name, tmp_path, x)
    product = read_mxnet(*files)
    size = ("height", "width") if side == SMALL else (side, side)
    assert tuple(product.model.shape("data")) == ("batch", 3, *size)
    assert product.preprocessing is not None
    inside = [node for node, layer in product.layers.items() if layer.tensor == node and len(layer.shape) == 4]
    chosen = [inside[len(inside) * part // 4] for part in (1, 2, 3)] + inside[-1:]
    tensors = {output.name: output for node in product.model.core.graph for output in node.outputs}
    product.model.core.graph.outputs.extend(
        tensors[node] for node in dict.fromkeys(chosen) if not tensors[node].is_graph_output()
    )
    path = tmp_path / "net.onnx"
    product.model.save(path)
    del product
    gc.collect()
    want = framework.computed(files, x, list(dict.fromkeys(chosen)))
    got = Session(path).run({"data": x})
    assert len(want) >= 4
    assert set(got) == set(want)
    for node, value in want.items():
        assert np.abs(got[node] - value).max() <= 1e-5 * np.abs(value).max(), node
    for path in tmp_path.iterdir():
        path.unlink()


@pytest.mark.parametrize("node", ["stage4__plus2", "relu1_fwd"])
def test_grad_cam_is_mxnets(node, tmp_path):
    x = image(224, 2)
    files = framework.exported("resnet50_v2", tmp_path, x)
    product = read_mxnet(*files)
    layer = next(name for name in product.layers if name.endswith(f"_{node}"))
    path = tmp_path / "net.onnx"
    product.model.save(path)
    explained = tmp_path / "explained.onnx"
    attach(path, layer=product.layers[layer].tensor).save(explained)
    want = framework.grad_cam(files, layer, 3, x)
    got = Session(explained).run({"data": x, "target_class": np.array([3])})["cam"]
    assert want.shape == got.shape == (2, 7, 7)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
