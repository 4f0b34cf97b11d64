"""Presets: the conventions of other libraries, reproduced from the score to the heatmap.

A preset says which score is differentiated, how gradients are changed before the method uses them, and how raw maps
become a heatmap. To add one, add an entry to `PRESETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_gradcam.errors import TargetError, near_matches, same_name
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.options import Combine, ModifierName, ScoreKind

from .methods.maps import (
    Finish,
    bicubic,
    bilinear,
    by_range,
    combined,
    corner_bilinear,
    finish,
    nearest,
    positive_part,
    spline,
    table_bicubic,
)

__all__ = ["PRESETS", "Preset", "find_preset", "presets"]

Normalize = Callable[[Builder, Value], Value]
Resize = Callable[[Builder, Value, Value], Value]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The conventions of a library.

    Attributes:
        name: identifier.
        title: library, version and function.
        source: the library's file that defines the conventions.
        steps: from raw maps to the heatmap, in words.
        finish: from raw maps to the heatmap.
        score: the score that is differentiated by default.
        modifier: how rectifiers pass the gradient back by default.
        cotangent: `(builder, A, G) -> G`, applied before the method; `None` for no change.
        change: what `cotangent` does, in words.
        differs: how the library's own map differs from the heatmap; empty if it does not.
        caution: a warning for the user; empty for none.
    """

    name: str
    title: str
    source: str
    steps: str
    finish: Finish
    score: ScoreKind = "logit"
    modifier: ModifierName | None = None
    cotangent: Callable[[Builder, Value, Value], Value] | None = None
    change: str = ""
    differs: str = ""
    caution: str = ""


def _over_maximum(t: Builder, A: Value, G: Value) -> Value:  # noqa: ARG001 - the signature of a change
    """keras-vis: divide by the largest value of the sample; if none is positive, this flips the signs."""
    return G / (t.reduce("ReduceMax", G, range(1, G.rank)) + 1e-7)


def _gated(t: Builder, A: Value, G: Value) -> Value:
    """tf-explain: keep positive gradients at positive activations only."""
    return t.op("Mul", t.op("Relu", G), t.cast(A > 0.0, G.dtype))


def _steps(
    *,
    rectify: bool = True,
    start: float = 0.0,
    before: Normalize | None = None,
    resized: Resize = bilinear,
    after: Normalize | None = None,
    combine: Combine = "mean",
) -> Finish:
    """Post-processing in five steps.

    Negative values are clipped if `rectify`, after `start` is added; each layer is normalized by `before`, `resized` to
    the image, combined by default as `combine` says, and normalized by `after`.
    """

    def finish_layer(t: Builder, cam: Value, size: Value) -> Value:
        raised = cam + start if start else cam
        positive = positive_part(t, raised) if rectify else raised
        return resized(t, before(t, positive) if before is not None else positive, size)

    def finish_all(t: Builder, cams: Sequence[Value], size: Value, chosen: Combine | None = None) -> Value:
        heatmap = combined(t, [finish_layer(t, cam, size) for cam in cams], chosen or combine)
        return after(t, heatmap) if after is not None else heatmap

    return finish_all


def _range(epsilon: float) -> Normalize:
    return lambda t, maps: by_range(t, maps, epsilon)


def _levels(t: Builder, maps: Value) -> Value:
    """MXNet, OpenVINO XAI: min-max normalization to integers from 0 to 255, rounded down."""
    return t.op("Floor", by_range(t, maps, _TINY) * 255.0) / 255.0


def _range_of_levels(t: Builder, maps: Value) -> Value:
    """OpenVINO XAI: min-max normalization of the integers that OpenCV rounds to when it resizes integers."""
    return by_range(t, t.op("Round", maps * 255.0), _TINY)


_TINY = float(np.finfo(np.float32).tiny)
"""Divides a blank map instead of zero, which makes other libraries return NaN."""

