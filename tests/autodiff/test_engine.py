"""The reverse pass: accumulation, broadcasting undone, what carries a gradient, and every way it refuses."""

# ruff: noqa: ARG005 - planted rules have the signature of a rule, whatever they use of it

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser
from support.helpers import OLD_RUNTIME, check_model, quiet_session

from onnx_gradcam.autodiff.backward import backward, missing_rules, unbroadcast
from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.registry import Rule, attributes, rules, vjp
from onnx_gradcam.errors import ModelError, UnsupportedError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load

HEADER = '<ir_version: 10, opset_import: ["": 18, "com.example": 1]>\n'


def model(text):
    return parser.parse_model(HEADER + text)


def gradients(source, feeds, wrt=("x",), table=None):
    """The gradients of the sum of all elements of `y`, by ONNX Runtime."""
    prepared = load(source)
    t = Builder(prepared)
    y = t.find("y")
    found = backward(t, {y: t.full_like(y, 1.0)}, [t.find(name) for name in wrt], table)
    prepared.core.graph.outputs.clear()
    for name, g in zip(wrt, found, strict=True):
        t.output(g, f"grad/{name}")
    t.finish()
    session = quiet_session(prepared.to_proto())
    wanted = {i.name for i in session.get_inputs()}
    return session.run(None, {k: np.asarray(v, np.float32) for k, v in feeds.items() if k in wanted})


def refused(source, wrt=("x",), table=None):
    prepared = load(source)
    t = Builder(prepared)
    y = t.find("y")
    with pytest.raises(UnsupportedError) as caught:
        backward(t, {y: t.full_like(y, 1.0)}, [t.find(name) for name in wrt], table)
    message = str(caught.value)
    assert "\n" not in message
    return message


def planted(function, op_type="Relu", **options):
    """The registered rules with that of `op_type` replaced."""
    return {**rules(), ("", op_type): Rule(function, **options)}


# ----- accumulation ----------------------------------------------------------


def test_two_paths_add_up():
    source = model("g (float[3] x) => (float[3] y) { a = Exp(x)\n b = Sigmoid(x)\n y = Mul(a, b) }")
    x = np.array([-1.0, 0.5, 2.0])
    s = 1 / (1 + np.exp(-x))
    (got,) = gradients(source, {"x": x})
    np.testing.assert_allclose(got, np.exp(x) * s + np.exp(x) * s * (1 - s), rtol=1e-5)


def test_three_paths_add_up_in_one_node():
    source = model("g (float[3] x) => (float[3] y) { a = Exp(x)\n b = Neg(x)\n c = Mul(a, b)\n y = Add(c, x) }")
    x = np.array([-1.0, 0.5, 2.0])
    (got,) = gradients(source, {"x": x})
    np.testing.assert_allclose(got, -np.exp(x) * x - np.exp(x) + 1, rtol=1e-5)
    emitted = gradient_model(source, ["x"]).core.graph
    assert sum(n.op_type == "Sum" and len(n.inputs) == 3 for n in emitted) == 1


def test_a_cotangent_is_added_up_once_however_often_it_is_read():
    source = model(
        "g (float[2] x) => (float[2] y) { a = Exp(x)\n b = Sin(a)\n c = Cos(a)\n d = Mul(b, c)\n y = Mul(d, x) }"
    )
    check_model(source, {"x": np.array([0.3, -0.7], np.float32)}, ["x"])
    added = [n for n in gradient_model(source, ["x"]).core.graph if n.op_type in {"Add", "Sum"}]
    assert len(added) == 2  # one for `a`, one for `x`


@pytest.mark.parametrize(("body", "slope"), [("Mul(x, x)", 2.0), ("Add(x, x)", None), ("Sum(x, x, x)", 3.0)])
def test_the_same_tensor_twice_as_input(body, slope):
    x = np.array([1.5, -2.0], np.float32)
    (got,) = gradients(model(f"g (float[2] x) => (float[2] y) {{ y = {body} }}"), {"x": x})
    expected = {"Mul(x, x)": 2 * x, "Add(x, x)": np.full(2, 2.0), "Sum(x, x, x)": np.full(2, 3.0)}[body]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_tensor_and_one_that_depends_on_it_both_have_their_cotangent():
    source = model("g (float[2] x) => (float[2] y) { a = Exp(x)\n b = Mul(a, x)\n y = Neg(b) }")
    x = np.array([0.5, 1.0])
    gx, ga = gradients(source, {"x": x}, ("x", "a"))
    np.testing.assert_allclose(ga, -x, rtol=1e-6)
    np.testing.assert_allclose(gx, -(x * np.exp(x) + np.exp(x)), rtol=1e-5)


def test_the_score_itself_has_its_seed():
    source = model("g (float[2] x) => (float[2] y) { y = Exp(x) }")
    (got,) = gradients(source, {"x": [0.0, 1.0]}, ("y",))
    np.testing.assert_array_equal(got, [1.0, 1.0])


