"""What is explained and how, decided before a node is added; what cannot be explained is refused here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from onnx_gradcam.autodiff.backward import carries_gradient, missing_rules
from onnx_gradcam.autodiff.expand import expand_missing
from onnx_gradcam.autodiff.modifiers import MODIFIERS
from onnx_gradcam.autodiff.providers import find_profile
from onnx_gradcam.autodiff.registry import Table
from onnx_gradcam.errors import TargetError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.hazards import padded_pools
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.paths import Carries, between
from onnx_gradcam.metadata import Carried, Metadata
from onnx_gradcam.options import Options

from .head import Head, read_head
from .methods.catalogue import Method, find_method
from .presets import Preset, find_preset
from .targets.axes import Layout, label_input, letters
from .targets.layer import Candidate, Layer, find_layer
from .targets.objective import OBJECTIVES, Objective, against
from .targets.score import Score, find_image, find_score
from .targets.task import SCORES, detection, segmentation, similarity

__all__ = ["Options", "Plan", "image_input", "plan"]

_ALL_AT_ONCE = ("gradcam", "hirescam")
"""Methods whose map is the product of weights and activation maps where the head is linear."""

_QUANTISING = ("QuantizeLinear", "DynamicQuantize", "QLinear")


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is decided before a node is added.

    Attributes:
        options: what was asked for.
        t: the builder over the normalised model.
        image: the image.
        layout: the meaning of its axes.
        score: what is differentiated.
        layers: the target tensors and the other candidates; the image itself for methods that look at it alone.
        path: the nodes between the target tensors and the score.
        head: the head behind global pooling, where there is one.
        weights: how the cotangent is had; `none` where no cotangent is asked for.
        problems: nodes on the path that have no rule.
        hazards: nodes that an optimisation of ONNX Runtime would compute wrongly.
        method: the method.
        preset: the conventions.
    """

    options: Options
    t: Builder
    image: Value
    layout: Layout
    score: Score
    layers: tuple[Layer, ...]
    path: Sequence[ir.Node]
    head: Head | None
    weights: Literal["linear", "gradient", "finite", "none"]
    problems: Sequence[str]
    hazards: Sequence[str]
    method: Method
    preset: Preset

    @property
    def layer(self) -> Layer:
        """The (first) target tensor."""
        return self.layers[0]

    @property
    def targets(self) -> list[Value]:
        """The target tensors."""
        return [layer.chosen.tensor for layer in self.layers]

    @property
    def image_candidate(self) -> Candidate:
        """The image, read like a layer."""
        return Candidate(self.image, self.layout, every_path=True)

    @property
    def modifier(self) -> str | None:
        """How cotangents are changed on their way back."""
        return self.options.modifier or self.method.modifier or self.preset.modifier

    @property
    def objective(self) -> Objective | None:
        """What is differentiated, where it is not the score of one class."""
        other = self.options.against
        if other is None:
            return None if self.method.objective == "class" else OBJECTIVES[self.method.objective]
        return against(other) if isinstance(other, int) else OBJECTIVES[other]

    def table(self, modifier: str | None) -> Table:
        """The rules of the backward pass."""
        table = find_profile(self.options.profile).rules()
        return table if modifier is None else MODIFIERS[modifier](table)

    @property
    def refusal(self) -> str | None:
        """Why the plan cannot be carried out; `None` where it can."""
        return next(self._refusals(), None)

    def _refusals(self) -> Iterator[str]:
        title, head = self.method.title, self.head
        if self.method.linear_head and self.weights != "linear":
            yield (
                f"{title} is defined for models that end in pooling and one linear layer; "
                "use --method gradcam, which gives the same map there and serves every head"
            )
        if self.options.task == "segmentation" and self.options.mask == "input" and self.method.runs_often:
            yield f"{title} runs the model itself and has no region to give it; use --mask own or all"
        if self.options.class_input == "all" and (why := self._not_all_at_once):
            yield f"the maps of all classes at once {why}; use --class-input optional, and explain one after another"
        if self.weights == "gradient" and self.problems:
            yield f"{self.problems[0]}; choose a later layer with --layer"
        if "head" in self.method.needs and (self.objective is not None or len(self.layers) > 1):
            yield f"{title} runs the head of one layer for the score of one class; name one layer, and no comparison"
        if self.options.eigen_smooth and "total" not in self.method.needs:
            yield f"eigen smoothing is for methods that add up weighed activation maps, and {title} does not"
        if self.weights == "finite" and "HA" in self.method.needs:
            yield f"{title} needs derivatives of derivatives; use --weights gradient"
        if self.weights in {"linear", "finite"} and self.modifier is not None:
            yield f"--weights {self.weights} has no rectifier to change as {self.modifier} says; use --weights gradient"
        if self.weights in {"linear", "finite"} and head is None:
            yield (
                f"--weights {self.weights} needs global average pooling right behind the layer; use --weights gradient"
            )
        if self.weights == "finite" and self.quantised is not None:
            yield (
                f"--weights finite sees nothing through the rounding of {self.quantised.op_type} "
                f"({self.quantised.outputs[0].name!r}); use --weights gradient"
            )
        if self.weights == "linear" and head is not None and not head.linear:
            yield f"--weights linear is not possible: {head.why}; use --weights gradient"

    @property
    def _not_all_at_once(self) -> str:
        """Why the maps of all classes cannot be had by one product; empty where they can."""
        if self.weights != "linear":
            return "take one linear layer behind pooling, and this model has another head there"
        if self.method.name not in _ALL_AT_ONCE or self.preset.cotangent is not None or self.options.eigen_smooth:
            return f"can be had by {' and '.join(_ALL_AT_ONCE)} with plain gradients alone"
        if self.objective is not None:
            return "leave no class to compare with"
        return ""

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        return [*self._hazard, *([self.preset.caution] if self.preset.caution else ())]

    @property
    def _hazard(self) -> list[str]:
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
        """Where the image's height and width are among the axes of the input."""
        shown = letters(self.layout)
        return shown.index("H"), shown.index("W")


