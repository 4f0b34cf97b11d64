"""Loading a model replaces each If whose condition is constant by its branch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.helpers import quiet_session

from onnx_gradcam.graph.load import load

X = np.random.default_rng(5).standard_normal((2, 3)).astype(np.float32)


def parse(text):
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> {text}')


def operators(model):
    return [node.op_type for node in model.core.graph]


def same(text, *, still=0, **feeds):
    """Load a model; check that its outputs are the same and how many Ifs are left."""
    source = parse(text)
    model = load(source)
    model.check()
    feeds = feeds or {"x": X}
    before, after = quiet_session(source).run(None, feeds), quiet_session(model.to_proto()).run(None, feeds)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert operators(model).count("If") == still
    return model


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("c = Constant<value = bool {1}>()", "Exp"),
        ("c = Constant<value = bool[1] {0}>()", "Neg"),
        ("k = Constant<value_int = 4>() c = Cast<to = 9>(k)", "Exp"),
        ("c0 = Constant<value = bool {1}>() c1 = Not(c0) c = Identity(c1)", "Neg"),
        # Exporters ask for sizes that are fixed, whatever the batch is.
        (
            """s = Shape(x) one = Constant<value_int = 1>() w = Gather<axis = 0>(s, one)
            t = Constant<value_int = 3>() c = Equal(w, t)""",
            "Exp",
        ),
        (
            """s = Shape<start = 1>(x) t = Constant<value_ints = [4]>() c1 = Equal(s, t)
            zero = Constant<value_int = 0>() c = Gather<axis = 0>(c1, zero)""",
            "Neg",
        ),
    ],
)
def test_a_known_condition_leaves_one_branch(condition, kept):
    model = same(f"""m (float[N,3] x) => (float[N,3] y) {{
        {condition}
        y = If(c) < then_branch = t () => (float[N,3] p) {{ p = Exp(x) }},
                    else_branch = e () => (float[N,3] q) {{ q = Neg(x) }} >
    }}""")
    assert operators(model)[-1] == kept
    assert model.shape("y") == ("N", 3)


def test_a_condition_on_the_batch_is_not_known():
    same(
        """m (float[N,3] x) => (float[N,3] y) {
        s = Shape(x) zero = Constant<value_int = 0>() b = Gather<axis = 0>(s, zero) t = Constant<value_int = 2>()
        c = Equal(b, t)
        y = If(c) < then_branch = t () => (float[N,3] p) { p = Exp(x) },
                    else_branch = e () => (float[N,3] q) { q = Neg(x) } >
    }""",
        still=1,
    )


def test_a_condition_that_is_an_input_is_not_known():
    text = """m (float[2,3] x, bool c) => (float[2,3] y) {
        y = If(c) < then_branch = t () => (float[2,3] p) { p = Exp(x) },
                    else_branch = e () => (float[2,3] q) { q = Neg(x) } >
    }"""
    same(text, still=1, x=X, c=np.array(True))


def test_branches_in_branches_and_a_condition_that_only_the_first_decides():
    model = same("""m (float[N,3] x) => (float[N,3] y) {
        yes = Constant<value = bool {1}>() no = Constant<value = bool {0}>() one = Constant<value_int = 1>()
        three = Constant<value_int = 3>()
        a = If(yes) <
            then_branch = t () => (float[] p) {
                p = If(no) < then_branch = tt () => (float[] pp) { pp = Unsqueeze(x, one) },
                             else_branch = te () => (float[] pe) { pe = Sin(x) } > },
            else_branch = e () => (float[] q) { q = ReduceSum<keepdims = 0>(x) }
        >
        s = Shape(a) w = Gather<axis = 0>(s, one) c = Equal(w, three)
        y = If(c) < then_branch = t () => (float[N,3] p) { p = Exp(a) },
                    else_branch = e () => (float[N,3] q) { q = Neg(a) } >
    }""")
    assert [op for op in operators(model) if op in {"Sin", "Exp", "Neg", "Unsqueeze"}] == ["Sin", "Exp"]


def test_names_that_two_subgraphs_share_do_not_clash():
    text = """m (float[2,3] x, bool g) => (float[2,3] y, float[2,3] z) {
        c = Constant<value = bool {1}>()
        y = If(c) < then_branch = t () => (float[2,3] p) { k = Sin(x) only = Exp(k) p = Neg(only) },
                    else_branch = e () => (float[2,3] q) { k = Cos(x) q = Neg(k) } >
        z = If(g) < then_branch = t () => (float[2,3] p) { k = Exp(x) p = Neg(k) },
                    else_branch = e () => (float[2,3] q) { q = Neg(x) } >
    }"""
    model = same(text, still=1, x=X, g=np.array(True))
    assert "only" in {o.name for node in model.core.graph for o in node.outputs}


def test_outputs_that_have_a_name_already_keep_it():
    same("""m (float[2,3] x) => (float[2,3] y, float[2,3] z, float[3] w) {
        c = Constant<value = bool {1}>()
        y, z, w = If(c) <
            then_branch = t () => (float[2,3] p, float[2,3] p1, float[3] k) <float[3] k = {1, 2, 3}> {
                p = Exp(x) p1 = Identity(p) },
            else_branch = e () => (float[2,3] q, float[2,3] q1, float[3] l) <float[3] l = {1, 2, 3}> {
                q = Sin(x) q1 = Cos(x) } >
    }""")


def test_weights_of_a_branch_move_with_it():
    model = same("""m (float[2,3] x) => (float[2,2] y) {
        c = Constant<value = bool {1}>()
        y = If(c) < then_branch = t () => (float[2,2] p) <float[3,2] w = {1,2,3,4,5,6}> { p = MatMul(x, w) },
                    else_branch = e () => (float[2,2] q) <float[3,2] w2 = {6,5,4,3,2,1}> { q = MatMul(x, w2) } >
    }""")
    assert "w" in model.core.graph.initializers
