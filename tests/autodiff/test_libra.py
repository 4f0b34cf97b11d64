"""LibraGrad: the image times its gradient, plus what is added on the way, is the score; and its rules by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from support.helpers import needs_opset, quiet_session

from onnx_gradcam.autodiff.backward import backward, carries_gradient, missing_rules
from onnx_gradcam.autodiff.modifiers import MODIFIERS
from onnx_gradcam.autodiff.offsets import offset
from onnx_gradcam.autodiff.registry import rules
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.paths import between, reached_from

RNG = np.random.default_rng(3)
X = RNG.standard_normal((2, 6, 4)).astype(np.float32)
WEIGHTS = {
    **{name: RNG.standard_normal((4, 4)).astype(np.float32) for name in ("A", "B", "C")},
    **{name: RNG.standard_normal(4).astype(np.float32) for name in ("u", "v", "w")},
    "token": RNG.standard_normal((2, 1, 4)).astype(np.float32),
    "kernel": RNG.standard_normal((6, 6, 3)).astype(np.float32),
    "channels": RNG.standard_normal(6).astype(np.float32),
    "positive": np.abs(RNG.standard_normal(6)).astype(np.float32) + 0.5,
    "mask": RNG.standard_normal((6, 6)).astype(np.float32),
    "low": np.float32(-0.5),
    "high": np.float32(0.7),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "three": np.float32(3),
    "root": np.float32(np.sqrt(2)),
    "small": np.float32(1e-5),
    "zero": np.float32(0),
    "last": np.array([-1]),
    "pads": np.array([0, 1, 0, 0, 2, 0]),
    "rows": np.array([[0, 2], [1, 3]]),
    "updates": RNG.standard_normal((2, 4)).astype(np.float32),
}


def single(model: str, opset: int = 20) -> onnx.ModelProto:
    """`y`, computed from `x`, `float32 [2, 6, 4]`, and `WEIGHTS`."""
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[2,6,4] x) => (float y) {{ {model} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(WEIGHTS[n], n) for n in WEIGHTS if n in read)
    return onnx.shape_inference.infer_shapes(proto)


def libra(model: onnx.ModelProto, modifier: str | None = "libra"):
    """The cotangent of `x` for a random one of `y`, the score, and what is left of it."""
    t = Builder(load(model))
    x, y = t.find("x"), t.find("y")
    moving = reached_from(t.nodes, [x.core], carries_gradient(t))
    table = rules()
    table = table if modifier is None else MODIFIERS[modifier](table, moving)
    assert missing_rules(t, y, [x], table) == []
    path, _ = between(t.nodes, [x.core], [y.core], carries_gradient(t, table))
    added = {t.wrap(n.outputs[0]): b for n in path if (b := offset(t, n, moving, chords=True)) is not None}
    seed = t.input("seed", np.float32, y.shape)
    gradient, *cotangents = backward(t, {y: seed}, [x, *added], table)
    shares = [t.sum(t.op("Mul", x, gradient), keepdims=False)]
    shares += [t.sum(t.op("Mul", g, b), keepdims=False) for g, b in zip(cotangents, added.values(), strict=True)]
    for name, value in (("g", gradient), ("all", t.op("Sum", *shares)), ("score", t.sum(y * seed, keepdims=False))):
        t.output(value, name)
    t.finish()
    session = quiet_session(t.model.to_proto())
    cotangent = np.random.default_rng(1).standard_normal([d if isinstance(d, int) else 1 for d in y.shape])
    g, whole, score = session.run(["g", "all", "score"], {"x": X, "seed": cotangent.astype(np.float32)})
    return g, float(score), float(score - whole), cotangent


SHIFTED = "h = Add(x, u) "
COMPLETE = {
    **{
        kind: f"{SHIFTED} p = {kind}(h) y = MatMul(p, A)"
        for kind in ("Relu", "LeakyRelu", "Gelu", "HardSwish", "Mish", "Elu", "Celu", "Selu", "Softplus", "Softsign")
    },
    **{kind: f"{SHIFTED} p = {kind}(h) y = MatMul(p, A)" for kind in ("Tanh", "Sigmoid", "HardSigmoid", "Abs")},
    "Gelu by tanh": f'{SHIFTED} y = Gelu<approximate="tanh">(h)',
    "Clip": f"{SHIFTED} p = Clip(h, low, high) y = MatMul(p, A)",
    "Max of a constant": f"{SHIFTED} p = Max(h, half) y = Min(p, one)",
    "Sub": "a = Sub(x, u) b = Sub(v, a) y = Sum(b, w, a)",
    "Gelu in parts": f"{SHIFTED} d = Div(h, root) e = Erf(d) s = Add(e, one) m = Mul(h, s) y = Mul(m, half)",
    "SiLU": f"{SHIFTED} s = Sigmoid(h) y = Mul(h, s)",
    "SwiGLU": f"{SHIFTED} a = MatMul(h, A) b = MatMul(h, B) s = Sigmoid(a) k = Mul(a, s) y = Mul(k, b)",
    "squeeze and excite": f"{SHIFTED} p = ReduceMean(h, last) f = MatMul(h, A) s = Sigmoid(p) y = Mul(s, f)",
    "square": f"{SHIFTED} y = Mul(h, h)",
    "attention": f"{SHIFTED} q = MatMul(h, A) k = MatMul(h, B) o = MatMul(h, C) kt = Transpose<perm=[0,2,1]>(k) "
    "l = MatMul(q, kt) m = Add(l, mask) s = Softmax(m) n = IsNaN(s) k0 = Where(n, zero, s) y = MatMul(k0, o)",
    "attention by Einsum": f'{SHIFTED} l = Einsum<equation="bic,bjc->bij">(h, h) s = Softmax(l) '
    'y = Einsum<equation="bij,bjc->bic">(s, h)',
    "linear attention": f"{SHIFTED} t = Transpose<perm=[0,2,1]>(h) l = MatMul(h, t) y = MatMul(l, h)",
    "LayerNormalization": f"{SHIFTED} y = LayerNormalization(h, v, w)",
    "norm in parts": f"{SHIFTED} m = ReduceMean(h, last) c = Sub(h, m) q = Mul(c, c) r = ReduceMean(q, last) "
    "e = Add(r, small) s = Sqrt(e) n = Div(c, s) i = Mul(n, v) y = Add(i, w)",
    "RMS by Reciprocal": f"{SHIFTED} q = Mul(h, h) r = ReduceMean(q, last) s = Sqrt(r) i = Reciprocal(s) y = Mul(h, i)",
    "RMS by a quotient": f"{SHIFTED} q = Mul(h, h) r = ReduceMean(q, last) s = Sqrt(r) i = Div(one, s) y = Mul(h, i)",
    "InstanceNormalization": f"{SHIFTED} y = InstanceNormalization(h, channels, positive)",
    "LpNormalization": f"{SHIFTED} y = LpNormalization(h)",
    "MeanVarianceNormalization": f"{SHIFTED} y = MeanVarianceNormalization<axes=[1,2]>(h)",
    "LRN": f"{SHIFTED} i = Unsqueeze(h, last) y = LRN<size=3, alpha=0.5>(i)",
    "BatchNormalization": f"{SHIFTED} y = BatchNormalization(h, channels, channels, channels, positive)",
    "Conv": f"{SHIFTED} y = Conv<pads=[1,1]>(h, kernel, channels)",
    "Concat": f"{SHIFTED} y = Concat<axis=1>(token, h)",
    "Pad": f"{SHIFTED} y = Pad(h, pads, three)",
    "ScatterND": f"{SHIFTED} y = ScatterND(h, rows, updates)",
    "Pow": f"{SHIFTED} y = Pow(h, three)",
    "Sqrt": f"{SHIFTED} a = Abs(h) y = Sqrt(a)",
    "norms": f"{SHIFTED} a = ReduceL2(h, last) b = ReduceSumSquare(h, last) c = Reciprocal(b) y = Add(a, c)",
}


@pytest.mark.parametrize("name", COMPLETE)
def test_what_arrives_at_the_image_and_what_is_added_is_the_score(name):
    _, score, left, _ = libra(single(COMPLETE[name]))
    assert abs(score) > 1e-2
    assert abs(left) <= 2e-5 * max(abs(score), 1.0)


@pytest.mark.parametrize("kind", ["Gelu", "Tanh", "LayerNormalization", "attention", "SwiGLU"])
def test_the_gradient_as_it_is_does_not_add_up(kind):
    _, score, left, _ = libra(single(COMPLETE[kind]), None)
    assert abs(left) > 1e-2 * abs(score)


@needs_opset(23)
def test_newer_operators():
    for body in ("h = Add(x, u) y = RMSNormalization(h, v)", "h = Add(x, u) y = Swish<alpha=1.5>(h)"):
        _, score, left, _ = libra(single(body, 24 if "Swish" in body else 23))
        assert abs(left) <= 1e-5 * max(abs(score), 1.0)


def test_the_rules_by_hand():
    """An activation passes its chord, attention only its values, a product its halves."""
    g, _, _, c = libra(single("y = Gelu(x)"))
    chord = quiet_session(single("y = Gelu(x)")).run(None, {"x": X})[0] / X
    np.testing.assert_allclose(g, c * chord, rtol=1e-4)
    g, _, _, c = libra(single("s = Sigmoid(x) y = Mul(s, x)"))
    np.testing.assert_allclose(g, c / (1 + np.exp(-X)), rtol=1e-5)
    body = "t = Transpose<perm=[0,2,1]>(x) l = MatMul(x, t) s = Softmax(l) y = MatMul(s, x)"
    g, _, _, c = libra(single(body))
    logits = X @ X.transpose(0, 2, 1)
    attention = np.exp(logits - logits.max(-1, keepdims=True))
    attention /= attention.sum(-1, keepdims=True)
    np.testing.assert_allclose(g, attention.transpose(0, 2, 1) @ c, rtol=1e-4, atol=1e-5)
    g, _, _, c = libra(single("a = MatMul(x, A) b = MatMul(x, B) y = Mul(a, b)"))
    a, b = X @ WEIGHTS["A"], X @ WEIGHTS["B"]
    np.testing.assert_allclose(g, (c * b / 2) @ WEIGHTS["A"].T + (c * a / 2) @ WEIGHTS["B"].T, rtol=1e-4, atol=1e-5)


def test_attention_can_be_differentiated_by_itself():
    """What would flow into it is told, and nothing flows on."""
    model = single("t = Transpose<perm=[0,2,1]>(x) l = MatMul(x, t) s = Softmax(l) y = MatMul(s, x)")
    t = Builder(load(model))
    x, s, y = t.find("x"), t.find("s"), t.find("y")
    table = MODIFIERS["libra"](rules(), reached_from(t.nodes, [x.core], carries_gradient(t)))
    (gradient,) = backward(t, {y: t.full_like(y, 1.0)}, [s], table)
    t.output(gradient, "g")
    t.finish()
    got = quiet_session(t.model.to_proto()).run(["g"], {"x": X})[0]
    np.testing.assert_allclose(got, np.ones((2, 6, 4)) @ X.transpose(0, 2, 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("y = Sin(x)", "Sin"),
        ("y = Exp(x)", "Exp"),
        ("y = Softmax(x)", "a softmax that is no attention map; explain the logit with --score logit"),
        ("a = ReduceMean(x, last) y = Gather(a, rows)", None),
        ("s = ReduceMean<keepdims=0>(x) y = PRelu(x, s)", "PRelu with parameters computed from the image"),
    ],
)
def test_operators_without_a_rule_are_named(body, what):
    t = Builder(load(single(body)))
    x, y = t.find("x"), t.find("y")
    table = MODIFIERS["libra"](rules(), reached_from(t.nodes, [x.core], carries_gradient(t)))
    problems = missing_rules(t, y, [x], table)
    if what is None:
        assert problems == []
    else:
        assert problems[0].startswith(f"the modifier libra has no rule for {what} (node ")


def test_a_gate_needs_no_rule():
    """What is constant in the backward pass is not differentiated, so its operators are of no matter."""
    _, score, left, _ = libra(single("s = Sin(x) e = Exp(s) h = Add(x, u) y = Mul(h, e)"))
    assert abs(left) <= 1e-5 * max(abs(score), 1.0)
