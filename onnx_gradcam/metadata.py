"""What an explained model says of itself, in its `metadata_props`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ModelError

__all__ = ["PREFIX", "Metadata", "read_labels_and_preprocessing"]

PREFIX = "onnx_gradcam."

_JSON_FIELDS = ("labels", "preprocessing", "single_logit", "disabled_optimizers")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The facts a runtime needs to feed an explained model and to read what it gives.

    Attributes:
        version: of the package that attached the explanation.
        method: identifier of the method.
        preset: name of the finishing conventions.
        weights: how the cotangent is had: `linear`, `gradient` or `finite`.
        target_tensor: the activation maps.
        score_tensor: the tensor that is differentiated.
        image_input: the input that takes pictures.
        layout: its axes, `NCHW` or `NHWC`.
        scores_output: the model's own output that holds the scores.
        activation: what lies between score tensor and output: `softmax`, `logsoftmax`, `sigmoid` or nothing.
        single_logit: one number decides between two classes.
        class_input: name of the input that takes the class; empty where the class is fixed.
        heatmap: name of the heatmap output.
        cam: name of the raw map output.
        heatmap_class: name of the output that says which class was explained.
        labels: class names, or `None`.
        preprocessing: how pictures become the model's input, or `None`.
        disabled_optimizers: optimisations of ONNX Runtime that would give this model wrong results.
    """

    version: str
    method: str
    preset: str
    weights: str
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
    labels: list[str] | None = None
    preprocessing: dict[str, Any] | None = None
    disabled_optimizers: list[str] = dataclasses.field(default_factory=list)

    def to_props(self) -> dict[str, str]:
        """The entries for `metadata_props`."""
        entries = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            PREFIX + name: json.dumps(value, ensure_ascii=False) if name in _JSON_FIELDS else str(value)
            for name, value in entries.items()
            if value is not None
        }

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> Metadata | None:
        """Read the entries; `None` for a model that is not explained.

        Raises:
            ModelError: entries are missing or damaged.
        """
        mine = {k[len(PREFIX) :]: v for k, v in props.items() if k.startswith(PREFIX)}
        if "heatmap" not in mine:
            return None
        try:
            values: dict[str, Any] = {
                f.name: json.loads(mine[f.name]) if f.name in _JSON_FIELDS else mine[f.name]
                for f in dataclasses.fields(cls)
                if f.name in mine
            }
            return cls(**values)
        except (TypeError, ValueError) as exc:
            raise ModelError(f"the model's explanation metadata is damaged ({exc}); attach the model again") from exc


def read_labels_and_preprocessing(props: Mapping[str, str]) -> tuple[list[str] | None, dict[str, Any] | None]:
    """Class names and preprocessing that a model carries, explained or not.

    Raises:
        ModelError: an entry is not valid JSON of the right kind.
    """
    found: list[Any] = []
    for name, kind in (("labels", list), ("preprocessing", dict)):
        text = props.get(PREFIX + name)
        try:
            value = None if text is None else json.loads(text)
        except ValueError as exc:
            raise ModelError(f"the model's metadata entry {PREFIX + name!r} is not valid JSON ({exc})") from exc
        if value is not None and not isinstance(value, kind):
            raise ModelError(f"the model's metadata entry {PREFIX + name!r} is not a JSON {kind.__name__}")
        found.append(value)
    return found[0], found[1]
