"""The precision of gradients: the range of float16, and whole classifiers in every type.

ONNX Runtime's CPU provider has no kernel for convolutions of bfloat16 and float64: ONNX's reference evaluator computes
what it cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto
from support.double import Array, exact_gradient, normal
from support.graphs import graph, weight
from support.helpers import quiet_session

from onnx_gradcam.autodiff.backward import backward
from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.precision import float32_cotangents
from onnx_gradcam.autodiff.reference import evaluate, evaluator
from onnx_gradcam.autodiff.registry import rules
from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load
from onnx_gradcam.options import GradDtype

# ----- the range of float16 ------------------------------------------------------


def half_graph(body: str, rows: str = "N", **constants: Any) -> onnx.ModelProto:
    return graph(body, inputs=f"float16[{rows},4,8,8] x", outputs=f"float16[{rows},3] y", dtype=np.float16, **constants)


POOLED = (
    "r = Relu(x) p = GlobalAveragePool(r) f = Flatten(p) a = MatMul(f, W) b = Mul(a, S) c = Relu(b) d = Mul(c, S)"
    " e = Relu(d) y = Mul(e, S)"
)
"""The score is a millionth of the pooled activations' sums."""

GROWING = (
    "a = Mul(x, K) b = Relu(a) c = Neg(b) d = Neg(c) e = Identity(d) f = Mul(e, K) g = Relu(f) h = Neg(g) i = Neg(h)"
    " j = GlobalMaxPool(i) l = Flatten(j) y = MatMul(l, W)"
)
"""The score grows a million times as fast as the image."""


def cotangents(model: onnx.ModelProto, wrt: str, feeds: Mapping[str, Array], grad_dtype: GradDtype | None) -> Array:
    """The float32 cotangent of a tensor for a seed of the first class; without factors for `None`."""
    t = Builder(load(model))
    score, x = t.find("y"), t.find(wrt)
    assert score is not None
    assert x is not None
    row = t.const(np.array([[1, 0, 0]]), score.dtype)
    seed = t.expand_like(row, score)
    if grad_dtype is None:
        (g,) = (t.cast(v, np.float32) for v in backward(t, {score: seed}, [x]))
    else:
        (g,) = float32_cotangents(t, score, seed, [x], rules(), grad_dtype)
    t.output(g, "gradient")
    t.finish()
    proto = t.model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    (by_runtime,) = quiet_session(proto).run(["gradient"], dict(feeds))
    (by_reference,) = evaluate(evaluator(proto), feeds, ["gradient"])
    assert by_runtime.dtype == by_reference.dtype == np.float32
    # The reference evaluator rounds every intermediate number to float16, ONNX Runtime on a CPU need not.
    if grad_dtype is not None:
        close(by_runtime, by_reference, 0.01)
    return by_reference


