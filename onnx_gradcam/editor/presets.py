"""Presets: the conventions of other libraries, reproduced from the score to the heatmap.

A preset says which score is differentiated, how gradients are changed before the method uses them, and how raw maps
become a heatmap. It stands for the numbers of its library, so it serves only the methods that were compared with the
library's own: `methods`, whose stored results are in `tests/oracles`. To add a preset, add an entry to `PRESETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnx_gradcam.errors import TargetError, near_matches, same_name
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.options import ChannelReduction, Combine, ModifierName, ScoreKind

from .methods.maps import (
    Finish,
    bicubic,
    bilinear,
    by_maximum,
    by_range,
    combined,
    corner_bilinear,
    finish,
    mirrored_bilinear,
    nearest,
    positive_part,
    spline,
    table_bicubic,
)

__all__ = ["PRESETS", "Compared", "Preset", "find_preset", "presets"]

Normalize = Callable[[Builder, Value], Value]
Resize = Callable[[Builder, Value, Value], Value]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a method was compared with.

    Attributes:
        function: the class or function of the library.
        one_layer: the library treats several layers in another way, so that only maps of one layer agree.
        behind: the operator that has to compute the layer, because the library treats other layers in another way;
            empty for any.
    """

    function: str
    one_layer: bool = False
    behind: str = ""


def _rectified(t: Builder, cam: Value, size: Value) -> Value:
    return bilinear(t, t.op("Relu", cam), size)


def _rectified_cells(t: Builder, cam: Value, size: Value) -> Value:
    """captum: as `_rectified`, with the nearest cell."""
    return nearest(t, t.op("Relu", cam), size)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The conventions of a library.

    Attributes:
        name: identifier.
        title: library and version.
        source: the library's file that defines the conventions.
        methods: what each method was compared with, by the method's name, the default method first; `None` if there is
            no library, so that every method serves.
        instead: methods whose name the library gives to another computation, and the method for that.
        unstable_sign: the library leaves the sign of eigen smoothing to NumPy's decomposition.
        steps: from raw maps to the heatmap, in words.
        finish: from raw maps to the heatmap.
        score: the score that is differentiated by default.
        modifier: how rectifiers pass the gradient back by default.
        channels: how the channels of an attribution become one map by default; `None` for the method's way.
        spread: `(builder, raw map [N, h, w], size) -> [N, H, W]`, the factors by which Guided Grad-CAM multiplies.
        panel: `(builder, attribution [N, C, H, W]) -> heatmap [N, H, W]`, where the heatmap is more than `finish` of
            one map; `None` elsewhere.
        cotangent: `(builder, A, G) -> G`, applied before the method; `None` for no change.
        change: what `cotangent` does, in words.
        differs: how the library's own map differs from the heatmap; empty if it does not.
        caution: a warning for the user; empty for none.
        detectors: it was compared for the boxes of detectors only.
    """

    name: str
    title: str
    source: str
    steps: str
    finish: Finish
    methods: Mapping[str, Compared] | None = None
    instead: Mapping[str, str] = field(default_factory=dict)
    unstable_sign: bool = False
    score: ScoreKind = "logit"
    modifier: ModifierName | None = None
    channels: ChannelReduction | None = None
    spread: Resize = _rectified
    panel: Callable[[Builder, Value], Value] | None = None
    cotangent: Callable[[Builder, Value, Value], Value] | None = None
    change: str = ""
    differs: str = ""
    caution: str = ""
    detectors: bool = False

    @property
    def functions(self) -> dict[str, str]:
        """What each method was compared with, by the method's name; empty if there is no library."""
        return {name: compared.function for name, compared in (self.methods or {}).items()}

    def refusal(self, method: str, layers: int, producer: str, *, eigen_smooth: bool) -> str:
        """Why the numbers would not be the library's; empty if they are.

        `layers` counts the explained layers, and `producer` is the operator that computes the first.
        """
        if self.methods is None:
            return ""
        compared = self.methods.get(method)
        if compared is None:
            return self._not_compared(method)
        if compared.one_layer and layers > 1:
            return (
                f"{self.title} combines several layers for {compared.function} in a way of its own; name one layer, or "
                "leave out --preset"
            )
        if compared.behind and producer != compared.behind:
            return (
                f"{compared.function} of {self.title} does something else at a layer that no {compared.behind} "
                f"computes; choose a layer behind a {compared.behind}, or leave out --preset"
            )
        if eigen_smooth and self.unstable_sign:
            return (
                f"{self.title} leaves the sign of eigen smoothing to NumPy, so the map may be the opposite of its own; "
                "leave out --preset"
            )
        return ""

    def _not_compared(self, method: str) -> str:
        if method in self.instead:
            return (
                f"{self.title} computes something else than --method {method} under that name; "
                f"use --method {self.instead[method]}, or leave out --preset"
            )
        return (
            f"--preset {self.name} stands for the numbers of {self.title}, and --method {method} was not compared with "
            f"them; choose {' or '.join(self.methods or ())}, or leave out --preset"
        )


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


