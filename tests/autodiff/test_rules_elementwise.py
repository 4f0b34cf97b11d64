"""VJP rules of arithmetic, elementary functions and pass-through operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.helpers import check_model, check_node, node_model

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.reference import evaluate, evaluator
from onnx_gradcam.errors import UnsupportedError


def rng():
    return np.random.default_rng(7)


def uniform(low, high, *shape):
    return rng().uniform(low, high, shape).astype(np.float32)


def gradients(op_type, inputs, wrt, **options):
    """The cotangents of a node for a cotangent of ones."""
    model = node_model(op_type, inputs, **options)
    graph = gradient_model(model, wrt).to_proto()
    feeds = {**inputs, "cotangent": np.ones(model_shape(model), np.float32)}
    wanted = {i.name for i in graph.graph.input}
    return evaluate(evaluator(graph), {k: v for k, v in feeds.items() if k in wanted})


def model_shape(model):
    return [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]


UNARY = {
    "Identity": (-2, 2),
    "Neg": (-2, 2),
    "Abs": (0.1, 2),
    "Exp": (-2, 2),
    "Log": (0.2, 3),
    "Sqrt": (0.2, 3),
    "Reciprocal": (0.3, 2),
    "Erf": (-2, 2),
    "Sin": (-3, 3),
    "Cos": (-3, 3),
    "Tan": (-1.2, 1.2),
    "Asin": (-0.9, 0.9),
    "Acos": (-0.9, 0.9),
    "Atan": (-2, 2),
    "Sinh": (-2, 2),
    "Cosh": (-2, 2),
    "Asinh": (-2, 2),
    "Acosh": (1.1, 3),
    "Atanh": (-0.9, 0.9),
}


@pytest.mark.parametrize("op_type", UNARY)
def test_elementary_function(op_type):
    x = uniform(*UNARY[op_type], 2, 3, 4)
    if op_type in {"Abs", "Reciprocal"}:
        x[:, 1] *= -1
    check_node(op_type, {"x": x})


def test_abs_passes_nothing_at_zero():
    (dx,) = gradients("Abs", {"x": np.array([-2, 0, 3], np.float32)}, ["x"])
    np.testing.assert_array_equal(dx, [-1, 0, 1])


BROADCASTS = [
    ((2, 3), (2, 3)),
    ((2, 3, 4), (3, 1)),
    ((4,), (2, 3, 4)),
    ((2, 1, 4), (3, 1)),
    ((), (2, 2)),
    ((1, 3), (1, 1)),
]


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
def test_arithmetic_broadcasts(op_type, shapes):
    r = rng()
    a, b = (r.uniform(0.5, 2, s).astype(np.float32) for s in shapes)
    check_node(op_type, {"a": a, "b": -b})


def test_a_tensor_used_twice_gets_both_cotangents():
    check_model(
        onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 18]>
            m (float[2,3] x) => (float[2,3] y) { a = Mul(x, x)  y = Div(a, x) }"""),
        {"x": uniform(0.5, 2, 2, 3)},
        ["x"],
    )


def test_mod_truncates_with_fmod():
    a = np.array([[5.3, -4.2, 7.7], [-9.1, 2.4, -0.3]], np.float32)
    b = np.array([2.0, -1.5, 3.0], np.float32)
    check_node("Mod", {"a": a, "b": b}, fmod=1)


def test_mod_floors_without_fmod():
    a = np.array([[5.3, -4.2, 7.7], [-9.1, 2.4, -0.3]], np.float32)
    b = np.array([2.0, -1.5, 3.0], np.float32)
    check_node("Mod", {"a": a, "b": b}, opset=28, runtime=False)


class TestPow:
    @pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
    def test_both_inputs(self, shapes):
        r = rng()
        a, b = r.uniform(0.5, 2, shapes[0]), r.uniform(-2, 3, shapes[1])
        check_node("Pow", {"a": a.astype(np.float32), "b": b.astype(np.float32)})

    @pytest.mark.parametrize("exponent", [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    def test_negative_base_and_constant_exponent(self, exponent):
        b = np.array(exponent, np.float32)
        check_node("Pow", {"a": uniform(-2, -0.5, 2, 3), "b": b}, constants=["b"])

    @pytest.mark.parametrize("exponent", [0.5, -0.5, 1.7])
    def test_constant_fractional_exponent(self, exponent):
        b = np.array([exponent], np.float32)
        check_node("Pow", {"a": uniform(0.5, 2, 2, 3), "b": b}, constants=["b"])

    @pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0])
    def test_base_zero(self, exponent):
        a, b = np.array([[0.0, -1.5, 2.0]], np.float32), np.array(exponent, np.float32)
        expected = exponent * np.array([[0.0 if exponent != 1 else 1.0, (-1.5) ** (exponent - 1), 2 ** (exponent - 1)]])
        for constants in ([], ["b"]):
            (da,) = gradients("Pow", {"a": a, "b": b}, ["a"], constants=constants)
            np.testing.assert_allclose(da, expected, rtol=1e-6)

    def test_exponents_one_by_one_at_base_zero(self):
        a, b = np.zeros((1, 4), np.float32), np.array([0, 1, 2, 3], np.float32)
        da, db = gradients("Pow", {"a": a, "b": b}, ["a", "b"])
        np.testing.assert_array_equal(da, [[0, 1, 0, 0]])
        np.testing.assert_array_equal(db, np.zeros(4))

    def test_negative_base_carries_nothing_to_the_exponent(self):
        a, b = np.array([[-2.0, 2.0]], np.float32), np.array([2.0, 2.0], np.float32)
        (db,) = gradients("Pow", {"a": a, "b": b}, ["b"])
        np.testing.assert_allclose(db, [0, 4 * np.log(2)], rtol=1e-6)

    def test_integer_exponents(self):
        check_node("Pow", {"a": uniform(-2, -0.5, 2, 3), "b": np.array([3, 0, 2], np.int64)}, wrt=["a"])


