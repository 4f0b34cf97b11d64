"""Models as converters, quantizers and optimisers write them: read rightly, or refused by the operator's name."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from support.graphs import graph, images, run, weight

from onnx_gradcam import attach
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.errors import ExplainError, ModelError, UnsupportedError
from onnx_gradcam.options import Options

HEAD = "p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W, z)"
SIZES = {"K": (8, 3, 3, 3), "L": (8, 8, 3, 3), "W": (8, 4), "z": (4,)}
RESIDUAL = f"c = Conv<pads=[1,1,1,1]>(x, K) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, L) s = Add(d, r) a = Relu(s) {HEAD}"
LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def residual() -> onnx.ModelProto:
    return graph(RESIDUAL, inputs="float[1,3,16,16] x", outputs="float[1,4] y", **SIZES)


class Calibration(CalibrationDataReader):
    """Eight random images."""

    def __init__(self) -> None:
        self.feeds = iter([{"x": images(1, 3, 16, 16, seed=seed)} for seed in range(8)])

    def get_next(self):
        return next(self.feeds, None)


def quantised(kind: str, folder) -> onnx.ModelProto:
    source, target = folder / "float.onnx", folder / f"{kind}.onnx"
    onnx.save(residual(), source)
    if kind == "float":
        return residual()
    if kind == "float16":
        return convert_float_to_float16(residual(), keep_io_types=True)
    if kind == "dynamic":
        quantize_dynamic(source, target)
    else:
        # Weights of 7 bits: without VNNI, ONNX Runtime's products of 8 bits saturate.
        quantize_static(source, target, Calibration(), quant_format=QuantFormat[kind], reduce_range=True)
    return onnx.load(target)


@pytest.mark.parametrize("level", ["as it is", *LEVELS])
@pytest.mark.parametrize("kind", ["float", "float16", "QDQ", "QOperator", "dynamic"])
def test_every_level_of_optimisation_of_every_quantiser_explains_the_same(tmp_path, kind, level):
    model = quantised(kind, tmp_path)
    if level != "as it is":
        options = ort.SessionOptions()
        options.graph_optimization_level = LEVELS[level]
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        model = onnx.load(tmp_path / "optimised.onnx")
    x = images(1, 3, 16, 16, seed=99)
    if any(n.domain == "com.microsoft.nchwc" for n in model.graph.node):
        with pytest.raises(ModelError, match="optimised for one kind of CPU; use the original"):
            attach(model)
        return
    expected = run(attach(residual(), target=2, class_input="none").to_proto(), x=x)
    actual = run(attach(model, target=2, class_input="none", check=True).to_proto(), x=x)
    assert np.corrcoef(actual["cam"].ravel(), expected["cam"].ravel())[0, 1] > 0.99
    np.testing.assert_allclose(actual["y"], expected["y"], atol=0.15)


def test_a_quantised_tensor_is_a_layer_by_its_own_name(tmp_path):
    model = quantised("QOperator", tmp_path)
    (name,) = (n.output[0] for n in model.graph.node if n.op_type == "QLinearAdd")
    layer = make_plan(model, Options(layer=name)).layer.chosen
    assert layer.tensor.is_float
    assert layer.tensor.shape == (1, 8, 16, 16)


def test_weights_need_not_be_inputs_in_old_versions_of_the_file_format():
    model = residual()
    model.ir_version = 3
    assert make_plan(model).layer.chosen.tensor.name == "a"


# ----- binarised networks and other step functions ---------------------------

BINARY = "c = Conv(x, K) s = Sign(c) q = Add(s, tenth) b = Sign(q) d = Conv(b, L)"
SMALL = SIZES | {"tenth": np.float32(0.1)}


def test_a_binarised_network_passes_its_gradient_straight_through_the_sign():
    model = graph(f"{BINARY} a = Relu(d) {HEAD}", **SMALL)
    explained = attach(model, layer="c", target=1, class_input="none", check=True)
    assert explained.metadata.derivative == "straight-through"
    x = images(2)
    exposed = graph(f"{BINARY} a = Relu(d) {HEAD}", outputs="float[N,4] y, float[N,8,6,6] c, float[N,8,4,4] d", **SMALL)
    outputs = run(exposed, x=x)
    c, d = outputs["c"], outputs["d"]
    # By hand: the head, the Relu, the transposed convolution, the clipping of Sign at one.
    behind = (d > 0) * weight("W", 8, 4)[:, 1][None, :, None, None] / 16
    kernel, g = weight("L", 8, 8, 3, 3), np.zeros_like(c)
    for i in range(4):
        for j in range(4):
            g[:, :, i : i + 3, j : j + 3] += np.einsum("no,ochw->nchw", behind[:, :, i, j], kernel)
    g *= np.abs(c) <= 1
    cam = np.maximum((g.mean((2, 3))[:, :, None, None] * c).sum(1), 0)
    np.testing.assert_allclose(np.maximum(run(explained.to_proto(), x=x)["cam"], 0), cam, rtol=1e-4, atol=1e-5)


def test_a_sign_that_is_no_binarisation_has_no_gradient():
    model = graph(f"c = Conv(x, K) s = Sign(c) m = Abs(c) r = Sqrt(m) a = Mul(s, r) {HEAD}", **SIZES)
    assert attach(model, layer="c").metadata.derivative == "exact"
    stopped = graph(f"c = Conv(x, K) s = Sign(c) a = Mul(s, s) {HEAD}", **SIZES)
    with pytest.raises(
        UnsupportedError, match=r"the derivative of Sign \('s'\) is zero, so no gradient of the score 'y'"
    ):
        attach(stopped, layer="c")


STEPS = {
    "in front of the layer": ("m = Mul(x, scale) r = Floor(m) c = Conv(r, K) a = Relu(c)", "a"),
    "at the layer": ("c = Conv(x, K) s = Floor(c) a = Relu(s)", "a"),
    "behind the score": ("c = Conv(x, K) a = Relu(c)", "a"),
}


@pytest.mark.parametrize("place", STEPS)
def test_a_step_function_refuses_only_gradients_that_have_to_pass_it(place):
    body, layer = STEPS[place]
    last = place == "behind the score"
    head = HEAD.replace("y = Gemm", "g = Gemm") + " y = Floor(g)" if last else HEAD
    model = graph(f"{body} {head}", scale=np.float32(255), **SIZES)
    assert make_plan(model, Options(method="eigencam")).layer.chosen.tensor.name == layer
    assert make_plan(model, Options(method="scorecam")).layer.chosen.tensor.name == layer
    with pytest.raises(UnsupportedError, match=r"the derivative of Floor \('.'\) is zero"):
        make_plan(model, Options(method="saliency"))
    if last:
        with pytest.raises(UnsupportedError, match=r"choose a method without gradients, such as eigencam or scorecam"):
            make_plan(model)
    else:
        assert make_plan(model).layer.chosen.tensor.name == layer


# ----- training mode, old opsets, unknown operators --------------------------

NORMAL = {n: np.full(8, v, np.float32) for n, v in {"one": 1, "none": 0, "mean": 0.1, "variance": 2}.items()}


@pytest.mark.parametrize(
    ("body", "warning"),
    [
        ("b, m, v = BatchNormalization<training_mode=1>(c, one, none, mean, variance)", "'b' normalizes by the stat"),
        ("b = Dropout(c, half, yes)", "'b' is an active Dropout"),
        ("b = BatchNormalization(c, one, none, mean, variance)", ""),
        ("b = Dropout(c, half, no)", ""),
        ("b = Dropout(c)", ""),
    ],
)
def test_a_model_in_training_mode_is_explained_with_a_warning(body, warning):
    constants = {"half": np.float32(0.5), "yes": np.array(True), "no": np.array(False)}
    model = graph(f"c = Conv(x, K) {body} a = Relu(b) {HEAD}", **SIZES, **NORMAL, **constants)
    training = [w for w in attach(model).warnings if "training mode" in w]
    assert [warning in w for w in training] == [True] * bool(warning)


def test_the_training_mode_of_old_opsets_is_refused_by_name():
    body = "b, m, v, u, w = BatchNormalization(c, one, none, mean, variance)"
    model = graph(f"c = Conv(x, K) {body} a = Relu(b) {HEAD}", opset=9, **SIZES, **NORMAL)
    with pytest.raises(ModelError, match="the BatchNormalization 'b' is in training mode"):
        attach(model)


def test_the_raised_model_is_what_is_checked_where_no_runtime_has_the_operators():
    arrays = {"K": weight("K", 8, 3, 3, 3), "W": weight("W", 8, 4), "z": weight("z", 4)}
    nodes = [
        helper.make_node("Conv", ["x", "K"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "W", "z"], ["y"], broadcast=1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [2, 3, 8, 8]), ("y", [2, 4]))]
    tensors = [numpy_helper.from_array(v, k) for k, v in arrays.items()]
    listed = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    old = helper.make_graph(nodes, "g", [ends[0], *listed], ends[1:], tensors)
    explained = attach(helper.make_model(old, opset_imports=[helper.make_opsetid("", 6)], ir_version=3), check=True)
    assert explained.difference == 0
    assert [w for w in explained.warnings if "the model raised to opset 18" in w]


def test_an_unknown_operator_is_named_with_its_domain():
    model = graph("c = Conv(x, K) b = com.acme.Blur(c) a = Relu(b) " + HEAD, **SIZES)
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    message = r"the operator com.acme.Blur \('b'\) is unknown in this form, and the model does not state the shape"
    with pytest.raises(UnsupportedError, match=message):
        attach(model)
    model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 8, 6, 6]))
    assert attach(model).metadata.target_tensor == "a"
    with pytest.raises(UnsupportedError, match=r"no VJP rule for com.acme.Blur"):
        attach(model, layer="c")


def refusal(file) -> str:
    try:
        make_plan(file)
    except ExplainError as exc:
        return str(exc)
    return ""


@pytest.mark.real
def test_every_collected_file_is_read_or_refused_in_one_sentence(real_data):
    files = [*real_data.parent.glob("faults/models/*.onnx"), *real_data.glob("models/**/*.onnx")]
    refusals = list(filter(None, map(refusal, files)))
    assert len(files) - len(refusals) >= 20
    assert not [reason for reason in refusals if "\n" in reason or len(reason) > 600]
    layers = {"matlab24_recycling_same_padding": "relu_3", "tinycnn_int8_ortall": "hardtanh_12"}
    for name, layer in layers.items():
        plan = make_plan(real_data.parent / "faults/models" / f"{name}.onnx")
        assert plan.layer.chosen.tensor.name == layer
