"""A trained float16 network: its gradients beside those of its float32 copy, whose weights are the same numbers.

Every run prints rows of the table in docs/gradients.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_gradcam.autodiff.backward import backward
from onnx_gradcam.autodiff.precision import float32_cotangents
from onnx_gradcam.autodiff.registry import rules
from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.runtime.session import Session

pytestmark = pytest.mark.real

Array = np.ndarray[Any, Any]
HALF, WHOLE = "squeezenet1_1_imagenet_fp16", "squeezenet1_1_imagenet_fp32_upcast"
WAYS: dict[str, dict[str, Any]] = {
    "linear": {"weights": "linear"},
    "gradient": {"weights": "gradient"},
    "gradient in float32": {"weights": "gradient", "grad_dtype": "float32"},
}
LAYERS = {"auto": 2e-3, "fire5/concat_1": 0.05, "conv1_2": 0.15}
"""Layer -> allowed difference. Rounding the activations to float16 moves some over the kinks of ReLUs and pools: the
earlier the layer, the more of them lie behind it."""


@pytest.fixture(scope="module")
def data(real_data: Path) -> dict[str, Any]:
    models = {m["name"]: m for m in json.loads((real_data / "MANIFEST.json").read_text("utf-8"))["models"]}
    entry = models[HALF]
    fitted = parse_preprocessing(entry["preprocessing"]).fitted(layout="NCHW", dtype="float16")
    photos = [prepare(read_image(real_data / name), fitted)[0][None] for name in list(entry["top3"])[:3]]
    return {"photos": photos, **{name: real_data / models[name]["file"] for name in (HALF, WHOLE)}}


def relative(got: Array, want: Array) -> float:
    assert np.isfinite(got).all()
    return float(np.abs(got - want).max() / np.abs(want).max())


def maps(path: Path, photos: list[Array], **choices: Any) -> list[dict[str, Array]]:
    session = Session(attach(path, **choices).to_proto().SerializeToString(), threads=2)
    return [session.run({session.inputs[0].name: photo}) for photo in photos]


@pytest.mark.parametrize("layer", LAYERS)
def test_maps_are_finite_and_those_of_the_float32_copy(data, layer, capsys):
    wide = [photo.astype(np.float32) for photo in data["photos"]]
    expected = maps(data[WHOLE], wide, weights="gradient", layer=layer)
    for way, choices in WAYS.items():
        if way == "linear" and layer != "auto":
            continue
        found = maps(data[HALF], data["photos"], layer=layer, **choices)
        for got, want in zip(found, expected, strict=True):
            assert got["heatmap_class"] == want["heatmap_class"]
        worst = {
            name: max(relative(got[name], want[name]) for got, want in zip(found, expected, strict=True))
            for name in ("cam", "heatmap")
        }
        with capsys.disabled():
            print(f"\n| {layer} | {way} | {worst['cam']:.1e} | {worst['heatmap']:.1e} |", end="")  # noqa: T201 - the table
        assert max(worst.values()) < LAYERS[layer], way


def gradients(path: Path, of: str, index: int, name: str, photo: Array) -> dict[str, Array]:
    """By a tensor, of one class of a score: without factors, in the model's type, and in float32.

    All by one graph, so that the activations are the same.
    """
    t = Builder(load(path))
    score, x = t.find(of), t.find(name)
    assert score is not None
    assert x is not None
    hot = np.zeros(score.dims(), np.float16)
    hot[0, index] = 1
    seed = t.const(hot)
    (plain,) = backward(t, {score: seed}, [x])
    t.output(t.cast(plain, np.float32), "plain")
    for grad_dtype in ("model", "float32"):
        (g,) = float32_cotangents(t, score, seed, [x], rules(), grad_dtype)
        t.output(g, grad_dtype)
    t.finish()
    session = Session(t.model.to_proto().SerializeToString(), threads=2)
    found = session.run({session.inputs[0].name: photo})
    return {key: found[key].astype(np.float64) for key in ("plain", "model", "float32")}


@pytest.mark.parametrize("name", ["conv10_2", "pool5_1", "conv1_1", "data_0"])
def test_gradients_are_finite_and_those_in_float32(data, name):
    """Gradients of a logit; the last name is the image itself."""
    for photo in data["photos"]:
        found = gradients(data[HALF], "pool10_1", 281, name, photo)
        assert all(np.isfinite(g).all() for g in found.values())
        assert difference(found["model"], found["float32"]) < 5e-4


def test_a_class_of_low_probability(data):
    """That of 1e-5, by activations averaged over 169 places, has a gradient of 6e-8: float16's smallest number."""
    session = Session(data[WHOLE])
    for photo in data["photos"]:
        (scores,) = session.run({session.inputs[0].name: photo.astype(np.float32)}).values()
        index = int(np.abs(np.log(scores.ravel() / 1e-5)).argmin())
        found = gradients(data[HALF], session.outputs[0].name, index, "conv10_2", photo)
        assert difference(found["plain"], found["float32"]) > 0.02, "float16 alone would do: the test shows nothing"
        assert difference(found["model"], found["float32"]) < 1e-3


def difference(got: Array, want: Array) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))
