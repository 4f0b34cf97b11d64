"""Which reader a file gets; the readers have tests of their own."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnx_gradcam.errors import ExplainError, InputError
from onnx_gradcam.exporters.sources import as_onnx, export, framework_of


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


def test_a_source_of_no_framework():
    with pytest.raises(InputError, match=r"cannot tell the framework of 'model\.bin'; give it: keras"):
        export("model.bin")
