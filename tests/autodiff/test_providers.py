"""What is written for an execution provider consists of what its documents list, and computes the portable gradient."""

from __future__ import annotations

import importlib

import numpy as np
import onnx
import pytest
from autodiff.light import ARCHITECTURES, light_model, logits
from support.graphs import graph
from support.helpers import node_model, quiet_session

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.providers import PROFILES, find_profile
from onnx_gradcam.autodiff.reference import as_double, evaluate, evaluator
from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.errors import TargetError, UnsupportedError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load

DOCUMENTED = {name: p.documented for name, p in PROFILES.items() if p.documented is not None}
EVERY_PROVIDER = pytest.mark.parametrize("profile", DOCUMENTED)
LOWERED = ["webgpu"]
"""Those that lack operators of the portable gradient."""

ABSENT = {
    "openvino": {"DeformConv", "Det", "LpPool", "MaxUnpool", "TensorScatter"},
    "cuda": {"Acos", "Asin", "CenterCropPad", "Col2Im", "Cosh", "Det", "MaxUnpool", "Mean", "Sinh", "Tan"},
    "tensorrt": {"CenterCropPad", "Col2Im", "Det", "Hardmax", "LayerNormalization", "MaxUnpool", "TensorScatter"},
    "webgpu": {
        *("And", "Col2Im", "GridSample", "Max", "MaxUnpool", "Min", "Or", "Round", "Scan", "ScatterElements", "Sign"),
        *("Size", "Softplus", "SpaceToDepth", "Sum", "TopK", "Trilu", "Xor"),
    },
}
"""Operators that rules emit, or did once, and that the documents do not have: the lists are checked against these."""


def beyond(proto, profile):
    """Why the provider would not run nodes that were appended to a model, found in the written file."""
    t = Builder(load(proto))
    mine = [n for n in t.nodes if str(n.name).startswith("onnx_gradcam/")]
    assert mine
    reasons = {DOCUMENTED[profile].problem(t, n) for n in mine} - {None}
    for node in mine:
        values = [t.wrap(v) for v in (*node.inputs, *node.outputs) if v is not None]
        if node.op_type in ABSENT[profile] and any(v.is_float for v in values):
            reasons.add(f"{node.op_type} is there")
        assert node.op_type != "MaxPool" or len(node.outputs) == 1
    return reasons


def written(model, wrt, output, profile):
    return gradient_model(model, [wrt], output, profile=profile).to_proto()


def same(model, feeds, wrt, output, *profiles, tolerance=1e-5):
    """The gradients of `portable` and of the others for a random cotangent agree in ONNX Runtime; their files."""
    portable, *others = (written(model, wrt, output, p) for p in ("portable", *profiles))
    session = quiet_session(portable)
    sizes = next(i.shape for i in session.get_inputs() if i.name == "cotangent")
    shape = [d if isinstance(d, int) else len(feeds[wrt]) for d in sizes]
    given = {**feeds, "cotangent": np.random.default_rng(3).standard_normal(shape).astype(np.float32)}
    (expected,) = session.run(None, given)
    scale = np.abs(expected).max()
    assert scale > 0
    for proto in others:
        np.testing.assert_allclose(quiet_session(proto).run(None, given)[0], expected, rtol=0, atol=tolerance * scale)
    return others


# ----- networks ------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_classifiers_of_the_onnx_package(name):
    model = light_model(name)
    x = model.graph.input[0].name
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    for profile, proto in zip(LOWERED, same(model, {x: image}, x, logits(model), *LOWERED), strict=True):
        assert not beyond(proto, profile)


@pytest.mark.parametrize("profile", ["cuda", "openvino", "tensorrt"])
@pytest.mark.parametrize("name", ["bvlc_alexnet", "resnet50", "shufflenet", "squeezenet"])
def test_some_runtimes_know_all_that_the_portable_gradient_needs(name, profile):
    model = light_model(name)
    x = model.graph.input[0].name
    portable, proto = (written(model, x, logits(model), p) for p in ("portable", profile))
    assert not beyond(proto, profile)
    assert [n.op_type for n in proto.graph.node] == [n.op_type for n in portable.graph.node]


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "vgg16", "vit_small"])
def test_classifiers_of_the_benchmarks(repository, monkeypatch, name):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    networks = importlib.import_module("networks")
    model = networks.build(name, size=32, width=1 / 8)
    image = {"input": networks.photo_like(2, 32)}
    for profile, proto in zip(LOWERED, same(model, image, "input", "logits", *LOWERED), strict=True):
        assert not beyond(proto, profile)


