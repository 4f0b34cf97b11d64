"""Decomposed operators compute the same values, and the rest of a model is left alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
from support.helpers import node_model, quiet_session

from onnx_gradcam.errors import ModelError
from onnx_gradcam.graph.decompose import MICROSOFT, decomposition_table
from onnx_gradcam.graph.load import load

RNG = np.random.default_rng(3)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def bytes_(kind, *shape):
    info = np.iinfo(kind)
    values = RNG.integers(info.min, info.max + 1, shape).astype(kind)
    # ONNX Runtime's products of uint8 and int8 saturate on processors without VNNI unless the weights have 7 bits:
    # https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "reduce_range".
    return values // 2 if kind is np.int8 else values


def scalar(value, kind=np.float32):
    return np.array(value, kind)


X8, X_SCALE, X_ZERO = bytes_(np.uint8, 2, 4, 6, 6), scalar(0.02), scalar(120, np.uint8)
A8, B8 = bytes_(np.uint8, 3, 8), bytes_(np.int8, 8, 5)
Y_SCALE, Y_ZERO = scalar(0.05), scalar(100, np.uint8)
UNARY = {"x": X8, "xs": X_SCALE, "xz": X_ZERO, "ys": Y_SCALE, "yz": Y_ZERO}
BINARY = {
    "a": X8,
    "as": X_SCALE,
    "az": X_ZERO,
    "b": X8[::-1].copy(),
    "bs": scalar(0.03),
    "bz": X_ZERO,
    "ys": Y_SCALE,
    "yz": Y_ZERO,
}
TOKENS = floats(2, 5, 12)

# name, operator, domain, inputs, attributes, how many quantisation steps may differ (0: real numbers)
CASES = [
    (
        "conv relu",
        "FusedConv",
        MICROSOFT,
        {"x": floats(1, 3, 8, 8), "w": floats(4, 3, 3, 3), "b": floats(4)},
        {"activation": "Relu", "pads": [1, 1, 1, 1], "strides": [2, 2]},
        0,
    ),
    (
        "conv sum",
        "FusedConv",
        MICROSOFT,
        {"x": floats(1, 3, 8, 8), "w": floats(4, 3, 3, 3), "b": floats(4), "z": floats(1, 4, 6, 6)},
        {"activation": "Relu"},
        0,
    ),
    (
        "conv leaky",
        "FusedConv",
        MICROSOFT,
        {"x": floats(1, 3, 8, 8), "w": floats(4, 3, 3, 3)},
        {"activation": "LeakyRelu", "activation_params": [0.3]},
        0,
    ),
    (
        "conv clip",
        "FusedConv",
        MICROSOFT,
        {"x": floats(1, 3, 8, 8), "w": floats(4, 3, 3, 3)},
        {"activation": "Clip", "activation_params": [-1.0, 2.0]},
        0,
    ),
    (
        "conv hard sigmoid",
        "FusedConv",
        MICROSOFT,
        {"x": floats(1, 3, 8, 8), "w": floats(4, 3, 3, 3)},
        {"activation": "HardSigmoid", "activation_params": [0.1, 0.6]},
        0,
    ),
    (
        "gemm",
        "FusedGemm",
        MICROSOFT,
        {"a": floats(3, 4), "b": floats(5, 4), "c": floats(5)},
        {"activation": "LeakyRelu", "activation_alpha": 0.2, "transB": 1, "alpha": 0.5, "beta": 2.0},
        0,
    ),
    (
        "matmul",
        "FusedMatMul",
        MICROSOFT,
        {"a": floats(2, 4, 3), "b": floats(2, 5, 4)},
        {"alpha": 0.3, "transA": 1, "transB": 1},
        0,
    ),
    ("gelu", "Gelu", MICROSOFT, {"x": floats(3, 4)}, {}, 0),
    ("bias gelu", "BiasGelu", MICROSOFT, {"a": floats(3, 4), "b": floats(4)}, {}, 0),
    ("fast gelu", "FastGelu", MICROSOFT, {"x": floats(3, 4), "b": floats(4)}, {}, 0),
    ("quick gelu", "QuickGelu", MICROSOFT, {"x": floats(3, 4)}, {"alpha": 1.5}, 0),
    (
        "skip norm",
        "SkipLayerNormalization",
        MICROSOFT,
        {"x": TOKENS, "s": TOKENS[::-1].copy(), "g": floats(12), "b": floats(12), "bias": floats(12)},
        {"epsilon": 1e-5},
        0,
    ),
    (
        "skip rms norm",
        "SkipSimplifiedLayerNormalization",
        MICROSOFT,
        {"x": TOKENS, "s": TOKENS[::-1].copy(), "g": floats(12)},
        {"epsilon": 1e-5},
        0,
    ),
    ("attention", "Attention", MICROSOFT, {"x": TOKENS, "w": floats(12, 36), "b": floats(36)}, {"num_heads": 3}, 0),
    (
        "multi-head",
        "MultiHeadAttention",
        MICROSOFT,
        {"q": TOKENS, "k": floats(2, 7, 12), "v": floats(2, 7, 12), "b": floats(36)},
        {"num_heads": 2, "scale": 0.4},
        0,
    ),
    (
        "four bits",
        "MatMulNBits",
        MICROSOFT,
        {"a": floats(2, 40), "b": bytes_(np.uint8, 6, 2, 16), "s": floats(12), "z": bytes_(np.uint8, 6)},
        {"K": 40, "N": 6, "bits": 4, "block_size": 32},
        0,
    ),
    (
        "quantised conv, channels last",
        "QLinearConv",
        MICROSOFT,
        {
            "x": bytes_(np.uint8, 2, 6, 7, 4),
            "xs": X_SCALE,
            "xz": X_ZERO,
            "w": bytes_(np.int8, 6, 2, 3, 3),
            "ws": np.abs(floats(6)) / 50,
            "wz": np.zeros(6, np.int8),
            "ys": scalar(0.3),
            "yz": Y_ZERO,
            "b": RNG.integers(-500, 500, 6).astype(np.int32),
        },
        {"pads": [1, 0, 1, 2], "strides": [2, 1], "group": 2, "channels_last": 1},
        1,
    ),
    (
        "quantised conv",
        "QLinearConv",
        "",
        {
            "x": X8,
            "xs": X_SCALE,
            "xz": X_ZERO,
            "w": bytes_(np.int8, 5, 4, 3, 3),
            "ws": np.abs(floats(5)) / 50,
            "wz": np.zeros(5, np.int8),
            "ys": scalar(0.3),
            "yz": Y_ZERO,
            "b": RNG.integers(-500, 500, 5).astype(np.int32),
        },
        {"pads": [1, 1, 1, 1]},
        1,
    ),
    (
        "quantised matmul",
        "QLinearMatMul",
        "",
        {
            "a": A8,
            "as": X_SCALE,
            "az": X_ZERO,
            "b": B8,
            "bs": scalar(0.01),
            "bz": scalar(3, np.int8),
            "ys": scalar(0.1),
            "yz": Y_ZERO,
        },
        {},
        1,
    ),
    (
        "quantised gemm",
        "QGemm",
        MICROSOFT,
        {
            "a": A8,
            "as": X_SCALE,
            "az": X_ZERO,
            "b": B8.T.copy(),
            "bs": scalar(0.01),
            "bz": scalar(3, np.int8),
            "c": RNG.integers(-500, 500, 5).astype(np.int32),
            "ys": scalar(0.1),
            "yz": Y_ZERO,
        },
        {"transB": 1},
        1,
    ),
    (
        "matmul to float",
        "MatMulIntegerToFloat",
        MICROSOFT,
        {"a": A8, "b": B8, "as": X_SCALE, "bs": scalar(0.01), "az": X_ZERO, "bz": scalar(3, np.int8), "c": floats(5)},
        {},
        0,
    ),
    (
        "dynamic matmul",
        "DynamicQuantizeMatMul",
        MICROSOFT,
        {"a": floats(3, 8), "b": B8, "bs": scalar(0.01), "bz": scalar(0, np.int8)},
        {},
        0,
    ),
    ("quantised sum", "QLinearAdd", MICROSOFT, BINARY, {}, 1),
    ("quantised product", "QLinearMul", MICROSOFT, BINARY, {}, 1),
    (
        "quantised sigmoid",
        "QLinearSigmoid",
        MICROSOFT,
        {**UNARY, "ys": scalar(1 / 256), "yz": scalar(0, np.uint8)},
        {},
        1,
    ),
    ("quantised leaky", "QLinearLeakyRelu", MICROSOFT, UNARY, {"alpha": 0.2}, 1),
    (
        "quantised softmax",
        "QLinearSoftmax",
        MICROSOFT,
        {**UNARY, "ys": scalar(1 / 256), "yz": scalar(0, np.uint8)},
        {"axis": -1},
        1,
    ),
    ("quantised global pool", "QLinearGlobalAveragePool", MICROSOFT, UNARY, {"channels_last": 0}, 1),
    ("quantised pool", "QLinearAveragePool", MICROSOFT, UNARY, {"kernel_shape": [2, 2], "strides": [2, 2]}, 1),
    (
        "quantised concat",
        "QLinearConcat",
        MICROSOFT,
        {
            "ys": Y_SCALE,
            "yz": Y_ZERO,
            "a": X8,
            "as": X_SCALE,
            "az": X_ZERO,
            "b": X8[:, :2].copy(),
            "bs": scalar(0.03),
            "bz": X_ZERO,
        },
        {"axis": 1},
        1,
    ),
    ("quantise", "QuantizeLinear", MICROSOFT, {"x": floats(3, 4), "s": X_SCALE, "z": X_ZERO}, {}, 0),
    ("dequantise", "DequantizeLinear", MICROSOFT, {"x": A8, "s": X_SCALE, "z": X_ZERO}, {}, 0),
]


@pytest.mark.parametrize(
    ("op_type", "domain", "inputs", "attributes", "steps"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_values_are_those_of_the_original(op_type, domain, inputs, attributes, steps):
    constants = [k for k in inputs if k not in {next(iter(inputs)), "x", "a", "q"}]
    model = node_model(op_type, inputs, domain=domain, constants=constants, **attributes)
    if op_type == "QLinearSoftmax":
        model.graph.node[0].attribute.append(helper.make_attribute("opset", 13))
    feeds = {k: v for k, v in inputs.items() if k not in constants}
    expected = _original(model, feeds)
    model.graph.output[0].CopyFrom(typed("y", expected))
    plain = load(model)
    assert not {(n.domain, n.op_type) for n in plain.core.graph} & {(domain, op_type)} or domain == ""
    assert MICROSOFT not in {n.domain for n in plain.core.graph}
    session = _unoptimised(plain.to_proto())
    actual = session.run(None, feeds)[0]
    assert actual.dtype == expected.dtype
    if steps:
        assert np.abs(actual.astype(int) - expected.astype(int)).max() <= steps
        assert len(np.unique(expected)) > 3
    else:
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5)


def _original(model, feeds):
    """The values of the operator itself, if this ONNX Runtime has a kernel for it."""
    try:
        return quiet_session(model).run(None, feeds)[0]
    except (NoKernel, Fail) as exc:
        pytest.skip(f"this ONNX Runtime does not run the original: {exc}")


def typed(name, value):
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _unoptimised(model):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_every_decomposition_is_tried():
    tried = {(c[2], c[1]) for c in CASES}
    elsewhere = {"ConvInteger", "MatMulInteger", "NhwcMaxPool", "GroupNorm", "BiasAdd", "SimplifiedLayerNormalization",
                 "TransposeMatMul", "QLinearWhere"}  # fmt: skip
    assert {key for key in decomposition_table() if key[1] not in elsewhere} <= tried


@pytest.mark.parametrize("integer", ["ConvInteger", "MatMulInteger"])
def test_integer_products_become_real_where_only_a_cast_reads_them(integer):
    if integer == "ConvInteger":
        inputs = {"x": X8, "w": bytes_(np.int8, 5, 4, 3, 3), "xz": X_ZERO}
    else:
        inputs = {"x": A8, "w": B8, "xz": X_ZERO}
    nodes = [
        helper.make_node(integer, list(inputs), ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    infos = [typed("x", inputs["x"])]
    constants = [onnx.numpy_helper.from_array(inputs[k], k) for k in ("w", "xz")]
    graph = helper.make_graph(
        nodes, "g", infos, [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 2)], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    plain = load(model)
    assert integer not in {n.op_type for n in plain.core.graph}
    expected = _original(model, {"x": inputs["x"]})
    np.testing.assert_array_equal(_unoptimised(plain.to_proto()).run(None, {"x": inputs["x"]})[0], expected)


def test_channels_last_group_normalisation_against_its_definition():
    x, gamma, beta = floats(2, 3, 4, 6), floats(6), floats(6)
    model = node_model(
        "GroupNorm", {"x": x, "g": gamma, "b": beta}, domain=MICROSOFT, constants=["g", "b"], groups=2, activation=1
    )
    model.graph.output[0].CopyFrom(typed("y", x))
    grouped = x.reshape(2, 12, 2, 3).astype(np.float64)
    normal = (grouped - grouped.mean((1, 3), keepdims=True)) / np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-5)
    y = normal.reshape(x.shape) * gamma + beta
    (got,) = _unoptimised(load(model).to_proto()).run(None, {"x": x})
    np.testing.assert_allclose(got, y / (1 + np.exp(-y)), rtol=1e-4, atol=1e-5)


def test_a_model_optimised_by_onnx_runtime_is_understood(tmp_path):
    """Shapes are inferred behind fused operators, and tensors keep their names and values."""
    weights = {"w1": floats(8, 3, 3, 3), "w2": floats(8, 8, 3, 3), "fc": floats(8, 5)}
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,12,12] x) => (float[N,5] y) {
      c1 = Conv<pads = [1,1,1,1]>(x, w1)
      r1 = Relu(c1)
      c2 = Conv<pads = [1,1,1,1]>(r1, w2)
      s = Add(c2, r1)
      r2 = Relu(s)
      p = GlobalAveragePool(r2)
      f = Flatten(p)
      y = Gemm(f, fc)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    assert any(n.domain == MICROSOFT for n in optimised.graph.node)
    plain = load(tmp_path / "optimised.onnx")
    assert plain.shape("y") == ("N", 5)
    x = floats(2, 3, 12, 12)
    expected = quiet_session(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(quiet_session(plain.to_proto()).run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("domain", "advice"),
    [
        ("com.microsoft.nchwc", r"is optimised for one kind of CPU; use the original, or"),
        ("onnx.brevitas", r"uses QONNX operators, which ONNX Runtime does not have; export it with QuantizeLinear"),
        ("qonnx.custom_op.general", r"uses QONNX operators, which ONNX Runtime does not have; export it with Quant"),
    ],
)
def test_operators_that_nothing_else_runs_are_refused_with_advice(domain, advice):
    node = helper.make_node("Quant", ["x", "w"], ["y"], name="blocked", domain=domain)
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 8, 4, 4]) for n in "xw"]
    graph = helper.make_graph(
        [node], "g", infos, [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 2)]
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    with pytest.raises(ModelError, match=rf"{advice}.*\(node 'blocked', {domain}.Quant\)"):
        load(helper.make_model(graph, opset_imports=imports, ir_version=8))


def test_nodes_that_no_decomposition_covers_are_left_alone():
    model = node_model("FusedMatMul", {"a": floats(2, 4, 3), "b": floats(2, 3, 4)}, domain=MICROSOFT, transBatchA=1)
    model.graph.output[0].CopyFrom(typed("y", floats(2, 4, 4)))
    assert [n.op_type for n in load(model).core.graph] == ["FusedMatMul"]
