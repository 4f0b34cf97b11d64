"""`evaluate`: the table, the JSON, boxes, the sanity check, what is refused."""

from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import pytest
from support.graphs import colour_detector

from onnx_gradcam import Explainer
from onnx_gradcam.evaluation.metrics import METRICS as TABLE

from .conftest import PREPROCESS, refused, two_squares

METRICS = ["deletion", "insertion", "road", "average_drop", "increase", "deletion_drop", "sensitivity", "random_logit"]
METRICS += ["sparsity", "complexity"]


@pytest.fixture
def evaluate(call, classifier):
    def run(*arguments, model=None):
        return call("evaluate", model or classifier, "--preprocess", PREPROCESS, "--steps", 8, *arguments)

    return run


@pytest.fixture
def squares(here):
    """Three images: red at the upper left, blue at the lower right, and both."""
    folder = here / "squares"
    folder.mkdir()
    for name, colours in {
        "red.png": ((255, 40, 40), (40, 40, 40)),
        "blue.png": ((40, 40, 40), (40, 40, 255)),
        "both.png": ((255, 40, 40), (40, 40, 200)),
    }.items():
        cv2.imwrite(str(folder / name), two_squares(*colours)[:, :, ::-1])
    return folder


@pytest.fixture
def boxes(here):
    path = here / "boxes.json"
    red, blue = {"label": "red", "box": [4, 4, 11, 11]}, {"label": "blue", "box": [20, 20, 27, 27]}
    path.write_text(json.dumps({"red.png": [red], "blue.png": [blue], "both.png": [red, blue]}))
    return path


def test_a_table_of_methods_and_baselines(evaluate, squares, here):
    result = evaluate("--images", squares, "--method", "gradcam,activationmap")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("3 images; mean and standard error")
    assert lines[1].split() == ["better", "gradcam", "activationmap", "random", "centre"]
    assert [line.split()[0] for line in lines[2:12]] == [
        "deletion", "insertion", "ROAD", "average", "increase", "drop", "sensitivity", "random", "sparsity",
        "complexity",
    ]  # fmt: skip
    assert all("standard errors apart" in line for line in lines[12:])
    assert [p.name for p in here.iterdir()] == ["squares"]


def test_a_map_of_the_object_beats_one_that_knows_nothing(evaluate, squares):
    found = json.loads(evaluate("--images", squares, "--method", "gradcam", "--json").stdout)
    assert found["baselines"] == ["random", "centre"]
    ours, random = found["summary"]["gradcam"], found["summary"]["random"]
    assert set(ours) == {*METRICS, "blank"}
    assert ours["blank"] == 0
    for metric in METRICS:
        assert ours[metric]["count"] == 3
        assert ours[metric]["mean"] == pytest.approx(
            np.mean([image["values"]["gradcam"][metric] for image in found["images"]])
        )
    for metric in ("insertion", "road", "deletion_drop"):
        assert ours[metric]["mean"] > random[metric]["mean"]
    for metric in ("deletion", "average_drop"):
        assert ours[metric]["mean"] < random[metric]["mean"]


def test_the_numbers_do_not_depend_on_chance_or_batches(evaluate, squares):
    first = evaluate("--images", squares, "--json")
    again = evaluate("--images", squares, "--json", "--batch-size", 3)
    for one, other in zip(json.loads(first.stdout)["images"], json.loads(again.stdout)["images"], strict=True):
        for method, values in one["values"].items():
            for metric, value in values.items():
                assert other["values"][method][metric] == pytest.approx(value, abs=1e-5)