_DEFAULT = Preset(
    name="default",
    title="onnx-gradcam",
    source="onnx_gradcam/editor/methods/maps.py",
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
    steps="ReLU; cubic spline, aligned corners; to [0, 1] (1e-7)",
    finish=_steps(resized=spline, after=_range(1e-7)),
    caution=(
        "keras-vis divides gradients by the largest of them: if none is positive, the map shows evidence against the "
        "class; the preset tf-keras-vis does not do that"
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
            finish=_steps(before=_range(1e-7), after=_range(1e-7)),
        ),
        _KERAS_VIS,
        replace(
            _KERAS_VIS,
            name="keras-vis-0.4.1",
            title="keras-vis 0.4.1, the last release, visualize_cam",
            steps="ReLU; bicubic, half-pixel centres; to [0, 1] (1e-7)",
            finish=_steps(resized=bicubic, after=_range(1e-7)),
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
            steps="plus one; ReLU; to integers 0 to 255, rounded down; bilinear, half-pixel centres",
            finish=_steps(start=1.0, before=_levels),
            differs="integers up to 255, with height and width of the image swapped",
        ),
        Preset(
            name="tf-keras-vis",
            title="tf-keras-vis 0.8.7, Gradcam",
            source="tf_keras_vis/gradcam.py",
            score="output",
            steps="ReLU; bilinear, aligned corners; to [0, 1] (1e-7)",
            finish=_steps(resized=corner_bilinear, after=_range(1e-7)),
        ),
        Preset(
            name="torch-cam",
            title="torch-cam 0.5.0",
            source="torchcam/methods/core.py, torchcam/utils.py",
            steps="ReLU; to [0, 1] (1e-8); bilinear, half-pixel centres; maximum over layers",
            finish=_steps(before=_range(1e-8), combine="max"),
            differs="of the layer's size, until several layers are one or it is drawn",
        ),
        Preset(
            name="captum",
            title="captum 0.9.0, LayerGradCam with LayerAttribution.interpolate",
            source="captum/attr/_core/layer/grad_cam.py",
            steps="nearest cell; to [0, 1]",
            finish=_steps(rectify=False, resized=nearest, after=_range(_TINY)),
            differs="signed, not scaled to [0, 1]: that is `cam`, of the layer's size",
        ),
        Preset(
            name="tf-explain",
            title="tf-explain 0.3.1, GradCAM",
            source="tf_explain/core/grad_cam.py, tf_explain/utils/display.py",
            score="output",
            cotangent=_gated,
            change="set to zero where it or the activation is not positive",
            steps="bilinear, half-pixel centres; to [0, 1]",
            finish=_steps(rectify=False, after=_range(_TINY)),
            differs="not returned: the library returns only the drawing",
        ),
        Preset(
            name="xplique",
            title="xplique 2.0.2, GradCAM",
            source="xplique/attributions/grad_cam.py",
            steps="ReLU; bicubic, half-pixel centres; to [0, 1]",
            finish=_steps(resized=table_bicubic, after=_range(_TINY)),
            differs="not scaled to [0, 1]",
        ),
        Preset(
            name="openvino-xai",
            title="OpenVINO XAI 1.1.0, ReciproCAM (with --method reciprocam-openvino-xai)",
            source="openvino_xai/methods/white_box/base.py, openvino_xai/explainer/visualizer.py",
            steps="to integers 0 to 255, rounded down; bilinear, half-pixel centres, rounded; to [0, 1]",
            finish=_steps(rectify=False, before=_levels, after=_range_of_levels),
            differs="integers up to 255, rounded down",
        ),
    )
}
"""Presets by name."""


def presets() -> dict[str, Preset]:
    """All presets by name."""
    return dict(PRESETS)


def find_preset(name: str) -> Preset:
    """The preset of a name; case, hyphens, underscores and spaces do not count."""
    key = same_name(name, PRESETS)
    if key is None:
        raise TargetError(
            f"there is no preset {name!r}{near_matches(name, PRESETS)}; choose one of {', '.join(PRESETS)}"
        )
    return PRESETS[key]
