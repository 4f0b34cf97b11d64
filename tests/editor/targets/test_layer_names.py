"""Layers by the framework's names, as TorchScript, dynamo and TensorFlow note them on nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import builder
from typer.testing import CliRunner

from onnx_gradcam import Options, attach
from onnx_gradcam.cli import app
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.editor.targets.layer_names import DYNAMO_SCOPES, LayerNames, biases_of
from onnx_gradcam.errors import TargetError
from onnx_gradcam.evaluation.inspection import inspect
from onnx_gradcam.metadata import Carried, CarriedLayer, Metadata, peek


@dataclass(frozen=True)
class Call:
    """A node as an exporter writes it."""

    op: str
    tensor: str
    name: str
    modules: tuple[str, ...] = ()  # what dynamo notes, without the call itself
    weight: str = ""


TORCHSCRIPT = [
    Call("Conv", "/stem/stem.0/Conv_output_0", "/stem/stem.0/Conv", weight="stem.0.weight"),
    Call("Relu", "/stem/stem.1/Relu_output_0", "/stem/stem.1/Relu"),
    Call("Conv", "/layer4/layer4.0/conv1/Conv_output_0", "/layer4/layer4.0/conv1/Conv", weight="layer4.0.conv1.weight"),
    Call("Relu", "/layer4/layer4.0/relu/Relu_output_0", "/layer4/layer4.0/relu/Relu"),
    Call("Conv", "/layer4/layer4.1/conv1/Conv_output_0", "/layer4/layer4.1/conv1/Conv", weight="onnx::Conv_9"),
    Call("Relu", "/layer4/layer4.1/relu/Relu_output_0", "/layer4/layer4.1/relu/Relu"),
    Call("Neg", "/layer4/layer4.1/Neg_output_0", "/layer4/layer4.1/Neg"),
    Call("Relu", "/layer4/layer4.1/relu_1/Relu_output_0", "/layer4/layer4.1/relu_1/Relu"),
    Call("Sigmoid", "/Sigmoid_output_0", "/Sigmoid"),
]
DYNAMO = [
    Call("Conv", "conv2d", "node_conv2d", ("stem", "stem.0"), "stem.0.weight"),
    Call("Relu", "relu", "node_relu", ("stem", "stem.1")),
    Call("Conv", "conv2d_1", "node_conv2d_1", ("layer4", "layer4.0", "layer4.0.conv1"), "layer4.0.conv1.weight"),
    Call("Relu", "relu_1", "node_relu_1", ("layer4", "layer4.0", "layer4.0.relu")),
    Call("Conv", "conv2d_2", "node_conv2d_2", ("layer4", "layer4.1", "layer4.1.conv1"), "layer4.1.conv1.weight"),
    Call("Relu", "relu_2", "node_relu_2", ("layer4", "layer4.1", "layer4.1.relu")),
    Call("Neg", "neg", "node_neg", ("layer4", "layer4.1")),
    Call("Relu", "relu_3", "node_relu_3", ("layer4", "layer4.1", "layer4.1.relu")),
    Call("Relu", "relu_4", "node_relu_4", ("relu",)),
]
TENSORFLOW = [
    Call("Conv", "main/small_0.35_96/Conv1/Conv2D:0", "main/small_0.35_96/Conv1/Conv2D", weight="w1"),
    Call("Relu", "main/small_0.35_96/Conv1_relu/Relu6:0", "main/small_0.35_96/Conv1_relu/Relu6"),
    Call("Conv", "main/small_0.35_96/Conv_1/Conv2D:0", "main/small_0.35_96/Conv_1/Conv2D", weight="w2"),
    Call("Relu", "main/small_0.35_96/out_relu/Relu6:0", "main/small_0.35_96/out_relu/Relu6"),
    Call("Sigmoid", "main/squash/Sigmoid:0", "main/squash/Sigmoid"),
]
MODELS = {"torchscript": TORCHSCRIPT, "dynamo": DYNAMO, "tensorflow": TENSORFLOW}


def model(calls, carried=None) -> onnx.ModelProto:
    """The calls one after the other, and the mean of each channel as the score of a class."""
    rng = np.random.default_rng(0)
    nodes, weights, before = [], [], "x"
    for call in calls:
        if call.weight:
            values = rng.standard_normal((3, 3, 1, 1)).astype(np.float32)
            weights.append(numpy_helper.from_array(values, call.weight))
        node = helper.make_node(call.op, [before, *filter(None, [call.weight])], [call.tensor], name=call.name)
        if call.modules:
            node.metadata_props.add(key=DYNAMO_SCOPES, value=repr(["", *call.modules, call.tensor]))
        nodes.append(node)
        before = call.tensor
    nodes.append(helper.make_node("GlobalAveragePool", [before], ["pooled"], name="pooling"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["y"], name="flattening"))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    scores = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph(nodes, "g", [image], [scores], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(proto, {} if carried is None else carried.to_props())
    return proto


def chosen(calls, layer, carried=None):
    return make_plan(model(calls, carried), Options(layer=layer)).layer.chosen.tensor.name


@pytest.mark.parametrize(
    ("kind", "layer", "place"),
    [
        *[(kind, layer, 7) for kind in ("torchscript", "dynamo") for layer in ("layer4", "layer4.1", "layer4[-1]")],
        *[(kind, layer, 7) for kind in ("torchscript", "dynamo") for layer in ("model.layer4", "net.layer4[-1]")],
        *[(kind, layer, 3) for kind in ("torchscript", "dynamo") for layer in ("layer4[0]", "layer4[-2]", "layer4.0")],
        *[(kind, layer, 2) for kind in ("torchscript", "dynamo") for layer in ("layer4[-2].conv1", "layer4[0].conv1")],
        *[(kind, layer, 1) for kind in ("torchscript", "dynamo") for layer in ("stem", "stem[-1]", "self.stem[1]")],
        ("torchscript", "layer4.1.relu_1", 7),
        ("torchscript", "/layer4/layer4.1/relu/Relu", 5),
        ("torchscript", "/layer4/layer4.1/relu/Relu_output_0", 5),
        ("dynamo", "relu_2", 5),
        ("dynamo", "node_relu", 1),
        ("dynamo", "model.relu", 8),
        ("tensorflow", "out_relu", 3),
        ("tensorflow", "Conv1", 0),
        ("tensorflow", "small_0.35_96/out_relu", 3),
        ("tensorflow", "small_0.35_96", 3),
        ("tensorflow", "main/squash", 4),
    ],
)
def test_the_tensor_that_a_name_stands_for(kind, layer, place):
    assert chosen(MODELS[kind], layer) == MODELS[kind][place].tensor


@pytest.mark.parametrize(
    ("kind", "layer", "message"),
    [
        # One rectifier that is called twice: which call is meant, cannot be told.
        (
            "torchscript",
            "layer4.1.relu",
            "stands for 2 tensors; name one of them: '/layer4/layer4.1/relu/Relu_output_0'",
        ),
        ("dynamo", "layer4.1.relu", "stands for 2 tensors; name one of them: 'relu_2', 'relu_3'"),
        # The tensor `relu` is the stem's, the module `relu` is another one.
        ("dynamo", "relu", "stands for 2 tensors; name one of them: 'node_relu', 'relu_4'"),
        ("torchscript", "conv1", "stands for 2 tensors; name one of them: '/layer4/layer4.0/conv1/Conv_output_0', "),
        ("dynamo", "layer4[-3]", "is out of range; 'layer4' has 2 numbered layers"),
        ("dynamo", "layer5", "no layer 'layer5'; did you mean 'layer4'"),
        ("torchscript", "model.layer4[-1].conv3", "did you mean 'layer4.1.conv1'"),
        ("tensorflow", "out_rel", "no layer 'out_rel'"),
    ],
)
def test_what_is_not_one_layer_is_asked_for(kind, layer, message):
    with pytest.raises(TargetError, match="layer") as caught:
        chosen(MODELS[kind], layer)
    assert message in str(caught.value)


def test_a_module_of_its_own_is_no_further_call():
    calls = [
        Call("Conv", "/conv/Conv_output_0", "/conv/Conv", weight="conv.weight"),
        Call("Conv", "/conv_1/Conv_output_0", "/conv_1/Conv", weight="conv_1.weight"),
        Call("Relu", "/act/Relu_output_0", "/act/Relu"),
    ]
    assert chosen(calls, "conv") == "/conv/Conv_output_0"


def test_a_convolution_with_its_normalization_is_not_the_convolution():
    """Its tensor is what the normalization computes: the output of a module around both, not of the convolution."""
    message = "the exporter merged layer 'layer4.1.conv1' with the normalization behind it; name its tensor"
    with pytest.raises(TargetError, match=message):
        chosen(TORCHSCRIPT, "layer4[-1].conv1")
    assert chosen(TORCHSCRIPT, TORCHSCRIPT[4].tensor) == TORCHSCRIPT[4].tensor
    calls = [TORCHSCRIPT[0], Call("Conv", "/down/down.0/Conv_output_0", "/down/down.0/Conv", weight="onnx::Conv_3")]
    assert chosen([*calls, *TORCHSCRIPT[5:]], "down") == "/down/down.0/Conv_output_0"


def test_nodes_that_an_optimizer_put_in_belong_to_their_readers():
    """A copy without a name, between two modules, is not part of the first one's output."""
    calls = [*TORCHSCRIPT[:2], Call("Neg", "inserted", "Neg_7"), *TORCHSCRIPT[2:]]
    assert chosen(calls, "stem") == "/stem/stem.1/Relu_output_0"
    calls = [*TORCHSCRIPT[:3], Call("Neg", "inserted", "Neg_7"), *TORCHSCRIPT[3:]]
    assert chosen(calls, "layer4.0") == "/layer4/layer4.0/relu/Relu_output_0"


