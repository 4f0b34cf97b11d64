"""The registry: what methods ask for, what it costs, and how their names are spelled."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from support.graphs import graph, images, run, vit

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.ingredients import MAKERS
from onnx_gradcam.editor.methods.catalogue import INGREDIENTS, METHODS, find_method, methods
from onnx_gradcam.editor.presets import PRESETS, find_preset
from onnx_gradcam.errors import TargetError, UnsupportedError

DEEP = (
    "c = Conv(x, K) a = Relu(c) d = Conv(a, L) b = Relu(d) f = Flatten(b) g = Gemm(f, V) h = Sigmoid(g) y = Gemm(h, W)"
)
SIZES = {"K": (6, 3, 3, 3), "L": (7, 6, 3, 3), "V": (7 * 4 * 4, 7), "W": (7, 4)}
IN_GRAPH = [name for name, method in methods().items() if not method.runs_often]


def operators(method: str, source) -> Counter[str]:
    return Counter(node.op_type for node in attach(source, method=method, layer="auto").to_proto().graph.node)


def test_every_ingredient_has_a_maker():
    assert set(MAKERS) == {name for name, ingredient in INGREDIENTS.items() if not ingredient.of_boxes}


@pytest.mark.parametrize("name", methods())
def test_methods_ask_for_ingredients_of_the_table(name):
    method = METHODS[name]
    assert set(method.needs) <= set(INGREDIENTS)
    assert bool(method.passes) == method.runs_often


@pytest.mark.parametrize("name", IN_GRAPH)
def test_the_cost_names_each_pass_that_the_graph_holds(name):
    cost = find_method(name).cost
    source = vit(blocks=2) if find_method(name).of_attention else graph(DEEP, **SIZES)
    if find_method(name).linear_head:
        assert cost == "one forward pass and the gradient of the head"
        return
    more = operators(name, source) - Counter(node.op_type for node in source.graph.node)
    # The gradient of a convolution with respect to its input is a transposed one.
    assert (more["ConvTranspose"] > 0) == ("backward pass" in cost)
    if "the head" in cost or "backward pass" in cost:
        assert more["Gemm"] + more["MatMul"] > 0


def test_full_grad_runs_two_backward_passes():
    biased = DEEP.replace("(x, K)", "(x, K, k)").replace("(a, L)", "(a, L, l)")
    source = graph(biased, **SIZES, k=(6,), l=(7,))
    assert operators("saliency", source)["ConvTranspose"] == 2
    # The image's pass crosses both convolutions, that of the biases only the second.
    assert operators("fullgrad", source)["ConvTranspose"] == 3


def test_recipro_cam_runs_the_head_once_for_each_position():
    assert find_method("reciprocam").cost == "one forward pass and the head once for each position"
    source = graph(DEEP, **SIZES)
    explained = attach(source, method="reciprocam").to_proto()
    copies = [node for node in explained.graph.node if node.op_type == "Sigmoid"]
    assert len(copies) == 2
    copy = next(node.output[0] for node in copies if node.output[0] != "h")
    explained.graph.output.add().name = copy
    assert run(explained, x=images(2), target_class=np.array([1], np.int64))[copy].shape == (2 * 4 * 4, 7)


@pytest.mark.parametrize("blocks", [1, 3])
def test_legrad_takes_the_gradient_of_the_head_once_for_each_block(blocks):
    assert find_method("legrad").cost == "one forward pass and for each block the head and its gradient"
    source = vit(head="mean", blocks=blocks)
    explained = attach(source, method="legrad").to_proto().graph.node
    # The last block's score is the model's own; each gradient reads the weights of the head once more.
    assert sum("V" in node.input for node in explained) == 2 * blocks


def test_costs_follow_from_the_ingredients():
    assert find_method("eigencam").cost == "one forward pass"
    assert find_method("gradcam").cost == "one forward pass and the gradient of the head"
    assert find_method("saliency").cost == "one forward pass and one backward pass"
    assert find_method("shapleycam").cost == "one forward pass, the gradient of the head and the gradient of that"
    assert find_method("fullgrad").cost == "one forward pass, one backward pass and one more for the biases"


@pytest.mark.parametrize(
    ("spelling", "key"),
    [
        ("gradcam", "gradcam"),
        ("grad-cam", "gradcam"),
        ("GradCAM", "gradcam"),
        ("grad_cam", "gradcam"),
        ("Grad CAM", "gradcam"),
        ("Grad-CAM++", "gradcam++"),
        ("Grad-CAM++ of the paper", "gradcam++-paper"),
        ("Guided backpropagation", "guided-backprop"),
        ("Integrated Gradients", "integrated-gradients"),
        ("InputXGradient", "input-x-gradient"),
    ],
)
def test_a_method_may_be_spelled_in_other_ways(spelling, key):
    assert find_method(spelling).name == key


def test_spellings_are_unambiguous():
    for name, method in methods().items():
        assert find_method(name) is find_method(method.title) is find_method(name.upper().replace("-", "_")) is method
    for name, preset in PRESETS.items():
        assert find_preset(name) is find_preset(name.upper().replace("-", " ")) is preset


def test_metadata_holds_the_key():
    metadata = attach(graph(DEEP, **SIZES), method="Layer-CAM", preset="PyTorch_Grad_CAM").metadata
    assert (metadata.method, metadata.preset) == ("layercam", "pytorch-grad-cam")


def test_unknown_names_are_refused_with_near_matches():
    with pytest.raises(TargetError, match=r"there is no method 'gradcan'; did you mean 'gradcam'"):
        find_method("gradcan")
    with pytest.raises(TargetError, match=r"there is no preset 'captun'; did you mean 'captum'"):
        find_preset("captun")


@pytest.mark.parametrize("choices", [{"method": "legrad"}, {"against": "runner-up"}, {"method": "shapleycam"}])
def test_every_gradient_keeps_to_what_the_profile_documents(choices, monkeypatch):
    strict = []

    def recorded(t, profile, values, since):
        strict.append((profile.name, len(t.appended) > since))
        raise UnsupportedError("refused")

    monkeypatch.setattr("onnx_gradcam.editor.ingredients.conform", recorded)
    with pytest.raises(UnsupportedError, match="refused"):
        attach(vit(blocks=2), profile="webgpu", **choices)
    assert strict == [("webgpu", True)]
