"""`verify`: both numbers, and what it says where they differ."""

from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_gradcam.autodiff.providers import PROFILES
from onnx_gradcam.autodiff.registry import RULES, Rule, rules

from .conftest import PREPROCESS, refused, small_classifier


def test_agreement_on_random_numbers_and_on_a_image(call, classifier, image):
    for extra in ((), (image, "--preprocess", PREPROCESS), ("--weights", "gradient", "--grad-dtype", "float32")):
        result = call("verify", classifier, *extra)
        assert result.exit_code == 0, result.output
        lines = dict(line.strip().split(":") for line in result.stdout.splitlines()[1:])
        given, numeric = float(lines["by the gradient"]), float(lines["by finite differences"])
        assert abs(given) > 1e-4
        assert abs(given - numeric) <= 1e-3 * abs(given)


@pytest.mark.parametrize("profile", PROFILES)
def test_agreement_in_every_profile(call, classifier, profile):
    found = json.loads(call("verify", classifier, "--weights", "gradient", "--profile", profile, "--json").stdout)
    assert found["agrees"] is True
    assert abs(found["analytic"]) > 1e-4


def test_json_and_disagreement(call, classifier, monkeypatch):
    assert json.loads(call("verify", classifier, "--weights", "gradient", "--json").stdout)["agrees"] is True
    rules()
    right = RULES["", "GlobalAveragePool"].function
    monkeypatch.setitem(RULES, ("", "GlobalAveragePool"), Rule(lambda *given: [right(*given)[0]() * 1.1]))
    wrong = call("verify", classifier, "--weights", "gradient", "--json")
    assert wrong.exit_code == 1
    found = json.loads(wrong.stdout)
    assert found["agrees"] is False
    assert found["analytic"] / found["numeric"] > 1.05
    spoken = call("verify", classifier, "--weights", "gradient")
    assert spoken.exit_code == 1
    assert "try another --seed" in spoken.stderr


def test_ties_are_no_error_of_the_gradient(call, here):
    """In a flat image every window of the pool ties."""
    model = small_classifier()
    nodes = list(model.graph.node)
    nodes[2].input[0] = "small"
    nodes.insert(2, helper.make_node("MaxPool", ["active"], ["small"], "max", kernel_shape=[2, 2], strides=[2, 2]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, here / "max.onnx")
    cv2.imwrite("flat.png", np.full((16, 16, 3), 200, np.uint8))
    arguments = ("verify", "max.onnx", "flat.png", "--preprocess", PREPROCESS, "--layer", "active")
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "noise was added to the image" in result.stdout
    assert json.loads(call(*arguments, "--json").stdout)["grain"] is True


def test_a_wrong_gradient_is_found_behind_ties(call, here, monkeypatch):
    rules()
    right = RULES["", "GlobalAveragePool"].function
    monkeypatch.setitem(RULES, ("", "GlobalAveragePool"), Rule(lambda *given: [right(*given)[0]() * 1.1]))
    onnx.save(small_classifier(), here / "m.onnx")
    cv2.imwrite("flat.png", np.full((16, 16, 3), 200, np.uint8))
    wrong = call("verify", "m.onnx", "flat.png", "--preprocess", PREPROCESS, "--weights", "gradient")
    assert wrong.exit_code == 1


def test_a_bad_image_is_refused(call, classifier, here):
    (here / "no.png").write_text("no image", "utf-8")
    assert "no.png" in refused(call("verify", classifier, "no.png", "--preprocess", PREPROCESS))


def test_a_model_that_gives_nan(call, here):
    model = small_classifier()
    kernel = model.graph.initializer[0]
    kernel.raw_data = np.full(kernel.dims, np.nan, np.float32).tobytes()
    onnx.save(model, here / "nan.onnx")
    for extra in ((), ("--json",)):
        assert "the model outputs NaN for this input" in refused(call("verify", "nan.onnx", *extra))