def test_fused_operators_of_tflite_are_named_after_the_last():
    calls = [Call("Conv", "net/relu_1/Relu6;net/bn_1/Fused;net/conv_1/Conv2D", "conv", weight="w"), *TENSORFLOW[1:]]
    assert chosen(calls, "relu_1") == calls[0].tensor
    assert list(LayerNames(builder(model(calls)), {}, set()))[:2] == ["net", "net/relu_1"]


@pytest.mark.parametrize("note", ["[", "[1, 2]", "{}", "__import__('os')", "[" * 5000, "['a'" + ", 'a'" * 5000 + "]"])
def test_damaged_notes_are_no_names(note):
    proto = model(DYNAMO)
    for node in proto.graph.node:
        for entry in node.metadata_props:
            entry.value = note
    with pytest.raises(TargetError, match="no layer 'layer4'"):
        make_plan(proto, Options(layer="layer4"))
    assert make_plan(proto, Options(layer="relu_3")).layer.chosen.tensor.name == "relu_3"


@pytest.mark.parametrize(
    ("layer", "tensor"),
    [
        ("out_relu", "relu_3"),
        ("mobilenetv2_0.35_96/out_relu", "relu_3"),
        ("model.features[-1]", "relu_1"),
        ("net.features[8][2]", "relu_1"),
        ("features[3]", "relu"),
    ],
)
def test_names_that_an_export_stored(layer, tensor):
    layers = {"mobilenetv2_0.35_96/out_relu": "relu_3", "features[8][2]": "relu_1", "features.3": "relu"}
    layers["features.8"] = "relu_1"
    carried = Carried(layers={name: CarriedLayer(tensor=value) for name, value in layers.items()})
    assert chosen(DYNAMO, layer, carried) == tensor