def test_several_scores_add_up():
    prepared = load(model("g (float[2] x) => (float[2] y, float[2] z) { y = Exp(x)\n z = Neg(x) }"))
    t = Builder(prepared)
    y, z = t.find("y"), t.find("z")
    (g,) = backward(t, {y: t.full_like(y, 2.0), z: t.full_like(z, 5.0)}, [t.find("x")])
    prepared.core.graph.outputs.clear()
    t.output(g, "grad")
    t.finish()
    (got,) = quiet_session(prepared.to_proto()).run(None, {"x": np.array([0.0, 1.0], np.float32)})
    np.testing.assert_allclose(got, 2 * np.exp([0.0, 1.0]) - 5, rtol=1e-6)


# ----- broadcasting undone ---------------------------------------------------

SHAPES = [
    ((2, 3, 4), (4,)),
    ((2, 3, 4), (3, 1)),
    ((2, 3, 4), (1, 1, 1)),
    ((2, 3, 4), ()),
    ((1, 3, 1), (2, 1, 4)),
    ((1,), (2, 3)),
    ((2, 3), (2, 3)),
    ((0, 3), (1, 3)),
    ((0, 3), (3,)),
    ((1, 0), (2, 1)),
    ((1, 1), (1, 1)),
]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
def test_broadcasting_is_undone(a, b, dynamic):
    if OLD_RUNTIME and 0 in (*a, *b):
        pytest.skip("this ONNX Runtime fails on reductions over nothing")

    def declared(name, shape):
        dims = ",".join(f"{name}{i}" if dynamic else str(d) for i, d in enumerate(shape))
        return f"float[{dims}] {name}" if shape else f"float {name}"

    rank = max(len(a), len(b))
    out = ",".join(f"o{i}" for i in range(rank))
    source = model(f"g ({declared('a', a)}, {declared('b', b)}) => (float[{out}] y) {{ y = Mul(a, b) }}")
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal(a), rng.standard_normal(b)
    ga, gb = gradients(source, {"a": left, "b": right}, ("a", "b"))
    product = np.zeros(np.broadcast_shapes(a, b))
    np.testing.assert_allclose(ga, summed(product + right, a), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gb, summed(product + left, b), rtol=1e-5, atol=1e-6)


def summed(full, shape):
    """`full` summed to `shape`, the slow way."""
    out = np.zeros(shape)
    for index in np.ndindex(*full.shape):
        tail = index[len(index) - len(shape) :]
        out[tuple(0 if d == 1 else i for i, d in zip(tail, shape, strict=True))] += full[index]
    return out


def test_one_model_serves_sizes_that_broadcast_and_sizes_that_do_not():
    source = model("g (float[N,C] a, float[M,K] b) => (float[P,Q] y) { y = Mul(a, b) }")
    for a, b in [((2, 3), (2, 3)), ((1, 3), (2, 3)), ((2, 3), (2, 1)), ((1, 1), (4, 5)), ((4, 5), (1, 1))]:
        left, right = np.full(a, 2.0), np.full(b, 3.0)
        ga, gb = gradients(source, {"a": left, "b": right}, ("a", "b"))
        full = np.ones(np.broadcast_shapes(a, b))
        np.testing.assert_allclose(ga, summed(3 * full, a))
        np.testing.assert_allclose(gb, summed(2 * full, b))


def test_nothing_is_emitted_where_shapes_agree():
    source = model("g (float[N,3] a, float[N,3] b) => (float[N,3] y) { y = Add(a, b) }")
    ops = {n.op_type for n in gradient_model(source, ["a", "b"]).core.graph}
    assert ops <= {"Identity"}


def test_a_known_one_is_summed_without_shape_arithmetic():
    source = model("g (float[N,3] a, float[1,3] b) => (float[N,3] y) { y = Add(a, b) }")
    ops = [n.op_type for n in gradient_model(source, ["b"]).core.graph]
    assert [op for op in ops if op != "Identity"] == ["ReduceSum"]


def test_unbroadcast_refuses_a_cotangent_of_lower_rank():
    t = Builder(load(model("g (float[2,3] x, float[3] b) => (float[2,3] y) { y = Add(x, b) }")))
    with pytest.raises(ModelError, match="rank 1 cannot be that of 'x', which has rank 2"):
        unbroadcast(t, t.find("b"), t.find("x"))


# ----- what carries a gradient ----------------------------------------------


def test_integer_edges_and_zero_operators_carry_nothing():
    source = model(
        """g (float[N,3] x) => (float[N,3] y) {
            shape = Shape(x)
            ones = ConstantOfShape<value = float[1] {2.0}>(shape)
            steps = Floor(x)
            a = Mul(x, ones)
            y = Add(a, steps)
        }"""
    )
    (got,) = gradients(source, {"x": [[0.5, 1.5, -2.5]]})
    np.testing.assert_array_equal(got, [[2.0, 2.0, 2.0]])