# ----- one operator at a time ----------------------------------------------------

IMAGE = (2, 4, 7, 6)
LAYERS = {
    "Conv": "y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, K)",
    "Conv, rows left over": "y = Conv<strides=[3,2]>(x, K)",
    "Conv, dilated": "y = Conv<dilations=[2,2], group=2, strides=[2,1]>(x, G)",
    "Conv, one by one": "y = Conv<strides=[2,2]>(x, P)",
    "ConvTranspose": "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, K)",
    "MaxPool": "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
    "MaxPool, ceil": "y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)",
    "MaxPool, same": 'y = MaxPool<kernel_shape=[2,3], strides=[2,2], auto_pad="SAME_UPPER">(x)',
    "MaxPool, dilated": "y = MaxPool<kernel_shape=[2,2], dilations=[2,3]>(x)",
    "MaxPool, large": "y = MaxPool<kernel_shape=[5,5], strides=[1,1], pads=[2,2,2,2]>(x)",
    "AveragePool": "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
    "AveragePool, stride one": "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
    "LpPool": "y = LpPool<kernel_shape=[2,2], strides=[2,2]>(x)",
    "GlobalAveragePool": "y = GlobalAveragePool(x)",
    "GlobalMaxPool": "y = GlobalMaxPool(x)",
    "BatchNormalization": "y = BatchNormalization(x, s, b, m, v)",
    "InstanceNormalization": "y = InstanceNormalization(x, s, b)",
    "LayerNormalization": "y = LayerNormalization<axis=-1>(x, w)",
    "LpNormalization": "y = LpNormalization<axis=1>(x)",
    "LRN": "y = LRN<size=3, alpha=0.5>(x)",
    "MeanVarianceNormalization": "y = MeanVarianceNormalization(x)",
    "Relu": "y = Relu(x)",
    "Clip": "y = Clip(x, low, high)",
    "LeakyRelu": "y = LeakyRelu<alpha=0.1>(x)",
    "PRelu": "y = PRelu(x, slope)",
    "Elu": "y = Elu(x)",
    "Selu": "y = Selu(x)",
    "Celu": "y = Celu<alpha=2.0>(x)",
    "HardSigmoid": "y = HardSigmoid(x)",
    "HardSwish": "y = HardSwish(x)",
    "Mish": "y = Mish(x)",
    "Sigmoid": "y = Sigmoid(x)",
    "Tanh": "y = Tanh(x)",
    "Softplus": "y = Softplus(x)",
    "Softsign": "y = Softsign(x)",
    "ThresholdedRelu": "y = ThresholdedRelu(x)",
    "Erf": "y = Erf(x)",
    "Softmax": "y = Softmax<axis=1>(x)",
    "LogSoftmax": "y = LogSoftmax<axis=1>(x)",
    "Add": "c = Add(x, s4) y = Mul(c, x)",
    "Div": "c = Div(x, s4) y = Sub(c, x)",
    "Max": "y = Max(x, s4)",
    "Min": "y = Min(x, s4)",
    "Pow": "y = Pow(x, two)",
    "Exp": "c = Exp(x) y = Sqrt(c)",
    "Abs": "y = Abs(x)",
    "Reciprocal": "c = Exp(x) y = Reciprocal(c)",
    "Sum": "p = Relu(x) q = Sigmoid(x) y = Sum(p, q, x)",
    "MatMul": "y = MatMul(x, W)",
    "MatMul of two": "z = Transpose<perm=[0,1,3,2]>(x) y = MatMul(x, z)",
    "Gemm": "f = Flatten(x) y = Gemm(f, H)",
    "Gemm of two": "f = Flatten(x) h = Relu(f) y = Gemm<alpha=2.0, transB=1>(f, h)",
    "QuantizeLinear": "q = QuantizeLinear(x, eighth, zero) y = DequantizeLinear(q, eighth, zero)",
    "ReduceMean": "y = ReduceMean<keepdims=0>(x, plane)",
    "ReduceMax": "y = ReduceMax<keepdims=0>(x, plane)",
    "ReduceMin": "y = ReduceMin<keepdims=1>(x, plane)",
    "ReduceSum": "y = ReduceSum<keepdims=0>(x, plane)",
    "ReduceL1": "y = ReduceL1<keepdims=1>(x, plane)",
    "ReduceL2": "y = ReduceL2<keepdims=1>(x, plane)",
    "Concat": "a = Relu(x) y = Concat<axis=1>(a, x)",
    "Split": "a, b = Split<axis=1, num_outputs=2>(x) y = Mul(a, a)",
    "Slice": "y = Slice(x, one, three, one)",
    "Slice with steps": "y = Slice(x, one, seven, axis2, two_i)",
    "Gather": "y = Gather<axis=1>(x, picks)",
    "Gather one": "y = Gather<axis=2>(x, scalar)",
    "Pad": "y = Pad(x, around)",
    "Transpose": "y = Transpose<perm=[0,2,3,1]>(x)",
    "Expand": "a = ReduceMean(x, plane) y = Expand(a, full)",
    "Tile": "y = Tile(x, twice)",
    "DepthToSpace": "y = DepthToSpace<blocksize=2>(x)",
    "Resize, nearest": 'y = Resize<mode="nearest">(x, , doubled)',
    "Resize, linear": 'y = Resize<mode="linear">(x, , , larger)',
    "Resize, cubic": 'y = Resize<mode="cubic">(x, , , larger)',
    "Resize, corners": 'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , smaller)',
    "Resize, antialias": 'y = Resize<mode="linear", antialias=1>(x, , , smaller)',
}  # fmt: skip
CONSTANTS = {
    "K": (4, 4, 3, 3), "G": (4, 2, 2, 3), "P": (4, 4, 1, 1), "W": (6, 5), "H": (168, 5), "s4": (4, 1, 1), "w": (6,),
    "s": np.array([1, 2, 0.5, 1.5], np.float32), "b": np.array([1, 0, 2, -1], np.float32),
    "m": np.array([0, 0.5, 1, 0], np.float32), "v": np.array([1, 0.5, 2, 3], np.float32),
    "slope": np.array([0.1, 0.2, 0.3, 0.4], np.float32).reshape(4, 1, 1),
    "low": np.array(-0.5, np.float32), "high": np.array(0.8, np.float32), "two": np.array(2, np.float32),
    "eighth": np.array(1 / 64, np.float32), "zero": np.array(3, np.int8),
    "plane": np.array([2, 3]), "one": np.array([1]), "three": np.array([3]), "seven": np.array([7]),
    "axis2": np.array([2]), "two_i": np.array([2]), "picks": np.array([2, 0]), "scalar": np.array(3),
    "around": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "full": np.array([1, 1, 7, 6]), "twice": np.array([1, 2, 1, 1]),
    "doubled": np.array([1, 1, 2, 2], np.float32), "larger": np.array([2, 4, 10, 9]),
    "smaller": np.array([2, 4, 5, 3]),
}  # fmt: skip


