"""Paths and dominators, also through tensors that subgraphs capture."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnx_gradcam.graph.paths import between, dominators, halves, node_inputs
from onnx_gradcam.runtime.session import Session


def graph(text, opset=18):
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}, "com.example": 1]>\n{text}').graph


def values(g):
    named = {v.name: v for v in (*g.inputs, *g.initializers.values())}
    return named | {o.name: o for n in g for o in n.outputs}


def everything(node, value):
    return True


def all_but(op_type):
    return lambda node, _: node.op_type != op_type


def path_of(text, sources, sinks, carries=everything):
    g = graph(text)
    tensors = values(g)
    nodes, alive = between(tuple(g), [tensors[s] for s in sources], [tensors[s] for s in sinks], carries)
    return [n.outputs[0].name for n in nodes], {v.name for v in alive}


def dominators_of(text, source, sink, carries=everything):
    g = graph(text)
    tensors = values(g)
    return [v.name for v in dominators(tuple(g), tensors[source], [tensors[name] for name in sink.split()], carries)]


DIAMOND = """g (float[2] x, float[2] w) => (float[2] y) {
    a = Exp(x)
    b = Neg(a)
    c = Sin(a)
    dead = Cos(a)
    d = Add(b, c)
    other = Exp(w)
    y = Mul(d, other)
}"""


def test_between_is_what_is_on_a_path_and_nothing_else():
    nodes, alive = path_of(DIAMOND, ["x"], ["y"])
    assert nodes == ["a", "b", "c", "d", "y"]
    assert alive == {"x", "a", "b", "c", "d", "y"}


def test_between_from_the_middle_to_the_middle():
    assert path_of(DIAMOND, ["b"], ["d"]) == (["d"], {"b", "d"})


def test_between_several_ends():
    nodes, alive = path_of(DIAMOND, ["x", "w"], ["y", "dead"])
    assert nodes == ["a", "b", "c", "dead", "d", "other", "y"]
    assert "w" in alive


def test_between_without_a_path_is_empty():
    assert path_of(DIAMOND, ["w"], ["d"]) == ([], set())
    assert path_of(DIAMOND, ["y"], ["x"]) == ([], set())


def test_a_source_that_is_a_sink_is_its_own_path():
    assert path_of(DIAMOND, ["a"], ["a"]) == ([], {"a"})


def test_edges_that_do_not_carry_do_not_count():
    nodes, _ = path_of(DIAMOND, ["x"], ["y"], all_but("Sin"))
    assert nodes == ["a", "b", "d", "y"]


def test_one_output_of_several_is_enough():
    text = "g (float[4] x) => (float[2] y) { p, q = Split<num_outputs = 2>(x)\n y = Exp(q) }"
    assert path_of(text, ["x"], ["y"]) == (["p", "y"], {"x", "q", "y"})


def test_dominators_of_a_chain_a_diamond_and_a_bypass():
    chain = "g (float[2] x) => (float[2] y) { a = Exp(x)\n b = Neg(a)\n y = Sin(b) }"
    assert dominators_of(chain, "x", "y") == ["x", "a", "b", "y"]
    assert dominators_of(DIAMOND, "x", "y") == ["x", "a", "d", "y"]
    bypass = "g (float[2] x) => (float[2] y) { a = Exp(x)\n b = Neg(a)\n y = Add(b, x) }"
    assert dominators_of(bypass, "x", "y") == ["x", "y"]


def test_dominators_of_a_residual_network():
    text = """g (float[2] x) => (float[2] y) {
        stem = Exp(x)
        a = Neg(stem)
        b = Sin(a)
        block1 = Add(b, stem)
        c = Neg(block1)
        d = Mul(c, c)
        block2 = Add(d, block1)
        y = Exp(block2)
    }"""
    assert dominators_of(text, "x", "y") == ["x", "stem", "block1", "block2", "y"]
    assert dominators_of(text, "block1", "d") == ["block1", "c", "d"]


def test_dominators_of_nested_branches_that_end_at_different_places():
    text = """g (float[2] x) => (float[2] y) {
        a = Exp(x)
        b = Neg(a)
        c = Sin(b)
        d = Cos(b)
        e = Add(c, d)
        y = Sum(e, a, d)
    }"""
    assert dominators_of(text, "x", "y") == ["x", "a", "y"]
    assert dominators_of(text, "a", "e") == ["a", "b", "e"]


def test_a_second_output_of_a_node_dominates_only_what_follows_it():
    text = "g (float[4] x) => (float[2] y) { p, q = Split<num_outputs = 2>(x)\n a = Exp(q)\n y = Add(a, q) }"
    assert dominators_of(text, "x", "y") == ["x", "q", "y"]
    both = text.replace("Add(a, q)", "Add(a, p)")
    assert dominators_of(both, "x", "y") == ["x", "y"]


def test_dominators_follow_the_edges_that_carry():
    text = """g (float[N,4] x) => (float[N,4] y) {
        a = Exp(x)
        shape = Shape(x)
        y = Reshape(a, shape)
    }"""
    assert dominators_of(text, "x", "y") == ["x", "y"]
    assert dominators_of(text, "x", "y", all_but("Shape")) == ["x", "a", "y"]


def test_dominators_of_several_tensors():
    assert dominators_of(DIAMOND, "x", "b c") == ["x", "a"]
    assert dominators_of(DIAMOND, "x", "b b") == ["x", "a", "b"]
    assert dominators_of(DIAMOND, "x", "a d") == ["x", "a"]
    assert dominators_of(DIAMOND, "x", "d w") == []


def test_no_path_no_dominators():
    assert dominators_of(DIAMOND, "w", "d") == []
    assert dominators_of(DIAMOND, "x", "x") == ["x"]


NESTED = """g (float[2] x, float[2] z, bool c) => (float[2] y) {
    a = Exp(x)
    y = If(c) <
        then_branch = t () => (float[2] p) {
            inner = Neg(a)
            p = If(c) <
                then_branch = tt () => (float[2] pp) { pp = Add(inner, z) },
                else_branch = te () => (float[2] pe) { pe = Sin(inner) }
            >
        },
        else_branch = e () => (float[2] q) { k = Constant<value_floats = [1.0, 2.0]>()\n q = Sin(k) }
    >
}"""


def test_a_node_reads_what_its_subgraphs_capture_and_nothing_of_their_own():
    g = graph(NESTED)
    branch = g[1]
    assert {v.name for v in node_inputs(branch)} == {"c", "a", "z"}


def test_a_branch_that_is_an_outer_tensor_captures_it():
    text = """g (float[2] x, bool c) => (float[2] y) {
        a = Exp(x)
        y = If(c) < then_branch = t () => (float[2] p) { p = Neg(a) }, else_branch = e () => (float[2] a) { } >
    }"""
    g = graph(text)
    assert [v.name for v in node_inputs(g[1])].count("a") >= 1


@pytest.mark.parametrize("source", ["x", "z"])
def test_paths_and_dominators_go_through_captures(source):
    expected = {"x": ["a", "y"], "z": ["y"]}[source]
    assert path_of(NESTED, [source], ["y"])[0] == expected
    assert dominators_of(NESTED, source, "y") == [source, *expected]


# ----- halves ----------------------------------------------------------------


def test_a_model_is_cut_at_what_depends_on_the_choice():
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> '
        "g (float[N,4] x, int64[1] which) => (float[N,4] y, float[N,1] z, float[N,4] u)"
        " <int64[1] which = {2}, float w = {3}, float zero = {0}> {"
        " a = Mul(x, w) s = ReduceMean<keepdims=0>(x) u = Relu(a) t = Tanh(a) z = Gather<axis=1>(t, which)"
        " m = ReduceMax<keepdims=0>(z) b = Greater(m, s)"
        " y = If (b) <then_branch = g1 () => (float[N,4] yes) { yes = Add(u, z) },"
        " else_branch = g2 () => (float[N,4] no) { no = Sub(x, w) }> }"
    )
    parts = halves(model, {"which"})
    assert [n.op_type for n in parts.first.graph.node] == ["Mul", "ReduceMean", "Relu", "Tanh"]
    assert [n.op_type for n in parts.second.graph.node] == ["Gather", "ReduceMax", "Greater", "If"]
    assert parts.between == ["s", "t", "u", "x"]
    assert parts.shared == ["u"]
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    first = Session(parts.first.SerializeToString()).run({"x": x})
    second, whole = Session(parts.second.SerializeToString()), Session(model.SerializeToString())
    feeds = {name: {"x": x, **first}[name] for name in parts.between}
    for choice in ({}, {"which": np.array([0])}, {"which": np.array([3])}):
        expected = whole.run({"x": x, **choice})
        found = {**second.run({**feeds, **choice}), "u": first["u"]}
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)


def test_a_tensor_of_unknown_type_cannot_be_passed_on():
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18, "own": 1]> g (float[N,4] x, int64[1] which) => (float[N,1] y)'
        " { a = own.Secret(x) y = Gather<axis=1>(a, which) }"
    )
    assert halves(model, {"which"}) is None