@pytest.mark.parametrize("op_type", ["Sum", "Mean", "Max", "Min"])
@pytest.mark.parametrize(
    "shapes", [((2, 3),), ((2, 3), (3,)), ((2, 1), (1, 3), (2, 3)), ((), (2, 2), (2, 1), (1,))], ids=str
)
def test_variadic(op_type, shapes):
    r = rng()
    check_node(op_type, {f"x{i}": r.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)})


@pytest.mark.parametrize("op_type", ["Max", "Min"])
def test_ties_split_evenly_among_the_tied(op_type):
    sign = 1 if op_type == "Max" else -1
    a, b, c = (sign * np.array(v, np.float32) for v in ([[1, 2, 3, 5]], [[1, 2, 0, 4]], [[1, 0, 3, 6]]))
    found = gradients(op_type, {"a": a, "b": b, "c": c}, ["a", "b", "c"])
    third = 1 / 3
    np.testing.assert_allclose(np.concatenate(found), [[third, 0.5, 0.5, 0], [third, 0.5, 0, 0], [third, 0, 0.5, 1]])


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3), (2, 3)), ((3,), (2, 1), (2, 3)), ((2, 2, 3), (3,), ())], ids=str)
def test_where(shapes):
    r = rng()
    condition = r.uniform(size=shapes[0]) > 0.5
    a, b = (r.standard_normal(s).astype(np.float32) for s in shapes[1:])
    check_node("Where", {"c": condition, "a": a, "b": b})


def test_where_keeps_what_is_not_chosen_out():
    c, a, b = np.array([True, False]), np.ones(2, np.float32), np.ones(2, np.float32)
    model = node_model("Where", {"c": c, "a": a, "b": b})
    graph = gradient_model(model, ["a", "b"]).to_proto()
    da, db = evaluate(evaluator(graph), {"c": c, "cotangent": np.array([np.nan, 2], np.float32)})
    np.testing.assert_array_equal(da, [np.nan, 0])
    np.testing.assert_array_equal(db, [0, 2])


def test_cast_returns_to_the_type_of_the_input():
    model = node_model("Cast", {"x": uniform(-1, 1, 2, 3)}, to=TensorProto.FLOAT16)
    graph = gradient_model(model, ["x"]).to_proto()
    g = np.arange(6, dtype=np.float16).reshape(2, 3)
    (dx,) = evaluate(evaluator(graph), {"cotangent": g})
    assert dx.dtype == np.float32
    np.testing.assert_array_equal(dx, g)


def test_cast_to_integers_and_back_carries_nothing():
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
                helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["x", "f"], ["y"]),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    check_model(model, {"x": np.array([1.5, 2.4, -3.3], np.float32)}, ["x"])


def test_cast_like():
    check_node("CastLike", {"x": uniform(-1, 1, 2, 3), "like": uniform(-1, 1, 1)}, wrt=["x"])


@pytest.mark.parametrize("ratio", [None, np.array(0.5, np.float32)], ids=["no ratio", "ratio"])
@pytest.mark.parametrize("mode", [None, np.array(False)], ids=["no mode", "inference"])
def test_dropout_at_inference(ratio, mode):
    inputs = {"x": uniform(-1, 1, 2, 3), "ratio": ratio, "mode": mode}
    check_node("Dropout", inputs, wrt=["x"], constants=[k for k in ("ratio", "mode") if inputs[k] is not None], seed=3)


@pytest.mark.parametrize("constants", [["mode"], []], ids=["training", "unknown"])
def test_dropout_in_training_is_refused(constants):
    inputs = {"x": uniform(-1, 1, 2, 3), "ratio": np.array(0.5, np.float32), "mode": np.array(True)}
    model = node_model("Dropout", inputs, constants=constants)
    with pytest.raises(UnsupportedError, match=r"'y' is in training mode; export the model for inference"):
        gradient_model(model, ["x"])


def test_range():
    start, limit, delta = (np.array(v, np.float32) for v in (1.5, 8.2, 1.3))
    check_node("Range", {"start": start, "limit": limit, "delta": delta}, wrt=["start", "delta"], dynamic=False)


@pytest.mark.parametrize("op_type", ["Add", "Pow", "Max", "Where"])
def test_empty_tensors(op_type):
    inputs = {"a": np.zeros((0, 3), np.float32), "b": np.ones((3,), np.float32)}
    if op_type == "Where":
        inputs = {"c": np.zeros((0, 3), np.bool_), **inputs}
    check_node(op_type, inputs)
