"""Results of a comparison, made by hand, and the page of them."""

from __future__ import annotations

import numpy as np

from onnx_gradcam.errors import InputError
from onnx_gradcam.evaluation.comparison import Comparison, Gates
from onnx_gradcam.evaluation.pairing import Agreement, Compared, Laid
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
        top=other if shift < 3 else None if native else Target(7, "tiger cat", 0.5),
        same_top=None if native else shift < 3,
        divergence=None if native else 0.01 * shift,
        maps=compare_maps(first, second),
        target=other,
    )
    return Compared(
        path, target, target, [agreement], image, [Laid(first, placement, target), Laid(second, placement, other)]
    )


def comparison(results, sides=("a", "b"), failed=(), limit=None) -> Comparison:
    return Comparison(
        sides={name: {"file": f"{name}.onnx", "layer": "conv"} for name in sides},
        images=[one.path for one in results] + [path for path, _ in failed],
        results=iter([*results, *(InputError(reason) for _, reason in failed)]),
        gates=Gates(mean=limit),
    )


def page(results, **options) -> str:
    return comparison(results, **options).html()
