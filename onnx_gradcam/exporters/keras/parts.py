"""Build a model from its Keras configuration: layers with their variables, and the calls between them.

Calls are the `inbound_nodes` of a functional model, in the forms of Keras 2 and 3. Calling a part writes its nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from onnx_gradcam.errors import ExportError
from onnx_gradcam.exporters.writer import Writer

from . import layers as _registered  # noqa: F401 - fills the registry
from .archive import REMEDY
from .call import Call, Layer, Outputs, Tensor
from .layer_table import OPERATIONS, TF_FUNCTIONS, rule_of, written
from .weights import Source

__all__ = ["Arguments", "Container", "Context", "count_variables", "layer_entries", "policy_of"]


@dataclass(frozen=True)
class Reference:
    """A tensor of the model: one output of one call of a layer."""

    layer: str
    node: int
    output: int


@dataclass(frozen=True)
class Arguments:
    """A call's arguments: tensors are `Reference`s, constants are numbers, lists or arrays."""

    args: list[Any]
    kwargs: dict[str, Any]


def _reference(value: Any) -> Reference:
    if (
        not isinstance(value, (list, tuple))
        or len(value) < 3
        or not isinstance(value[0], str)
        or not all(isinstance(v, int) for v in value[1:3])
    ):
        raise ExportError(f"the configuration has {value!r} in the place of a layer's output; save the model again")
    return Reference(value[0], value[1], value[2])


def flat_references(struct: Any) -> list[Reference]:
    """The tensors of `input_layers` or `output_layers`, which may be nested."""
    if isinstance(struct, Mapping):
        return [r for value in struct.values() for r in flat_references(value)]
    if isinstance(struct, list) and struct and not isinstance(struct[0], str):
        return [r for value in struct for r in flat_references(value)]
    return [_reference(struct)]


def arguments(node: Any, layers: Mapping[str, Any]) -> Arguments:
    """The arguments of an entry of `inbound_nodes`; Keras 2 writes tensors in keyword arguments as plain lists."""
    if isinstance(node, Mapping):
        args, kwargs = _decoded(node.get("args", [])), _decoded(node.get("kwargs", {}))
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ExportError(f"a layer is called with {args!r} and {kwargs!r}; save the model again")
        return Arguments(args, kwargs)
    if not isinstance(node, list) or not node:
        raise ExportError(f"the configuration has {node!r} in the place of a layer's call; save the model again")
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
    kind, config = value.get("class_name"), value.get("config", {})
    if isinstance(kind, str) and kind in _OBJECTS and isinstance(config, list if kind == "__tuple__" else Mapping):
        return _OBJECTS[kind](config)
    return {key: _decoded(v) for key, v in value.items()}


_BOUNDS = ("start", "stop", "step")

_OBJECTS: dict[str, Callable[[Any], Any]] = {
    "__keras_tensor__": lambda config: _reference(config.get("keras_history")),
    "__numpy__": lambda config: np.asarray(config.get("value"), np.float32),
    "__tensor__": lambda config: np.asarray(config.get("value"), np.float32),
    "__tuple__": _decoded,
    "__ellipsis__": lambda _: ...,
    "__slice__": lambda config: slice(*(config.get(key) for key in _BOUNDS)),
}
"""Python objects in the arguments of a call, by Keras's names for them."""