def test_boxes_choose_the_classes(evaluate, squares, boxes, labels):
    result = evaluate("--images", squares, "--boxes", boxes, "--labels", labels, "--method", "gradcam", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [(i["path"][-8:], i["object"], i["class"]["index"]) for i in found["images"]] == [
        ("blue.png", "blue", 2), ("both.png", "red", 0), ("both.png", "blue", 2), ("/red.png", "red", 0)
    ]  # fmt: skip
    assert found["summary"]["gradcam"]["pointing"]["mean"] == 1
    assert found["summary"]["centre"]["pointing"]["mean"] == 0
    # The box has 64 of 1024 pixels; the grey around it is a little red and blue as well.
    assert found["summary"]["random"]["energy"]["mean"] < 0.1
    assert found["summary"]["gradcam"]["energy"]["mean"] > 0.2


def test_one_class_for_all(evaluate, squares, labels, classifier):
    found = json.loads(
        evaluate("--images", squares, "--target", "blue", "--labels", labels, "--metric", "sparsity", "--json").stdout
    )
    assert [i["class"]["index"] for i in found["images"]] == [2, 2, 2]
    explainer = Explainer(classifier, preprocess=PREPROCESS)
    for image in found["images"]:
        heatmap = explainer(image["path"], 2).heatmap
        values = heatmap.reshape(-1).astype(np.float64)
        gini = np.abs(values[:, None] - values).mean() / (2 * values.mean())
        assert image["values"]["gradcam"] == {"sparsity": pytest.approx(gini, abs=1e-4)}


def test_a_bad_image_is_reported_and_the_others_go_on(evaluate, squares):
    (squares / "bad.png").write_text("no image")
    result = evaluate("--images", squares, "--metric", "sparsity", "--json")
    assert result.exit_code == 1
    assert "bad.png' is not an image" in result.stderr
    images = json.loads(result.stdout)["images"]
    assert [("error" in image) for image in images] == [False, False, False, True]


def test_sanity(evaluate, squares):
    options = ("--images", squares, "--metric", "sparsity", "--method", "gradcam,activationmap", "--sanity")
    result = evaluate(*options)
    assert result.exit_code == 0, result.stderr
    assert "activationmap does not change at all when these weights are randomized: cascading gemm" in result.stderr
    assert "gradcam does not" not in result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[-4:]] == [
        ["cascading", "gemm"], ["cascading", "conv"], ["independent", "conv"], ["entropy", "all,"]
    ]  # fmt: skip
    stages = json.loads(evaluate(*options, "--json").stdout)["sanity"]
    assert [(s["kind"], s["layers"], s["unchanged"]) for s in stages] == [
        ("cascading", ["gemm"], ["activationmap"]),
        ("cascading", ["conv"], []),
        ("independent", ["conv"], []),
    ]
    assert stages[0]["spearman"]["activationmap"] == pytest.approx(1)


def test_all_as_one_table_and_a_page(evaluate, squares, here):
    options = ("--images", squares, "--method", "gradcam,input-x-gradient,activationmap", "--all")
    result = evaluate(*options, "--report", here / "page.html", "--sanity-mode", "initialise", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found["summary"]["gradcam"]) == {n for n, m in TABLE.items() if not m.of_boxes} - {"completeness"} | {
        "blank"
    }
    assert found["summary"]["input-x-gradient"]["completeness"]["mean"] > 0
    assert found["summary"]["activationmap"]["random_logit"]["mean"] == pytest.approx(1)
    assert found["summary"]["random"]["sensitivity"]["mean"] == 0
    assert found["summary"]["gradcam"]["focus"]["mean"] > found["summary"]["random"]["focus"]["mean"]
    pair = found["paired"]["gradcam"]["random"]["insertion"]
    values = [[image["values"][m]["insertion"] for m in ("gradcam", "random")] for image in found["images"]]
    assert pair["difference"] == pytest.approx(np.mean([a - b for a, b in values]))
    assert pair["better"] + pair["worse"] <= 3
    assert 0 <= found["kendall_w"] <= 1
    page = (here / "page.html").read_text()
    assert all(metric.title in page for metric in TABLE.values() if not metric.of_boxes)
    assert "Parameter randomization" in page
    assert "all computes every metric" in refused(evaluate(*options, "--metric", "road"), 2)
    assert "does not end in .html" in refused(evaluate(*options, "--report", "page.txt"), 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--metric", "deleton"], "unknown metric 'deleton'; did you mean 'deletion'"),
        (["--metric", "pointing"], "give them with --boxes"),
        (["--method", "gradcm"], "no method 'gradcm'"),
        (["--target", "top2"], "may be several classes"),
        (["--boxes", "none.json"], "there is no file 'none.json'"),
    ],
)
def test_refusals(evaluate, squares, options, sentence):
    assert sentence in refused(evaluate("--images", squares, *options))


def test_boxes_of_other_images(evaluate, squares, boxes, labels):
    boxes.write_text(json.dumps({"other.png": [{"label": "red", "box": [0, 0, 1, 1]}]}))
    sentence = refused(evaluate("--images", squares, "--boxes", boxes, "--labels", labels))
    assert "the model recognises none of the annotated objects" in sentence


