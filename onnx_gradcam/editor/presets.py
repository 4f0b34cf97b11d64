"""Presets: what other libraries understand by a method, from the score to the heatmap, number by number.

A preset says which score is differentiated, how cotangents are changed before the method sees them, and how raw maps
become a heatmap. Adding one is adding one entry to `PRESETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onnx_gradcam.errors import TargetError, near_matches
from onnx_gradcam.graph.builder import Builder, Value

from .methods.maps import (
    Combine,
    Finish,
    bicubic,
    bilinear,
    by_range,
    combined,
    corner_bilinear,
    finish,
    nearest,
    spline,
    table_bicubic,
)

__all__ = ["PRESETS", "Preset", "find_preset"]

Normalise = Callable[[Builder, Value], Value]
Resize = Callable[[Builder, Value, Value], Value]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The conventions of a library.

    Attributes:
        name: identifier.
        title: library, version and function.
        source: the file that the conventions were read from.
        steps: from raw maps to the heatmap, in words.
        finish: from raw maps to the heatmap.
        score: which score is differentiated where the user does not say.
        modifier: how cotangents are changed on their way back where the user does not say.
        cotangent: `(builder, A, G) -> G`, before the method sees it; `None` leaves it as it is.
        change: what that does, in words.
        differs: how the library's own map differs from the heatmap, where it does.
        caution: what the user of a model has to know.
    """

    name: str
    title: str
    source: str
    steps: str
    finish: Finish
    score: Literal["logit", "output"] = "logit"
    modifier: Literal["guided", "deconvnet"] | None = None
    cotangent: Callable[[Builder, Value, Value], Value] | None = None
    change: str = ""
    differs: str = ""
    caution: str = ""


# ----- how cotangents are changed ----------------------------------------------


def _over_maximum(t: Builder, A: Value, G: Value) -> Value:  # noqa: ARG001 - the signature of a change
    """keras-vis: divided by the largest value of the sample; where none is positive this turns the signs around."""
    return G / (t.reduce("ReduceMax", G, range(1, G.rank)) + 1e-7)


def _gated(t: Builder, A: Value, G: Value) -> Value:
    """tf-explain: only positive cotangents, and only where the activation is positive."""
    return t.op("Mul", t.op("Relu", G), t.cast(A > 0.0, G.dtype))


# ----- from raw maps to the heatmap --------------------------------------------


def _finished(
    *,
    rectify: bool = True,
    start: float = 0.0,
    before: Normalise | None = None,
    resized: Resize = bilinear,
    after: Normalise | None = None,
    combine: Combine = "mean",
) -> Finish:
    """A finishing of five steps.

    Args:
        rectify: cut off negative values.
        start: what the sum over channels starts with.
        before: normalises the map of each layer at its own size.
        resized: to the image.
        after: normalises at the image's size, once several layers are one.
        combine: how these become one where the user does not say.
    """

    def finish_layer(t: Builder, cam: Value, size: Value) -> Value:
        raised = cam + start if start else cam
        positive = t.op("Relu", raised) if rectify else raised
        return resized(t, before(t, positive) if before is not None else positive, size)

    def finish_all(t: Builder, cams: Sequence[Value], size: Value, wanted: Combine | None = None) -> Value:
        together = combined(t, [finish_layer(t, cam, size) for cam in cams], wanted or combine)
        return after(t, together) if after is not None else together

    return finish_all


def _range(epsilon: float) -> Normalise:
    return lambda t, maps: by_range(t, maps, epsilon)


def _levels(t: Builder, maps: Value) -> Value:
    """MXNet, OpenVINO XAI: minimum to maximum as whole numbers up to 255, decimals cut off."""
    return t.op("Floor", by_range(t, maps, _TINY) * 255.0) / 255.0


def _range_of_levels(t: Builder, maps: Value) -> Value:
    """OpenVINO XAI: minimum to maximum, of what OpenCV rounds to whole numbers up to 255 when it resizes such."""
    return by_range(t, t.op("Round", maps * 255.0), _TINY)


_TINY = float(np.finfo(np.float32).tiny)
"""What divides a blank map in place of the zero that makes other libraries give NaN."""

