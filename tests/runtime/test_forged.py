"""Explained files that were edited: weights in other files, and metadata that does not fit the graph, at every door."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from support.graphs import graph
from typer.testing import CliRunner

from onnx_gradcam import Explainer, attach, inspect
from onnx_gradcam.cli import app
from onnx_gradcam.editor.targets.score import Activation
from onnx_gradcam.errors import ExplainError, ModelError
from onnx_gradcam.metadata import PREFIX, Metadata
from onnx_gradcam.serve.repository import write_repository
from onnx_gradcam.web.building import build_page

SECRET = np.linspace(-1, 1, 24, dtype=np.float32)
PREPROCESS = {"size": [8, 8], "resize": "stretch"}


def explained() -> onnx.ModelProto:
    source = graph(
        "c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) l = Gemm(f, W) y = Softmax(l)",
        K=(6, 3, 3, 3),
        W=(6, 4),
    )
    return attach(source, preprocess=PREPROCESS, class_input="required").to_proto()


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line.removeprefix("error: ")


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.ppm"
    path.write_bytes(b"P6 8 8 255\n" + bytes(range(192)))
    return path


@pytest.fixture
def doors(tmp_path, picture):
    """Every way to use an explained file, which returns its refusal; what it would write is in `tmp_path / "out"`."""
    out = tmp_path / "out"
    out.mkdir()

    def through_python(open_model, path: Path) -> str:
        with pytest.raises(ExplainError) as caught:
            open_model(path)
        return str(caught.value)

    ways = {
        "Explainer": lambda path: through_python(Explainer, path),
        "inspect": lambda path: through_python(inspect, path),
        "triton": lambda path: through_python(lambda p: write_repository(p, out / "t", name="m"), path),
        "web": lambda path: through_python(lambda p: build_page(p, out / "w", runtime={"a.mjs": b""}), path),
        "explain": lambda path: call("explain", path, picture, "-o", out / "o.png"),
        "inspect command": lambda path: call("inspect", path),
        "compare": lambda path: call("compare", path, path, "--images", picture, "--report", out / "r.html"),
        "batch": lambda path: call("batch", path, picture, "-o", out / "b"),
        "triton command": lambda path: call("triton", path, "-o", out / "t2"),
    }
    yield ways
    assert list(out.iterdir()) == []


def away(location: str) -> onnx.ModelProto:
    """An explained file whose class weights are read from another file."""
    proto = explained()
    tensor = next(t for t in proto.graph.initializer if t.name == "W")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return proto


@pytest.mark.parametrize("kind", ["above", "absolute", "symbolic link", "hard link"])
def test_weights_outside_the_folder_are_refused_at_every_door(tmp_path, doors, kind):
    secret, folder = tmp_path / "secret.bin", tmp_path / "model"
    secret.write_bytes(SECRET.tobytes())
    folder.mkdir()
    location = {"above": "../secret.bin", "absolute": str(secret)}.get(kind, "w.bin")
    if kind == "symbolic link":
        (folder / "w.bin").symlink_to(secret)
    if kind == "hard link":
        os.link(secret, folder / "w.bin")
    path = folder / "explained.onnx"
    path.write_bytes(away(location).SerializeToString())
    expected = "is a hard link; copy it instead" if kind == "hard link" else "is outside of the model's folder; refused"
    for name, door in doors.items():
        assert expected in door(path), name


def test_bytes_cannot_name_other_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("w.bin").write_bytes(SECRET.tobytes())
    with pytest.raises(ModelError, match="weight 'W' is in another file; load the model from its path"):
        Explainer(away("w.bin").SerializeToString())


def test_weights_beside_the_file_are_read(tmp_path):
    path = tmp_path / "explained.onnx"
    path.write_bytes(away("w.bin").SerializeToString())
    (tmp_path / "w.bin").write_bytes(SECRET.tobytes())
    image = np.full((8, 8, 3), 99, np.uint8)
    inside = away("w.bin")
    tensor = next(t for t in inside.graph.initializer if t.name == "W")
    tensor.CopyFrom(onnx.numpy_helper.from_array(SECRET.reshape(6, 4), "W"))
    expected = Explainer(inside.SerializeToString())(image)
    np.testing.assert_array_equal(Explainer(path)(image).scores, expected.scores)


def forged(entry: str, value: str) -> onnx.ModelProto:
    proto = explained()
    next(p for p in proto.metadata_props if p.key == PREFIX + entry).value = value
    return proto


FORGED = [
    ("image_input", "x2", "does not fit its graph: there is no input 'x2', which 'onnx_gradcam.image_input' names"),
    ("image_input", "target_class", "the input 'target_class' is not a tensor of 4 axes, as"),
    ("class_input", "x", "the input 'x' is not int64 of 1 axes, as 'onnx_gradcam.class_input' needs"),
    ("mask_input", "x", "the input 'x' is not float32 of 3 axes"),
    ("mask_input", "z", "there is no input 'z'"),
    ("scores_output", "z", "there is no output 'z'"),
    ("scores_output", "cam", "two of its entries name the same output"),
    ("heatmap", "y", "the output 'y' is not float32 of 3 axes"),
    ("cam", "heatmap", "two of its entries name the same output"),
    ("cam", "", "there is no output ''"),
    ("heatmap_class", "cam", "the output 'cam' is not int64 of 1 axes"),
    ("attribution", "heatmap", "the output 'heatmap' is not a tensor of 4 axes"),
    ("all_classes", "true", "the output 'heatmap' is not float32 of 4 axes"),
    ("layout", "NHX", "'onnx_gradcam.layout' is 'NHX', not one of 'NCHW', 'NHWC'"),
    ("activation", "relu", "'onnx_gradcam.activation' is 'relu', not one of"),
    ("weights", "", "'onnx_gradcam.weights' is '', not one of"),
    ("derivative", "x", "'onnx_gradcam.derivative' is 'x', not one of"),
    ("modifier", "guide", "'onnx_gradcam.modifier' is 'guide', not one of"),
    ("grad_dtype", "int8", "'onnx_gradcam.grad_dtype' is 'int8', not one of"),
    ("method", "\n" * 999, "'onnx_gradcam.method' is"),
    ("task", "", "'onnx_gradcam.task' is '', which is not a name"),
    ("single_logit", "null", "'onnx_gradcam.single_logit' is not a JSON true or false"),
]


@pytest.mark.parametrize(("entry", "value", "words"), FORGED)
def test_forged_metadata_is_one_sentence(tmp_path, entry, value, words):
    path = tmp_path / "forged.onnx"
    path.write_bytes(forged(entry, value).SerializeToString())
    for open_model in (Explainer, inspect, lambda p: Explainer(p.read_bytes())):
        with pytest.raises(ModelError) as caught:
            open_model(path)
        message = str(caught.value)
        assert words in message
        assert "start from the original model" in message or "write it again or remove it" in message
        assert len(message) < 350


def edited(what: str) -> onnx.ModelProto:
    """An explained file after another tool removed an output, or renamed the input."""
    proto = explained()
    if what == "x":
        proto.graph.input[0].name = "renamed"
        for node in proto.graph.node:
            node.input[:] = ["renamed" if name == "x" else name for name in node.input]
    else:
        kept = [o for o in proto.graph.output if o.name != what]
        del proto.graph.output[:]
        proto.graph.output.extend(kept)
    return proto


@pytest.mark.parametrize("what", ["cam", "heatmap", "heatmap_class", "y", "x"])
def test_an_explained_file_that_another_tool_edited(tmp_path, doors, what):
    path = tmp_path / "edited.onnx"
    path.write_bytes(edited(what).SerializeToString())
    kind = "input" if what == "x" else "output"
    for name, door in doors.items():
        assert f"the model's explanation metadata does not fit its graph: there is no {kind} '{what}'" in door(path), (
            name
        )


def test_ordinary_explained_files_fit(tmp_path):
    """Every kind of class input, all classes at once, and a layout of channels last."""
    path = tmp_path / "explained.onnx"
    image = np.zeros((8, 8, 3), np.uint8)
    for class_input in ("optional", "required", "none", "all"):
        attach(graph_of("NCHW"), preprocess=PREPROCESS, class_input=class_input).save(path)
        assert Explainer(path)(image).heatmap.shape == (8, 8)
        assert inspect(path).explained is not None
    attach(graph_of("NHWC"), preprocess=PREPROCESS, method="saliency").save(path)
    assert Explainer(path)(image).heatmap.shape == (8, 8)


def graph_of(layout: str) -> onnx.ModelProto:
    body = "c = Conv(i, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)"
    first, size = {
        "NCHW": ("i = Identity(x)", "float[N,3,8,8] x"),
        "NHWC": ("i = Transpose<perm=[0,3,1,2]>(x)", "float[N,8,8,3] x"),
    }[layout]
    return graph(f"{first} {body}", inputs=size, K=(6, 3, 3, 3), W=(6, 4))


def test_the_words_are_those_that_are_written():
    props = {p.key: p.value for p in explained().metadata_props}
    for word in get_args(Activation):
        assert Metadata.from_props(props | {PREFIX + "activation": word}) is not None
    assert json.loads(props[PREFIX + "single_logit"]) is False
