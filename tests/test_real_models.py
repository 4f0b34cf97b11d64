"""Trained classifiers of many origins, and photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.cam_oracle import numeric_grad_cam

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.runtime.explainer import Explainer
from onnx_gradcam.runtime.session import Session

pytestmark = pytest.mark.real

# The tensor that `auto` has to choose: the last activation with places, in front of the pooling or flattening.
LAYERS = {
    "squeezenet1_1_imagenet_fp16": ("conv10_2", (13, 13), "linear"),
    "squeezenet1_1_imagenet_fp32_upcast": ("conv10_2", (13, 13), "linear"),
    "mobilenet_v2_imagenet_fp32_w8rounded": ("hardtanh_34", (7, 7), "linear"),
    "resnet20_cifar10_torchscript": ("/layer3/layer3.2/Relu_1_output_0", (8, 8), "linear"),
    "resnet_4b_cifar10": ("50", (4, 4), "gradient"),
    "winml_tutorial_cnn_cifar10": ("43", (10, 10), "gradient"),
    "emotion_cnn_fer2013_nhwc": ("sequential/conv2d_1/Relu:0", (21, 21), "gradient"),
    "mnist8_cntk": ("ReLU114_Output_0", (14, 14), "gradient"),
    "mnist_binary_dianna_logsoftmax": ("14", (7, 7), "gradient"),
    "st_mobilenetv1_050_224_flowers": ("mobilenet_v1_alpha_0.5/conv_pw_13_relu/Relu6:0", (7, 7), "linear"),
    "st_mobilenetv1_025_224_plantvillage": ("mobilenet_v1_alpha_0.25/conv_pw_13_relu/Relu6:0", (7, 7), "linear"),
    "mlperf_tiny_resnet8_cifar10": ("model/activation_6/Relu:0", (8, 8), "linear"),
    "fer2013_mini_xception": ("model_1/conv2d_7/BiasAdd:0", (4, 4), "linear"),
    # Four patch tokens and a class token, all of them averaged.
    "vit_pgd_2_3_16_cifar10": ("/1/1.1/1.1.1/Add_output_0", (2, 2), "linear"),
}


@pytest.fixture(params=LAYERS)
def entry(request, real_data: Path) -> dict[str, Any]:
    """What the manifest says of a model, with its path."""
    models = json.loads((real_data / "MANIFEST.json").read_text("utf-8"))["models"]
    found = next(m for m in models if m["name"] == request.param)
    return found | {"path": real_data / found["file"], "folder": real_data}


def inputs(entry: dict[str, Any], count: int = 2) -> tuple[str, np.ndarray]:
    """The input's name and rows of images; random ones where the manifest names none."""
    session = Session(entry["path"])
    (info,) = (i for i in session.inputs if len(i.shape) == 4)
    preprocessing = parse_preprocessing(entry["preprocessing"])
    size = preprocessing.size
    assert size is not None
    photos = [read_image(entry["folder"] / name) for name in list(entry["top3"])[:count]]
    rng = np.random.default_rng(0)
    photos += [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count - len(photos))]
    fitted = preprocessing.fitted(layout=preprocessing.layout, dtype=info.dtype)
    rows = np.stack([prepare(photo, fitted)[0] for photo in photos])
    return info.name, rows[:1] if info.shape[0] == 1 else rows


def test_the_layer_the_weights_and_the_original_outputs(entry):
    name, grid, weights = LAYERS[entry["name"]]
    explained = attach(entry["path"])
    work = make_plan(entry["path"])
    assert (work.layer.chosen.tensor.name, work.layer.chosen.grid, explained.metadata.weights) == (name, grid, weights)
    image, rows = inputs(entry)
    before = Session(entry["path"]).run({image: rows})
    got = Session(explained.to_proto().SerializeToString()).run({image: rows})
    tolerance = 2e-3 if rows.dtype == np.float16 else 1e-5
    for output, value in before.items():
        np.testing.assert_allclose(got[output], value, rtol=tolerance, atol=tolerance * np.abs(value).max())
    assert got["heatmap"].shape[0] == len(rows)
    assert np.isfinite(got["heatmap"]).all()
    assert got["cam"].shape[1:] == grid