def _scaled_bilinear(t: Builder, maps: Value, size: Value) -> Value:
    """Ultralytics: each layer is divided by its maximum behind the resizing."""
    return by_maximum(t, bilinear(t, maps, size))


_TINY = float(np.finfo(np.float32).tiny)
"""Divides a blank map instead of zero, which makes other libraries return NaN."""


def _gray(t: Builder, attribution: Value) -> Value:
    """MXNet: the sum of magnitudes over channels, from its minimum to its 99th percentile, clipped to [0, 1]."""
    magnitudes = t.sum(t.op("Abs", attribution), [1], keepdims=False)
    rows = t.merged(magnitudes, 1)
    count = t.op("Shape", rows, start=1)
    place = t.op("Mul", t.cast(t.op("Sub", count, t.ints(1)), np.float64), t.const(np.array([0.99])))
    below = t.op("Floor", place)
    # The pixels from that rank on, the largest first: the percentile is between the last two.
    upper = t.op("Sub", count, t.cast(below, np.int64))
    top = t.ops("TopK", rows, upper, outputs=2, axis=1)[0]
    last = t.op("Sub", upper, t.ints(1))
    low, high = (
        t.op("Gather", top, rank, axis=1) for rank in (last, t.op("Max", t.op("Sub", last, t.ints(1)), t.ints(0)))
    )
    share = t.cast(t.op("Sub", place, below), np.float32)
    most = t.op("Add", low, t.op("Mul", t.op("Sub", high, low), share))
    least = t.reduce("ReduceMin", rows, [1])
    span = t.op("Max", t.op("Sub", most, least), _TINY)
    scaled = t.op(
        "Div", t.op("Sub", magnitudes, t.op("Unsqueeze", least, t.ints(2))), t.op("Unsqueeze", span, t.ints(2))
    )
    return t.op("Max", t.op("Min", scaled, 1.0), 0.0)


def _levels_of_mxnet(t: Builder, cam: Value, size: Value) -> Value:
    """MXNet multiplies the guided gradient by the heatmap's integers, 0 to 255."""
    return t.op("Round", _MXNET(t, [cam], size, None) * 255.0)


_MXNET = _steps(start=1.0, before=_levels)


def _compared(**functions: str) -> dict[str, Compared]:
    """The methods of a library: the names of its functions by those of the methods, `_` for a hyphen."""
    return {name.replace("_", "-"): Compared(function=function) for name, function in functions.items()}


