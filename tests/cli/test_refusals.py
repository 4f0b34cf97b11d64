"""Whatever cannot be done is said in one sentence, with exit code 1, and nothing is written."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_gradcam.cli import _images

from .conftest import refused, small_classifier


@pytest.fixture
def untouched(here):
    """Assert that the test leaves no file that it did not put there itself before the last call."""
    state = {}
    yield lambda: state.update(before=sorted(here.rglob("*")))
    assert sorted(here.rglob("*")) == state["before"]


def no_image_model() -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "flat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def segmenter() -> onnx.ModelProto:
    model = small_classifier()
    del model.graph.node[2:]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("active", TensorProto.FLOAT, ["N", 4, 16, 16]))
    return model


def write_bad_models(folder):
    whole = small_classifier().SerializeToString()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "text.onnx").write_text("This is no model.\n", "utf-8")
    (folder / "empty.onnx").write_bytes(b"")
    onnx.save(no_image_model(), folder / "flat.onnx")
    onnx.save(segmenter(), folder / "segmenter.onnx")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("truncated.onnx", ["truncated.onnx", "not an ONNX model"]),
        ("text.onnx", ["text.onnx", "not an ONNX model"]),
        ("empty.onnx", ["empty.onnx", "not an ONNX model"]),
        ("missing.onnx", ["there is no file 'missing.onnx'"]),
        (".", ["'.' is a folder"]),
        ("flat.onnx", ["no input of rank 4", "'x'"]),
        ("segmenter.onnx", ["say with --task what else", "'active' [N, 4, 16, 16]"]),
    ],
)
@pytest.mark.parametrize("command", ["explain", "attach"])
def test_bad_models(call, image, here, untouched, command, model, words):
    write_bad_models(here)
    untouched()
    arguments = [image, "-o", "o.png", "--preprocess", "none", "--npy"] if command == "explain" else ["-o", "o.onnx"]
    sentence = refused(call(command, model, *arguments))
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "3"], ["class 3 is out of range", "0 to 2"]),
        (["--target", "-1"], ["class -1 is out of range", "0 to 2"]),
        (["--target", "gren"], ["'gren'", "did you mean 'green'"]),
        (["--target", "top0"], ["top0", "top1"]),
        (["--layer", "actve"], ["no layer 'actve'", "did you mean 'active'"]),
        (["--layer", "flat"], ["'flat'"]),
        (["--method", "gradcm"], ["no method 'gradcm'", "did you mean 'gradcam'"]),
        (["--provider", "cudda"], ["'cudda'", "did you mean 'cuda'", "cpu"]),
        (["--output", "score"], ["no output 'score'", "did you mean 'scores'"]),
        (["--input", "images"], ["no image input 'images'", "did you mean 'image'"]),
        (["--colormap", "jett"], ["no colour map 'jett'", "did you mean 'jet'"]),
        (["--labels", "nobody.txt"], ["there is no file 'nobody.txt'"]),
        (["--preprocess", "torchvison"], ["'torchvison'", "did you mean 'torchvision'"]),
        (["--preprocess", '{"sise": [16, 16]}'], ["unknown key 'sise'", "did you mean 'size'"]),
        (["--preprocess", '{"size": [17, 17]}'], ["17x17", "16x16"]),
        (["-o", "o.pgn"], ["'o.pgn' does not end in the suffix of an image", "'.png'"]),
        (["-o", "squares.png"], ["'squares.png' is the image itself"]),
        (["-o", "names.txt/o.png"], ["names.txt' is not a folder"]),
    ],
)
def test_bad_choices(explain, image, labels, untouched, options, words):
    untouched()
    sentence = refused(explain("squares.png", "-o", "o.png", "--npy", "--labels", labels, *options))
    for word in words:
        assert word in sentence


def test_a_image_that_is_none(explain, here, untouched):
    (here / "no.jpg").write_text("no image", "utf-8")
    untouched()
    sentence = refused(explain("no.jpg", "-o", "out/x.png", "--npy"))
    assert "'no.jpg' is not an image" in sentence


def test_a_image_that_is_none_in_json(explain, here, untouched):
    (here / "no.jpg").write_text("no image", "utf-8")
    untouched()
    result = explain("no.jpg", "--json", "--npy")
    assert result.exit_code == 1
    (image,) = json.loads(result.stdout)["images"]
    assert image["path"] == "no.jpg"
    assert result.stderr == f"error: {image['error']}\n"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("nothing/*.png", ["no file matches 'nothing/*.png'"]),
        ("empty", ["the folder 'empty' holds no image"]),
        ("missing.png", ["no file 'missing.png'"]),
        ("", ["name of an image is empty"]),
    ],
)
def test_no_image_found(explain, here, untouched, image, words):
    (here / "empty").mkdir()
    untouched()
    sentence = refused(explain(image, "-o", "o.png"))
    for word in words:
        assert word in sentence


def test_no_preprocessing_known(call, classifier, image):
    sentence = refused(call("explain", classifier, image))
    assert "--preprocess" in sentence
    assert "torchvision" in sentence


def test_class_name_without_names(explain, image):
    assert "--labels" in refused(explain(image, "--target", "red"))


def test_a_folder_nobody_may_write_to(explain, image, here, monkeypatch):
    """Permissions do not bind the superuser, so the system's answer stands in for them."""
    (here / "locked").mkdir()
    monkeypatch.setattr(_images.os, "access", lambda path, _mode: not str(path).endswith("locked"))
    sentence = refused(explain(image, "-o", "locked/x.png"))
    assert "locked' cannot be written to" in sentence
    assert not list((here / "locked").iterdir())