def plan(source: str | Path | bytes | onnx.ModelProto, options: Options | None = None) -> Plan:
    """Decide what is explained and how.

    Raises:
        ModelError: the file is not a usable model.
        TargetError: no score, image or layer can be made out, or what was asked for is not there.
    """
    options = options or Options()
    model = load(source)
    said = Metadata.from_props(model.metadata)
    if said is not None:
        raise TargetError(
            f"the model is explained already (layer {said.target_tensor!r}, method {said.method}); "
            "start from the original model to explain it in another way"
        )
    options = _with_class_scores(model, options)
    work = _plan(Builder(model), options)
    targets = [value.name for value in work.targets]
    wanted = [work.image.name] if "gx" in work.method.needs else targets
    if work.problems and work.weights != "linear" and expand_missing(model, [work.score.tensor.name], wanted):
        # Bodies of operators hold tensors that look like layers, so the choice stands as it was made before.
        again = _plan(Builder(model), replace(options, layer=targets))
        pairs = zip(again.layers, work.layers, strict=True)
        layers = tuple(replace(new, reason=old.reason) for new, old in pairs)
        return replace(again, options=options, layers=layers)
    return work


def image_input(source: str | Path | bytes | onnx.ModelProto, image: str | None = None) -> tuple[str, str]:
    """The input that takes images, and its axes, `NCHW` or `NHWC`.

    Args:
        source: the model.
        image: the input's name, where several would do.

    Raises:
        ModelError: the file is not a usable model.
        TargetError: which input that is, or what its axes are, cannot be made out.
    """
    t = Builder(load(source))
    found = find_image(t, image)
    return found.name, letters(_image_layout(t, found))


def _with_class_scores(model: Model, options: Options) -> Options:
    """Append one score a class for a task that has none; the options that explain these."""
    outputs = [options.output] if isinstance(options.output, str) else list(options.output or ())
    one = outputs[0] if outputs else None
    if len(outputs) > 1 and options.task != "detection":
        raise TargetError(
            f"--output was given {len(outputs)} times, but only a detector's scores lie in several outputs"
        )
    if options.task in {"classification", "regression"}:
        return replace(options, output=one)
    t = Builder(model)
    if options.task == "segmentation":
        segmentation(t, one, options.mask, options.score or find_preset(options.preset).score)
    elif options.task == "detection":
        detection(t, outputs, options.boxes, rank=options.box_rank, index=options.box)
    elif options.reference is None:
        raise TargetError("the similarity of embeddings needs a reference to be similar to; give one with --reference")
    else:
        similarity(t, one, options.reference)
    t.finish()
    return replace(options, output=SCORES)


