"""VJP rules of matrix products."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.helpers import check_model, check_node, node_model, quiet_session

from onnx_gradcam.autodiff.check import gradient_model


def normal(*shape, seed=21):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


MATMUL = [
    ((3, 4), (4, 5)),
    ((2, 3, 4), (4, 5)),
    ((2, 2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (5, 4, 2)),
    ((1, 3, 4), (2, 4, 5)),
    ((3, 1, 2, 4), (1, 2, 4, 3)),
    ((4,), (4,)),
    ((4,), (4, 5)),
    ((4,), (2, 4, 5)),
    ((4,), (3, 2, 4, 5)),
    ((3, 4), (4,)),
    ((2, 3, 4), (4,)),
    ((1, 1), (1, 1)),
    ((2, 1, 4), (4, 1)),
]


@pytest.mark.parametrize("shapes", MATMUL, ids=str)
def test_matmul(shapes):
    check_node("MatMul", {"a": normal(*shapes[0]), "b": normal(*shapes[1], seed=22)})


@pytest.mark.parametrize("shapes", MATMUL, ids=str)
def test_matmul_by_constants(shapes):
    check_node("MatMul", {"a": normal(*shapes[0]), "b": normal(*shapes[1], seed=22)}, constants=["b"])


@pytest.mark.parametrize(
    "shapes", [((0, 3, 4), (4, 5)), ((0, 4), (4, 5)), ((0, 3, 4), (4,)), ((2, 3, 4), (4, 0))], ids=str
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_matmul_of_no_elements(shapes, dynamic):
    feeds = {"a": normal(*shapes[0]), "b": normal(*shapes[1], seed=22)}
    session = quiet_session(gradient_model(node_model("MatMul", feeds, dynamic=dynamic), ["a", "b"]).to_proto())
    feeds["cotangent"] = feeds["a"] @ feeds["b"]
    da, db = session.run(None, feeds)
    np.testing.assert_array_equal(da, np.zeros(shapes[0]))
    np.testing.assert_array_equal(db, np.zeros(shapes[1]))


def test_matmul_of_batches_that_may_be_one():
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 18]>
        m (float[p,q,3,4] a, float[r,s,4,2] b) => (float[t,u,3,2] y) { y = MatMul(a, b) }""")
    for first, second in (((2, 3), (2, 3)), ((2, 1), (1, 3)), ((1, 1), (2, 3)), ((2, 3), (2, 1))):
        check_model(model, {"a": normal(*first, 3, 4), "b": normal(*second, 4, 2, seed=22)}, ["a", "b"])


@pytest.mark.parametrize("shape", [(3, 64), (2, 3, 64), (64,)], ids=str)
def test_a_weight_matrix_is_not_held_twice(shape):
    model = node_model("MatMul", {"a": normal(*shape), "w": normal(64, 32)}, constants=["w"])
    graph = gradient_model(model, ["a"]).to_proto().graph
    assert "Transpose" not in [n.op_type for n in graph.node]
    assert [i.name for i in graph.initializer if len(i.raw_data) > 1000] == ["w"]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("c", [None, (), (1,), (5,), (3, 1), (1, 5), (3, 5), (1, 1)], ids=str)
def test_gemm(trans_a, trans_b, c):
    inputs = {
        "a": normal(*((4, 3) if trans_a else (3, 4))),
        "b": normal(*((5, 4) if trans_b else (4, 5)), seed=22),
        "c": None if c is None else normal(*c, seed=23),
    }
    check_node("Gemm", inputs, transA=trans_a, transB=trans_b, alpha=0.7, beta=1.8)


def test_gemm_defaults():
    check_node("Gemm", {"a": normal(3, 4), "b": normal(4, 5, seed=22), "c": normal(5, seed=23)})


def test_gemm_of_a_single_row():
    check_node("Gemm", {"a": normal(1, 4), "b": normal(4, 1, seed=22), "c": normal(1, seed=23)})


class TestDet:
    @pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (4, 4), (2, 3, 3), (2, 2, 3, 3), (2, 1, 1)], ids=str)
    def test_regular(self, shape):
        check_node("Det", {"x": normal(*shape)})

    def test_singular(self):
        # Rank one less than full has a gradient, rank two less has none.
        x = np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[1, 2, 3], [2, 4, 6], [3, 6, 9]]], np.float32)
        check_node("Det", {"x": x})
        graph = gradient_model(node_model("Det", {"x": x}), ["x"]).to_proto()
        (dx,) = quiet_session(graph).run(None, {"x": x, "cotangent": np.ones(2, np.float32)})
        np.testing.assert_allclose(dx[0], [[-3, 6, -3], [6, -12, 6], [-3, 6, -3]], atol=1e-4)
        np.testing.assert_allclose(dx[1], np.zeros((3, 3)), atol=1e-4)
