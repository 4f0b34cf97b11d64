"""Which reader a file gets; the readers have tests of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from exporters.mxnet.networks import Network
from support.fake_python import interpreter
from support.graphs import graph, images, run
from typer.testing import CliRunner

from onnx_gradcam import Explainer, attach
from onnx_gradcam.cli import app
from onnx_gradcam.errors import ExplainError, InputError, TargetError
from onnx_gradcam.exporters.sources import as_onnx, export, framework_of
from onnx_gradcam.images.decoding import prepare


@pytest.mark.parametrize("name", ["model.onnx", "model", "model.ort", "symbol.json", "weights.params"])
def test_other_files_are_left_to_who_loads_them(name):
    assert as_onnx(name) == Path(name)


@pytest.mark.parametrize(
    "name", ["a.keras", "a.h5", "a.HDF5", "a-symbol.json", "no/a-symbol.json", "a.pt2", "a.tflite"]
)
def test_a_missing_file_is_one_sentence(tmp_path, name):
    if name.endswith("pt2"):
        pytest.importorskip("torch", reason="PyTorch is not installed")
    with pytest.raises(ExplainError) as raised:
        as_onnx(tmp_path / name)
    assert Path(name).name in str(raised.value)


@pytest.mark.torch
def test_a_program_of_pytorch(repository):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    model = as_onnx(repository / "models" / "shapes.pt2")
    onnx.checker.check_model(model, full_check=True)
    assert any(p.key == "onnx_gradcam.framework" and p.value == "pytorch" for p in model.metadata_props)


@pytest.mark.real
def test_a_network_of_mxnet_with_its_layer(real_data):
    model = as_onnx(real_data / "models" / "mxnet" / "mnist-symbol.json", "hybridsequential9_conv0_tanh_fwd")
    assert "hybridsequential9_conv0_tanh_fwd" in [o.name for o in model.graph.output]


def test_export_writes_and_returns_what_was_made(repository, tmp_path):
    steps = []
    labels = repository / "models" / "shapes.txt"
    exported = export(
        repository / "models" / "shapes.onnx", tmp_path / "out.onnx", labels=labels, progress=steps.append
    )
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    assert exported.target in [output.name for output in exported.to_proto().graph.output]
    assert exported.to_dict()["labels"] == labels.read_text().split()
    assert [step.split()[0] for step in steps] == ["reading", "exposing", "writing"]


@pytest.mark.parametrize(
    ("source", "framework"),
    [
        ("a.h5", "keras"),
        ("a-symbol.json", "mxnet"),
        ("a.pt2", "pytorch"),
        ("timm:resnet10t", "pytorch"),
        ("a.tflite", "tflite"),
    ],
)
def test_the_framework_is_told_from_the_source(source, framework):
    assert framework_of(source) == framework


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"framework": "kera"}, "'kera'; did you mean 'keras'"),
        ({"via": "tensorflow", "framework": "keras"}, "via is 'tensorflow'"),
        ({"call": 2}, "'call' does not apply to onnx models"),
        ({"keep_normalization": True}, "'keep_normalization' does not apply to onnx models"),
        ({"labels": ["one"]}, "there is 1 class name for 6 classes"),
        ({"preprocess": "torchvison"}, "did you mean 'torchvision'"),
        ({"out": "nowhere/out.onnx"}, "its folder does not exist"),
    ],
)
def test_wrong_arguments_write_nothing(repository, tmp_path, monkeypatch, choices, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        export(repository / "models" / "shapes.onnx", **{"out": "out.onnx", **choices})
    assert not list(tmp_path.iterdir())


scripts = pytest.mark.skipif(os.name == "nt", reason="scripts with a first line")

TWO_HEADS = """
    c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)
    age = Gemm(f, a) sex = Gemm(f, s)
