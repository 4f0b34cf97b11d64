"""How the tables of detectors are read: own look-alikes of each family, and real exports where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.cam_oracle import numeric_map
from support.graphs import builder, graph, images, run, thresholded_detector, two_stage_detector

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.editor.targets.detectors.families import Hints, recognize
from onnx_gradcam.editor.targets.detectors.layouts import read_boxes
from onnx_gradcam.errors import TargetError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load
from onnx_gradcam.options import Options

TRUNK = "c = Conv<pads=[1,1,1,1]>(x, C) a = Relu(c) d = Conv<pads=[1,1,1,1], strides=[2,2]>(a, D) b = Relu(d)"
SIZES: dict[str, Any] = {"C": (6, 3, 3, 3), "D": (7, 6, 3, 3)}
BOX = "bs = Conv(b, B) br = Reshape(bs, four)"
RAW = "ss = Conv(b, S) sr = Reshape(ss, wide)"
INTS: dict[str, Any] = {"i0": [0], "i1": [1], "i2": [2], "i4": [4], "i5": [5], "big": [99]}


def detector(tail: str, outputs: str, scores: int = 3, batch: str = "N", **constants: Any) -> onnx.ModelProto:
    """Sixteen boxes: `br` [N, 4, 16] of boxes, `sr` [N, scores, 16] of logits, and a tail."""
    inits: dict[str, Any] = {"four": [0, 4, 16], "wide": [0, scores, 16], **INTS, **constants}
    return graph(
        f"{TRUNK} {BOX} {RAW} {tail}",
        inputs=f"float[{batch},3,8,8] x",
        outputs=outputs.replace("N,", f"{batch},"),
        **SIZES,
        B=(4, 7, 1, 1),
        S=(scores, 7, 1, 1),
        two=np.array(2, np.float32),
        **inits,
    )


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """`sr` of a look-alike, `[N, 16, scores]`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(helper.make_tensor_value_info("sr", onnx.TensorProto.FLOAT, None))
    keep = [node for node in copy.graph.node if not node.domain]
    del copy.graph.node[:]
    copy.graph.node.extend(keep)
    del copy.graph.output[:-1]
    return run(copy, x=x)["sr"].transpose(0, 2, 1)


YOLOV8 = "p = Sigmoid(sr) m = Mul(br, two)"
CORNERS = "bt = Transpose<perm=[0,2,1]>(br) corners = Mul(bt, two)"
SUPPRESSED = (
    f"{CORNERS} p = Sigmoid(sr) sel = NonMaxSuppression(corners, p, most, iou, least) bi = Gather<axis=1>(sel, i0) "
    "ci = Gather<axis=1>(sel, i1) xi = Gather<axis=1>(sel, i2) at = Concat<axis=1>(bi, xi) "
    "bb = GatherND(corners, at) sat = Concat<axis=1>(bi, ci, xi) s1 = GatherND(p, sat) s2 = Unsqueeze(s1, i1) "
    "cf = Cast<to=1>(ci) bf = Cast<to=1>(bi)"
)
NMS: dict[str, Any] = {
    "most": [5],
    "iou": np.array([0.5], np.float32),
    "least": np.array([0.01], np.float32),
    "batch": "1",
}
TOPK = (
    f"{CORNERS} p = Sigmoid(sr) t = Transpose<perm=[0,2,1]>(p) f = Flatten(t) v, w = TopK(f, i5) "
    "q = Div(w, three) l = Mod(w, three)"
)
LOGITS = "t = Transpose<perm=[0,2,1]>(sr) bt = Transpose<perm=[0,2,1]>(br) pred = Sigmoid(bt)"

