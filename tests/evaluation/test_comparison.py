"""Several models on the same images."""

from __future__ import annotations

import math
import tracemalloc
from typing import get_args

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import placed_detector

from onnx_gradcam import Explainer, attach
from onnx_gradcam.errors import InputError, ModelError, TargetError
from onnx_gradcam.evaluation.comparison import Gates, Side, compare, spreads
from onnx_gradcam.evaluation.pairing import Compared, NativeMaps, compare_models
from onnx_gradcam.evaluation.similarity import METRICS
from onnx_gradcam.options import HeatmapMetric

PREPROCESS = {"scale": 1 / 255}
NAMES = ["red", "green", "blue"]


def classifier(order=(0, 1, 2), *, side: int = 16, ending: str = "", gain: float = 8.0) -> bytes:
    """Class i is how much of channel `order[i]` there is, behind a ReLU that leaves bright pixels."""
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[range(3), range(3)] = 1
    dense = (gain * np.eye(3, dtype=np.float32))[:, list(order)]
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense"], ["logits"]),
        *([helper.make_node(ending, ["logits"], ["scores"], axis=1)] if ending else []),
    ]
    weights = {"kernel": kernel, "bias": np.full(3, -0.3, np.float32), "dense": dense}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, side, side])],
        [helper.make_tensor_value_info("scores" if ending else "logits", TensorProto.FLOAT, ["N", len(order)])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def explainer(*arguments, labels=None, preprocess=PREPROCESS, **options) -> Explainer:
    return Explainer(classifier(*arguments, **options), labels=labels, preprocess=preprocess)


@pytest.fixture
def images(tmp_path) -> list[str]:
    """Red at the upper left and less blue at the lower right; green in the middle; black."""
    squares = np.full((32, 48, 3), 40, np.uint8)
    squares[4:12, 4:12] = 255, 40, 40
    squares[20:28, 36:44] = 40, 40, 150
    middle = np.full((32, 48, 3), 40, np.uint8)
    middle[12:20, 20:28] = 40, 255, 40
    found = []
    for name, pixels in (("a.png", squares), ("b.png", middle), ("c.png", np.zeros((32, 48, 3), np.uint8))):
        cv2.imwrite(str(tmp_path / name), pixels[:, :, ::-1])
        found.append(str(tmp_path / name))
    return found


def test_a_model_agrees_fully_with_itself(images):
    results = list(compare_models({"a": explainer(), "b": explainer()}, images))
    assert [r.target.index for r in results[:2]] == [0, 1]
    for result in results:
        (agreement,) = result.agreements
        numbers = agreement.numbers
        assert agreement.same_top is True
        assert [numbers[n] for n in METRICS] == pytest.approx([1, 1, 1, 1, 1, 0, 0, 0, 0], abs=1e-6)
    assert results[2].agreements[0].maps.blank == (True, True)


def test_the_numbers_are_those_of_the_maps_on_the_image(images):
    """Two resolutions, one class, on pixels of the image: by `heatmap_on_image`, from outside."""
    small, large = explainer(), explainer(side=32)
    (result,) = compare_models({"a": small, "b": large}, images[:1], target=2)
    a, b = small(images[0], 2).heatmap_on_image(), large(images[0], 2).heatmap_on_image()
    maps = result.agreements[0].maps
    assert maps.pearson == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-6)
    assert maps.difference == pytest.approx(np.abs(a - b).max(), abs=1e-6)
    hottest = [np.unravel_index(m.argmax(), m.shape) for m in (a, b)]
    assert maps.shift == pytest.approx(math.dist(*hottest))
    assert result.target.index == 2
    assert 0 < maps.pearson < 1


def test_all_models_explain_the_first_ones_class(images):
    """The second's weights are swapped: it holds blue for the best, but explains what the first calls class 0."""
    results = list(compare_models({"a": explainer(), "b": explainer((2, 1, 0)), "c": explainer()}, images[:1]))
    second, third = results[0].agreements
    assert (second.side, third.side) == ("b", "c")
    assert second.same_top is False
    assert second.target.index == 0
    assert second.maps.pearson < 0.1
    assert second.maps.shift > 30
    assert third.same_top is True


def test_classes_of_the_same_name_are_compared(images):
    other = explainer((2, 1, 0), labels=["Blue", "green", "red, crimson"])
    (result,) = compare_models({"a": explainer(labels=NAMES), "b": other}, images[:1])
    (agreement,) = result.agreements
    assert (agreement.target.index, agreement.target.label) == (2, "red, crimson")
    assert agreement.same_top is True
    assert agreement.maps.pearson == pytest.approx(1, abs=1e-6)
    assert agreement.divergence == pytest.approx(0, abs=1e-6)