def _plan(t: Builder, options: Options) -> Plan:
    method, preset = find_method(options.method_name), find_preset(options.preset)
    find_profile(options.profile)
    image = find_image(t, options.image)
    assert options.output is None or isinstance(options.output, str)  # noqa: S101 - `_with_class_scores` leaves one
    score = find_score(t, options.output, options.score or preset.score)
    if options.task in {"regression", "embedding", "detection"} and score.single_logit:
        score = _one_value(score)
    carries = carries_gradient(t)
    layout = _image_layout(t, image)
    layers = _layers(t, image, score, carries, method, layout, options)
    targets = [layer.chosen.tensor for layer in layers]
    path, _ = between(t.nodes, [v.core for v in targets], [score.tensor.core], carries)
    alone = len(layers) == 1 and method.needs_layer
    head = read_head(t, layers[0].chosen, score.tensor, path) if alone else None
    problems = missing_rules(t, score.tensor, [image] if "gx" in method.needs else targets)
    modified = (options.modifier or method.modifier or preset.modifier) is not None
    weights = _weights(options, method, None if modified else head, problems)
    batches = {v.probe_shape[0] for v in (image, score.tensor) if v.probe_shape is not None}
    if len(batches) > 1:
        raise TargetError(
            f"the first axis of the score {score.tensor.name!r} {list(score.tensor.shape)} is not the batch of the "
            f"input {image.name!r}; name another output with --output"
        )
    _check_other_class(score, options, method)
    hazards = [str(pad.name or pad.outputs[0].name) for pad in padded_pools(t)]
    return Plan(options, t, image, layout, score, layers, path, head, weights, problems, hazards, method, preset)


def _one_value(score: Score) -> Score:
    """A single number that decides nothing: one class, the number itself."""
    reason = score.reason.replace("class 1 is the number itself, class 0 its complement", "it is explained itself")
    return replace(score, single_logit=False, classes=1, reason=reason)


def _check_other_class(score: Score, options: Options, method: Method) -> None:
    """A comparison of classes needs classes to compare.

    Raises:
        TargetError: there is only one, or the other one does not exist.
    """
    if options.against is None and method.objective == "class":
        return
    if score.single_logit:
        raise TargetError("with a single logit each class is the other's opposite already; leave the comparison out")
    other = options.against
    if isinstance(other, str) and other not in OBJECTIVES:
        raise TargetError(f"there is no class or objective {other!r} to compare with; give the number of a class")
    if isinstance(other, int) and not 0 <= other < (score.classes or other + 1):
        raise TargetError(
            f"class {other} to compare with is out of range; the model has classes 0 to {(score.classes or 0) - 1}"
        )


def _layers(
    t: Builder, image: Value, score: Score, carries: Carries, method: Method, layout: Layout, options: Options
) -> tuple[Layer, ...]:
    """The target tensors, each once."""
    if not method.needs_layer:
        return (Layer(Candidate(image, layout, every_path=True), f"{method.title} looks at the image itself", ()),)
    carried = Carried.from_props(t.model.metadata)
    asked = [options.layer] if isinstance(options.layer, str) else list(options.layer)
    if not asked:
        raise TargetError("no layer was asked for; name one, or auto for the last that has places to point at")
    # The maps of a segmentation are its answer already: what they are made from is looked at.
    classes = score.classes if options.task == "segmentation" else None
    found: dict[str, Layer] = {}
    for name in asked:
        exported = carried.target_layer if name == "auto" else ""
        boxes = options.task == "detection"
        layer = find_layer(t, image, score.tensor, carries, exported or name, carried.tensors, classes, boxes=boxes)
        if exported:
            layer = replace(layer, reason=f"layer {exported!r}, which the model was exported with")
        found.setdefault(layer.chosen.tensor.name, layer)
    return tuple(found.values())


def _weights(
    options: Options, method: Method, head: Head | None, problems: Sequence[str]
) -> Literal["linear", "gradient", "finite", "none"]:
    """How the cotangent is had: the first way that applies, where the user does not say."""
    if {"G", "gx"}.isdisjoint(method.needs):
        return "none"
    if options.weights != "auto":
        return options.weights
    if "gx" in method.needs or head is None:
        return "gradient"
    if head.linear:
        return "linear"
    return "finite" if problems else "gradient"


def _image_layout(t: Builder, image: Value) -> Layout:
    layout = label_input(t, image)
    if layout is None:
        raise TargetError(
            f"which axes of the input {image.name!r} are height and width cannot be told: "
            "no convolution or pooling reads it; export the model from images of layout NCHW or NHWC"
        )
    if letters(layout) not in {"NCHW", "NHWC"}:
        raise TargetError(
            f"the axes of the input {image.name!r} are {letters(layout)}, but images are given as NCHW or NHWC; "
            "export the model with its height before its width"
        )
    return layout
