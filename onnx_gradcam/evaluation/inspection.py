"""What would be explained in a model, and why: the score, the layer, the method, and what stands in the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_gradcam.editor.origins import Statement, read_statements
from onnx_gradcam.editor.plan import Plan
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.editor.targets.layer import Candidate
from onnx_gradcam.editor.targets.layer_names import LayerNames
from onnx_gradcam.editor.targets.score import Score, find_score
from onnx_gradcam.editor.targets.task import candidates
from onnx_gradcam.errors import ExplainError, InputError, TargetError
from onnx_gradcam.feeds import Declared, Feeds
from onnx_gradcam.files import ModelSource
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.read import invalid_models_refused, read_proto
from onnx_gradcam.graph.shapes import named
from onnx_gradcam.images.decoding import ImageSource, prepare, read_image, unprepared
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.metadata import Carried, CarriedLayer, Metadata
from onnx_gradcam.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnx_gradcam.options import Choices

__all__ = ["Decisions", "Inspection", "LayerInfo", "ScoreInfo", "SeenImage", "TensorInfo", "inspect"]


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """An input or output: `dtype` as in NumPy or `sequence` ...; free sizes of `shape` are names or `None`."""

    name: str
    dtype: str
    shape: Sequence[int | str | None] | None


@dataclass(frozen=True, kw_only=True)
class ScoreInfo:
    """The score that is explained.

    Attributes:
        output: the output with the scores.
        tensor: the tensor that is explained: the output, or what its last activation is applied to.
        classes: number of classes; `None` if it is unknown.
        single_logit: one logit decides between two classes.
        activation: `softmax`, `logsoftmax`, `sigmoid`, or empty.
        reason: why this one.
    """

    output: str
    tensor: str
    classes: int | None
    single_logit: bool
    activation: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """A tensor that can be explained.

    Attributes:
        tensor: its name.
        operator: operator of the node that computes it; `None` for an input, as for `node`, the node's name.
        shape: its sizes; `grid` those of its spatial axes.
        layout: the meaning of its axes, such as `NCHW`.
        every_path: whether every path from the image to the score crosses it.
    """

    tensor: str
    operator: str | None
    node: str | None
    shape: Sequence[int | str | None]
    grid: Sequence[int | str | None]
    layout: str
    every_path: bool


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What `attach` would do.

    Attributes:
        image_input: the input that takes the image; `image_layout` is the meaning of its axes.
        to_feed: the model's other inputs, each with what it takes if nothing is fed, empty for those that have no
            default.
        head: what follows the layer.
        layer: the (first) layer to explain; `layer_reason` says why this one.
        levels: all layers to explain together, such as those of a detector's levels.
        candidates: the layers to choose from, from the image to the score.
        task: what the model does.
        method: the method; `method_reason` says why it is not `gradcam`, unless it was chosen.
        weights: how channel weights are computed.
        modifier: how the gradient is passed back; empty for as it is.
        complete: whether the image times its gradient, plus biases, is the score; the model then outputs what is left.
        grad_dtype: dtype of the gradients.
        missing_rules: operators on the path that have no gradient rule, one sentence each.
        warnings: what to know about the explained model.
    """

    image_input: str
    image_layout: str
    to_feed: Mapping[str, str]
    head: str
    layer: LayerInfo
    layer_reason: str
    levels: Sequence[LayerInfo]
    candidates: Sequence[LayerInfo]
    task: str
    method: str
    method_reason: str
    weights: str
    modifier: str
    complete: bool
    grad_dtype: str
    missing_rules: Sequence[str]
    warnings: Sequence[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenImage:
    """An image as the model takes it.

    Attributes:
        dtype: dtype of the input.
        shape: its shape, without the batch.
        low: its smallest number; `high` is the largest one.
        means: the mean of each channel; `deviations` are the standard deviations.
        image: what the model sees, as an image again: `uint8 [H, W, 3]` RGB.
    """

    dtype: str
    shape: Sequence[int]
    low: float
    high: float
    means: Sequence[float]
    deviations: Sequence[float]
    image: npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect` finds.

    Attributes:
        opset: version by domain.
        producer: program that wrote the model, with its version.
        inputs: the inputs without the initializers; `outputs` are the outputs.
        labels: class names stored in the model or beside it; `preprocessing` is the preprocessing.
        origins: who says so, for labels, preprocessing and task, as far as they are known.
        stated: what else origins say, such as `{"Ultralytics metadata": {"task": "detect", "stride": 32}}`.
        remarks: what is said and cannot be used, one sentence each.
        framework: framework that the model was exported from, with its version.
        layers: the framework's layers by name: as the model carries them, else as its nodes tell.
        explained: metadata of a model that is explained already; `score` and `decisions` are `None` then.
        score: the score; `None` if there is none.
        decisions: everything else that is decided; `None` if the model is refused before.
        tasks: outputs that could be explained with another task, by task; only if there is no score.
        refusal: why the model cannot be explained; empty if it can.
        seen: the photo as the model takes it, if one was given.
    """

    opset: Mapping[str, int]
    producer: str
    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]
    labels: Sequence[str] | None
    preprocessing: Mapping[str, Any] | None
    origins: Mapping[str, str]
    stated: Mapping[str, Mapping[str, Any]]
    remarks: Sequence[str]
    framework: str
    layers: Mapping[str, Mapping[str, Any]]
    explained: Metadata | None = None
    score: ScoreInfo | None = None
    decisions: Decisions | None = None
    tasks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    refusal: str = ""
    seen: SeenImage | None = None

    def __repr__(self) -> str:
        """One line: what would be explained, what is explained already, or why neither."""
        if self.explained is not None:
            found = f"explained with {self.explained.method}"
        elif self.refusal or self.decisions is None:
            found = f"refused: {self.refusal}"
        else:
            chosen = self.decisions
            found = f"{chosen.method} at {chosen.layer.tensor!r}, one of {len(chosen.candidates)} candidates"
        return f"<Inspection: {found}>"

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; what is `None` or empty because of a refusal is left out."""
        values = asdict(self)
        seen = values.pop("seen")
        if seen is not None:
            values["seen"] = {name: value for name, value in seen.items() if name != "image"}
        decisions, score, tasks = (values.pop(name) for name in ("decisions", "score", "tasks"))
        values["refusal"] = self.refusal or None
        if decisions is not None:
            values |= decisions
            values["layer"]["reason"] = values.pop("layer_reason")
        if score is not None:
            values["score"] = score
        elif self.refusal:
            values["tasks"] = tasks
        return values


def inspect(
    model: ModelSource,
    options: Options | None = None,
    *,
    photo: ImageSource | None = None,
    **choices: Unpack[Choices],
) -> Inspection:
    """Say which layer and output would be explained, how and why, without running the model.

    A model that cannot be explained is not an error: `Inspection.refusal` says why.

    Args:
        model: path, bytes or proto of the model.
        options: what to explain and how.
        photo: an image, to see what the preprocessing makes of it (`Inspection.seen`).
        choices: fields of `Options`, in place of those of `options`.

    Returns:
        The decisions, or why there are none.

    Raises:
        InputError: an option has an impossible value, or the photo cannot be read or made into the model's input.
        ModelError: the file is not a usable model.

    Example::

        inspection = inspect("model.onnx")
        print(inspection.refusal or inspection.decisions.layer.tensor)
    """
    options = (options or Options()).replaced(choices)
    proto, folder = read_proto(model)
    props = {p.key: p.value for p in proto.metadata_props}
    initializers = {tensor.name for tensor in proto.graph.initializer}
    carried, statements = Carried.from_props(props), read_statements(props, folder)
    explained = Metadata.from_props(props)
    contents: dict[str, Any] = {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "producer": " ".join(filter(None, (proto.producer_name, proto.producer_version))),
        "inputs": [_tensor(info) for info in proto.graph.input if info.name not in initializers],
        "outputs": [_tensor(info) for info in proto.graph.output],
        "labels": statements.labels,
        "preprocessing": statements.preprocessing,
        "origins": {name: one for name in ("labels", "preprocessing", "task") if (one := statements.origin(name))},
        "stated": {one.origin: stated for one in statements.statements if (stated := _stated(one))},
        "remarks": statements.remarks,
        "framework": " ".join(filter(None, (carried.framework, carried.framework_version))),
        "layers": {name: asdict(layer) for name, layer in carried.layers.items()},
        "explained": explained,
    }
    if explained is not None:
        explained.check_graph(
            {info.name: (i.dtype, i.shape) for info in proto.graph.input for i in [_tensor(info)]},
            {info.name: (i.dtype, i.shape) for info in proto.graph.output for i in [_tensor(info)]},
        )
        seen = _seen(contents, explained.image_input, explained.layout, photo, options)
        return Inspection(**contents, seen=seen)
    try:
        plan = make_plan(model, _with_reference(model, options))
    except ExplainError as exc:
        score = _score_alone(model, options) if isinstance(exc, TargetError) else None
        tasks = _tasks(model) if score is None else {}
        return Inspection(**contents, score=score, tasks=tasks, refusal=str(exc))
    contents["layers"] = contents["layers"] or _named_layers(plan)
    return Inspection(
        **contents,
        seen=_seen(contents, plan.image_input, plan.input_layout, photo, options),
        score=_score(plan.score),
        decisions=_decisions(plan, contents["inputs"], contents["outputs"]),
        refusal=plan.refusal or "",
    )


def _seen(
    contents: Mapping[str, Any], name: str, layout: str, photo: ImageSource | None, options: Options
) -> SeenImage | None:
    """A photo as the input of this name takes it, by the preprocessing that is chosen, else by that of the model."""
    if photo is None:
        return None
    how = contents["preprocessing"] if options.preprocess is None else options.preprocess
    if how is None:
        raise InputError(
            "the model carries no preprocessing, so what it makes of a photo is not known; give --preprocess"
        )
    info = next(one for one in contents["inputs"] if one.name == name)
    fitted = parse_preprocessing(how).for_input(layout, info.shape or (), info.dtype)
    tensor, _ = prepare(read_image(photo), fitted)
    positions = (1, 2) if fitted.layout == "NCHW" else (0, 1)
    return SeenImage(
        dtype=str(tensor.dtype),
        shape=list(tensor.shape),
        low=float(tensor.min()),
        high=float(tensor.max()),
        means=tensor.mean(positions, np.float64).tolist(),
        deviations=tensor.std(positions, np.float64).tolist(),
        image=unprepared(tensor, fitted),
    )


def _stated(statement: Statement) -> dict[str, Any]:
    """What an origin says besides class names and preprocessing."""
    return {**({"task": statement.task} if statement.task else {}), **statement.details}


def _named_layers(plan: Plan) -> dict[str, dict[str, Any]]:
    """The layers that the exporter noted on the nodes and that can be explained; of one tensor, the outermost last."""
    candidates = {candidate.tensor.core: candidate for candidate in plan.layer.candidates}
    places = {value: place for place, value in enumerate(candidates)}
    tensors = LayerNames(plan.t, {}, set(candidates)).single()
    names = sorted((n for n in tensors if tensors[n] in places), key=lambda n: (places[tensors[n]], -len(n)))
    layers = {}
    for name in names:
        candidate = candidates[tensors[name]]
        shape = list(candidate.tensor.shape)
        layers[name] = asdict(CarriedLayer(tensor=candidate.tensor.name, shape=shape, layout=candidate.describe()))
    return layers


def _with_reference(model: ModelSource, options: Options) -> Options:
    if options.reference is None:
        return options
    from onnx_gradcam.runtime.references import with_reference  # noqa: PLC0415 - it runs models, other options do not

    return with_reference(model, options)


def _tasks(model: ModelSource) -> dict[str, list[str]]:
    """The outputs that could be explained, by task; nothing if the model cannot be loaded."""
    try:
        with invalid_models_refused(model):
            return candidates(Builder(load(model)))
    except ExplainError:
        return {}


def _to_feed(plan: Plan, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> dict[str, str]:
    """The model's other inputs, and what they take by default."""
    infos, results = ([Declared(i.name, i.dtype, tuple(i.shape or ())) for i in some] for some in (inputs, outputs))
    image = next(info for info in infos if info.name == plan.image_input)
    others = [info for info in infos if info is not image]
    defaults = Feeds(image, others, results).defaults
    return {info.name: defaults.get(info.name, "") for info in others}


def _decisions(plan: Plan, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> Decisions:
    chosen = plan.options.method is not None or plan.method.name == "gradcam"
    return Decisions(
        image_input=plan.image_input,
        image_layout=plan.input_layout,
        to_feed=_to_feed(plan, inputs, outputs),
        head="no global average pooling right after the layer" if plan.head is None else plan.head.why,
        layer=_layer(plan.layer.chosen),
        layer_reason=plan.layer.reason,
        levels=[_layer(layer.chosen) for layer in plan.layers],
        candidates=[_layer(candidate) for candidate in plan.layer.candidates],
        task=plan.task.name,
        method=plan.method.name,
        method_reason=""
        if chosen
        else f"the default for {plan.task.name}, where every position counts by itself; gradcam averages over them",
        weights=plan.weights,
        modifier=plan.modifier or "",
        complete=plan.is_complete,
        grad_dtype=plan.options.grad_dtype,
        missing_rules=list(plan.problems),
        warnings=list(plan.warnings),
    )


def _score_alone(model: ModelSource, options: Options) -> ScoreInfo | None:
    """The score of a model for which no layer was found; `None` if there is none either."""
    outputs = [options.output] if isinstance(options.output, str) else list(options.output or ())
    if len(outputs) > 1:
        return None
    try:
        with invalid_models_refused(model):
            return _score(find_score(Builder(load(model)), next(iter(outputs), None), options.score or "logit"))
    except ExplainError:
        return None


def _score(score: Score) -> ScoreInfo:
    return ScoreInfo(
        output=score.output.name,
        tensor=score.tensor.name,
        classes=score.classes,
        single_logit=score.single_logit,
        activation=score.activation,
        reason=score.reason,
    )


def _layer(candidate: Candidate) -> LayerInfo:
    node = candidate.tensor.core.producer()
    return LayerInfo(
        tensor=candidate.tensor.name,
        operator=None if node is None else node.op_type,
        node=None if node is None else node.name,
        shape=list(named(candidate.tensor.shape)),
        grid=list(named(candidate.grid)),
        layout=candidate.describe(),
        every_path=candidate.every_path,
    )


def _tensor(info: onnx.ValueInfoProto) -> TensorInfo:
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorInfo(name=info.name, dtype=(kind or "unknown").removesuffix("_type"), shape=None)
    tensor = info.type.tensor_type
    sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return TensorInfo(
        name=info.name,
        dtype={"float": "float32", "double": "float64"}.get(dtype, dtype),
        shape=sizes if tensor.HasField("shape") else None,
    )
