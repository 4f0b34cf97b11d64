"""The embedded demo: what the drawing code promises, and that the stored files belong together."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

MODELS = Path(__file__).parents[1] / "models"
EXAMPLES = json.loads((MODELS / "boxes.json").read_text())


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, MODELS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw = load_script("draw_shapes")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(MODELS / "shapes.onnx")


def read(name: str, interpolation: int) -> np.ndarray:
    """An example image as shapes.json says it must be fed."""
    options = json.loads((MODELS / "shapes.json").read_text())
    pixels = cv2.cvtColor(cv2.imread(str(MODELS / name)), cv2.COLOR_BGR2RGB)
    resized = cv2.resize(pixels, options["size"], interpolation=interpolation).astype(np.float32)
    image = (resized * np.float32(options["scale"]) - np.float32(options["mean"])) / np.float32(options["std"])
    return image.transpose(2, 0, 1)[None]


def closed_form(model: onnx.ModelProto, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[N, 6]` and relu(sum_k W_ck A_k) `[N, 6, 12, 12]`, computed beside the package."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    maps = [node.output[0] for node in model.graph.node if node.op_type == "Relu"][-1]
    exposed.graph.output.append(onnx.helper.make_empty_tensor_value_info(maps))
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, activations = session.run(["logits", maps], {"image": images})
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    weights = onnx.numpy_helper.to_array(head)
    return logits, np.maximum(np.einsum("ck,nkhw->nchw", weights, activations), 0)


def localization(cam: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> tuple[bool, float]:
    """Whether the maximum of the map, resized to the image, is in the box, and the share of the map inside."""
    heatmap = cv2.resize(cam, size, interpolation=cv2.INTER_LINEAR)
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    x0, y0, x1, y1 = box
    return x0 <= x < x1 and y0 <= y < y1, float(heatmap[y0:y1, x0:x1].sum() / heatmap.sum())


def test_the_same_seed_draws_the_same_images():
    first, again, other = (draw.draw_images(seed, 3) for seed in (7, 7, 8))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        assert a.shapes == b.shapes
    assert any((a.pixels != c.pixels).any() for a, c in zip(first, other, strict=True))


@pytest.mark.parametrize("index", range(6))
def test_the_box_is_tight_around_the_shape(index, monkeypatch):
    """Images of one seed that differ only in the shape's colour differ exactly within its box."""
    monkeypatch.setattr(draw, "_background", lambda _rng, side: np.full((side, side, 3), 100, np.float32))

    def drawn(seed, colour):
        monkeypatch.setattr(draw, "_colours", lambda _rng, count: np.full((count, 3), colour, np.float32))
        return draw.draw_image(np.random.default_rng(seed), [index])

    for seed in range(5):
        dark, bright = drawn(seed, 0), drawn(seed, 200)
        assert dark.shapes == bright.shapes
        # Half of the difference in colour: where the edge pixel is half covered.
        solid = np.abs(dark.pixels.astype(int) - bright.pixels).max(axis=2) > 100
        columns, rows = np.flatnonzero(solid.any(axis=0)), np.flatnonzero(solid.any(axis=1))
        tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(dark.shapes[0].box, tight, atol=1)


def test_shapes_are_of_different_classes_inside_the_image_and_keep_apart():
    images = draw.draw_images(3, 200, least=2, most=3)
    for image in images:
        indices = [shape.index for shape in image.shapes]
        assert len(set(indices)) == len(indices)
        for shape in image.shapes:
            x0, y0, x1, y1 = shape.box
            assert 0 <= x0 < x1 <= 96
            assert 0 <= y0 < y1 <= 96
    assert sum(len(image.shapes) >= 2 for image in images) >= 198
    counts = np.bincount([shape.index for image in images for shape in image.shapes], minlength=6)
    assert counts.min() > 0.6 * counts.max()


