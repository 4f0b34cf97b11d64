"""The description of an explained model in its `metadata_props`: what a runtime needs to feed and to read it."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args

from .errors import InputError, ModelError, UnsupportedError
from .files import ModelSource, model_data, open_file
from .options import Combine, GradDtype, ModifierName, Probabilities

__all__ = ["ONE_AT_A_TIME", "OWN", "PREFIX", "Carried", "CarriedLayer", "Metadata", "peek"]

PREFIX = "onnx_gradcam."
OWN = "onnx-gradcam"
"""The origin of what this package stored."""

ONE_AT_A_TIME = (
    "the model computes a range or a mean over the whole batch, so results depend on the other images in it; this "
    "package runs it on one image at a time, other servers need to be configured"
)
"""The warning for a model with `Metadata.couples_rows`."""

_JSON_FIELDS = (
    "labels",
    "preprocessing",
    "single_logit",
    "all_classes",
    "disabled_optimizers",
    "target_tensors",
    "eigen_smooth",
    "couples_rows",
    "extent",
    "outputs",
    "raised_from",
)


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_extent(value: Any) -> bool:
    edges = value if isinstance(value, list) else [None]
    numbers = [number for edge in edges if isinstance(edge, list) and len(edge) == 2 for number in edge]
    finite = all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e9 for n in numbers)
    return finite and len(edges) in {0, 4} and len(numbers) == 2 * len(edges)


def _is_layers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) for key in ("tensor", "kind", "layout"))
        and isinstance(entry.get("shape"), list)
        for entry in value.values()
    )


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "labels": (_is_strings, "list of strings"),
    "preprocessing": (lambda value: isinstance(value, dict), "object"),
    "layers": (_is_layers, "object of layers, each with tensor, kind, shape and layout"),
    "single_logit": (lambda value: isinstance(value, bool), "true or false"),
    "all_classes": (lambda value: isinstance(value, bool), "true or false"),
    "eigen_smooth": (lambda value: isinstance(value, bool), "true or false"),
    "extent": (_is_extent, "list of four pairs of numbers, or an empty one"),
    "couples_rows": (lambda value: isinstance(value, bool), "true or false"),
    "disabled_optimizers": (_is_strings, "list of strings"),
    "target_tensors": (_is_strings, "list of strings"),
    "outputs": (_is_strings, "list of strings"),
    "raised_from": (lambda value: type(value) is int, "whole number"),
}
"""What each entry in JSON has to be."""


Tensor = tuple[str, Sequence[int | str | None] | None]
"""The dtype and the shape of a tensor; `None` if its rank is unknown."""

_UNFIT = "the model's explanation metadata does not fit its graph"
_REMEDY = "; it was edited after it was explained, so start from the original model"
_DETECTIONS = ("box_input", "heatmap_box", "heatmap_score", "detection_scores", "detection_boxes")
_MAY_BE_EMPTY = {"class_input", "mask_input", "attribution", "completeness", *_DETECTIONS}
_OTHERS = [
    "".join(order)
    for axes in ("NCW", "NHW", "NCDHW")
    for order in itertools.permutations(axes)
    if [letter for letter in order if letter in "DHW"] == [letter for letter in axes if letter in "DHW"]
]
"""The axes of signals `[N, C, T]`, spectrograms `[N, T, F]` and volumes or clips `[N, C, D, H, W]`, in any order."""
_WORDS: dict[str, Sequence[str]] = {
    "layout": ("NCHW", "NHWC", "CHW", "HWC", *_OTHERS),
    "activation": ("", "softmax", "logsoftmax", "sigmoid"),
    "weights": ("linear", "gradient", "finite", "none"),
    "derivative": ("exact", "straight-through"),
    "modifier": ("", *get_args(ModifierName)),
    "combine": ("", *get_args(Combine)),
    "grad_dtype": get_args(GradDtype),
    "probabilities": ("", *get_args(Probabilities)),
}
"""The words that some entries can be."""

_MOST_WORDS = 12
"""Words that a refusal lists."""
_NAMES = {"version", "method", "preset", "profile", "task"}
_NAME = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,63}")


def _entry(name: str) -> str:
    return f"the model's metadata entry {PREFIX + name!r}"


def _decoded(name: str, text: str) -> Any:
    """The value of an entry in JSON, refused if it is damaged or of another kind."""
    entry = _entry(name)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{entry} is not valid JSON ({exc}); write it again or remove it") from exc
    right, kind = _KINDS[name]
    if not right(value):
        raise ModelError(f"{entry} is not a JSON {kind}; write it again or remove it")
    return value


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a runtime needs to know to feed an explained model and to read its outputs.

    Attributes:
        version: of the package that attached the explanation.
        method: identifier of the method.
        preset: name of the conventions for score, gradient and heatmap.
        modifier: how the gradient is passed back: `guided`, `deconvnet`, `libra`, or empty for as it is.
        eigen_smooth: the map is the leading component of the weighted activation maps instead of their sum.
        weights: how the gradient is computed: `linear`, `gradient` or `finite`; `none` if the method needs none.
        derivative: `exact`, or `straight-through` if it crosses quantised numbers.
        target_tensor: the activation maps of the (first) layer; the image for methods that look at no layer.
        target_tensors: the activation maps of all layers.
        combine: how the maps of several layers became one, if not in the preset's way: `mean`, `max`, `product` or
            `sum`.
        score_tensor: the tensor that is differentiated.
        image_input: the input that takes images.
        layout: its axes, `NCHW` or `NHWC`; `CHW` or `HWC` if it takes one image without a batch axis. Everything that
            the explanation adds has a batch axis all the same, of size one. `NCW` and the like for signals, `NCDHW` for
            volumes and clips, spatial axes in the order of the input.
        scores_output: the model's own output with the scores.
        activation: its last operator: `softmax`, `logsoftmax`, `sigmoid` or nothing.
        single_logit: a single number decides between two classes.
        class_input: name of the input that chooses the class; empty if the class is fixed.
        heatmap: name of the heatmap output.
        cam: name of the raw map output.
        attribution: name of the output with one value for each value of the image; empty for none.
        heatmap_class: name of the output with the explained class.
        completeness: name of the output with what is left of the score, `float32 [N]`, when the image times its
            gradient and what biases contribute are taken away, or of its change from the baselines without the
            attribution; empty where that is no property of the method.
        labels: class names, or `None`.
        preprocessing: how images become the model's input, or `None`.
        probabilities: how scores become the probabilities that are shown, where that is not the default.
        profile: which of several equal ways the gradient is written in.
        grad_dtype: dtype of the gradient: that of the `model`, or `float32`.
        disabled_optimizers: optimizations of ONNX Runtime that would compute this model wrongly.
        task: what the model does, a name in `onnx_gradcam.editor.targets.task.TASKS`.
        mask_input: name of the input with the region where a segmentation is explained; empty for none.
        all_classes: heatmap and raw map have one map per class, in the order of the classes, on axis 1.
        couples_rows: what the model computes for a row depends on the other rows of the batch.
        box_input: name of the input that chooses the box of a detector; empty if it is fixed, or for other tasks, as
            are the next four.
        heatmap_box: name of the output with the index of the explained box.
        heatmap_score: name of the output with its probability.
        detection_scores: name of the output with the probabilities of all boxes, `[N, boxes, K]`.
        detection_boxes: name of the output with the corners of all boxes, `[N, boxes, 4]`, in pixels of the input;
            empty where these cannot be told.
        extent: top, left, bottom and right of the part of the input that the layer's maps cover, each as pixels and a
            share of the input's height or width; empty for the whole input.
        raised_from: the opset of the original, if it was older than those that explanations are written in.
    """

    version: str
    method: str
    preset: str
    weights: str
    derivative: str
    target_tensor: str
    score_tensor: str
    image_input: str
    layout: str
    scores_output: str
    activation: str
    single_logit: bool
    class_input: str
    heatmap: str
    cam: str
    heatmap_class: str
    attribution: str = ""
    completeness: str = ""
    modifier: str = ""
    eigen_smooth: bool = False
    target_tensors: list[str] = dataclasses.field(default_factory=list)
    combine: str = ""
    labels: list[str] | None = None
    preprocessing: dict[str, Any] | None = None
    probabilities: str = ""
    profile: str = "portable"
    grad_dtype: str = "model"
    disabled_optimizers: list[str] = dataclasses.field(default_factory=list)
    task: str = "classification"
    mask_input: str = ""
    all_classes: bool = False
    couples_rows: bool = False
    box_input: str = ""
    heatmap_box: str = ""
    heatmap_score: str = ""
    detection_scores: str = ""
    detection_boxes: str = ""
    extent: list[list[float]] = dataclasses.field(default_factory=list)
    raised_from: int | None = None

    @property
    def layers(self) -> list[str]:
        """The activation maps that are explained, one or several."""
        return self.target_tensors or [self.target_tensor]

    def with_probabilities(self, chosen: Probabilities | None) -> Metadata:
        """The same with another way from scores to probabilities, if one is chosen.

        Raises:
            InputError: the model outputs probabilities already, or has none.
        """
        if chosen is None:
            return self
        if self.task == "detection":
            raise InputError("the scores of a detector's boxes are probabilities already; omit --probabilities")
        if self.task != "classification":
            raise InputError(f"a model for {self.task} has no probabilities of classes; omit --probabilities")
        if self.activation and chosen != "none":
            raise InputError(
                f"the model ends in {self.activation} and outputs probabilities already; omit --probabilities"
            )
        return dataclasses.replace(self, probabilities=chosen)

    @property
    def batched(self) -> bool:
        """Whether the image input has a batch axis."""
        return "N" in self.layout

    @property
    def positions(self) -> str:
        """The spatial axes of the input: `W` of a signal, `HW` of an image, `DHW` of a volume or a clip."""
        return "".join(letter for letter in self.layout if letter in "DHW")

    @property
    def of_images(self) -> bool:
        """Whether the input has the axes of images."""
        return self.batch_layout in {"NCHW", "NHWC"}

    def require_images(self, what: str) -> None:
        """Refuse a model whose input has other axes, for what takes images only."""
        if not self.of_images:
            raise UnsupportedError(
                f"{what} takes images, and the input {self.image_input!r} is {self.layout}; use explain with an array, "
                "or attach"
            )

    @property
    def batch_layout(self) -> str:
        """The axes of a batch of images, `NCHW` or `NHWC`."""
        return self.layout if self.batched else f"N{self.layout}"

    def batch_shape(self, shape: Sequence[int | str | None]) -> tuple[int | str | None, ...]:
        """The shape of a batch of images, of the shape of the image input."""
        return tuple(shape) if self.batched else (1, *shape)

    @property
    def rows(self) -> set[str]:
        """The outputs that the explanation reads or adds, each with a row for every image."""
        own = {self.scores_output, self.heatmap, self.cam, self.heatmap_class, self.attribution, self.completeness}
        return {*own, self.heatmap_box, self.heatmap_score, self.detection_scores, self.detection_boxes} - {""}

    def box_in(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right of `extent` in pixels of an input of a height and width."""
        if not self.extent:
            return 0, 0, height, width
        sides = (height, width, height, width)
        edges = [round(pixels + share * side) for (pixels, share), side in zip(self.extent, sides, strict=True)]
        return edges[0], edges[1], edges[2], edges[3]

    def to_props(self) -> dict[str, str]:
        """The entries for `metadata_props`."""
        entries = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            PREFIX + name: json.dumps(value, ensure_ascii=False) if name in _JSON_FIELDS else str(value)
            for name, value in entries.items()
            if value is not None
        }

    def check_graph(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Refuse entries that do not fit the graph, which another tool may have edited.

        Args:
            inputs: dtype and shape of every input of the graph, by name; no shape if it is unknown.
            outputs: the same of every output.

        Raises:
            ModelError: a tensor is missing, or has a dtype or rank that it cannot have.
        """
        maps = 1 + len(self.positions) + self.all_classes
        image = inputs.get(self.image_input, ("", None))[1]
        rank = None if image is None else len(image) + (not self.batched)
        self._check_tensor("image_input", inputs, "input", "", len(self.layout))
        self._check_tensor("class_input", inputs, "input", "int64", 1)
        self._check_tensor("mask_input", inputs, "input", "float32", 3)
        self._check_tensor("scores_output", outputs, "output", "", None)
        self._check_tensor("heatmap", outputs, "output", "float32", maps)
        self._check_tensor("cam", outputs, "output", "float32", maps)
        self._check_tensor("heatmap_class", outputs, "output", "int64", 1)
        self._check_tensor("attribution", outputs, "output", "", rank)
        self._check_tensor("completeness", outputs, "output", "float32", 1)
        self._check_tensor("box_input", inputs, "input", "int64", 1)
        self._check_tensor("heatmap_box", outputs, "output", "int64", 1)
        self._check_tensor("heatmap_score", outputs, "output", "float32", 1)
        self._check_tensor("detection_scores", outputs, "output", "float32", 3)
        self._check_tensor("detection_boxes", outputs, "output", "float32", 3)
        optional = [self.attribution, self.completeness, *(getattr(self, name) for name in _DETECTIONS[1:])]
        names = [self.scores_output, self.heatmap, self.cam, self.heatmap_class, *filter(None, optional)]
        if len(set(names)) < len(names):
            raise ModelError(f"{_UNFIT}: two of its entries name the same output{_REMEDY}")

    def _check_tensor(self, entry: str, tensors: Mapping[str, Tensor], kind: str, dtype: str, rank: int | None) -> None:
        name = getattr(self, entry)
        if not name and entry in _MAY_BE_EMPTY:
            return
        if name not in tensors:
            raise ModelError(f"{_UNFIT}: there is no {kind} {name[:99]!r}, which {PREFIX + entry!r} names{_REMEDY}")
        actual, shape = tensors[name]
        if (dtype and actual != dtype) or (rank is not None and shape is not None and len(shape) != rank):
            expected = f"{dtype or 'a tensor'}{'' if rank is None else f' of {rank} axes'}"
            raise ModelError(
                f"{_UNFIT}: the {kind} {name[:99]!r} is not {expected}, as {PREFIX + entry!r} needs{_REMEDY}"
            )

    @classmethod
    def of(cls, source: ModelSource) -> Metadata | None:
        """The entries of a model, as of `from_props`; its graph is not parsed."""
        data = model_data(source)
        if isinstance(data, str | Path | bytes):
            return cls.from_props(peek(data))
        return cls.from_props({entry.key: entry.value for entry in data.metadata_props})

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> Metadata | None:
        """Read the entries, refused if some are missing or damaged; `None` for a model that is not explained."""
        entries = {k[len(PREFIX) :]: v for k, v in props.items() if k.startswith(PREFIX)}
        if "heatmap" not in entries:
            return None
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name in entries:
                text = entries[field.name]
                values[field.name] = _decoded(field.name, text) if field.name in _JSON_FIELDS else text
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ModelError(
                    f"the model's explanation metadata is damaged ({PREFIX + field.name!r} is missing); start from "
                    "the original model"
                )
        metadata = cls(**values)
        metadata._check_words()
        return metadata

    def _check_words(self) -> None:
        for name, words in _WORDS.items():
            word = getattr(self, name)
            if word not in words:
                more = " ..." if len(words) > _MOST_WORDS else ""
                listed = ", ".join(map(repr, words[:_MOST_WORDS])) + more
                raise ModelError(f"{_entry(name)} is {word[:99]!r}, not one of {listed}{_REMEDY}")
        for name in sorted(_NAMES):
            word = getattr(self, name)
            if not _NAME.fullmatch(word):
                raise ModelError(f"{_entry(name)} is {word[:99]!r}, which is not a name{_REMEDY}")


@dataclass(frozen=True, kw_only=True)
class CarriedLayer:
    """A layer of the framework that a model was exported from.

    Attributes:
        tensor: the tensor it became, on the path from the image to the score.
        kind: the framework's class of the layer.
        shape: of the tensor, with symbols for free sizes.
        layout: axes of the tensor, `NCHW` for maps, whatever the framework's order; empty if unknown.
    """

    tensor: str
    kind: str = ""
    shape: list[int | str | None] = dataclasses.field(default_factory=list)
    layout: str = ""


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What a model carries for its users, explained or not.

    Attributes:
        labels: class names.
        preprocessing: how images become the model's input.
        layers: the framework's layers by name.
        framework: the framework it was exported from.
        framework_version: its version, if known.
        target_layer: the layer that was chosen at export, if any.
        task: what the model was exported for; empty for classification.
        outputs: the outputs to explain, if they were named at export or belong to a task.
        image_input: the input that takes images, if it was named at export.
        parity: the difference to the framework's values as measured by the exporter; empty if it was not.
        score_kind: the last operator of the scores: `softmax`, `logsoftmax`, `sigmoid`, or `logit` for none.
        probabilities: how the scores become probabilities, `softmax`, `sigmoid` or `none`; empty if nobody says.
        biases: `apart` if every bias is one of the framework's, `merged` if one of a convolution was merged with that
            of a normalization behind it; empty if the exporter does not know.
    """

    labels: list[str] | None = None
    preprocessing: dict[str, Any] | None = None
    layers: dict[str, CarriedLayer] = dataclasses.field(default_factory=dict)
    framework: str = ""
    framework_version: str = ""
    target_layer: str = ""
    task: str = ""
    outputs: list[str] = dataclasses.field(default_factory=list)
    image_input: str = ""
    parity: str = ""
    score_kind: str = ""
    probabilities: str = ""
    biases: str = ""

    @property
    def tensors(self) -> dict[str, str]:
        """The tensor of each framework layer."""
        return {name: layer.tensor for name, layer in self.layers.items()}

    def to_props(self) -> dict[str, str]:
        """The entries for `metadata_props`; those that say nothing are left out."""
        entries = dataclasses.asdict(self)
        return {
            PREFIX + name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in entries.items()
            if value
        }

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> Carried:
        """Read the entries, refused if one is not valid JSON of the right kind."""
        entries = {f.name: props[PREFIX + f.name] for f in dataclasses.fields(cls) if PREFIX + f.name in props}
        values: dict[str, Any] = {
            name: _decoded(name, text) if name in _KINDS else text for name, text in entries.items()
        }
        fields = {f.name for f in dataclasses.fields(CarriedLayer)}
        layers = {
            name: CarriedLayer(**{key: value for key, value in entry.items() if key in fields})
            for name, entry in values.pop("layers", {}).items()
        }
        carried = cls(layers=layers, **values)
        words = _WORDS["probabilities"]
        if carried.probabilities not in words:
            raise ModelError(
                f"{_entry('probabilities')} is {carried.probabilities[:99]!r}, not one of "
                f"{', '.join(map(repr, words))}; write it again or remove it"
            )
        return carried


def peek(source: str | Path | bytes) -> dict[str, str]:
    """The `metadata_props` of a model file, without parsing its graph, which is skipped.

    Of a damaged file, the entries before the damage: loading it later raises the error.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_file(source) as stream:
            return dict(_top_level_entries(stream))
    except (InputError, OSError):
        return {}


_METADATA_FIELD = 14
_LENGTH_DELIMITED = 2
_FIXED_WIDTHS = {1: 8, 5: 4}


def _top_level_entries(stream: BinaryIO) -> Iterator[tuple[str, str]]:
    while (tag := _varint(stream)) is not None:
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            _varint(stream)
        elif wire in _FIXED_WIDTHS:
            stream.seek(_FIXED_WIDTHS[wire], io.SEEK_CUR)
        elif wire == _LENGTH_DELIMITED and (size := _varint(stream)) is not None:
            if field != _METADATA_FIELD:
                stream.seek(size, io.SEEK_CUR)
                continue
            entry = io.BytesIO(stream.read(size))
            parts = {1: b"", 2: b""}
            while (inner := _varint(entry)) is not None and (length := _varint(entry)) is not None:
                parts[inner >> 3] = entry.read(length)
            yield parts[1].decode("utf-8", "replace"), parts[2].decode("utf-8", "replace")
        else:
            return


def _varint(stream: BinaryIO) -> int | None:
    """A base-128 number; `None` at the end of the stream or where it is longer than 64 bits."""
    number = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            return None
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return number
    return None
