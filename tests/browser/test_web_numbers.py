"""The page's numbers against the native runtime's: pixels, the model's input, scores, heatmaps, the overlay."""

from __future__ import annotations

import base64
import dataclasses
import json

import cv2
import numpy as np
import onnx
import pytest
from support.graphs import graph, placed_detector
from support.web_pages import Page

from onnx_gradcam import Explainer
from onnx_gradcam.images.decoding import prepare, read_image, resized
from onnx_gradcam.images.preprocessing import PADDING, Preprocessing
from onnx_gradcam.runtime.detections import suppressed

pytestmark = pytest.mark.browser

TOLERANCE = 1e-4
RNG = np.random.default_rng(0)

CALL = """async ([file, name, image, ...rest]) => {
  const module = await import(new URL(file, location.href).href);
  const data = Uint8Array.from(atob(image.data), c => c.charCodeAt(0));
  const found = module[name]({ ...image, data }, ...rest);
  const values = found.values ?? found.data;
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  let text = '';
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return { ...found, values: btoa(text), data: null };
}"""


@pytest.fixture(scope="module")
def page(chromium, shapes):
    with Page(chromium, shapes) as page:
        yield page


def noise(height, width, channels=3):
    """Noise beside flat areas and edges, where rounding shows."""
    image = RNG.integers(0, 256, (height, width, channels), np.uint8)
    image[: height // 3, : width // 2] = 255
    return image


def called(page, file, name, image, *rest):
    height, width, channels = image.shape
    sent = {"data": base64.b64encode(image.tobytes()).decode(), "height": height, "width": width}
    return page.tab.evaluate(CALL, [file, name, {**sent, "channels": channels}, *rest])


SIZES = [
    *((256, 256, 96, 96), (192, 192, 96, 96), (288, 384, 96, 96), (97, 500, 96, 96), (300, 200, 300, 100)),
    *((301, 200, 101, 200), (480, 640, 256, 341), (672, 224, 224, 224), (441, 147, 49, 21), (1000, 30, 3, 7)),
    *((96, 96, 224, 224), (50, 70, 256, 300), (7, 5, 224, 224), (112, 112, 224, 224), (1, 1, 30, 30)),
    *((200, 50, 100, 100), (64, 300, 96, 96), (1, 300, 20, 20), (299, 2, 224, 224), (343, 490, 49, 70)),
]


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "{}x{}-{}x{}".format(*s))
@pytest.mark.parametrize("channels", [1, 3])
def test_scaling_is_opencvs_to_the_bit(page, size, channels):
    height, width, tall, wide = size
    image = noise(height, width, channels)
    plane = image if channels == 3 else image[:, :, 0]
    found = called(page, "resizing.js", "resized", image, tall, wide)
    got = np.frombuffer(base64.b64decode(found["values"]), np.uint8).reshape(tall, wide, channels)
    np.testing.assert_array_equal(got, resized(plane, tall, wide).reshape(got.shape))


def test_scaling_from_any_size_is_opencvs(page):
    """Whole ratios that are not whole in floating point, areas with the thinnest of rims."""
    for height, width in RNG.integers(2, 120, (60, 2)):
        tall, wide = (int(side) for side in RNG.integers(1, 120, 2))
        image = noise(height, width)
        found = called(page, "resizing.js", "resized", image, tall, wide)
        got = np.frombuffer(base64.b64decode(found["values"]), np.uint8).reshape(tall, wide, 3)
        np.testing.assert_array_equal(got, resized(image, tall, wide), err_msg=f"{height, width, tall, wide}")


