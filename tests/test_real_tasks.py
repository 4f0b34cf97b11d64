"""A trained segmenter and a trained detector: their maps lie on what they explain."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_gradcam import attach, evaluate
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.editor.targets.classes import read_labels
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.explainer import Explainer

pytestmark = pytest.mark.real

DEEPLAB = {
    "model": "deeplabv3_mnv2_dm05_voc21.onnx",
    "labels": "voc21.txt",
    "images": 24,
    "least": 100.0,
    "choices": {
        "task": "segmentation",
        "preprocess": {
            "size": [257, 257],
            "resize": "stretch",
            "scale": 2 / 255,
            "mean": [1, 1, 1],
            "std": [1, 1, 1],
            "layout": "NHWC",
        },
    },
}
NANODET = {
    "model": "nanodet_m_416_coco.onnx",
    "labels": "coco80.txt",
    "images": 12,
    "least": 0.3,
    "choices": {
        "task": "detection",
        "output": ["792", "814", "836"],
        "preprocess": {
            "size": [416, 416],
            "resize": "stretch",
            "color": "bgr",
            "scale": 1.0,
            "mean": [103.53, 116.28, 123.675],
            "std": [57.375, 57.12, 58.395],
        },
    },
}


@pytest.fixture
def games(repository, monkeypatch):
    """The scripts of the pointing game."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return importlib.import_module("task_localisation")


def measured(games: Any, folder: Path, what: dict[str, Any], **choices: Any) -> tuple[Any, Sequence[Any]]:
    labels = folder / "labels" / what["labels"]
    every = list(games.read_voc(folder / "annotations" / "voc_xml", folder / "photos", read_labels(labels)))
    shown = sorted({game.image for game in every})[: what["images"]]
    return games.measure(
        folder / "models" / "onnx_native" / what["model"],
        [game for game in every if game.image in shown],
        what["least"],
        labels=labels,
        threads=2,
        **what["choices"] | choices,
    )


@pytest.mark.parametrize("what", [DEEPLAB, NANODET], ids=["segmentation", "detection"])
def test_maps_lie_on_the_objects_and_not_where_chance_would_put_them(games, real_data, what):
    explainer, results = measured(games, real_data, what)
    assert explainer.metadata.method == "hirescam"
    count = len(results)
    assert count >= 12
    hits, area = sum(r.hit for r in results) / count, float(np.mean([r.area for r in results]))
    centre = sum(r.centre for r in results) / count
    energy = float(np.mean([r.energy for r in results]))
    assert hits >= 0.75, (hits, centre, energy, area, count)
    assert hits > centre
    assert energy > 1.5 * area
    off = [r for r in results if not r.centre]
    assert sum(r.hit for r in off) >= len(off) / 2


def test_weights_averaged_over_all_places_do_worse(games, real_data):
    """What the default method of these tasks rests on."""
    _, local = measured(games, real_data, NANODET)
    explainer, pooled = measured(games, real_data, NANODET, method="gradcam")
    assert explainer.metadata.method == "gradcam"
    assert sum(r.hit for r in pooled) < sum(r.hit for r in local)
    assert np.mean([r.energy for r in pooled]) < np.mean([r.energy for r in local])


def test_the_layers_that_are_chosen(real_data):
    folder = real_data / "models" / "onnx_native"
    explained = attach(folder / DEEPLAB["model"], task="segmentation", check=True)
    assert explained.difference is not None
    assert explained.difference < 1e-5, "its Upsample of opset 9 samples where ONNX Runtime does"
    deeplab = make_plan(folder / DEEPLAB["model"], Options(task="segmentation"))
    assert (deeplab.layer.chosen.tensor.name, deeplab.layer.chosen.grid) == ("Relu__94:0", (33, 33))
    # Of each level what the last convolution over several positions reads.
    levels = [("779", (52, 52)), ("801", (26, 26)), ("823", (13, 13))]
    nanodet = make_plan(folder / NANODET["model"], Options(task="detection", output=["792", "814", "836"]))
    assert [(layer.chosen.tensor.name, layer.chosen.grid) for layer in nanodet.layers] == levels
    # Before the levels part, a single tensor is on every path: what a method sees that runs the head again.
    single = make_plan(folder / NANODET["model"], Options(method="reciprocam"))
    assert (single.layer.chosen.tensor.name, single.layer.chosen.every_path) == ("492", True)
    found = make_plan(folder / NANODET["model"], Options())
    assert (found.task.name, found.score.classes, len(found.layers)) == ("detection", 80, 3)
    assert "scores and boxes of 3 levels apart" in found.score.reason


