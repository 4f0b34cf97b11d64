"""Segmentations, detectors and embeddings on the command line."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import onnx
import pytest
from support.graphs import graph, placed_detector, run, weight

PREPROCESS = '{"resize": "stretch", "scale": 0.00392156862745098}'


@pytest.fixture
def segmenter(here):
    model = graph(
        "c = Conv<pads=[1,1,1,1]>(x, K) a = Relu(c) y = Conv<pads=[1,1,1,1]>(a, M)",
        inputs="float[N,3,16,16] x",
        outputs="float[N,4,16,16] y",
        K=weight("K", 6, 3, 3, 3) * 5,
        M=(4, 6, 3, 3),
    )
    onnx.save(model, here / "segmenter.onnx")
    return here / "segmenter.onnx"


@pytest.fixture
def detector(here):
    """Two levels of boxes, `u` and `v`, and their corners."""
    model = graph(
        "c = Conv<pads=[1,1,1,1]>(x, K) a = Relu(c) s = Conv(a, M) r = Reshape(s, flat) "
        "t = Transpose<perm=[0,2,1]>(r) u = Sigmoid(t) v = Tanh(t) corners = Neg(t)",
        inputs="float[1,3,16,16] x",
        outputs="float[1,196,4] u, float[1,196,4] v, float[1,196,4] corners",
        K=weight("K", 6, 3, 3, 3) * 5,
        M=(4, 6, 3, 3),
        flat=[0, 4, 196],
    )
    onnx.save(model, here / "detector.onnx")
    return here / "detector.onnx"


def test_inspect_says_what_else_a_model_could_be(call, segmenter, detector):
    result = call("inspect", segmenter)
    assert result.exit_code == 1
    assert "could be explained with --task segmentation: output 'y'" in result.stdout
    assert "say with --task" in result.stderr
    found = json.loads(call("inspect", detector, "--json").stdout)
    assert (found["task"], found["refusal"]) == ("detection", None)
    assert "scores 'u' [1, 196, 4]" in found["score"]["reason"]


def test_inspect_says_which_method_and_why(call, segmenter):
    result = call("inspect", segmenter, "--task", "segmentation")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "task: segmentation" in lines
    assert "method: hirescam, weights gradient" in lines
    assert any("the default for segmentation" in line for line in lines)
    asked = call("inspect", segmenter, "--task", "segmentation", "--method", "gradcam").stdout
    assert "method: gradcam, weights gradient" in asked
    assert "the default for" not in asked


def test_attach_and_explain_a_segmentation(call, here, segmenter, image):
    done = call("attach", segmenter, "-o", "e.onnx", "--task", "segmentation", "--preprocess", PREPROCESS)
    assert done.exit_code == 0, done.stderr
    assert "Method hirescam" in done.stdout
    facts = json.loads(call("inspect", "e.onnx", "--json").stdout)["explained"]
    assert (facts["task"], facts["method"], facts["mask_input"]) == ("segmentation", "hirescam", "")
    one = call("explain", "e.onnx", image, "--target", "2", "--npy", "-o", "o.png")
    assert one.exit_code == 0, one.stderr
    direct = call(
        "explain", segmenter, image, "--task", "segmentation", "--target", "2", "--npy", "-o", "d.png",
        "--preprocess", PREPROCESS, "--profile", "portable",
    )  # fmt: skip
    assert direct.exit_code == 0, direct.stderr
    np.testing.assert_array_equal(np.load(here / "o_2.npy"), np.load(here / "d_2.npy"))


def test_a_region(call, here, segmenter, image):
    common = ["explain", segmenter, image, "--task", "segmentation", "--preprocess", PREPROCESS, "--json"]
    result = call(*common, "--mask", "input", "--region", image)
    assert result.exit_code == 0, result.stderr
    assert "give a --region" in call(*common, "--mask", "input").stderr
    assert "takes no region" in call(*common, "--region", image).stderr


def test_boxes_in_several_outputs(call, here, detector):
    done = call(
        "attach", detector, "-o", "e.onnx", "--task", "detection", "--output", "u", "--output", "v", "--box-rank", "1"
    )
    assert done.exit_code == 0, done.stderr
    x = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    out = run(onnx.load(here / "e.onnx"), x=x)
    both = np.concatenate([out["u"], out["v"]], axis=1)[0]
    np.testing.assert_allclose(out["target_scores"][0], np.sort(both, axis=0)[-2], rtol=1e-6)
    by_number = call("attach", detector, "-o", "n.onnx", "--task", "detection", "--output", "u", "--box-index", "9")
    assert by_number.exit_code == 0, by_number.stderr
    out = run(onnx.load(here / "n.onnx"), x=x)
    np.testing.assert_allclose(out["target_scores"], out["u"][:, 9], rtol=1e-6)
    assert call("attach", detector, "-o", "p.onnx").exit_code == 0
    out = run(onnx.load(here / "p.onnx"), x=x)
    np.testing.assert_allclose(out["target_scores"], out["u"].max(1), rtol=1e-6)
    wrong = call("attach", detector, "-o", "x.onnx", "--task", "detection", "--output", "u", "--boxes", "yolov5")
    assert "no room for class scores" in wrong.stderr
    assert not (here / "x.onnx").exists()


def test_a_reference_and_a_class_to_compare_with(call, here, classifier, image, labels):
    plain = ["attach", classifier, "-o", "e.onnx", "--preprocess", PREPROCESS]
    common = [*plain, "--labels", labels]
    embedding = ["--task", "embedding", "--reference", image]
    refused = call(*common, *embedding)
    assert (refused.exit_code, "there are 3 class names for 1 class" in refused.stderr) == (1, True)
    done = call(*plain, *embedding)
    assert done.exit_code == 0, done.stderr
    result = json.loads(call("explain", "e.onnx", image, "--json").stdout)
    assert result["images"][0]["explained"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert call(*common, "--against", "green").exit_code == 0
    refused = call(*common, "--against", "gren")
    assert (refused.exit_code, "no class is called 'gren'" in refused.stderr) == (1, True)
    by_name = json.loads(call("inspect", classifier, "--against", "1", "--json").stdout)
    assert by_name["refusal"] is None
    assert "without class names" in call("inspect", classifier, "--against", "green").stderr


def test_class_names_in_the_model_do_not_stand_in_the_way_of_an_embedding(call, here, classifier, image, labels):
    assert call("export", "onnx", classifier, "-o", "named.onnx", "--labels", labels).exit_code == 0
    embedding = ["--task", "embedding", "--reference", image, "--preprocess", PREPROCESS]
    done = call("attach", "named.onnx", "-o", "e.onnx", "--output", "scores", *embedding)
    assert (done.exit_code, "Stored in the model: preprocessing." in done.stdout) == (0, True), done.stderr


def test_all_classes_at_once(call, here, classifier, image):
    done = call("attach", classifier, "-o", "e.onnx", "--class-input", "all", "--preprocess", PREPROCESS)
    assert done.exit_code == 0, done.stderr
    assert "heatmap [N, 3, 16, 16]" in done.stdout
    assert "all classes are explained at once" in done.stdout
    several = json.loads(call("explain", "e.onnx", image, "--target", "top3", "--json").stdout)
    assert len(several["images"][0]["explained"]) == 3


def test_a_detector_is_exported_by_its_task(call, detector, here):
    result = call("export", "onnx", detector, "-o", "d.onnx", "--task", "detection", "--output", "u", "--output", "v")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Task: detection, of 'u', 'v'." in result.stdout
    again = call("export", "onnx", detector, "-o", "f.onnx", "--task", "detektion")
    assert again.stderr.startswith("error: there is no task 'detektion'; did you mean 'detection'")
    assert not (here / "f.onnx").exists()


HEAD = "c = Conv<pads=[1,1,1,1]>(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)"


@pytest.fixture
def ranking(here):
    """Four classes, of which the outputs are the two best probabilities and their classes."""
    model = graph(
        f"{HEAD} q = Softmax(y) best, ids = TopK(q, two)",
        inputs="float[N,3,16,16] x",
        outputs="float[N,2] best, int64[N,2] ids",
        K=weight("K", 6, 3, 3, 3) * 5,
        W=(6, 4),
        two=[2],
    )
    onnx.save(model, here / "ranking.onnx")
    (here / "four.txt").write_text("cat\ndog\nfox\nhen\n", "utf-8")
    return here / "ranking.onnx"


def test_classes_of_a_topk_have_their_own_names(call, ranking, image):
    arguments = ["--preprocess", PREPROCESS, "--labels", "four.txt"]
    found = json.loads(call("explain", ranking, image, *arguments, "--json").stdout)["images"][0]
    assert call("attach", ranking, "--labels", "four.txt", "-o", "explained.onnx").exit_code == 0
    stored = json.loads(call("explain", "explained.onnx", image, *arguments, "--json").stdout)["images"][0]
    assert stored["top"] == found["top"]
    assert len(found["top"]) == 4
    from onnx_gradcam.images.decoding import read_image, resized  # noqa: PLC0415 - the values of the command's image

    pixels = resized(read_image(image), 16, 16).transpose(2, 0, 1)[None].astype(np.float32) / 255
    outputs = run(onnx.load(ranking), x=pixels)
    best = found["explained"][0]
    assert best["index"] == int(outputs["ids"][0, 0])
    assert best["label"] == ["cat", "dog", "fox", "hen"][best["index"]]
    assert best["score"] == pytest.approx(float(outputs["best"][0, 0]), abs=1e-5)


def test_inspect_says_that_scores_are_added(call, ranking):
    result = call("inspect", ranking)
    assert result.exit_code == 0, result.stderr
    assert "output 'target_scores', added: the scores that outputs rank" in result.stdout


def test_a_class_that_a_model_of_one_value_does_not_have(call, here, image):
    model = graph(f"{HEAD} v = Squeeze(y, last)", inputs="float[N,3,16,16] x", outputs="float[N] v", K=(6, 3, 3, 3),
                  W=(6, 1), last=[1])  # fmt: skip
    onnx.save(model, here / "one.onnx")
    arguments = ("explain", "one.onnx", image, "--preprocess", PREPROCESS, "--target", "1")
    assert call(*arguments).exit_code == 0
    result = call(*arguments, "--task", "regression")
    assert result.exit_code == 1
    assert "class 1 is out of range; the model has class 0 alone" in result.stderr


# ----- boxes -------------------------------------------------------------------


@pytest.fixture
def finder(here):
    """A detector of sixty-four boxes of two classes, placed by its graph."""
    model = placed_detector(gain=4)
    onnx.save(model, here / "finder.onnx")
    (here / "two.txt").write_text("cat\ndog\n")
    return ["finder.onnx", "--preprocess", PREPROCESS, "--labels", "two.txt"]


def explained_boxes(call, finder, image, *words):
    result = call("explain", finder[0], image, *finder[1:], "--json", *words)
    assert result.exit_code == 0, result.stderr
    (report,) = json.loads(result.stdout)["images"]
    return report["boxes"], [box for entry in report["explained"] for box in entry["boxes"]]


def test_boxes_are_chosen_by_number_rank_and_index(call, finder, image):
    listed, (best,) = explained_boxes(call, finder, image)
    assert best == listed[0]
    assert [box["n"] for box in listed] == list(range(len(listed)))
    assert set(best) == {"n", "index", "class", "name", "score", "xyxy"}
    assert len(best["xyxy"]) == 4
    numbered, chosen = explained_boxes(call, finder, image, "--box", "2")
    assert (numbered, chosen) == (listed, [listed[2]])
    _, every = explained_boxes(call, finder, image, "--box", "all")
    assert every == listed[:12]
    dogs, ranked = explained_boxes(call, finder, image, "--target", "dog", "--box-rank", "1")
    assert ranked == [dogs[1]]
    assert {box["name"] for box in dogs} == {"dog"}
    _, (by_index,) = explained_boxes(call, finder, image, "--box-index", "9", "--target", "cat")
    assert (by_index["index"], by_index["name"]) == (9, "cat")
    sure, _ = explained_boxes(call, finder, image, "--box", "all", "--least", str(listed[1]["score"] - 1e-6))
    assert [box["n"] for box in sure] == [0, 1]


def test_pictures_and_arrays_of_boxes(call, finder, here, image):
    result = call("explain", finder[0], image, *finder[1:], "--box", "all", "-o", "all.png", "--npy", "--npz")
    assert result.exit_code == 0, result.stderr
    assert "x0 y0 x1 y1" in result.stdout
    listed, _ = explained_boxes(call, finder, image)
    files = {path.name for path in here.glob("all_*_box*.npy")}
    assert files == {f"all_{box['class']}_box{box['index']}.npy" for box in listed[:12]}
    stored = np.load(here / "all.npz")
    assert stored["boxes"].tolist() == [box["index"] for box in listed[:12]]
    one = call("explain", finder[0], image, *finder[1:], "--box", "sum", "--target", "cat", "-o", "sum.png")
    assert one.exit_code == 0, one.stderr
    assert (here / "sum.png").exists()


@pytest.mark.parametrize("words", [("--box", "sum"), ("--box-rank", "1"), ("--box", "all"), ()])
def test_each_box_has_one_row_and_what_is_explained_is_marked(call, finder, image, words):
    listed, explained = explained_boxes(call, finder, image, *words)
    result = call("explain", finder[0], image, *finder[1:], *words, "-o", "o.png")
    rows = [line.split() for line in result.stdout.splitlines() if re.search(r"(cat|dog) .* \d+$", line)]
    starred = [row[-1] for row in rows if row[0] == "*"]
    assert len(rows) == len(listed[:20] + [box for box in explained if box not in listed[:20]])
    assert len({(row[-1], "cat" in row) for row in rows}) == len(rows)
    assert sorted(map(int, starred)) == sorted(box["index"] for box in explained)
    assert all(box in listed or box["n"] is None for box in explained)


def test_what_is_not_in_one_image_is_said_of_that_image(call, finder, image, here):
    (here / "black.png").write_bytes(cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes())
    words = ["explain", finder[0], image, "black.png", *finder[1:], "--box", "all", "-o", "out", "--least"]
    listed, _ = explained_boxes(call, finder, image)
    result = call(*words, str(listed[0]["score"] - 1e-6))
    assert result.exit_code == 1
    assert "error: black.png: the model finds nothing" in result.stderr
    assert list((here / "out").glob("*.png"))


def test_a_long_list_of_boxes_is_cut_short(call, finder, image):
    words = ["explain", finder[0], image, *finder[1:], "--box", "30", "--least", "0"]
    listed = json.loads(call(*words, "--json").stdout)["images"][0]["boxes"]
    lines = call(*words, "-o", "o.png").stdout.splitlines()
    rows = [line.split() for line in lines if line.endswith(tuple("0123456789"))]
    assert [int(row[row[0] == "*"]) for row in rows] == [*range(20), 30]
    assert rows[-1][0] == "*"
    assert f"  * explained ({len(listed) - 21} more boxes with --json)" in lines


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--box", "99999"], 1, "there is no box 99999 in this image"),
        (["--box-index", "64"], 1, "there is no box 64; the model has boxes 0 to 63"),
        (["--box", "all", "--least", "1"], 1, "finds nothing with a score of at least 1; the highest is"),
        (["--box", "-1"], 2, "neither a number nor all or sum"),
        (["--box", "best"], 2, "neither a number nor all or sum"),
        (["--box", "1", "--box-rank", "1"], 2, "both choose the box"),
        (["--least", "0.5"], 2, "it is for the list that --box chooses from"),
    ],
)
def test_boxes_that_are_not_there_leave_no_picture(call, finder, here, image, words, code, message):
    result = call("explain", finder[0], image, *finder[1:], "-o", "out.png", *words)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert not (here / "out.png").exists()


def test_attach_and_inspect_say_what_chooses_the_box(call, finder):
    done = call("attach", *finder, "-o", "e.onnx")
    assert done.exit_code == 0, done.stderr
    assert "the class is chosen by the input 'target_class', the box by 'target_box'" in " ".join(done.stdout.split())
    lines = call("inspect", "e.onnx").stdout.splitlines()
    assert "  the box is chosen by input 'target_box'; output 'heatmap_box' says which one was explained" in lines
    assert "  all boxes: scores in output 'detection_scores', places in 'detection_boxes'" in lines


def test_an_engine_that_cannot_leave_an_input_out_is_fed_the_box(call, finder, here):
    assert call("attach", *finder, "-o", "e.onnx", "--for", "node").exit_code == 0
    proto = onnx.load(here / "e.onnx")
    assert {"target_class", "target_box"} < {i.name for i in proto.graph.input}
    assert not {"target_class", "target_box"} & {i.name for i in proto.graph.initializer}
    refused = call("attach", *finder, "-o", "f.onnx", "--for", "node", "--box-index", "3")
    assert refused.exit_code == 1
    assert "box 3 would be the default of an input that has none" in " ".join(refused.stderr.split())
    assert not (here / "f.onnx").exists()


def test_a_classifier_has_no_boxes(call, classifier, image):
    result = call("explain", classifier, image, "--preprocess", PREPROCESS, "--box", "all", "-o", "out.png")
    assert result.exit_code == 1
    assert "the model is no detector" in result.stderr
