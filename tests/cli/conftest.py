"""A small classifier, small images and a way to run commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from onnx_gradcam.cli import app

LABELS = ["red", "green", "blue"]
PREPROCESS = '{"scale": 0.00392156862745098}'


def small_classifier(*, opset: int = 18, batch: int | str = "N", external: bool = False) -> onnx.ModelProto:
    """Conv, Relu, pooling, Gemm, Softmax over images of 16x16: class 0 is red, 1 green, 2 blue."""
    rng = np.random.default_rng(7)
    kernel = 0.002 * rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    for channel in range(3):
        kernel[channel, channel, 1, 1] += 1.0
    dense = 0.02 * rng.standard_normal((4, 3)).astype(np.float32)
    dense[:3] += 8 * np.eye(3, dtype=np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["maps"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["active"], "relu"),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "dense"], ["logits"], "gemm"),
        helper.make_node("Softmax", ["logits"], ["scores"], "softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(dense, "dense")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, producer_name="tests")


def two_squares(left: tuple[int, int, int], right: tuple[int, int, int]) -> np.ndarray:
    """A grey image of 32x32 RGB with one coloured square at the upper left and one at the lower right."""
    image = np.full((32, 32, 3), 40, np.uint8)
    image[4:12, 4:12] = left
    image[20:28, 20:28] = right
    return image


@pytest.fixture(scope="session")
def classifier(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(small_classifier(), path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def labels(here) -> Path:
    path = here / "names.txt"
    path.write_text("\n".join(LABELS), "utf-8")
    return path


@pytest.fixture
def image(here) -> Path:
    """Red at the upper left, weaker blue at the lower right."""
    path = here / "squares.png"
    cv2.imwrite(str(path), two_squares((255, 40, 40), (40, 40, 150))[:, :, ::-1])
    return path


@pytest.fixture
def images(here) -> Path:
    """A folder of three images, two of the same stem, and a file that is none."""
    folder = here / "photos"
    folder.mkdir()
    for name, colour in (("a.png", (255, 0, 0)), ("a.bmp", (0, 255, 0)), ("b.png", (0, 0, 255))):
        cv2.imwrite(str(folder / name), two_squares(colour, (40, 40, 40))[:, :, ::-1])
    (folder / "notes.txt").write_text("no image", "utf-8")
    return folder


@pytest.fixture
def call(here) -> Callable:
    """Run a command in an empty folder: `call("inspect", path)`."""

    def run(*arguments: object, stdin: bytes | None = None):
        return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)

    return run


@pytest.fixture
def explain(call, classifier) -> Callable:
    """Run `explain` on the small classifier, with the right preprocessing unless the test says another."""

    def run(*arguments: object, model: object = None, stdin: bytes | None = None):
        return call("explain", model or classifier, "--preprocess", PREPROCESS, *arguments, stdin=stdin)

    return run


def refused(result, code: int = 1) -> str:
    """The one sentence of a refusal."""
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    if code == 1:
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
    return result.stderr