def test_a_box_and_its_rank_are_those_of_the_model(real_data):
    folder = real_data / "models" / "onnx_native"
    photo = real_data / "photos" / "classic" / "gradcam_both.png"
    plain = Explainer(folder / NANODET["model"], **NANODET["choices"], threads=2)
    first = plain(photo, 16)
    assert first.target.score == pytest.approx(float(first.scores[16]))
    second = Explainer(folder / NANODET["model"], **NANODET["choices"], box_rank=1, threads=2)(photo, 16)
    assert 0 < second.target.score <= first.target.score
    assert second.heatmap.any()


def overlaps(box: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """The largest intersection over union of a box and others."""
    a, b = np.array(box), np.array(others)
    shared = np.clip(np.minimum(a[2:], b[:, 2:]) - np.maximum(a[:2], b[:, :2]), 0, None).prod(1)
    return float((shared / ((a[2:] - a[:2]).prod() + (b[:, 2:] - b[:, :2]).prod(1) - shared)).max())


@pytest.mark.parametrize(
    ("model", "preprocess", "least", "mean"),
    [
        ("data/models/onnx_native/nanodet_m_416_coco.onnx", NANODET["choices"]["preprocess"], 0.8, 0.75),
        ("faults/models/yolov8n_coco_dynint8_opset20.onnx", "ultralytics", 0.85, 0.85),
    ],
    ids=["stretched", "letterboxed"],
)
def test_the_surest_box_of_each_class_is_on_its_object(games, real_data, model, preprocess, least, mean):
    path = real_data.parent / model
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand")
    labels = real_data / "labels" / "coco80.txt"
    every = list(games.read_voc(real_data / "annotations" / "voc_xml", real_data / "photos", read_labels(labels)))
    explainer = Explainer(path, labels=labels, preprocess=preprocess, threads=2)
    found = []
    for image in sorted({game.image for game in every})[: NANODET["images"]]:
        boxes = explainer.boxes(image, least=0.3)
        for game in (game for game in every if game.image == image):
            best = next((box for box in boxes if box.target.index in game.annotation.classes), None)
            if best is not None:
                found.append(overlaps(best.xyxy, game.annotation.boxes))
    overlap = np.array(found)
    assert len(overlap) >= 12
    assert (overlap > 0.5).mean() >= least, overlap
    assert overlap[overlap > 0.5].mean() >= mean, overlap


def test_evaluate_counts_boxes_by_the_rule_of_the_benchmark(real_data):
    photos = sorted((real_data / "photos" / "voc").glob("*.jpg"))[: NANODET["images"]]
    options = Options(labels=real_data / "labels" / "coco80.txt", preprocess=NANODET["choices"]["preprocess"])
    evaluation = evaluate(
        real_data / "models" / "onnx_native" / NANODET["model"],
        photos,
        methods=["hirescam", "gradcam"],
        metrics=["pointing", "energy"],
        boxes=real_data / "annotations" / "voc_xml",
        options=options,
        threads=2,
    )
    means = evaluation.means
    assert means["hirescam"]["pointing"].count == 14
    assert all(result.box.target.score >= 0.3 for result in evaluation.results)
    assert means["hirescam"]["pointing"].mean == 1
    assert means["hirescam"]["energy"].mean > 0.95
    for worse in ("gradcam", "random", "centre"):
        assert means[worse]["energy"].mean < 0.7
