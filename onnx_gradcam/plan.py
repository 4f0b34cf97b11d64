"""What is explained and how, decided before a node is added; what cannot be explained is refused here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from .autodiff.backward import carries_gradient, missing_rules
from .autodiff.expand import expand_missing
from .errors import TargetError, near_matches
from .graph.builder import Builder, Value
from .graph.load import load
from .graph.paths import between
from .linearize import Head, read_head
from .metadata import Carried, Metadata
from .methods.registry import Method, find_method
from .targets.axes import Layout, label_input, letters
from .targets.layer import Layer, find_layer
from .targets.score import Score, find_score, image_inputs

__all__ = ["Options", "Plan", "plan"]

Weights = Literal["auto", "linear", "gradient", "finite"]
Profile = Literal["portable", "cpu", "cuda", "tensorrt", "coreml", "webgpu"]
ClassInput = Literal["optional", "required", "none"]

_QUANTISING = ("QuantizeLinear", "DynamicQuantize", "QLinear")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to explain and how.

    Attributes:
        layer: tensor, node or framework layer name, or `auto`.
        method: identifier of the method.
        weights: how the cotangent is had; `auto` takes the first of `linear`, `gradient` and `finite` that applies.
        score: `logit` explains the tensor before a trailing activation, `output` the output itself.
        output: the output that holds the scores, where several would do.
        image: the input that takes pictures, where several would do.
        class_input: `optional` for an overridable initializer, `required` for an ordinary input, `none` to fix the
            class in the graph.
        target: the class to explain with `class_input="none"`; `None` for the one with the highest score.
        expose_activation: add the activation maps to the outputs.
        labels: class names; those that the model carries by default.
        preprocessing: how pictures become the model's input; what the model carries by default.
        profile: which of several equal lowerings a gradient is written in: `portable` for every runtime, `cpu` for
            speed on ONNX Runtime's CPU provider, the others in operators that the provider of that name documents.
    """

    layer: str = "auto"
    method: str = "gradcam"
    weights: Weights = "auto"
    score: Literal["logit", "output"] = "logit"
    output: str | None = None
    image: str | None = None
    class_input: ClassInput = "optional"
    target: int | None = None
    expose_activation: bool = False
    labels: Sequence[str] | None = None
    preprocessing: Mapping[str, Any] | None = None
    profile: Profile = "portable"


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is decided before a node is added.

    Attributes:
        options: what was asked for.
        t: the builder over the normalised model.
        image: the picture.
        layout: the meaning of its axes; `None` where no convolution or pool tells.
        score: what is differentiated.
        layer: the target tensor and the other candidates.
        path: the nodes between target tensor and score.
        head: the head behind global pooling, where there is one.
        weights: how the cotangent is had.
        problems: nodes on the path that have no rule.
        hazards: nodes that an optimisation of ONNX Runtime would compute wrongly.
        method: the method.
    """

    options: Options
    t: Builder
    image: Value
    layout: Layout | None
    score: Score
    layer: Layer
    path: Sequence[ir.Node]
    head: Head | None
    weights: Literal["linear", "gradient", "finite"]
    problems: Sequence[str]
    hazards: Sequence[str]
    method: Method

    @property
    def refusal(self) -> str | None:
        """Why the plan cannot be carried out; `None` where it can."""
        if self.weights == "gradient" and self.problems:
            return f"{self.problems[0]}; choose a later layer with --layer"
        if self.weights in {"linear", "finite"} and self.head is None:
            return (
                f"--weights {self.weights} needs global average pooling right behind the layer; use --weights gradient"
            )
        if self.weights == "finite" and self.quantised is not None:
            return (
                f"--weights finite sees nothing through the rounding of {self.quantised.op_type} "
                f"({self.quantised.outputs[0].name!r}); use --weights gradient"
            )
        if self.weights == "linear" and self.head is not None and not self.head.linear:
            return f"--weights linear is not possible: {self.head.why}; use --weights gradient"
        return None

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        if not self.hazards:
            return []
        hazard = (
            f"ONNX Runtime computes {self.hazards[0]!r} (a zero Pad before a MaxPool) wrongly unless its optimisation "
            "Pad_Fusion is off; this package switches it off, other servers have to be told"
        )
        return [hazard]

    @property
    def quantised(self) -> ir.Node | None:
        """A node between target tensor and score that rounds, so that the gradient is a surrogate."""
        return next((node for node in self.path if node.op_type.startswith(_QUANTISING)), None)

    @property
    def spatial_axes(self) -> tuple[int, int]:
        """Where the picture's height and width are among the axes of the input."""
        assert self.layout is not None  # noqa: S101 - `plan` refuses a model without one
        shown = letters(self.layout)
        return shown.index("H"), shown.index("W")