def test_all_ways_to_the_weights_agree(entry):
    image, rows = inputs(entry)
    work = make_plan(entry["path"])
    maps = {}
    for weights in ("linear", "gradient", "finite"):
        if weights == "linear" and (work.head is None or not work.head.linear):
            continue
        if weights == "finite" and work.head is None:
            continue
        session = Session(attach(entry["path"], weights=weights).to_proto().SerializeToString())
        maps[weights] = session.run({image: rows, "target_class": np.array([1])})["cam"]
    biggest = np.abs(maps["gradient"]).max()
    assert biggest > 0
    half = 5 if rows.dtype == np.float16 else 1
    for weights, got in maps.items():
        tolerance = {"linear": 1e-4, "gradient": 0, "finite": 1e-2}[weights]
        np.testing.assert_allclose(got, maps["gradient"], atol=(tolerance if half == 1 else 0.02) * biggest)


def test_the_best_classes_are_the_known_ones(entry):
    if not entry["top3"]:
        pytest.skip("no known scores for this model")
    # The binary digit model is listed with the names of all ten digits.
    names = (entry["folder"] / entry["labels"]).read_text("utf-8").splitlines()
    classes = 2 if entry["name"] == "mnist_binary_dianna_logsoftmax" else len(names)
    explainer = Explainer(entry["path"], labels=names[:classes], preprocess=entry["preprocessing"], threads=2)
    photos = [entry["folder"] / name for name in entry["top3"]]
    for got, known in zip(explainer.stream(photos), entry["top3"].values(), strict=True):
        index, label, score = known[0]
        assert (got.target.index, got.target.label) == (index, label)
        assert got.target.score == pytest.approx(score, rel=0.02, abs=0.02)
        assert got.heatmap.shape == explainer.preprocessing.size
        assert got.heatmap.max() > 0


@pytest.mark.parametrize("name", ["mnist8_cntk", "vit_pgd_2_3_16_cifar10", "resnet_4b_cifar10"])
def test_the_map_is_what_moving_the_activations_does(name, real_data):
    models = json.loads((real_data / "MANIFEST.json").read_text("utf-8"))["models"]
    found = next(m for m in models if m["name"] == name)
    entry = found | {"path": real_data / found["file"], "folder": real_data}
    image, rows = inputs(entry)
    classes = [3, 5][: len(rows)]
    explained = attach(entry["path"])
    session = Session(explained.to_proto().SerializeToString())
    got = session.run({image: rows, "target_class": np.array(classes)})["cam"]
    # So small a step that few activations cross the kink of a ReLU.
    want = numeric_grad_cam(onnx.load(entry["path"]), rows, classes, step=5e-4)
    np.testing.assert_allclose(got, want, atol=1e-2 * np.abs(want).max())


def test_a_dog_and_a_cat_in_one_photograph(real_data):
    """The maximum of each heatmap lies in the box of its animal."""
    models = json.loads((real_data / "MANIFEST.json").read_text("utf-8"))["models"]
    entry = next(m for m in models if m["name"] == "mobilenet_v2_imagenet_fp32_w8rounded")
    boxes = json.loads((real_data / "annotations" / "classic_boxes.json").read_text("utf-8"))["gradcam_both.png"]
    explainer = Explainer(real_data / entry["file"], preprocess=entry["preprocessing"])
    classes = [index for box in boxes for index in box["imagenet"]]
    explanation = explainer(real_data / "photos" / "classic" / "gradcam_both.png", classes)
    found = {m.target.index: explanation.heatmap_on_image(i) for i, m in enumerate(explanation.maps)}
    for box in boxes:
        left, top, right, bottom = box["box"]
        for index in box["imagenet"]:
            y, x = np.unravel_index(found[index].argmax(), found[index].shape)
            assert left <= x < right, (index, x, y)
            assert top <= y < bottom, (index, x, y)