FAMILIES: dict[str, tuple[onnx.ModelProto, dict[str, Any], str, Any]] = {
    "yolov8": (
        detector(f"{YOLOV8} y = Concat<axis=1>(m, p)", "float[N,7,16] y"),
        {},
        "boxes and classes, as of YOLOv8",
        sigmoid,
    ),
    "segment": (
        detector(
            f"{YOLOV8} k = Conv(b, E) kr = Reshape(k, eight) y = Concat<axis=1>(m, p, kr)",
            "float[N,15,16] y",
            E=(8, 7, 1, 1),
            eight=[0, 8, 16],
        ),
        {},
        "boxes and classes, as of YOLOv8",
        sigmoid,
    ),
    "yolov5": (
        detector(
            "st = Transpose<perm=[0,2,1]>(sr) p = Sigmoid(st) c4 = Slice(p, i0, i4, i2) rest = Slice(p, i4, big, i2) "
            "m = Mul(c4, two) y = Concat<axis=2>(m, rest)",
            "float[N,16,8] y",
            8,
        ),
        {},
        "boxes, objectness and classes, as of YOLOv5",
        lambda z: sigmoid(z[..., 5:]) * sigmoid(z[..., 4:5]),
    ),
    "yolov5 of one class": (
        detector(
            "st = Transpose<perm=[0,2,1]>(sr) p = Sigmoid(st) c4 = Slice(p, i0, i4, i2) rest = Slice(p, i4, big, i2) "
            "m = Mul(c4, two) y = Concat<axis=2>(m, rest)",
            "float[N,16,6] y",
            6,
        ),
        {},
        "as of YOLOv5",
        lambda z: sigmoid(z[..., 5:]) * sigmoid(z[..., 4:5]),
    ),
    "yolox": (
        detector(
            "p = Sigmoid(sr) o, k = Split<axis=1>(p, parts) q = Concat<axis=1>(br, o, k) "
            "y = Transpose<perm=[0,2,1]>(q)",
            "float[N,16,7] y",
            3,
            parts=[1, 2],
        ),
        {},
        "boxes, objectness and classes, as of YOLOX",
        lambda z: sigmoid(z[..., :1]) * sigmoid(z[..., 1:]),
    ),
    "apart": (
        detector(f"{CORNERS} t = Transpose<perm=[0,2,1]>(sr) y = Sigmoid(t)", "float[N,16,4] corners, float[N,16,3] y"),
        {},
        "scores and boxes apart",
        sigmoid,
    ),
    "classes before boxes": (
        detector(f"{CORNERS} y = Sigmoid(sr)", "float[N,16,4] corners, float[N,3,16] y"),
        {},
        "scores and boxes apart",
        sigmoid,
    ),
    "faces": (
        detector(
            f"{CORNERS} t = Transpose<perm=[0,2,1]>(sr) y = Softmax<axis=-1>(t)",
            "float[N,16,2] y, float[N,16,4] corners",
            2,
        ),
        {},
        "scores and boxes apart",
        lambda z: softmax(z)[..., 1:],
    ),
    "one logit": (
        detector(f"{CORNERS} y = Transpose<perm=[0,2,1]>(sr)", "float[N,16,4] corners, float[N,16,1] y", 1),
        {},
        "with a sigmoid each",
        sigmoid,
    ),
    "DETR": (
        detector(LOGITS, "float[N,16,5] t, float[N,16,4] pred", 5),
        {"background": "last"},
        "a softmax with the background last",
        lambda z: softmax(z)[..., :-1],
    ),
    "RT-DETR": (
        detector(LOGITS, "float[N,16,5] t, float[N,16,4] pred", 5),
        {"labels": list("abcde")},
        "with a sigmoid each",
        sigmoid,
    ),
    "TopK": (
        detector(
            f"{TOPK} n = Unsqueeze(q, i2) j = Concat<axis=2>(n, n, n, n) boxes = GatherElements<axis=1>(corners, j)",
            "int64[N,5] l, float[N,5,4] boxes, float[N,5] v",
            three=3,
        ),
        {},
        "that TopK chooses boxes from",
        sigmoid,
    ),
    "a constant count": (
        detector(
            f"{TOPK} n = Unsqueeze(q, i2) j = Concat<axis=2>(n, n, n, n) boxes = GatherElements<axis=1>(corners, j) "
            "num = Identity(five)",
            "float[1] num, float[N,5,4] boxes, float[N,5] v, int64[N,5] l",
            three=3,
            five=np.array([5], np.float32),
        ),
        {},
        "that TopK chooses boxes from",
        sigmoid,
    ),
    "suppressed": (
        detector(f"{SUPPRESSED} y = Concat<axis=1>(bf, bb, cf, s2)", "float[M,7] y", **NMS),
        {},
        "that NonMaxSuppression chooses boxes from",
        sigmoid,
    ),
    "class first": (
        detector(f"{SUPPRESSED} y = Concat<axis=1>(cf, s2, bb)", "float[M,6] y", **NMS),
        {},
        "that NonMaxSuppression chooses boxes from",
        sigmoid,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_detector_is_found_without_options_and_its_best_box_is_explained(family):
    model, choices, words, probabilities = FAMILIES[family]
    x = images(1)
    table = probabilities(logits(model, x).astype(np.float64))[0]
    plan = make_plan(model, Options(**choices))
    assert plan.task.name == "detection"
    assert words in plan.score.reason
    assert plan.score.classes == table.shape[1]
    explained = attach(model, **choices)
    got = run(explained.to_proto(), x=x)
    np.testing.assert_allclose(got["target_scores"][0], table.max(0), rtol=1e-5)
    assert got["heatmap_class"][0] == table.max(0).argmax()
    assert got["heatmap"].any()
    assert explained.metadata.method == "hirescam"


@pytest.mark.parametrize("family", ["yolov8", "yolov5", "faces", "DETR", "one logit"])
@pytest.mark.parametrize("score", ["logit", "output"])
def test_the_map_is_the_derivative_of_the_logit_or_of_the_score(family, score):
    model, choices, _, probabilities = FAMILIES[family]
    x = images(1)
    table = probabilities(logits(model, x).astype(np.float64))[0]
    index = table.shape[1] - 1
    box = int(table[:, index].argmax())
    got = run(attach(model, score=score, **choices).to_proto(), x=x, target_class=np.array([index], np.int64))
    raw = {"yolov8": index, "faces": 1, "DETR": index, "one logit": 0}

    def value(out: dict[str, np.ndarray]) -> np.ndarray:
        z = out["sr"].astype(np.float64).transpose(0, 2, 1)
        if score == "output":
            return probabilities(z)[:, box, index]
        if family == "yolov5":
            return np.log(probabilities(z)[:, box, index])
        return z[:, box, raw[family]]

    expected = numeric_map(model, "b", ["sr"], value, x, local=True, step=2e-2)
    np.testing.assert_allclose(got["cam"], expected, atol=4e-3 * np.abs(expected).max())


@pytest.mark.parametrize("softmax", [False, True], ids=["a sigmoid on two levels", "a softmax"])
class TestScoresAboveAThreshold:
    """Detectors as torchvision's, which take one image without a batch axis and choose from tables without one."""

    def explained(self, *, softmax: bool) -> tuple[onnx.ModelProto, dict[str, np.ndarray], np.ndarray]:
        source = thresholded_detector(softmax=softmax)
        x = np.random.default_rng(0).random((3, 24, 30), np.float32)
        explained = attach(source)
        assert explained.metadata.disabled_optimizers == ["ReshapeFusion"]
        return source, run(explained.to_proto(), disabled=["ReshapeFusion"], x=x), x

    def test_every_chosen_box_is_a_row_of_the_table_and_the_outputs_stay(self, softmax):
        source, got, x = self.explained(softmax=softmax)
        plain = run(source, disabled=["ReshapeFusion"], x=x)
        assert len(plain["scores"]) > 2
        for name, values in plain.items():
            np.testing.assert_allclose(got[name], values, rtol=1e-5)
        (table,), (places,) = got["detection_scores"], got["detection_boxes"]
        assert table.shape == (16 if softmax else 20, 3)
        for box, score, label in zip(plain["boxes"], plain["scores"], plain["labels"], strict=True):
            (row,) = np.flatnonzero(np.abs(places - box).max(1) < 1e-4)
            assert table[row, label] == pytest.approx(score, rel=1e-5)
        assert (got["heatmap_class"][0], got["heatmap_score"][0]) == (
            plain["labels"][0],
            pytest.approx(plain["scores"][0], rel=1e-5),
        )

    def test_the_background_is_never_found(self, softmax):
        _, got, _ = self.explained(softmax=softmax)
        assert got["detection_scores"][0, :, 0].any() != softmax

    def test_maps_are_the_derivative_of_the_logit_and_lie_where_the_padded_image_is(self, softmax):
        source, got, x = self.explained(softmax=softmax)
        plan = make_plan(source)
        assert [target.name for target in plan.targets] == (["b0"] if softmax else ["b0", "b1"])
        assert plan.extent == [
            [0, 0],
            [0, 0],
            [0, pytest.approx(16 / 14, abs=1e-6)],
            [0, pytest.approx(16 / 15, abs=1e-6)],
        ]
        assert got["heatmap"].shape == (1, 24, 30)
        box, index = got["heatmap_box"][0], got["heatmap_class"][0]

        def value(out: dict[str, np.ndarray]) -> np.ndarray:
            return out["sa"].astype(np.float64)[:, box, index]

        for tensor, chosen in [("b0", box), *([("a0", 17), ("b0", 17), ("b1", 17)] if not softmax else [])]:
            box = chosen
            feeds = {"x": x, "target_box": np.array([box]), "target_class": np.array([index])}
            one = run(attach(source, layer=tensor).to_proto(), disabled=["ReshapeFusion"], **feeds)["cam"]
            expected = numeric_map(source, tensor, ["sa"], value, x, local=True, step=2e-2)
            # The oracle repeats its only row for what it takes for a batch.
            np.testing.assert_allclose(one[0], expected[0], atol=4e-3 * np.abs(expected).max())


def test_the_second_stage_of_a_detector_is_explained_through_its_regions():
    source = two_stage_detector()
    x = np.random.default_rng(0).random((3, 24, 30), np.float32)
    explained = attach(source)
    got = run(explained.to_proto(), disabled=["ReshapeFusion"], x=x)
    assert explained.metadata.target_tensors == ["b"]
    assert make_plan(source).score.classes == 3
    assert got["detection_scores"].shape == (1, 5, 3)
    assert not got["detection_scores"][..., 0].any()
    assert got["heatmap_class"][0] == got["labels"][0]
    assert got["heatmap_score"][0] == pytest.approx(got["scores"][0], rel=1e-5)
    box, index = got["heatmap_box"][0], got["heatmap_class"][0]
    expected = numeric_map(
        source, "b", ["lg"], lambda out: out["lg"].astype(np.float64)[None, box, index], x, local=True, step=2e-2
    )
    np.testing.assert_allclose(got["cam"][0], expected[0], atol=4e-3 * np.abs(expected).max())


def test_a_probability_that_is_rounded_to_one_still_has_a_map():
    model, *_ = FAMILIES["yolov8"]
    for tensor in model.graph.initializer:
        if tensor.name == "S":
            weights = onnx.numpy_helper.to_array(tensor) * 200
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights.astype(np.float32), "S"))
    got = run(attach(model).to_proto(), x=images(1))
    assert got["target_scores"].max() == 1
    assert got["heatmap"].any()