def layer(name, image=IMAGE):
    used = {k: v for k, v in CONSTANTS.items() if f" {k})" in LAYERS[name] or f" {k}," in LAYERS[name]}
    shape = ",".join(map(str, image))
    return graph(LAYERS[name], inputs=f"float[{shape}] x", outputs="float[a] y", **used)


@EVERY_PROVIDER
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, profile):
    model, kind = layer(name), onnx.TensorProto.FLOAT
    x = np.random.default_rng(5).standard_normal(IMAGE).astype(np.float32)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", kind, None))
    (y,) = quiet_session(model).run(None, {"x": x})
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", kind, y.shape))
    feeds = {"x": x, "cotangent": np.random.default_rng(6).standard_normal(y.shape).astype(np.float32)}
    proto = written(model, "x", "y", profile)
    assert not beyond(proto, profile)
    (expected,) = evaluate(evaluator(as_double(written(model, "x", "y", "portable"))), wide(feeds, proto))
    (double,) = evaluate(evaluator(as_double(proto)), wide(feeds, proto))
    np.testing.assert_allclose(double, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    (single,) = quiet_session(proto).run(None, {k: feeds[k] for k in (i.name for i in proto.graph.input)})
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def wide(feeds, proto):
    return {i.name: feeds[i.name].astype(np.float64) for i in proto.graph.input}


def test_pools_over_one_dimension_are_pools_over_a_row():
    model = node_model(
        "AveragePool", {"x": np.zeros((2, 3, 9), np.float32)}, kernel_shape=[3], pads=[1, 1], count_include_pad=1
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 9)).astype(np.float32)
    (proto,) = same(model, {"x": x}, "x", "y", "tensorrt")
    assert "AveragePool" in {n.op_type for n in proto.graph.node}
    assert not beyond(proto, "tensorrt")


