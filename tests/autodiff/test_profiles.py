"""Every profile computes the portable gradients, in operators of its own choice."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from support.graphs import graph
from support.helpers import node_model, quiet_session

from onnx_gradcam.autodiff.backward import backward
from onnx_gradcam.autodiff.providers import PROFILES, differentiate
from onnx_gradcam.autodiff.providers.cpu import _unscaled
from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load

PORTABLE = {
    "Add", "Concat", "Conv", "ConvTranspose", "Div", "Equal", "Expand", "Gemm", "Greater", "Less", "MatMul", "MaxPool",
    "Mul", "Or", "Pad", "Reshape", "Shape", "Slice", "SpaceToDepth", "Sum", "Where", "Xor",
}  # fmt: skip
"""What the portable gradient of a convolutional classifier may consist of: operators that ONNX Runtime's providers,
TensorRT (onnx-tensorrt's table of operators) and the converters all know. No indices of a MaxPool, no Col2Im, no
scatter."""


def emitted(model, profile):
    """The gradient of a random weighting of the first output by the input `x`, and the operators that compute it."""
    model = load(model)
    t = Builder(model)
    x, y = t.find("x") or t.wrap(t.graph.inputs[0]), t.wrap(t.graph.outputs[0])
    seed = t.input("cotangent", y.dtype, y.shape)
    (g,) = differentiate(t, {y: seed}, [x], profile)
    t.output(g, "gradient")
    t.finish()
    nodes = [n for n in model.core.graph if str(n.name).startswith("onnx_gradcam/")]
    return model.to_proto(), [n.op_type for n in nodes], nodes


def both(model, feeds):
    """The gradients by the profiles for the same cotangent, and the operators of each."""
    found, operators = {}, {}
    for profile in ("portable", "cpu"):
        proto, operators[profile], _ = emitted(model, profile)
        session = quiet_session(proto)
        first = session.get_outputs()[0].name
        (y,) = quiet_session(model).run([first], feeds)
        cotangent = np.random.default_rng(7).standard_normal(y.shape).astype(y.dtype)
        (found[profile],) = session.run(["gradient"], {**feeds, "cotangent": cotangent})
    return found, operators


def assert_same(found, tolerance=2e-6):
    scale = np.abs(found["portable"]).max()
    assert scale > 0
    for profile, gradient in found.items():
        np.testing.assert_allclose(gradient, found["portable"], rtol=0, atol=tolerance * scale, err_msg=profile)


MIRRORED = {
    "plain": ((2, 3, 7, 6), (4, 3, 3, 3), {}),
    "one by one": ((2, 3, 5, 4), (4, 3, 1, 1), {}),
    "even kernel, asymmetric pads": ((2, 3, 7, 6), (4, 3, 2, 4), {"pads": [1, 0, 0, 3]}),
    "groups": ((2, 6, 6, 5), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((2, 3, 6, 6), (3, 1, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise with multiplier": ((1, 3, 5, 6), (6, 1, 3, 2), {"group": 3}),
    "dilation": ((2, 2, 9, 8), (3, 2, 3, 2), {"dilations": [2, 3], "pads": [2, 1, 2, 1]}),
    "valid": ((1, 2, 8, 7), (2, 2, 3, 3), {"auto_pad": "VALID"}),
    "same upper, even kernel": ((1, 2, 5, 6), (2, 2, 2, 4), {"auto_pad": "SAME_UPPER"}),
    "same lower, even kernel": ((1, 2, 5, 6), (2, 2, 2, 4), {"auto_pad": "SAME_LOWER"}),
    "one dimension": ((2, 3, 9), (4, 3, 4), {"pads": [1, 2]}),
    "three dimensions": ((1, 2, 5, 4, 6), (3, 2, 2, 3, 2), {"pads": [0, 1, 1, 1, 0, 0]}),
}
TRANSPOSED = {
    "stride": ((2, 3, 8, 9), (4, 3, 3, 2), {"strides": [2, 3], "pads": [1, 0, 1, 1]}),
    "stride along one axis": ((2, 3, 8, 9), (4, 3, 3, 3), {"strides": [1, 2]}),
    "stride and blocks": ((1, 16, 8, 8), (32, 16, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "stride and groups": ((2, 6, 6, 5), (4, 3, 3, 3), {"group": 2, "strides": [2, 2]}),
    "same with a stride": ((1, 2, 7, 8), (2, 2, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "padding beyond the kernel": ((1, 1, 4, 4), (1, 1, 2, 2), {"pads": [2, 3, 4, 1]}),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", [*MIRRORED, *TRANSPOSED])
def test_convolutions(case, dynamic):
    image, weight, attributes = {**MIRRORED, **TRANSPOSED}[case]
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (image, weight))
    model = node_model("Conv", {"x": x, "w": w}, constants=["w"], dynamic=dynamic, **attributes)
    found, operators = both(model, {"x": x})
    assert_same(found)
    if case in MIRRORED:
        assert operators["cpu"] == ["Conv"]
    else:
        assert "ConvTranspose" in operators["cpu"]


@pytest.mark.parametrize("strides", ["1,1", "2,2"])
def test_the_scale_of_a_batch_normalisation_goes_into_the_weight(strides):
    rng = np.random.default_rng(1)
    model = graph(
        f"c = Conv<strides=[{strides}], group=2>(x, K) y = BatchNormalization(c, s, b, m, v)",
        inputs="float[N,32,8,8] x",
        outputs="float[N,48,h,w] y",
        K=(48, 16, 3, 3),
        **{k: rng.uniform(0.5, 2, 48).astype(np.float32) for k in "sbmv"},
    )
    x = rng.standard_normal((2, 32, 8, 8)).astype(np.float32)
    found, operators = both(model, {"x": x})
    assert_same(found)
    assert "Mul" in operators["portable"]
    assert "Mul" not in operators["cpu"]


def test_a_factor_that_broadcasts_the_cotangent_stays_where_it_is():
    t = Builder(load(graph("y = Conv(x, K)", outputs="float[N,4,6,6] y", K=(4, 3, 3, 3))))
    factor = t.const(np.arange(4).reshape(4, 1, 1), np.float32)
    for channels, moves in ((4, True), (1, False)):
        plain = t.input(f"plain{channels}", np.float32, ("N", channels, 6, 6))
        found, scale = _unscaled(t, plain * factor, 4)
        assert (found is plain, scale is not None) == (moves, moves)


def test_a_weight_that_is_computed_keeps_the_portable_rule():
    model = graph("y = Conv(x, z)", inputs="float[N,3,8,8] x, float[4,3,3,3] z", outputs="float[N,4,6,6] y")
    _, portable, _ = emitted(model, "portable")
    assert emitted(model, "cpu")[1] == portable


SMALLEST = np.finfo(np.float32).smallest_normal


def test_relu_at_its_kink_and_at_the_ends_of_float32():
    x = np.array([-1, -SMALLEST, -0.0, 0.0, SMALLEST, 1e-30, 1e-7, 1, 3e38], np.float32)
    found, operators = both(node_model("Relu", {"x": x}), {"x": x})
    np.testing.assert_array_equal(found["cpu"], found["portable"])
    assert np.count_nonzero(found["cpu"]) == 5
    assert operators["cpu"] == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize("high", [6.0, 1.0, 20.0, 0.1, 4.0, 3.9999998, 1e-6, 12345.678])
def test_clip_at_both_kinks(high):
    high = np.float32(high)
    below = np.nextafter(high, np.float32(0))
    x = np.array([-1, 0, SMALLEST, high / 2, np.nextafter(below, np.float32(0)), below, high, high * 2], np.float32)
    bounds = {"min": np.zeros((), np.float32), "max": high.reshape(())}
    found, operators = both(node_model("Clip", {"x": x, **bounds}, constants=["min", "max"]), {"x": x})
    np.testing.assert_array_equal(found["cpu"], found["portable"])
    assert np.count_nonzero(found["cpu"]) == 4
    assert set(operators["cpu"]) == {"HardSigmoid", "Mul"}


@pytest.mark.parametrize("high", [6.0, 1.0, 0.1, 4.0, 6.3, 20.0])
def test_clip_at_both_kinks_in_the_blocked_layout(high):
    high = np.float32(high)
    below = np.nextafter(high, np.float32(0))
    special = [-1, 0, SMALLEST, 1e-30, 1e-7, high / 2, np.nextafter(below, np.float32(0)), below, high, high * 2, 3e38]
    x = np.resize(np.array(special, np.float32), (2, 16, 3, 5))
    model = graph(
        "c = Conv<group=16>(x, I) y = Clip(c, low, high)",
        inputs="float[N,16,3,5] x",
        outputs="float[N,16,3,5] y",
        I=np.ones((16, 1, 1, 1), np.float32),
        low=np.zeros((), np.float32),
        high=high.reshape(()),
    )
    found, operators = both(model, {"x": x})
    np.testing.assert_array_equal(found["cpu"], found["portable"])
    assert 0 < np.count_nonzero(found["cpu"]) < x.size
    assert operators["cpu"].count("Mul") == 1


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, None), (None, 6.0), (0.0, np.inf), (0.0, 1e-30), (0, -1)])
def test_other_bounds_keep_the_portable_rule(low, high):
    bounds = {k: None if v is None else np.array(v, np.float32) for k, v in (("min", low), ("max", high))}
    x = np.linspace(-2, 2, 9, dtype=np.float32)
    constants = [k for k, v in bounds.items() if v is not None]
    model = node_model("Clip", {"x": x, **bounds}, constants=constants)
    assert emitted(model, "cpu")[1] == emitted(model, "portable")[1]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_keep_the_portable_rules(dtype):
    name = {np.float16: "float16", np.float64: "double"}[dtype]
    model = graph(
        "c = Conv(x, K) r = Relu(c) l = Clip(r, low, high) y = GlobalAveragePool(l)",
        inputs=f"{name}[N,3,8,8] x",
        outputs=f"{name}[N,16,1,1] y",
        dtype=dtype,
        K=(16, 3, 3, 3),
        low=np.zeros((), dtype),
        high=np.full((), 6, dtype),
    )
    assert emitted(model, "cpu")[1] == emitted(model, "portable")[1]


def test_an_attribute_that_nobody_knows_is_still_refused():
    model = node_model(
        "Conv", {"x": np.zeros((1, 1, 3, 3), np.float32), "w": np.ones((1, 1, 1, 1), np.float32)}, constants=["w"]
    )
    loaded = load(model)
    next(iter(loaded.core.graph)).attributes.add(importlib.import_module("onnx_ir").AttrInt64("novel", 1))
    t = Builder(loaded)
    y, x = t.wrap(t.graph.outputs[0]), t.wrap(t.graph.inputs[0])
    with pytest.raises(UnsupportedError, match="novel"):
        backward(t, {y: t.input("g", np.float32, y.shape)}, [x], PROFILES["cpu"].rules())


def test_ties_of_a_pool_go_to_the_first_in_every_profile():
    model = graph(
        "c = Conv<pads=[1,1,1,1]>(x, K) r = Relu(c) y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)",
        outputs="float[N,16,4,4] y",
        K=(16, 3, 3, 3),
    )
    x = np.ones((1, 3, 8, 8), np.float32)  # every window inside is full of ties, above zero and at zero
    found, _ = both(model, {"x": x})
    assert_same(found)


# ----- whole networks ------------------------------------------------------------


@pytest.fixture
def networks(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return importlib.import_module("networks")


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "squeezenet1_1", "vgg16"])
def test_whole_networks(networks, name):
    model = networks.build(name, size=64, width=1 / 4)
    found, operators = both(model, {"input": networks.photo_like(2, 64)})
    assert_same(found, 2e-5)
    assert set(operators["portable"]) <= PORTABLE
    assert set(operators["cpu"]) <= PORTABLE | {"HardSigmoid"}


POOLS = {
    "overlapping": "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r)",
    "apart": "MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)",
    "large": "MaxPool<kernel_shape=[13,13], strides=[1,1], pads=[6,6,6,6]>(r)",
    "ceil": "MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(r)",
    "average": "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r)",
    "average, counting": "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(r)",
    "global": "GlobalAveragePool(r)",
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("size", ["17,15", "H,W"])
def test_the_portable_profile_has_no_indices_no_scatter_and_no_col2im(pool, size):
    model = graph(
        f"c = Conv<strides=[2,2]>(x, K) r = Relu(c) y = {POOLS[pool]}",
        inputs=f"float[N,3,{size}] x",
        outputs="float[N,8,h,w] y",
        K=(8, 3, 3, 3),
    )
    _, operators, nodes = emitted(model, "portable")
    arithmetic = {"Add", "Sub", "Mul", "Div", "Min", "Max", "Gather", "Squeeze", "Unsqueeze", "Range", "Shape", "Cast"}
    assert set(operators) <= (PORTABLE if "H" not in size else PORTABLE | arithmetic) | {"AveragePool"}
    assert all(len(n.outputs) == 1 for n in nodes)


# ----- how a user reaches them ---------------------------------------------------


def test_an_explained_model_says_its_profile_and_its_map_is_the_same():
    model = graph(
        "c = Conv<pads=[1,1,1,1]>(x, K) r = Relu(c) d = Conv(r, L) e = Relu(d) f = Flatten(e) y = Gemm(f, W)",
        K=(16, 3, 3, 3),
        L=(16, 16, 3, 3),
        W=(576, 4),
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    cams = {}
    for profile in PROFILES:
        explained = attach(model, profile=profile, layer="r")
        assert explained.metadata.profile == profile
        proto = explained.to_proto()
        assert any(n.op_type == "HardSigmoid" for n in proto.graph.node) == (profile == "cpu")
        (cams[profile],) = quiet_session(proto).run(["cam"], {"x": x})
    assert_same(cams)