def test_the_background_of_logits_is_asked_for():
    model, *_ = FAMILIES["DETR"]
    with pytest.raises(TargetError, match=r"'t' .* holds 5 logits a box.*softmax over 4.*or none \(5.*--background"):
        attach(model)
    first = attach(model, background="first")
    x = images(1)
    z = logits(model, x)[0].astype(np.float64)
    np.testing.assert_allclose(run(first.to_proto(), x=x)["target_scores"][0], softmax(z)[:, 1:].max(0), rtol=1e-5)


def test_four_numbers_with_a_sigmoid_beside_four_without_are_told_apart_by_name_or_asked_for():
    boxes = detector(LOGITS.replace("pred", "pred_boxes"), "float[N,16,4] t, float[N,16,4] pred_boxes", 4)
    assert "logits 't'" in make_plan(boxes, Options(background="none")).score.reason
    with pytest.raises(
        TargetError, match=r"'pred' .* scores of 4 classes with the boxes in 't'.*or the boxes.*--output"
    ):
        attach(detector(LOGITS, "float[N,16,4] t, float[N,16,4] pred", 4))
    named = make_plan(
        detector(LOGITS, "float[N,16,4] t, float[N,16,4] pred", 4), Options(task="detection", output="pred")
    )
    assert "'pred'" in named.score.reason