@EVERY_PROVIDER
@pytest.mark.parametrize("name", ["Expand", "GlobalAveragePool", "MaxPool", "Conv", "Slice", "ReduceMean", "Gather"])
def test_layers_whose_batch_and_size_are_free(name, profile):
    model = layer(name, ("N", 4, "H", "W") if name not in {"Slice", "Gather"} else ("N", 4, 7, 6))
    x = np.random.default_rng(5).standard_normal(IMAGE).astype(np.float32)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    (y,) = quiet_session(model).run(None, {"x": x})
    dims = [f"y{i}" if i != 1 else d for i, d in enumerate(y.shape)]
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, dims))
    proto = written(model, "x", "y", profile)
    assert not beyond(proto, profile)
    feeds = {"x": x, "cotangent": np.random.default_rng(6).standard_normal(y.shape).astype(np.float32)}
    expected, found = (
        quiet_session(m).run(None, {i.name: feeds[i.name] for i in m.graph.input})[0]
        for m in (written(model, "x", "y", "portable"), proto)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# ----- at kinks and ties ---------------------------------------------------------


@pytest.mark.parametrize("axis", [1, -1])
def test_one_number_of_each_line_is_put_back(axis):
    rng = np.random.default_rng(0)
    size = [2, 3, 4]
    size[axis] = 1
    model = graph(
        f"y = GatherElements<axis={axis}>(x, picks)", inputs="float[2,3,4] x", outputs="float[a,b,c] y",
        picks=rng.integers(-3, 3, size),
    )  # fmt: skip
    (proto,) = same(model, {"x": rng.standard_normal((2, 3, 4)).astype(np.float32)}, "x", "y", "webgpu")
    assert not beyond(proto, "webgpu")


SMALLEST = np.finfo(np.float32).smallest_normal
TIES = {
    "zeros": np.zeros(IMAGE, np.float32),
    "ones": np.ones(IMAGE, np.float32),
    "negative": np.full(IMAGE, -2, np.float32),
    "coarse": np.round(np.random.default_rng(1).standard_normal(IMAGE)).astype(np.float32),
    "close": (1 + np.random.default_rng(2).integers(0, 2, IMAGE) * 2.0**-23).astype(np.float32),
    "tiny": (np.random.default_rng(2).integers(0, 3, IMAGE) * SMALLEST).astype(np.float32),
}


@pytest.mark.parametrize("profile", LOWERED)
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("name", [k for k in LAYERS if k.startswith("MaxPool")] + ["GlobalMaxPool", "ReduceMax", "Max"])
def test_ties_go_where_they_do_in_the_portable_gradient(name, ties, profile):
    same(layer(name), {"x": TIES[ties]}, "x", None, profile, tolerance=2e-6)


@EVERY_PROVIDER
@pytest.mark.parametrize("name", ["Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Abs"])
def test_kinks(name, profile):
    special = [-np.float32(3e38), -3, -1, -0.5, -SMALLEST, -0.0, 0.0, SMALLEST, 1e-30, 1e-7, 0.8, 1, 3, 3e38]
    x = np.resize(np.array(special, np.float32), IMAGE)
    same(layer(name), {"x": x}, "x", None, profile, tolerance=2e-7)


# ----- what is refused -----------------------------------------------------------


def cube(body, **constants):
    return graph(body, inputs="float[1,2,4,4,4] x", outputs="float[a,b,c,d,e] y", **constants)


REFUSED = {
    ("webgpu", "ConvTranspose of a tensor of rank 5"): cube("y = Conv(x, K)", K=(2, 2, 3, 3, 3)),
    ("webgpu", "ScatterElements"): graph(
        "y = GatherElements<axis=1>(x, picks)", picks=np.zeros((1, 2, 8, 8), np.int64), inputs="float[1,3,8,8] x",
        outputs="float[1,2,8,8] y",
    ),
    ("openvino", "Det"): graph("y = Det(x)", inputs="float[1,1,3,3] x", outputs="float[1,1] y"),
    ("cuda", "Cosh"): graph("y = Sinh(x)", outputs="float[N,3,8,8] y"),
    ("tensorrt", "Det"): graph("y = Det(x)", inputs="float[1,1,3,3] x", outputs="float[1,1] y"),
    ("tensorrt", "cubic"): graph(
        'y = Resize<mode="cubic">(x, , , larger)', inputs="float[1,1,H,4] x", outputs="float[1,1,9,9] y",
        larger=[1, 1, 9, 9],
    ),
    ("webgpu", "float64"): graph("y = Relu(x)", inputs="double[2,3] x", outputs="double[2,3] y"),
    ("tensorrt", "float64"): graph("y = Relu(x)", inputs="double[2,3] x", outputs="double[2,3] y"),
}  # fmt: skip


@pytest.mark.parametrize(("profile", "what"), REFUSED)
def test_what_has_no_lowering_is_refused_by_name(profile, what):
    model = REFUSED[profile, what]
    with pytest.raises(UnsupportedError) as caught:
        written(model, "x", "y", profile)
    message = str(caught.value)
    assert what in message
    assert f"--profile {profile}" in message
    assert message.count(". ") == 0
    written(model, "x", "y", "portable")


def test_branches_are_looked_into():
    text = """<ir_version: 9, opset_import: ["": 18]> g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = a () => (float[2] t) { t = Sinh(x) },
        else_branch = b () => (float[2] e) { e = Relu(x) }>
    }"""
    model = onnx.parser.parse_model(text)
    assert {n.op_type for n in written(model, "x", "y", "tensorrt").graph.node} == {"If"}
    with pytest.raises(UnsupportedError, match="Cosh is not among the documented operators"):
        written(model, "x", "y", "cuda")


# ----- whole explained models ----------------------------------------------------

CLASSIFIER = (
    "c = Conv<pads=[1,1,1,1]>(x, K) r = Relu(c) p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r) "
    "d = Conv(p, L) e = Relu(d) f = Flatten(e) y = Gemm(f, W)"
)
WEIGHTS = {"K": (16, 3, 3, 3), "L": (16, 16, 3, 3), "W": (64, 4)}
POOLED = "c = Conv<pads=[1,1,1,1]>(x, K) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, V)"


@EVERY_PROVIDER
@pytest.mark.parametrize(
    ("body", "size"),
    [("gradient", "8,8"), ("linear", "8,8"), ("linear", "H,W")],
)
def test_all_that_is_appended_is_within_the_list(body, size, profile):
    text, weights = (CLASSIFIER, WEIGHTS) if body == "gradient" else (POOLED, {"K": (16, 3, 3, 3), "V": (16, 4)})
    model = graph(text, inputs=f"float[N,3,{size}] x", **weights)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    portable, explained = (attach(model, profile=p, layer="r") for p in ("portable", profile))
    for found, expected in zip(
        *(quiet_session(e.to_proto()).run(None, {"x": x}) for e in (explained, portable)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert not beyond(explained.to_proto(), profile)
    assert explained.warnings == []


@pytest.mark.parametrize("profile", [p for p in PROFILES if p not in DOCUMENTED])
def test_profiles_without_a_list_have_no_warnings(profile):
    assert attach(graph(CLASSIFIER, **WEIGHTS), profile=profile, layer="r").warnings == []


def test_only_some_profiles_were_run_on_their_runtime():
    assert {name for name, profile in PROFILES.items() if profile.tested} == {"portable", "cpu", "openvino", "webgpu"}
    assert all(profile.name == name and profile.title for name, profile in PROFILES.items())


def test_an_unknown_profile_is_refused_with_near_matches():
    with pytest.raises(
        TargetError, match=r"there is no profile 'tensort'; did you mean 'tensorrt'\?; there are portable"
    ):
        find_profile("tensort")


def test_an_unknown_profile_is_refused_whatever_the_weights():
    with pytest.raises(TargetError, match=r"there is no profile 'webgl'.*webgpu"):
        attach(graph(POOLED, K=(16, 3, 3, 3), V=(16, 4)), profile="webgl")
