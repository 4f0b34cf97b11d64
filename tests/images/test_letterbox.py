"""Letterboxed images against the two libraries' arithmetic, and their heatmaps back on the image."""

from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import pytest
from support.graphs import graph
from typer.testing import CliRunner

from onnx_gradcam import Explainer
from onnx_gradcam.cli import app
from onnx_gradcam.errors import InputError
from onnx_gradcam.images.decoding import Placement, prepare
from onnx_gradcam.images.preprocessing import PRESETS, Preprocessing, parse_preprocessing

RNG = np.random.default_rng(0)
SIZES = [(90, 160), (160, 90), (100, 100), (64, 64), (128, 128), (7, 5), (63, 127), (75, 333), (301, 40)]
INPUTS = [(64, 64), (64, 96), (33, 31)]
SPOT = (slice(36, 48), slice(84, 108))
"""Rows and columns of the red square of `photo`."""
LETTERBOX = {"resize": "letterbox", "scale": 1 / 255}


def ultralytics(image, size):
    """The arithmetic of `LetterBox(auto=False)`, written from its description."""
    factor = min(size[0] / image.shape[0], size[1] / image.shape[1])
    wide, tall = round(image.shape[1] * factor), round(image.shape[0] * factor)
    down, across = (size[0] - tall) / 2, (size[1] - wide) / 2
    if image.shape[:2] != (tall, wide):
        image = cv2.resize(image, (wide, tall), interpolation=cv2.INTER_LINEAR)
    sides = round(down - 0.1), round(down + 0.1), round(across - 0.1), round(across + 0.1)
    return cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=(114, 114, 114))


def yolox(image, size):
    """The arithmetic of `preproc`, written from its description."""
    factor = min(size[0] / image.shape[0], size[1] / image.shape[1])
    tall, wide = int(image.shape[0] * factor), int(image.shape[1] * factor)
    canvas = np.full((*size, 3), 114, np.uint8)
    canvas[:tall, :wide] = cv2.resize(image, (wide, tall), interpolation=cv2.INTER_LINEAR)
    return canvas


@pytest.mark.parametrize("size", INPUTS)
@pytest.mark.parametrize("image", SIZES)
@pytest.mark.parametrize(("align", "library"), [(None, ultralytics), ("center", ultralytics), ("top_left", yolox)])
def test_the_input_is_the_librarys_to_the_bit(image, size, align, library):
    pixels = RNG.integers(0, 256, (*image, 3), np.uint8)
    described = Preprocessing(size=size, resize="letterbox", align=align, layout="NHWC", dtype="uint8")
    np.testing.assert_array_equal(prepare(pixels, described)[0], library(pixels, size))


def test_gray():
    pixels = RNG.integers(0, 256, (50, 80, 3), np.uint8)
    values, _ = prepare(pixels, Preprocessing(size=(40, 40), resize="letterbox", color="gray"))
    assert values.shape == (1, 40, 40)
    assert values[0, 0].tolist() == [114] * 40


@pytest.mark.parametrize(
    ("align", "image", "box"),
    [
        # 120x60 to 64x32 (a factor of 1.875), 16 rows of padding above and below: 30 pixels of the image.
        (None, (60, 120), (0, -30, 120, 90)),
        ("top_left", (60, 120), (0, 0, 120, 120)),
        ("center", (120, 60), (-30, 0, 90, 120)),
        ("center", (64, 64), (0, 0, 64, 64)),
    ],
)
def test_the_box_is_larger_than_the_image(align, image, box):
    _, placement = prepare(
        np.zeros((*image, 3), np.uint8), Preprocessing(size=(64, 64), resize="letterbox", align=align)
    )
    assert placement == Placement(box, *image)


def test_refusals():
    with pytest.raises(InputError, match="needs the size of the input"):
        prepare(np.zeros((4, 4, 3), np.uint8), Preprocessing(resize="letterbox"))
    with pytest.raises(InputError, match=r"1x9000 .* too narrow .* would make it 0x64"):
        prepare(np.zeros((1, 9000, 3), np.uint8), Preprocessing(size=(64, 64), resize="letterbox"))
    with pytest.raises(InputError, match='"align" belongs to "resize": "letterbox", but "resize" is "stretch"'):
        parse_preprocessing({"align": "center"})
    with pytest.raises(InputError, match="\"align\" cannot be 'top-left'; did you mean 'top_left'"):
        parse_preprocessing({"resize": "letterbox", "align": "top-left"})