def test_a_plugin_of_tensorrt_is_cut_off_and_its_scores_are_explained():
    tail = f"{CORNERS} t = Transpose<perm=[0,2,1]>(sr) p = Sigmoid(t)"
    model = detector(tail, "float[N,16,3] p, float[N,16,4] corners")
    del model.graph.output[:]
    names = ["num_dets", "det_boxes", "det_scores", "det_classes"]
    model.graph.node.append(helper.make_node("EfficientNMS_TRT", ["corners", "p"], names, domain="TRT"))
    model.opset_import.append(helper.make_opsetid("TRT", 1))
    for name, shape in zip(names, ([1, 1], [1, 5, 4], [1, 5], [1, 5]), strict=True):
        model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    got = run(attach(model).to_proto(), x=images(1))
    assert set(got) >= {"p", "corners", "target_scores", "heatmap"}
    np.testing.assert_allclose(got["target_scores"], got["p"].max(1), rtol=1e-6)


def test_a_format_that_contradicts_the_graph_is_refused_with_both_numbers():
    yolov8, yolov5 = FAMILIES["yolov8"][0], FAMILIES["yolov5"][0]
    with pytest.raises(
        TargetError, match=r"no table \[N, boxes, 5 \+ K\].*along axis 1 \(7 of 7\), not along axis 2 \(16\)"
    ):
        attach(yolov8, boxes="yolov5")
    with pytest.raises(TargetError, match=r"along axis 2 \(8 of 8\), not along axis 1 \(16\)"):
        attach(yolov5, boxes="yolov8")
    with pytest.raises(TargetError, match=r"has 3 classes, but there are 4 class names"):
        attach(yolov8, boxes="yolov8", labels=list("abcd"))


