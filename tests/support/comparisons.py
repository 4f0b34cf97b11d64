"""Results of a comparison, made by hand, and the page of them."""

from __future__ import annotations

import numpy as np

from onnx_gradcam.evaluation.comparison import Agreement, Compared, Laid
from onnx_gradcam.evaluation.report import Report
from onnx_gradcam.evaluation.similarity import compare_maps
from onnx_gradcam.images.decoding import Placement
from onnx_gradcam.runtime.explainer import Target

EVIL = "<script>document.title='owned'</script>\"' onerror=alert(1) &amp; \u202egnp"


def spot(row: int, column: int) -> np.ndarray:
    y, x = np.mgrid[0:12, 0:16]
    return np.exp(-((y - row) ** 2 + (x - column) ** 2) / 8).astype(np.float32)


def result(path: str, shift: int, *, label: str = "tabby", native: bool = False, blank: bool = False) -> Compared:
    image = np.full((60, 80, 3), 90, np.uint8)
    first, second = spot(6, 4), spot(6, 4 + shift) * (not blank)
    placement = Placement((0, 0, 80, 60), 60, 80)
    target = Target(3, label, 0.5)
    other = None if native else Target(3, label, 0.25)
    agreement = Agreement(
        side="b",
        same_top=None if native else shift < 3,
        divergence=None if native else 0.01 * shift,
        maps=compare_maps(first, second),
        target=other,
    )
    return Compared(path, target, [agreement], image, [Laid(first, placement, target), Laid(second, placement, other)])


def page(results, sides=("a", "b"), failed=(), **options) -> str:
    report = Report({name: {"file": f"{name}.onnx", "layer": "conv"} for name in sides}, "pearson", **options)
    for one in results:
        report.add(one)
    for one in failed:
        report.fail(*one)
    return report.html()
