"""`export`: what is written, said and refused, and the scripts that are one of its commands each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_gradcam.runtime.session import Session

from .conftest import LABELS, PREPROCESS, refused

REPOSITORY = Path(__file__).resolve().parents[2]
FRAMEWORKS = ("keras", "mxnet", "pytorch")


def test_an_onnx_model_gets_its_layer_exposed(call, classifier, here):
    result = call("export", "onnx", classifier, "-o", "out.onnx", "--layer", "conv")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "out.onnx: from onnx tests, with the output 'conv' [N, 4, 16, 16] NCHW." in result.stdout
    assert "Input: 'image' [N, 3, 16, 16] NCHW.\n" in result.stdout
    assert "Layer: the output of node 'conv', as requested." in result.stdout
    assert "Scores: 'scores' (softmax)." in result.stdout
    x = np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)
    before, after = Session(classifier).run({"image": x}), Session(here / "out.onnx").run({"image": x})
    assert list(after) == ["scores", "conv"]
    assert np.array_equal(before["scores"], after["scores"])
    assert after["conv"].min() < 0


def test_what_it_carries_serves_the_other_commands(call, classifier, labels, image):
    made = call("export", "onnx", classifier, "-o", "m.onnx", "--labels", labels, "--preprocess", PREPROCESS)
    assert "Stored in the file: class names and preprocessing." in made.stdout
    assert "layer 'active'" in call("explain", "m.onnx", image, "-o", "out.png").stdout
    asked = call("export", "onnx", classifier, "-o", "conv.onnx", "--layer", "maps", "--preprocess", PREPROCESS)
    assert asked.exit_code == 0
    assert "layer 'maps'" in call("explain", "conv.onnx", image, "-o", "out.png").stdout
    assert call("attach", "conv.onnx", "-o", "e.onnx").exit_code == 0


def test_an_input_that_became_channels_first_is_named(call, repository):
    pytest.importorskip("h5py", reason="h5py is not installed")
    result = call("export", "keras", repository / "models" / "shapes.keras", "-o", "keras.onnx")
    turned = "Input: 'image' [batch, 3, 96, 96] NCHW, turned from keras's NHWC; --keep-layout keeps it.\n"
    assert turned in result.stdout


def test_the_layout_of_keras_is_kept_on_request(call, repository, here):
    pytest.importorskip("h5py", reason="h5py is not installed")
    model, picture = repository / "models" / "shapes.keras", repository / "models" / "circle_and_star.png"
    turned = call("export", "keras", model, "-o", "turned.onnx")
    kept = call("export", "keras", model, "-o", "kept.onnx", "--keep-layout")
    assert (turned.exit_code, kept.exit_code) == (0, 0)
    assert "Input: 'image' [batch, 96, 96, 3] NHWC.\n" in kept.stdout
    x = np.random.default_rng(0).random((2, 96, 96, 3), dtype=np.float32)
    first = Session(here / "turned.onnx").run({"image": x.transpose(0, 3, 1, 2)})
    second = Session(here / "kept.onnx").run({"image": x})
    assert list(first) == list(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    described = json.loads((repository / "models" / "shapes.json").read_text())
    for name, layout in (("turned", "NCHW"), ("kept", "NHWC")):
        options = ["--preprocess", json.dumps({**described, "layout": layout}), "--npz", "--target", "1"]
        assert call("explain", f"{name}.onnx", picture, "-o", f"{name}.png", *options).exit_code == 0
    with np.load(here / "turned.npz") as one, np.load(here / "kept.npz") as two:
        assert np.allclose(one["heatmap"], two["heatmap"], atol=1e-6)


def test_json(call, classifier, labels):
    found = json.loads(call("export", "onnx", classifier, "-o", "m.onnx", "--labels", labels, "--json").stdout)
    assert (found["model"], found["framework"], found["framework_version"]) == ("m.onnx", "onnx", "tests")
    assert (found["target"], found["shape"], found["layout"]) == ("active", ["N", 4, 16, 16], "NCHW")
    assert (found["scores_output"], found["score_kind"], found["labels"]) == ("scores", "softmax", LABELS)
    assert (found["layers"], found["preprocessing"], found["warnings"]) == ({}, None, [])


def test_inspect_lists_the_layers_of_the_framework(call, classifier, here):
    call("export", "onnx", classifier, "-o", "m.onnx")
    model = onnx.load(here / "m.onnx")
    layer = {"kind": "Conv2D", "shape": ["N", 4, 16, 16], "layout": "NCHW"}
    for key, value in {
        "framework": "keras",
        "framework_version": "3.15.1",
        "layers": json.dumps({"first": {"tensor": "maps", **layer}, "relu": {"tensor": "active", **layer}}),
    }.items():
        entry = model.metadata_props.add() if key == "layers" else None
        entry = entry or next(p for p in model.metadata_props if p.key == f"onnx_gradcam.{key}")
        entry.key, entry.value = f"onnx_gradcam.{key}", value
    onnx.save(model, here / "k.onnx")
    lines = call("inspect", "k.onnx", "--layer", "first").stdout.splitlines()
    start = lines.index("layers of the keras model to choose from with --layer, the last first")
    assert "exported from keras 3.15.1" in lines
    assert [line.split()[:3] for line in lines[start + 1 : start + 3]] == [
        ["'relu'", "Conv2D", "[N,"],
        ["*", "'first'", "Conv2D"],
    ]
    assert "tensor 'maps'" in lines[start + 2]
    found = json.loads(call("inspect", "k.onnx", "--json").stdout)
    assert (found["framework"], list(found["layers"])) == ("keras 3.15.1", ["first", "relu"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.onnx", "-o", "m.onnx"], "there is no file 'missing.onnx'"),
        (["{model}", "-o", "m.onnx", "--layer", "activ"], "no layer 'activ'; did you mean 'active'"),
        (["{model}", "-o", "{model}"], "this is the model itself"),
        (["{model}", "-o", "no/such/folder/m.onnx"], "its folder does not exist"),
        (["{model}", "-o", "."], "is a folder"),
        (["{model}", "-o", "m.onnx", "--labels", "{labels}", "--output", "maps"], "no output 'maps'"),
        (["{model}", "-o", "m.onnx", "--preprocess", '{"size": [5, 5]}'], "input is 16x16"),
    ],
)
def test_nothing_is_written_when_it_is_refused(arguments, words, call, classifier, labels, here):
    before = sorted(here.rglob("*"))
    content = classifier.read_bytes()
    result = call(
        "export", "onnx", *(a.format(model=classifier, labels=labels) if "size" not in a else a for a in arguments)
    )
    assert words in refused(result)
    assert sorted(here.rglob("*")) == before
    assert classifier.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["keras", "m.keras", "-o", "m.onnx", "--trust"], "the reader runs no code"),
        (["keras", "m.keras", "-o", "m.onnx", "--custom", "mine", "--via", "tf"], "--trust only"),
        (["mxnet", "a-symbol.json", "a.params", "-o", "m.onnx", "--input-shape", "3,x,224"], "not 3 positive integers"),
        (["pytorch", "m.pt2", "-o", "m.onnx", "--size", "224"], "not 2 positive integers"),
        (["onnx", "m.onnx", "-o", "-"], "goes to a file"),
        (["onnx", "m.onnx"], "Missing option"),
        (["caffe", "m"], "No such command"),
    ],
)
def test_wrong_usage(arguments, words, call):
    result = call("export", *arguments)
    assert result.exit_code == 2
    assert words in re.sub(r"\s+", " ", result.stderr.replace("│", ""))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["keras", "m.keras", "-o", "m.onnx"], "m.keras"),
        (["keras", "m.keras", "-o", "m.onnx", "--via", "tf"], "m.keras: no such file"),
        (["mxnet", "a-symbol.json", "a.params", "-o", "m.onnx"], "a-symbol.json"),
        (["tflite", "m.tflite", "-o", "m.onnx"], "m.tflite: cannot be read"),
    ],
)
def test_files_that_are_not_there(arguments, words, call):
    assert words in refused(call("export", *arguments))


def test_the_bar_is_for_terminals(monkeypatch, call, classifier):
    monkeypatch.setattr("onnx_gradcam.cli._progress._at_a_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    result = call("export", "onnx", classifier, "-o", "m.onnx", "--json")
    assert result.exit_code == 0
    assert "/3" in result.stderr
    assert json.loads(result.stdout)["target"] == "active"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_scripts_are_commands(framework, tmp_path):
    script = REPOSITORY / "tools" / f"export_{framework}.py"
    done = subprocess.run([sys.executable, script, "-h"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith(f"Usage: onnx-gradcam export {framework}")
    wrong = subprocess.run([sys.executable, script, "--nonsense"], check=False, capture_output=True, cwd=tmp_path)
    assert wrong.returncode == 2


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_scripts_say_what_they_need(framework):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    text = (REPOSITORY / "tools" / f"export_{framework}.py").read_text("utf-8")
    block = re.search(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", text)
    facts = tomllib.loads("".join(line[2:] + "\n" for line in block[1].replace("#\n", "# \n").splitlines()))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert facts["requires-python"] == project["requires-python"]
    assert facts["tool"]["uv"]["sources"]["onnx-gradcam"]["path"] == ".."
    (own,) = [d for d in facts["dependencies"] if d.startswith("onnx-gradcam")]
    extra = re.fullmatch(r"onnx-gradcam(?:\[(\w+)\])?", own)[1]
    assert extra is None or extra in project["optional-dependencies"]


@pytest.mark.real
def test_a_script_exports_a_real_model(real_data, tmp_path):
    folder = real_data / "models" / "mxnet"
    done = subprocess.run(
        [
            sys.executable,
            REPOSITORY / "tools" / "export_mxnet.py",
            folder / "mnist-symbol.json",
            folder / "mnist-0035.params",
            *("-o", tmp_path / "mnist.onnx", "--json"),
        ],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "ONNX_GRADCAM_DEBUG": "1"},
    )
    found = json.loads(done.stdout)
    assert found["framework"] == "mxnet"
    ref = np.load(real_data / "refs" / "mxnet__mnist.npz")
    session = Session(tmp_path / "mnist.onnx")
    result = session.run({session.inputs[0].name: ref["x"]})[found["scores_output"]]
    wanted = ref[f"{found['scores_output']}_output"]
    assert np.abs(result - wanted).max() <= 1e-5 * np.abs(wanted).max()