def test_what_follows_the_scores_is_no_class_for_a_named_format():
    model, *_ = FAMILIES["segment"]
    plan = make_plan(model, Options(task="detection", boxes="yolov8"))
    assert plan.score.classes == 3


@pytest.mark.parametrize(
    ("family", "output"), [("suppressed", "y"), ("class first", "y"), ("one logit", "y"), ("TopK", "v")]
)
def test_no_task_takes_boxes_ids_or_ranks_for_class_scores(family, output):
    model, *_ = FAMILIES[family]
    for choices in ({}, {"output": output}):
        with pytest.raises(TargetError):
            attach(model, task="classification", **choices)


def test_other_models_are_no_detectors():
    classifier = graph(f"{TRUNK} p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W)", **SIZES, W=(7, 4))
    words = detector("t = Transpose<perm=[0,2,1]>(sr) y = Softmax<axis=-1>(t)", "float[N,16,3] y")
    heads = graph(
        f"{TRUNK} p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W) k = Softmax(y) z = Gemm(f, V) o = Gemm(f, U)",
        outputs="float[N,2] k, float[N,8] z, float[N,1] o",
        **SIZES,
        W=(7, 2),
        V=(7, 8),
        U=(7, 1),
    )
    volume = graph(
        "y = Conv<pads=[1,1,1,1,1,1]>(x, C)",
        inputs="float[1,1,8,8,8] x",
        outputs="float[1,3,8,8,8] y",
        C=(3, 1, 3, 3, 3),
    )
    for model in (classifier, words, heads, volume):
        assert recognize(builder(model), Hints()) is None


