"""The commands for servers: what they write, and what they refuse in one sentence."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from onnx_gradcam.cli import app


def call(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_triton_writes_a_repository(explained, tmp_path):
    done = call("triton", explained, "-o", tmp_path / "repository", "--name", "shapes", "--ensemble", "--max-batch", 4)
    assert done.exit_code == 0, done.output
    assert [line.split()[-1].rsplit("/", 1)[-1] for line in done.stdout.splitlines()] == [
        "shapes",
        "shapes_preprocess",
        "shapes_images",
    ]
    assert "max_batch_size: 4\n" in (tmp_path / "repository" / "shapes" / "config.pbtxt").read_text("utf-8")


def test_triton_attaches_with_labels_and_preprocessing(classifier_without_facts, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\nf\n", "utf-8")
    ensemble = ("triton", classifier_without_facts, "-o", tmp_path / "repository", "--ensemble")
    refused = call(*ensemble)
    assert refused.exit_code == 1
    assert "give it with --preprocess" in refused.stderr
    done = call(*ensemble, "--labels", names, "--preprocess", "torchvision")
    assert done.exit_code == 0, done.output
    step = tmp_path / "repository" / "plain_preprocess" / "config.pbtxt"
    assert "0.485" in step.read_text("utf-8")
    assert (tmp_path / "repository" / "plain" / "labels.txt").read_text("utf-8").split() == list("abcdef")


@pytest.fixture
def classifier_without_facts(repository, tmp_path):
    """The demo model without class names and preprocessing."""
    import onnx  # noqa: PLC0415

    proto = onnx.load(repository / "models" / "shapes.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "plain.onnx")
    return tmp_path / "plain.onnx"


def test_kserve_prints_a_manifest():
    done = call("kserve", "shapes", "s3://models/repository", "--gpus", 1)
    assert done.exit_code == 0
    assert done.stdout.startswith('apiVersion: "serving.kserve.io/v1beta1"\nkind: "InferenceService"\n')
    refused = call("kserve", "../shapes", "s3://models/repository")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "the name '../shapes' is not valid in Kubernetes" in refused.stderr


def test_serve_says_what_is_missing(monkeypatch, explained):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("server", "connections"):
        monkeypatch.delitem(sys.modules, f"onnx_gradcam.serve.{name}", raising=False)
    refused = call("serve", explained)
    assert refused.exit_code == 1
    assert "pip install '.[serve]'" in refused.stderr


@pytest.mark.serve
@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("nothing.onnx", (), "no model file for 'nothing'"),
        ("models/shapes.txt", (), "not an ONNX model"),
        ("models/shapes.onnx", ("--layer", "nowhere"), "the model has no layer 'nowhere'"),
        ("models/shapes.onnx", ("--feed", "table=1"), "the model has no other input 'table' to feed"),
        ("models/shapes.onnx", ("--port", "8081"), "have to differ"),
        ("models/shapes.onnx", ("--host", "192.0.2.1"), "cannot listen on port 8080 of 192.0.2.1"),
        ("models/shapes.onnx", ("--provider", "tpu"), "there is no execution provider 'tpu'"),
    ],
)
def test_serve_refuses_before_a_port_opens(repository, model, options, says):
    if importlib.util.find_spec("uvicorn") is None:
        pytest.skip("onnx-gradcam[serve] is not installed")
    command = [sys.executable, "-m", "onnx_gradcam", "serve", model, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, timeout=60, check=False)
    assert done.returncode == 1, done
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.serve
def test_serve_takes_no_port_that_another_server_has(repository):
    if importlib.util.find_spec("uvicorn") is None:
        pytest.skip("onnx-gradcam[serve] is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "onnx_gradcam", "serve", "models/shapes.onnx", "--grpc-port", port]
        done = subprocess.run(command, capture_output=True, text=True, cwd=repository, timeout=60, check=False)
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is already in use; choose another with --grpc-port" in done.stderr
