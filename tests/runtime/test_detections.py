"""Boxes in one image: listed as objects, chosen when a model runs, and placed in pixels of the image."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from support.graphs import graph, suppressing_detector

from onnx_gradcam import Explainer
from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.methods import perturbation
from onnx_gradcam.errors import InputError, NothingFoundError, TargetError, UnsupportedError
from onnx_gradcam.images.decoding import Placement
from onnx_gradcam.runtime.detections import Detections, Selection, suppressed

CORNERS = np.array(
    [[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 0, 10, 10], [20, 20, 30, 30.5], [50, 50, 60, 60]], float
)
SCORES = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.6], [0.2, 0.85], [0.1, 0.7], [0.1, 0.2]], np.float32)
CELLS = {
    "cells": np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(64, 2).T[None].astype(np.float32) + 0.5,
    "s": np.float32(4),
}


def detector(scale: float = 3.0, batch: str = "N", bias: float = -1.0) -> onnx.ModelProto:
    """Sixty-four boxes of two classes in images of 32x32, at distances from the middle of cells of 4x4 pixels."""
    return graph(
        "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, C) a = Relu(c) d = Conv<pads=[1,1,1,1], strides=[2,2]>(a, D) "
        "b = Relu(d) bs = Conv(b, B) br = Reshape(bs, four) ab = Abs(br) ss = Conv(b, S) sr = Reshape(ss, wide) "
        "sl = Mul(sr, scale) sm = Add(sl, bias) p = Sigmoid(sm) l, r = Split<axis=1>(ab, halves) lo = Sub(cells, l) "
        "hi = Add(cells, r) co = Concat<axis=1>(lo, hi) m = Mul(co, s) y = Concat<axis=1>(m, p)",
        inputs=f"float[{batch},3,32,32] x",
        outputs=f"float[{batch},6,64] y",
        C=(6, 3, 3, 3), D=(7, 6, 3, 3), B=(4, 7, 1, 1), S=(2, 7, 1, 1), four=[0, 4, 64], wide=[0, 2, 64],
        halves=[2, 2], scale=np.array(scale, np.float32), bias=np.array(bias, np.float32),
        cells=CELLS["cells"], s=np.array(4, np.float32),
    )  # fmt: skip


def photo(seed: int = 0, height: int = 40, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


PREPROCESS: dict[str, Any] = {"resize": "letterbox", "size": [32, 32], "scale": 1 / 64, "mean": [2], "std": [1]}


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(detector(), preprocess=PREPROCESS, labels=["cat", "dog"], threads=1)


# ----- the list ---------------------------------------------------------------------


def test_surer_boxes_suppress_those_of_their_own_class_alone():
    best = SCORES.argmax(1)
    kept = suppressed(SCORES.max(1), CORNERS, best, 0.45)
    # 1 overlaps 0, and 2 overlaps 4, of the same class; 3 is where 0 is, but of another class.
    assert kept == [0, 3, 4, 5]
    assert suppressed(SCORES.max(1), CORNERS, best, 0.45, most=2) == [0, 3]
    assert suppressed(SCORES.max(1), CORNERS, best, 1.0) == [0, 3, 1, 4, 2, 5]
    assert suppressed(SCORES.max(1), None, best, 0.45) == [0, 3, 1, 4, 2, 5]
    # 9 of 11 columns are shared: 90 / 110.
    assert suppressed(SCORES[:2, 0], CORNERS[:2], best[:2], 90 / 110 + 1e-9) == [0, 1]
    assert suppressed(SCORES[:2, 0], CORNERS[:2], best[:2], 90 / 110 - 1e-9) == [0]


def test_the_list_holds_what_is_sure_enough_numbered_from_zero():
    table = Detections(SCORES, CORNERS, ["cat", "dog"], (100, 100))
    shown = [(box.n, box.index, box.target.label, round(box.target.score, 2)) for box in table.listed()]
    assert shown == [(0, 0, "cat", 0.9), (1, 3, "dog", 0.85), (2, 4, "dog", 0.7)]
    assert [box.index for box in table.listed([0])] == [0, 2]
    assert [box.index for box in table.listed([0], least=0.05)] == [0, 2, 5]
    assert [box.index for box in table.listed([1, 0], least=0.65)] == [0, 3, 4]
    assert table.listed()[1].to_dict() == {
        "n": 1, "index": 3, "class": 1, "name": "dog", "score": pytest.approx(0.85), "xyxy": [0, 0, 10, 10],
    }  # fmt: skip


def test_boxes_are_placed_in_the_image_and_end_at_its_edges():
    placement = Placement((-10.0, 0.0, 70.0, 80.0), 80, 60)
    boxes = np.array([[10, 20, 30, 40], [-5, -5, 300, 300]], np.float32)
    table = Detections.of(np.ones((2, 1), np.float32), boxes, (40, 40), placement, None)
    assert table.box(0, 0).xyxy == (10, 40, 50, 80)
    assert table.box(1, 0).xyxy == (0, 0, 60, 80)
    assert table.box(1, 0).target.label == "class 0"
    assert Detections(SCORES, None, None, (9, 9)).box(1, 0).xyxy is None


@pytest.mark.parametrize(
    ("choices", "classes", "expected"),
    [
        ({"which": "index", "value": 5}, None, [(5, 1)]),
        ({"which": "index", "value": 5}, [0, 1], [(5, 0), (5, 1)]),
        ({"which": "number", "value": 2}, None, [(4, 1)]),
        ({"which": "number", "value": 1}, [0], [(2, 0)]),
        ({"which": "rank", "value": 1}, None, [(4, 1)]),
        ({"which": "rank", "value": 2}, [0], [(5, 0)]),
        ({"which": "all"}, None, [(0, 0), (3, 1), (4, 1)]),
        ({"which": "all", "most": 2}, None, [(0, 0), (3, 1)]),
        ({"which": "all", "least": 0.8}, [0, 1], [(0, 0), (3, 1)]),
        ({"which": "sum"}, [1], [(3, 1), (4, 1)]),
    ],
)
def test_what_a_selection_stands_for(choices, classes, expected):
    table = Detections(SCORES, CORNERS, ["cat", "dog"], (100, 100))
    boxes = table.chosen(Selection(**choices), classes, 1)
    assert [(box.index, box.target.index) for box in boxes] == expected


@pytest.mark.parametrize(
    ("choices", "classes", "kind", "message"),
    [
        ({"which": "index", "value": 6}, None, TargetError, "no box 6; the model has boxes 0 to 5"),
        (
            {"which": "number", "value": 3},
            None,
            NothingFoundError,
            r"no box 3 in this image; .* ends with 2",
        ),
        ({"which": "rank", "value": 9}, [1], NothingFoundError, r"no box of rank 9; this image has \d of the class"),
        (
            {"which": "all", "least": 0.95},
            None,
            NothingFoundError,
            r"nothing with .* 0.95; the highest is 0.9",
        ),
        ({"which": "sum", "least": 0.9}, [1], NothingFoundError, r"no 'dog' with .* at least 0.9; the highest is 0.85"),
    ],
)
def test_what_is_not_there_is_refused_in_one_sentence(choices, classes, kind, message):
    with pytest.raises(kind, match=message):
        Detections(SCORES, CORNERS, ["cat", "dog"], (100, 100)).chosen(Selection(**choices), classes, 1)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"which": "best"}, "which is 'best'"),
        ({"which": "all", "least": 1.5}, "least is 1.5"),
        ({"which": "all", "overlap": -1}, "overlap is -1"),
        ({"which": "index", "value": -1}, "value is -1"),
        ({"which": "all", "most": 0}, "most is 0"),
    ],
)
def test_impossible_selections(choices, message):
    with pytest.raises(InputError, match=message):
        Selection(**choices)


# ----- the explainer ------------------------------------------------------------------


def test_the_best_box_is_explained_and_all_are_listed(explainer):
    explanation = explainer(photo())
    listed = explainer.boxes(photo())
    assert len(listed) > 2
    assert list(explanation.boxes) == listed
    (box,) = explanation.maps[0].boxes
    assert box == listed[0]
    assert box.target == explanation.target
    assert [b.target.score for b in listed] == sorted((b.target.score for b in listed), reverse=True)
    outputs = explainer.run(explainer.prepared(photo()).tensor[None], [-1], tables=True)
    x0, y0, x1, y1 = outputs["detection_boxes"][0, box.index]
    # 64x40 pixels become 32x20 in the middle of 32x32.
    expected = np.clip(np.array([x0, y0 - 6, x1, y1 - 6]) * 2, 0, [64, 40, 64, 40])
    np.testing.assert_allclose(box.xyxy, expected, atol=1e-4)
    assert "detection_scores" not in explainer.run(explainer.prepared(photo()).tensor[None], [-1])


def test_a_box_and_all_boxes_and_those_of_a_class(explainer):
    boxes = explainer.boxes(photo())
    every = explainer(photo(), box="all")
    assert [m.boxes[0] for m in every.maps] == boxes[:12]
    for box, m in list(zip(boxes, every.maps, strict=False))[:3]:
        alone = explainer(photo(), box.target.index, box=box.index)
        np.testing.assert_allclose(alone.cam, m.cam, rtol=1e-5, atol=1e-6)
        assert alone.target == box.target
    of_class = explainer(photo(), "dog", box="all")
    assert [m.boxes[0] for m in of_class.maps] == explainer.boxes(photo(), "dog")[:12]
    assert {m.target.label for m in of_class.maps} == {"dog"}


def test_one_map_of_all_boxes_is_the_sum(explainer):
    every, total = (explainer(photo(), "cat", box=Selection(which=which, most=64)) for which in ("all", "sum"))
    assert len(every.maps) > 1
    np.testing.assert_allclose(total.cam, sum(m.cam for m in every.maps), rtol=1e-4, atol=1e-5)
    assert list(total.maps[0].boxes) == explainer.boxes(photo(), "cat")
    alone = explainer(photo(), "cat", box=Selection(which="sum", least=every.maps[1].target.score + 1e-6))
    np.testing.assert_allclose(alone.heatmap, every.maps[0].heatmap, atol=1e-5)


def test_ranks_count_objects_and_not_rows(explainer):
    boxes = explainer.boxes(photo(), "cat", least=0)
    second = explainer(photo(), "cat", box=Selection(which="rank", value=1))
    assert second.maps[0].boxes[0].index == boxes[1].index
    (by_row,) = Explainer(detector(), preprocess=PREPROCESS, box_rank=1, threads=1)(photo(), 0).maps[0].boxes
    table = explainer.run(explainer.prepared(photo()).tensor[None], [0], tables=True)["detection_scores"][0, :, 0]
    assert by_row.index == np.argsort(-table, kind="stable")[1]


def test_several_images_have_boxes_of_their_own(explainer):
    photos = [photo(seed, height) for seed, height in ((1, 40), (2, 64), (3, 40))]
    together = list(explainer.stream(photos, box="all", batch_size=4))
    for image, got in zip(photos, together, strict=True):
        alone = explainer(image, box="all")
        assert [m.boxes for m in got.maps] == [m.boxes for m in alone.maps]
        for one, other in zip(got.maps, alone.maps, strict=True):
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-5)


def test_a_model_of_a_fixed_batch_explains_any_number_of_boxes(explainer):
    fixed = Explainer(detector(batch="1"), preprocess=PREPROCESS, threads=1)
    for one, other in zip(fixed(photo(), box="all").maps, explainer(photo(), box="all").maps, strict=True):
        np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-5)


def test_methods_that_run_the_model_many_times_keep_to_the_box(explainer):
    often = Explainer(detector(), preprocess=PREPROCESS, method="occlusion", threads=1)
    boxes = explainer.boxes(photo())
    first, other = (often(photo(), b.target.index, box=b.index) for b in (boxes[0], boxes[2]))
    assert [m.boxes[0].index for m in (*first.maps, *other.maps)] == [boxes[0].index, boxes[2].index]
    assert not np.allclose(first.heatmap, other.heatmap)


def test_a_detector_that_finds_nothing_says_so():
    blind = Explainer(detector(scale=0.0, bias=-1000.0), preprocess=PREPROCESS, threads=1)
    with pytest.raises(NothingFoundError, match="does not find anything in this image: its best score is 0"):
        blind(photo())
    with pytest.raises(NothingFoundError, match=r"finds nothing with a score of at least 0\.25"):
        blind(photo(), box="all")
    assert blind.boxes(photo()) == []
    results = list(blind.stream([photo(), photo(1)], 1))
    assert [type(result) for result in results] == [NothingFoundError] * 2
    with pytest.raises(NothingFoundError, match="does not find 'class 1'"):
        blind.explained([blind.prepared(photo())], 1)


def test_images_that_leave_the_list_of_boxes_empty_cost_no_other():
    choices: dict[str, Any] = {"task": "detection", "preprocess": {"color": "gray", "scale": 1 / 255}}
    explainer = Explainer(suppressing_detector(), output="scores", **choices)
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    results = list(explainer.stream([white, black, white], batch_size=3))
    assert [type(result).__name__ for result in results] == ["Explanation", "NothingFoundError", "Explanation"]
    assert "does not find anything in this image: it has no box" in str(results[1])
    assert isinstance(next(explainer.stream([black], box="all")), NothingFoundError)
    assert [len(explainer.boxes(image)) for image in (white, black)] == [4, 0]


def test_more_boxes_than_a_sheet_has_room_for_are_said(explainer):
    explanation = explainer(photo(), box=Selection(which="all", most=2))
    count = len(explanation.boxes)
    assert [f"2 of {count} boxes are explained" in note for note in explanation.notes] == [True]
    assert len(explanation.maps) == 2


def test_boxes_that_cannot_be_chosen():
    classifier = graph(
        "c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)", K=(6, 3, 3, 3), W=(6, 4)
    )
    plain = Explainer(classifier, preprocess="none")
    for choose in (lambda: plain(photo(0, 8, 8), box=1), lambda: plain.boxes(photo(0, 8, 8))):
        with pytest.raises(TargetError, match="no detector"):
            choose()
    fixed = attach(detector(), class_input="none", box=3).to_proto()
    with pytest.raises(TargetError, match="the box is fixed"):
        Explainer(fixed, preprocess=PREPROCESS)(photo(), box="all")
    assert Explainer(fixed, preprocess=PREPROCESS)(photo()).maps[0].boxes[0].index == 3
    with pytest.raises(TargetError, match="one map of several boxes"):
        Explainer(detector(), layer=["a", "b"], combine="mean", preprocess=PREPROCESS)(photo(), box="sum")
    with pytest.raises(InputError, match="box is 'best'"):
        Explainer(detector(), preprocess=PREPROCESS)(photo(), box="best")


def test_boxes_are_drawn_on_overlays_and_sheets(explainer):
    explanation = explainer(photo(), box=Selection(which="all", most=3))
    bare = replace(explanation, maps=[replace(m, boxes=[]) for m in explanation.maps])
    for which in range(3):
        drawn, plain = explanation.overlay(which).pixels, bare.overlay(which).pixels
        x0, y0, _, y1 = explanation.maps[which].boxes[0].xyxy
        # Its left edge, where no caption is.
        middle = round((y0 + y1) / 2)
        assert (drawn[middle, round(x0)] != plain[middle, round(x0)]).any() or y1 - y0 < 20
        assert (drawn != plain).any()
    assert (explanation.numbered() != explanation.image).any()
    assert (explanation.sheet().pixels != bare.sheet().pixels).any()
    np.testing.assert_array_equal(explanation.overlay(style="alpha").pixels, bare.overlay(style="alpha").pixels)


# ----- many boxes, one forward pass --------------------------------------------------


def as_before(source, **choices) -> Explainer:
    """An explainer that runs the whole model for each box."""
    explainer = Explainer(source, threads=1, **choices)
    explainer.runner.__dict__["halved"] = None
    return explainer


def same_maps(one, other):
    assert len(one.maps) == len(other.maps) > 3
    for first, second in zip(one.maps, other.maps, strict=True):
        assert first.boxes == second.boxes
        np.testing.assert_allclose(first.cam, second.cam, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(first.heatmap, second.heatmap, atol=1e-5)


@pytest.mark.parametrize("batch", ["N", "1"])
@pytest.mark.parametrize("method", [None, "gradcam", "layercam", "saliency"])
def test_boxes_that_share_the_forward_pass_have_the_same_maps(method, batch):
    choices = {"preprocess": PREPROCESS, "method": method}
    sharing = Explainer(detector(batch=batch), threads=1, **choices)
    same_maps(sharing(photo(), box="all"), as_before(detector(batch=batch), **choices)(photo(), box="all"))
    assert sharing.runner.halved is not None


def test_an_explained_file_shares_the_forward_pass(tmp_path):
    model = detector()
    onnx.save_model(model, tmp_path / "d.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    attach(tmp_path / "d.onnx").save(tmp_path / "e.onnx")
    expected = as_before(tmp_path / "e.onnx", preprocess=PREPROCESS)(photo(), box="all")
    for source in (tmp_path / "d.onnx", tmp_path / "e.onnx"):
        sharing = Explainer(source, preprocess=PREPROCESS, threads=1)
        same_maps(sharing(photo(), box="all"), expected)
        assert sharing.runner.halved is not None


def test_the_forward_pass_runs_once_for_each_image(monkeypatch):
    explainer = Explainer(detector(), preprocess=PREPROCESS, threads=1)
    runs = Counter()
    halved = explainer.runner.halved
    for name in ("_first", "_second"):
        session, run = getattr(halved, name), getattr(halved, name).run
        monkeypatch.setattr(session, "run", lambda *a, name=name, run=run: runs.update([name]) or run(*a))
    monkeypatch.setattr(explainer.session, "run", lambda *_: runs.update(["whole"]))
    first, second = explainer.stream([photo(), photo(1)], box="all")
    assert runs == {"_first": 2, "_second": 2 + len(first.maps) + len(second.maps)}


def test_other_choices_run_the_whole_model():
    explainer = Explainer(detector(), preprocess=PREPROCESS, threads=1)
    explainer(photo(), [0, 1])
    explainer(photo(), box=Selection(which="rank", value=1))
    assert "halved" not in explainer.runner.__dict__


# ----- D-RISE ------------------------------------------------------------------------


@pytest.fixture
def _few_masks(monkeypatch):
    monkeypatch.setattr(perturbation, "_BOX_MASKS", 60)
    monkeypatch.setattr(perturbation, "_BOX_CELLS", 4)


@pytest.mark.usefixtures("_few_masks")
def test_d_rise_weighs_masks_by_the_most_similar_box(explainer):
    box = explainer.boxes(photo())[1]
    black_box = Explainer(detector(), preprocess=PREPROCESS, method="drise", seed=3, threads=1)
    found = black_box(photo(), box.target.index, box=box.index).maps[0]
    assert found.boxes[0].index == box.index
    x = explainer.prepared(photo()).tensor
    rng = np.random.default_rng(3)
    cells = (rng.random((60, 4, 4)) < 0.5).astype(np.float32)
    masks = perturbation._shifted(cells, [8, 8], rng.integers(0, [8, 8], (60, 2)), (32, 32))
    names = ("detection_boxes", "detection_scores")
    whole = explainer.run(x[None], [-1], tables=True)
    place, classes = (whole[name][0, box.index].astype(float) for name in names)
    weights = []
    for mask in masks:
        outputs = explainer.run((x * mask)[None], [-1], tables=True)
        best = 0.0
        for other, scores in zip(*(outputs[name][0].astype(float) for name in names), strict=True):
            low, high = np.maximum(place[:2], other[:2]), np.minimum(place[2:], other[2:])
            shared = np.prod(np.maximum(high - low, 0))
            union = np.prod(place[2:] - place[:2]) + np.prod(other[2:] - other[:2]) - shared
            cosine = scores @ classes / np.sqrt((scores @ scores) * (classes @ classes))
            best = max(best, shared / union * cosine * scores.max())
        weights.append(best)
    mean = np.tensordot(weights, masks, 1) / masks.sum(0)
    np.testing.assert_allclose(found.cam, mean - mean.min(), rtol=1e-4, atol=1e-5)
    assert 0 < min(weights) < max(weights) <= 1


@pytest.mark.usefixtures("_few_masks")
def test_d_rise_keeps_to_each_box_and_is_refused_where_there_are_none(explainer):
    black_box = Explainer(detector(), preprocess=PREPROCESS, method="drise", threads=1)
    first, second = black_box(photo(), box=Selection(which="all", most=2)).maps
    assert [m.boxes[0].index for m in (first, second)] == [b.index for b in explainer.boxes(photo())[:2]]
    assert not np.allclose(first.heatmap, second.heatmap)
    classifier = graph("c = Conv(x, C) p = GlobalAveragePool(c) y = Flatten(p)", C=(4, 3, 3, 3))
    with pytest.raises(UnsupportedError, match=r"D-RISE compares the places of boxes.*--method rise"):
        Explainer(classifier, preprocess=PREPROCESS, method="drise")
    with pytest.raises(UnsupportedError, match="cannot be written into a model"):
        attach(detector(), method="drise")


# ----- what is said ------------------------------------------------------------------


def test_a_box_of_the_list_may_be_given_itself(explainer):
    box = explainer.boxes(photo())[2]
    assert explainer(photo(), box.target.index, box=box).maps[0].boxes[0].index == box.index


def test_a_surest_box_that_is_not_sure_is_explained_with_a_warning():
    unsure = Explainer(detector(scale=0.1, bias=-4.0), preprocess=PREPROCESS, threads=1)
    for box in (None, Selection(which="rank")):
        explanation = unsure(photo(), box=box)
        assert explanation.maps[0].target.score < 0.25
        assert any("below 0.25, so there may be nothing in it" in warning for warning in explanation.warnings)


def test_a_class_that_is_not_found_beside_another_is_named(explainer):
    least = max(b.target.score for b in explainer.boxes(photo(), 0, least=0)) + 1e-6
    assert explainer.boxes(photo(), 1, least=least)
    for which in ("all", "sum"):
        explanation = explainer(photo(), ["cat", "dog"], box=Selection(which=which, least=least))
        assert any("finds no 'cat' with a score of at least" in warning for warning in explanation.warnings)
        assert not any("'dog'" in note for note in explanation.notes)


def test_a_method_of_many_runs_explains_what_was_asked_for_and_nothing_more(monkeypatch):
    explainer = Explainer(detector(), labels=["cat", "dog"], preprocess=PREPROCESS, method="occlusion")
    calls = []
    function = explainer.runner.method.function
    counted = replace(explainer.runner.method, function=lambda probe: calls.append(probe) or function(probe))
    monkeypatch.setattr(explainer.runner, "method", counted)
    boxes = explainer.boxes(photo(), least=0)
    assert (len(boxes) > 1, len(calls)) == (True, 0)
    explanation = explainer(photo(), box=boxes[1])
    assert (len(explanation.maps), len(calls)) == (1, 1)
    assert explanation.maps[0].boxes[0].index == boxes[1].index
    explainer(photo())
    assert len(calls) == 2
