"""Function-body expansion: values stay equal, nothing off the path is touched, gradients agree with the rules'."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
from autodiff.corpus import cases, collected, operators
from onnx import parser
from support.helpers import check_model, quiet_session

from onnx_gradcam.autodiff.backward import backward
from onnx_gradcam.autodiff.expand import expand_missing, has_body
from onnx_gradcam.autodiff.reference import evaluate, evaluator
from onnx_gradcam.autodiff.registry import rules
from onnx_gradcam.errors import TargetError, UnsupportedError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load

BODIES = [
    "Attention", "CausalConvWithState", "Celu", "CenterCropPad", "Clip", "DepthToSpace", "Elu", "Gelu",
    "GroupNormalization", "HardSigmoid", "HardSwish", "LayerNormalization", "LeakyRelu", "LinearAttention",
    "LogSoftmax", "MeanVarianceNormalization", "Mish", "NegativeLogLikelihoodLoss", "PRelu", "RMSNormalization",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare", "Relu", "RotaryEmbedding", "Selu",
    "Shrink", "Softmax", "SoftmaxCrossEntropyLoss", "Softplus", "Softsign", "SpaceToDepth", "SwiGLU", "Swish",
    "ThresholdedRelu",
]  # fmt: skip


def model(text, opset=18):
    return parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]>\n{text}')


def without(*op_types):
    return {key: rule for key, rule in rules().items() if key[1] not in op_types}


def run(proto, feeds):
    return quiet_session(proto).run(None, feeds)


@functools.cache
def node_cases():
    found = {}
    for case in collected():
        found.setdefault(case.model.graph.node[0].op_type, []).append(case)
    return found


# ----- against the ONNX package's own cases ---------------------------------


@pytest.mark.parametrize("op_type", BODIES)
def test_expanded_node_cases_have_the_expected_values(op_type):
    expanded = 0
    every = len(node_cases()[op_type]) // 20 + 1
    for case in node_cases()[op_type][::every]:
        prepared = load(case.model)
        floats = [i.name for i in case.model.graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
        outputs = [o.name for o in case.model.graph.output]
        # Operators that were given their body only at a later opset are left alone.
        if not floats or not has_body(op_type, prepared.opset):
            continue
        assert expand_missing(prepared, outputs[:1], floats[:1], without(op_type)), case.name
        expanded += 1
        assert op_type not in {n.op_type for n in prepared.core.graph}
        assert [o.name for o in prepared.core.graph.outputs] == outputs
        prepared.check()
        feeds = dict(zip([i.name for i in case.model.graph.input], case.data_sets[0][0], strict=True))
        got = evaluate(evaluator(prepared.to_proto()), feeds)
        for name, actual, expected in zip(outputs, got, case.data_sets[0][1], strict=True):
            np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-6, err_msg=f"{case.name}: {name}")
    assert expanded


@pytest.mark.parametrize("op_type", [o for o in BODIES if ("", o) in rules() and o in operators()])
def test_the_gradient_through_the_body_is_that_of_the_rule(op_type):
    compared = 0
    for case in cases().get(op_type, []):
        found = []
        for table in (rules(), without(op_type)):
            try:
                found.append(gradients(case, table))
            except UnsupportedError:  # noqa: PERF203 - a body of operators that have no rule
                break
        if len(found) == 2:
            compared += 1
            for x, by_rule, by_body in zip(case.wrt, *found, strict=True):
                # At a tie or a kink each may choose a side of its own.
                np.testing.assert_allclose(
                    by_body[~at_kink(op_type, case.feeds[x])],
                    by_rule[~at_kink(op_type, case.feeds[x])],
                    rtol=1e-3,
                    atol=1e-5,
                    err_msg=f"{case.name}: {x}",
                )
    assert compared or not has_body(op_type, 18)


def at_kink(op_type, x):
    edges = {
        "HardSwish": (-3.0, 3.0),
        "HardSigmoid": (-1.0, 1.0),
        "Clip": (-2.0, -1.0, 1.0, 2.0),
        "Shrink": (-1.5, 1.5),
        "ThresholdedRelu": (1.0, 2.0),
    }
    return np.isin(x, (0.0, *edges.get(op_type, ())))


def gradients(case, table):
    prepared = load(case.model)
    output = case.outputs[0]
    expand_missing(prepared, [output], case.wrt, table)
    t = Builder(prepared)
    y = t.find(output)
    found = backward(t, {y: t.full_like(y, 1.0) * y}, [t.find(x) for x in case.wrt], table)
    prepared.core.graph.outputs.clear()
    for x, g in zip(case.wrt, found, strict=True):
        t.output(g, f"grad/{x}")
    t.finish()
    return evaluate(evaluator(prepared.to_proto()), case.feeds)


# ----- what is touched and what is not ---------------------------------------

TEXT = """g (float[N,4,3] x, float[3] s) => (float[N,4,3] z, float[N,4,3] aside) {
    a = Relu(x)
    y = LayerNormalization<axis = -1>(a, s)
    z = Elu(y)
    aside = Elu(x)
}"""
FEEDS = {
    "x": np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32),
    "s": np.array([0.5, -1.0, 2.0], np.float32),
}


def test_only_the_path_is_expanded_and_values_stay():
    source = model(TEXT)
    prepared = load(source)
    lines = expand_missing(prepared, ["z"], ["a"], without("LayerNormalization", "Elu"))
    assert lines[:2] == ["LayerNormalization 'y'", "Elu 'z'"]
    kinds = [n.op_type for n in prepared.core.graph]
    assert kinds.count("Elu") == 1  # the one aside
    assert kinds.count("LayerNormalization") == 0
    assert kinds.count("Relu") == 1
    prepared.check()
    for actual, expected in zip(run(prepared.to_proto(), FEEDS), run(source, FEEDS), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_tensors_keep_their_names_shapes_and_types():
    prepared = load(model(TEXT))
    before = {name: prepared.shape(name) for name in ("a", "y", "z", "aside")}
    expand_missing(prepared, ["z"], ["x"], without("LayerNormalization", "Elu"))
    assert {name: prepared.shape(name) for name in before} == before
    assert all(prepared.info(str(o.name)).elem_type for n in prepared.core.graph for o in n.outputs)


def test_nothing_happens_where_every_operator_has_a_rule():
    prepared = load(model(TEXT))
    before = prepared.to_proto().SerializeToString()
    assert expand_missing(prepared, ["z"], ["x"]) == []
    assert prepared.to_proto().SerializeToString() == before


def test_an_operator_without_a_body_is_left_for_the_backward_pass_to_refuse():
    source = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18, "com.example": 1]>\n'
        "g (float[2] x) => (float[2] y) { a = com.example.Odd(x)\n y = Exp(a) }"
    )
    prepared = load(source)
    assert expand_missing(prepared, ["y"], ["x"]) == []
    assert [n.op_type for n in prepared.core.graph] == ["Odd", "Exp"]


def test_a_body_that_comes_with_a_later_opset_is_not_used():
    text = "g (float[1,4,2,2] x) => (float[1,1,4,4] y) { y = DepthToSpace<blocksize = 2>(x) }"
    assert expand_missing(load(model(text)), ["y"], ["x"], without("DepthToSpace")) == []
    assert has_body("DepthToSpace", 28)
    assert not has_body("DepthToSpace", 27)
    assert not has_body("Gelu", 19)
    assert not has_body("NoSuchOperator", 18)


def test_two_nodes_of_one_operator_are_expanded_apart():
    source = model(
        """g (float[3] x) => (float[3] y) {
            a = Elu<alpha = 0.5>(x)
            b = Elu<alpha = 2.0>(a)
            y = Elu(b)
        }"""
    )
    prepared = load(source)
    assert len([line for line in expand_missing(prepared, ["y"], ["x"], without("Elu")) if line.startswith("Elu")]) == 3
    prepared.check()
    feeds = {"x": np.array([-1.0, 0.5, -3.0], np.float32)}
    np.testing.assert_allclose(run(prepared.to_proto(), feeds)[0], run(source, feeds)[0], rtol=1e-6)


def test_names_of_the_body_avoid_those_of_the_model():
    source = model(
        "g (float[3] X) => (float[3] y) { Alpha = Exp(X)\n ExpX = Elu(Alpha)\n One = Elu(ExpX)\n y = Add(One, Alpha) }"
    )
    prepared = load(source)
    expand_missing(prepared, ["y"], ["X"], without("Elu"))
    prepared.check()
    feeds = {"X": np.array([-1.0, 0.5, -3.0], np.float32)}
    np.testing.assert_allclose(run(prepared.to_proto(), feeds)[0], run(source, feeds)[0], rtol=1e-6)


def test_an_omitted_output_in_the_middle():
    source = model(
        "g (float[2,3] x, float[3] s) => (float[2,3] y, float[2,1] d) { y, , d = LayerNormalization<axis = -1>(x, s) }"
    )
    feeds = {"x": FEEDS["x"][0, :2], "s": FEEDS["s"]}
    expected = run(source, feeds)
    prepared = load(source)
    assert expand_missing(prepared, ["y"], ["x"], without("LayerNormalization"))
    for actual, wanted in zip(run(prepared.to_proto(), feeds), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


def test_a_large_weight_stays_where_it_is():
    weight = np.random.default_rng(0).standard_normal((3, 1000)).astype(np.float32)
    source = model("g (float[2,3] x) => (float[2,1000] y) { a = MatMul(x, w)\n y = Elu(a) }")
    source.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    prepared = load(source)
    tensor = prepared.core.graph.initializers["w"].const_value
    expand_missing(prepared, ["y"], ["x"], without("Elu"))
    assert prepared.core.graph.initializers["w"].const_value is tensor
    assert prepared.shape("w") == (3, 1000)


def test_an_unknown_tensor_is_refused():
    with pytest.raises(TargetError, match="no tensor 'nowhere'"):
        expand_missing(load(model(TEXT)), ["z"], ["nowhere"])


def test_the_checker_differentiates_through_bodies():
    rng = np.random.default_rng(3)
    source = model(
        "g (float[1,2,3,4] q, float[1,2,3,4] k, float[1,2,3,4] v) => (float[1,2,3,4] y) { y = Attention(q, k, v) }", 23
    )
    feeds = {name: rng.standard_normal((1, 2, 3, 4)).astype(np.float32) for name in "qkv"}
    check_model(source, feeds, list("qkv"))
