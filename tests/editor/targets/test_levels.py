"""The layers of models whose score is read from several grids: detectors with a pyramid, ensembles."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from support.graphs import graph, images, run

from onnx_gradcam import Options, attach, inspect, verify
from onnx_gradcam.editor import ingredients
from onnx_gradcam.editor.methods.catalogue import methods
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.editor.targets.detectors.decoder import single_positions
from onnx_gradcam.errors import TargetError, UnsupportedError
from onnx_gradcam.runtime.session import Session

PYRAMID = """
    s0 = Conv<strides=[2,2], pads=[1,1,1,1]>(x, S) s = Relu(s0)
    b0 = Conv<strides=[2,2], pads=[1,1,1,1]>(s, B) b = Relu(b0)
    u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(b, , scales)
    p30 = Add(s, u) p3 = Relu(p30)
    d = Conv<strides=[2,2], pads=[1,1,1,1]>(p3, D) p40 = Add(d, b) p4 = Relu(p40)
    t3 = Conv<pads=[1,1,1,1]>(p3, T3) v3 = Relu(t3) c3 = Conv(v3, C3)
    t4 = Conv<pads=[1,1,1,1]>(p4, T4) v4 = Relu(t4) c4 = Conv(v4, C4)
"""
WEIGHTS = {
    "S": (6, 3, 3, 3), "B": (6, 6, 3, 3), "D": (6, 6, 3, 3), "T3": (6, 6, 3, 3), "T4": (6, 6, 3, 3),
    "C3": (3, 6, 1, 1), "C4": (3, 6, 1, 1), "B3": (4, 6, 1, 1), "B4": (4, 6, 1, 1),
    "scales": np.array([1, 1, 2, 2], np.float32), "rows7": [0, 7, -1],
    "two": np.array([2], np.float32), "sizes": [4, 3],
}  # fmt: skip
# Boxes and classes are joined for each level and parted behind all levels, as Ultralytics does.
JOINED = """
    b3 = Conv(p3, B3) b4 = Conv(p4, B4)
    j3 = Concat<axis=1>(b3, c3) j4 = Concat<axis=1>(b4, c4)
    f3 = Reshape(j3, rows7) f4 = Reshape(j4, rows7) f = Concat<axis=2>(f3, f4)
    br, sr = Split<axis=1>(f, sizes) p = Sigmoid(sr) m = Mul(br, two) y = Concat<axis=1>(m, p)
"""
# One convolution computes boxes and classes, so that no head parts.
SINGLE = """
    f3 = Reshape(k3, rows7) f4 = Reshape(k4, rows7) f = Concat<axis=2>(f3, f4)
    br, sr = Split<axis=1>(f, sizes) p = Sigmoid(sr) m = Mul(br, two) y = Concat<axis=1>(m, p)
