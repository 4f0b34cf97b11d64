"""The builder types each node, shares constants, keeps names unique, and removes what no output needs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import parser
from support.helpers import needs_opset, quiet_session

from onnx_gradcam.errors import ModelError, UnsupportedError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load


def builder(text, opset=18):
    return Builder(load(parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]>\n{text}')))


def plain(inputs="float[2,3] x", opset=18):
    return builder(f"g ({inputs}) => (float[N,M] y) {{ y = Identity(x) }}", opset)


def result(t, value, **feeds):
    """The array that ONNX Runtime computes for an appended value."""
    t.output(value, "result")
    t.finish()
    session = quiet_session(t.model.to_proto())
    names = {i.name for i in session.get_inputs()}
    return session.run(["result"], {k: v for k, v in feeds.items() if k in names})[0]


X = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]], np.float32)


# ----- values ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda x: x + 1.0, X + 1),
        (lambda x: 1.0 + x, X + 1),
        (lambda x: x - 1.0, X - 1),
        (lambda x: 1.0 - x, 1 - X),
        (lambda x: x * x, X * X),
        (lambda x: 2.0 * x, 2 * X),
        (lambda x: x / 2.0, X / 2),
        (lambda x: 2.0 / x, 2 / X),
        (lambda x: x**2.0, X**2),
        (lambda x: -x, -X),
        (lambda x: x > 0.5, X > 0.5),
        (lambda x: x >= 0.5, X >= 0.5),
        (lambda x: x < 0.5, X < 0.5),
        (lambda x: x <= 0.5, X <= 0.5),
    ],
)
def test_arithmetic_on_values_is_that_of_numpy(write, expected):
    t = plain()
    np.testing.assert_allclose(result(t, write(t.find("x")), x=X), expected, rtol=1e-6)


def test_matmul_operator():
    t = plain("float[2,3] x, float[3,4] w")
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(result(t, t.find("x") @ t.find("w"), x=X, w=w), X @ w, rtol=1e-6)


def test_a_value_knows_type_shape_and_rank():
    t = plain("float[N,3,?] x")
    x = t.find("x")
    assert x.dtype == np.float32
    assert x.is_float
    assert x.shape[:2] == ("N", 3)
    assert not isinstance(x.shape[2], int)
    assert x.rank == 3
    assert t.find("x") is x
    assert t.find("nowhere") is None
    assert not t.op("Shape", x).is_float


def test_what_is_unknown_is_refused_by_name():
    t = builder("g (float[N] x, int64[K] s) => (float[A,B] y) { y = Reshape(x, s) }")
    free = builder("g (float[N] x, int64[K] s) => (float z) { y = Reshape(x, s)\n z = ReduceSum<keepdims = 0>(y) }")
    assert free.find("y").known_shape is None
    with pytest.raises(ModelError, match="the rank of tensor 'y' is unknown"):
        _ = free.find("y").shape
    with pytest.raises(UnsupportedError, match="Det needs the static shape of tensor 'x', which is \\['N'\\]"):
        t.find("x").dims("Det")
    assert plain().find("x").dims() == (2, 3)


def test_only_constants_have_an_array():
    t = builder("g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { k = Constant<value_floats = [3.0, 4.0]>()\n"
                " a = Add(w, k)\n y = Add(x, a) }")  # fmt: skip
    np.testing.assert_array_equal(t.find("w").array(), [1, 2])
    np.testing.assert_array_equal(t.find("k").array(), [3, 4])
    assert t.find("x").array() is None
    assert t.find("a").array() is None


# ----- constants and names ---------------------------------------------------


def test_equal_constants_are_shared_and_different_ones_are_not():
    t = plain()
    assert t.const(1.0, np.float32) is t.const(np.float32(1))
    assert t.ints(1, 2) is t.ints(1, 2)
    distinct = [
        t.const(1.0, np.float32),
        t.const([1.0], np.float32),
        t.const(1.0, np.float64),
        t.const(-1.0, np.float32),
        t.const(0.0, np.float32),
        t.const(-0.0, np.float32),
        t.const(0, np.int64),
        t.const(0, np.int32),
        t.const(0, np.uint32),
    ]
    assert len({v.name for v in distinct}) == len(distinct)
    assert t.const(1.0, np.float32).shape == ()


def test_constants_of_types_of_one_size_are_not_mixed_up():
    t = plain()
    kinds = [ml_dtypes.bfloat16, np.float16, np.int16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.int8]
    values = [t.const(np.zeros(2, kind)) for kind in kinds]
    assert [v.dtype for v in values] == [np.dtype(kind) for kind in kinds]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_a_bare_number_takes_the_type_of_the_tensor(kind):
    name = {"float16": "float16", "float32": "float", "float64": "double", "bfloat16": "bfloat16"}[np.dtype(kind).name]
    t = builder(f"g ({name}[2] x) => ({name}[2] y) {{ y = Identity(x) }}")
    assert (t.find("x") * 0.5).dtype == np.dtype(kind)


def test_a_bare_number_takes_the_type_of_the_first_tensor_that_is_not_boolean():
    t = plain()
    x = t.find("x")
    assert t.op("Where", x > 0.0, x, 0.0).dtype == np.float32


def test_names_never_collide_with_those_of_the_model():
    t = builder('g (float[2] x) => (float[2] y) { ["onnx_gradcam/Neg_1"] "onnx_gradcam/Neg_2" = Exp(x)\n'
                ' y = Neg("onnx_gradcam/Neg_2") }')  # fmt: skip
    names = {t.op("Neg", t.find("x")).name for _ in range(5)}
    assert len(names) == 5
    assert not names & {"onnx_gradcam/Neg_1", "onnx_gradcam/Neg_2"}
    assert t.taken("x")
    assert not t.taken("heatmap")


def test_an_explained_model_can_be_built_upon_again():
    t = plain()
    t.output(t.find("x") * 2.0, "twice")
    t.finish()
    again = Builder(load(t.model.to_proto()))
    again.output(again.find("twice") + again.find("x"), "thrice")
    again.finish()
    again.model.check()
    got = quiet_session(again.model.to_proto()).run(["twice", "thrice"], {"x": X})
    np.testing.assert_allclose(got[1], 3 * X)


# ----- nodes -----------------------------------------------------------------


def test_a_wrong_node_fails_on_the_line_that_appends_it():
    t = plain("float[2,3] x, float[4,5] w")
    with pytest.raises(ModelError, match=r"cannot append MatMul to inputs of shapes \[\(2, 3\), \(4, 5\)\]"):
        t.op("MatMul", t.find("x"), t.find("w"))
    with pytest.raises(ModelError, match="cannot append Add"):
        t.op("Add", t.find("x"), t.ints(1))


def test_several_outputs_and_an_omitted_input():
    t = plain()
    values, indices = t.ops("TopK", t.find("x"), t.ints(1), outputs=2, axis=1)
    assert (values.shape, indices.shape) == ((2, 1), (2, 1))
    assert indices.dtype == np.int64
    clipped = t.op("Clip", t.find("x"), None, 1.0)
    np.testing.assert_allclose(result(t, clipped, x=X), np.minimum(X, 1))


def test_an_attribute_of_none_is_omitted():
    t = plain()
    value = t.op("Gemm", t.find("x"), t.find("x"), transB=1, alpha=None)
    assert set(value.core.producer().attributes) == {"transB"}


def test_refining_a_shape_cannot_contradict_inference():
    t = plain("float[N,3] x")
    x = t.find("x")
    assert t.op("Neg", x, shape=("N", 3)).shape == ("N", 3)
    with pytest.raises(ModelError, match=r"has shape \['N', 3\], not \['N', 4\]"):
        t.op("Neg", x, shape=("N", 4))
    with pytest.raises(ModelError, match="has shape"):
        t.op("Neg", x, shape=("N",))
    assert t.op("Neg", x, shape=(7, 3)).shape == (7, 3)


def test_finish_removes_what_no_output_needs_and_only_that():
    t = builder("g (float[2] x) => (float[2] y) { y = Exp(x)\n unused = Neg(x) }")
    used = t.find("x") * 3.0
    _ = (t.find("x") * 5.0) + 7.0
    t.output(used, "out")
    t.finish()
    nodes = [n.op_type for n in t.model.core.graph]
    assert nodes == ["Exp", "Neg", "Mul"]
    assert [float(v.const_value.numpy()) for v in t.model.core.graph.initializers.values()] == [3.0]


def test_an_output_of_unknown_rank_can_be_made():
    t = builder("g (float[N] x, int64[K] s) => (float z) { y = Reshape(x, s)\n z = ReduceSum<keepdims = 0>(y) }")
    t.output(t.op("Neg", t.find("y")), "negated")
    t.finish()
    x = np.arange(6, dtype=np.float32)
    (got,) = quiet_session(t.model.to_proto()).run(["negated"], {"x": x, "s": np.array([2, 3])})
    np.testing.assert_array_equal(got, -x.reshape(2, 3))


# ----- shapes ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "shape_ops"),
    [("2,3", 0), ("N,3", 0), ("N,M", 1), ("?,3", 0)],
    ids=["static", "one", "two", "nameless"],
)
def test_reshape_like_is_static_where_one_dimension_is_free(declared, shape_ops):
    t = plain(f"float[{declared}] x, float[K] flat")
    value = t.reshape_like(t.find("flat"), t.find("x"))
    assert sum(n.op_type == "Shape" for n in t.graph) == shape_ops
    np.testing.assert_array_equal(result(t, value, x=X, flat=X.ravel()), X)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("declared", ["N,3", "N,M"])
def test_reshape_like_works_on_an_empty_batch(declared, batch):
    t = plain(f"float[{declared}] x, float[K] flat")
    value = t.reshape_like(t.find("flat"), t.find("x"))
    x = np.zeros((batch, 3), np.float32)
    assert result(t, value, x=x, flat=x.ravel()).shape == (batch, 3)


def test_reshape_like_an_empty_dimension():
    t = plain("float[N,0] x, float[K] flat")
    value = t.reshape_like(t.find("flat"), t.find("x"))
    assert result(t, value, x=np.zeros((4, 0), np.float32), flat=np.zeros(0, np.float32)).shape == (4, 0)


def test_expand_like_emits_no_shape_arithmetic_where_dimensions_agree():
    t = plain("float[N,3,4] x")
    x = t.find("x")
    summed = t.sum(x, [1, 2])
    value = t.expand_like(summed, x)
    assert value.shape == ("N", 3, 4)
    assert not any(n.op_type == "Shape" for n in t.graph)
    assert t.expand_like(x, x) is x
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_allclose(result(t, value, x=data), np.broadcast_to(data.sum((1, 2), keepdims=True), data.shape))


def test_expand_like_over_a_free_dimension():
    t = plain("float[N,M] x")
    x = t.find("x")
    np.testing.assert_allclose(result(t, t.expand_like(t.sum(x), x), x=X), np.full_like(X, X.sum()))


def test_expand_like_over_nameless_dimensions_does_not_take_them_for_equal():
    t = builder("g (float[?,3] x, float[?,3] b) => (float[A,B] y) { y = Add(x, b) }")
    value = t.expand_like(t.find("b"), t.find("x"))
    np.testing.assert_allclose(result(t, value, x=X, b=X[:1]), np.broadcast_to(X[:1], X.shape))


def test_full_like():
    t = plain("float[N,3] x")
    value = t.full_like(t.find("x"), 2.5)
    assert value.dtype == np.float32
    np.testing.assert_array_equal(result(t, value, x=X), np.full_like(X, 2.5))


@pytest.mark.parametrize("opset", [18, pytest.param(26, marks=needs_opset(26))])
@pytest.mark.parametrize("kind", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1"])
def test_reductions_over_some_all_and_no_axes(kind, opset):
    slow = {
        "ReduceSum": np.sum,
        "ReduceMean": np.mean,
        "ReduceMax": np.max,
        "ReduceMin": np.min,
        "ReduceL1": lambda a, **k: np.abs(a).sum(**k),
    }[kind]
    t = plain(opset=opset)
    x = t.find("x")
    assert t.reduce(kind, x, []) is x
    some, flat, everything = t.reduce(kind, x, [1]), t.reduce(kind, x, [-1], keepdims=False), t.reduce(kind, x)
    for name, value in (("some", some), ("flat", flat), ("everything", everything)):
        t.output(value, name)
    t.finish()
    got = quiet_session(t.model.to_proto()).run(["some", "flat", "everything"], {"x": X})
    np.testing.assert_allclose(got[0], slow(X, axis=1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(got[1], slow(X, axis=1), rtol=1e-6)
    np.testing.assert_allclose(got[2], slow(X, keepdims=True), rtol=1e-6)


def test_what_changes_nothing_is_not_emitted():
    t = plain()
    x = t.find("x")
    assert t.cast(x, np.float32) is x
    assert t.transpose(x, [0, 1]) is x
    assert t.transpose(x, [1, 0]).shape == (3, 2)
    assert t.cast(x, np.float16).dtype == np.float16


def test_shape_of_is_a_constant_where_it_is_static():
    t = plain("float[2,3] x")
    np.testing.assert_array_equal(t.shape_of(t.find("x")).array(), [2, 3])
    t = plain("float[N,3] x")
    assert t.shape_of(t.find("x")).array() is None


def test_an_added_input_is_typed():
    t = plain()
    seed = t.input("seed", np.float16, ("N", 3))
    assert (seed.dtype, seed.shape) == (np.float16, ("N", 3))
    assert t.taken("seed")
    proto = t.model.to_proto()
    assert proto.graph.input[-1].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