def test_an_explained_model_has_one_method_only(call, evaluate, classifier, squares):
    assert call("attach", classifier, "-o", "e.onnx").exit_code == 0
    assert "explained already" in refused(evaluate("--images", squares, model="e.onnx"))


@pytest.mark.parametrize(
    "options", [["--method", "gradcam,"], ["--steps", 0], ["--boxes", "b.json", "--target", "red"]]
)
def test_wrong_usage(evaluate, squares, options):
    refused(evaluate("--images", squares, *options), 2)


# ----- boxes of a detector ------------------------------------------------------------


@pytest.fixture
def detect(call, here):
    """Run `evaluate` on a detector of red and blue squares, with one image of both and one of red alone."""
    onnx.save(colour_detector(), here / "detector.onnx")
    (here / "photos").mkdir()
    for name, blue in (("both", (20, 20, 255)), ("red", (128, 128, 128))):
        image = np.full((32, 32, 3), 128, np.uint8)
        image[4:16, 4:16], image[16:28, 16:28] = (255, 0, 0), blue
        cv2.imwrite(str(here / "photos" / f"{name}.png"), image[:, :, ::-1])
    (here / "names.txt").write_text("red\nblue\n")
    around_zero = json.dumps({"scale": 1 / 255, "mean": [128 / 255] * 3})
    given = ("--images", "photos", "--labels", "names.txt", "--preprocess", around_zero, "--method", "hirescam")
    return lambda *arguments: call("evaluate", "detector.onnx", *given, "--steps", 8, *arguments)


def test_the_table_counts_boxes_and_says_what_is_watched(detect):
    result = detect("--box", "all", "--metric", "pointing,energy,deletion")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("3 boxes; mean and standard error")
    assert lines[1] == "watched: D-RISE's similarity to the box; heat should be in the detector's own box"
    assert [line.split()[0] for line in lines[3:]] == ["deletion", "pointing", "energy-based"]
    assert lines[4].split()[3:5] == ["1.000", "±0.000"]
    assert detect("--metric", "sparsity", "--target", "red").stdout.startswith("2 boxes; ")


def test_a_record_for_each_box_in_json(detect, here):
    (here / "boxes.json").write_text(json.dumps({"both.png": [{"label": "blue", "box": [16, 16, 27, 23]}]}))
    options = ("--boxes", "boxes.json", "--watch", "score", "--json", "--metric", "energy,insertion")
    result = detect(*options)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    (record,) = found["images"]
    assert found["watched"] == "score"
    assert (record["object"], record["class"]["label"], record["box"]["index"]) == ("blue", "blue", 45)
    assert record["box"]["xyxy"] == [16, 16, 28, 28]
    assert 0.5 < record["values"]["hirescam"]["energy"] < 0.99
    assert record["values"]["hirescam"]["insertion"] > record["values"]["random"]["insertion"]
    assert "watched: the score of the same row of the table; heat should be in the annotated box" in detect(
        *(option for option in options if option != "--json")
    ).stdout  # fmt: skip


def test_an_image_without_the_box_is_named(detect):
    result = detect("--target", "blue", "--metric", "sparsity", "--json")
    assert result.exit_code == 1
    assert "error: photos/red.png: the model finds no 'blue' with a score of at least 0.3" in result.stderr
    assert [("error" in image) for image in json.loads(result.stdout)["images"]] == [False, True]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--box", "sum"], "one box at a time; give --box all"),
        (["--target", "red,blue"], "'red,blue' is several classes"),
        (["--boxes", "."], "holds no .xml file"),
    ],
)
def test_boxes_that_cannot_be_scored(detect, options, sentence):
    assert sentence in refused(detect(*options))


@pytest.mark.parametrize(
    "options", [["--box", "0", "--box-rank", "1"], ["--least", "0.5"], ["--box", "first"], ["--watch", "row"]]
)
def test_wrong_usage_of_boxes(detect, options):
    refused(detect(*options), 2)


@pytest.mark.parametrize("options", [["--box", "all"], ["--box-rank", "0"], ["--watch", "similarity"]])
def test_a_classifier_has_no_boxes_to_choose(evaluate, squares, options):
    assert "the model is no detector, so it has no boxes" in refused(evaluate("--images", squares, *options))