"""


def pyramid(tail: str = PYRAMID + JOINED, size: str = "16,16", **weights: object) -> onnx.ModelProto:
    return graph(tail, inputs=f"float[N,3,{size}] x", outputs="float[N,7,L] y", **{**WEIGHTS, **weights})


def test_the_levels_of_a_pyramid_are_the_inputs_of_its_heads():
    plan = make_plan(pyramid())
    assert plan.task.name == "detection"
    assert [layer.chosen.tensor.name for layer in plan.layers] == ["p3", "p4"]
    assert plan.layer.reason == "the last feature maps that the detection head reads (8x8, 4x4)"
    assert [layer.tensor for layer in inspect(pyramid()).decisions.levels] == ["p3", "p4"]


def test_the_backbone_ends_in_the_last_coarse_map_that_all_levels_are_computed_from():
    plan = make_plan(pyramid(), Options(layer="backbone"))
    assert [layer.chosen.tensor.name for layer in plan.layers] == ["b"]
    assert plan.layer.reason == "the end of the backbone, which all levels are computed from (4x4)"
    x = images(1, 3, 16, 16)
    named, found = (run(attach(pyramid(), layer=name).to_proto(), x=x)["heatmap"] for name in ("b", "backbone"))
    np.testing.assert_array_equal(named, found)


DIFFERENTIATING = [
    name
    for name, method in methods().items()
    if not (method.runs_often or method.linear_head or method.of_attention)
    and (method.differentiates("layer") or method.differentiates("image"))
]


@pytest.mark.parametrize("method", DIFFERENTIATING)
def test_the_gradient_of_a_box_is_computed_around_its_position(method, monkeypatch):
    model, x = pyramid(size="32,48"), images(2, 3, 32, 48)
    feeds = {"x": x, "target_box": np.array([0, 470]), "target_class": np.array([1, 2])}
    around = attach(model, method=method).to_proto()
    monkeypatch.setattr(ingredients, "single_positions", lambda *_: set())
    whole = attach(model, method=method).to_proto()
    found = {node.op_type for node in around.graph.node} > {node.op_type for node in whole.graph.node}
    assert found == (methods()[method].objective == "class")
    for output in ("cam", "heatmap"):
        got, wanted = (run(proto, **feeds)[output] for proto in (around, whole))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("grad_dtype", ["model", "float32"])
@pytest.mark.parametrize("method", ["hirescam", "gradient"])
def test_the_gradient_of_a_box_in_half_precision(method, grad_dtype, monkeypatch):
    model = pyramid(size="32,48")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name != "scales":
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    x = images(2, 3, 32, 48).astype(np.float16)
    feeds = {"x": x, "target_box": np.array([0, 470]), "target_class": np.array([1, 2])}
    around = attach(model, method=method, grad_dtype=grad_dtype).to_proto()
    monkeypatch.setattr(ingredients, "single_positions", lambda *_: set())
    whole = attach(model, method=method, grad_dtype=grad_dtype).to_proto()
    assert len(around.graph.node) > len(whole.graph.node)
    got, wanted = (run(proto, **feeds)["cam"] for proto in (around, whole))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("profile", ["cpu", "openvino", "cuda", "tensorrt", "webgpu"])
def test_profiles_have_the_same_maps_of_boxes(profile):
    feeds = {"x": images(2, 3, 16, 16), "target_box": np.array([3, 70]), "target_class": np.array([1, 2])}
    models = [attach(pyramid(), profile=name).to_proto() for name in ("portable", profile)]
    portable, other = (run(model, **feeds)["cam"] for model in models)
    np.testing.assert_allclose(other, portable, rtol=0, atol=1e-5 * np.abs(portable).max())


def test_a_row_of_the_table_that_reads_several_positions_is_noticed():
    plan = make_plan(pyramid())
    assert plan.detections is not None
    assert plan.image.probe_shape is not None
    t, free = plan.t, plan.image.probe_shape[0]
    table = t.find(plan.detections.scores)
    assert table is not None
    assert {value.name for value in single_positions(t, table, free)} == {"c3", "c4"}
    mixed = t.op("Softmax", table, axis=1)
    t.adopt()
    assert single_positions(t, mixed, free) == set()


def test_what_a_weight_of_all_rows_is_computed_from_has_gradients_everywhere():
    gate = "g0 = GlobalAveragePool(c3) g1 = Flatten(g0) g2 = MatMul(g1, G) g = Unsqueeze(g2, last) q = Mul(p, g)"
    model = graph(
        PYRAMID + JOINED + gate, inputs="float[1,3,16,16] x", outputs="float[1,7,L] y, float[1,3,L] q",
        **WEIGHTS, G=(3, 3), last=[2],
    )  # fmt: skip
    t = make_plan(model, Options(output="y")).t
    table = t.find("q")
    assert table is not None
    rows = t.transpose(table, [0, 2, 1])
    t.adopt()
    assert {value.name for value in single_positions(t, rows, None)} & {"c3", "c4"} == {"c4"}


def test_only_a_detector_has_a_backbone_by_that_name():
    classifier = graph("c = Conv(x, W) r = Relu(c) p = GlobalAveragePool(r) y = Flatten(p)", W=(3, 3, 3, 3))
    with pytest.raises(TargetError, match="no layer 'backbone'"):
        make_plan(classifier, Options(layer="backbone"))


@pytest.mark.parametrize("method", ["hirescam", "layercam"])
@pytest.mark.parametrize("size", ["16,16", "H,W"])
def test_raw_maps_of_levels_are_added_at_the_finest_grid(method, size):
    x = images(2, 3, 16, 16)
    explained = attach(pyramid(size=size), method=method)
    assert (explained.metadata.combine, explained.metadata.target_tensors) == ("sum", ["p3", "p4"])
    got = run(explained.to_proto(), x=x)
    fine, coarse = (run(attach(pyramid(), method=method, layer=name).to_proto(), x=x)["cam"] for name in ("p3", "p4"))
    wanted = fine + np.stack([cv2.resize(cam, (8, 8), interpolation=cv2.INTER_LINEAR) for cam in coarse])
    np.testing.assert_allclose(got["cam"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    positive = np.maximum(wanted, 0)
    shown = np.stack([cv2.resize(cam / cam.max(), (16, 16), interpolation=cv2.INTER_LINEAR) for cam in positive])
    np.testing.assert_allclose(got["heatmap"], shown, atol=1e-5)


def test_maps_that_are_no_shares_of_the_score_are_averaged():
    explained = attach(pyramid(), method="gradcam")
    assert (explained.metadata.combine, len(explained.metadata.target_tensors)) == ("", 2)
    assert any("Grad-CAM averages gradients over all positions" in w for w in explained.warnings)
    named = attach(pyramid(), method="gradcam", layer=["p3", "p4"])
    x = images(1, 3, 16, 16)
    np.testing.assert_array_equal(*(run(e.to_proto(), x=x)["heatmap"] for e in (explained, named)))
    assert attach(pyramid(), layer=["p3", "p4"]).metadata.combine == ""
    assert attach(pyramid(), layer=["p3", "p4"], combine="sum").metadata.combine == "sum"


def test_what_runs_the_head_again_looks_at_one_layer():
    plan = make_plan(pyramid(), Options(method="reciprocam"))
    assert [layer.chosen.tensor.name for layer in plan.layers] == ["s"]


def test_the_gradient_of_a_level_that_the_score_depends_on_is_verified():
    check = verify(pyramid())
    assert check.target_tensor in {"p3", "p4"}
    assert check.analytic != 0
    assert check.agrees


def test_no_path_leads_through_the_layers_of_the_boxes():
    plan = make_plan(pyramid())
    assert "B3" not in {i.name for node in plan.path for i in node.inputs if i is not None}
    assert {"C3", "C4"} <= {i.name for node in plan.path for i in node.inputs if i is not None}


@pytest.mark.parametrize(("kernel", "layers"), [(1, ["p3", "p4"]), (3, ["v3", "v4"])])
def test_without_a_head_that_parts_the_layer_is_what_the_last_spatial_convolution_reads(kernel, layers):
    """Behind it the score of a box is that of one position, where HiResCAM's map would be positive or blank."""
    pads = "<pads=[1,1,1,1]>" if kernel == 3 else ""
    tail = PYRAMID
    for level in "34":
        tail = tail.replace(f"c{level} = Conv(v{level}, C{level})", f"k{level} = Conv{pads}(v{level}, B{level})")
    model = pyramid(tail + SINGLE, B3=(7, 6, kernel, kernel), B4=(7, 6, kernel, kernel))
    assert [layer.chosen.tensor.name for layer in make_plan(model).layers] == layers