@pytest.mark.parametrize("kind", ["torchscript", "dynamo"])
def test_inspect_lists_the_names(kind, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model(MODELS[kind]), path)
    layers = inspect(path).layers
    assert {name: layers[name]["tensor"] for name in ("layer4", "layer4.1", "layer4.0", "stem")} == {
        "layer4": MODELS[kind][7].tensor,
        "layer4.1": MODELS[kind][7].tensor,
        "layer4.0": MODELS[kind][3].tensor,
        "stem": MODELS[kind][1].tensor,
    }
    assert "layer4.1.relu" not in layers
    result = CliRunner().invoke(app, ["inspect", str(path), "--layer", "layer4[-2]"])
    assert result.exit_code == 0, result.output
    assert "'layer4.0'" in result.output
    assert "layer 'layer4.0', as requested ('layer4[-2]')" in result.output


def test_on_the_command_line(tmp_path):
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model(DYNAMO), path)
    result = CliRunner().invoke(app, ["attach", str(path), "-o", str(out), "--layer", "model.layer4[-1]"])
    assert result.exit_code == 0, result.output
    assert Metadata.from_props(peek(out)).target_tensor == "relu_3"
    assert attach(path, layer="layer4").metadata.target_tensor == "relu_3"
    refused = CliRunner().invoke(app, ["attach", str(path), "-o", str(tmp_path / "no.onnx"), "--layer", "relu"])
    assert refused.exit_code == 1
    assert "stands for 2 tensors; name one of them: 'node_relu', 'relu_4'" in refused.stderr
    assert not (tmp_path / "no.onnx").exists()


