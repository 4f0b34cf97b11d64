"""How layers are called: the inbound nodes of a functional model's configuration, in Keras 2's form and Keras 3's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_gradcam.errors import ExportError

__all__ = ["Arguments", "Reference", "arguments", "flat_references", "references"]


@dataclass(frozen=True)
class Reference:
    """A tensor of the model: an output of one call of a layer."""

    layer: str
    node: int
    output: int


@dataclass(frozen=True)
class Arguments:
    """What a layer is called with; tensors are `Reference`s, constants numbers, lists or arrays."""

    args: list[Any]
    kwargs: dict[str, Any]


def _reference(value: Any) -> Reference:
    if (
        not isinstance(value, (list, tuple))
        or len(value) < 3
        or not isinstance(value[0], str)
        or not all(isinstance(v, int) for v in value[1:3])
    ):
        raise ExportError(f"the configuration has {value!r} where a layer's output belongs; save the model again")
    return Reference(value[0], value[1], value[2])


def flat_references(struct: Any) -> list[Reference]:
    """The tensors that `input_layers` or `output_layers` name, which may be nested."""
    if isinstance(struct, Mapping):
        return [r for value in struct.values() for r in flat_references(value)]
    if isinstance(struct, list) and struct and not isinstance(struct[0], str):
        return [r for value in struct for r in flat_references(value)]
    return [_reference(struct)]


def arguments(node: Any, layers: Mapping[str, Any]) -> Arguments:
    """The arguments of one call.

    Args:
        node: an entry of `inbound_nodes`.
        layers: the model's layers by name; Keras 2 writes tensors among keyword arguments as plain lists.
    """
    if isinstance(node, Mapping):
        args, kwargs = _decoded(node.get("args", [])), _decoded(node.get("kwargs", {}))
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ExportError(f"a layer is called with {args!r} and {kwargs!r}; save the model again")
        return Arguments(args, kwargs)
    if not isinstance(node, list) or not node:
        raise ExportError(f"the configuration has {node!r} where a call of a layer belongs; save the model again")
    entries = [node] if isinstance(node[0], str) else node
    args, kwargs = [], {}
    for entry in entries:
        if isinstance(entry, list) and len(entry) > 2 and entry[0] == "_CONSTANT_VALUE":
            args.append(entry[2])
        else:
            args.append(_reference(entry))
        if len(entry) > 3:
            kwargs.update(_decoded_legacy(entry[3], layers))
    return Arguments(args, kwargs)


def _decoded(value: Any) -> Any:
    """A value as Keras 3 writes it."""
    if isinstance(value, list):
        return [_decoded(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    kind, config = value.get("class_name"), value.get("config")
    if kind == "__keras_tensor__" and isinstance(config, Mapping):
        return _reference(config.get("keras_history"))
    if kind in ("__numpy__", "__tensor__") and isinstance(config, Mapping):
        return np.asarray(config.get("value"), np.float32)
    if kind in ("__tuple__", "__slice__") and isinstance(config, (list, Mapping)):
        return _decoded(config)
    return {key: _decoded(v) for key, v in value.items()}


def _decoded_legacy(kwargs: Any, layers: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as Keras 2 writes them."""
    if not isinstance(kwargs, Mapping):
        raise ExportError(f"the configuration has {kwargs!r} where keyword arguments belong; save the model again")

    def decoded(value: Any) -> Any:
        if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and value[0] in layers:
            return _reference(value)
        return [decoded(v) for v in value] if isinstance(value, list) else value

    return {key: decoded(value) for key, value in kwargs.items()}


def references(value: Any) -> Iterator[Reference]:
    """All tensors in a nested structure."""
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, Arguments):
        yield from references(value.args)
        yield from references(value.kwargs)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from references(inner)
