"""Gradients of float16, bfloat16 and float64 models, in the model's own type and in float32.

ONNX Runtime's CPU provider computes float16 through float32, moves bfloat16 about but does not compute in it, and has
no float64 kernel for convolutions and average pools: what it cannot run, ONNX's reference evaluator does. Gradients in
float64 are what `test_corpus` checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from autodiff.corpus import Case, cases, operators, untagged_cases, with_constants
from onnx import TensorProto
from support.graphs import graph, weight
from support.helpers import node_model, quiet_session

from onnx_gradcam.autodiff.backward import backward
from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.precision import GradType, float32_cotangents
from onnx_gradcam.autodiff.reference import as_double, evaluate, evaluator
from onnx_gradcam.autodiff.registry import rules
from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load

Array = np.ndarray[Any, Any]
KINDS = {
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
TOLERANCES = {"float16": 1e-2, "bfloat16": 8e-2}
"""Of the gradient in the model's own type, relative to its largest element."""

NOT_ALLOWED = {
    "float16": {"Celu", "MeanVarianceNormalization", "Range"},
    "bfloat16": {
        "Celu", "Compress", "Einsum", "MeanVarianceNormalization", "OneHot", "Range",
        "ReverseSequence", "Shrink",
    },
}  # fmt: skip
"""Operators whose schemas, or the types that ONNX infers for their bodies, exclude a type."""

ELSEWHERE = {"If", "Scan", "DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear"}
"""Operators that are no node of floating-point numbers alone: tested further down."""

NOT_EVALUATED = {
    "AffineGrid": "gives float64 whatever it is given",
    "Det": "has no determinant of 16 bits",
    "GlobalLpPool": "gives float32 whatever it is given",
    "MaxRoiPool": "is not there",
}
"""What is wrong with the operator in ONNX's reference evaluator: of these only the types are checked."""


# ----- every rule, over the node cases of the ONNX package -----------------------