def test_a_stop_carries_nothing_even_where_its_tensor_is_on_the_path():
    source = model("g (float x) => (float y) { y = Exp(x) }")
    table = planted(lambda t, g, y, x: [g], "Exp", stops=frozenset({0}))
    assert "does not depend on tensor 'x'" in refused(source, table=table)


def test_a_tensor_that_is_both_stop_and_operand_has_the_operands_part_only():
    source = model("g (float[2] x) => (float[2] y) { y = Mul(x, x) }")
    rule = Rule(lambda t, g, y, a, b: [g * b, g * a], stops=frozenset({1}))
    (got,) = gradients(source, {"x": [2.0, 3.0]}, table={**rules(), ("", "Mul"): rule})
    np.testing.assert_array_equal(got, [2.0, 3.0])


def test_no_path_is_refused():
    source = model("g (float[2] x, float[2] z) => (float[2] y) { y = Exp(z) }")
    assert refused(source).startswith("the score does not depend on tensor 'x'")


def test_only_steps_between_is_refused_not_zero():
    source = model("g (float[2] x) => (float[2] y) { y = Sign(x) }")
    assert refused(source).startswith("the score does not depend on tensor 'x'")


def test_one_tensor_without_a_path_among_others():
    source = model("g (float[2] x, float[2] z) => (float[2] y) { y = Exp(z) }")
    assert "tensor 'x'" in refused(source, ("z", "x"))


# ----- refusals --------------------------------------------------------------


def test_a_missing_rule_names_node_operator_and_opset():
    source = model("g (float[2] x) => (float[2] y) { a = Exp(x)\n [culprit] y = com.example.Odd(a) }")
    message = refused(source)
    assert message.startswith("no VJP rule for com.example.Odd (node 'culprit' producing 'y', opset 18)")


def test_missing_rules_lists_them_all_and_nothing_off_the_path():
    prepared = load(
        model(
            """g (float[2] x) => (float[2] y, float[2] z) {
                [one] a = com.example.Odd(x)
                b = Exp(a)
                [two] y = com.example.Even(b)
                [aside] z = com.example.Other(x)
            }"""
        )
    )
    t = Builder(prepared)
    lines = missing_rules(t, t.find("y"), [t.find("x")])
    assert [line.split(" (")[0] for line in lines] == [
        "no VJP rule for com.example.Odd",
        "no VJP rule for com.example.Even",
    ]
    assert missing_rules(t, t.find("b"), [t.find("a")]) == [
        "inference cannot find the type of 'a', an input of Exp (node '')"
    ]


def test_a_branch_of_unknown_type_is_refused_not_skipped():
    source = model("g (float[2] x) => (float[2] y) { a = Exp(x)\n b = com.example.Odd(x)\n y = Add(a, b) }")
    assert refused(source).startswith("no VJP rule for com.example.Odd")


def test_an_unknown_attribute_is_named():
    table = planted(lambda t, g, y, x: [g], "LeakyRelu")
    source = model("g (float[2] x) => (float[2] y) { [act] y = LeakyRelu<alpha = 0.2>(x) }")
    message = refused(source, table=table)
    assert message.startswith("the VJP rule of LeakyRelu does not know the attribute 'alpha' (node 'act' producing 'y'")


IF = """g (float[2] x, bool c) => (float[2] y) {
    a = Exp(x)
    [branch] b = If(c) <
        then_branch = t () => (float[2] p) { p = Neg(a) }, else_branch = e () => (float[2] q) { q = Sin(a) }
    >
    y = Add(a, b)
}"""


def test_a_tensor_that_a_subgraph_captures_is_refused_not_skipped():
    table = {key: rule for key, rule in rules().items() if key != ("", "If")}
    assert refused(model(IF), table=table).startswith("no VJP rule for If (node 'branch' producing 'b'")


def test_a_capture_is_refused_also_where_the_operator_has_a_rule_for_its_inputs():
    message = refused(model(IF), table=planted(lambda t, g, y, c, **_: [None], "If"))
    assert message.startswith("If reads 'a' inside of a subgraph")


def test_a_capture_off_the_path_is_no_obstacle():
    text = IF.replace("(a) }", "(k) }").replace(
        "a = Exp(x)", "a = Exp(x)\n k = Floor(x)\n m = ReduceMax<keepdims = 0>(x)"
    )
    text = text.replace(", bool c", "").replace("[branch]", "c = Cast<to = 9>(m)\n [branch]")
    (got,) = gradients(model(text), {"x": [0.5, 1.0]})
    np.testing.assert_allclose(got, np.exp([0.5, 1.0]), rtol=1e-6)


