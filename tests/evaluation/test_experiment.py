"""`evaluate` as a library function: what it refuses, and when it computes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from support.graphs import colour_detector, graph, placed_detector, suppressing_detector, weight

from onnx_gradcam import Explainer
from onnx_gradcam.errors import ExplainError, InputError, TargetError, UnsupportedError
from onnx_gradcam.evaluation.boxes import Annotation
from onnx_gradcam.evaluation.experiment import evaluate
from onnx_gradcam.evaluation.randomization import redrawn
from onnx_gradcam.evaluation.similarity import compare_maps
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.detections import Selection

PREPROCESS = {"resize": "stretch", "scale": 1 / 255}
AROUND_ZERO = {"resize": "stretch", "scale": 1 / 255, "mean": [128 / 255] * 3}
COLOURS = ["red", "blue"]


def model():
    return graph(
        "a = Conv(x, K, k) b = Relu(a) p = GlobalAveragePool(b) f = Flatten(p) l = MatMul(f, W) y = Softmax(l)",
        inputs="float[N,3,16,16] x",
        outputs="float[N,4] y",
        K=weight("K", 6, 3, 3, 3) * 3,
        k=weight("k", 6),
        W=weight("W", 6, 4) * 3,
    )


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"{name}.png"), rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return [tmp_path / f"{name}.png" for name in "abc"]


def run(images, **options):
    options = {"methods": ["gradcam"], "metrics": ["sparsity", "increase"], **options}
    return evaluate(model(), images, threads=1, options=Options(preprocess=PREPROCESS), **options)


def test_results_come_image_by_image_and_the_rest_when_asked_for(images):
    evaluation = run(images)
    first = next(iter(evaluation))
    assert [result.image for result in first] == [str(images[0])]
    assert len(evaluation._results) == 1
    assert [result.image for result in evaluation.results] == [str(image) for image in images]
    mean = evaluation.means["gradcam"]["sparsity"]
    values = [result.values["gradcam"]["sparsity"] for result in evaluation.results]
    assert mean.count == 3
    assert mean.mean == pytest.approx(np.mean(values))
    assert mean.error == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert evaluation.errors == {}
    assert list(evaluation) == []


def test_randomization_is_computed_once(images):
    evaluation = run(images, methods=["gradcam", "activationmap"], metrics=["sparsity"])
    stages = evaluation.randomization
    assert [stage.stage for stage in stages] == evaluation.stages
    assert stages[0].unchanged == ["activationmap"]
    assert evaluation.randomization is stages
    assert evaluation.to_dict(randomization=True)["sanity"][0]["unchanged"] == ["activationmap"]
    assert "sanity" not in evaluation.to_dict()


def test_boxes_may_be_annotations(images):
    boxes = {"a.png": [Annotation("anything", [(0, 0, 15, 15)], [0, 1, 2, 3])]}
    (result,) = run(images, boxes=boxes, metrics=["pointing", "energy"]).results
    assert result.label == "anything"
    assert result.values["gradcam"] == {"pointing": 1, "energy": pytest.approx(1)}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"metrics": ["deleton"]}, InputError, "unknown metric 'deleton'; did you mean 'deletion'"),
        ({"metrics": ["pointing"]}, InputError, "'pointing' needs the boxes"),
        ({"methods": []}, InputError, "no method"),
        ({"methods": ["gradcm"]}, ExplainError, "gradcm"),
        ({"target": "top2"}, TargetError, "may be several classes"),
        ({"target": 1, "boxes": {}}, InputError, "leave out the target"),
        ({"boxes": "none.json"}, InputError, "none.json"),
        ({"steps": 0}, InputError, "steps is 0; give an integer from 1 on"),
        ({"batch_size": 0}, InputError, "batch_size is 0"),
        ({"seed": -1}, InputError, "seed is -1"),
    ],
)
def test_refusals(images, options, error, words):
    with pytest.raises(error, match=words):
        run(images, **options)


def test_no_images_and_no_objects(images):
    with pytest.raises(InputError, match="no image"):
        run([])
    with pytest.raises(InputError, match="recognises none of the annotated objects"):
        _ = run(images, boxes={}, metrics=["pointing"]).results


def test_a_model_without_weights_has_no_stages(images):
    plain = graph(
        "a = Relu(x) p = GlobalAveragePool(a) y = Flatten(p)", inputs="float[N,3,16,16] x", outputs="float[N,3] y"
    )
    evaluation = evaluate(
        plain, images, methods=["activationmap"], options=Options(preprocess=PREPROCESS), metrics=["sparsity"]
    )
    with pytest.raises(UnsupportedError, match="no layer of the model has weights"):
        _ = evaluation.stages


# ----- boxes of a detector ------------------------------------------------------------


@pytest.fixture
def squares(tmp_path):
    """A red square at 4 to 16 pixels and a blue one at 16 to 28, which is paler; a copy without the blue; nothing."""
    drawn = np.full((3, 32, 32, 3), 128, np.uint8)
    drawn[:2, 4:16, 4:16], drawn[0, 16:28, 16:28] = (255, 0, 0), (20, 20, 255)
    for name, pixels in zip(("both", "red", "grey"), drawn, strict=True):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels[:, :, ::-1])
    return [tmp_path / f"{name}.png" for name in ("both", "red", "grey")]


def detected(squares, detector=None, **options):
    choices = {"labels": COLOURS, "preprocess": AROUND_ZERO, **options.pop("choices", {})}
    options = {"methods": ["hirescam"], "steps": 8, "threads": 1, "options": Options(**choices), **options}
    return evaluate(detector or colour_detector(), squares, **options)


def finder(detector=None):
    return Explainer(detector or colour_detector(), labels=COLOURS, preprocess=AROUND_ZERO, threads=1)


def test_each_box_has_a_record(squares):
    evaluation = detected(squares[:2], box="all", metrics=["pointing", "energy", "sparsity"])
    listed = [(str(path), box) for path in squares[:2] for box in finder().boxes(path)]
    assert len(listed) == 3
    assert [(result.image, result.box) for result in evaluation.results] == listed
    assert [result.target.label for result in evaluation.results] == ["red", "blue", "red"]
    for result in evaluation.results:
        shown = finder()(result.image, result.box.target.index, box=result.box).heatmap_on_image()
        x0, y0, x1, y1 = map(round, result.box.xyxy)
        assert result.values["hirescam"]["pointing"] == 1
        assert result.values["hirescam"]["energy"] == pytest.approx(shown[y0:y1, x0:x1].sum() / shown.sum(), abs=1e-5)
        assert result.values["random"]["energy"] < 0.3
        assert result.label is None
    assert evaluation.means["hirescam"]["energy"].count == 3
    record = evaluation.to_dict()["images"][1]
    assert record["box"] == listed[1][1].to_dict()
    assert evaluation.to_dict()["watched"] == "similarity"


@pytest.mark.parametrize(
    ("choice", "labels"),
    [
        ({}, ["red", "red"]),
        ({"target": "blue", "box": 45}, ["blue", "blue"]),
        ({"box": Selection(which="number", value=1)}, ["blue", None]),
        ({"target": "blue"}, ["blue", None]),
        ({"box": Selection(which="rank", value=1), "target": 0}, ["red", "red"]),
        ({"box": Selection(which="all", least=0.9995)}, [None, None]),
    ],
)
def test_boxes_are_chosen_as_elsewhere(squares, choice, labels):
    """An image without the box is an error of its own, which names it."""
    evaluation = detected(squares[:2], metrics=["sparsity"], **choice)
    shown = {result.image: result.target.label for result in evaluation.results}
    assert [shown.get(str(path)) for path in squares[:2]] == labels
    for path in (path for path, label in zip(squares, labels, strict=False) if label is None):
        assert evaluation.errors[str(path)].startswith(f"{path}: ")


def test_the_surest_box_has_to_be_sure(squares):
    evaluation = detected(squares, metrics=["sparsity"])
    assert [result.image for result in evaluation.results] == [str(path) for path in squares[:2]]
    assert "grey.png: the model finds nothing with a score of at least 0.3" in evaluation.errors[str(squares[2])]


def test_annotated_boxes_say_which_boxes_are_objects_and_where_heat_should_be(squares):
    red = Annotation("fire", [(20, 20, 24, 24), (4, 4, 15, 11)], [0])
    boxes = {"both.png": [red, Annotation("blue", [(19, 16, 30, 27)], ["blue"]), Annotation("x", [(0, 0, 9, 9)], [7])]}
    (result,) = detected(squares, boxes={"both.png": [red]}, metrics=["pointing", "energy"]).results
    assert (result.label, result.box.index) == ("fire", 18)
    shown = finder()(squares[0], 0, box=18).heatmap_on_image()
    assert result.values["hirescam"]["energy"] == pytest.approx(shown[4:12, 4:16].sum() / shown.sum(), abs=1e-5)
    assert [r.label for r in detected(squares, boxes=boxes, metrics=["pointing"]).results] == ["fire", "blue"]
    red = Annotation("fire", [(4, 4, 15, 8)], [0])
    boxes = {"both.png": [red, Annotation("blue", [(21, 16, 31, 27)], ["blue"])]}
    with pytest.raises(InputError, match="no such box of the annotated objects"):
        _ = detected(squares, boxes=boxes).results


def watched_by_hand(explainer, image, box, changed):
    """The score of a box's row, and D-RISE's similarity to it, in changed inputs of the model, with loops."""
    whole = explainer.run(explainer.prepared(image).tensor[None], [-1], tables=True)
    names = ("detection_boxes", "detection_scores")
    place, likes = (whole[name][0, box.index].astype(float) for name in names)
    scores, similarities = [], []
    for x in changed:
        outputs = explainer.run(x[None], [-1], tables=True)
        scores.append(outputs["detection_scores"][0, box.index, box.target.index])
        best = 0.0
        for other, row in zip(*(outputs[name][0].astype(float) for name in names), strict=True):
            low, high = np.maximum(place[:2], other[:2]), np.minimum(place[2:], other[2:])
            shared = np.prod(np.maximum(high - low, 0))
            union = np.prod(place[2:] - place[:2]) + np.prod(other[2:] - other[:2]) - shared
            cosine = row @ likes / np.sqrt((row @ row) * (likes @ likes))
            best = max(best, shared / union * cosine * row.max())
        similarities.append(best)
    return {"score": scores, "similarity": similarities}


def test_what_is_watched_while_pixels_are_deleted(images):
    explainer = finder(placed_detector(gain=3))
    box = explainer.boxes(images[0], least=0)[0]
    x, heatmap = explainer.prepared(images[0]).tensor, explainer(images[0], box.target.index, box=box).heatmap
    shuffled = np.random.default_rng(0).permutation(heatmap.size)
    order = shuffled[np.argsort(-heatmap.reshape(-1)[shuffled], kind="stable")]
    left = np.stack([np.ones(heatmap.size, np.float32)] * 9)
    for step in range(9):
        left[step, order[: round(step * heatmap.size / 8)]] = 0
    by_hand = watched_by_hand(explainer, images[0], box, x * left.reshape(9, 1, *heatmap.shape))
    areas = {name: (sum(values) - (values[0] + values[-1]) / 2) / 8 for name, values in by_hand.items()}
    assert abs(areas["score"] - areas["similarity"]) > 0.01
    for watch, area in areas.items():
        options = {"box": box, "target": box.target.index, "metrics": ["deletion"], "watch": watch}
        (result,) = detected(images[:1], placed_detector(gain=3), **options).results
        assert result.box.index == box.index
        assert result.values["hirescam"]["deletion"] == pytest.approx(area, abs=1e-4)


class Elsewhere:
    """An explainer whose heatmaps are those of the other square."""

    def __init__(self, explainer):
        self.metadata, self._explainer = explainer.metadata, explainer

    def run(self, batch, classes, boxes, *, feeds):
        assert (classes, boxes) in (([0], [18]), ([1], [45]))
        return self._explainer.run(batch, [1 - classes[0]], [63 - boxes[0]], feeds=feeds)


@pytest.mark.parametrize("watch", ["similarity", "score"])
def test_heat_in_the_wrong_box_lowers_every_figure(squares, watch):
    metrics = ["pointing", "energy", "deletion", "insertion", "road", "deletion_drop"]
    right, wrong = (detected(squares[:1], box="all", metrics=metrics, watch=watch, steps=16) for _ in range(2))
    explainers = wrong.evaluator.explainers
    explainers["hirescam"] = Elsewhere(explainers["hirescam"])
    ours, theirs = (evaluation.means["hirescam"] for evaluation in (right, wrong))
    assert (ours["pointing"].mean, theirs["pointing"].mean) == (1, 0)
    assert ours["energy"].mean > 0.9
    assert theirs["energy"].mean < 0.1
    for metric in ("insertion", "road", "deletion_drop"):
        assert ours[metric].mean > theirs[metric].mean + 0.005, metric
    assert ours["deletion"].mean < theirs["deletion"].mean - 0.02
    for baseline in ("random", "centre"):
        assert right.means[baseline] == wrong.means[baseline]


def test_randomized_weights_are_compared_for_the_same_box(squares):
    evaluation = detected(squares[:1], box=Selection(which="number", value=1), metrics=["sparsity"])
    for stage in evaluation.randomization:
        other = redrawn(colour_detector(), stage.stage.layers)
        scrambled = Explainer(other, labels=COLOURS, preprocess=AROUND_ZERO, threads=1)
        agreement = compare_maps(*(e(squares[0], 1, box=45).heatmap for e in (finder(), scrambled)))
        assert stage.spearman["hirescam"] == pytest.approx(agreement.spearman, abs=1e-6)
        assert stage.failed == {"hirescam": 0}


def scores_alone():
    """A detector that does not tell where its boxes are."""
    return graph(
        "a = Conv(x, K) b = Relu(a) c = Conv(b, S) r = Reshape(c, flat) p = Sigmoid(r) y = Transpose<perm=[0,2,1]>(p)",
        inputs="float[N,3,32,32] x",
        outputs="float[N,900,2] y",
        K=weight("K", 6, 3, 3, 3) * 3,
        S=(2, 6, 1, 1),
        flat=[0, 2, 900],
    )


def test_boxes_of_unknown_places_have_a_score_alone(squares):
    given = {"detector": scores_alone(), "choices": {"task": "detection", "boxes": "scores", "labels": None}}
    with pytest.raises(UnsupportedError, match="places of boxes, which this model does not tell; give --watch score"):
        detected(squares, **given)
    with pytest.raises(InputError, match="'pointing' needs the boxes of the objects; choose another metric"):
        detected(squares, watch="score", metrics=["pointing"], **given)
    with pytest.raises(UnsupportedError, match="none can be found among the annotated ones; leave out --boxes"):
        detected(squares, watch="score", boxes={}, **given)
    evaluation = detected(squares[:1], watch="score", **given)
    assert set(evaluation.means["hirescam"]) == {
        "deletion", "insertion", "road", "average_drop", "increase", "deletion_drop", "sparsity", "complexity",
        "sensitivity",
    }  # fmt: skip
    assert evaluation.results[0].box.xyxy is None


def test_a_model_without_a_batch_axis_has_the_same_figures(squares):
    one, other = (
        detected(squares[:1], colour_detector(shape), box="all", metrics=["energy", "deletion"]).results
        for shape in ("N,3,32,32", "3,32,32")
    )
    assert [result.box for result in one] == [result.box for result in other]
    for mine, theirs in zip(one, other, strict=True):
        for method, values in mine.values.items():
            assert theirs.values[method] == pytest.approx(values, abs=1e-5)


def test_an_image_without_any_box_is_an_error_of_its_own(squares):
    choices = {"task": "detection", "output": "scores", "labels": None, "preprocess": {"color": "gray", "size": [8, 8]}}
    evaluation = detected(squares[:2], suppressing_detector(), watch="score", metrics=["deletion"], choices=choices)
    assert list(evaluation.errors) == [str(path) for path in squares[:2]]
    assert all("the model has no box at all in this image or where" in text for text in evaluation.errors.values())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"box": "sum"}, TargetError, "one box at a time; give --box all for a record of each"),
        ({"box": "some"}, InputError, "box is 'some'"),
        ({"box": 64}, TargetError, "no box 64; the model has boxes 0 to 63"),
        ({"watch": "rows"}, InputError, "watch is 'rows'"),
        ({"target": "red,blue"}, TargetError, "'red,blue' is several classes"),
        ({"target": "green"}, TargetError, "green"),
        ({"choices": {"box_rank": 1}}, TargetError, "give box beside the options"),
        ({"choices": {"box": 3}}, TargetError, "give box beside the options"),
    ],
)
def test_refusals_of_boxes(squares, options, error, words):
    with pytest.raises(error, match=words):
        _ = detected(squares[:1], metrics=["sparsity"], **options).results


@pytest.mark.parametrize("options", [{"box": "all"}, {"box": 3}, {"watch": "score"}])
def test_a_classifier_has_no_boxes_to_choose(images, options):
    with pytest.raises(TargetError, match="the model is no detector, so it has no boxes"):
        run(images, **options)
