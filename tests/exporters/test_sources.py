"""Which reader a file gets; the readers have tests of their own."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnx_gradcam.errors import ExplainError
from onnx_gradcam.exporters.sources import as_onnx


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
