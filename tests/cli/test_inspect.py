"""`inspect`: what it finds and how it says it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import graph

from onnx_gradcam.images.drawing import save_image

from .conftest import PREPROCESS, refused, small_classifier


def test_says_everything_that_is_decided(call, classifier):
    result = call("inspect", classifier)
    assert result.exit_code == 0
    assert result.stderr == ""
    for line in (
        f"{classifier}: opset ai.onnx 18, written by tests",
        "  'image'  float32  [N, 3, 16, 16]",
        "  'scores'  float32  [N, 3]",
        "class names: none stored",
        "score: 'logits', 3 classes",
        "image: 'image', NCHW",
        "layer: 'active' [N, 4, 16, 16] NCHW",
        "  the last tensor with spatial extent (16x16) on every path to the score, before pooling or flattening",
        "head: pooling and one linear layer",
        "method: gradcam, weights linear",
        "  *  'active'  Relu  [N, 4, 16, 16]  NCHW  every path",
        "     'maps'    Conv  [N, 4, 16, 16]  NCHW  every path",
        "operators on the way without a gradient rule: none",
    ):
        assert line in result.stdout.splitlines(), result.stdout
    assert "softmax" in result.stdout


def test_json(call, classifier):
    found = json.loads(call("inspect", classifier, "--json").stdout)
    assert found["model"] == str(classifier)
    assert found["opset"] == {"ai.onnx": 18}
    assert found["producer"] == "tests"
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["N", 3, 16, 16]}]
    assert found["outputs"] == [{"name": "scores", "dtype": "float32", "shape": ["N", 3]}]
    assert {k: found["score"][k] for k in ("output", "tensor", "classes", "activation", "single_logit")} == {
        "output": "scores",
        "tensor": "logits",
        "classes": 3,
        "activation": "softmax",
        "single_logit": False,
    }
    assert (found["image_input"], found["image_layout"]) == ("image", "NCHW")
    assert found["layer"]["tensor"] == "active"
    assert found["layer"]["grid"] == [16, 16]
    assert [(c["tensor"], c["operator"], c["node"], c["every_path"]) for c in found["candidates"]] == [
        ("maps", "Conv", "conv", True),
        ("active", "Relu", "relu", True),
    ]
    assert found["weights"] == "linear"
    assert (found["missing_rules"], found["warnings"], found["explained"], found["refusal"]) == ([], [], None, None)


def test_choices(call, classifier):
    found = json.loads(call("inspect", classifier, "--layer", "conv", "--score", "output", "--json").stdout)
    assert found["layer"]["tensor"] == "maps"
    assert found["layer"]["reason"] == "the output of node 'conv', as requested"
    assert found["score"]["tensor"] == "scores"
    assert (found["weights"], found["grad_dtype"]) == ("gradient", "model")
    wide = json.loads(call("inspect", classifier, "--grad-dtype", "float32", "--json").stdout)
    assert wide["grad_dtype"] == "float32"


def test_an_explained_model_says_what_it_is(call, classifier, labels):
    call("attach", classifier, "-o", "e.onnx", "--labels", labels, "--preprocess", PREPROCESS)
    result = call("inspect", "e.onnx")
    assert result.exit_code == 0
    for words in (
        "'heatmap'",
        "class names: 3 (red, green, blue)",
        "explained already by onnx-gradcam",
        "gradcam of layer 'active'",
        "is chosen by input 'target_class'",
    ):
        assert words in result.stdout
    found = json.loads(call("inspect", "e.onnx", "--json").stdout)
    assert found["explained"]["target_tensor"] == "active"
    assert found["refusal"] is None


def unservable() -> onnx.ModelProto:
    """A classifier whose head is an operator that nobody else knows."""
    model = small_classifier()
    del model.graph.node[2:]
    model.graph.node.append(helper.make_node("Mystery", ["active"], ["scores"], "secret", domain="vendor"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    return model


def test_operators_without_a_rule_are_listed(call, here):
    onnx.save(unservable(), "m.onnx")
    result = call("inspect", "m.onnx")
    assert result.exit_code == 1
    assert "opset ai.onnx 18, vendor 1" in result.stdout
    assert "score: 'scores', 4 classes" in result.stdout
    lines = result.stdout.splitlines()
    assert "Mystery (node 'secret'" in lines[lines.index("operators on the way without a gradient rule:") + 1]
    assert "Mystery (node 'secret'" in result.stderr
    found = json.loads(call("inspect", "m.onnx", "--json").stdout)
    assert found["refusal"] in result.stderr
    assert len(found["missing_rules"]) == 1
    sentence = refused(call("attach", "m.onnx", "-o", "e.onnx"))
    assert "Mystery" in sentence
    assert "opset" in sentence
    assert [p.name for p in here.iterdir()] == ["m.onnx"]


def test_inputs_and_outputs_before_the_refusal(call, here):
    model = small_classifier()
    model.graph.output.append(helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, ["N", 4]))
    onnx.save(model, "two.onnx")
    result = call("inspect", "two.onnx")
    assert result.exit_code == 1
    assert "'flat'    float32  [N, 4]" in result.stdout
    assert result.stderr.startswith("error: several outputs look like class scores")
    assert call("inspect", "two.onnx", "--output", "scores").exit_code == 0
    found = json.loads(call("inspect", "two.onnx", "--json").stdout)
    assert found["refusal"].startswith("several outputs")
    assert "layer" not in found


def test_an_output_that_the_model_does_not_have(call, here):
    model = small_classifier()
    model.graph.output.append(helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, ["N", 4]))
    onnx.save(model, "two.onnx")
    for names in (["score"], ["score", "flat"]):
        result = call("inspect", "two.onnx", *[word for name in names for word in ("--output", name)])
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
    assert "no output 'score'; did you mean 'scores'" in call("inspect", "two.onnx", "--output", "score").stderr


def test_the_score_is_shown_even_where_the_layer_is_not_there(call, classifier):
    result = call("inspect", classifier, "--layer", "nope")
    assert result.exit_code == 1
    assert "score: 'logits', 3 classes" in result.stdout
    assert "no layer 'nope'" in result.stderr


def test_initializers_listed_as_inputs_are_no_inputs(call, here):
    model = small_classifier()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, "old.onnx")
    found = json.loads(call("inspect", "old.onnx", "--json").stdout)
    assert [i["name"] for i in found["inputs"]] == ["image"]


def test_a_pad_that_would_be_computed_wrongly_is_warned_of(call, here):
    model = small_classifier()
    nodes = list(model.graph.node)
    nodes[2].input[0] = "small"
    nodes[2:2] = [
        helper.make_node("Pad", ["active", "pads"], ["padded"], "pad"),
        helper.make_node("MaxPool", ["padded"], ["small"], "max", kernel_shape=[2, 2]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    pads = onnx.numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")
    model.graph.initializer.append(pads)
    onnx.save(model, "pad.onnx")
    assert "warning: ONNX Runtime computes 'pad'" in call("inspect", "pad.onnx").stdout
    assert "warning: ONNX Runtime computes 'pad'" in call("attach", "pad.onnx", "-o", "e.onnx").stderr


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "layer", "layout"),
    [
        ("onnx_derived/mobilenet_v2_imagenet_fp32_w8rounded.onnx", "hardtanh_34", "NCHW"),
        ("onnx_derived/mlperf_tiny_resnet8_cifar10.onnx", "model/activation_6/Relu:0", "NHWC"),
        ("onnx_native/squeezenet1_1_imagenet_fp16.onnx", "conv10_2", "NCHW"),
    ],
)
def test_real_models(call, real_data, name, layer, layout):
    result = call("inspect", real_data / "models" / name, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["layer"]["tensor"] == layer
    assert found["image_layout"] == layout
    assert found["weights"] == "linear"


def test_an_image_without_a_batch_axis(call, tmp_path):
    """It is found unasked by every command, and one image is fed a call."""
    source, image, other = tmp_path / "single.onnx", tmp_path / "a.png", tmp_path / "b.png"
    onnx.save(
        graph(
            "u = Unsqueeze(x, i0) c = Conv(u, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) l = Gemm(f, W) "
            "y = Squeeze(l, i0)",
            inputs="float[3,8,8] x", outputs="float[4] y", K=(6, 3, 3, 3), W=(6, 4), i0=[0],
        ),
        source,
    )  # fmt: skip
    for seed, path in enumerate((image, other)):
        save_image(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8), path)
    shown = call("inspect", source).stdout.splitlines()
    assert "image: 'x', CHW" in shown
    assert "layer: 'a' [1, 6, 6, 6] NCHW" in shown
    assert "head: pooling and one linear layer" in shown
    explained = tmp_path / "explained.onnx"
    assert call("attach", source, "-o", explained, "--preprocess", PREPROCESS).exit_code == 0
    assert "  image in input 'x' (CHW)" in call("inspect", explained).stdout.splitlines()
    for model in (source, explained):
        chosen = ["--preprocess", PREPROCESS] if model is source else []
        assert call("explain", model, image, other, "-o", tmp_path / model.stem, *chosen).exit_code == 0
        assert len(list((tmp_path / model.stem).iterdir())) == 2
    assert call("batch", explained, image, other, "-o", tmp_path / "job").exit_code == 0
    chosen = ["--images", image, "--preprocess", PREPROCESS, "--report", tmp_path / "report.html"]
    compared = call("compare", source, explained, *chosen)
    assert compared.exit_code == 0, compared.stderr
    assert call("verify", source).exit_code == 0
