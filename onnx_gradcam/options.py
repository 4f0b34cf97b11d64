"""What to explain and how, as the user says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .autodiff.precision import GradType
from .editor.targets.task import BoxFormat, Mask, Task

__all__ = ["Options"]

Weights = Literal["auto", "linear", "gradient", "finite"]
Profile = Literal["portable", "cpu", "cuda", "tensorrt", "coreml", "webgpu"]
ClassInput = Literal["optional", "required", "none", "all"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to explain and how.

    Attributes:
        layer: tensor, node or framework layer name, or `auto`: the layer that the model was exported with, if any, else
            the last one with places to point at that every path to the score crosses; several for one map of several
            layers.
        method: identifier of the method; by default `gradcam`, and `hirescam` for segmentations and detectors, whose
            score depends on each place in its own way, which weights averaged over all places do not see.
        preset: whose conventions the score, the cotangent and the heatmap follow.
        modifier: change cotangents on their way back: `guided` or `deconvnet`; by default what method and preset say.
        channels: how the channels of an attribution become one map: `max` or `sum`; by default the maximum where the
            sign does not matter, and the sum where it does.
        combine: how the heatmaps of several layers become one: `mean`, `max` or `product`; by default what method and
            preset say.
        eigen_smooth: in place of the sum of the weighed activation maps, their leading principal component.
        against: explain how far the class is ahead of this one, or of the `runner-up`, rather than its score.
        weights: how the cotangent is had; `auto` takes the first of `linear`, `gradient` and `finite` that applies.
        score: `logit` explains the tensor before a trailing activation, `output` the output itself; by default what
            the preset says.
        output: the output that holds the scores, where several would do; a detector's may lie in several.
        task: what the model does; for all but classification one score a class is made of its outputs, the output
            `target_scores` (`onnx_gradcam.editor.targets.task` says how). Each value of a regression counts as a class.
        mask: of a segmentation: sum the logits of a class over its `own` mask, `all` of the image, or the mask given
            in the new input `target_mask`.
        boxes: how the scores of a detector's boxes lie.
        box_rank: explain the box of this rank among those of the class, 0 for the one with the highest score.
        box: explain the box of this number instead.
        reference: the embedding to be similar to, `[D]`.
        image: the input that takes images, where several would do.
        class_input: `optional` for an overridable initializer, `required` for an ordinary input, `none` to fix the
            class in the graph, `all` for the maps of all classes at once, where the head is linear: heatmap
            `[N, K, H, W]` and raw map `[N, K, h, w]`, beside the class with the highest score.
        target: the class to explain with `class_input="none"`; `None` for the one with the highest score.
        expose_activation: add the activation maps to the outputs.
        labels: class names; those that the model carries by default.
        preprocessing: how images become the model's input; what the model carries by default.
        profile: which of several equal lowerings a gradient is written in: `portable` for every runtime, `cpu` for
            speed on ONNX Runtime's CPU provider, the others in operators that the provider of that name documents.
        grad_dtype: what a gradient is computed in: the type of the `model`, or `float32` whatever that is.
    """

    layer: str | Sequence[str] = "auto"
    method: str | None = None
    preset: str = "default"
    modifier: Literal["guided", "deconvnet"] | None = None
    channels: Literal["max", "sum"] | None = None
    combine: Literal["mean", "max", "product"] | None = None
    eigen_smooth: bool = False
    against: int | Literal["runner-up"] | None = None
    weights: Weights = "auto"
    score: Literal["logit", "output"] | None = None
    output: str | Sequence[str] | None = None
    task: Task = "classification"
    mask: Mask = "own"
    boxes: BoxFormat = "scores"
    box_rank: int = 0
    box: int | None = None
    reference: npt.NDArray[np.floating] | None = None
    image: str | None = None
    class_input: ClassInput = "optional"
    target: int | None = None
    expose_activation: bool = False
    labels: Sequence[str] | None = None
    preprocessing: Mapping[str, Any] | None = None
    profile: Profile = "portable"
    grad_dtype: GradType = "model"

    @property
    def method_name(self) -> str:
        """Identifier of the method, the task's own where none was asked for."""
        return self.method or ("hirescam" if self.task in {"segmentation", "detection"} else "gradcam")
