"""Constant folding infers shapes where ONNX's own inference gives up."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import graph

from onnx_gradcam.graph.fold import complete_shapes
from onnx_gradcam.graph.load import load


def completed(body: str, **kwargs) -> dict[str, tuple[int, ...]]:
    model = graph(body, inputs="float[2,3,8,6] x", outputs="float[] y", **kwargs)
    return complete_shapes(onnx.shape_inference.infer_shapes(model, data_prop=True)).shapes


def test_nothing_is_computed_where_inference_found_everything():
    assert completed("c = Relu(x) y = Flatten(c)") == {}


BATCH = "b = Shape<start=0, end=1>(x)"
# `expand(batch, -1, -1)` as TorchScript writes it.
EXPAND = (
    f"{BATCH} s = Concat<axis=0>(b, minus, minus) e = Expand(one, three) n = Mul(e, minus) q = Equal(s, n)"
    " w = Where(q, ones, s) y = Expand(token, w)"
)
# `pad`, whose paddings come in the other order of dimensions.
PAD = (
    "p = Concat<axis=0>(one, two, zeros, zero, one) r = Reshape(p, pairs) s = Slice(r, minus, first, zero, minus)"
    " t = Transpose<perm=[1, 0]>(s) f = Reshape(t, minus) y = Pad(x, f)"
)
FLOATING = (
    "h = Shape<start=2, end=3>(x) f = Cast<to=1>(h) d = Div(f, half) c = Ceil(d) i = Cast<to=7>(c)"
    f" {BATCH} s = Concat<axis=0>(b, i, minus) y = Reshape(x, s)"
)
RANGE = (
    "h = Shape<start=2, end=3>(x) q = Squeeze(h) r = Range(from, q, by) n = Shape(r)"
    " s = Concat<axis=0>(n, minus) y = Reshape(x, s)"
)
SPLIT = (
    "h = Shape(x) m = Neg(h) k = Abs(m) a, b, c, d = Split<num_outputs=4>(k) s = Concat<axis=0>(c, minus)"
    " y = Reshape(x, s)"
)
# "Same" padding as MATLAB writes it.
SAME = (
    "h = Shape(x) f = Cast<to=1>(h) d = Div(f, stride) c = Ceil(d) o = Sub(c, unit) m = Mul(o, stride)"
    " a = Add(m, kernel) n = Sub(a, f) r = Relu(n) b, i, j = Split<axis=0>(r, lengths)"
    " u = Div(i, couple) v = Div(j, couple) p = Concat<axis=0>(none, u, v, none, u, v) q = Cast<to=7>(p) y = Pad(x, q)"
)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (EXPAND, (2, 1, 6)),
        (PAD, (3, 3, 8, 9)),
        (FLOATING, (2, 16, 9)),
        (RANGE, (4, 72)),
        (SPLIT, (8, 36)),
        (SAME, (2, 3, 10, 8)),
    ],
    ids=["expand", "pad", "floating point", "range", "split", "same padding"],
)
def test_arithmetic_on_shapes(body, shape):
    shapes = completed(
        body,
        token=(1, 1, 6),
        minus=[-1],
        ones=[1, 1, 1],
        zero=[0],
        zeros=[0, 0, 0, 0],
        one=[1],
        two=[2],
        three=[3],
        pairs=[-1, 2],
        first=[-(2**62)],
        half=np.float32([0.5]),
        couple=np.float32([2]),
        stride=np.ones(4, np.float32),
        kernel=np.float32([1, 1, 3, 3]),
        unit=np.float32([1]),
        none=np.zeros(2, np.float32),
        lengths=[2, 1, 1],
        **{"from": 0, "by": 2},
    )
    assert shapes["y"] == shape


def test_what_depends_on_values_stays_unknown():
    shapes = completed("n = NonZero(x) t = Transpose<perm=[1, 0]>(n) y = Cast<to=1>(t)")
    assert shapes == {}


def test_arithmetic_that_has_no_result_is_left_alone():
    shapes = completed("h = Shape(x) g = Gather<axis=0>(h, nine) y = Reshape(x, g)", nine=[9])
    assert "y" not in shapes


def test_unknown_operators_and_branches_are_left_alone():
    then, other = (
        helper.make_graph([helper.make_node(op, ["c"], ["t"])], op, [], [onnx.ValueInfoProto(name="t")])
        for op in ("Relu", "Neg")
    )
    nodes = [
        helper.make_node("Mystery", ["x"], ["c"], domain="example"),
        helper.make_node("If", ["flag"], ["i"], then_branch=then, else_branch=other),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("example", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x, flag], [y]), opset_imports=imports, ir_version=10)
    assert complete_shapes(model) == ({}, False)


def test_a_free_batch_stays_a_symbol():
    model = graph(EXPAND, outputs="float[] y", token=(1, 1, 6), minus=[-1], one=[1], ones=[1, 1, 1], three=[3])
    assert load(model).shape("y") == ("N", 1, 6)