def test_models_of_different_classes_are_refused(images):
    two = classifier((0, 1))
    with pytest.raises(TargetError, match="a has 3 classes and b has 2; give both their class names"):
        list(compare_models({"a": explainer(), "b": Explainer(two, preprocess=PREPROCESS)}, images))
    named = Explainer(two, preprocess=PREPROCESS, labels=["red", "green"])
    with pytest.raises(TargetError, match="'blue'"):
        list(compare_models({"a": explainer(labels=NAMES), "b": named}, images))
    other = explainer(labels=["red", "lime", "blue"])
    with pytest.raises(TargetError, match=r"a and b do not have the same classes .no class is called 'green'"):
        list(compare_models({"a": explainer(labels=NAMES), "b": other}, images))


def test_a_part_of_the_classes_is_compared_by_name(images):
    few = Explainer(classifier((1, 0)), preprocess=PREPROCESS, labels=["green", "red"])
    (result,) = compare_models({"few": few, "all": explainer(labels=NAMES)}, images[:1])
    (agreement,) = result.agreements
    assert (result.target.label, agreement.target.label, agreement.target.index) == ("red", "red", 0)
    assert agreement.same_top is True
    # The other's probabilities of the classes that the first lacks are lost: -log of what remains.
    e = np.exp(few(images[0]).scores.astype(np.float64))
    whole = np.exp(explainer()(images[0]).scores.astype(np.float64))
    assert agreement.divergence == pytest.approx(math.log(whole.sum() / e.sum()), rel=1e-5)


def test_scores_of_different_kinds_are_one_distribution(images):
    softmax, log = explainer(ending="Softmax"), explainer(ending="LogSoftmax")
    (result,) = compare_models({"logits": explainer(), "softmax": softmax, "log": log}, images[:1])
    assert [a.divergence for a in result.agreements] == pytest.approx([0, 0], abs=1e-6)
    sharper = explainer(gain=16.0)
    (result,) = compare_models({"logits": explainer(), "sharper": sharper}, images[:1])
    p, q = (np.exp(e(images[0]).scores.astype(np.float64)) for e in (explainer(), sharper))
    p, q = p / p.sum(), q / q.sum()
    assert result.agreements[0].divergence == pytest.approx((p * np.log(p / q)).sum(), rel=1e-5)


def test_only_what_a_model_saw_is_compared(tmp_path):
    """Both cut the same margins off a wide image: those do not count as agreement."""
    pixels = np.full((32, 320, 3), 40, np.uint8)
    pixels[4:12, 148:156] = 255, 40, 40
    pixels[20:28, 164:172] = 40, 40, 255
    path = str(tmp_path / "wide.png")
    cv2.imwrite(path, pixels[:, :, ::-1])
    crop = {**PREPROCESS, "resize": "short_crop", "short": 16}
    models = {"a": explainer(preprocess=crop), "b": explainer((2, 1, 0), preprocess=crop)}
    (result,) = compare_models(models, [path], target=0)
    a, b = (laid.on(32, 320)[:, 144:176] for laid in result.laid)
    assert not result.laid[0].on(32, 320)[:, :144].any()
    assert result.agreements[0].maps.pearson == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-6)


def test_what_one_model_alone_saw_counts(tmp_path):
    """One cuts the margins off, the other stretches: all that either saw is compared, nothing beyond."""
    pixels = np.full((32, 320, 3), 40, np.uint8)
    pixels[4:12, 20:60] = 255, 40, 40
    pixels[4:12, 148:156] = 255, 40, 40
    path = str(tmp_path / "wide.png")
    cv2.imwrite(path, pixels[:, :, ::-1])
    middle = explainer(preprocess={**PREPROCESS, "resize": "short_crop", "short": 16})
    models = {"middle": middle, "whole": explainer()}
    for names in (("middle", "whole"), ("whole", "middle")):
        (result,) = compare_models({name: models[name] for name in names}, [path], target=0)
        a, b = (laid.on(32, 320) for laid in result.laid)
        assert result.agreements[0].maps.pearson == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-6)


def test_large_images_are_compared_on_a_grid(tmp_path):
    """An image of 1200x1800 costs no more than one of 512, and the shift is in its own pixels."""
    pixels = np.full((1200, 1800, 3), 40, np.uint8)
    pixels[150:450, 150:450] = 255, 40, 40
    pixels[750:1050, 1350:1650] = 40, 40, 255
    path = str(tmp_path / "large.png")
    cv2.imwrite(path, pixels[:, :, ::-1])
    (result,) = compare_models({"a": explainer(), "b": explainer((2, 1, 0))}, [path], target=0)
    # The first hottest cells in reading order, of squares that lie (600, 1200) apart.
    assert result.agreements[0].maps.shift == pytest.approx(math.hypot(600, 1200), rel=0.1)


