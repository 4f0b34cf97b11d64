"""Models that leave batch, height and width open, at odd sizes and several batches.

The oracle is the same model with these sizes written into its input: nothing of it has to be guessed.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from autodiff.light import light_model
from support.graphs import freed, graph, run

from onnx_gradcam.editor.attachment import attach

SIZES = ((1, 97, 101), (5, 97, 101), (2, 225, 223))

# Maps of one branch round down where those of the other round up.
TWO_ROUNDINGS = graph(
    "a = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x, K) ar = Relu(a)"
    " m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) b = Conv(m, L) br = Sigmoid(b)"
    " p = GlobalAveragePool(ar) q = GlobalMaxPool(br) c = Concat<axis=1>(p, q) f = Flatten(c) y = Gemm(f, W)",
    inputs="float[N,3,H,W] x", K=(8, 3, 3, 3), L=(4, 3, 1, 1), W=(12, 4),
)  # fmt: skip
STRIDE_64 = graph(
    "a = Conv<strides=[8,8]>(x, K) ar = Relu(a) b = Conv<strides=[8,8]>(ar, L) br = Relu(b)"
    " p = GlobalAveragePool(br) f = Flatten(p) y = Gemm(f, W)",
    inputs="float[N,3,H,W] x", K=(4, 3, 8, 8), L=(6, 4, 8, 8), W=(6, 4),
)  # fmt: skip
RESIDUAL = graph(
    "a = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x, K) ar = Relu(a)"
    " b = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(ar, L) s = Conv<strides=[2,2]>(ar, S)"
    " u = Add(b, s) v = Relu(u) g = GlobalAveragePool(v) e = Conv(g, E) h = Sigmoid(e) w = Mul(v, h)"
    " p = ReduceMean<keepdims=0>(w, hw) t = Tanh(p) y = Gemm(t, W)",
    inputs="float[N,3,H,W] x",
    K=(6, 3, 3, 3), L=(8, 6, 3, 3), S=(8, 6, 1, 1), E=(8, 8, 1, 1), W=(8, 4), hw=[2, 3],
)  # fmt: skip
CEILED = graph(
    "a = Conv<kernel_shape=[3,3], strides=[2,2]>(x, K) ar = Relu(a)"
    " m = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(ar)"
    " d = Conv<kernel_shape=[3,3], dilations=[2,2], pads=[2,2,2,2], group=6>(m, D) dr = Elu(d)"
    " q = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(dr) p = GlobalAveragePool(q) f = Flatten(p)"
    " t = Tanh(f) y = Gemm(t, W)",
    inputs="float[N,3,H,W] x", K=(6, 3, 3, 3), D=(6, 1, 3, 3), W=(6, 4),
)  # fmt: skip
# Half of the map, as a decoder's input, resized to the size of the other half's source.
RESIZED = graph(
    "a = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x, K) ar = Relu(a)"
    " b = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(ar, L) br = Relu(b)"
    ' n = Shape(ar) r = Resize<mode="linear">(br, none, none, n) c = Concat<axis=1>(ar, r) k = Conv(c, M) kr = Relu(k)'
    " p = GlobalAveragePool(kr) f = Flatten(p) t = Tanh(f) y = Gemm(t, W)",
    inputs="float[N,3,H,W] x", K=(6, 3, 3, 3), L=(6, 6, 3, 3), M=(8, 12, 1, 1), W=(8, 4),
    none=np.zeros(0, np.float32),
)  # fmt: skip
MODELS = {
    "two roundings": TWO_ROUNDINGS,
    "stride 64": STRIDE_64,
    "residual": RESIDUAL,
    "ceiled pools": CEILED,
    "resized": RESIZED,
}
LAYERS = {"two roundings": ["ar", "br"], "resized": "br"}
"""The layers to explain, where they are not those that are chosen by themselves."""

LIGHT = ("densenet121", "inception_v1", "inception_v2", "resnet50", "squeezenet")


def pixels(rows: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 3, height, width)).astype(np.float32)


def declared(info: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim]


def check(source: onnx.ModelProto, rows: int, height: int, width: int, **choices) -> None:
    """The explained model with free sizes computes what that with fixed ones does, and the original's outputs."""
    free, fixed = freed(source), freed(source, (height, width), rows)
    proto = attach(free, **choices).to_proto()
    name = proto.graph.input[0].name
    feeds = {name: pixels(rows, height, width), "target_class": np.arange(rows) % 4}
    original = run(free, **{name: feeds[name]})
    explained = run(proto, **feeds)
    expected = run(attach(fixed, **choices).to_proto(), **feeds)
    for output, values in original.items():
        np.testing.assert_allclose(explained[output], values, rtol=1e-5, atol=1e-6)
    assert explained["heatmap"].shape == (rows, height, width)
    assert np.isfinite(explained["cam"]).all()
    scale = np.abs(expected["cam"]).max()
    assert scale > 0
    np.testing.assert_allclose(explained["cam"], expected["cam"], rtol=0, atol=2e-5 * scale)
    np.testing.assert_allclose(explained["heatmap"], expected["heatmap"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "gradcam++", "fullgrad", "saliency", "eigencam"])
@pytest.mark.parametrize("name", MODELS)
def test_small_models(name, method, size):
    if name == "stride 64" and min(size[1:]) < 128:
        size = (size[0], 2 * size[1], 2 * size[2] + 1)
    layers = ["auto"] if method in {"fullgrad", "saliency"} else LAYERS.get(name, "auto")
    check(MODELS[name], *size, method=method, layer=layers)


@pytest.mark.parametrize("architecture", LIGHT)
def test_architectures(architecture):
    source = light_model(architecture)
    check(source, 2, 97, 101, weights="gradient")
    if architecture in {"resnet50", "squeezenet"}:
        check(source, 1, 225, 223, weights="gradient")


@pytest.mark.parametrize("name", MODELS)
def test_no_symbol_of_our_own_is_written(name):
    proto = attach(MODELS[name], expose_activation=True, layer=LAYERS.get(name, "auto")).to_proto()
    written = {d for info in (*proto.graph.input, *proto.graph.output) for d in declared(info) if isinstance(d, str)}
    assert written <= {"N", "H", "W"}
    heatmap, cam = (next(o for o in proto.graph.output if o.name == output) for output in ("heatmap", "cam"))
    assert declared(heatmap) == ["N", "H", "W"]
    assert declared(cam) == ["N", 0, 0]
