"""Every rule in float16 and bfloat16, in the model's own type and in float32, against float64.

ONNX Runtime's CPU provider computes float16 through float32 and only moves bfloat16. ONNX's reference evaluator runs
what it cannot. `test_corpus` checks gradients in float64, `test_precision` the range of float16 and whole classifiers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from autodiff.corpus import Case, cases, operators, untagged_cases, with_constants
from onnx import TensorProto
from support.double import exact_gradient, given, normal
from support.helpers import node_model, quiet_session

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.reference import as_double, evaluate, evaluator
from onnx_gradcam.autodiff.registry import rules
from onnx_gradcam.errors import UnsupportedError

KINDS = {
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
TOLERANCES = {"float16": 1e-2, "bfloat16": 8e-2}
"""Tolerance of the gradient in the model's dtype, relative to its largest element."""

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
    # Some operators have additional statistics outputs, which are float32 for every input dtype.
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
    if op_type in {"Hardmax", "Sign"}:
        pytest.skip("a step function: nothing flows through it, or through Sign only in front of a product")
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