def test_native_maps_are_one_more_side(images, tmp_path):
    model = explainer()
    own = {name: model(name).cam for name in images}
    np.savez(
        tmp_path / "maps.npz", **{name.rpartition("/")[2]: cam for name, cam in own.items() if "b.png" not in name}
    )
    natives = {"framework": NativeMaps(tmp_path / "maps.npz")}
    first, second, third = compare_models({"a": model}, images, natives=natives)
    (agreement,) = first.agreements
    assert (agreement.side, agreement.same_top, agreement.divergence, agreement.target) == (
        "framework",
        None,
        None,
        None,
    )
    assert agreement.maps.pearson == pytest.approx(1, abs=1e-6)
    assert isinstance(second, InputError)
    assert "no map" in str(second)
    assert third.agreements[0].maps.blank == (True, True)
    natives["framework"].close()


def test_a_bad_image_is_reported_and_the_others_go_on(images, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = list(compare_models({"a": explainer(), "b": explainer()}, [str(tmp_path / "bad.png"), *images]))
    assert isinstance(found[0], InputError)
    assert all(isinstance(r, Compared) for r in found[1:])


def test_an_error_names_the_model(images):
    broken = onnx.load_from_string(classifier())
    broken.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.full((3, 3), np.nan, np.float32), "dense"))
    models = {"fine": explainer(), "broken": Explainer(broken, preprocess=PREPROCESS)}
    with pytest.raises(ModelError, match=r"^broken: the model gives NaN"):
        list(compare_models(models, images))
    with pytest.raises(TargetError, match=r"^fine: class 7 is out of range"):
        list(compare_models({"fine": explainer(), "b": explainer()}, images, target=7))


def test_a_fixed_class_is_explained_by_the_first_model_alone(images):
    fixed = attach(classifier(), class_input="none", target=2, preprocess=PREPROCESS).to_proto().SerializeToString()
    (result,) = compare_models({"fixed": Explainer(fixed), "b": explainer()}, images[:1])
    assert result.target.index == result.agreements[0].target.index == 2
    with pytest.raises(TargetError, match="b: the class is fixed in this model"):
        list(compare_models({"a": explainer(), "b": Explainer(fixed)}, images[:1]))


def test_spreads_know_which_way_is_worse(images):
    results = list(compare_models({"a": explainer(), "b": explainer(side=32)}, images))
    agreements = [a for r in results for a in r.agreements]
    found = spreads(agreements)
    for name in METRICS:
        values = [a.numbers[name] for a in agreements]
        assert found[name].mean == pytest.approx(np.mean(values))
        assert found[name].median == pytest.approx(np.median(values))
        assert found[name].worst == (min(values) if METRICS[name].rising else max(values))
    assert spreads([])["pearson"] is None


def test_images_are_held_one_at_a_time(tmp_path):
    paths = []
    for i in range(4):
        paths.append(str(tmp_path / f"{i}.png"))
        cv2.imwrite(paths[-1], np.full((600, 600, 3), 40 + i, np.uint8))
    models = {"a": explainer(), "b": explainer()}
    peaks = []
    for count in (1, 4):
        tracemalloc.start()
        for result in compare_models(models, paths[:count]):
            assert result.agreements
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_compare_loads_models_and_computes_what_is_asked_for(images, tmp_path):
    (tmp_path / "b.onnx").write_bytes(classifier((2, 1, 0)))
    comparison = compare([classifier(), tmp_path / "b.onnx"], images, preprocess=PREPROCESS)
    first = next(iter(comparison))
    assert first.path == images[0]
    assert len(comparison._records) == 1
    assert [record.path for record in comparison.records] == images
    (summary,) = comparison.summary.values()
    assert list(comparison.sides) == ["model", "b.onnx"]
    assert summary.flipped == images[:1]
    assert summary.same_top == pytest.approx(2 / 3)
    assert comparison.records[0].top.index == 0
    assert comparison.records[0].agreements[0].top.index == 2
    assert list(comparison) == []


def test_sides_have_settings_of_their_own(images):
    sides = [
        Side(model=classifier(), name="one", preprocess=PREPROCESS, layer="maps"),
        Side(model=classifier(), name="two", preprocess=PREPROCESS),
        explainer(),
    ]
    comparison = compare(sides, images)
    assert {name: facts["layer"] for name, facts in comparison.sides.items()} == {
        "one": "maps",
        "two": "active",
        "model": "active",
    }


