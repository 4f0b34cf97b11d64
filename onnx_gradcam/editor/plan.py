"""Everything that is decided before a node is added; why it cannot be carried out, and what the user should know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import onnx_ir as ir

from onnx_gradcam.autodiff.backward import carries_gradient
from onnx_gradcam.autodiff.modifiers import COMPLETE, MODIFIERS
from onnx_gradcam.autodiff.providers import find_profile
from onnx_gradcam.autodiff.registry import Table
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import reached_from, row_coupling
from onnx_gradcam.metadata import ONE_AT_A_TIME, Carried
from onnx_gradcam.options import Combine, Options

from .head import Head
from .methods.catalogue import OF_SOME, Method, methods
from .presets import Preset
from .targets.axes import Layout, letters
from .targets.layer import Candidate, Layer
from .targets.layer_names import biases_of
from .targets.score import (
    OBJECTIVES,
    WEIGHED,
    Detections,
    Objective,
    Score,
    against,
    image_inputs,
    input_layout,
    input_name,
)
from .targets.task import Task

__all__ = ["Plan", "modified"]

_ALL_AT_ONCE = ("gradcam", "hirescam")
"""Methods whose map is the product of weights and activation maps if the head is linear."""

_TRAINING = {
    "BatchNormalization": "normalizes by the statistics of the batch",
    "Dropout": "is an active Dropout, which ONNX Runtime leaves out",
}
"""What nodes in training mode do."""

_MERGED = {"merged": "merged", "unknown": "may have merged"}
"""What exporters did with biases, by the state of `Biases`."""

_ANY_DIMENSION: tuple[str, ...] = ("gradcam", "hirescam", "layercam", "gradcam++", "xgradcam", "saliency", "gradient")
_ANY_DIMENSION += ("integrated-gradients", "guided-ig", "expected-gradients")
_ANY_DIMENSION += ("smoothgrad", "smoothgrad-squared", "vargrad", "occlusion", "rise")
"""Methods for signals and volumes too."""

_QUANTISING = ("QuantizeLinear", "DynamicQuantize", "QLinear", "Sign")


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Everything that is decided before a node is added.

    Attributes:
        options: the options, names resolved.
        task: what the model does.
        t: the builder over the normalized model.
        image: the image input; for one without a batch axis, the batch of one that the model makes of it.
        layout: the meaning of its axes.
        score: what is differentiated.
        layers: the target tensors and the other candidates; the image for methods that look at no layer.
        path: the nodes between the target tensors and the score.
        head: the head behind global pooling, if there is one.
        weights: how the gradient of the layer is computed; `none` if the method needs none.
        problems: why the gradient cannot be computed, one sentence for each node on the path without a rule.
        hazards: optimizations of ONNX Runtime that this graph has to do without, with the reason.
        dropped: the operator that was cut off, since only another runtime has it; empty for none.
        detections: the boxes, for a detector.
        method: the method.
        preset: the conventions.
        labels: the class names, if known.
        probabilities: how scores become probabilities as the model says; empty if it does not.
        preprocessing: how an image becomes the model's input, if known.
        extent: the part of the image that the layer's maps cover, as in `Metadata.extent`.
        cut: the node whose crop or padding of the image cannot be followed to the layer, if any.
        remarks: what the file or its neighbours say that is not used, one sentence each.
    """

    options: Options
    task: Task
    t: Builder
    image: Value
    layout: Layout
    score: Score
    layers: tuple[Layer, ...]
    path: Sequence[ir.Node]
    head: Head | None
    weights: Literal["linear", "gradient", "finite", "none"]
    problems: Sequence[str]
    hazards: Mapping[str, str]
    dropped: str
    detections: Detections | None
    method: Method
    preset: Preset
    labels: list[str] | None
    preprocessing: dict[str, Any] | None
    extent: list[list[float]]
    cut: ir.Node | None
    probabilities: str = ""
    remarks: Sequence[str] = field(default=())

    @property
    def layer(self) -> Layer:
        """The (first) target tensor."""
        return self.layers[0]

    @property
    def targets(self) -> list[Value]:
        """The target tensors."""
        return [layer.chosen.tensor for layer in self.layers]

    @property
    def combine(self) -> Combine | None:
        """How the maps of several layers become one; `None` for the preset's way."""
        chosen = self.options.combine or self.method.combine
        if chosen is None and self.has_levels and self.method.additive and self.preset.methods is None:
            return "sum"
        return chosen

    @property
    def has_levels(self) -> bool:
        """Whether the layers are a set that was chosen together."""
        automatic = self.options.layer == "auto" or list(self.options.layer) == ["auto"]
        return automatic and len(self.layers) > 1

    @property
    def image_input(self) -> str:
        """The name of the graph input that takes images."""
        return input_name(self.image)

    @property
    def input_layout(self) -> str:
        """The axes of that input, in letters; those of `image` but for a batch axis that the input lacks.

        Spatial axes are in the order of the input, also where the model swaps them.
        """
        shown = input_layout(self.image, self.layout)
        names = iter(sorted(set(shown) & set("DHW"), key="DHW".index))
        return "".join(next(names) if letter in "DHW" else letter for letter in shown)

    @property
    def image_candidate(self) -> Candidate:
        """The image input, as a candidate like a layer."""
        return Candidate(self.image, self.layout, every_path=True)

    @property
    def modifier(self) -> str | None:
        """How the gradient is passed back, where not as it is."""
        return self.options.modifier or self.method.modifier or self.preset.modifier

    @property
    def objective(self) -> Objective | None:
        """What is differentiated instead of the score of one class; `None` for that score."""
        other = self.options.against
        if other is None:
            return None if self.method.objective == "class" else OBJECTIVES[self.method.objective]
        return against(other) if isinstance(other, int) else OBJECTIVES[other]

    @property
    def fixed_class(self) -> int | None:
        """The class that is fixed in the model, if any."""
        target = self.options.target
        return None if target is None else int(target)

    def table(self, modifier: str | None) -> Table:
        """The rules of the backward pass."""
        return modified(self.t, self.image, self.options.profile, modifier)

    @property
    def is_complete(self) -> bool:
        """Whether the image times its gradient, plus biases, adds up to the score, which the model then tells."""
        return self.modifier in COMPLETE and self.method.differentiates("image") and not self.method.runs_often

    @property
    def refusal(self) -> str | None:
        """Why the plan cannot be carried out; `None` where it can."""
        return next(self._refusals(), None)

    def _refusals(self) -> Iterator[str]:
        yield from self._not_the_librarys
        yield from self._without_boxes
        yield from self._not_in_dimensions
        yield from self._not_taken
        title, head = self.method.title, self.head
        if self.method.linear_head and self.weights != "linear":
            yield (
                f"{title} is defined for models that end in pooling and one linear layer; "
                "use --method gradcam, which computes the same map there and supports every head"
            )
        if self.task.takes_mask(self.options) and self.method.runs_often:
            yield f"{title} runs the model many times and cannot pass a region to it; use --mask own or all"
        if self.options.class_input == "all" and (why := self._not_all_at_once):
            yield f"the maps of all classes at once {why}; explain one class at a time with --class-input optional"
        yield from self._not_differentiated
        if self.method.reruns_head and (self.objective is not None or len(self.layers) > 1):
            yield f"{title} runs the head of one layer for the score of one class; name one layer, without a comparison"
        if self.options.eigen_smooth and not self.method.smoothable:
            yield f"eigen smoothing applies to methods that sum weighted activation maps, and {title} is not one"
        if self.weights == "finite" and self.method.second_order:
            yield f"{title} needs derivatives of derivatives; use --weights gradient"
        if self.weights in {"linear", "finite"} and self.modifier is not None:
            yield f"--weights {self.weights} has no rectifier to change for {self.modifier}; use --weights gradient"
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
    def _not_differentiated(self) -> Iterator[str]:
        """Why no gradient can be computed; nothing if it can."""
        complete = self.modifier in COMPLETE
        if self.weights == "gradient" and self.problems:
            remedy = f"leave out --modifier {self.modifier}" if complete else "choose a later layer with --layer"
            yield f"{self.problems[0]}; {remedy}"
        if self.is_complete and WEIGHED & {self.options.against, self.method.objective}:
            yield (
                f"scores weighed by probabilities are no sum of what {self.modifier} passes back; compare with one "
                f"class or the runner-up, or leave out --modifier {self.modifier}"
            )
        if complete and self.method.second_order:
            yield (
                f"{self.method.title} takes derivatives of derivatives, and what {self.modifier} passes back is none; "
                f"leave out --modifier {self.modifier}"
            )

    @property
    def _not_in_dimensions(self) -> list[str]:
        """Why signals and volumes are not explained this way; empty if they are, or for images."""
        shown = letters(self.layout)
        if shown in {"NCHW", "NHWC"}:
            return []
        if self.preset.name != "default":
            return [f"--preset {self.preset.name} is for images, and this input is {shown}; leave it out"]
        if self.method.name not in _ANY_DIMENSION:
            named = ", ".join(_ANY_DIMENSION)
            return [
                f"{self.method.title} is for images, and this input is {shown}; choose one of {named} with --method"
            ]
        if (self.method.differentiates("image") or not self.method.needs_layer) and "C" not in shown:
            return [f"{self.method.title} needs an axis of channels, and this input is {shown}; use --method gradcam"]
        return []

    @property
    def _not_taken(self) -> list[str]:
        """The options of other methods."""
        for name in OF_SOME:
            if getattr(self.options, name) is not None and name not in self.method.takes:
                able = [m.name for m in methods().values() if name in m.takes]
                flag = f"{self.method.title} takes no --{name.replace('_', '-')}"
                return [f"{flag}; leave it out, or choose one of {', '.join(able)}"]
        if self.options.modifier is not None and not self.method.takes_gradients:
            return [f"{self.method.title} takes no gradient, which --modifier would change; leave it out"]
        return []

    @property
    def _not_the_librarys(self) -> list[str]:
        """Why the numbers would not be those of the preset's library; empty if they are."""
        if self.preset.detectors and not self.task.boxes:
            return [
                f"--preset {self.preset.name} stands for the maps of detectors, and this model is none; leave it out"
            ]
        producer = self.layer.chosen.tensor.core.producer()
        why = self.preset.refusal(
            self.method.name,
            len(self.layers),
            "" if producer is None else producer.op_type,
            eigen_smooth=self.options.eigen_smooth,
        )
        return [why] if why else []

    @property
    def _without_boxes(self) -> list[str]:
        """Why boxes cannot be compared."""
        if not self.method.of_boxes or (self.detections is not None and self.detections.boxes):
            return []
        what = f"{self.method.title} compares the places of boxes, which this model does not tell"
        return [f"{what}; use --method rise or hirescam"]

    @property
    def _not_all_at_once(self) -> str:
        """Why one product cannot compute the maps of all classes; empty if it can."""
        if self.weights != "linear":
            return "need a head of pooling and one linear layer, and this model has another one"
        if self.method.name not in _ALL_AT_ONCE or self.preset.cotangent is not None or self.options.eigen_smooth:
            return f"need {' or '.join(_ALL_AT_ONCE)} with plain gradients"
        if self.objective is not None:
            return "leave no class to compare with"
        return ""

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        coupled = [ONE_AT_A_TIME] if self.couples_rows else []
        caution = [self.preset.caution] if self.preset.caution else []
        asides = [*self._hazard, *self._missing, *self._training, *coupled, *self._unfollowed, *self._scattered]
        asides += [*self._merged, *self._other_images, *self._lone_number]
        return [*self.remarks, *asides, *caution]

    @property
    def _other_images(self) -> list[str]:
        others = [v.name for v in image_inputs(self.t) if v.name != self.image_input]
        if self.options.image is not None or not others or self.image.rank != 4:
            return []
        named = " or ".join(map(repr, others))
        why = f"the image is taken to be the input {self.image_input!r}, of three channels"
        return [f"{why}; explain {named} with --input"]

    @property
    def _lone_number(self) -> list[str]:
        output = self.score.output
        if not self.score.single_logit or self.score.activation or output.rank > 1:
            return []
        taken = f"the number in the output {output.name!r} is taken for the logit of two classes"
        return [f"{taken}; if it is a value, choose --task regression"]

    @property
    def _scattered(self) -> list[str]:
        if not self.task.boxes or self.method.name != "gradcam":
            return []
        averaged = "Grad-CAM averages gradients over all positions, so that the map of one box marks other objects too"
        return [f"{averaged}; --method hirescam does not"]

    @property
    def _merged(self) -> list[str]:
        """That biases which the method needs apart were merged, by the exporter's record or else by names."""
        if not self.method.per_bias:
            return []
        recorded = Carried.from_props(self.t.model.metadata).biases
        nodes = {biases_of(node): node for node in reversed(self.path)}
        states = (recorded,) if recorded else nodes
        verb = next((verb for state, verb in _MERGED.items() if state in states), None)
        if verb is None:
            return []
        node = nodes.get("merged", nodes.get("unknown"))
        where = "" if node is None else f" (node {str(node.name or node.outputs[0].name)[:99]!r})"
        what = f"the exporter {verb} biases of convolutions{where} with those of the batch normalizations behind them"
        remedy = "export the model with its normalizations, from PyTorch with --keep-normalization"
        return [f"{what}, and {self.method.title} counts a merged pair once; {remedy}"]

    @property
    def _training(self) -> list[str]:
        active = {node.op_type: node for node in reversed(self.t.nodes) if self._trains(node)}
        if not active:
            return []
        named = ", ".join(
            f"{str(node.name or node.outputs[0].name)!r} {_TRAINING[kind]}" for kind, node in active.items()
        )
        return [f"the model was exported in training mode ({named}); export it for inference, as with model.eval()"]

    def _trains(self, node: ir.Node) -> bool:
        """Whether a node computes what it computes in training."""
        if node.op_type == "Dropout":
            mode = None if len(node.inputs) < 3 or node.inputs[2] is None else self.t.wrap(node.inputs[2]).array()
            return mode is not None and bool(mode.any())
        return node.op_type == "BatchNormalization" and bool(node.attributes.get_int("training_mode", 0))

    @property
    def couples_rows(self) -> bool:
        """Whether the model's results for a row depend on the other rows of a batch."""
        return self.image.shape[0] != 1 and row_coupling(self.t.nodes) is not None

    @property
    def _missing(self) -> list[str]:
        if not self.dropped:
            return []
        reason = "since ONNX Runtime has no such operator; what it reads are outputs instead"
        return [f"{self.dropped} and its outputs are not part of the explained model, {reason}"]

    @property
    def _hazard(self) -> list[str]:
        remedy = "is disabled; this package disables it, other servers need to be configured"
        return [f"{why} unless its optimization {name} {remedy}" for name, why in self.hazards.items()]

    @property
    def _unfollowed(self) -> list[str]:
        if self.cut is None:
            return []
        node = f"{self.cut.op_type} (node {self.cut.name or self.cut.outputs[0].name!r})"
        unfollowed = (
            f"how {node} crops or pads the image cannot be followed, so the heatmap is stretched over the whole input; "
            "crop before the model instead"
        )
        return [unfollowed]

    @property
    def quantised(self) -> ir.Node | None:
        """A node between target tensor and score that rounds, so that the gradient is a surrogate."""
        return next((node for node in self.path if node.op_type.startswith(_QUANTISING)), None)

    @property
    def spatial_axes(self) -> tuple[int, ...]:
        """Where positions are among the axes of the input: height and width of an image."""
        return tuple(self.image_candidate.spatial)


def modified(t: Builder, image: Value, profile: str, modifier: str | None) -> Table:
    """The rules that a profile writes a gradient with, changed by a modifier."""
    table = find_profile(profile).rules()
    if modifier is None:
        return table
    return MODIFIERS[modifier](table, reached_from(t.nodes, [image.core], carries_gradient(t, table)))
