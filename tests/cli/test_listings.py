"""`methods`, `ops`, `doctor`, `--version`."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform

import onnx
import onnxruntime
import pytest
from support.helpers import runs_opset

import onnx_gradcam
from onnx_gradcam.autodiff.registry import ZERO, rules


def test_methods(call):
    result = call("methods")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].split() == ["method", "title", "family", "cost", "reference"]
    assert any(line.startswith("gradcam ") and "Selvaraju" in line for line in result.stdout.splitlines())
    found = json.loads(call("methods", "--json").stdout)
    assert {"method": "gradcam", "title": "Grad-CAM"}.items() <= found[0].items()
    assert sorted(found[0]) == ["cost", "family", "method", "reference", "title"]


def test_ops_say_what_the_registry_says(call):
    rows = json.loads(call("ops", "--json").stdout)
    support = {(row["domain"], row["operator"], row["index"]): row["support"] for row in rows}
    assert support["", "Conv", 0] == "rule"
    assert support["", "Conv", 1] == "rule"
    for (domain, operator, index), how in support.items():
        if how == "rule":
            assert index not in rules()[domain, operator].stops
    zeros = [key for key in ZERO if (*key, 0) in support]
    assert zeros
    assert all(support[(*key, 0)] == "zero" for key in zeros)


def test_ops_as_text(call):
    lines = call("ops").stdout.splitlines()
    (conv,) = (line for line in lines if line.startswith("Conv "))
    assert "X: rule, W: rule, B: rule" in conv
    rows = [row for row in json.loads(call("ops", "--json").stdout) if row["differentiable"]]
    served = sum(row["support"] != "none" for row in rows)
    assert lines[-1] == f"{served} of the {len(rows)} inputs that ONNX calls differentiable are served."


def test_doctor(call):
    found = json.loads(call("doctor", "--json").stdout)
    assert found["onnx_gradcam"] == onnx_gradcam.__version__
    assert found["python"] == platform.python_version()
    assert found["packages"]["onnx"] == onnx.__version__
    assert found["packages"]["onnxruntime"] == onnxruntime.__version__
    assert found["failures"] == {}
    assert found["images"] is True
    (cpu,) = (p for p in found["providers"] if p["name"] == "cpu")
    assert cpu == {"name": "cpu", "starts": True, "reason": None}
    for provider in found["providers"]:
        assert provider["starts"] is (provider["reason"] is None)
    newest, runs = onnx.defs.onnx_opset_version(), found["opsets"]["runs"]
    assert found["opsets"] == {"raised_to": 18, "newest": newest, "runs": runs}
    assert runs_opset(runs)
    assert runs == newest or not runs_opset(runs + 1)
    result = call("doctor")
    assert f"opsets: up to {newest} are understood, and this ONNX Runtime runs them up to {runs};" in result.stdout
    assert result.exit_code == 0
    assert "  cpu: starts" in result.stdout.splitlines()
    assert "images: can be read and drawn" in result.stdout


def test_doctor_without_libgl(call, monkeypatch):
    real = importlib.import_module

    def broken(name):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    result = call("doctor")
    assert result.exit_code == 0
    assert "`pip uninstall -y opencv-python && pip install opencv-python-headless`" in result.stdout
    assert "libGL.so.1" in result.stdout
    found = json.loads(call("doctor", "--json").stdout)
    assert found["images"] is False
    assert found["packages"]["cv2"] is None


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (["onnxruntime"], None),
        (["onnxruntime-gpu"], None),
        (
            ["onnxruntime", "onnxruntime-gpu"],
            (
                "onnxruntime-gpu 1.31.1 and onnxruntime 1.31.1 are installed in one environment and overwrite each "
                "other; run `pip uninstall -y onnxruntime-gpu onnxruntime && pip install onnxruntime-gpu`"
            ),
        ),
    ],
)
def test_doctor_counts_runtimes(installed, said, call, monkeypatch):
    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.31.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = json.loads(call("doctor", "--json").stdout)
    assert found["runtimes"] == dict.fromkeys(installed, "1.31.1")
    assert found["runtimes_reason"] == said
    assert ("ONNX Runtime: " in call("doctor").stdout) is (said is not None)


def test_version(call):
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"onnx-gradcam {onnx_gradcam.__version__}\n")
