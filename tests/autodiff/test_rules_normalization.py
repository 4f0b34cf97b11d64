"""VJP rules of normalisations."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.helpers import check_model, check_node, node_model

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.reference import evaluate, evaluator


def normal(*shape, seed=11):
    return (np.random.default_rng(seed).standard_normal(shape) * 1.5 + 0.4).astype(np.float32)


def positive(*shape):
    return np.random.default_rng(12).uniform(0.3, 2, shape).astype(np.float32)


SHAPES = [(2, 3, 4, 5), (2, 3, 4), (3, 4), (2, 3, 2, 3, 2)]


class TestBatchNormalization:
    def inputs(self, shape):
        c = shape[1]
        return {
            "x": normal(*shape),
            "scale": normal(c, seed=1),
            "bias": normal(c, seed=2),
            "mean": normal(c, seed=3),
            "var": positive(c),
        }

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_all_inputs(self, shape):
        check_node("BatchNormalization", self.inputs(shape))

    def test_constant_statistics(self):
        check_node(
            "BatchNormalization",
            self.inputs((2, 3, 4, 5)),
            constants=["scale", "bias", "mean", "var"],
            epsilon=0.1,
            momentum=0.5,
        )

    def test_a_scale_of_zero(self):
        inputs = self.inputs((2, 3, 4))
        inputs["scale"][1] = 0
        check_node("BatchNormalization", inputs)

    def test_training(self):
        check_node("BatchNormalization", self.inputs((3, 2, 4)), outputs=3, training_mode=1, opset=18, tolerance=2e-6)

    def test_the_convolution_output_is_not_asked_for(self):
        model = node_model("BatchNormalization", self.inputs((2, 3, 4)), constants=["scale", "bias", "mean", "var"])
        graph = gradient_model(model, ["x"]).to_proto().graph
        assert not [n for n in graph.node if "x" in n.input]


class TestLayerNormalization:
    @pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -2, -3])
    def test_every_axis(self, axis):
        shape = (2, 3, 4)[-1 if axis is None else axis :]
        inputs = {"x": normal(2, 3, 4), "scale": normal(*shape, seed=1), "bias": normal(*shape, seed=2)}
        check_node("LayerNormalization", inputs, axis=axis)

    @pytest.mark.parametrize("shape", [(1, 4), (4,), (3, 1)], ids=str)
    def test_scale_broadcasts(self, shape):
        inputs = {"x": normal(2, 3, 4), "scale": normal(*shape, seed=1), "bias": normal(4, seed=2)}
        check_node("LayerNormalization", inputs, axis=1, epsilon=0.05)

    def test_without_bias_and_with_all_outputs(self):
        check_node("LayerNormalization", {"x": normal(2, 5), "scale": normal(5, seed=1)}, outputs=3)

    def test_float16_is_computed_wide(self):
        x = np.array([[-300, 100, 400, -200]], np.float16)
        ones = np.ones(4, np.float16)
        graph = gradient_model(node_model("LayerNormalization", {"x": x, "scale": ones}), ["x"]).to_proto()
        g = np.array([[1000, 0, 0, 0]], np.float16)
        (dx,) = evaluate(evaluator(graph), {"x": x, "scale": ones, "cotangent": g})
        standardised = x[0].astype(float) / np.sqrt(75000)
        expected = 1000 / np.sqrt(75000) * (np.eye(4)[0] - 0.25 - standardised * standardised[0] / 4)
        assert dx.dtype == np.float16
        np.testing.assert_allclose(dx[0], expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("axis", [None, 0, 1, -2])
def test_rms_normalization(axis):
    shape = (2, 3, 4)[-1 if axis is None else axis :]
    check_node("RMSNormalization", {"x": normal(2, 3, 4), "scale": normal(*shape, seed=1)}, axis=axis, opset=23)


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 2], ids=str)
def test_instance_normalization(shape):
    c = shape[1]
    inputs = {"x": normal(*shape), "scale": normal(c, seed=1), "bias": normal(c, seed=2)}
    check_node("InstanceNormalization", inputs, epsilon=0.01)


SIZES = ["2,4,3,2", "n,4,h,w", "n,c,h,w"]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("sizes", [*SIZES, "2,4,5"])
def test_group_normalization(groups, sizes):
    # Between two other operators, because ONNX infers neither type nor shape of GroupNormalization.
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": 21]>
        m (float[{sizes}] x, float[k] scale, float[k] bias) => (float[{sizes}] y) {{
            a = Neg(x)
            b = GroupNormalization<num_groups={groups}, epsilon=0.01>(a, scale, bias)
            y = Neg(b)
        }}""")
    shape = (2, 4, 5) if sizes == "2,4,5" else (2, 4, 3, 2)
    check_model(
        model, {"x": normal(*shape), "scale": normal(4, seed=1), "bias": normal(4, seed=2)}, ["x", "scale", "bias"]
    )


@pytest.mark.parametrize("axes", ["", "<axes=[0,1,2,3]>", "<axes=[1]>", "<axes=[-1,0]>"])
@pytest.mark.parametrize("sizes", SIZES)
def test_mean_variance_normalization(sizes, axes):
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": 18]>
        m (float[{sizes}] x) => (float[{sizes}] y) {{
            a = Neg(x)
            b = MeanVarianceNormalization{axes}(a)
            y = Neg(b)
        }}""")
    check_model(model, {"x": normal(2, 4, 3, 2)}, ["x"])


class TestLpNormalization:
    @pytest.mark.parametrize("axis", [None, 0, 1, -2])
    @pytest.mark.parametrize("p", [None, 1, 2])
    def test_axes(self, axis, p):
        x = normal(2, 3, 4)
        x[np.abs(x) < 0.05] = 0.3
        check_node("LpNormalization", {"x": x}, axis=axis, p=p, opset=18, runtime=True)

    @pytest.mark.parametrize("p", [1, 2])
    def test_a_zero_vector(self, p):
        x = np.array([[0, 0], [3, 4]], np.float32)
        graph = gradient_model(node_model("LpNormalization", {"x": x}, p=p), ["x"]).to_proto()
        (dx,) = evaluate(evaluator(graph), {"x": x, "cotangent": np.array([[1, 1], [1, 0]], np.float32)})
        expected = [1 / 5 - 9 / 125, -12 / 125] if p == 2 else [4 / 49, -3 / 49]
        np.testing.assert_allclose(dx, [[0, 0], expected], rtol=1e-6)


class TestLRN:
    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
    def test_sizes(self, size):
        check_node("LRN", {"x": normal(2, 6, 3, 2)}, size=size, alpha=0.3, beta=0.6, bias=1.7)

    def test_defaults(self):
        check_node("LRN", {"x": normal(1, 5, 2, 3) * 20}, size=5)

    def test_window_wider_than_the_channels(self):
        check_node("LRN", {"x": normal(2, 3, 2, 2)}, size=9, alpha=0.5)