# ----- what a wrong rule is caught at ---------------------------------------


def shape_error(source, table):
    prepared = load(source)
    t = Builder(prepared)
    y = t.find("y")
    with pytest.raises(ModelError) as caught:
        backward(t, {y: t.full_like(y, 1.0)}, [t.find("x")], table)
    return str(caught.value)


RELU = model("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")


def test_too_few_cotangents():
    message = shape_error(
        model("g (float[2] x, float[2] z) => (float[2] y) { y = Mul(x, z) }"),
        planted(lambda t, g, y, a, b: [g * b], "Mul", broadcasts=True),
    )
    assert message == "the VJP rule of Mul gave 1 cotangents for 2 inputs"


def test_a_cotangent_of_wrong_shape():
    message = shape_error(RELU, planted(lambda t, g, y, x: [t.sum(g, [1])]))
    assert message.startswith("the VJP rule of Relu gave a wrong shape for 'x'")
    assert "[2, 1]" in message
    assert "[2, 3]" in message


def test_a_cotangent_of_wrong_rank():
    assert "gave a wrong shape for 'x'" in shape_error(
        RELU, planted(lambda t, g, y, x: [t.sum(g, [1], keepdims=False)])
    )


def test_a_cotangent_of_wrong_type():
    message = shape_error(RELU, planted(lambda t, g, y, x: [t.cast(g, np.float64)]))
    assert message == "the VJP rule of Relu gave float64 for 'x', which is float32"


def test_none_means_refused_and_not_zero():
    message = refused(RELU, table=planted(lambda t, g, y, x: [None]))
    assert message.startswith("the VJP rule of Relu cannot serve its input 'x'")


def test_a_rule_written_for_one_output_refuses_the_others():
    source = model("g (float[4] x) => (float[2] z, float[2] y) { z, y = Split<num_outputs = 2>(x) }")
    table = planted(lambda t, g, y, x, *_, axis=0, num_outputs=None: [g], "Split")
    assert refused(source, table=table).startswith("the VJP rule of Split serves its first output only")


def test_an_operator_cannot_be_registered_twice():
    rules()
    with pytest.raises(ValueError, match="Relu is registered already"):
        vjp("Relu")(lambda t, g, y, x: [g])
    with pytest.raises(ValueError, match="Floor is registered already"):
        vjp("Floor")(lambda t, g, y, x: [g])


# ----- several outputs and lazy cotangents -----------------------------------


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_all_outputs_rules_see_a_cotangent_for_each_output_that_has_one(used):
    seen = []

    def rule(t, gs, ys, x, *_, axis=0, num_outputs=None):
        seen.append([g is not None for g in gs])
        parts = [g if g is not None else t.full_like(y, 0.0) for g, y in zip(gs, ys, strict=True)]
        return [t.op("Concat", *parts, axis=axis), None]

    total = "Add(a, b)" if len(used) == 2 else "Neg(a)" if used == (0,) else "Neg(b)"
    source = model(f"g (float[4] x) => (float[2] y) {{ a, b = Split<num_outputs = 2>(x)\n y = {total} }}")
    (got,) = gradients(source, {"x": np.zeros(4)}, table=planted(rule, "Split", all_outputs=True))
    sign = 1.0 if len(used) == 2 else -1.0
    np.testing.assert_array_equal(got, np.repeat([sign * (0 in used), sign * (1 in used)], 2))
    assert seen == [[0 in used, 1 in used]]


def test_a_lazy_cotangent_is_called_only_for_an_input_on_the_path():
    called = []

    def rule(t, g, y, a, b):
        return [lambda: called.append("a") or g * b, lambda: called.append("b") or g * a]

    source = model("g (float[2] x, float[2] z) => (float[2] y) { y = Mul(x, z) }")
    table = planted(rule, "Mul", broadcasts=True)
    (got,) = gradients(source, {"x": [1.0, 2.0], "z": [3.0, 4.0]}, table=table)
    np.testing.assert_array_equal(got, [3.0, 4.0])
    assert called == ["a"]


def test_attributes_reach_the_rule_as_plain_values():
    node = load(model("g (float[4] x) => (float[2] y, float[2] z) { y, z = Split<num_outputs = 2, axis = 0>(x) }"))
    assert attributes(node.core.graph[0]) == {"num_outputs": 2, "axis": 0}


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16])
def test_the_gradient_has_the_tensors_type(kind):
    source = model("g (float[2,3] x, float[3] b) => (float[2,3] y) { a = Mul(x, b)\n y = Exp(a) }")
    for info in (*source.graph.input, *source.graph.output):
        info.type.tensor_type.elem_type = kind
    emitted = gradient_model(source, ["x", "b"])
    emitted.check()
    assert {o.type.tensor_type.elem_type for o in emitted.to_proto().graph.output} == {kind}