IMAGENET = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
WAYS = {
    "stretch": {"size": (96, 64), **IMAGENET},
    "bgr": {"size": (50, 60), "color": "bgr", "mean": (103.939, 116.779, 123.68), "layout": "NHWC"},
    "gray": {"size": (48, 48), "color": "gray", "scale": 1 / 127.5, "mean": (1.0,)},
    "crop": {"size": (96, 96), "resize": "short_crop", **IMAGENET},
    "crop to a side": {"size": (80, 60), "resize": "short_crop", "short": 97, "layout": "NHWC"},
    "oblong crop": {"size": (60, 90), "resize": "short_crop"},
    "letterbox": {"size": (96, 96), "resize": "letterbox", "scale": 1 / 255},
    "letterbox at the top left": {"size": (60, 90), "resize": "letterbox", "align": "top_left", "color": "bgr"},
    "gray letterbox of bytes": {"size": (70, 200), "resize": "letterbox", "color": "gray", "dtype": "uint8"},
    "as it is": {"resize": "none", "size": (123, 181)},
    "any size": {"color": "gray", "layout": "NHWC"},
    "bytes": {"size": (60, 60), "dtype": "uint8"},
    "signed bytes": {"size": (60, 60), "mean": (127.5,), "dtype": "int8", "color": "bgr"},
    "half precision": {"size": (60, 60), "dtype": "float16", **IMAGENET},
    "double precision": {"size": (60, 60), "dtype": "float64", **IMAGENET},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_input_is_the_native_one(page, way):
    described = Preprocessing(**WAYS[way])
    image = noise(123, 181)
    want, placement = prepare(image, described)
    ramp = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1).repeat(3, axis=2)
    plain = dataclasses.replace(described, size=None, short=None, align=None, resize="stretch", layout="NHWC")
    levels = prepare(ramp, plain)[0][:, 0]
    bits = levels.view(np.uint16) if levels.dtype == np.float16 else levels
    spec = {**json.loads(described.to_json()), "padding": PADDING, "levels": bits.tolist()}
    found = called(page, "preparing.js", "prepare", image, spec)
    assert found["shape"] == list(want.shape)
    np.testing.assert_allclose(found["box"], placement.box, rtol=1e-12)
    got = np.frombuffer(base64.b64decode(found["values"]), want.dtype).reshape(want.shape)
    np.testing.assert_array_equal(got, want)


def encoded(suffix, image, *options):
    blue_first = [2, 1, 0, *range(3, image.shape[2])] if image.shape[2] > 1 else [0]
    done, data = cv2.imencode(suffix, image[:, :, blue_first], options)
    assert done
    return data.tobytes()


def turned(jpeg: bytes, orientation: int) -> bytes:
    """With an EXIF block that says how the camera was held."""
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + b"\0\0\0\0"
    block = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + jpeg[2:]


def smooth(height, width, channels=3, rng=RNG):
    """An image that JPEG keeps well, different in each corner."""
    low = rng.integers(0, 256, (4, 5, channels), np.uint8)
    return np.ascontiguousarray(cv2.resize(low, (width, height), interpolation=cv2.INTER_CUBIC))