ENSEMBLE = """
    a0 = Conv<strides=[2,2], pads=[1,1,1,1]>(x, S) a = Relu(a0) ga = GlobalAveragePool(a) fa = Flatten(ga)
    b0 = Conv<strides=[4,4], pads=[1,1,1,1]>(x, B) b = Relu(b0) gb = GlobalAveragePool(b) fb = Flatten(gb)
    f = Concat<axis=1>(fa, fb) y = MatMul(f, W)
"""


def test_an_ensemble_has_a_layer_for_each_branch():
    sizes = {"inputs": "float[N,3,16,16] x", "outputs": "float[N,5] y"}
    model = graph(ENSEMBLE, **sizes, S=(6, 3, 3, 3), B=(6, 3, 3, 3), W=(12, 5))
    explained = attach(model)
    assert explained.metadata.target_tensors == ["a", "b"]
    assert "the branches of the model end in (8x8, 4x4)" in explained.reason
    assert run(explained.to_proto(), x=images(2, 3, 16, 16))["heatmap"].shape == (2, 16, 16)
    free = attach(graph(ENSEMBLE, **sizes | {"inputs": "float[N,3,H,W] x"}, S=(6, 3, 3, 3), B=(6, 3, 3, 3), W=(12, 5)))
    assert free.reason.endswith("the branches of the model end in")  # sizes that depend on the image are not made up
    with pytest.raises(TargetError, match="on every path"):
        attach(model, method="cam")


