"""Explained models for runtimes that cannot feed an optional input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from .attachment import attach
from .errors import RequestError
from .graph.load import load
from .graph.model import Model
from .metadata import Metadata, peek

__all__ = ["with_required_class"]


def with_required_class(source: str | Path, choices: dict[str, Any]) -> tuple[Model, Metadata]:
    """The explained model, whose class is an ordinary input where it is one at all.

    Args:
        source: an explained model, or one that is attached first.
        choices: fields of `Options`, for a model that is not explained yet.

    Raises:
        RequestError: there are choices for a model that is explained already.
        ExplainError: as `attach`.
    """
    metadata = Metadata.from_props(peek(source))
    if metadata is None:
        explained = attach(source, class_input="required", **choices)
        return explained.model, explained.metadata
    if choices:
        raise RequestError(f"the model is explained already; {', '.join(choices)} cannot be chosen any more")
    model = load(source)
    graph = model.core.graph
    value = graph.initializers.pop(metadata.class_input, None)
    if value is not None:
        value.const_value = None
        batch = model.shapes[metadata.image_input][0]
        value.shape = ir.Shape([batch])
        graph.inputs.append(value)
        model.shapes[metadata.class_input] = (batch,)
        model.types[metadata.class_input] = onnx.TensorProto.INT64
    model.check()
    return model, metadata
