"""What is added in one place is there everywhere: in Python, on the command line, in listings and metadata."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
from support.graphs import graph, images, run
from typer.testing import CliRunner

from onnx_gradcam import Explainer, Options, attach, methods, presets
from onnx_gradcam.autodiff import registry
from onnx_gradcam.autodiff.providers import PROFILES
from onnx_gradcam.cli import app
from onnx_gradcam.cli._options import OPTIONS
from onnx_gradcam.editor.methods.catalogue import METHODS, method
from onnx_gradcam.editor.presets import PRESETS
from onnx_gradcam.editor.targets.task import SCORES, TASKS, Task
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.options import Choices


def classifier(activation: str = "Relu"):
    return graph(
        f"c = Conv(x, K) a = Relu(c) d = Conv(a, L) b = {activation}(d) p = GlobalAveragePool(b) f = Flatten(p) "
        "y = Gemm(f, W)",
        K=(6, 3, 3, 3),
        L=(5, 6, 3, 3),
        W=(5, 4),
    )


def command(*words: object):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(classifier().SerializeToString())
    return path


def attached(model, tmp_path, *words: object) -> dict[str, str]:
    command("attach", model, "-o", tmp_path / "explained.onnx", *words)
    return {p.key: p.value for p in onnx.load(tmp_path / "explained.onnx").metadata_props}


def test_a_method_is_one_function(model, tmp_path):
    methods()

    @method("mean-activation", title="Mean activation", reference="this test")
    def mean_activation(t, A):
        """The mean over channels."""
        return t.mean(A, [1], keepdims=False)

    try:
        x = images(2)
        results = run(attach(classifier(), method="Mean-Activation", expose_activation=True).to_proto(), x=x)
        np.testing.assert_allclose(results["cam"], results["b"].mean(1), rtol=1e-5)
        assert "mean-activation" in {entry["method"] for entry in json.loads(command("methods", "--json"))}
        assert attached(model, tmp_path, "--method", "mean-activation")["onnx_gradcam.method"] == "mean-activation"
    finally:
        del METHODS["mean-activation"]


def test_a_task_is_one_entry(model, tmp_path, monkeypatch):
    def sums(t, options, kind):
        scores = t.wrap(t.graph.outputs[0])
        t.output(t.op("Concat", scores, t.sum(scores, [1]), axis=1), SCORES)

    monkeypatch.setitem(TASKS, "with-sum", Task(name="with-sum", about="a class, or the sum", scores=sums))
    results = run(attach(classifier(), task="with-sum").to_proto(), x=images(1), target_class=np.array([4], np.int64))
    np.testing.assert_allclose(results["target_scores"][:, 4], results["y"].sum(1), rtol=1e-5)
    assert "with-sum" in command("explain", "--help")
    assert attached(model, tmp_path, "--task", "with-sum")["onnx_gradcam.task"] == "with-sum"


def test_a_preset_is_one_entry(model, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "mine", dataclasses.replace(PRESETS["default"], name="mine"))
    assert "mine" in presets()
    assert "mine" in {entry["preset"] for entry in json.loads(command("methods", "--presets", "--json"))}
    assert attached(model, tmp_path, "--preset", "mine")["onnx_gradcam.preset"] == "mine"
    # It draws nothing of its own, so the overlay is this tool's.
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    overlays = [
        Explainer(model, preset=name, preprocess={"scale": 1 / 255, "resize": "none"})(image).overlay().pixels
        for name in ("mine", "default")
    ]
    np.testing.assert_array_equal(*overlays)


def test_a_profile_is_one_entry(model, tmp_path, monkeypatch):
    monkeypatch.setitem(PROFILES, "mine", dataclasses.replace(PROFILES["portable"], name="mine"))
    assert "mine" in command("attach", "--help")
    assert attached(model, tmp_path, "--profile", "mine")["onnx_gradcam.profile"] == "mine"


def test_a_rule_is_one_function(monkeypatch):
    with_rule = attach(classifier("Tanh"), layer="a").to_proto()
    (key,) = [key for key in registry.rules() if key[1] == "Tanh"]
    monkeypatch.delitem(registry.RULES, key)
    with pytest.raises(UnsupportedError, match="Tanh"):
        attach(classifier("Tanh"), layer="a", weights="gradient")

    @registry.vjp("Tanh")
    def tanh(t, g, y, x):
        return [g * (1.0 - y * y)]

    x = images(2)
    again = attach(classifier("Tanh"), layer="a").to_proto()
    np.testing.assert_allclose(run(again, x=x)["cam"], run(with_rule, x=x)["cam"], rtol=1e-4, atol=1e-6)


def test_an_option_is_a_field_and_its_help():
    """`options.py` has the field in `Options` and, typed for keyword arguments, in `Choices`."""
    fields = [field.name for field in dataclasses.fields(Options)]
    assert set(OPTIONS) == set(fields)
    assert list(Choices.__annotations__) == fields
    types = {field.name: str(field.type) for field in dataclasses.fields(Options)}
    names = {name: getattr(hint, "__forward_arg__", str(hint)) for name, hint in Choices.__annotations__.items()}
    assert names == types