def test_colour_says_nothing_about_the_class():
    """The mean colour at the boxes' centres differs between classes by no more than chance lets it."""
    by_class = [[] for _ in draw.LABELS]
    for image in draw.draw_images(4, 900, most=1):
        for shape in image.shapes:
            x0, y0, x1, y1 = shape.box
            if draw.LABELS[shape.index] != "ring":  # its centre is the background
                by_class[shape.index].append(image.pixels[(y0 + y1) // 2, (x0 + x1) // 2])
    means = np.array([np.mean(colours, axis=0) for colours in by_class if colours])
    # About 150 images a class with a standard deviation of about 75: 6 for one mean; 30 is beyond chance.
    assert np.ptp(means, axis=0).max() < 30


def test_the_model_file_is_small_plain_and_says_what_it_needs(model):
    assert (MODELS / "shapes.onnx").stat().st_size < 1_000_000
    assert sum(file.stat().st_size for file in MODELS.iterdir() if file.is_file()) < 3_500_000
    assert model.ir_version <= 10
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    assert model.graph.node[-1].op_type == "Gemm"
    props = {prop.key: prop.value for prop in model.metadata_props}
    labels = json.loads(props["onnx_gradcam.labels"])
    assert labels == (MODELS / "shapes.txt").read_text().split() == list(draw.LABELS)
    assert json.loads(props["onnx_gradcam.preprocessing"]) == json.loads((MODELS / "shapes.json").read_text())
    assert props["onnx_gradcam.probabilities"] == "sigmoid"
    keys = {prop.key for node in model.graph.node for prop in node.metadata_props}
    assert keys <= {"pkg.torch.onnx.name_scopes"}


@pytest.mark.parametrize("interpolation", [cv2.INTER_LINEAR, cv2.INTER_AREA])
@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_shape_is_found_and_its_map_lies_on_it(model, name, interpolation):
    """Its maximum is in the asked shape's box, and more than 70 % of it, as the first image of the README shows."""
    logits, cams = closed_form(model, read(name, interpolation))
    expected = sorted(shape["index"] for shape in EXAMPLES[name])
    assert np.flatnonzero(logits[0] > 0).tolist() == expected

    height, width = cv2.imread(str(MODELS / name)).shape[:2]
    for shape in EXAMPLES[name]:
        assert shape["label"] == draw.LABELS[shape["index"]]
        hit, inside = localization(cams[0, shape["index"]], (width, height), shape["box"])
        assert hit
        assert inside > 0.7


@pytest.mark.parametrize(("style", "right"), [("PLAIN", 0.95), ("CROWDED", 0.9)])
def test_fresh_images_are_classified_and_their_maps_lie_on_the_shapes(model, style, right):
    """A sample of the figures that README.md states: 300 images, all answers right in over 95 % of plain ones."""
    images = draw.draw_images(20_000, 300, style=getattr(draw, style))
    batch = (np.stack([p.pixels for p in images]).astype(np.float32) / 255 - 0.5) / 0.25
    logits, cams = closed_form(model, np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
    wanted = np.zeros(logits.shape, bool)
    for row, image in zip(wanted, images, strict=True):
        row[[shape.index for shape in image.shapes]] = True
    assert ((logits > 0) == wanted).all(axis=1).mean() > right
    located = [
        localization(maps[shape.index], (96, 96), shape.box)
        for maps, image in zip(cams, images, strict=True)
        for shape in image.shapes
    ]
    hit, inside = np.mean(located, axis=0)
    assert hit > 0.95
    assert inside > 0.7


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_the_pytorch_file_gives_the_same_logits(model):
    torch = pytest.importorskip("torch")
    network = torch.export.load(MODELS / "shapes.pt2").module()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = np.random.default_rng(batch).normal(0, 1, (batch, 3, 96, 96)).astype(np.float32)
        (logits,) = session.run(["logits"], {"image": images})
        with torch.inference_mode():
            np.testing.assert_allclose(logits, network(torch.from_numpy(images)).numpy(), atol=1e-4, rtol=1e-5)
