"""Cotangents within a window: the same numbers as those of whole maps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.graphs import graph, run

from onnx_gradcam.autodiff.backward import backward
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load

BN = {name: np.linspace(0.5, 1.5, 4, dtype=np.float32) for name in ("s", "b", "m", "v")}
WEIGHTS = {"W3": (4, 4, 3, 3), "W5": (4, 4, 5, 5), "W1": (4, 4, 1, 1), "D": (4, 1, 3, 3), "slope": (4, 1, 1), **BN}
HEADS = {
    "two convolutions": "a = Conv<pads=[1,1,1,1]>(x, W3) r = Relu(a) p = Conv<pads=[1,1,1,1]>(r, W3)",
    "gated": "a = Conv<pads=[2,2,2,2]>(x, W5) s1 = Sigmoid(a) r = Mul(a, s1) p = Conv(r, W1)",
    "depthwise, dilated": """
        a = Conv<pads=[2,2,2,2], dilations=[2,2], group=4>(x, D) r = LeakyRelu(a) p = Conv<pads=[1,1,1,1]>(r, W3)""",
    "padded on one side": 'a = Conv<pads=[2,0,0,2]>(x, W3) r = Tanh(a) p = Conv<auto_pad="SAME_LOWER">(r, W3)',
    "normalized": """
        a = Conv<pads=[1,1,1,1]>(x, W3) n = BatchNormalization(a, s, b, m, v) r = PRelu(n, slope)
        p = Conv<pads=[1,1,1,1]>(r, W3)""",
    "shortcut": """
        a = Conv<pads=[1,1,1,1]>(x, W3) r = HardSwish(a) c = Conv<pads=[1,1,1,1]>(r, W3) z = Add(c, r)
        p = Conv<pads=[1,1,1,1]>(z, W3)""",
    "channels weighted by all positions": """
        a = Conv<pads=[1,1,1,1]>(x, W3) g0 = GlobalAveragePool(a) g1 = Sigmoid(g0) r = Mul(a, g1)
        p = Conv<pads=[1,1,1,1]>(r, W3)""",
    "pooled": """
        a = Conv<pads=[1,1,1,1]>(x, W3) r = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a)
        p = Conv<pads=[1,1,1,1]>(r, W3)""",
    "a quotient": "e = Exp(x) a = Conv<pads=[1,1,1,1]>(e, W3) q = Abs(a) o = Exp(q) r = Div(a, o) p = Conv(r, W1)",
    "not of this size": "a = Conv<pads=[1,1,1,1]>(x, W3) r = Relu(a) p = Conv(r, W3)",
}  # fmt: skip
SPOTS = [(0, 0), (3, 5), (6, 8), (6, 0)]


def gradients(body: str, *, sizes: str, points: bool) -> onnx.ModelProto:
    """A model of the cotangent of `x` for a given cotangent of `p`."""
    names = {name: value for name, value in WEIGHTS.items() if name in body.replace("(", " ").replace(",", " ")}
    model = load(graph(body, inputs=f"float[N,4,{sizes}] x, float[N,4,h,w] seed", outputs="float[N,4,h,w] p", **names))
    t = Builder(model)
    x, p, seed = t.find("x"), t.find("p"), t.find("seed")
    assert x is not None
    assert p is not None
    assert seed is not None
    t.refine(seed, p.shape)
    (g,) = backward(t, {p: seed}, [x], points={p.core} if points else ())
    t.output(g, "gradient")
    t.finish()
    return model.to_proto()


@pytest.mark.parametrize("sizes", ["7,9", "H,W"])
@pytest.mark.parametrize("body", HEADS.values(), ids=HEADS)
def test_a_window_has_the_numbers_of_the_whole_map(body, sizes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((len(SPOTS) + 1, 4, 7, 9)).astype(np.float32)
    models = [gradients(body, sizes=sizes, points=points) for points in (False, True)]
    p = run(models[0], x=x, seed=np.zeros((len(x), 4, *((5, 7) if "Conv(r, W3)" in body else (7, 9))), np.float32))["p"]
    seed = np.zeros(p.shape, np.float32)
    for i, (row, column) in enumerate(SPOTS):
        seed[i, :, min(row, p.shape[2] - 1), min(column, p.shape[3] - 1)] = rng.standard_normal(4)
    whole, window = (run(model, x=x, seed=seed)["gradient"] for model in models)
    np.testing.assert_allclose(window, whole, rtol=0, atol=1e-6 * np.abs(whole).max())
    assert np.abs(whole[:-1]).max() > 0
    assert not window[-1].any()  # the last sample has no point
    assert any(node.op_type == "Sign" for node in models[1].graph.node)


def test_what_is_computed_is_as_large_as_the_window():
    body = "a = Conv<pads=[1,1,1,1]>(x, W3) s1 = Sigmoid(a) r = Mul(a, s1) p = Conv<pads=[1,1,1,1]>(r, W3)"
    model = onnx.shape_inference.infer_shapes(gradients(body, sizes="40,50", points=True))
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    spread = [shapes[node.output[0]][2:] for node in model.graph.node if node.op_type == "ConvTranspose"]
    assert spread == [[3, 3], [5, 5]]


def test_a_window_as_large_as_the_map_is_the_map():
    body = "a = Conv<pads=[2,2,2,2]>(x, W5) p = Relu(a)"
    seed = np.zeros((1, 4, 3, 3), np.float32)
    seed[0, :, 1, 1] = 1
    x = np.random.default_rng(1).standard_normal((1, 4, 3, 3)).astype(np.float32)
    whole, window = (
        run(gradients(body, sizes="3,3", points=points), x=x, seed=seed)["gradient"] for points in (False, True)
    )
    np.testing.assert_allclose(window, whole, rtol=0, atol=1e-6 * np.abs(whole).max())