def narrowed(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """A float32 model of one node in another floating-point type."""
    code, dtype = KINDS[kind]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for info in (*made.graph.input, *made.graph.output):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = code
    (node,) = made.graph.node
    for attribute in node.attribute:
        if attribute.name in {"to", "dtype"} and attribute.i == TensorProto.FLOAT:
            attribute.i = code
    tensors = [a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    for tensor in (*made.graph.initializer, *tensors):
        if tensor.data_type == TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return made


def given(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    wanted = {i.name for i in model.graph.input}
    return {k: a for k, a in feeds.items() if k in wanted}


def valid(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def of_one_node(op_type: str, **attributes: Any) -> Case:
    """For operators of which the ONNX package has no case in floating point."""
    rng = np.random.default_rng(3)
    inputs = {"x": rng.standard_normal((1, 2, 6, 6)).astype(np.float32)}
    if op_type == "MaxRoiPool":
        inputs["rois"] = np.array([[0, 0, 0, 3, 4]], np.float32)
    model = node_model(op_type, inputs, opset=22, **attributes)
    return Case(op_type, model, inputs, ("x",), ("y",))


def candidates(op_type: str) -> list[Case]:
    made = {"GlobalLpPool": {}, "MaxRoiPool": {"pooled_shape": (2, 2)}, "Trilu": {}}
    if op_type in made:
        return [of_one_node(op_type, **made[op_type])]
    found = [*cases().get(op_type, []), *untagged_cases().get(op_type, [])]
    # Statistics that some operators give out besides are float32 whatever their input is.
    return [with_constants(replace(c, model=first_output(c.model))) for c in sorted(found, key=size)]


def size(case: Case) -> int:
    return sum(a.size for a in case.feeds.values())


def first_output(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[1:]
    # ONNX infers another size for a case of STFT than the one written down, once its frame length is a constant.
    for size_ in made.graph.output[0].type.tensor_type.shape.dim:
        size_.Clear()
    return made


def judge(case: Case, kind: str) -> int:
    """Compare the gradients, in the model's own type and in float32, with those in float64; how many there were."""
    _, narrow = KINDS[kind]
    model, output = narrowed(case.model, kind), case.outputs[0]
    feeds = {k: a.astype(narrow) if a.dtype == np.float32 else a for k, a in case.feeds.items()}
    wide = {k: a.astype(np.float64) if a.dtype == narrow else a for k, a in feeds.items()}
    double, judged = as_double(model), 0
    if case.model.graph.node[0].op_type in NOT_EVALUATED:
        emitted = [gradient_model(model, case.wrt[:1], output, dtype=d).to_proto() for d in (None, np.float32)]
        assert all(map(valid, emitted))
        return 1
    (y,) = evaluate(evaluator(double), wide, [output])
    v = np.random.default_rng(0).standard_normal(y.shape).astype(narrow)
    for x in case.wrt:
        try:
            exact = gradient_model(double, [x], output).to_proto()
        except UnsupportedError:  # a stop: not a matter of types
            continue
        (want,) = evaluate(evaluator(exact), given(exact, {**wide, "cotangent": v.astype(np.float64)}))
        if not np.isfinite(want).all():
            return 0
        for dtype in (None, np.float32):
            emitted = gradient_model(model, [x], output, dtype=dtype).to_proto()
            onnx.checker.check_model(emitted, full_check=True)
            cotangent = v.astype(dtype or narrow)
            (got,) = evaluate(evaluator(emitted), given(emitted, {**feeds, "cotangent": cotangent}))
            assert got.dtype == np.dtype(dtype or narrow), x
            tolerance = TOLERANCES[kind] * max(np.abs(want).max(initial=0), 0.1)
            np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=tolerance, err_msg=f"{case.name} {x}")
        judged += 1
    return judged


EVERY = sorted({*operators(), *(op_type for domain, op_type in rules() if not domain)} - ELSEWHERE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op_type", EVERY)
def test_no_rule_is_tied_to_float32(op_type, kind):
    allowed = (c for c in candidates(op_type) if valid(narrowed(c.model, kind)))
    if op_type in NOT_ALLOWED[kind]:
        assert not list(allowed)
        pytest.skip(f"ONNX allows no {op_type} of {kind}")
    if op_type == "Hardmax":
        pytest.skip("a step function: nothing flows through it")
    if op_type in {"Col2Im", "STFT"} and kind == "bfloat16":
        pytest.skip("its gradient is a convolution, which takes bfloat16 from opset 22 on; the cases are of 18")
    assert any(judge(case, kind) for case in allowed), "no case has a gradient that is finite"


# ----- operators with graphs of their own, and quantised ones --------------------

BRANCHES = """(bool c, KIND[N,3] x, KIND[3] z, KIND[N,1] w) => (KIND[N,3] y) {
    a = Exp(x)
    b = If(c) <
        then_branch = t () => (KIND[N,3] p) { s = Mul(a, z) p = Tanh(s) },
        else_branch = e () => (KIND[N,3] q) { s = Sin(a) q = Mul(s, w) }
    >
    y = Mul(a, b)
}"""

SCANNED = """(KIND[2,2] h0, KIND[t,2,3] x, KIND[3,2] w) => (KIND[t,2,2] y) {
    h, y = Scan<num_scan_inputs = 1, body = step (KIND[2,2] h, KIND[2,3] x) => (KIND[2,2] h1, KIND[2,2] p) {
        xw = MatMul(x, w)
        s = Add(h, xw)
        h1 = Tanh(s)
        p = Identity(h1)
    }>(h0, x)
}"""

QUANTISED = """(KIND[N,3] x, KIND s, uint8 n) => (KIND[N,3] y) {
    a = Tanh(x)
    q = QuantizeLinear(a, s, n)
    d = DequantizeLinear(q, s, n)
    y = Mul(d, d)
}"""


def written(text: str, kind: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> m {text.replace("KIND", kind)}')


def normal(*shape: int, seed: int = 71) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.8).astype(np.float32)


WITH_GRAPHS = {
    "then": (BRANCHES, {"c": np.array(True), "x": normal(2, 3), "z": normal(3, seed=1), "w": normal(2, 1, seed=2)}),
    "else": (BRANCHES, {"c": np.array(False), "x": normal(2, 3), "z": normal(3, seed=1), "w": normal(2, 1, seed=2)}),
    "scan": (SCANNED, {"h0": normal(2, 2), "x": normal(4, 2, 3, seed=1), "w": normal(3, 2, seed=2)}),
    "quantised": (QUANTISED, {"x": normal(5, 3), "s": np.array(1 / 128, np.float32), "n": np.array(128, np.uint8)}),
}


@pytest.mark.parametrize("dtype", [None, np.float32])
@pytest.mark.parametrize("name", WITH_GRAPHS)
def test_subgraphs_and_quantised_numbers_in_float16(name, dtype):
    """In ONNX Runtime, against the float32 model at the same point."""
    text, feeds = WITH_GRAPHS[name]
    wrt = [k for k, a in feeds.items() if a.dtype == np.float32 and a.ndim]
    half = {k: a.astype(np.float16) if a.dtype == np.float32 else a for k, a in feeds.items()}
    whole = {k: a.astype(np.float32) if a.dtype == np.float16 else a for k, a in half.items()}
    plain = gradient_model(written(text, "float"), wrt).to_proto()
    model = gradient_model(written(text, "float16"), wrt, dtype=dtype).to_proto()
    onnx.checker.check_model(model, full_check=True)
    (y,) = quiet_session(written(text, "float16")).run(None, half)
    v = normal(*y.shape, seed=5).astype(np.float16)
    got = quiet_session(model).run(None, given(model, {**half, "cotangent": v.astype(dtype or np.float16)}))
    want = quiet_session(plain).run(None, given(plain, {**whole, "cotangent": v.astype(np.float32)}))
    for x, g, w in zip(wrt, got, want, strict=True):
        assert g.dtype == (dtype or np.float16)
        np.testing.assert_allclose(g, w, atol=1e-2 * max(np.abs(w).max(), 0.1), err_msg=x)


def test_activations_beyond_the_square_root_of_the_largest_number():
    """Their squares overflow: the slope of a tanh-approximated Gelu is 0 or 1 there, that of 1/x is small."""
    for op_type, x, attributes in (
        ("Gelu", [-6e4, -300.0, 300.0, 6e4], {"approximate": "tanh"}),
        ("Gelu", [-6e4, -300.0, 300.0, 6e4], {}),
        ("Reciprocal", [2e-3, -3e-3, 300.0], {}),
    ):
        feeds = {"x": np.array(x, np.float16)}
        model = node_model(op_type, feeds, opset=20, **attributes)
        (want,) = exact_gradient(model, {"x": feeds["x"]}, np.full(len(x), 0.1, np.float16))
        emitted = gradient_model(model, ["x"]).to_proto()
        (got,) = evaluate(evaluator(emitted), given(emitted, {**feeds, "cotangent": np.full(len(x), 0.1, np.float16)}))
        np.testing.assert_allclose(got, want, rtol=5e-3, atol=1e-4)


def exact_gradient(model: onnx.ModelProto, feeds: Mapping[str, Array], v: Array) -> list[Array]:
    double = as_double(model)
    emitted = gradient_model(double, list(feeds)).to_proto()
    return evaluate(
        evaluator(emitted), given(emitted, {k: a.astype(float) for k, a in {**feeds, "cotangent": v}.items()})
    )


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


def cotangents(model: onnx.ModelProto, wrt: str, feeds: Mapping[str, Array], grad_dtype: GradType | None) -> Array:
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
