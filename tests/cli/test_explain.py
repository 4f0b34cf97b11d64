"""`explain`: the images, the arrays, the JSON."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnx_gradcam import Explainer
from onnx_gradcam.cli import app

from .conftest import LABELS, PREPROCESS, refused, small_classifier


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_default_image_lies_in_the_current_folder(explain, image, labels, here):
    result = explain(image, "--labels", labels)
    assert result.exit_code == 0, result.stderr
    assert names(here) == ["names.txt", "squares.png", "squares_gradcam.png"]
    lines = result.stdout.splitlines()
    assert lines[0] == f"{image} -> squares_gradcam.png"
    assert lines[1].split() == ["class", "name", "score", "probability"]
    assert lines[2].split()[:3] == ["*", "0", "red"]
    assert lines[3].split()[:2] == ["2", "blue"]
    score, probability = lines[2].split()[3:5]
    assert f"{100 * float(score):.1f}" == probability
    assert lines[-1] == "layer 'active', method gradcam, weights linear"


def test_a_class_without_a_name_is_listed_once(explain, image):
    lines = explain(image).stdout.splitlines()
    assert lines[1].split() == ["class", "score", "probability"]
    assert lines[2].split()[:2] == ["*", "0"]


def test_each_class_of_several_has_its_own_probability(repository, here):
    """The demo says of itself that several of its classes may be in one image."""
    command = ["explain", str(repository / "models/shapes.onnx"), str(repository / "models/circle_and_star.png")]
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["images"][0]["top"]
    assert [one["label"] for one in found if one["probability"] > 0.99] == ["star", "circle"]
    shared = json.loads(CliRunner().invoke(app, [*command, "--json", "--probabilities", "softmax"]).stdout)
    assert sum(one["probability"] for one in shared["images"][0]["top"]) < 1.001


def test_attributions_are_drawn_grey_unless_a_style_is_chosen(explain, image):
    for options, grey in ([], True), (["--style", "overlay"], False), (["--opacity", "0.4"], False):
        assert explain(image, "-o", "x.png", "--method", "gradient", *options).exit_code == 0
        drawn = cv2.imread("x.png")
        panel = drawn[:, drawn.shape[1] // 2 :].astype(int)
        assert (np.ptp(panel, axis=2).max() == 0) == grey


def test_sheet_has_the_photo_and_one_panel_a_class(explain, image, labels, here):
    widths = []
    for targets in (["red"], ["red", "blue"]):
        options = [option for target in targets for option in ("--target", target)]
        assert explain(image, "-o", "sheet.png", "--labels", labels, *options).exit_code == 0
        widths.append(cv2.imread("sheet.png").shape[1])
    # one photo and one overlay against one photo and two, each of the same width
    assert 1.3 < widths[1] / widths[0] < 1.5


def test_heatmaps_lie_on_their_objects(explain, image, labels):
    explain(image, "-o", "sheet.png", "--labels", labels, "--target", "red", "--target", "blue", "--npy")
    red, blue = np.load("sheet_0.npy"), np.load("sheet_2.npy")
    assert red.shape == blue.shape == (16, 16)
    row, column = np.unravel_index(red.argmax(), red.shape)
    assert 2 <= row < 6
    assert 2 <= column < 6
    row, column = np.unravel_index(blue.argmax(), blue.shape)
    assert 10 <= row < 14
    assert 10 <= column < 14


def test_npy_is_the_heatmap_and_npz_has_everything(explain, classifier, image):
    assert explain(image, "-o", "x.png", "--target", 2, "--target", 0, "--npy", "--npz").exit_code == 0
    expected = Explainer(classifier, preprocess=PREPROCESS)(image, [2, 0])
    for m in expected.maps:
        stored = np.load(f"x_{m.target.index}.npy")
        assert stored.dtype == np.float32
        np.testing.assert_allclose(stored, m.heatmap, atol=1e-6)
    with np.load("x.npz") as archive:
        np.testing.assert_allclose(archive["heatmap"], [m.heatmap for m in expected.maps], atol=1e-6)
        np.testing.assert_allclose(archive["cam"], [m.cam for m in expected.maps], atol=1e-5)
        assert archive["classes"].tolist() == [2, 0]
        np.testing.assert_allclose(archive["scores"], expected.scores[[2, 0]], rtol=1e-5)


def test_arrays_go_into_the_folder_that_is_given(explain, image, here):
    assert explain(image, "-o", "x.png", "--npy", "--arrays", "arrays").exit_code == 0
    assert names(here / "arrays") == ["x_0.npy"]
    assert not list(here.glob("*.npy"))


def test_json_is_one_object_of_the_agreed_form(explain, classifier, image, labels, here):
    result = explain(image, "--labels", labels, "--target", "blue", "--npy", "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    found = json.loads(result.stdout)
    scores = Explainer(classifier, preprocess=PREPROCESS)(image).scores.tolist()
    order = sorted(range(3), key=lambda i: -scores[i])
    figures = [{"score": pytest.approx(one, rel=1e-5), "probability": pytest.approx(one, rel=1e-5)} for one in scores]
    assert found == {
        "model": str(classifier),
        "target_tensors": ["active"],
        "target_tensor": "active",
        "score_tensor": "logits",
        "method": "gradcam",
        "weights": "linear",
        "images": [
            {
                "path": str(image),
                "top": [{"index": i, "label": LABELS[i], **figures[i]} for i in order],
                "explained": [
                    {
                        "index": 2,
                        "label": "blue",
                        **figures[2],
                        "heatmap": "squares_gradcam_2.npy",
                    }
                ],
            }
        ],
    }
    assert names(here) == ["names.txt", "squares.png", "squares_gradcam_2.npy"]


def test_json_without_arrays_has_null_and_writes_nothing(explain, image, here):
    found = json.loads(explain(image, "--json").stdout)
    assert [e["heatmap"] for e in found["images"][0]["explained"]] == [None]
    assert names(here) == ["squares.png"]


def test_json_writes_the_image_where_one_is_asked_for(explain, image, here):
    json.loads(explain(image, "--json", "-o", "sheet.png").stdout)
    assert names(here) == ["sheet.png", "squares.png"]


def test_stdin_is_a_image(explain, image, here):
    result = explain("-", "--json", "--npy", stdin=image.read_bytes())
    (entry,) = json.loads(result.stdout)["images"]
    assert entry["path"] == "-"
    assert entry["explained"][0] == {**entry["top"][0], "heatmap": "stdin_gradcam_0.npy"}
    assert (here / "stdin_gradcam_0.npy").exists()


def test_stdout_is_a_image(explain, image, here):
    result = explain("-", "-o", "-", stdin=image.read_bytes())
    assert result.exit_code == 0
    sheet = cv2.imdecode(np.frombuffer(result.stdout_bytes, np.uint8), cv2.IMREAD_COLOR)
    assert sheet.shape[1] > 2 * 224
    assert names(here) == ["squares.png"]


def test_model_from_stdin(call, classifier, image):
    result = call("explain", "-", image, "--preprocess", PREPROCESS, "--json", stdin=classifier.read_bytes())
    assert json.loads(result.stdout)["target_tensor"] == "active"


def test_folder_gives_one_image_each_and_equal_stems_stay_apart(explain, images, here):
    result = explain(images, "-o", "out", "--npy")
    assert result.exit_code == 0, result.stderr
    assert names(here / "out") == ["a.png", "a_1.npy", "a_2.png", "a_2_0.npy", "b.png", "b_2.npy"]
    assert [line.split(": ")[0] for line in result.stdout.splitlines()[:3]] == [
        str(images / n) for n in ("a.bmp", "a.png", "b.png")
    ]


def test_results_beside_the_photos_never_overwrite_them(explain, images, here):
    before = {p.name: p.read_bytes() for p in images.iterdir()}
    assert explain(images, "-o", "photos").exit_code == 0
    assert {n: (images / n).read_bytes() for n in before} == before
    assert set(names(images)) - set(before) == {"a_2.png", "a_3.png", "b_2.png"}


def test_glob_takes_what_matches(explain, images):
    found = json.loads(explain("photos/*.png", "--json").stdout)
    assert [i["path"] for i in found["images"]] == ["photos/a.png", "photos/b.png"]
    found = json.loads(explain("**/b.*", "--json").stdout)
    assert [i["path"] for i in found["images"]] == ["photos/b.png"]


def test_a_file_with_brackets_in_its_name_is_a_file(explain, image, here):
    shutil.copy(image, here / "x[1].png")
    found = json.loads(explain("x[1].png", "--json").stdout)
    assert [i["path"] for i in found["images"]] == ["x[1].png"]


def test_one_bad_image_among_many(explain, images, here):
    result = explain("photos/a.png", "photos/notes.txt", "nothing.png", "photos/b.png", "-o", "out", "--json")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 2
    assert "'photos/notes.txt' is not an image" in result.stderr
    assert "no file 'nothing.png'" in result.stderr
    entries = json.loads(result.stdout)["images"]
    assert [sorted(i) for i in entries] == [
        ["explained", "path", "top"],
        ["error", "path"],
        ["error", "path"],
        ["explained", "path", "top"],
    ]
    assert [i["path"] for i in entries] == ["photos/a.png", "photos/notes.txt", "nothing.png", "photos/b.png"]
    assert entries[0]["top"][0]["index"] == 0
    assert entries[3]["top"][0]["index"] == 2
    assert names(here / "out") == ["a.png", "b.png"]


def test_targets_by_number_name_and_rank(explain, image, labels):
    def explained(*targets):
        options = [option for target in targets for option in ("--target", target)]
        found = json.loads(explain(image, "--labels", labels, "--json", *options).stdout)
        return [e["index"] for e in found["images"][0]["explained"]]

    assert explained() == [0]
    assert explained("1") == [1]
    assert explained("Blue", 0) == [2, 0]
    assert explained("top2") == [0, 2]
    assert explained("top9") == [0, 2, 1]
    assert explained("green", "top2") == [1, 0, 2]
    assert explained("top2", "green") == [0, 2, 1]


def test_many_classes_of_many_images_keep_their_order(explain, images, classifier):
    found = json.loads(explain(images, "--json", "--npy", "--target", "top3", "--batch-size", 2).stdout)
    explainer = Explainer(classifier, preprocess=PREPROCESS)
    for image in found["images"]:
        expected = explainer(image["path"], "top3")
        assert [e["index"] for e in image["explained"]] == [m.target.index for m in expected.maps]
        for e, m in zip(image["explained"], expected.maps, strict=True):
            np.testing.assert_allclose(np.load(e["heatmap"]), m.heatmap, atol=1e-5)


def test_images_of_different_sizes_in_one_batch(explain, here):
    """A model with a free size takes each image as it is."""
    model = small_classifier()
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "HW"[axis - 2]
    onnx.save(model, "free.onnx")
    for name, side in (("small.png", 24), ("large.png", 40), ("other.png", 24)):
        cv2.imwrite(name, np.full((side, side + 8, 3), 90, np.uint8))
    result = explain("small.png", "large.png", "other.png", "--json", "--npy", model="free.onnx")
    assert result.exit_code == 0, result.stderr
    shapes = [np.load(i["explained"][0]["heatmap"]).shape for i in json.loads(result.stdout)["images"]]
    assert shapes == [(24, 32), (40, 48), (24, 32)]


def test_an_explained_model_needs_no_options(call, classifier, image, labels):
    assert call("attach", classifier, "-o", "e.onnx", "--labels", labels, "--preprocess", PREPROCESS).exit_code == 0
    found = json.loads(call("explain", "e.onnx", image, "--target", "blue", "--json").stdout)
    assert found["images"][0]["explained"][0]["label"] == "blue"


def test_options_reach_the_explanation(explain, image):
    found = json.loads(explain(image, "--layer", "maps", "--weights", "gradient", "--score", "output", "--json").stdout)
    assert (found["target_tensor"], found["weights"], found["score_tensor"]) == ("maps", "gradient", "scores")


def test_json_names_every_layer(explain, image):
    found = json.loads(explain(image, "--layer", "maps", "--layer", "active", "--json").stdout)
    assert sorted(found["target_tensors"]) == ["active", "maps"]
    assert found["target_tensor"] == found["target_tensors"][0]


def test_drawing_options_change_the_image(explain, image):
    drawn = []
    for options in ((), ("--colormap", "viridis"), ("--opacity", "0")):
        explain(image, "-o", "x.png", *options)
        drawn.append(cv2.imread("x.png"))
    assert not np.array_equal(drawn[0], drawn[1])
    # With an opacity of 0 the overlay is the photo; the panels are 224 wide, 12 apart.
    photo, overlay = drawn[2][-230:-20, 12:236], drawn[2][-230:-20, 248:472]
    np.testing.assert_array_equal(photo, overlay)


def test_a_preset_draws_as_its_library_does(explain, image):
    drawn = []
    for options in (("--preset", "mxnet"), ("--preset", "mxnet", "--opacity", "0.5"), ("--opacity", "0.5")):
        assert explain(image, "-o", "x.png", *options).exit_code == 0
        drawn.append(cv2.imread("x.png")[-230:-20, 248:472])
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[1].astype(int) - drawn[2]).max() < np.abs(drawn[0].astype(int) - drawn[2]).max()


def test_keras_vis_is_warned_of(explain, image):
    result = explain(image, "--preset", "keras-vis")
    assert result.exit_code == 0
    assert "warning: keras-vis divides gradients by the largest of them" in result.stderr


def test_a_blank_heatmap_is_said(explain, here):
    cv2.imwrite("black.png", np.zeros((16, 16, 3), np.uint8))
    result = explain("black.png")
    assert result.exit_code == 0
    assert "warning: black.png: the heatmap of 'class" in result.stderr
    assert "zero everywhere" in result.stderr


def test_class_names_of_another_model_are_noticed(explain, image, here):
    (here / "ten.txt").write_text("\n".join("abcdefghij"), "utf-8")
    assert "there are 10 class names for 3 classes" in refused(explain(image, "--labels", "ten.txt"))


def test_names_from_files_cannot_steer_the_terminal(explain, image, here):
    (here / "evil.txt").write_text("\x1b[2Jred\ngreen\nblue", "utf-8")
    assert "\x1b" not in explain(image, "--labels", "evil.txt").output


def test_several_methods_on_one_sheet(explain, classifier, image, here):
    result = explain(image, "-o", "sheet.png", "--method", "gradcam,hirescam,activationmap", "--npy", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [m["method"] for m in found["methods"]] == ["gradcam", "hirescam", "activationmap"]
    assert [m["weights"] for m in found["methods"]] == ["linear", "linear", "none"]
    explained = found["images"][0]["explained"]
    assert [(e["method"], e["index"]) for e in explained] == [("gradcam", 0), ("hirescam", 0), ("activationmap", 0)]
    for e in explained:
        expected = Explainer(classifier, preprocess=PREPROCESS, method=e["method"])(image)
        np.testing.assert_allclose(np.load(e["heatmap"]), expected.heatmap, atol=1e-6)
    assert names(here) == sorted(["sheet.png", "squares.png", *(e["heatmap"] for e in explained)])


def test_several_methods_of_a_image_on_standard_input(explain, image, here):
    result = explain("-", "--method", "gradcam,layercam", "--npz", stdin=image.read_bytes())
    assert result.exit_code == 0, result.stderr
    assert names(here) == [
        "squares.png", "stdin_gradcam.png", "stdin_gradcam_gradcam.npz", "stdin_gradcam_layercam.npz"
    ]  # fmt: skip
    assert [line.split(", ")[1] for line in result.stdout.splitlines()[-2:]] == ["method gradcam", "method layercam"]


def test_one_class_asked_for_twice_is_shown_once(explain, image, labels):
    found = json.loads(explain(image, "--labels", labels, "--target", "blue", "--target", 2, "--json").stdout)
    assert [e["index"] for e in found["images"][0]["explained"]] == [2]


def test_box_of_the_hot_region(explain, image):
    """The red square lies at 4 to 12 of 32 pixels; its heatmap of 16x16 cells is enlarged twice."""
    (entry,) = json.loads(explain(image, "--style", "box", "--threshold", 0.5, "--json").stdout)["images"]
    (x0, y0, x1, y1) = entry["explained"][0]["box"]
    assert max(abs(x0 - 4), abs(y0 - 4), abs(x1 - 12), abs(y1 - 12)) <= 1
    (entry,) = json.loads(explain(image, "--style", "box", "--top-percent", 100, "--json").stdout)["images"]
    assert entry["explained"][0]["box"] == [0, 0, 32, 32]


def test_alpha_is_one_transparent_image_of_the_photos_size(explain, image, here):
    assert explain(image, "-o", "a.png", "--style", "alpha", "--opacity", 1).exit_code == 0
    drawn = cv2.imread("a.png", cv2.IMREAD_UNCHANGED)
    assert drawn.shape == (32, 32, 4)
    assert drawn[7, 7, 3] > 200
    assert drawn[31, 0, 3] < 50


@pytest.mark.parametrize("style", ["mask", "contour", "signed"])
def test_styles_differ_from_the_overlay_in_their_panel_alone(explain, image, style):
    for name, options in (("plain.png", ()), ("styled.png", ("--style", style))):
        assert explain(image, "-o", name, *options).exit_code == 0
    plain, styled = cv2.imread("plain.png"), cv2.imread("styled.png")
    assert (plain[:, :230] == styled[:, :230]).all()
    assert (plain[:, 240:460] != styled[:, 240:460]).any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--style", "alpha", "--target", "top2"], "one transparent image; ask for one class"),
        (["--style", "alpha", "--method", "gradcam,layercam"], "one transparent image"),
        (["--style", "alpha", "-o", "a.jpg"], ".jpg file cannot hold transparency"),
        (["--style", "mask", "--threshold", 0], "the threshold is 0"),
        (["--style", "mask", "--top-percent", 101], "the percentage of pixels is 101.0"),
        (["--method", "gradcam,layercm"], "no method 'layercm'"),
    ],
)
def test_styles_that_cannot_be_drawn(explain, image, here, options, sentence):
    assert sentence in refused(explain(image, *options))
    assert names(here) == ["squares.png"]


@pytest.mark.parametrize(
    "options",
    [
        ["--threshold", 0.2],
        ["--style", "signed", "--top-percent", 20],
        ["--style", "box", "--top-percent", 20, "--threshold", 0.5],
        ["--method", "gradcam,,layercam"],
        ["--method", "gradcam,gradcam"],
        ["--style", "blob"],
    ],
)
def test_options_that_contradict_each_other(explain, image, options):
    refused(explain(image, *options), 2)


def test_image_and_arrays_appear_together_or_not_at_all(explain, image, here, monkeypatch):
    def full(file, array):
        raise OSError("1024 requested and 0 written")  # as NumPy says that the disk is full

    monkeypatch.setattr(np, "save", full)
    before = sorted(entry.name for entry in here.iterdir())
    sentence = refused(explain(image, "-o", "o.png", "--npz", "--npy"))
    assert "o_0.npy' cannot be written: 1024 requested and 0 written" in sentence
    assert sorted(entry.name for entry in here.iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="named pipes and links")
def test_pipes_are_not_read_and_links_stay(explain, call, classifier, image, here):
    os.mkfifo(here / "pipe.png")
    assert "is not a regular file" in refused(explain("pipe.png", "-o", "o.png"))
    assert "is not a regular file" in refused(call("explain", "pipe.png", image, "-o", "o.png"))
    (here / "link.onnx").symlink_to(here / "there.onnx")
    assert call("attach", classifier, "-o", "link.onnx").exit_code == 0
    assert (here / "link.onnx").is_symlink()
    assert call("attach", classifier, "-o", os.devnull).exit_code == 0
    assert Path(os.devnull).is_char_device()
