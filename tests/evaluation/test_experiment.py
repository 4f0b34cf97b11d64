"""`evaluate` as a library function: what it refuses, and when it computes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from support.graphs import graph, weight

from onnx_gradcam.errors import ExplainError, InputError, TargetError, UnsupportedError
from onnx_gradcam.evaluation.boxes import Annotation
from onnx_gradcam.evaluation.experiment import evaluate
from onnx_gradcam.options import Options

PREPROCESS = {"resize": "stretch", "scale": 1 / 255}


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
