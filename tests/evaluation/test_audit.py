"""`report`: what each check finds, planted shortcuts, limits, the page."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from onnx_gradcam import Options, report
from onnx_gradcam.autodiff import modifiers
from onnx_gradcam.errors import InputError
from onnx_gradcam.evaluation.audit import CHECKS, fixed_pixels, flat_pixels, shares

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
planted = importlib.import_module("planted")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images with a mark on one class, and files of a model that knows the class by it and of one that does not."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(3)
    made = planted.marked(rng, planted.images(rng, 8))
    for i, image in enumerate(made):
        cv2.imwrite(str(folder / f"{i}.png"), image[:, :, ::-1])
    for name, colour in (("honest", planted.RED), ("mark", planted.BLUE)):
        onnx.save(planted.model(colour), folder / f"{name}.onnx")
    return folder


def found(world, name, **options):
    chosen = Options(preprocess=planted.PREPROCESS, method=options.pop("method", "gradcam"))
    return report(world / f"{name}.onnx", sorted(world.glob("*.png")), options=chosen, threads=1, steps=8, **options)


def by_name(result):
    return {finding.check: finding for finding in result.findings}


def test_a_mark_is_found_in_the_model_that_uses_it_alone(world):
    honest = found(world, "honest", against=world / "mark.onnx")
    mark = found(world, "mark")
    assert by_name(honest)["fixed"].value < 1
    assert by_name(mark)["fixed"].value > 10
    assert (by_name(honest)["fixed"].passed, by_name(mark)["fixed"].passed) == (True, False)
    assert not mark.passed
    assert list(by_name(honest)) == list(CHECKS)
    assert by_name(honest)["gradient"].value < 1e-6
    assert by_name(honest)["libra"].value < 1e-5
    assert by_name(honest)["insertion"].value > 0
    assert by_name(honest)["agreement"].passed is False
    assert by_name(mark)["agreement"].passed is None
    assert "No second model" in by_name(mark)["agreement"].text
    assert "no attribution" in by_name(honest)["completeness"].text


def test_a_method_that_ignores_the_class_fails(world):
    result = by_name(found(world, "honest", method="activationmap"))
    assert result["random_logit"].value == pytest.approx(1)
    assert result["random_logit"].passed is False
    assert result["top_layer"].passed is False
    attribution = by_name(found(world, "honest", method="input-x-gradient"))
    assert attribution["completeness"].value is not None


def of_one_activation(operator):
    """Two convolved maps, an activation, and their means as scores; a Sigmoid's gradient alone is not complete."""
    text = f"""<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,32,32] x) => (float[N,2] y) {{
        maps = Conv(x, w) active = {operator}(maps) pooled = GlobalAveragePool(active) y = Flatten(pooled) }}"""
    made = onnx.parser.parse_model(text)
    weights = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    made.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return made


def test_the_score_adds_up_with_libra(world, monkeypatch):
    images, options = sorted(world.glob("*.png"))[:2], Options(preprocess=planted.PREPROCESS)

    def libra(operator):
        return by_name(report(of_one_activation(operator), images, options=options, threads=1, steps=2))["libra"]

    right = libra("Sigmoid")
    assert right.value < 1e-5
    assert right.passed
    none = libra("Sin")
    assert (none.value, none.passed) == (None, None)
    assert "libra has no rule for Sin" in none.text
    assert "leave out" not in none.text
    monkeypatch.setitem(modifiers.MODIFIERS, "libra", lambda table, _: table)
    wrong = libra("Sigmoid")
    assert wrong.value > 0.01
    assert wrong.passed is False


def test_limits_and_the_page(world, tmp_path):
    result = found(world, "honest", limits={"sensitivity": 0.0})
    assert by_name(result)["sensitivity"].passed is False
    assert not result.passed
    result.write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert all(check.title in page for check in CHECKS.values())
    assert page.count("<img") == 8
    assert "Failed: stability under noise" in page
    assert result.to_dict()["passed"] is False
    with pytest.raises(InputError, match="unknown check 'sensitivty'; did you mean 'sensitivity'"):
        found(world, "honest", limits={"sensitivty": 1})
    with pytest.raises(InputError, match="none of the images can be used"):
        report(world / "honest.onnx", [world / "none.png"], options=Options(preprocess=planted.PREPROCESS))


def test_regions():
    image = np.random.default_rng(0).random((3, 20, 20)).astype(np.float32)
    image[:, :10] = 0.5
    flat = flat_pixels(image)
    assert flat[:8].all()
    assert not flat[10:].any()
    many = np.random.default_rng(1).random((6, 1, 20, 20))
    many[:, :, 2:5, 3:7] = 0.3
    fixed = fixed_pixels(many)
    assert fixed[2:5, 3:7].all()
    assert fixed.sum() == 12
    heat = np.ones((20, 20))
    assert shares([heat, 0 * heat], [fixed, fixed]) == [pytest.approx(1)]
    assert shares([heat], [np.ones((20, 20), bool)]) == []
