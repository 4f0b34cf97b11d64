"""Segmentations, detections, embeddings and regressions: one score a class, checked without a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from support.cam_oracle import numeric_map
from support.graphs import graph, images, run, weight

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.errors import InputError, ModelError, TargetError, UnsupportedError
from onnx_gradcam.options import Options

TRUNK = "c = Conv<pads=[1,1,1,1]>(x, K) a = Relu(c) d = Conv<pads=[1,1,1,1], strides=[2,2]>(a, L) b = Relu(d)"
SIZES = {"K": (6, 3, 3, 3), "L": (7, 6, 3, 3)}


def segmenter(
    tail: str = "y = Identity(l)",
    outputs: str = "float[N,5,8,8] y",
    classes: int = 5,
    batch: str = "N",
    **constants: Any,
) -> onnx.ModelProto:
    return graph(
        f'{TRUNK} s = Conv<pads=[1,1,1,1]>(b, M) l = Resize<mode="linear">(s, none, scales) {tail}',
        inputs=f"float[{batch},3,8,8] x",
        outputs=outputs.replace("N,", f"{batch},"),
        **SIZES,
        M=(classes, 7, 3, 3),
        none=np.zeros(0, np.float32),
        scales=np.array([1, 1, 2, 2], np.float32),
        **constants,
    )


def explained(source: onnx.ModelProto, x: np.ndarray, index: int, **choices: Any) -> dict[str, np.ndarray]:
    feeds = {"target_mask": choices.pop("target_mask")} if "target_mask" in choices else {}
    return run(attach(source, **choices).to_proto(), x=x, target_class=np.array([index], np.int64), **feeds)


def own(logits: np.ndarray, index: int) -> np.ndarray:
    return logits.argmax(1) == index


# ----- segmentation ------------------------------------------------------------


@pytest.mark.parametrize("method", ["hirescam", "gradcam"])
@pytest.mark.parametrize("mask", ["own", "all", "input"])
def test_the_map_of_a_segmentation_is_what_moving_the_activations_does(mask, method):
    x, source = images(2), segmenter()
    logits = run(source, x=x)["y"]
    index = int(np.bincount(logits.argmax(1).ravel(), minlength=5).argmax())
    given = (np.random.default_rng(1).random((2, 8, 8)) > 0.6).astype(np.float32)
    where = {"own": own(logits, index), "all": np.ones((2, 8, 8)), "input": given}[mask]
    feeds = {"target_mask": given} if mask == "input" else {}
    got = explained(source, x, index, task="segmentation", mask=mask, method=method, **feeds)
    expected = numeric_map(
        source, "b", ["y"], lambda out: (out["y"][:, index] * where).sum((1, 2)), x, local=method == "hirescam"
    )
    np.testing.assert_allclose(got["cam"], expected, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose(got["target_scores"][:, index], (logits[:, index] * where).sum((1, 2)), rtol=1e-4)
    np.testing.assert_array_equal(got["y"], logits)


@pytest.mark.parametrize(
    ("tail", "outputs"),
    [
        ("y = Softmax<axis=1>(l)", "float[N,5,8,8] y"),
        ("y = ArgMax<axis=1, keepdims=0>(l)", "int64[N,8,8] y"),
        ("m = ArgMax<axis=1>(l) y = Cast<to=2>(m)", "uint8[N,1,8,8] y"),
        ("y = Transpose<perm=[0,2,3,1]>(l)", "float[N,8,8,5] y"),
        ("h = Transpose<perm=[0,2,3,1]>(l) y = Softmax(h)", "float[N,8,8,5] y"),
        ("p = Softmax<axis=1>(l) y = Transpose<perm=[0,2,3,1]>(p)", "float[N,8,8,5] y"),
        ("y = Identity(l) z = ArgMax<axis=1>(l)", "float[N,5,8,8] y, int64[N,1,8,8] z"),
    ],
)
def test_the_logits_before_whatever_the_output_is(tail, outputs):
    x = images(2)
    plain = explained(segmenter(), x, 2, task="segmentation")
    got = explained(segmenter(tail, outputs), x, 2, task="segmentation")
    np.testing.assert_allclose(got["target_scores"], plain["target_scores"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["heatmap"], plain["heatmap"], atol=1e-5)


def test_probabilities_where_the_output_itself_is_asked_for():
    x, source = images(1), segmenter("y = Softmax<axis=1>(l)")
    got = explained(source, x, 2, task="segmentation", score="output")
    out = run(source, x=x)["y"]
    np.testing.assert_allclose(got["target_scores"][:, 2], (out[:, 2] * own(out, 2)).sum((1, 2)), rtol=1e-5)
    expected = numeric_map(
        source, "b", ["y"], lambda o: (o["y"][:, 2] * own(out, 2)).sum((1, 2)), x, local=True, step=1e-2
    )
    np.testing.assert_allclose(got["cam"], expected, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["logit", "output"])
def test_a_single_map_decides_between_two_classes(kind):
    x = images(1)
    source = segmenter("y = Sigmoid(l)", "float[N,1,8,8] y", classes=1)
    out = run(source, x=x)["y"][:, 0]
    value = out if kind == "output" else np.log(out / (1 - out))
    inside, outside = value * (out > 0.5), (1 - out if kind == "output" else -value) * (out <= 0.5)
    got = explained(source, x, 1, task="segmentation", score=kind)
    expected = np.stack([outside.sum((1, 2)), inside.sum((1, 2))], axis=1)
    np.testing.assert_allclose(got["target_scores"], expected, rtol=1e-3)
    assert attach(source, task="segmentation").metadata.target_tensor == "b"


def test_a_class_without_a_place_is_never_the_best_and_has_a_blank_map():
    source = segmenter(
        "n = Add(l, far) y = Identity(n)", far=np.array([-50, -60, -60, -60, -60], np.float32).reshape(1, 5, 1, 1)
    )
    got = explained(source, images(1), -1, task="segmentation")
    assert got["target_scores"][0, 0] < -1000
    assert got["heatmap_class"].tolist() == [0]
    assert got["target_scores"][0].argmax() == 0
    blank = explained(source, images(1), 3, task="segmentation")
    assert not blank["heatmap"].any()
    assert np.isfinite(blank["target_scores"]).all()


def test_height_and_width_may_be_free():
    source = graph(
        f"{TRUNK} y = Conv<pads=[1,1,1,1]>(b, M)",
        inputs="float[N,3,height,width] x",
        outputs="float[N,5,h,w] y",
        **SIZES,
        M=(5, 7, 3, 3),
    )
    proto = attach(source, task="segmentation").to_proto()
    for shape in ((1, 3, 8, 8), (2, 3, 12, 10)):
        results = run(proto, x=images(*shape))
        assert results["heatmap"].shape == (shape[0], *shape[2:])
        assert np.isfinite(results["heatmap"]).all()
        assert 0.5 < results["heatmap"].max() <= 1


def test_a_batch_of_two_is_two_singles():
    x, proto = images(2), attach(segmenter(), task="segmentation").to_proto()
    both = run(proto, x=x)
    for i in range(2):
        single = run(proto, x=x[i : i + 1])
        np.testing.assert_allclose(both["heatmap"][i], single["heatmap"][0], atol=1e-5)


def test_the_rounded_logits_of_a_quantised_segmentation():
    scale, zero = np.array(0.05, np.float32), np.array(0, np.int8)
    source = segmenter("y = QuantizeLinear(l, sc, zp)", "int8[N,5,8,8] y", sc=scale, zp=zero)
    plain = explained(segmenter(), images(1), 2, task="segmentation")
    got = explained(source, images(1), 2, task="segmentation")
    np.testing.assert_allclose(got["heatmap"], plain["heatmap"], atol=1e-5)


def test_outputs_that_hold_no_maps_are_refused():
    flat = graph(f"{TRUNK} p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W)", **SIZES, W=(7, 4))
    with pytest.raises(TargetError, match=r"no output holds a map for each class.*'y'.*--output"):
        attach(flat, task="segmentation")
    two = segmenter("y = Identity(l) z = Neg(l)", "float[N,5,8,8] y, float[N,5,8,8] z")
    with pytest.raises(TargetError, match=r"several outputs \('y', 'z'\)"):
        attach(two, task="segmentation")
    assert attach(two, task="segmentation", output="z").metadata.target_tensor == "b"
    with pytest.raises(TargetError, match=r"output 'w' holds no map"):
        attach(two, task="segmentation", output="w")
    with pytest.raises(TargetError, match=r"only a detector's scores are in several outputs"):
        attach(two, task="segmentation", output=["y", "z"])
    taken = segmenter("target_scores = Identity(l) y = Identity(target_scores)")
    with pytest.raises(TargetError, match=r"'target_scores' already"):
        attach(taken, task="segmentation")


# ----- dense regression --------------------------------------------------------


@pytest.mark.parametrize("mask", ["all", "input"])
def test_the_map_of_a_depth_is_what_moving_the_activations_does(mask):
    x, source = images(2), segmenter("y = Sigmoid(l)", "float[N,1,8,8] y", classes=1)
    depth = run(source, x=x)["y"][:, 0]
    region = np.zeros((2, 8, 8), np.float32)
    region[:, 2:5, 1:4] = 0.5
    where = {"all": np.ones_like(region), "input": region}[mask]
    feeds = {"target_mask": region} if mask == "input" else {}
    results = explained(source, x, 0, task="dense-regression", mask=mask, **feeds)
    means = (depth * where).sum((1, 2)) / where.sum((1, 2))
    np.testing.assert_allclose(results["target_scores"], means[:, None], rtol=1e-5)
    weights = where / where.sum((1, 2), keepdims=True)
    want = numeric_map(source, "b", ["y"], lambda out: (out["y"][:, 0] * weights).sum((1, 2)), x, local=True)
    np.testing.assert_allclose(results["cam"], want, rtol=0, atol=2e-3 * np.abs(want).max())


def test_an_empty_region_of_a_depth_is_a_blank_map():
    source = segmenter("y = Sigmoid(l)", "float[N,1,8,8] y", classes=1)
    region = np.zeros((1, 8, 8), np.float32)
    results = explained(source, images(1), 0, task="dense-regression", mask="input", target_mask=region)
    assert results["target_scores"].max() == 0 == np.abs(results["cam"]).max()


# ----- detection ---------------------------------------------------------------


def detector(tail: str, outputs: str, columns: int, batch: str = "N", **constants: Any) -> onnx.ModelProto:
    """Sixteen boxes of `columns` numbers each, `t`: [N, 16, columns]."""
    return graph(
        f"{TRUNK} s = Conv<pads=[1,1,1,1]>(b, M) r = Reshape(s, flat) t = Transpose<perm=[0,2,1]>(r) {tail}",
        inputs=f"float[{batch},3,8,8] x",
        outputs=outputs.replace("N,", f"{batch},"),
        **SIZES,
        M=(columns, 7, 3, 3),
        flat=[0, columns, 16],
        **constants,
    )


FORMS = {
    "scores": ("y = Sigmoid(t)", "float[N,16,4] y", 4, lambda y: y),
    "yolov5": ("y = Sigmoid(t)", "float[N,16,9] y", 9, lambda y: y[:, :, 5:] * y[:, :, 4:5]),
    "yolov8": (
        "q = Sigmoid(t) y = Transpose<perm=[0,2,1]>(q)",
        "float[N,8,16] y",
        8,
        lambda y: y[:, 4:].transpose(0, 2, 1),
    ),
}


@pytest.mark.parametrize("method", ["hirescam", "gradcam"])
@pytest.mark.parametrize(("rank", "box"), [(0, None), (2, None), (0, 11)])
@pytest.mark.parametrize("form", FORMS)
def test_the_map_of_a_box_is_what_moving_the_activations_does(form, rank, box, method):
    tail, outputs, columns, read = FORMS[form]
    x, source, index = images(2), detector(tail, outputs, columns), 2
    scores = read(run(source, x=x)["y"])[:, :, index]
    picked = np.full(2, box) if box is not None else np.argsort(-scores, axis=1)[:, rank]
    choices = {"boxes": form, "box_rank": rank, "box": box, "method": method, "score": "output"}
    got = explained(source, x, index, task="detection", output="y", **choices)
    np.testing.assert_allclose(got["target_scores"][:, index], scores[np.arange(2), picked], rtol=1e-5)
    expected = numeric_map(
        source,
        "b",
        ["y"],
        lambda out: read(out["y"])[np.arange(2), picked, index],
        x,
        local=method == "hirescam",
        step=2e-2,
    )
    np.testing.assert_allclose(got["cam"], expected, atol=4e-3 * np.abs(expected).max())


def test_levels_of_a_pyramid_are_put_one_behind_the_other():
    tail = (
        "y = Sigmoid(t) u = Conv<pads=[1,1,1,1], strides=[2,2]>(b, V) v = Reshape(u, small) "
        "w = Transpose<perm=[0,2,1]>(v) z = Sigmoid(w)"
    )
    source = detector(tail, "float[N,16,4] y, float[N,4,4] z", 4, V=(4, 7, 3, 3), small=[0, 4, 4])
    x = images(2)
    plain = run(source, x=x)
    table = np.concatenate([plain["y"], plain["z"]], axis=1)
    got = explained(source, x, 1, task="detection", output=["y", "z"])
    np.testing.assert_allclose(got["target_scores"], table.max(1), rtol=1e-6)
    last = explained(source, x, 1, task="detection", output=["y", "z"], box=18)
    np.testing.assert_allclose(last["target_scores"], plain["z"][:, 2], rtol=1e-6)
    assert attach(source, task="detection", output=["y", "z"]).metadata.method == "hirescam"


def test_boxes_that_were_chosen_in_the_graph():
    tail = (
        "c4 = Slice(t, zero, four, two) p = Sigmoid(t) s1 = Slice(p, four, five, two) st = Transpose<perm=[0,2,1]>(s1) "
        "picked = NonMaxSuppression(c4, st, most, iou, least) col = Slice(picked, two, three, one) "
        "which = Squeeze(col, one) flat1 = Reshape(s1, line) g = Gather(flat1, which) scores = Unsqueeze(g, zero)"
    )
    source = detector(
        tail,
        "float[1,M] scores",
        5,
        batch="1",
        zero=[0], one=[1], two=[2], three=[3], four=[4], five=[5], line=[-1], most=[6],
        iou=np.array([0.5], np.float32), least=np.array([0.0], np.float32),
    )  # fmt: skip
    x = images(1)
    found = run(source, x=x)["scores"][0]
    got = explained(source, x, 0, task="detection", output="scores", box=2, score="output")
    np.testing.assert_allclose(got["target_scores"], [[found[2]]], rtol=1e-6)
    raw = run(detector("y = Sigmoid(t)", "float[N,16,5] y", 5), x=x)["y"][0, :, 4]
    index = int(np.abs(raw - found[2]).argmin())
    expected = numeric_map(
        detector("y = Sigmoid(t)", "float[N,16,5] y", 5),
        "b",
        ["y"],
        lambda o: o["y"][:, index, 4],
        x,
        local=True,
        step=2e-2,
    )
    np.testing.assert_allclose(got["cam"], expected, atol=4e-3 * np.abs(expected).max())


def test_a_detector_of_one_class_explains_this_class():
    got = explained(detector("y = Sigmoid(t)", "float[N,16,1] y", 1), images(1), 0, task="detection")
    assert got["heatmap_class"].tolist() == [0]
    with pytest.raises(ModelError, match="out of"):
        explained(detector("y = Sigmoid(t)", "float[N,16,1] y", 1), images(1), 1, task="detection")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"output": "z"}, r"no output 'z'.*'y'"),
        ({"boxes": "yolov8", "output": "f"}, r"output 'f' is no table \[N, 4 \+ K, boxes\]"),
        ({"boxes": "yolov5", "output": "y"}, r"no room for class scores behind the first 5"),
        ({"box": 16}, r"no box 16; the model has boxes 0 to 15"),
        ({"box_rank": 16}, r"no box 16"),
        ({"box": -1}, r"box is -1; give an integer from 0 on"),
        ({"output": ["y", "k"]}, r"do not hold scores of the same classes.*'k'"),
    ],
)
def test_wrong_boxes_are_refused_in_one_sentence(choices, message):
    tail = "y = Sigmoid(t) f = ReduceSum(y, axes) k = Concat<axis=2>(y, y)"
    source = detector(tail, "float[N,16,4] y, float[N,1,1] f, float[N,16,8] k", 4, axes=[1, 2])
    if choices.get("boxes") == "yolov8":
        source = detector(
            "y = Sigmoid(t) f = ReduceSum<keepdims=0>(y, axes)", "float[N,16,4] y, float[N] f", 4, axes=[1, 2]
        )
    with pytest.raises((InputError, TargetError), match=message):
        attach(source, task="detection", **{"output": "y"} | choices)


def test_the_output_of_the_scores_is_found_where_there_is_one_alone():
    one = detector("y = Sigmoid(t)", "float[N,16,6] y", 6)
    assert attach(one, task="detection").metadata.task == "detection"
    two = detector("y = Sigmoid(t) z = Neg(t)", "float[N,16,6] y, float[N,16,6] z", 6)
    with pytest.raises(TargetError, match=r"which output holds the scores of the boxes"):
        attach(two, task="detection")


# ----- embeddings and regressions ----------------------------------------------


def embedder() -> onnx.ModelProto:
    return graph(
        f"{TRUNK} p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W)", outputs="float[N,5] y", **SIZES, W=(7, 5)
    )


def test_the_map_of_a_similarity_is_what_moving_the_activations_does():
    reference, x, source = weight("reference", 5), images(2), embedder()

    def cosine(out: dict[str, np.ndarray]) -> np.ndarray:
        y = out["y"].astype(np.float64)
        return y @ reference / np.linalg.norm(y, axis=1) / np.linalg.norm(reference)

    got = explained(source, x, 0, task="embedding", reference=reference)
    np.testing.assert_allclose(got["target_scores"][:, 0], cosine(run(source, x=x)), rtol=1e-4, atol=1e-6)
    expected = numeric_map(source, "b", ["y"], cosine, x, local=False, step=2e-2)
    np.testing.assert_allclose(got["cam"], expected, atol=5e-3 * np.abs(expected).max())
    assert attach(source, task="embedding", reference=reference).metadata.method == "gradcam"


@pytest.mark.parametrize(
    ("reference", "choices", "message"),
    [
        (None, {}, "needs a reference"),
        (np.zeros(5), {}, "zero or not finite"),
        ("other.png", {}, "no embedding of numbers"),
        (np.full(5, np.nan), {}, "zero or not finite"),
        (np.ones(4), {}, r"an embedding of 4 numbers cannot be told.*'y' \['N', 5\]"),
        (np.ones(5), {"output": "yy"}, r"did you mean 'y'"),
    ],
)
def test_wrong_references_are_refused(reference, choices, message):
    with pytest.raises(TargetError, match=message):
        attach(embedder(), task="embedding", reference=reference, **choices)


def test_each_value_of_a_regression_is_explained_itself():
    x, source = images(2), embedder()
    work = make_plan(source, Options(task="regression"))
    assert (work.score.single_logit, work.score.classes, work.method.name) == (False, 5, "gradcam")
    np.testing.assert_allclose(
        explained(source, x, 3, task="regression")["cam"], explained(source, x, 3)["cam"], rtol=1e-6
    )


def test_a_regression_of_one_value_has_no_complement():
    source = graph(
        f"{TRUNK} p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W)", outputs="float[N,1] y", **SIZES, W=(7, 1)
    )
    x = images(2)
    got = explained(source, x, -1, task="regression")
    assert got["heatmap_class"].tolist() == [0, 0]
    np.testing.assert_allclose(got["cam"], explained(source, x, 1)["cam"], rtol=1e-6)


def test_methods_that_run_the_head_are_told_what_they_get():
    with pytest.raises(UnsupportedError, match="linear"):
        attach(segmenter(), task="segmentation", method="cam")