LOSSLESS = {
    "PNG": lambda: encoded(".png", noise(60, 83)),
    "grey PNG": lambda: encoded(".png", noise(60, 83, 1)),
    "transparent PNG": lambda: encoded(".png", noise(61, 40, 4)),
    "large PNG": lambda: encoded(".png", smooth(1200, 700)),
    "WebP": lambda: encoded(".webp", noise(60, 83), cv2.IMWRITE_WEBP_QUALITY, 101),
    "BMP": lambda: encoded(".bmp", noise(60, 83)),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_pixels_are_those_of_opencv(page, kind):
    data = LOSSLESS[kind]()
    page.choose(("image", data))
    np.testing.assert_array_equal(page.pixels(), read_image(data))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_upright(page, orientation):
    data = turned(encoded(".jpg", smooth(120, 200), cv2.IMWRITE_JPEG_QUALITY, 95), orientation)
    page.choose(("photo.jpg", data))
    got, want = page.pixels(), read_image(data)
    assert got.shape == want.shape == ((120, 200, 3) if orientation < 5 else (200, 120, 3))
    # Decoders of JPEG may differ in the last bits.
    assert np.abs(got.astype(int) - want).max() <= 2


def test_the_demo_is_explained_as_natively(page, repository):
    native = Explainer(repository / "models" / "shapes.onnx")
    for name in ("circle_and_star", "square_and_ring", "triangle_and_cross"):
        path = repository / "models" / f"{name}.png"
        first = page.choose(path)
        want = native(path)
        assert first["index"] == want.target.index
        np.testing.assert_allclose(first["scores"], want.scores, atol=TOLERANCE)
        np.testing.assert_allclose(first["heatmap"], want.heatmap, atol=TOLERANCE)
        for index, label in enumerate(native.labels):
            got = page.click(label)
            assert got["index"] == index
            np.testing.assert_allclose(got["heatmap"], native(path, target=index).heatmap, atol=TOLERANCE)


@pytest.mark.parametrize(("colormap", "opacity"), [("jet", 50), ("viridis", 80), ("bwr", 0), ("hot", 100)])
def test_what_is_shown_is_the_native_overlay(page, repository, colormap, opacity):
    path = repository / "models" / "square_and_ring.png"
    page.choose(path)
    page.click("ring")
    page.tab.select_option("#colormap", colormap)
    page.tab.get_by_label("Opacity").fill(str(opacity))
    want = Explainer(repository / "models" / "shapes.onnx")(path, target="ring").overlay(
        colormap=colormap, opacity=opacity / 100
    )
    differ = np.abs(page.canvas().astype(int) - want.pixels)
    # A colour may be the next one where a value lies between two of the 256.
    assert np.quantile(differ, 0.999) <= 1
    assert differ.max() <= 12


CONV = "h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p)"
GRADED = {"scale": 1 / 64, "mean": (1.5,)}
MODELS = {
    "a single logit": (CONV + " y = Gemm(f, v)", {"outputs": "float[N,1] y", "v": (6, 1)}, {}),
    "a single probability": (CONV + " z = Gemm(f, v) y = Sigmoid(z)", {"outputs": "float[N,1] y", "v": (6, 1)}, {}),
    "a batch of three": (
        CONV + " y = Gemm(f, v)",
        {"inputs": "float[3,3,8,8] x", "outputs": "float[3,4] y", "v": (6, 4)},
        {},
    ),
    "images of any size": (CONV + " y = Gemm(f, v)", {"inputs": "float[N,3,H,W] x", "v": (6, 4)}, {}),
    "a crop": (
        CONV + " y = Gemm(f, v)",
        {"inputs": "float[N,3,H,W] x", "v": (6, 4)},
        {"size": (12, 20), "resize": "short_crop"},
    ),
    "a letterbox": (
        CONV + " y = Gemm(f, v)",
        {"inputs": "float[N,3,20,20] x", "v": (6, 4)},
        {"resize": "letterbox"},
    ),
    "bytes": (
        "c = Cast<to=1>(b) x = Div(c, s) " + CONV + " y = Gemm(f, v)",
        {"inputs": "uint8[N,3,8,8] b", "v": (6, 4), "s": np.float32(64)},
        {"scale": 1, "mean": None},
    ),
    "channels last": (
        "x = Transpose<perm=[0,3,1,2]>(b) " + CONV + " y = Gemm(f, v)",
        {"inputs": "float[N,9,7,3] b", "v": (6, 4)},
        {"color": "bgr", "layout": "NHWC"},
    ),
    "half precision": (
        CONV + " y = Gemm(f, v)",
        {"inputs": "float16[N,3,8,8] x", "outputs": "float16[N,4] y", "v": (6, 4), "dtype": np.float16},
        {},
    ),
    "logarithms": (CONV + " z = Gemm(f, v) y = LogSoftmax(z)", {"v": (6, 4)}, {}),
    # ONNX Runtime computes this one wrongly unless an optimisation is off.
    "a padded pool": (
        "a = Neg(x) d = Pad(a, pads) q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d) "
        + CONV.replace("(x, w)", "(q, w)")
        + " y = Gemm(f, v)",
        {"v": (6, 4), "pads": [0, 0, 1, 1, 0, 0, 1, 1]},
        {"mean": (0.0,)},
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_many_kinds(chromium, publish, tmp_path, kind):
    body, parts, preprocessing = MODELS[kind]
    path = tmp_path / "m.onnx"
    onnx.save(graph(body, **{"w": (6, 3, 3, 3), **parts}), path)
    described = {key: value for key, value in {**GRADED, **preprocessing}.items() if value is not None}
    native = Explainer(path, preprocess=described)
    image = smooth(23, 31)
    with Page(chromium, publish(path, preprocess=described)) as page:
        got = page.choose(("image.png", encoded(".png", image)))
        tolerance = 5e-3 if "half" in kind else TOLERANCE
        for index in range(len(native(image).scores)):
            want = native(image, target=index)
            np.testing.assert_allclose(got["scores"], want.scores, atol=tolerance)
            got = page.click(f"class {index}")
            assert got["index"] == index
            np.testing.assert_allclose(got["heatmap"], want.heatmap, atol=tolerance)
        assert page.heard == []


def check_boxes(seen, native, image):
    """The boxes of the page are those of the native runtime, in pixels of the image."""
    want = native.boxes(image)
    assert [(b["n"], b["index"], b["target"]) for b in seen["boxes"]] == [(b.n, b.index, b.target.index) for b in want]
    scores = [b["score"] for b in seen["boxes"]]
    np.testing.assert_allclose(scores, [b.target.score for b in want], atol=1e-5)
    np.testing.assert_allclose([b["xyxy"] for b in seen["boxes"]], [b.xyxy for b in want], atol=0.01)
    return want


WAYS_TO_FIT = {
    "letterbox": {"resize": "letterbox"},
    "letterbox at the top left": {"resize": "letterbox", "align": "top_left"},
    "stretch": {"resize": "stretch"},
    "crop": {"resize": "short_crop"},
}


@pytest.mark.parametrize("way", WAYS_TO_FIT)
@pytest.mark.parametrize("batch", [None, 2])
def test_the_boxes_of_a_detector_are_the_native_ones(chromium, publish, tmp_path, way, batch):
    proto = placed_detector(5)
    sizes = next(one for one in proto.graph.initializer if one.name == "B")
    # Larger boxes overlap more.
    sizes.CopyFrom(onnx.numpy_helper.from_array(8 * onnx.numpy_helper.to_array(sizes), "B"))
    if batch is not None:
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(proto, tmp_path / "m.onnx")
    described = {"size": [32, 32], "scale": 1 / 255, "mean": [0.45], **WAYS_TO_FIT[way]}
    native = Explainer(tmp_path / "m.onnx", preprocess=described)
    image = smooth(41, 67, rng=np.random.default_rng(2))
    with Page(chromium, publish(tmp_path / "m.onnx", preprocess=described)) as page:
        seen = page.choose(("image.png", encoded(".png", image)))
        want = check_boxes(seen, native, image)
        assert 10 < len(want) < 64, "some are suppressed"
        scores, corners = np.array([box.target.score for box in want]), np.array([box.xyxy for box in want])
        assert len(suppressed(scores, corners, np.zeros(len(want)), 0.45)) < len(want), "boxes of two classes overlap"
        for box in (want[0], want[1], want[-1]):
            if box.n:
                seen = page.click_box(box.n, "#classes button")
            assert (seen["chosen"], seen["index"]) == (box.n, box.target.index)
            explained = native(image, box.target.index, box=box)
            np.testing.assert_allclose(seen["heatmap"], explained.heatmap, atol=TOLERANCE)
        assert page.heard == []


@pytest.mark.real
def test_nanodet_on_photographs(chromium, publish, real_data):
    path = real_data / "models" / "onnx_native" / "nanodet_m_416_coco.onnx"
    described = {"size": [416, 416], "resize": "letterbox", "color": "bgr", "scale": 1.0}
    described |= {"mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395]}
    native = Explainer(path, preprocess=described)
    photos = [real_data / "photos" / "voc" / f"2007_{name}.jpg" for name in ("000033", "000762", "000243")]
    with Page(chromium, publish(path, preprocess=described)) as page:
        for photo in photos:
            seen = page.choose(photo)
            decoded = page.pixels()
            boxes = check_boxes(seen, native, decoded)
            for box in boxes[:3]:
                seen = page.click_box(box.n, "#classes button") if box.n else seen
                want = native(decoded, box.target.index, box=box)
                np.testing.assert_allclose(seen["heatmap"], want.heatmap, atol=TOLERANCE)


@pytest.mark.real
def test_mobilenet_on_photographs(chromium, publish, real_data):
    path = real_data / "models" / "onnx_derived" / "mobilenet_v2_imagenet_fp32_w8rounded.onnx"
    native = Explainer(path, preprocess="torchvision")
    photos = sorted(p for p in (real_data / "photos").rglob("*.jpg"))[::40][:3]
    worst = 0.0
    with Page(chromium, publish(path, preprocess={"resize": "short_crop", "size": [224, 224], **IMAGENET})) as page:
        for photo in photos:
            got = page.choose(photo)
            decoded = page.pixels()
            for _ in range(2):
                want = native(decoded, target=got["index"])
                worst = max(worst, np.abs(got["heatmap"] - want.heatmap).max())
                np.testing.assert_allclose(got["heatmap"], want.heatmap, atol=TOLERANCE)
                np.testing.assert_allclose(got["scores"], want.scores, atol=1e-3)
                got = page.click(f"class {want.top(2)[1].index}")
            assert np.abs(decoded.astype(int) - read_image(photo)).mean() < 0.5
    assert worst > 0
