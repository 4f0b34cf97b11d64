"""Draws images of the documentation from the demo model: `python docs/gallery.py` after a method was added.

`images/methods.jpg` is what every method makes of one image; `images/tasks.jpg` is the demo network as a segmenter
and as a detector, its linear layer put at every place.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper, numpy_helper

from onnx_gradcam import Explainer
from onnx_gradcam.editor.methods.catalogue import methods
from onnx_gradcam.images.decoding import resized
from onnx_gradcam.images.drawing import sheet
from onnx_gradcam.runtime.explanation import Drawing

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
WIDTH = 1100
IMAGE, CLASS = MODELS / "circle_and_star.png", "star"


def method_gallery() -> Drawing:
    """One panel a method, in the order of the registry."""
    panels = []
    for name, method in ((n, m) for n, m in methods().items() if not m.of_boxes):
        if method.differentiates("attention"):
            continue  # the demo model is no transformer
        explainer = Explainer(MODELS / "shapes.onnx", method=name)
        explanation = explainer(IMAGE, target=CLASS)
        panels.append((name, explanation.heatmap_on_image()))
    whole = sheet(explanation.image, panels, row=7)
    height, width = whole.shape[:2]
    return Drawing(resized(whole, round(height * WIDTH / width), WIDTH))


def task_gallery() -> Drawing:
    """Segmentation and detection, by HiResCAM and by Grad-CAM."""
    panels = []
    for task in ("segmentation", "detection"):
        for method in ("hirescam", "gradcam"):
            explanation = Explainer(place_by_place(task), task=task, method=method)(IMAGE, target=CLASS)
            panels.append((f"{task}, {method}", explanation.heatmap_on_image()))
    return Drawing(sheet(explanation.image, panels, row=4))


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
    method_gallery().save(HERE / "images" / "methods.jpg")
    task_gallery().save(HERE / "images" / "tasks.jpg")
