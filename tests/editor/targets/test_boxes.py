"""Where the boxes of a detector are, and which of them is explained: chosen when the model runs, row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.graphs import graph, images, run

from onnx_gradcam import Explainer
from onnx_gradcam.editor.attachment import attach, with_required_choices
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.errors import InputError, ModelError, TargetError
from onnx_gradcam.metadata import Metadata
from onnx_gradcam.options import Options

GRID = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(16, 2)
"""x and y of every cell of a grid of four by four, line by line."""
STRIDE = 8.0
TRUNK = (
    "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, C) a = Relu(c) d = Conv<pads=[1,1,1,1], strides=[4,4]>(a, D) "
    "b = Relu(d) bs = Conv(b, B) br = Reshape(bs, four) ss = Conv(b, S) sr = Reshape(ss, wide) p = Sigmoid(sr)"
)


def detector(tail: str, outputs: str, batch: str = "N", size: str = "32,32", **constants: Any) -> onnx.ModelProto:
    """Sixteen boxes of three classes: `br` [N, 4, 16] of a network, `p` [N, 3, 16] of probabilities, and a decoder."""
    return graph(
        f"{TRUNK} {tail}",
        inputs=f"float[{batch},3,{size}] x",
        outputs=outputs.replace("N,", f"{batch},"),
        C=(6, 3, 3, 3), D=(7, 6, 3, 3), B=(4, 7, 1, 1), S=(3, 7, 1, 1),
        four=[0, 4, 16], wide=[0, 3, 16], halves=[2, 2], **constants,
    )  # fmt: skip


def arrays(**values: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


CELLS = arrays(cells=(GRID.T[None] + 0.5), s=STRIDE, two=2.0, half=0.5)
SIDES = "l, r = Split<axis=1>(br, halves) lo = Sub(cells, l) hi = Add(cells, r)"
CENTRES = f"{SIDES} su = Add(lo, hi) ce = Div(su, two) wh = Sub(hi, lo) ch = Concat<axis=1>(ce, wh)"
YOLOV8 = f"{CENTRES} m = Mul(ch, s) y = Concat<axis=1>(m, p)"


def sides(br: np.ndarray) -> np.ndarray:
    """x0 y0 x1 y1 in pixels of distances from the middle of the cells."""
    middle = GRID.T[None] + 0.5
    return np.concatenate([middle - br[:, :2], middle + br[:, 2:]], 1).transpose(0, 2, 1) * STRIDE


def grid(br: np.ndarray) -> np.ndarray:
    centre, size = (br[:, :2] + GRID.T[None]) * STRIDE, np.exp(br[:, 2:]) * STRIDE
    return np.concatenate([centre - size / 2, centre + size / 2], 1).transpose(0, 2, 1)


def queries(br: np.ndarray) -> np.ndarray:
    q = 1 / (1 + np.exp(-br))
    return np.concatenate([q[:, :2] - q[:, 2:] / 2, q[:, :2] + q[:, 2:] / 2], 1).transpose(0, 2, 1) * 32


APART = "t = Transpose<perm=[0,2,1]>(p) z = Transpose<perm=[0,2,1]>(q)"
NAMED = (
    "tr = Transpose<perm=[0,2,1]>(sr) logits = Identity(tr) qt = Transpose<perm=[0,2,1]>(br) pred_boxes = Sigmoid(qt)"
)
TABLES: dict[str, tuple[onnx.ModelProto, dict[str, Any], str, Any]] = {
    "centre and sizes": (detector(YOLOV8, "float[N,7,16] y", **CELLS), {}, "cx cy w h in pixels", sides),
    "corners": (
        detector(
            f"{SIDES} co = Concat<axis=1>(lo, hi) m = Mul(co, s) y = Concat<axis=1>(m, p)", "float[N,7,16] y", **CELLS
        ),
        {},
        "x0 y0 x1 y1 in pixels",
        sides,
    ),
    "y first, shares": (
        detector(
            f"{SIDES} x0, y0 = Split<axis=1, num_outputs=2>(lo) x1, y1 = Split<axis=1, num_outputs=2>(hi) "
            f"co = Concat<axis=1>(y0, x0, y1, x1) q = Div(co, many) {APART}",
            "float[N,16,3] t, float[N,16,4] z",
            **CELLS,
            **arrays(many=4.0),
        ),
        {},
        "y0 x0 y1 x1 in shares of the input",
        sides,
    ),
    "undecoded": (
        detector(
            "o, k = Split<axis=1>(p, parts) yt = Concat<axis=1>(br, o, k) y = Transpose<perm=[0,2,1]>(yt)",
            "float[N,16,7] y",
            parts=[1, 2],
        ),
        {},
        "",
        None,
    ),
    "queries": (
        detector(NAMED, "float[N,16,3] logits, float[N,16,4] pred_boxes"),
        {"background": "none"},
        "cx cy w h in shares of the input, as of DETR",
        queries,
    ),
    "anchors that are not in the graph": (
        detector(f"q = Mul(br, two) {APART}", "float[N,16,3] t, float[N,16,4] z", **CELLS),
        {},
        "",
        None,
    ),
    "anchors that stay": (
        detector(
            f"an = Mul(fixed, s) no = ReduceSum(br) zero = Mul(no, none) q = Add(an, zero) {APART}",
            "float[N,16,3] t, float[N,16,4] z",
            **CELLS,
            **arrays(fixed=np.concatenate([CELLS["cells"] - 1, CELLS["cells"] + 1], 1), none=0.0),
        ),
        {},
        "",
        None,
    ),
}  # fmt: skip


def raw_boxes(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.helper.make_tensor_value_info("br", onnx.TensorProto.FLOAT, None))
    return run(copy, x=x)["br"].astype(np.float64)


@pytest.mark.parametrize("name", TABLES)
def test_boxes_are_placed_as_they_are_written_or_not_at_all(name):
    model, choices, words, expected = TABLES[name]
    explained = attach(model, task="detection", **choices)
    x = images(2, 3, 32, 32)
    got = run(explained.to_proto(), x=x)
    assert got["detection_scores"].shape == (2, 16, got["target_scores"].shape[1])
    np.testing.assert_allclose(got["detection_scores"].max(1), got["target_scores"], rtol=1e-5)
    if expected is None:
        assert explained.metadata.detection_boxes == ""
        assert "detection_boxes" not in got
        return
    assert explained.metadata.detection_boxes == "detection_boxes"
    np.testing.assert_allclose(got["detection_boxes"], expected(raw_boxes(model, x)), rtol=1e-4, atol=1e-4)
    assert words in planned_reason(model, choices)


def planned_reason(model: onnx.ModelProto, choices: dict[str, Any]) -> str:
    return make_plan(model, Options(task="detection", **choices)).score.reason


CELLS_OF_SHAPES = (
    "sh = Shape(b) hh = Gather(sh, i2) ww = Gather(sh, i3) hs = Squeeze(hh) ws = Squeeze(ww) "
    "ry = Range(zero, hs, step) rx = Range(zero, ws, step) fy = Cast<to=1>(ry) fx = Cast<to=1>(rx) "
    "uy = Unsqueeze(fy, i1) ux = Unsqueeze(fx, i0) hw = Concat<axis=0>(hh, ww) gy = Expand(uy, hw) gx = Expand(ux, hw) "
    "fly = Reshape(gy, line) flx = Reshape(gx, line) grid = Concat<axis=0>(flx, fly) mid = Add(grid, half) "
    "cells = Unsqueeze(mid, i0) "
)


def test_boxes_of_images_of_any_size_are_placed_by_the_cells_that_the_graph_counts():
    model = detector(
        CELLS_OF_SHAPES + YOLOV8, "float[N,7,L] y", size="H,W", i0=[0], i1=[1], i2=[2], i3=[3], zero=0, step=1,
        line=[1, -1], **{name: value for name, value in CELLS.items() if name != "cells"},
    )  # fmt: skip
    for tensor in model.graph.initializer:
        if tensor.name in {"four", "wide"}:
            sizes = [0, 4 if tensor.name == "four" else 3, -1]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(sizes, np.int64), tensor.name))
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 64)).astype(np.float32)
    got = run(attach(model).to_proto(), x=x)
    cx, cy, w, h = got["y"].transpose(0, 2, 1)[..., :4].transpose(2, 0, 1)
    expected = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=-1)
    np.testing.assert_allclose(got["detection_boxes"], expected, rtol=1e-5, atol=1e-4)
    assert got["detection_boxes"].shape == (2, 32, 4)


def test_offsets_to_grids_of_three_strides_are_yolox():
    levels = " ".join(
        f"f{i} = Conv<strides=[{s},{s}]>(x, F{i}) r{i} = Reshape(f{i}, flat) n{i} = Transpose<perm=[0,2,1]>(r{i})"
        for i, s in enumerate((8, 16, 32))
    )
    model = graph(
        f"{levels} n = Concat<axis=1>(n0, n1, n2) e, g = Split<axis=2>(n, parts) h = Sigmoid(g) "
        "y = Concat<axis=2>(e, h)",
        inputs="float[N,3,32,64] x",
        outputs="float[N,42,7] y",
        F0=(7, 3, 8, 8), F1=(7, 3, 16, 16), F2=(7, 3, 32, 32), flat=[0, 7, -1], parts=[4, 3],
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 64)).astype(np.float32)
    got = run(attach(model, layer="f0").to_proto(), x=x)
    raw = got["y"][0, :, :4].astype(np.float64)
    cells = [(c, r, s) for s in (8, 16, 32) for r in range(32 // s) for c in range(64 // s)]
    for (column, row, stride), numbers, box in zip(cells, raw, got["detection_boxes"][0], strict=True):
        cx, cy = (numbers[0] + column) * stride, (numbers[1] + row) * stride
        w, h = np.exp(numbers[2:]) * stride
        np.testing.assert_allclose(box, [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], rtol=1e-4, atol=1e-3)


def test_bins_of_distances_are_nanodet():
    bins = "t = Transpose<perm=[0,2,1]>(p) u = Conv(b, U) ur = Reshape(u, flat) z = Transpose<perm=[0,2,1]>(ur)"
    model = detector(bins, "float[N,16,3] t, float[N,16,32] z", U=(32, 7, 1, 1), flat=[0, 32, 16])
    x = images(1, 3, 32, 32)
    got = run(attach(model).to_proto(), x=x)
    z = got["z"][0].astype(np.float64).reshape(16, 4, 8)
    share = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    distance = (share * np.arange(8)).sum(-1) * STRIDE
    middle = (GRID + 0.5) * STRIDE
    expected = np.concatenate([middle - distance[:, :2], middle + distance[:, 2:]], 1)
    np.testing.assert_allclose(got["detection_boxes"][0], expected, rtol=1e-4, atol=1e-4)


def test_boxes_in_front_of_nms_are_those_of_the_table():
    tail = (
        f"{SIDES} co = Concat<axis=1>(lo, hi) m = Mul(co, s) mt = Transpose<perm=[0,2,1]>(m) "
        "ty = ArgMax<axis=1>(p) tf = Cast<to=1>(ty) off = Mul(tf, far) ot = Transpose<perm=[0,2,1]>(off) "
        "apart = Add(mt, ot) sel = NonMaxSuppression(apart, p, most, iou, least) bi = Gather<axis=1>(sel, i0) "
        "xi = Gather<axis=1>(sel, i2) at = Concat<axis=1>(bi, xi) bb = GatherND(mt, at) ci = Gather<axis=1>(sel, i1) "
        "sat = Concat<axis=1>(bi, ci, xi) s1 = GatherND(p, sat) s2 = Unsqueeze(s1, i1) cf = Cast<to=1>(ci) "
        "y = Concat<axis=1>(bb, s2, cf)"
    )
    model = detector(
        tail, "float[M,6] y", batch="1", i0=[0], i1=[1], i2=[2], most=[5],
        **CELLS, **arrays(iou=[0.5], least=[0.01], far=4000.0),
    )  # fmt: skip
    x = images(1, 3, 32, 32)
    got = run(attach(model).to_proto(), x=x)
    np.testing.assert_allclose(got["detection_boxes"], sides(raw_boxes(model, x)), rtol=1e-4, atol=1e-4)


# ----- one box of each row --------------------------------------------------------


@pytest.fixture(scope="module")
def explained() -> onnx.ModelProto:
    return attach(TABLES["centre and sizes"][0]).to_proto()


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_every_row_explains_its_own_box_and_is_what_it_is_alone(explained):
    x = images(3, 3, 32, 32)
    boxes, classes = ints(5, -1, 12), ints(2, 1, -1)
    together = run(explained, x=x, target_box=boxes, target_class=classes)
    table = together["detection_scores"]
    expected_box = [5, int(table[1, :, 1].argmax()), 12]
    expected_class = [2, 1, int(table[2, 12].argmax())]
    assert together["heatmap_box"].tolist() == expected_box
    assert together["heatmap_class"].tolist() == expected_class
    np.testing.assert_allclose(together["heatmap_score"], table[np.arange(3), expected_box, expected_class], rtol=1e-6)
    assert len({row.tobytes() for row in together["cam"]}) == 3
    for i in range(3):
        alone = run(explained, x=x[i : i + 1], target_box=boxes[i : i + 1], target_class=classes[i : i + 1])
        for name in ("heatmap", "cam", "heatmap_box", "heatmap_class", "heatmap_score"):
            np.testing.assert_allclose(alone[name][0], together[name][i], rtol=1e-6, atol=1e-6)


def test_the_box_of_an_index_is_what_it_is_where_it_is_fixed(explained):
    x = images(2, 3, 32, 32)
    model = TABLES["centre and sizes"][0]
    at_run_time = run(explained, x=x, target_box=ints(9), target_class=ints(1))
    by_default = attach(model, box=9)
    assert by_default.metadata.box_input == "target_box"
    default = run(by_default.to_proto(), x=x, target_class=ints(1))
    np.testing.assert_array_equal(default["cam"], at_run_time["cam"])
    overridden = run(by_default.to_proto(), x=x, target_box=ints(-1))
    np.testing.assert_array_equal(overridden["cam"], run(explained, x=x)["cam"])
    fixed = attach(model, box=9, class_input="none", target=1)
    assert fixed.metadata.box_input == ""
    assert {i.name for i in fixed.to_proto().graph.input} == {"x"}
    got = run(fixed.to_proto(), x=x)
    np.testing.assert_array_equal(got["cam"], at_run_time["cam"])
    assert got["heatmap_box"].tolist() == [9, 9]


@pytest.mark.parametrize("boxes", [ints(16), ints(3, 16, 0), ints(3, 4)])
def test_a_box_out_of_range_or_of_another_row_is_an_error_of_the_runtime(explained, boxes):
    with pytest.raises(ModelError, match=r"cannot run the model"):
        run(explained, x=images(3, 3, 32, 32), target_box=boxes)


def test_the_names_are_in_the_metadata_and_are_checked(explained):
    props = {p.key: p.value for p in explained.metadata_props}
    metadata = Metadata.from_props(props)
    assert metadata is not None
    names = ("box_input", "heatmap_box", "heatmap_score", "detection_scores", "detection_boxes")
    assert [getattr(metadata, name) for name in names] == ["target_box", *names[1:]]
    for name in names:
        wrong = onnx.ModelProto()
        wrong.CopyFrom(explained)
        next(p for p in wrong.metadata_props if p.key == f"onnx_gradcam.{name}").value = "heatmap"
        with pytest.raises(ModelError, match=f"does not fit its graph.*{name}|name the same output"):
            Explainer(wrong, preprocess="none")


def test_clients_that_cannot_leave_an_input_out_choose_class_and_box(explained):
    for source in (explained.SerializeToString(), TABLES["centre and sizes"][0].SerializeToString()):
        model, metadata = with_required_choices(source, {})
        assert metadata.box_input == "target_box"
        proto = model.to_proto()
        assert [i.name for i in proto.graph.input] == ["x", "target_class", "target_box"]
        assert not {"target_class", "target_box"} & {i.name for i in proto.graph.initializer}
        x = images(2, 3, 32, 32)
        want = run(explained, x=x, target_class=ints(1, -1), target_box=ints(-1, 9))
        got = run(proto, x=x, target_class=ints(1, -1), target_box=ints(-1, 9))
        for name in ("heatmap", "cam", "heatmap_class", "heatmap_box", "heatmap_score"):
            np.testing.assert_array_equal(got[name], want[name])


def test_a_model_with_required_choices_is_explained_as_any(explained):
    model, _ = with_required_choices(explained.SerializeToString(), {})
    required, plain = (Explainer(each, preprocess="none") for each in (model.to_proto(), explained))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert required.boxes(image) == plain.boxes(image)
    for box in (None, 9, "all"):
        for one, other in zip(required(image, box=box).maps, plain(image, box=box).maps, strict=True):
            np.testing.assert_array_equal(one.heatmap, other.heatmap)


def test_the_box_is_required_where_the_class_is(explained):
    model = TABLES["centre and sizes"][0]
    proto = attach(model, class_input="required").to_proto()
    assert [i.name for i in proto.graph.input] == ["x", "target_class", "target_box"]
    assert not {"target_class", "target_box"} & {i.name for i in proto.graph.initializer}
    feeds = {"x": images(2, 3, 32, 32), "target_class": ints(1, -1), "target_box": ints(-1, 9)}
    for name in ("heatmap", "heatmap_box"):
        np.testing.assert_array_equal(run(proto, **feeds)[name], run(explained, **feeds)[name])
    second = attach(model, class_input="required", box_rank=1).to_proto()
    default = attach(model, box_rank=1).to_proto()
    feeds["target_box"] = ints(-1, -1)
    np.testing.assert_array_equal(run(second, **feeds)["heatmap_box"], run(default, **feeds)["heatmap_box"])
    with pytest.raises(InputError, match="box 3 would be the default of an input that has none with class_input"):
        attach(model, class_input="required", box=3)


def test_a_box_that_was_fixed_is_not_forgotten():
    model = TABLES["centre and sizes"][0]
    with pytest.raises(InputError, match="box is 3, but clients choose the box here; omit it"):
        with_required_choices(model.SerializeToString(), {"box": 3})
    with pytest.raises(InputError, match="box_rank is 1, but clients choose the box here; omit it"):
        with_required_choices(model.SerializeToString(), {"box_rank": 1})
    fixed = attach(model, box=3).to_proto().SerializeToString()
    with pytest.raises(InputError, match="the input 'target_box' is 3 by default, but clients choose it here; start"):
        with_required_choices(fixed, {})


def test_other_models_have_no_box_to_choose():
    classifier = graph(
        "c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)", K=(6, 3, 3, 3), W=(6, 4)
    )
    explainer = Explainer(classifier, preprocess="none")
    with pytest.raises(TargetError, match=r"the box is fixed in this model, or it has none"):
        explainer.run(images(1), [-1], [0])


def test_names_that_the_model_has_already_get_a_prefix():
    model, *_ = TABLES["centre and sizes"]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = {"a": "target_box", "c": "detection_boxes"}.get(name, name)
    metadata = attach(copy).metadata
    assert (metadata.box_input, metadata.detection_boxes) == ("gradcam_target_box", "gradcam_detection_boxes")


# ----- real exports ----------------------------------------------------------------

MODELS = Path(__file__).parents[3].parent / "shared" / "detectors" / "models"
ENTRIES = (
    [e for e in json.loads((MODELS / "MANIFEST.json").read_text())["files"] if "xyxy" in e.get("best", {})]
    if MODELS.exists()
    else []
)


@pytest.mark.real
@pytest.mark.skipif(not ENTRIES, reason="the exports of detectors are not at hand")
@pytest.mark.parametrize("entry", ENTRIES, ids=[e["name"] for e in ENTRIES])
def test_the_best_box_of_a_real_export_is_where_the_framework_put_it(entry):
    best = entry["best"]
    got = run_real(entry["name"])
    assert (got["heatmap_box"][0], got["heatmap_class"][0]) == (best["box"], best["cls"])
    assert got["heatmap_score"][0] == pytest.approx(best["score"], abs=1e-5)
    np.testing.assert_allclose(got["detection_boxes"][0, best["box"]], best["xyxy"], atol=2e-3, rtol=1e-4)


def run_real(name: str, **choices: Any) -> dict[str, np.ndarray]:
    x = np.load(MODELS / f"{name}.npz")["x"] if name.endswith("_84") else np.load(MODELS / "ul_input_128.npy")
    model = attach(MODELS / f"{name}.onnx", **choices).to_proto()
    return run(model, **{model.graph.input[0].name: x})


@pytest.mark.real
@pytest.mark.skipif(not ENTRIES, reason="the exports of detectors are not at hand")
def test_the_boxes_of_queries_are_those_that_the_model_itself_chooses():
    model = attach(MODELS / "hf_rtdetr_deploy.onnx").to_proto()
    x = np.random.default_rng(5).random((1, 3, 64, 96)).astype(np.float32)
    got = run(model, images=x, orig_target_sizes=np.array([[960, 640]]))
    box = got["detection_boxes"][0, got["heatmap_box"][0]]
    np.testing.assert_allclose(box * 10, got["boxes"][0, 0], rtol=1e-4)