def test_an_explained_model_takes_no_other_layer(call, classifier, image, here):
    assert call("attach", classifier, "-o", "e.onnx").exit_code == 0
    sentence = refused(call("explain", "e.onnx", image, "--preprocess", "none", "--layer", "maps"))
    assert "explained already" in sentence
    assert "start from the original model" in sentence
    assert "explained already" in refused(call("attach", "e.onnx", "-o", "twice.onnx"))
    assert not (here / "twice.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain"], "MODEL"),
        (["inspect", ""], "MODEL"),
        (["explain", "m.onnx"], "IMAGES"),
        (["explain", "m.onnx", "p.png", "--weights", "lineal"], "lineal"),
        (["explain", "m.onnx", "p.png", "--opacity", "2"], "--opacity"),
        (["explain", "m.onnx", "p.png", "--output", "o.png"], "-o or --out"),
        (["explain", "m.onnx", "p.png", "--arrays", "there"], "it is for --npy and --npz; give one of them"),
        (["explain", "m.onnx", "p.png", "-o", "-", "--json"], "standard output"),
        (["explain", "-", "-"], "standard input"),
        (["explain", "m.onnx", "a.png", "b.png", "-o", "one.png"], "give a folder"),
        (["attach", "m.onnx"], "--out"),
        (["attach", "m.onnx", "-o", "m.onnx"], "the model itself"),
        (["attach", "m.onnx", "-o", "o.onnx", "--target", "1"], "--class-input none"),
        (["inspct", "m.onnx"], "inspct"),
    ],
)
def test_wrong_usage(call, here, arguments, words):
    result = call(*arguments)
    assert words in refused(result, code=2)
    assert not list(here.iterdir())


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("customvision_cheesecake_opset1.onnx", ["opset 1", "export it again"]),
        ("mobilenet_v2_missing_external_data.onnx", ["mobilenet_v2_fp32.onnx.data", "is missing"]),
    ],
)
def test_real_negatives(call, real_data, here, untouched, name, words):
    model, photo = real_data / "models" / "onnx_negative" / name, real_data / "photos" / "classic" / "gradcam_both.png"
    untouched()
    for arguments in (
        ["explain", model, photo, "-o", "o.png", "--preprocess", "torchvision"],
        ["attach", model, "-o", "o.onnx"],
    ):
        sentence = refused(call(*arguments))
        for word in words:
            assert word in sentence
    assert call("inspect", model).exit_code == 1