"""


def two_heads() -> onnx.ModelProto:
    return graph(TWO_HEADS, outputs="float[N,4] age, float[N,2] sex", w=(5, 3, 3, 3), a=(5, 4), s=(5, 2))


def call(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


def onnx_heads(folder: Path) -> dict[str, Any]:
    onnx.save(two_heads(), folder / "heads.onnx")
    return {"source": folder / "heads.onnx"}


def mxnet_heads(folder: Path) -> dict[str, Any]:
    net = Network(folder, "")
    sizes = {"kernel": "(3, 3)", "num_filter": "5", "no_bias": "True"}
    maps = net.node("Convolution", "c", "data", net.weight("w", (5, 3, 3, 3)), **sizes)
    flat = net.node("Flatten", "f", net.node("Activation", "r", maps, act_type="relu"))
    heads = [
        net.node(
            "FullyConnected", name, flat, net.weight(f"{name}_w", (count, 180)), num_hidden=str(count), no_bias="True"
        )
        for name, count in (("age", 4), ("sex", 2))
    ]
    symbol, weights = net.write(*heads)
    return {"source": symbol, "weights": weights, "input_shape": (3, 8, 8)}


def tflite_heads(folder: Path) -> dict[str, Any]:
    onnx.save(two_heads(), folder / "made.onnx")
    (folder / "m.tflite").write_bytes(b"\x1c\x00\x00\x00TFL3 and more")
    body = f"import shutil; shutil.copy({str(folder / 'made.onnx')!r}, folder / 'model.onnx'); answer()"
    return {"source": folder / "m.tflite", "python": interpreter(folder, body)}


def keras_on_torch_heads(folder: Path) -> dict[str, Any]:
    onnx.save(two_heads(), folder / "made.onnx")
    stored = {}
    for batch in (1, 3):
        x = images(batch)
        stored |= {f"{batch} {name}": value for name, value in {"": x, **run(two_heads(), x=x)}.items()}
    np.savez(folder / "reference.npz", **stored)
    (folder / "m.keras").write_bytes(b"")
    body = (
        f"import shutil; shutil.copy({str(folder / 'made.onnx')!r}, folder / 'model.onnx')\n"
        f"shutil.copy({str(folder / 'reference.npz')!r}, folder)\n"
        "answer(version='3.15.1', outputs=['age', 'sex'], layers=[])"
    )
    return {"source": folder / "m.keras", "via": "torch", "python": interpreter(folder, body)}


def keras_heads(_folder: Path) -> dict[str, Any]:
    pytest.importorskip("h5py", reason="h5py is not installed")
    return {"source": Path(__file__).parents[1] / "oracles" / "keras" / "tf_keras_tensorflow_slices.h5"}


@pytest.mark.parametrize(
    ("make", "chosen"),
    [
        (onnx_heads, "sex"),
        (mxnet_heads, "sex"),
        (keras_heads, "others"),
        pytest.param(keras_on_torch_heads, "sex", marks=scripts),
        pytest.param(tflite_heads, "sex", marks=scripts),
    ],
)
def test_the_output_that_was_named_is_carried_into_attach_and_explain(make, chosen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = make(tmp_path)
    with pytest.raises(TargetError, match=rf"several outputs look like class scores .*'{chosen}'.*--output"):
        export(**source)
    assert export(**source, out="m.onnx", output=chosen).outputs == [chosen]
    assert attach("m.onnx").metadata.scores_output == chosen
    explainer = Explainer("m.onnx", preprocess={"scale": 1 / 255, "size": (8, 9) if make is keras_heads else (8, 8)})
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    prepared, _ = prepare(image, explainer.preprocessing)
    scores = run(onnx.load("m.onnx"), **{explainer.metadata.image_input: prepared[None]})[chosen]
    np.testing.assert_allclose(explainer(image).scores, scores[0], rtol=1e-5, atol=1e-6)
    cv2.imwrite("i.png", image[:, :, ::-1])
    call("attach", "m.onnx", "-o", "e.onnx")
    for model in ("m.onnx", "e.onnx"):
        preprocess = json.dumps(explainer.preprocessing.to_dict())
        (shown,) = json.loads(call("explain", model, "i.png", "--json", "--preprocess", preprocess))["images"]
        best = shown["explained"][0]
        assert (best["index"], best["score"]) == (scores[0].argmax(), pytest.approx(scores.max(), rel=1e-5))


def test_a_source_of_no_framework():
    with pytest.raises(InputError, match=r"cannot tell the framework of 'model\.bin'; give it: keras"):
        export("model.bin")