def plan(source: str | Path | bytes | onnx.ModelProto, options: Options | None = None) -> Plan:
    """Decide what is explained and how.

    Raises:
        ModelError: the file is not a usable model.
        TargetError: no score, picture or layer can be made out, or what was asked for is not there.
    """
    options = options or Options()
    model = load(source)
    said = Metadata.from_props(model.metadata)
    if said is not None:
        raise TargetError(
            f"the model is explained already (layer {said.target_tensor!r}, method {said.method}); "
            "start from the original model to explain it in another way"
        )
    work = _plan(Builder(model), options)
    target = work.layer.chosen.tensor.name
    if work.problems and work.weights != "linear" and expand_missing(model, [work.score.tensor.name], [target]):
        # Bodies of operators hold tensors that look like layers, so the choice stands as it was made before.
        again = _plan(Builder(model), replace(options, layer=target))
        return replace(again, options=options, layer=replace(again.layer, reason=work.layer.reason))
    return work


def _plan(t: Builder, options: Options) -> Plan:
    method = find_method(options.method)
    image = _image(t, options.image)
    score = find_score(t, options.output, options.score)
    carries = carries_gradient(t)
    carried = Carried.from_props(t.model.metadata)
    layer = find_layer(t, image, score.tensor, carries, options.layer, carried.tensors)
    target = layer.chosen.tensor
    path, _ = between(t.nodes, [target.core], [score.tensor.core], carries)
    head = read_head(t, layer.chosen, score.tensor, path)
    problems = missing_rules(t, score.tensor, [target])
    weights = options.weights
    if weights == "auto":
        weights = "linear" if head is not None and head.linear else "gradient"
        if weights == "gradient" and problems and head is not None:
            weights = "finite"
    layout = label_input(t, image)
    if layout is None:
        raise TargetError(
            f"which axes of the input {image.name!r} are height and width cannot be told: "
            "no convolution or pooling reads it; export the model from pictures of layout NCHW or NHWC"
        )
    if letters(layout) not in {"NCHW", "NHWC"}:
        raise TargetError(
            f"the axes of the input {image.name!r} are {letters(layout)}, but pictures are given as NCHW or NHWC; "
            "export the model with its height before its width"
        )
    batches = {t.model.example[v.name][0] for v in (image, score.tensor) if v.name in t.model.example}
    if len(batches) > 1:
        raise TargetError(
            f"the first axis of the score {score.tensor.name!r} {list(score.tensor.shape)} is not the batch of the "
            f"input {image.name!r}; name another output with --output"
        )
    return Plan(options, t, image, layout, score, layer, path, head, weights, problems, _padded_pools(t), method)


def _image(t: Builder, name: str | None) -> Value:
    candidates = image_inputs(t)
    inputs = ", ".join(f"{v.name!r} {list(v.known_shape or ())}" for v in map(t.wrap, t.graph.inputs))
    if name is not None:
        found = next((v for v in candidates if v.name == name), None)
        if found is None:
            known = [v.name for v in candidates]
            raise TargetError(f"the model has no image input {name!r}{near_matches(name, known)} (inputs: {inputs})")
        return found
    if len(candidates) != 1:
        what = (
            "no input of rank 4 that could take a picture"
            if not candidates
            else "several inputs that could take a picture"
        )
        raise TargetError(f"the model has {what} (inputs: {inputs}); name one with --input")
    return candidates[0]


def _padded_pools(t: Builder) -> list[str]:
    """Zero Pads right before a MaxPool: ONNX Runtime folds them into the pool, which pads with minus infinity."""
    found = []
    for node in t.nodes:
        pad = node.inputs[0].producer() if node.op_type == "MaxPool" and node.inputs[0] is not None else None
        if pad is None or pad.op_type != "Pad":
            continue
        mode = pad.attributes.get("mode")
        fill = pad.inputs[2] if len(pad.inputs) > 2 else None
        value = np.zeros(()) if fill is None else t.wrap(fill).array()
        negative_zero = value is not None and bool(np.signbit(value).all()) and not np.any(value)
        if (mode is None or mode.as_string() == "constant") and not negative_zero:
            found.append(str(pad.name or pad.outputs[0].name))
    return found
