"""Draws `docs/images/methods.jpg`, what every method makes of one picture: `python docs/gallery.py`.

The demo model and one of its own pictures, explained for one of the two shapes in it.
"""

from __future__ import annotations

from pathlib import Path

from onnx_gradcam import Explainer
from onnx_gradcam.methods.registry import methods
from onnx_gradcam.runtime.explanation import Picture
from onnx_gradcam.runtime.image import resized
from onnx_gradcam.runtime.render import sheet

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
WIDTH = 1100
PICTURE, CLASS = MODELS / "circle_and_star.png", "star"


def gallery() -> Picture:
    """One panel a method, in the order of the registry."""
    panels = []
    for name, method in methods().items():
        if "attentions" in method.needs:
            continue  # the demo model is no transformer
        explainer = Explainer(MODELS / "shapes.onnx", method=name)
        explanation = explainer(PICTURE, target=CLASS)
        panels.append((name, explanation.heatmap_on_image()))
    whole = sheet(explanation.image, panels, row=7)
    height, width = whole.shape[:2]
    return Picture(resized(whole, round(height * WIDTH / width), WIDTH))


if __name__ == "__main__":
    gallery().save(HERE / "images" / "methods.jpg")
