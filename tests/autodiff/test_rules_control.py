"""Gradients through branches and loops."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from support.helpers import check_in_runtime, check_model, needs_opset, quiet_session

from onnx_gradcam.autodiff.backward import backward
from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.modifiers import guided
from onnx_gradcam.autodiff.registry import rules
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.inline import MOST_ITERATIONS, MOST_NODES
from onnx_gradcam.graph.load import load

CONDITIONS = pytest.mark.parametrize("c", [True, False])


def normal(*shape, seed=71):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.8).astype(np.float32)


def parse(text, opset=18):
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> {text}')


def check(text, wrt, output=None, **feeds):
    """Gradients by every tensor of `wrt`, of every output."""
    model = parse(text)
    for name in [output] if output else [o.name for o in model.graph.output]:
        check_model(model, {k: np.asarray(v) for k, v in feeds.items()}, wrt, output=name)


# ----- If --------------------------------------------------------------------

BRANCHES = """m (bool c, float[N,3] x, float[3] z, float[N,1] w) => (float[N,3] y) {
    a = Exp(x)
    b = If(c) <
        then_branch = t () => (float[N,3] p) { k = Constant<value_floats = [1.0, 2.0, 3.0]>() s = Mul(a, z)
            p = Mul(s, k) },
        else_branch = e () => (float[N,3] q) { s = Sin(a) q = Mul(s, w) }
    >
    y = Mul(a, b)
}"""


@CONDITIONS
@pytest.mark.parametrize("opset", [18, pytest.param(26, marks=needs_opset(26))])
def test_captured_tensors_of_either_branch(c, opset):
    feeds = {"c": np.array(c), "x": normal(2, 3), "z": normal(3, seed=72), "w": normal(2, 1, seed=73)}
    check_model(parse(BRANCHES, opset), feeds, ["x", "z", "w"])


@CONDITIONS
def test_what_the_other_branch_reads_has_the_gradient_zero(c):
    session = quiet_session(gradient_model(parse(BRANCHES), ["z", "w"]).to_proto())
    feeds = {"c": np.array(c), "x": normal(2, 3), "z": normal(3), "w": normal(2, 1), "cotangent": normal(2, 3)}
    z, w = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    assert bool(np.any(z)) is c
    assert bool(np.any(w)) is not c


@CONDITIONS
def test_several_outputs_integers_among_them(c):
    text = """m (bool c, float[2,3] x, float[2,3] z) => (float[2,3] y, float[3] v, float[2,3] s) {
        y, n, v = If(c) <
            then_branch = t () => (float[2,3] p, int64 i, float[3] o) {
                p = Mul(x, z) i = Constant<value_int = 2>() axis = Constant<value_ints = [0]>()
                o = ReduceSum<keepdims = 0>(p, axis) },
            else_branch = e () => (float[2,3] q, int64 j, float[3] r) {
                q = Sin(x) j = Constant<value_int = 3>() first = Constant<value_int = 0>()
                r = Gather<axis = 0>(z, first) }
        >
        f = Cast<to = 1>(n) yv = Mul(y, v) s = Mul(yv, f)
    }"""
    check(text, ["x", "z"], c=c, x=normal(2, 3), z=normal(2, 3, seed=72))


@CONDITIONS
@pytest.mark.parametrize("d", [True, False])
def test_nested_branches(c, d):
    text = """m (bool c, bool d, float[3] x, float[3] z) => (float[3] y) {
        a = Exp(x)
        y = If(c) <
            then_branch = t () => (float[3] p) {
                inner = Mul(a, z)
                r = If(d) <
                    then_branch = tt () => (float[3] pp) { both = Mul(inner, a) pp = Sin(both) },
                    else_branch = te () => (float[3] pe) { pe = Sin(inner) }
                >
                p = Mul(r, x)
            },
            else_branch = e () => (float[3] q) { q = If(d) <
                then_branch = et () => (float[3] qt) { qt = Neg(a) },
                else_branch = ee () => (float[3] qe) { qe = Mul(z, z) } > }
        >
    }"""
    check(text, ["x", "z"], c=c, d=d, x=normal(3), z=normal(3, seed=72))


@CONDITIONS
def test_a_condition_that_depends_on_the_input(c):
    text = """m (float[3] x) => (float[3] y) {
        s = ReduceSum<keepdims = 0>(x) zero = Constant<value_float = 0.0>() c = Greater(s, zero)
        y = If(c) < then_branch = t () => (float[3] p) { p = Exp(x) },
                    else_branch = e () => (float[3] q) { q = Mul(x, x) } >
    }"""
    check(text, ["x"], x=np.abs(normal(3)) * np.float32(1 if c else -1))


@CONDITIONS
def test_branches_of_different_rank(c):
    text = """m (bool c, float[3] x) => (float[3] y) {
        b = If(c) < then_branch = t () => (float[1,3] p) { a = Constant<value_ints = [0]>() p = Unsqueeze(x, a) },
                    else_branch = e () => (float[3] q) { q = Mul(x, x) } >
        shape = Constant<value_ints = [3]>() f = Reshape(b, shape) y = Mul(f, f)
    }"""
    check(text, ["x"], c=c, x=normal(3))


@CONDITIONS
def test_a_branch_gives_one_tensor_twice_and_a_constant(c):
    text = """m (bool c, float[3] x) => (float[3] y) {
        a, b = If(c) <
            then_branch = t () => (float[3] p, float[3] p1) { p = Exp(x) p1 = Identity(p) },
            else_branch = e () => (float[3] q, float[3] k) {
                q = Sin(x) k = Constant<value_floats = [1.0, 2.0, 3.0]>() } >
        y = Mul(a, b)
    }"""
    check(text, ["x"], c=c, x=normal(3))


def test_one_tensor_that_is_two_outputs():
    # ONNX Runtime takes no such model.
    model = parse("""m (bool c, float[3] x) => (float[3] y) {
        a, b = If(c) < then_branch = t () => (float[3] p, float[3] p) { p = Exp(x) },
                       else_branch = e () => (float[3] q, float[3] q) { q = Sin(x) } >
        y = Mul(a, b)
    }""")
    check_model(model, {"c": np.array(True), "x": normal(3)}, ["x"], runtime=False)


def test_weights_inside_of_a_branch_are_used():
    model = parse("""m (bool c, float[2,3] x) => (float[2,4] y) {
        y = If(c) < then_branch = t () => (float[2,4] p) <float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
                        { p = MatMul(x, w) },
                    else_branch = e () => (float[2,4] q) <float[3,4] v = {3,1,4,1,5,9,2,6,5,3,5,8}>
                        { q = MatMul(x, v) } >
    }""")
    for c in (True, False):
        check_model(model, {"c": np.array(c), "x": normal(2, 3)}, ["x"])


@pytest.mark.parametrize(
    "node",
    [
        """b = If(c) < then_branch = t () => (float[1,4] p) { p = Relu(x) },
                       else_branch = e () => (float[1,4] q) { q = Neg(x) } >""",
        """n, b = Scan<num_scan_inputs = 1, body = s (bool d, float[4] r) => (bool d1, float[4] o) {
            d1 = Identity(d) o = Relu(r) }>(c, x)""",
    ],
)
def test_modifiers_reach_into_subgraphs(node):
    text = f"""m (bool c, float[1,4] x) => (float[1,4] y) {{
        {node}
        k = Constant<value_floats = [-1.0, 1.0, -2.0, 2.0]>() y = Mul(b, k)
    }}"""
    model = load(parse(text))
    t = Builder(model)
    y = t.find("y")
    (g,) = backward(t, {y: t.full_like(y, 1.0)}, [t.find("x")], guided(rules()))
    t.output(g, "g")
    session = quiet_session(model.to_proto())
    (got,) = session.run(["g"], {"c": np.array(True), "x": np.array([[1, 2, 3, -4]], np.float32)})
    np.testing.assert_array_equal(got, [[0, 1, 0, 0]])


def test_an_operator_without_a_rule_inside_of_a_branch_is_refused():
    model = parse("""m (bool c, float[3] x) => (float[3] y) {
        y = If(c) < then_branch = t () => (float[3] p) { s = SequenceConstruct(x)
                        p = ConcatFromSequence<axis = 0>(s) },
                    else_branch = e () => (float[3] q) { q = Sin(x) } >
    }""")
    with pytest.raises(UnsupportedError, match="no VJP rule for ConcatFromSequence inside of a subgraph"):
        gradient_model(model, ["x"])


# ----- Loop ------------------------------------------------------------------

LOOP = """m (float[2] h, float[t,2] x, float[2,2] w) => (float[2] y, float[5,2] a, float[5,t] b) {{
    n = Constant<value_int = 5>() go = Constant<value = bool {{1}}>()
    y, last, a, b = Loop<body = step (int64 i, bool c, float[2] s, float[2] r)
            => (bool c1, float[2] s1, float[2] r1, float[2] o, float[t] q) {{
        {condition}
        f = Cast<to = 1>(i)
        sw = MatMul(s, w)
        m = ReduceSum<keepdims = 0>(x, axis)
        sm = Add(sw, m)
        s1 = Tanh(sm)
        r1 = Identity(s)
        o = Mul(s1, f)
        q = MatMul(x, r)
    }}>({trips}, {go}, h, h)
}}""".replace("n = ", "axis = Constant<value_ints = [0]>() n = ", 1)


@pytest.mark.parametrize("condition", ["c1 = Identity(c)", "c1 = Constant<value = bool {1}>()", "c1 = Identity(go)"])
def test_states_captures_and_stacked_outputs(condition):
    feeds = {"h": normal(2), "x": normal(3, 2, seed=72), "w": normal(2, 2, seed=73)}
    check(LOOP.format(condition=condition, trips="n", go="go"), ["h", "x", "w"], **feeds)


def test_a_loop_without_a_condition():
    # The reference evaluator never enters one.
    feeds = {"h": normal(2), "x": normal(3, 2, seed=72), "w": normal(2, 2, seed=73)}
    check_in_runtime(parse(LOOP.format(condition="c1 = Identity(c)", trips="n", go="")), feeds, ["h", "x", "w"])


def test_a_trip_count_from_fixed_sizes():
    text = """m (float[N,4] x) => (float[N,4] y) {
        s = Shape(x) one = Constant<value_int = 1>() width = Gather<axis = 0>(s, one) n = Sub(width, one)
        go = Constant<value = bool {1}>()
        y = Loop<body = step (int64 i, bool c, float[N,4] h) => (bool c1, float[N,4] h1) {
            c1 = Identity(c) e = Sin(h) h1 = Mul(e, x)
        }>(n, go, x)
    }"""
    assert sum(node.op_type == "Sin" for node in gradient_model(parse(text), ["x"]).core.graph) == 3
    check(text, ["x"], x=normal(2, 4))


def test_nested_loops_and_a_branch_in_them():
    text = """m (bool b, float[3] x) => (float[3] y) {
        two = Constant<value_int = 2>() three = Constant<value_int = 3>()
        go = Constant<value = bool {1}>()
        y = Loop<body = outer (int64 i, bool c, float[3] h) => (bool c1, float[3] h1) {
            c1 = Identity(c)
            g = Loop<body = inner (int64 j, bool d, float[3] k) => (bool d1, float[3] k1) {
                d1 = Identity(d)
                k1 = If(b) < then_branch = t () => (float[3] p) { p = Mul(k, h) },
                             else_branch = e () => (float[3] q) { q = Sin(k) } >
            }>(two, c, h)
            h1 = Mul(g, x)
        }>(three, go, x)
    }"""
    for b in (True, False):
        check(text, ["x"], b=b, x=normal(3))


def test_a_branch_of_the_iteration_is_decided_by_its_number():
    text = """m (float[3] x) => (float[3] y) {
        n = Constant<value_int = 3>() zero = Constant<value_int = 0>() go = Constant<value = bool {1}>()
        y = Loop<body = step (int64 i, bool c, float[3] h) => (bool c1, float[3] h1) {
            c1 = Identity(c) first = Equal(i, zero)
            h1 = If(first) < then_branch = t () => (float[3] p) { p = Exp(h) },
                             else_branch = e () => (float[3] q) { q = Mul(h, x) } >
        }>(n, go, x)
    }"""
    check(text, ["x"], x=normal(3))


def test_states_that_pass_through_and_one_that_grows():
    text = """m (float[3] x, float[3] z) => (float[12] y) {
        n = Constant<value_int = 3>() go = Constant<value = bool {1}>() e = Exp(x)
        a, b, k = Loop<body = step (int64 i, bool c, float[A] h, float[3] u, float[3] v)
                => (bool c1, float[B] h1, float[3] u, float[3] v) {
            c1 = Identity(c) s = Sin(h) uv = Mul(u, v) h1 = Concat<axis = 0>(s, uv)
        }>(n, go, x, e, z)
        bk = Mul(b, k) o = Mul(bk, e) ones = Concat<axis = 0>(o, o, o, o) y = Mul(a, ones)
    }"""
    check(text, ["x", "z"], x=normal(3), z=normal(3, seed=72))


def test_a_loop_off_the_path_stays_as_it_is():
    text = """m (int64 n, float[3] x, float[3] z) => (float[3] y) {
        go = Constant<value = bool {1}>() shape = Constant<value_ints = [3]>()
        l = Loop<body = step (int64 i, bool c, float[3] h) => (bool c1, float[3] h1) {
            c1 = Identity(c) h1 = Mul(h, h)
        }>(n, go, z)
        k = Reshape(l, shape)
        y = Mul(x, k)
    }"""
    model = gradient_model(parse(text), ["x"])
    assert sum(node.op_type == "Loop" for node in model.core.graph) == 1
    check(text, ["x"], n=np.int64(2), x=normal(3), z=normal(3, seed=72))


PLAIN = """m (int64 n, bool g, float[3] x) => (float[3] y) {{
    {constants}
    y = Loop<body = step (int64 i, bool c, float[3] h) => (bool c1, float[3] h1) {{
        {condition} {work}
    }}>({trips}, {go}, x)
}}"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trips": "n"}, "the trip count of a Loop is not constant"),
        ({"trips": ""}, "the trip count of a Loop is not constant"),
        ({"go": "g"}, "the condition of a Loop is not constant"),
        ({"condition": "c1 = Identity(g)"}, "the condition of a Loop is not constant"),
        ({"condition": "c1 = Not(c)"}, "the condition of a Loop is not constant"),
        ({"condition": "two = Constant<value_int = 2>() c1 = Less(i, two)"}, "the condition of a Loop is not constant"),
        ({"constants": "five = Constant<value_int = 0>()"}, "a Loop never runs"),
        ({"constants": "five = Constant<value_int = -1>()"}, "a Loop never runs"),
        ({"constants": f"five = Constant<value_int = {MOST_ITERATIONS + 1}>()"}, "1001 iterations is too long"),
        ({"constants": f"five = Constant<value_int = {2**63 - 1}>()"}, "iterations is too long to unroll"),
        (
            {
                "constants": f"five = Constant<value_int = {MOST_ITERATIONS}>()",
                "work": "h0 = Sin(h) " + " ".join(f"h{k + 2}x = Sin(h)" for k in range(30)) + " h1 = Sin(h0)",
            },
            f"at most 1000 iterations and {MOST_NODES} nodes",
        ),
    ],
)
def test_loops_that_are_refused(changes, message):
    plain = {
        "constants": "five = Constant<value_int = 5>()",
        "condition": "c1 = Identity(c)",
        "work": "h1 = Sin(h)",
        "trips": "five",
        "go": "",
    }
    with pytest.raises(UnsupportedError, match=re.escape(message)) as caught:
        gradient_model(parse(PLAIN.format(**{**plain, **changes})), ["x"])
    assert "\n" not in str(caught.value)


def test_nested_loops_share_the_limit():
    text = """m (float[3] x) => (float[3] y) {
        n = Constant<value_int = 200>()
        y = Loop<body = outer (int64 i, bool c, float[3] h) => (bool c1, float[3] h1) {
            c1 = Identity(c)
            h1 = Loop<body = inner (int64 j, bool d, float[3] k) => (bool d1, float[3] k1) {
                d1 = Identity(d) k1 = Sin(k)
            }>(n, c, h)
        }>(n, , x)
    }"""
    with pytest.raises(UnsupportedError, match="too long to unroll"):
        gradient_model(parse(text), ["x"])


def test_a_loop_inside_of_a_branch_is_refused():
    text = """m (bool b, float[3] x) => (float[3] y) {
        n = Constant<value_int = 2>()
        y = If(b) < then_branch = t () => (float[3] p) {
                p = Loop<body = step (int64 i, bool c, float[3] h) => (bool c1, float[3] h1) {
                    c1 = Identity(c) h1 = Sin(h) }>(n, , x) },
            else_branch = e () => (float[3] q) { q = Sin(x) } >
    }"""
    with pytest.raises(UnsupportedError, match="no VJP rule for Loop inside of a subgraph"):
        gradient_model(parse(text), ["x"])