def biased(weight, bias, output="c", name="", note=None, quantised=False, op="Conv") -> onnx.ModelProto:
    """A convolution whose parts are named as an exporter does, and the mean of each channel as the score of a class."""
    values = [np.ones((3, 3, 1, 1), np.float32), np.ones(3, np.int32 if quantised else np.float32)]
    weights = [numpy_helper.from_array(v, n) for v, n in zip(values, (weight, bias), strict=True)]
    nodes = [helper.make_node(op, ["x", weight, "real" if quantised else bias], [output], name=name)]
    if quantised:
        weights.append(numpy_helper.from_array(np.float32(0.5), "scale"))
        nodes.insert(0, helper.make_node("DequantizeLinear", [bias, "scale"], ["real"]))
    if note:
        nodes[-1].metadata_props.add(key=DYNAMO_SCOPES, value=repr(["", *note]))
    nodes.append(helper.make_node("GlobalAveragePool", [output], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["y"]))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    scores = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph(nodes, "g", [image], [scores], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


BATCH_NORM = ("bn", "_native_batch_norm_legit_no_training_3")
ON_TENSORFLOW = ("m/conv/BiasAdd_weights_fused_bn", "m/conv/BiasAdd_bias_fused_bn", "m/bn/FusedBatchNormV3:0")
ON_TFLITE = ("m/conv/Conv2D", "m/bn/FusedBatchNormV3;m/conv/BiasAdd", "m/relu/Relu;m/bn/FusedBatchNormV3;m/conv/Conv2D")
BIASES = {
    "TorchScript": (biased("a.weight", "a.bias", "/a/Conv_output_0", "/a/Conv"), "apart"),
    "TorchScript, merged": (biased("onnx::Conv_59", "onnx::Conv_60", "/a/Conv_output_0", "/a/Conv"), "unknown"),
    "TorchScript of 2021, merged": (biased("48", "49", "47", "Conv_0"), "unknown"),
    "dynamo": (biased("a.weight", "a.bias", "conv2d", "node_conv2d", ("a", "conv2d")), "apart"),
    "dynamo, merged": (biased("a.weight", "a.bias", "getitem", "node_Conv_44", BATCH_NORM), "merged"),
    "dynamo, none before": (biased("a.weight", "a.weight_bias", "getitem", "node_Conv_46", BATCH_NORM), "apart"),
    "dynamo, transposed": (
        biased("a.weight", "a.weight_bias", "getitem", "node_ConvTranspose_4", BATCH_NORM, op="ConvTranspose"),
        "merged",
    ),
    "dynamo without notes": (biased("a.weight", "a.bias", "conv2d", "node_conv2d"), "apart"),
    "dynamo without notes, merged": (biased("a.weight", "a.bias", "getitem", "node_Conv_44"), "unknown"),
    "dynamo without notes, none before": (biased("a.weight", "a.weight_bias", "getitem", "node_Conv_46"), "apart"),
    "dynamo, quantised": (biased("w", "a.bias_quantized", "c", "node_Conv_4", BATCH_NORM, quantised=True), "merged"),
    "tf2onnx": (biased("m/conv/Conv2D:0", "m/conv/BiasAdd/ReadVariableOp:0", "m/conv/BiasAdd:0"), "apart"),
    "tf2onnx, merged": (biased(*ON_TENSORFLOW), "merged"),
    "tf2onnx, none before": (biased("m/c/Conv2D_weights_fused_bn", "m/c/Conv2D_bias_fused_bn"), "apart"),
    "TFLite, merged": (biased(*ON_TFLITE, quantised=True), "merged"),
    "TFLite, none before": (biased(ON_TFLITE[0], "m/bn/FusedBatchNormV3", ON_TFLITE[2], quantised=True), "apart"),
    "ONNX Runtime, merged": (biased("ConvBnFusion_W_w", "ConvBnFusion_BN_B_b"), "unknown"),
}
"""A convolution by each exporter, and whether its bias was merged with that of a normalization."""


@pytest.mark.parametrize("name", BIASES)
def test_names_tell_whether_a_bias_was_merged(name):
    source, state = BIASES[name]
    node = next(node for node in builder(source).nodes if node.op_type.startswith("Conv"))
    assert biases_of(node) == state
    warnings = [text for text in make_plan(source, Options(method="fullgrad")).warnings if "biases" in text]
    verb = {"apart": [], "merged": ["merged"], "unknown": ["may have merged"]}[state]
    assert [text.partition(" biases")[0] for text in warnings] == [f"the exporter {word}" for word in verb]
    assert make_plan(source, Options(method="saliency")).warnings == []


@pytest.mark.parametrize(
    ("name", "record", "warned"),
    [
        ("TorchScript, merged", "apart", ""),
        ("TorchScript, merged", "merged", "the exporter merged biases of convolutions (node '/a/Conv') with those of"),
        ("TorchScript", "merged", "the exporter merged biases of convolutions with those of the batch normalizations"),
        ("TorchScript", "else", ""),
    ],
)
def test_what_the_export_recorded_of_biases_counts_more_than_names(name, record, warned):
    source = onnx.ModelProto()
    source.CopyFrom(BIASES[name][0])
    helper.set_model_props(source, Carried(biases=record).to_props())
    assert "".join(make_plan(source, Options(method="fullgrad")).warnings).startswith(warned)
    assert bool(make_plan(source, Options(method="fullgrad")).warnings) == bool(warned)


def test_merged_biases_on_the_command_line(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(BIASES["dynamo, merged"][0], path)
    expected = (
        "the exporter merged biases of convolutions (node 'node_Conv_44') with those of the batch normalizations "
        "behind them, and FullGrad counts a merged pair once; export the model with its normalizations, from PyTorch "
        "with --keep-normalization"
    )
    for method, count in (("fullgrad", 1), ("gradcam", 0)):
        command = ["attach", str(path), "-o", str(tmp_path / "out.onnx"), "--method", method]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert " ".join(result.stderr.split()).count(expected) == count