@pytest.mark.real
def test_a_real_model_that_is_no_classifier(call, real_data, here, untouched):
    untouched()
    model = real_data / "models" / "onnx_native" / "deeplabv3_mnv2_dm05_voc21.onnx"
    assert "say with --task" in refused(call("attach", model, "-o", "o.onnx"))
    result = call("inspect", model)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no output looks like class scores")
    assert "'sub_7'  float32  [1, 257, 257, 3]" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        "attach LOOP -o o.onnx",
        "explain LOOP p.png",
        "explain MODEL LOOP --preprocess none",
        "export onnx LOOP -o o.onnx",
    ],
)
def test_links_that_lead_to_themselves(call, classifier, here, command):
    (here / "loop").symlink_to("loop")
    words = [{"LOOP": "loop", "MODEL": str(classifier)}.get(word, word) for word in command.split()]
    sentence = refused(call(*words))
    assert "should not have happened" not in sentence
    assert "loop" in sentence


DOORS = {
    "attach": (["attach", "small.onnx", "-o", "{}"], "out.onnx", "a model"),
    "attach, without ending": (["attach", "small.onnx", "-o", "{}"], "LICENSE", "a model"),
    "export": (["export", "onnx", "small.onnx", "-o", "{}"], "out.onnx", "a model"),
    "explain": (["explain", "small.onnx", "i.png", "-o", "{}", "--preprocess", "none"], "out.png", "an image"),
    "npz": (["explain", "small.onnx", "i.png", "--npz", "--preprocess", "none"], "i_gradcam.npz", "a ZIP archive"),
    "npy": (
        ["explain", "small.onnx", "i.png", "--npy", "--target", "1", "--preprocess", "none"],
        "i_gradcam_1.npy",
        "a NumPy array",
    ),
    "report": (
        ["compare", "small.onnx", "small.onnx", "--images", "i.png", "--preprocess", "none", "--report", "{}"],
        "out.html",
        "an HTML page",
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_output_replaces_a_file_that_is_clearly_something_else(door, call, here):
    words, name, kind = DOORS[door]
    onnx.save(small_classifier(), "small.onnx")
    cv2.imwrite("i.png", np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    (here / name).write_text("Permission is hereby granted, free of charge\n")
    before = sorted((path, path.read_bytes()) for path in here.iterdir())
    message = refused(call(*(word.format(name) for word in words)))
    assert f"{name}' exists and is a text, not {kind}; remove it, or choose another name" in message
    assert sorted((path, path.read_bytes()) for path in here.iterdir()) == before
    (here / name).unlink()
    for _ in range(2):
        assert call(*(word.format(name) for word in words)).exit_code == 0


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a permission on Windows")
def test_links_in_a_circle_end_in_one_sentence(call, here):
    onnx.save(small_classifier(), "small.onnx")
    cv2.imwrite("i.png", np.zeros((16, 16, 3), np.uint8))
    for name, to in (("a.png", "b.png"), ("b.png", "a.png"), ("m.onnx", "m.onnx"), ("folder", "folder")):
        (here / name).symlink_to(to)
    image = ["--preprocess", "none"]
    for words in (
        ["inspect", "m.onnx"],
        ["attach", "m.onnx", "-o", "x.onnx"],
        ["attach", "small.onnx", "-o", "m.onnx"],
        ["attach", "small.onnx", "-o", "folder/x.onnx"],
        ["attach", "small.onnx", "-o", "x.onnx", "--labels", "a.png"],
        ["export", "onnx", "m.onnx", "-o", "x.onnx"],
        ["explain", "small.onnx", "a.png", *image],
        ["explain", "small.onnx", "i.png", "-o", "a.png", *image],
        ["explain", "small.onnx", "i.png", "--npz", "--arrays", "folder", *image],
        ["batch", "small.onnx", "a.png", "-o", "out", *image],
        ["batch", "small.onnx", "i.png", "-o", "folder", *image],
        ["web", "small.onnx", "-o", "folder", *image],
        ["triton", "small.onnx", "-o", "folder", *image],
    ):
        result = call(*words)
        (line,) = result.stderr.strip().splitlines()
        assert (result.exit_code, line[:7]) == (1, "error: "), words
        assert "should not have happened" not in line
    assert sorted(path.name for path in here.iterdir()) == ["a.png", "b.png", "folder", "i.png", "m.onnx", "small.onnx"]