def _decoded_legacy(kwargs: Any, layers: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as Keras 2 writes them."""
    if not isinstance(kwargs, Mapping):
        raise ExportError(f"the configuration has {kwargs!r} in the place of keyword arguments; save the model again")

    def decoded(value: Any) -> Any:
        if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and value[0] in layers:
            return _reference(value)
        if isinstance(value, Mapping):
            return slice(*(value[key] for key in _BOUNDS)) if set(value) == set(_BOUNDS) else _decoded(value)
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


_MODELS = frozenset({"Functional", "Model", "Sequential"})
_MODEL_MODULES = ("keras", "tf_keras", "tensorflow.keras")
_DEEPEST = 32
_DTYPES = frozenset({"float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"})
_TF_OPERATIONS = frozenset({"TFOpLambda", "SlicingOpLambda"})
"""The classes that Keras 2 keeps the functions of TensorFlow in."""

_TF_NAMES = {
    "y": "x2",
    "shape": "newshape",
    "slice_spec": "key",
    "b": "x2",
    "clip_value_min": "x_min",
    "clip_value_max": "x_max",
}
"""TensorFlow's argument names, and the names used here."""

_DAMAGE = (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, ZeroDivisionError)
"""The exceptions of a layer's function on an invalid configuration."""


@dataclass(eq=False, kw_only=True)
class Context:
    """The state shared by all layers of a model."""

    writer: Writer  # the graph
    major: int  # first number of the version of Keras that wrote the file
    channels_last: bool  # maps are `[N, H, W, C]` in Keras
    keep_layout: bool = False  # inputs keep Keras's axes
    layers: dict[str, tuple[Tensor, str]] = field(default_factory=dict)  # tensor and class of each, in execution order
    _named: set[str] = field(default_factory=set)

    def call(self, layer: Layer) -> Call:
        """A call of `layer`."""
        return Call(layer=layer, writer=self.writer, major=self.major, channels_last=self.channels_last)

    def guarded(self, layer: Layer, write: Callable[[Call], Outputs], path: str) -> list[Tensor]:
        """Let a layer write its nodes, and name its outputs after it: `path`, `path/output_1` ..."""
        try:
            outputs = write(self.call(layer))
        except ExportError as exc:
            raise ExportError(f"{layer}: {exc}; {REMEDY}") from exc
        except _DAMAGE as exc:
            raise ExportError(f"{layer}: its configuration is invalid ({exc!r}); save the model again") from exc
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return [self.named(y, f"{path}/output_{i}" if i else path, layer.kind) for i, y in enumerate(outputs)]

    def named(self, y: Tensor, path: str, kind: str) -> Tensor:
        """Name a tensor after the layer that it is the output of; a named one is copied."""
        if y.value.name in self._named or y.value.core.producer() is None:
            y = Tensor(self.writer.op("Identity", y.value), y.moved)
        self.writer.rename(y.value, path)
        self.known(y, path, kind)
        return y

    def known(self, y: Tensor, path: str, kind: str) -> None:
        """Enter a layer into the table."""
        self._named.add(y.value.name)
        self.layers[path] = (y, kind)


class Part(Protocol):
    """A layer, operation or model inside the model."""

    def __call__(self, context: Context, args: Arguments, path: str) -> list[Tensor]:
        """Write one call, named `path`."""


def _tensors(
    args: Arguments, layer: Layer, major: int, accepted: Collection[str] = ()
) -> tuple[list[Tensor], dict[str, Any]]:
    """A call's tensors, and its arguments by name; those not in `accepted` must have no effect.

    Keras 3's `predict` passes `training=False` to all layers, whatever they were called with; Keras 2's does not.
    """

    def flat(value: Any) -> Iterator[Any]:
        if isinstance(value, (list, tuple)):
            for inner in value:
                yield from flat(inner)
        else:
            yield value

    named = {}
    for key, value in args.kwargs.items():
        if value is None or (key == "training" and (major > 2 or value is False)):
            continue
        if key in accepted:
            named[key] = value
        else:
            raise ExportError(f"{layer}: it is called with {key} = {value!r}; {REMEDY}")
    tensors = []
    for value in flat(args.args):
        if not isinstance(value, Tensor):
            raise ExportError(f"{layer}: it is called with the constant {value!r}; {REMEDY}")
        tensors.append(value)
    return tensors, named


class _Leaf:
    """A layer with a rule."""

    def __init__(self, entry: Mapping[str, Any], source: Source, path: str, major: int) -> None:
        config = entry["config"]
        self._layer = Layer(path=path, kind=str(entry["class_name"]))
        self._rule = rule_of(entry, self._layer)
        self._options = self._rule.options(config, self._layer)
        slots = self._rule.slots_of(config, major)
        stored = source.variables(slots, str(self._layer))
        self._layer.variables = {slot.name: variable for slot, variable in zip(slots, stored, strict=True)}

    def __call__(self, context: Context, args: Arguments, path: str) -> list[Tensor]:
        xs, named = _tensors(args, self._layer, context.major, self._rule.arguments)
        return context.guarded(self._layer, lambda call: written(self._rule, call, xs, named, self._options), path)


class _Operation:
    """An operation of Keras 3 or a function of TensorFlow."""

    def __init__(self, entry: Mapping[str, Any], path: str) -> None:
        kind, config = str(entry["class_name"]), dict(entry["config"])
        self._is_tf = kind in _TF_OPERATIONS
        name = str(config.pop("function", "")) if self._is_tf else kind
        self._layer = Layer(path=path, kind=f"{kind} {name}" if self._is_tf else kind)
        write = (TF_FUNCTIONS if self._is_tf else OPERATIONS).get(name)
        if write is None:
            raise ExportError(f"{self._layer}: this operation is not supported; {REMEDY}")
        self._write = write
        self._options = {k: v for k, v in config.items() if k not in {"name", "dtype", "trainable"}}

    def __call__(self, context: Context, args: Arguments, path: str) -> list[Tensor]:
        kwargs = dict(args.kwargs)
        if self._is_tf:
            kwargs = {_TF_NAMES.get(k, k): v for k, v in kwargs.items() if k != "name"}
        options = {**self._options, **kwargs}
        return context.guarded(self._layer, lambda call: self._write(call, *args.args, **options), path)


class Container:
    """A functional or sequential model, inside of `depth` others; `prefix` is that of its layers' names."""

    def __init__(self, entry: Mapping[str, Any], source: Source, prefix: str, major: int, depth: int = 0) -> None:
        self.kind = str(entry.get("class_name"))
        # Keras counts the graph inside a functional model as its call 0, but not Keras 3's sequential models.
        self.counts_itself = self.kind != "Sequential" or major < 3
        if depth > _DEEPEST:
            raise ExportError(f"model {prefix!r} is nested more than {_DEEPEST} deep; refused")
        self.entries = layer_entries(entry)
        self.name = prefix.rstrip("/")
        self.parts: dict[str, Part | None] = {}
        for inner in self.entries:
            name = str(inner["config"]["name"])
            if "/" in name and not name.strip("/"):
                raise ExportError(f"a layer is named {name!r}; rename it")
            if name in self.parts:
                raise ExportError(f"two layers are named {prefix + name!r}; save the model again")
            self.parts[name] = built(inner, source, prefix + name, major, depth)
        config = entry["config"]
        if self.kind == "Sequential":
            self.inputs, self.outputs, self._calls = self._chained()
        else:
            self.inputs = flat_references(config.get("input_layers"))
            self.outputs = [self._from_zero(r) for r in flat_references(config.get("output_layers"))]
            self._calls = list(self._nodes())

    def _chained(self) -> tuple[list[Reference], list[Reference], list[tuple[str, int, Arguments]]]:
        names = list(self.parts)
        start = names[0] if self.parts[names[0]] is None else ""
        last, calls = Reference(start, 0, 0), []
        for name in names:
            part = self.parts[name]
            if part is not None:
                calls.append((name, 0, Arguments([last], {})))
                last = Reference(name, 0, 0)
        return [Reference(start, 0, 0)], [last], calls

    def _nodes(self) -> Iterator[tuple[str, int, Arguments]]:
        for entry in self.entries:
            name = str(entry["config"]["name"])
            nodes = entry.get("inbound_nodes") or []
            if not isinstance(nodes, list):
                raise ExportError(f"the calls of layer {name!r} are {nodes!r}; save the model again")
            if self.parts[name] is not None:
                for number, node in enumerate(nodes):
                    args = arguments(node, self.parts)
                    # Keras 3 counts the calls of layers from zero.
                    yield name, number, args if isinstance(node, Mapping) else _replaced(args, self._from_zero)

    def _from_zero(self, reference: Reference) -> Reference:
        part = self.parts.get(reference.layer)
        if isinstance(part, Container) and part.counts_itself:
            return Reference(reference.layer, reference.node - 1, reference.output)
        return reference

    def __call__(self, context: Context, args: Arguments, path: str) -> list[Tensor]:
        """See `Part`."""
        xs, _ = _tensors(args, Layer(path=path, kind=self.kind), context.major)
        if len(xs) != len(self.inputs):
            raise ExportError(f"model {path!r} is called with {len(xs)} tensors, but has {len(self.inputs)} inputs")
        prefix = f"{path}/" if path else ""
        for reference, x in zip(self.inputs, xs, strict=True):
            if reference.layer:
                context.known(x, prefix + reference.layer, "InputLayer")
        values = dict(zip(self.inputs, xs, strict=True))
        waiting = self._calls
        while waiting:
            ready = [call for call in waiting if all(r in values for r in references(call[2]))]
            if not ready:
                name, _, unmet = waiting[0]
                missing = next(r for r in references(unmet) if r not in values)
                raise ExportError(
                    f"layer {prefix + name!r} is called with output {missing.output} of call {missing.node} of layer "
                    f"{missing.layer!r}, which does not exist; save the model again"
                )
            for call in ready:
                self._run(context, call, values, prefix)
            done = {(name, number) for name, number, _ in ready}
            waiting = [call for call in waiting if call[:2] not in done]
        outputs = []
        for reference in self.outputs:
            if reference not in values:
                raise ExportError(f"the output {reference.layer!r} of model {path!r} does not exist; save it again")
            outputs.append(values[reference])
        if path and outputs:
            context.known(outputs[0], path, self.kind)
        return outputs

    def _run(
        self, context: Context, call: tuple[str, int, Arguments], values: dict[Reference, Tensor], prefix: str
    ) -> None:
        name, number, args = call
        part = self.parts[name]
        if part is None:
            return
        path = prefix + name + (f":{number}" if number else "")
        for output, tensor in enumerate(part(context, _replaced(args, values.__getitem__), path)):
            values[Reference(name, number, output)] = tensor


def _replaced(struct: Any, replacement: Callable[[Reference], Any]) -> Any:
    """The structure with each reference replaced."""
    if isinstance(struct, Arguments):
        return Arguments(_replaced(struct.args, replacement), _replaced(struct.kwargs, replacement))
    if isinstance(struct, Reference):
        return replacement(struct)
    if isinstance(struct, list):
        return [_replaced(value, replacement) for value in struct]
    if isinstance(struct, dict):
        return {key: _replaced(value, replacement) for key, value in struct.items()}
    return struct


def layer_entries(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers of a model's configuration; a model with a class of its own is refused."""
    config = entry.get("config")
    if str(entry.get("class_name")) not in _MODELS or not _is_keras(entry.get("module")):
        raise ExportError(
            f"the model has the class {entry.get('class_name')!r} of {entry.get('module') or 'no module'}, neither "
            f"Functional nor Sequential; {REMEDY}"
        )
    entries = config.get("layers") if isinstance(config, Mapping) else config
    if not isinstance(entries, list) or not entries:
        raise ExportError(
            f"the configuration of model {entry.get('class_name')!r} lists no layers; save the model again"
        )
    for inner in entries:
        if (
            not isinstance(inner, dict)
            or not isinstance(inner.get("config"), Mapping | list)
            or not isinstance(inner.get("class_name"), str)
            or not inner["class_name"].isprintable()
        ):
            raise ExportError(f"the configuration has the invalid layer {str(inner)[:60]!r}; save the model again")
        if isinstance(inner["config"], list):
            inner["config"] = {"layers": inner["config"], "name": inner.get("name", "sequential")}
        inner["config"].setdefault("name", inner.get("name"))
        name = inner["config"]["name"]
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ExportError(f"a layer of class {inner['class_name']} has no printable name; rename it")
    return entries


def _is_keras(module: object) -> bool:
    return module is None or (isinstance(module, str) and module.split(".")[0] in _MODEL_MODULES)


def _is_operation(entry: Mapping[str, Any], major: int) -> bool:
    """Whether it is an operation; in `.h5` files operations differ from layers of the same name in having no dtype."""
    module = entry.get("module")
    if module is None:
        return entry["class_name"] in _TF_OPERATIONS or (
            major > 2 and not {"trainable", "dtype"} & set(entry["config"])
        )
    return entry["class_name"] in _TF_OPERATIONS or str(module).startswith("keras.src.ops.")


def built(entry: Mapping[str, Any], source: Source, path: str, major: int, depth: int) -> Part | None:
    """A layer with its variables; `None` for an input."""
    if entry["class_name"] == "InputLayer":
        return None
    if _is_operation(entry, major):
        return _Operation(entry, path)
    own = source.child(entry)
    policy_of(entry, path)
    if entry["class_name"] in _MODELS and _is_keras(entry.get("module")):
        return Container(entry, own, f"{path}/", major, depth + 1)
    return _Leaf(entry, own, path, major)


def policy_of(entry: Mapping[str, Any], path: str) -> str:
    """The name of a layer's dtype policy, which must be a floating-point dtype."""
    dtype = entry["config"].get("dtype")
    if isinstance(dtype, Mapping):
        config = dtype.get("config")
        dtype = config.get("name") if isinstance(config, Mapping) else None
    name = "float32" if dtype is None else str(dtype)
    if name not in _DTYPES:
        raise ExportError(f"layer {path!r} of class {entry['class_name']}: it computes in {name!r}; {REMEDY}")
    return name


def count_variables(entry: Mapping[str, Any], major: int, *, frozen: bool = False) -> tuple[int, int]:
    """The number of trained and of other variables of a layer, those of inner layers included."""
    frozen = frozen or entry["config"].get("trainable") is False
    if entry["class_name"] == "InputLayer" or _is_operation(entry, major):
        return 0, 0
    if entry["class_name"] in _MODELS and _is_keras(entry.get("module")):
        counts = [count_variables(inner, major, frozen=frozen) for inner in layer_entries(entry)]
        return sum(c[0] for c in counts), sum(c[1] for c in counts)
    name = str(entry["config"]["name"])
    slots = rule_of(entry, Layer(path=name, kind=str(entry["class_name"]))).slots_of(entry["config"], major)
    trained = 0 if frozen else sum(slot.trained for slot in slots)
    return trained, len(slots) - trained