_DEFAULT = Preset(
    name="default",
    title="onnx-gradcam",
    source="onnx_gradcam/editor/methods/maps.py",
    steps="ReLU; divided by its maximum; bilinear, half-pixel centres",
    finish=finish,
)
_KERAS_VIS = Preset(
    name="keras-vis",
    title="keras-vis as in its repository",
    source="vis/visualization/saliency.py, vis/optimizer.py",
    methods=_compared(gradcam="visualize_cam"),
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
    title="the Grad-CAM example of keras.io",
    methods=_compared(gradcam="make_gradcam_heatmap"),
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
            methods={
                "gradcam": Compared(function="GradCAM"),
                "gradcam++": Compared(function="GradCAMPlusPlus"),
                "hirescam": Compared(function="HiResCAM"),
                "layercam": Compared(function="LayerCAM"),
                "xgradcam": Compared(function="XGradCAM"),
                "gradcam-elementwise": Compared(function="GradCAMElementWise"),
                "shapleycam": Compared(function="ShapleyCAM"),
                "finercam": Compared(function="FinerCAM"),
                "refinecam": Compared(function="RefineCAM"),
                "segeigencam": Compared(function="SegEigenCAM"),
                "kpcacam": Compared(function="KPCA_CAM"),
                "fem": Compared(function="FEM"),
                "fullgrad": Compared(function="FullGrad"),
                "scorecam": Compared(function="ScoreCAM"),
                "ablationcam": Compared(function="AblationCAM", behind="Relu"),
                "eigencam-pytorch-grad-cam": Compared(function="EigenCAM"),
                "eigengradcam-pytorch-grad-cam": Compared(function="EigenGradCAM"),
            },
            instead={"eigencam": "eigencam-pytorch-grad-cam", "eigengradcam": "eigengradcam-pytorch-grad-cam"},
            unstable_sign=True,
            steps="ReLU; to [0, 1]; bilinear, half-pixel centres; to [0, 1] (1e-7)",
            finish=_steps(before=_range(1e-7), after=_range(1e-7)),
        ),
        _KERAS_VIS,
        replace(
            _KERAS_VIS,
            name="keras-vis-0.4.1",
            title="keras-vis 0.4.1",
            steps="ReLU; bicubic, half-pixel centres; to [0, 1] (1e-7)",
            finish=_steps(resized=bicubic, after=_range(1e-7)),
            differs="in colours: the library returns the map in jet",
        ),
        replace(
            _DEFAULT,
            name="chollet-1e",
            title="Deep Learning with Python (Chollet), 1st edition, section 5.4",
            methods=_compared(gradcam="its listings"),
            source="5.4-visualizing-what-convnets-learn.ipynb",
            score="output",
            differs="of the layer's size until it is drawn, a mean over channels where `cam` is a sum",
        ),
        replace(
            _KERAS_IO,
            name="chollet-2e",
            title="Deep Learning with Python (Chollet), 2nd and 3rd edition",
            methods=_compared(gradcam="its listings"),
            source="chapter09_part03_interpreting-what-convnets-learn.ipynb",
            score="output",
        ),
        _KERAS_IO,
        Preset(
            name="mxnet",
            title="the Grad-CAM tutorial of MXNet 1.9.1",
            source="docs/tutorial_utils/vision/cnn_visualization/gradcam.py",
            steps="plus one; ReLU; to integers 0 to 255, rounded down; bilinear, half-pixel centres",
            finish=_MXNET,
            methods=_compared(gradcam="get_cam", guided_gradcam="get_guided_grad_cam, to_grayscale"),
            instead={"saliency": "guided-gradcam"},
            spread=_levels_of_mxnet,
            panel=_gray,
            differs="integers up to 255, with height and width of the image swapped",
        ),
        Preset(
            name="tf-keras-vis",
            title="tf-keras-vis 0.8.7",
            source="tf_keras_vis/gradcam.py",
            methods={
                "gradcam": Compared(function="Gradcam"),
                "gradcam++-tf-keras-vis": Compared(function="GradcamPlusPlus"),
                "layercam": Compared(function="Layercam"),
                "saliency": Compared(function="Saliency"),
            },
            instead={"gradcam++": "gradcam++-tf-keras-vis"},
            score="output",
            steps="ReLU; bilinear, aligned corners; to [0, 1] (1e-7)",
            finish=_steps(resized=corner_bilinear, after=_range(1e-7)),
        ),
        Preset(
            name="torch-cam",
            title="torch-cam 0.5.0",
            source="torchcam/methods/core.py, torchcam/utils.py",
            methods={
                "gradcam": Compared(function="GradCAM"),
                "gradcam++-torch-cam": Compared(function="GradCAMpp"),
                "layercam": Compared(function="LayerCAM", one_layer=True),
                "xgradcam": Compared(function="XGradCAM"),
                "scorecam-torch-cam": Compared(function="ScoreCAM"),
                "sscam": Compared(function="SSCAM"),
                "iscam": Compared(function="ISCAM"),
                "smooth-gradcam++-torch-cam": Compared(function="SmoothGradCAMpp"),
            },
            instead={
                "gradcam++": "gradcam++-torch-cam",
                "scorecam": "scorecam-torch-cam",
                "smooth-gradcam++": "smooth-gradcam++-torch-cam",
            },
            steps="ReLU; to [0, 1] (1e-8); bilinear, half-pixel centres; maximum over layers",
            finish=_steps(before=_range(1e-8), combine="max"),
            differs="of the layer's size, until several layers are one or it is drawn",
        ),
        Preset(
            name="captum",
            title="captum 0.9.0",
            source="captum/attr/_core/layer/grad_cam.py, guided_grad_cam.py, _utils/visualization.py",
            methods={
                "gradcam": Compared(function="LayerGradCam with LayerAttribution.interpolate"),
                "guided-gradcam": Compared(function="GuidedGradCam"),
                "gradient": Compared(function="Saliency with abs=False"),
                "saliency": Compared(function="Saliency"),
                "input-x-gradient": Compared(function="InputXGradient"),
                "guided-backprop": Compared(function="GuidedBackprop"),
                "deconvnet": Compared(function="Deconvolution"),
                "integrated-gradients": Compared(function="IntegratedGradients"),
                "smoothgrad": Compared(function="NoiseTunnel, smoothgrad"),
                "smoothgrad-squared": Compared(function="NoiseTunnel, smoothgrad_sq"),
                "vargrad": Compared(function="NoiseTunnel, vargrad"),
                "occlusion": Compared(function="Occlusion"),
            },
            channels="sum",
            spread=_rectified_cells,
            steps="nearest cell; to [0, 1]",
            finish=_steps(rectify=False, resized=nearest, after=_range(_TINY)),
            differs="signed, not scaled to [0, 1]: that is `cam`, of the layer's size",
        ),
        Preset(
            name="tf-explain",
            title="tf-explain 0.3.1",
            methods=_compared(gradcam="GradCAM"),
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
            title="xplique 2.0.2",
            methods=_compared(gradcam="GradCAM"),
            source="xplique/attributions/grad_cam.py",
            steps="ReLU; bicubic, half-pixel centres; to [0, 1]",
            finish=_steps(resized=table_bicubic, after=_range(_TINY)),
            differs="not scaled to [0, 1]",
        ),
        Preset(
            name="pair-saliency",
            title="saliency 0.2.1, by PAIR",
            methods=_compared(gradcam="GradCam"),
            source="saliency/core/grad_cam.py",
            steps="ReLU; divided by the maximum; bilinear, half-pixel centres, mirrored at the border",
            finish=_steps(before=by_maximum, resized=mirrored_bilinear),
        ),
        Preset(
            name="openvino-xai",
            title="OpenVINO XAI 1.1.0",
            methods=_compared(reciprocam_openvino_xai="ReciproCAM"),
            instead={"reciprocam": "reciprocam-openvino-xai"},
            source="openvino_xai/methods/white_box/base.py, openvino_xai/explainer/visualizer.py",
            steps="to integers 0 to 255, rounded down; bilinear, half-pixel centres, rounded; to [0, 1]",
            finish=_steps(rectify=False, before=_levels, after=_range_of_levels),
            differs="integers up to 255, rounded down",
        ),
        Preset(
            name="ultralytics",
            title="Ultralytics 8.4.190, predict with visualize=True",
            methods=_compared(layercam="class_activation_map"),
            source="ultralytics/utils/plotting.py",
            detectors=True,
            steps="ReLU; bilinear, half-pixel centres; divided by its maximum; maximum over layers",
            finish=_steps(resized=_scaled_bilinear, combine="max"),
            differs="the maximum over up to 16 boxes of at least 0.25, not of one box",
        ),
    )
}
"""Presets by name."""


def presets() -> dict[str, Preset]:
    """All presets by name.

    Example::

        print({name: preset.title for name, preset in presets().items()})
    """
    return dict(PRESETS)


def find_preset(name: str) -> Preset:
    """The preset of a name; case, hyphens, underscores and spaces do not count."""
    key = same_name(name, PRESETS)
    if key is None:
        raise TargetError(
            f"there is no preset {name!r}{near_matches(name, PRESETS)}; choose one of {', '.join(PRESETS)}"
        )
    return PRESETS[key]