_DEFAULT = Preset(
    name="default",
    title="onnx-gradcam",
    source="onnx_gradcam/heatmap.py",
    steps="ReLU; divided by its maximum; bilinear, half-pixel centres",
    finish=finish,
)
_KERAS_VIS = Preset(
    name="keras-vis",
    title="keras-vis as in its repository, visualize_cam",
    source="vis/visualization/saliency.py, vis/optimizer.py",
    score="output",
    cotangent=_over_maximum,
    change="divided by its largest value plus 1e-7",
    steps="ReLU; cubic spline, corners on each other; to [0, 1] (1e-7)",
    finish=_finished(resized=spline, after=_range(1e-7)),
    caution=(
        "keras-vis divides cotangents by the largest of them: where none is positive, the map shows what speaks "
        "against the class; the preset tf-keras-vis does not do that"
    ),
)
_KERAS_IO = replace(
    _DEFAULT,
    name="keras-io",
    title="keras.io, Grad-CAM example",
    source="grad_cam.py",
    differs="of the layer's size; its colours are resized, bicubic",
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _DEFAULT,
        Preset(
            name="pytorch-grad-cam",
            title="pytorch-grad-cam 1.5.7",
            source="base_cam.py, utils/image.py",
            steps="ReLU; to [0, 1]; bilinear, half-pixel centres; to [0, 1] (1e-7)",
            finish=_finished(before=_range(1e-7), after=_range(1e-7)),
        ),
        _KERAS_VIS,
        replace(
            _KERAS_VIS,
            name="keras-vis-0.4.1",
            title="keras-vis 0.4.1, the last release, visualize_cam",
            steps="ReLU; bicubic, half-pixel centres; to [0, 1] (1e-7)",
            finish=_finished(resized=bicubic, after=_range(1e-7)),
            differs="in colours: the library returns the map in jet",
        ),
        replace(
            _DEFAULT,
            name="chollet-1e",
            title="Chollet, Deep Learning with Python, 1st edition, section 5.4",
            source="5.4-visualizing-what-convnets-learn.ipynb",
            score="output",
            differs="of the layer's size until it is drawn, a mean over channels where `cam` is a sum",
        ),
        replace(
            _KERAS_IO,
            name="chollet-2e",
            title="Chollet, Deep Learning with Python, 2nd and 3rd edition",
            source="chapter09_part03_interpreting-what-convnets-learn.ipynb",
            score="output",
        ),
        _KERAS_IO,
        Preset(
            name="mxnet",
            title="MXNet 1.9.1, Grad-CAM tutorial",
            source="docs/tutorial_utils/vision/cnn_visualization/gradcam.py",
            steps="plus one; ReLU; to 0 ... 255, decimals cut off; bilinear, half-pixel centres",
            finish=_finished(start=1.0, before=_levels),
            differs="whole numbers up to 255, height and width of the image mixed up",
        ),
        Preset(
            name="tf-keras-vis",
            title="tf-keras-vis 0.8.7, Gradcam",
            source="tf_keras_vis/gradcam.py",
            score="output",
            steps="ReLU; bilinear, corners on each other; to [0, 1] (1e-7)",
            finish=_finished(resized=corner_bilinear, after=_range(1e-7)),
        ),
        Preset(
            name="torch-cam",
            title="torch-cam 0.5.0",
            source="torchcam/methods/core.py, torchcam/utils.py",
            steps="ReLU; to [0, 1] (1e-8); bilinear, half-pixel centres; of several layers the maximum",
            finish=_finished(before=_range(1e-8), combine="max"),
            differs="of the layer's size, until several layers are one or it is drawn",
        ),
        Preset(
            name="captum",
            title="captum 0.9.0, LayerGradCam with LayerAttribution.interpolate",
            source="captum/attr/_core/layer/grad_cam.py",
            steps="nearest cell; to [0, 1]",
            finish=_finished(rectify=False, resized=nearest, after=_range(_TINY)),
            differs="signed, not brought to [0, 1]: that is `cam`, of the layer's size",
        ),
        Preset(
            name="tf-explain",
            title="tf-explain 0.3.1, GradCAM",
            source="tf_explain/core/grad_cam.py, tf_explain/utils/display.py",
            score="output",
            cotangent=_gated,
            change="zero where it or the activation is not positive",
            steps="bilinear, half-pixel centres; to [0, 1]",
            finish=_finished(rectify=False, after=_range(_TINY)),
            differs="kept to itself: the library returns the drawing alone",
        ),
        Preset(
            name="xplique",
            title="xplique 2.0.2, GradCAM",
            source="xplique/attributions/grad_cam.py",
            steps="ReLU; bicubic, half-pixel centres; to [0, 1]",
            finish=_finished(resized=table_bicubic, after=_range(_TINY)),
            differs="not brought to [0, 1]",
        ),
        Preset(
            name="openvino-xai",
            title="OpenVINO XAI 1.1.0, ReciproCAM (with --method reciprocam-openvino-xai)",
            source="openvino_xai/methods/white_box/base.py, openvino_xai/explainer/visualizer.py",
            steps="to 0 ... 255, decimals cut off; bilinear, half-pixel centres, rounded; to [0, 1]",
            finish=_finished(rectify=False, before=_levels, after=_range_of_levels),
            differs="whole numbers up to 255, decimals cut off",
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