BRANCHES = """
    k = Mul(x, half)
    a0 = Conv<strides=[2,2], pads=[1,1,1,1]>(k, S) a1 = Relu(a0)
    a2 = Conv<pads=[1,1,1,1]>(a1, T) a = Tanh(a2) ga = GlobalAveragePool(a) fa = Flatten(ga)
    b0 = Conv<strides=[4,4], pads=[1,1,1,1]>(k, B) b = Relu(b0)
    pb = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b) fb = Flatten(pb)
    f = Concat<axis=1>(fa, fb) y = MatMul(f, W)
"""


def test_branches_of_one_scaled_image_are_explained_where_they_end():
    """The only tensor on every path is the image, times a number; a branch ends before its pooling."""
    weights = {"S": (6, 3, 3, 3), "T": (6, 6, 3, 3), "B": (6, 3, 3, 3), "W": (30, 5), "half": np.float32(0.5)}
    model = graph(BRANCHES, inputs="float[N,3,16,16] x", outputs="float[N,5] y", **weights)
    explained = attach(model)
    assert explained.metadata.layers == ["a", "b"]
    x, target = images(2, 3, 16, 16), np.array([1, 4])
    maps = run(explained.to_proto(), x=x, target_class=target)["heatmap"]
    both = sum(run(attach(model, layer=name).to_proto(), x=x, target_class=target)["heatmap"] for name in "ab")
    np.testing.assert_allclose(maps, both / both.max((1, 2), keepdims=True), atol=1e-5)
    # Where the image is all there is on every path, because nothing else has positions, it stays the layer.
    plain = graph(
        "k = Mul(x, half) p = GlobalAveragePool(k) f = Flatten(p) y = MatMul(f, V)", V=(3, 4), half=np.float32(1)
    )
    assert attach(plain).metadata.layers == ["k"]


def test_the_preset_of_detectors_is_refused_for_a_classifier():
    sizes = {"inputs": "float[N,3,16,16] x", "outputs": "float[N,5] y"}
    model = graph(ENSEMBLE, **sizes, S=(6, 3, 3, 3), B=(6, 3, 3, 3), W=(12, 5))
    with pytest.raises(UnsupportedError, match="--preset ultralytics stands for the maps of detectors"):
        attach(model, preset="ultralytics")


REAL = Path(__file__).parents[3].parent / "shared" / "detectors" / "models"
HEADS = {
    "ul_yolov8_det": [15, 18, 21],
    "ul_yolov8_det_nms": [15, 18, 21],
    "ul_yolov8_seg": [15, 18, 21],
    "ul_yolov8_pose": [15, 18, 21],
    "ul_yolov8_obb": [15, 18, 21],
    "ul_yolov10_det_e2e": [16, 19, 22],
    "ul_yolo26_det_e2e": [16, 19, 22],
}
"""The modules whose outputs Ultralytics' own heads read."""


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the exports of detectors are not at hand")
@pytest.mark.parametrize(("name", "heads"), HEADS.items())
def test_the_levels_of_real_exports_are_the_inputs_of_their_heads(name, heads):
    plan = make_plan(REAL / f"{name}.onnx")
    names = [layer.chosen.tensor.name for layer in plan.layers]
    assert [int(re.search(r"model\.(\d+)/", name).group(1)) for name in names] == heads


ULTRALYTICS = ["ul_yolov8_det", "ul_yolov8_seg", "ul_yolo26_det_e2e"]


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the exports of detectors are not at hand")
@pytest.mark.parametrize("name", ULTRALYTICS)
def test_the_preset_is_the_map_of_ultralytics(name):
    """The maps of its predict with visualize=True, uint8: of the surest box, and of the 16 surest of at least 0.25."""
    stored, x = np.load(REAL / f"{name}_cam.npz"), np.load(REAL / "ul_input_128.npy")
    explained = attach(REAL / f"{name}.onnx", preset="ultralytics")
    assert explained.metadata.method == "layercam"
    session = Session(explained.to_proto().SerializeToString())
    best = session.run({"images": x}, ["detection_scores"])["detection_scores"][0].max(1)
    boxes = [box for box in best.argsort()[::-1] if best[box] >= 0.25][:16]
    maps = [session.run({"images": x, "target_box": np.array([box])})["heatmap"][0] for box in boxes]
    for key, heatmap in {"one": maps[0], "conf25": np.max(maps, axis=0)}.items():
        assert np.abs((heatmap * 255).astype(np.uint8).astype(int) - stored[key]).max() <= 1