def test_gates_are_kept_or_broken_one_by_one(images):
    def broken(**limits):
        models = [explainer(), Side(model=explainer((2, 1, 0)), name="b")]
        return compare(models, images, gates=Gates(**limits)).broken

    assert broken() == []
    assert broken(mean=-1, worst=-1, top1=0.6) == []
    (top,) = broken(mean=-1, worst=-1, top1=0.7)
    assert top == "b: the top-1 class is the same on 66.7% of the images, below 70.0%; it differs on a.png"
    assert [sentence.split(":")[0] for sentence in broken(mean=1, worst=1, top1=1)] == ["b", "b", "b"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"metric": "shift"}, InputError, "metric is 'shift'"),
        ({"metric": "persons"}, InputError, "did you mean 'pearson'"),
        ({"target": "top3"}, TargetError, "may be several classes"),
        ({"models": []}, InputError, "two models are needed"),
        ({"models": [classifier()]}, InputError, "two models are needed"),
        ({"natives": ["none.npz"]}, InputError, "holds no maps"),
        ({"images": []}, InputError, "no image"),
    ],
)
def test_refusals(images, options, error, words):
    arguments = {"models": [classifier(), classifier()], "images": images, "preprocess": PREPROCESS, **options}
    with pytest.raises(error, match=words):
        compare(arguments.pop("models"), arguments.pop("images"), **arguments)


@pytest.mark.parametrize("limits", [{"mean": 1.1}, {"worst": -2}, {"top1": -0.1}, {"top1": 2}, {"mean": math.nan}])
def test_gates_out_of_range(limits):
    with pytest.raises(InputError, match="the gate"):
        Gates(**limits)


def test_a_report_never_overwrites_an_image(images):
    with pytest.raises(InputError, match="is one of the images"):
        compare([explainer(), explainer()], images).report(images[0])


def test_metrics_to_order_by_are_those_that_rise():
    assert set(get_args(HeatmapMetric)) == {name for name, metric in METRICS.items() if metric.rising}


# ----- detectors -------------------------------------------------------------


LETTERBOXED = {"resize": "letterbox", "size": [32, 32], "scale": 1 / 64, "mean": [2], "std": [1]}


def preferring(cell: int, logit: float) -> onnx.ModelProto:
    """The test detector with a bias on the scores of one cell, so that the box of this cell is its surest."""
    model = placed_detector(3)
    bias = np.zeros((1, 2, 64), np.float32)
    bias[0, :, cell] = logit
    model.graph.initializer.append(onnx.numpy_helper.from_array(bias, "preference"))
    (sigmoid,) = (node for node in model.graph.node if node.op_type == "Sigmoid")
    at = list(model.graph.node).index(sigmoid)
    model.graph.node.insert(at, onnx.helper.make_node("Add", [sigmoid.input[0], "preference"], ["preferred"]))
    sigmoid.input[0] = "preferred"
    return model


@pytest.fixture
def blocks(tmp_path):
    path = tmp_path / "blocks.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8))
    return str(path)


def test_detectors_are_compared_at_the_same_object(blocks):
    first = Explainer(placed_detector(3), preprocess=LETTERBOXED, threads=1)
    best = first(blocks)
    (box,) = best.maps[0].boxes
    far = [b for b in first.boxes(blocks, best.target.index, least=0.1) if b.index != box.index][-1]
    other = Explainer(preferring(far.index, 20.0), preprocess=LETTERBOXED, threads=1)
    assert other(blocks, best.target.index).maps[0].boxes[0].index == far.index
    (result,) = compare_models({"a": first, "b": other, "same": first}, [blocks])
    preferred, same = result.agreements
    assert (preferred.box_overlap, same.box_overlap) == (pytest.approx(1), pytest.approx(1))
    assert preferred.maps.pearson == pytest.approx(1, abs=1e-5)
    assert same.same_top is True
    (record,) = compare([first, other], [blocks]).to_dict()["images"]
    assert record["agreement"][0]["box_overlap"] == pytest.approx(1)


def test_an_object_that_the_other_model_does_not_find_is_another_answer(blocks):
    first = Explainer(placed_detector(3), preprocess=LETTERBOXED, threads=1)
    (box,) = first(blocks).maps[0].boxes
    blind = Explainer(preferring(box.index, -50.0), preprocess=LETTERBOXED, threads=1)
    (result,) = compare_models({"a": first, "b": blind}, [blocks])
    assert result.agreements[0].box_overlap < 0.5
    assert result.agreements[0].same_top is False
    comparison = compare([first, blind], [blocks], gates=Gates(top1=1.0))
    assert "blocks.png" in comparison.broken[0]