def close(got: Array, want: Array, tolerance: float) -> None:
    """The difference in each row is small beside the row's largest number."""
    for row, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(row, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def exact(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    v = np.zeros((len(feeds["x"]), 3))
    v[:, 0] = 1
    return exact_gradient(model, feeds, v)[0]


def image(rows: int = 2, size: float = 1.0) -> Array:
    return (np.abs(normal(rows, 4, 8, 8)) * size).astype(np.float16)


def test_a_cotangent_below_the_range_of_float16():
    model = half_graph(POOLED, W=np.abs(normal(4, 3)).astype(np.float16), S=np.array(2.0**-7, np.float16))
    feeds = {"x": image()}
    want = exact(model, feeds)
    assert 0 < np.abs(want).max() < 2.0**-25
    assert not cotangents(model, "x", feeds, None).any(), "float16 alone would do: the test shows nothing"
    for grad_dtype in ("model", "float32"):
        close(cotangents(model, "x", feeds, grad_dtype), want, 2e-3)


def test_a_cotangent_beyond_the_range_of_float16():
    model = half_graph(GROWING, W=(4, 3), K=np.array(1000, np.float16))
    feeds = {"x": image(size=2e-3)}
    want = exact(model, feeds)
    assert np.abs(want).max() > 1e5
    assert not np.isfinite(cotangents(model, "x", feeds, None)).all()
    for grad_dtype in ("model", "float32"):
        close(cotangents(model, "x", feeds, grad_dtype), want, 2e-3)


STEEP = (
    "r = Relu(x) p = GlobalAveragePool(r) f = Flatten(p) a = MatMul(f, W) b = Mul(a, a) c = Mul(b, a) d = Relu(c)"
    " e = Relu(d) y = Mul(e, S)"
)
"""The gradient of the score grows as the square of the activations."""


def steep(rows: str) -> onnx.ModelProto:
    weights = np.abs(normal(4, 3)).astype(np.float16)
    return half_graph(STEEP, rows, W=weights, S=np.array(0.5, np.float16))


@pytest.mark.parametrize("grad_dtype", ["model", "float32"])
def test_each_row_has_its_own_range(grad_dtype):
    """One row's gradient is a million times the other's."""
    rows = np.concatenate([image(1, 2.0**-6), image(1, 16.0)])
    together = cotangents(steep("N"), "x", {"x": rows}, grad_dtype)
    for i in (0, 1):
        want = exact(steep("N"), {"x": rows[i : i + 1]})
        np.testing.assert_array_equal(together[i], cotangents(steep("N"), "x", {"x": rows[i : i + 1]}, grad_dtype)[0])
        close(together[i : i + 1], want, 5e-3)
    assert np.abs(together[1]).max() > 5e5 * np.abs(together[0]).max() > 0


@pytest.mark.parametrize("rows", ["N", "3"])
def test_a_row_that_is_no_number_leaves_the_others_as_they_are(rows):
    """Also where the batch is of fixed size, and all rows have one factor."""
    x = np.concatenate([image(2), np.full((1, 4, 8, 8), np.nan, np.float16)])
    got = cotangents(steep(rows), "x", {"x": x}, "model")
    close(got[:2], exact(steep("N"), {"x": x[:2]}), 5e-3)


# ----- whole classifiers ---------------------------------------------------------

CLASSIFIER = (
    "c = Conv<pads=[1,1,1,1]>(x, K, B) r = Relu(c) m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)"
    " d = Conv<pads=[1,1,1,1]>(m, L) s = Sigmoid(d) p = GlobalAveragePool(s) f = Flatten(p) y = Gemm(f, W)"
)
CODES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "double": np.float64}


def classifier(kind: str) -> onnx.ModelProto:
    """The same rounded weights in every type."""
    weights = {"K": (6, 4, 3, 3), "B": (6,), "L": (5, 6, 3, 3), "W": (5, 3)}
    rounded = {k: weight(k, *shape).astype(ml_dtypes.bfloat16).astype(CODES[kind]) for k, shape in weights.items()}
    return graph(CLASSIFIER, inputs=f"{kind}[N,4,8,8] x", outputs=f"{kind}[N,3] y", opset=22, **rounded)


def explain(kind: str, x: Array, **choices: Any) -> dict[str, Array]:
    """What an explained classifier gives, by the reference evaluator: no other runs every type."""
    proto = attach(classifier(kind), **choices).to_proto()
    onnx.checker.check_model(proto, full_check=True)
    names = [o.name for o in proto.graph.output]
    feeds = {"x": x.astype(CODES[kind]), "target_class": np.array([1])}
    return dict(zip(names, evaluate(evaluator(proto), feeds), strict=True))


@pytest.mark.parametrize("layer", ["r", "s"])
@pytest.mark.parametrize("grad_dtype", ["model", "float32"])
@pytest.mark.parametrize(("kind", "tolerance"), [("float16", 5e-3), ("bfloat16", 5e-2), ("double", 1e-6)])
def test_the_maps_of_a_classifier_in_every_type(kind, tolerance, grad_dtype, layer):
    x = normal(2, 4, 8, 8).astype(ml_dtypes.bfloat16).astype(np.float32)
    want = explain("float", x, weights="gradient", layer=layer)
    got = explain(kind, x, weights="gradient", layer=layer, grad_dtype=grad_dtype)
    for name in ("cam", "heatmap"):
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], want[name], atol=tolerance * np.abs(want[name]).max())
    assert got["y"].dtype == CODES[kind]


def test_float32_stores_no_weight_a_second_time_and_casts_nothing_twice():
    wide = attach(classifier("float16"), weights="gradient", layer="r", grad_dtype="float32").to_proto()
    narrow = attach(classifier("float16"), weights="gradient", layer="r").to_proto()
    sizes = [sorted(onnx.numpy_helper.to_array(w).nbytes for w in p.graph.initializer) for p in (wide, narrow)]
    assert [n for n in sizes[0] if n > 100] == [n for n in sizes[1] if n > 100] == [432, 540]
    casts = [(n.input[0], n.attribute[0].i) for n in wide.graph.node if n.op_type == "Cast"]
    assert len(casts) == len(set(casts))
    kinds = {t.name: t.type.tensor_type.elem_type for t in onnx.shape_inference.infer_shapes(wide).graph.value_info}
    cotangents_ = [n for n in wide.graph.node if n.op_type == "ConvTranspose"]
    assert cotangents_
    assert {kinds[n.output[0]] for n in cotangents_} == {TensorProto.FLOAT}


def test_the_cpu_profile_mirrors_weights_behind_a_cast():
    x = {"x": normal(2, 4, 8, 8).astype(np.float16)}
    maps, counts = [], []
    for profile in ("portable", "cpu"):
        proto = attach(
            classifier("float16"), weights="gradient", layer="r", grad_dtype="float32", profile=profile
        ).to_proto()
        counts.append(sum(n.op_type == "ConvTranspose" for n in proto.graph.node))
        maps += quiet_session(proto).run(["cam"], x)
    assert counts[1] == counts[0] - 1, "the one that is left belongs to the pool"
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-5 * np.abs(maps[0]).max())


def test_a_float32_model_is_explained_by_the_same_nodes():
    protos = [attach(classifier("float"), weights="gradient", grad_dtype=d).to_proto() for d in ("model", "float32")]
    assert protos[0].graph == protos[1].graph


def test_an_explained_model_says_what_its_gradient_is_computed_in():
    assert attach(classifier("float16")).metadata.grad_dtype == "model"
    assert attach(classifier("float16"), grad_dtype="float32").metadata.grad_dtype == "float32"


def test_a_refusal_names_the_tensor_of_the_model():
    training = "r = Relu(x) d = Dropout(r, A, T) f = Flatten(d) y = MatMul(f, W)"
    model = half_graph(training, W=(256, 3), A=np.array(0.5, np.float16), T=np.array(True))
    with pytest.raises(UnsupportedError, match="Cast/d"):
        gradient_model(model, ["x"], dtype=np.float32)
