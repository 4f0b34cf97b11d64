"""Presets: what other libraries understand by a method, from the score to the heatmap, number by number.

A preset says which score is differentiated, how cotangents are changed before the method sees them, and how raw maps
become a heatmap. Adding one is adding one entry to `PRESETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from onnx_gradcam.errors import TargetError, near_matches
from onnx_gradcam.graph.builder import Builder, Value

from .heatmap import Combine, Finish, by_range, combined, finish
from .resizing import bilinear

__all__ = ["PRESETS", "Preset", "find_preset"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The conventions of a library.

    Attributes:
        name: identifier.
        title: library, version and function.
        source: the file that the conventions were read from.
        finish: from raw maps to the heatmap.
        score: which score is differentiated where the user does not say.
        modifier: how cotangents are changed on their way back where the user does not say.
        cotangent: `(builder, A, G) -> G`, before the method sees it; `None` leaves it as it is.
    """

    name: str
    title: str
    source: str
    finish: Finish
    score: Literal["logit", "output"] = "logit"
    modifier: Literal["guided", "deconvnet"] | None = None
    cotangent: Callable[[Builder, Value, Value], Value] | None = None


def _pytorch_grad_cam(t: Builder, cams: Sequence[Value], size: Value, combine: Combine | None = None) -> Value:
    shown = [bilinear(t, by_range(t, t.op("Relu", cam), 1e-7), size) for cam in cams]
    return by_range(t, combined(t, shown, combine or "mean"), 1e-7)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(name="default", title="onnx-gradcam", source="onnx_gradcam/heatmap.py", finish=finish),
        Preset(
            name="pytorch-grad-cam",
            title="pytorch-grad-cam 1.5.7",
            source="base_cam.py, utils/image.py",
            finish=_pytorch_grad_cam,
        ),
    )
}
"""Presets by name."""


def find_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        TargetError: there is none.
    """
    if name not in PRESETS:
        raise TargetError(f"there is no preset {name!r}{near_matches(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
