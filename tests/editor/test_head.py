"""The head behind global pooling: what is proved linear, its closed form, and central differences."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.cam_oracle import numeric_map
from support.graphs import graph, images, run, weight

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.options import Options

BODY = "c = Conv(x, K) a = Relu(c)"
GAP = "p = GlobalAveragePool(a)"
FLAT = f"{GAP} f = Flatten(p)"
CONSTANTS = {
    "K": (6, 3, 3, 3),
    "K4": (4, 6, 1, 1),
    "W": (6, 4),
    "V": (4, 6),
    "B": (4,),
    "W1": (6, 1),
    "square": (6, 6),
    "gain": (6,),
    "gain4": (6, 1, 1),
    "bias": (6,),
    "seven": np.float32(7),
    "g": 1 + np.abs(weight("g", 6)),
    "v": 1 + np.abs(weight("v", 6)),
    "hw": [2, 3],
    "nhwc": [1, 2],
    "two": [0, 6],
    "split": [0, 2, 3],
    "W3": (3, 4),
    "all": [0, 1, 2, 3],
}


def model(tail: str, body: str = BODY, **kwargs):
    return graph(f"{body} {tail}", **{**CONSTANTS, **kwargs})


def row(weights: np.ndarray) -> np.ndarray:
    """The rows of classes 2 and 0."""
    return weights.T[[2, 0]]


W, V, K4, gain = weight("W", 6, 4), weight("V", 4, 6), weight("K4", 4, 6, 1, 1), weight("gain", 6)
g, v = CONSTANTS["g"], CONSTANTS["v"]

LINEAR = {
    "Gemm": (f"{FLAT} y = Gemm(f, W, B)", row(W) / 36),
    "Gemm, transposed and scaled": (f"{FLAT} y = Gemm<alpha=2.0, transB=1>(f, V)", 2 * V[[2, 0]] / 36),
    "MatMul and bias": (f"{FLAT} m = MatMul(f, W) y = Add(m, B)", row(W) / 36),
    "a convolution of one place": (f"{GAP} m = Conv(p, K4, B) y = Flatten(m)", K4[[2, 0], :, 0, 0] / 36),
    "window of all places": (
        "p = AveragePool<kernel_shape=[6, 6]>(a) f = Reshape(p, two) y = MatMul(f, W)",
        row(W) / 36,
    ),
    "ReduceMean": ("f = ReduceMean<keepdims=0>(a, hw) y = MatMul(f, W)", row(W) / 36),
    "ReduceMean, axes kept": ("p = ReduceMean(a, hw) f = Flatten(p) y = MatMul(f, W)", row(W) / 36),
    "ReduceSum": ("f = ReduceSum<keepdims=0>(a, hw) y = MatMul(f, W)", row(W)),
    "dropout and identities": (
        "d = Dropout(a) p = GlobalAveragePool(d) i = Identity(p) f = Flatten(i) e = Dropout(f) y = MatMul(e, W)",
        row(W) / 36,
    ),
    "constant factors": (
        f"{FLAT} h = Mul(f, gain) k = Div(h, seven) m = MatMul(k, W) s = Sub(m, B) y = Mul(s, seven)",
        row(W) * gain / 36,
    ),
    "a factor for each channel before flattening": (
        f"{GAP} h = Mul(gain4, p) f = Flatten(h) y = MatMul(f, W)",
        row(W) * weight("gain4", 6, 1, 1)[:, 0, 0] / 36,
    ),
    "batch normalisation": (
        f"{GAP} n = BatchNormalization<epsilon=0.5>(p, g, bias, bias, v) f = Flatten(n) y = MatMul(f, W)",
        row(W) * g / np.sqrt(v + 0.5) / 36,
    ),
    "no linear layer at all": ("p = GlobalAveragePool(a) y = Flatten(p)", np.eye(6)[[2, 0]] / 36),
}


@pytest.mark.parametrize(("tail", "rows"), LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("weights", ["linear", "gradient", "finite"])
def test_linear_heads(tail, rows, weights):
    source, x = model(tail, outputs="float[N,K] y"), images(2)
    work = make_plan(source)
    assert work.weights == "linear"
    assert work.head is not None
    assert work.head.linear
    explained = attach(source, weights=weights, layer="a", expose_activation=True)
    assert explained.metadata.weights == weights
    got = run(explained.to_proto(), x=x, target_class=np.array([2, 0]))
    cam = np.einsum("nk,nkhw->nhw", rows, got["a"])
    tolerance = 1e-3 if weights == "finite" else 1e-5
    np.testing.assert_allclose(got["cam"], cam, atol=tolerance * np.abs(cam).max())


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (f"{FLAT} h = Relu(f) y = MatMul(h, W)", "Relu behind the pooling is not linear"),
        (f"{FLAT} h = MatMul(f, square) y = MatMul(h, W)", "MatMul behind the pooling is not linear"),
        (f"{FLAT} h = Mul(f, f) y = MatMul(h, W)", "Mul behind the pooling is not linear"),
        (f"{FLAT} h = Div(seven, f) y = MatMul(h, W)", "Div behind the pooling is not linear"),
        (f"{FLAT} h = Sub(f, f) y = MatMul(h, W)", "Sub behind the pooling is not linear"),
        (f"{FLAT} h = Softmax(f) y = MatMul(h, W)", "Softmax behind the pooling is not linear"),
        (f"{FLAT} h = MatMul(f, W) k = MatMul(f, W) y = Add(h, k)", "several branches read the pooled vector"),
        (
            f"{GAP} m = Conv<pads=[1, 1, 1, 1]>(p, K4) q = GlobalAveragePool(m) y = Flatten(q)",
            "Conv behind the pooling is not linear",
        ),
        # A matrix over a part of the channels, several times.
        (
            f"{FLAT} s = Reshape(f, split) m = MatMul(s, W3) y = ReduceSum<keepdims=0>(m, one)",
            "Reshape behind the pooling is not linear",
        ),
    ],
)
def test_heads_that_are_not_proved_linear(tail, why):
    work = make_plan(model(tail, one=[1]), Options(layer="a"))
    assert work.head is not None
    assert not work.head.linear
    assert work.head.why == why
    assert work.weights == "gradient"
    with pytest.raises(UnsupportedError, match=f"--weights linear is not possible: {why}"):
        attach(model(tail, one=[1]), layer="a", weights="linear")


@pytest.mark.parametrize(
    "tail",
    [
        "f = Flatten(a) y = MatMul(f, W216)",
        "p = GlobalMaxPool(a) f = Flatten(p) y = MatMul(f, W)",
        # Windows that leave places out, or count some of the padding.
        "p = AveragePool<kernel_shape=[5, 5], strides=[2, 2]>(a) f = Flatten(p) y = MatMul(f, W)",
        "p = AveragePool<kernel_shape=[6, 6], pads=[0, 0, 1, 1], strides=[6, 6]>(a) f = Flatten(p) y = MatMul(f, W)",
        "s = Softmax<axis=1>(a) p = GlobalAveragePool(s) f = Flatten(p) y = MatMul(f, W)",
    ],
)
def test_what_does_not_begin_with_an_average_over_all_places_is_no_pooled_head(tail):
    work = make_plan(model(tail, W216=(216, 4)), Options(layer="a"))
    assert work.head is None
    assert work.weights == "gradient"


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize(
    "tail",
    [
        f"{FLAT} h = Tanh(f) y = MatMul(h, W)",
        f"{GAP} e = Conv(p, square4) h = HardSwish(e) f = Flatten(h) y = Gemm(f, W)",
        f"{FLAT} n = LayerNormalization(f, g, bias) y = MatMul(n, W)",
    ],
)
def test_finite_differences_whatever_the_size_of_the_activations(tail, scale):
    """The step is relative to the pooled values: neither rounding nor curvature gets the better of it."""
    source = model(tail, square4=(6, 6, 1, 1), K=weight("K", 6, 3, 3, 3) * np.float32(scale))
    x, classes = images(3), np.array([0, 3, 2])
    exact, finite = (
        run(attach(source, weights=w).to_proto(), x=x, target_class=classes)["cam"] for w in ("gradient", "finite")
    )
    biggest = np.abs(exact).max(axis=(1, 2), keepdims=True)
    # A saturated tanh has no slope left; what is left is rounding.
    assert (np.abs(finite - exact) <= 1e-2 * biggest + 1e-5 * scale).all()


def test_finite_differences_need_a_head_that_takes_any_batch():
    source = model(f"{FLAT} h = Tanh(f) y = MatMul(h, W)", inputs="float[2,3,8,8] x", outputs="float[2,4] y")
    got = run(attach(source, weights="finite").to_proto(), x=images(2))
    want = run(attach(source, weights="gradient").to_proto(), x=images(2))
    np.testing.assert_allclose(got["cam"], want["cam"], atol=1e-3 * np.abs(want["cam"]).max())


def inverting() -> onnx.ModelProto:
    """A regression behind a matrix inverse, an operator of ONNX Runtime that ONNX does not define."""
    body = f"{GAP} e = Conv(p, nine) m = Reshape(e, square) q = Add(m, eye) i = com.microsoft.Inverse(q) y = Flatten(i)"
    source = model(body, outputs="float[N,9] y", nine=(9, 6, 1, 1), square=[-1, 3, 3], eye=2 * np.eye(3, dtype="f"))
    source.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    source.graph.value_info.append(onnx.helper.make_tensor_value_info("i", onnx.TensorProto.FLOAT, ["N", 3, 3]))
    return source


@pytest.mark.parametrize("weights", ["finite", "gradient"])
def test_the_head_may_have_operators_that_onnx_does_not_define(weights):
    x, classes, source = images(2), np.array([1, 5]), inverting()
    got = run(
        attach(source, task="regression", weights=weights, method="hirescam").to_proto(), x=x, target_class=classes
    )
    want = numeric_map(source, "a", ["y"], lambda out: out["y"][[0, 1], classes], x, local=True)
    np.testing.assert_allclose(got["cam"], want, atol=2e-3 * np.abs(want).max())
