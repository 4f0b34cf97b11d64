"""Presets: what other libraries understand by a method, from the score to the heatmap, number by number.

A preset says which score is differentiated, how cotangents are changed before the method sees them, and how raw maps
become a heatmap. Adding one is adding one entry to `PRESETS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from onnx_gradcam.errors import TargetError, near_matches
from onnx_gradcam.graph.builder import Builder, Value

from .heatmap import Finish, finish

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


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (Preset(name="default", title="onnx-gradcam", source="onnx_gradcam/heatmap.py", finish=finish),)
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
