"""Draws images of the documentation from the demo model: `python docs/gallery.py` after a method was added.

`images/demo.png` is the first image of the README and `method_grid.jpg` a sheet of several methods; `styles.jpg` is one
heatmap in every style; `methods.jpg` is what every method makes of one image; `tasks.jpg` is the demo network as a
segmenter and as a detector, its linear layer put at every place; `resizes.png` is what each way of resizing does.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onnx_gradcam import Explainer, method_sheet
from onnx_gradcam.editor.methods.catalogue import methods
from onnx_gradcam.images.decoding import prepare, read_image, resized
from onnx_gradcam.images.preprocessing import Preprocessing
from onnx_gradcam.runtime.explanation import Drawing

Array = npt.NDArray[np.uint8]

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
WIDTH, GAP, LINE = 1104, 12, 26
"""The width of the grids in pixels. The site shows them 736 wide, where the names are as large as small print."""

IMAGE, CLASS = MODELS / "circle_and_star.png", "star"


def demo() -> Drawing:
    """Both shapes of the image, as the README's first command draws them."""
    return Explainer(MODELS / "shapes.onnx")(IMAGE, target=["circle", "star"]).sheet()


def method_grid() -> Drawing:
    """Three methods and two classes on one sheet."""
    names = ("gradcam", "layercam", "eigencam")
    return method_sheet(
        {n: Explainer(MODELS / "shapes.onnx", method=n)(IMAGE, target=[CLASS, "circle"]) for n in names}
    )


def style_gallery() -> Drawing:
    """The same heatmap in every style that can be printed."""
    explanation = Explainer(MODELS / "shapes.onnx")(IMAGE, target=CLASS)
    styles = ("overlay", "mask", "contour", "box", "signed", "grey")
    drawn = [(style, explanation.overlay(style=style).pixels) for style in styles]
    return grid([("photo", explanation.image), *drawn], columns=4)


def method_gallery() -> Drawing:
    """One panel a method, in the order of the registry, each in its own style."""
    panels = []
    for name, method in ((n, m) for n, m in methods().items() if not m.of_boxes):
        if method.of_attention:
            continue  # the demo model is no transformer
        explainer = Explainer(MODELS / "shapes.onnx", method=name)
        explanation = explainer(IMAGE, target=CLASS)
        panels.append((name, explanation.overlay().pixels))
    return grid([("photo", explanation.image), *panels])


def grid(panels: list[tuple[str, Array]], columns: int = 5) -> Drawing:
    """Square panels, each under its name."""
    tiles, cell = [], WIDTH // columns - GAP
    for name, panel in panels:
        tile = np.full((cell + LINE + GAP, cell + GAP, 3), 255, np.uint8)
        tile[LINE : LINE + cell, :cell] = resized(panel, cell, cell)
        scale = min(0.55, 0.55 * cell / cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.55, 1)[0][0])
        cv2.putText(tile, name, (0, LINE - 8), cv2.FONT_HERSHEY_SIMPLEX, scale, (32, 32, 32), 1, cv2.LINE_AA)
        tiles.append(tile)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return Drawing(np.vstack([np.hstack(tiles[at : at + columns]) for at in range(0, len(tiles), columns)]))


def task_gallery() -> Drawing:
    """Segmentation and detection, by HiResCAM and by Grad-CAM."""
    panels = []
    for task in ("segmentation", "detection"):
        for method in ("hirescam", "gradcam"):
            explanation = Explainer(place_by_place(task), task=task, method=method)(IMAGE, target=CLASS)
            panels.append((f"{task}, {method}", explanation.overlay(style="overlay").pixels))
    return grid([("photo", explanation.image), *panels])


def resize_gallery() -> Drawing:
    """A wide image, and the input that each way of resizing makes of it."""
    image = read_image(IMAGE)[40:200]
    ways = {
        "stretch": Preprocessing(size=(96, 96)),
        "short_crop": Preprocessing(size=(96, 96), resize="short_crop", short=110),
        "letterbox": Preprocessing(size=(96, 96), resize="letterbox"),
        "letterbox, top_left": Preprocessing(size=(96, 96), resize="letterbox", align="top_left"),
    }
    height, gap = len(image), 12
    parts = [image, *(resized(np.moveaxis(prepare(image, way)[0], 0, 2), height, height) for way in ways.values())]
    paper = np.full((height + 24, sum(p.shape[1] + gap for p in parts) - gap, 3), 255, np.uint8)
    left = 0
    for name, part in zip(["the image", *ways], parts, strict=True):
        paper[24:, left : left + part.shape[1]] = part
        cv2.putText(paper, name, (left, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
        left += part.shape[1] + gap
    return Drawing(paper)


def place_by_place(task: str) -> onnx.ModelProto:
    """The demo network without its pooling: a map for each class, or a score for each box and class."""
    model = onnx.load(MODELS / "shapes.onnx")
    graph = model.graph
    (gemm,) = (node for node in graph.node if node.op_type == "Gemm")
    (pool,) = (node for node in graph.node if node.op_type in {"GlobalAveragePool", "ReduceMean"})
    (weight,) = (numpy_helper.to_array(w) for w in graph.initializer if w.name == gemm.input[1])
    maps = pool.input[0]
    while graph.node[-1].output[0] != maps:
        graph.node.pop()
    graph.initializer.append(numpy_helper.from_array(weight.reshape(*weight.shape, 1, 1), "weight at every place"))
    graph.node.append(helper.make_node("Conv", [maps, "weight at every place", gemm.input[2]], ["class_maps"]))
    name, shape = "class_maps", ["batch", len(weight), 12, 12]
    if task == "detection":
        graph.initializer.append(helper.make_tensor("flat", onnx.TensorProto.INT64, [3], [0, 144, len(weight)]))
        graph.node.append(helper.make_node("Transpose", [name], ["last"], perm=[0, 2, 3, 1]))
        graph.node.append(helper.make_node("Reshape", ["last", "flat"], ["boxes"]))
        name, shape = "boxes", ["batch", 144, len(weight)]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return model


if __name__ == "__main__":
    images = HERE / "images"
    demo().save(images / "demo.png")
    method_grid().save(images / "method_grid.jpg")
    style_gallery().save(images / "styles.jpg")
    method_gallery().save(images / "methods.jpg")
    task_gallery().save(images / "tasks.jpg")
    resize_gallery().save(images / "resizes.png")