def test_a_classifier_beside_a_detector_is_asked_for():
    model = detector(
        f"{YOLOV8} y = Concat<axis=1>(m, p) g = GlobalAveragePool(b) f = Flatten(g) k = Gemm(f, W)",
        "float[N,7,16] y, float[N,5] k",
        W=(7, 5),
    )
    with pytest.raises(
        TargetError, match=r"could be a classifier or a detector of boxes and classes.*--task detection"
    ):
        attach(model)
    assert attach(model, task="detection").metadata.task == "detection"
    assert attach(model, output="k").metadata.task == "classification"


# ----- real exports ----------------------------------------------------------------------

MODELS = Path(__file__).parents[3].parent / "shared" / "detectors" / "models"
ENTRIES = (
    [
        e
        for e in json.loads((MODELS / "MANIFEST.json").read_text())["files"]
        if "best" in e and not e["name"].startswith("odd")
    ]
    if MODELS.exists()
    else []
)
ROWS = {"det_paddle_nms", "det_tf_object_detection", "det_torchvision_like", "det_yolov7_end2end_m7"}
"""Files whose best box is told by its row; the column of a table of one column is no class there."""


def feeds(entry: dict[str, Any], model: onnx.ModelProto) -> dict[str, np.ndarray]:
    if entry["name"].startswith("hf_"):
        values = {"orig_target_sizes": np.array([[640, 480]])}
        x = np.random.default_rng(5).random((1, 3, 64, 96)).astype(np.float32)
    elif entry["name"] == "ul_yolov8_det_84":
        values, x = {}, np.load(MODELS / "ul_yolov8_det_84.npz")["x"]
    else:
        name = "det_input_96x128.npy" if entry["name"].startswith("det_") else "ul_input_128.npy"
        values, x = {}, np.load(MODELS / name)
    inputs = [i.name for i in model.graph.input if i.name not in {*values, "target_class"}]
    return {**{k: v for k, v in values.items() if any(i.name == k for i in model.graph.input)}, inputs[0]: x}


@pytest.mark.real
@pytest.mark.skipif(not ENTRIES, reason="the exports of detectors are not at hand")
@pytest.mark.parametrize("entry", ENTRIES, ids=[e["name"] for e in ENTRIES])
def test_the_best_box_of_a_real_export(entry):
    options = Options(labels=list("abcde") if entry["name"] in {"hf_detr", "hf_yolos"} else None)
    t = Builder(load(MODELS / f"{entry['name']}.onnx"))
    reading = read_boxes(t, options)
    t.output(reading.table().scores(t), "normal_form")
    t.finish()
    model = t.model.to_proto()
    (table,) = run(model, **feeds(entry, model))["normal_form"]
    box, index = np.unravel_index(table.argmax(), table.shape)
    score = table[box, index]
    if "background" in entry:
        stored = np.load(MODELS / f"{entry['name']}.npz")["score_table"][:, 1]
        assert (box, index, table.shape[1]) == (stored.argmax(), 0, 1)
        assert score == pytest.approx(stored.max(), abs=1e-5)
        return
    best = entry["best"]
    assert score == pytest.approx(best["score"], abs=1e-5)
    if entry["name"] in ROWS:
        assert (box, index) == (704, 3)
    else:
        assert (box if "box" in best else None, index) == (best.get("box"), best["cls"])


@pytest.mark.real
@pytest.mark.skipif(not ENTRIES, reason="the exports of detectors are not at hand")
@pytest.mark.parametrize("entry", ENTRIES, ids=[e["name"] for e in ENTRIES])
def test_a_real_export_is_planned_without_options(entry):
    labels = list("abcde") if entry["name"] in {"hf_detr", "hf_yolos"} else None
    plan = make_plan(MODELS / f"{entry['name']}.onnx", Options(labels=labels))
    assert plan.task.name == "detection"
    assert plan.refusal is None


@pytest.mark.real
@pytest.mark.skipif(not ENTRIES, reason="the exports of detectors are not at hand")
@pytest.mark.parametrize("name", ["hf_detr", "hf_yolos"])
def test_real_logits_whose_background_cannot_be_told(name):
    with pytest.raises(TargetError, match="--background"):
        attach(MODELS / f"{name}.onnx")