def test_json_and_presets():
    described = Preprocessing(size=(64, 64), resize="letterbox", align="top_left")
    assert Preprocessing.from_json(described.to_json()) == described
    assert PRESETS["ultralytics"].value_range() == (0, 1)
    assert (PRESETS["yolox"].align, PRESETS["yolox"].color, PRESETS["yolox"].value_range()) == (
        "top_left",
        "bgr",
        (0, 255),
    )
    assert PRESETS["yolox"].fitted().size == (640, 640)


@pytest.fixture
def model(tmp_path):
    """Its activation maps are the red above the green of each pixel; so is its heatmap."""
    weights = {"w": np.array([[[[1.0]], [[-1.0]], [[0.0]]]], np.float32), "v": np.array([[1.0, -1.0]], np.float32)}
    path = tmp_path / "red.onnx"
    body = "h = Conv(x, w) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v)"
    onnx.save(graph(body, inputs="float[N,3,64,64] x", outputs="float[N,2] y", **weights), path)
    return path


@pytest.fixture
def photo():
    image = np.full((60, 120, 3), 90, np.uint8)
    image[SPOT] = (250, 20, 20)
    return image


@pytest.mark.parametrize("align", [None, "top_left"])
class TestHeatmapOnTheImage:
    def explained(self, model, photo, align, **choices):
        return Explainer(model, preprocess={**LETTERBOX, "align": align}, **choices)(photo, target=0)

    def test_it_is_where_the_image_has_it(self, model, photo, align):
        explanation = self.explained(model, photo, align)
        assert explanation.heatmap.shape == (64, 64)
        laid = explanation.heatmap_on_image()
        assert laid.shape == photo.shape[:2]
        inside = np.zeros(laid.shape, bool)
        inside[SPOT] = True
        assert laid[37:47, 86:106].min() > 0.7
        assert laid[~cv2.dilate(inside.astype(np.uint8), np.ones((7, 7))).astype(bool)].max() < 0.05
        x0, y0, x1, y1 = explanation.box()
        assert np.abs(np.array([x0, y0, x1, y1]) - [84, 36, 108, 48]).max() <= 1

    def test_overlays_keep_the_size_of_the_image(self, model, photo, align):
        explanation = self.explained(model, photo, align)
        drawn = explanation.overlay().pixels.astype(int)
        assert drawn.shape == photo.shape
        # The hot end of the colour map is on the square, and the cold end everywhere else.
        far = drawn[5, 5]
        assert np.abs(drawn[42, 96] - far).max() > 60
        assert np.abs(drawn[42, 20] - far).max() <= 2

    def test_a_librarys_overlay_is_drawn_in_place(self, model, photo, align):
        for preset in ("pytorch-grad-cam", "keras-io", "torch-cam"):
            drawn = self.explained(model, photo, align).drawn_by(preset).astype(int)
            assert drawn.shape == photo.shape
            rows, columns = np.nonzero(np.abs(drawn - drawn[5, 5]).max(axis=2) > 60)
            edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(edges - [84, 36, 108, 48]).max() <= 3, (preset, edges)


def test_on_the_command_line(model, photo, tmp_path):
    image, out = tmp_path / "photo.png", tmp_path / "out.png"
    cv2.imwrite(str(image), photo[:, :, ::-1])
    arguments = ["explain", str(model), str(image), "-o", str(out), "--preprocess", json.dumps(LETTERBOX)]
    result = CliRunner().invoke(app, [*arguments, "--target", "0", "--style", "box", "--json"])
    assert result.exit_code == 0, result.output
    box = json.loads(result.stdout)["images"][0]["explained"][0]["box"]
    assert np.abs(np.array(box) - [84, 36, 108, 48]).max() <= 1
    assert out.exists()
