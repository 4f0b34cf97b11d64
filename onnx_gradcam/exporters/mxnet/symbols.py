"""Read MXNet networks without MXNet: parse `-symbol.json`, pair it with its `.params`, write ONNX node by node.

The format of the symbol, in all versions: nnvm `src/pass/saveload_json.cc`, MXNet `src/nnvm/legacy_json_util.cc`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import ExportError, InputError, ModelError, TargetError, UnsupportedError, near_matches, reason
from onnx_gradcam.exporters.writer import BATCH, Product, Writer
from onnx_gradcam.files import read_text
from onnx_gradcam.graph.builder import Value
from onnx_gradcam.graph.shapes import Shape
from onnx_gradcam.images.preprocessing import PRESETS
from onnx_gradcam.metadata import CarriedLayer

from . import arithmetic, dense, shaping, spatial  # noqa: F401 - their rules register themselves
from .operator_table import LABEL, OPERATORS, SHAPE_REMEDY, FreeSizeError, Operator, SizeError, fitting_side
from .parameters import Parameters, lazy, read_parameters

__all__ = ["VARIABLE", "Node", "Symbol", "read_mxnet", "read_symbol"]

VARIABLE = "null"
"""The operator of nodes that are inputs or weights."""

_LARGEST_FILE = 64 * 2**20
_PARAMETER_MAGIC = b"\x12\x01\0\0\0\0\0\0"

Entry = tuple[int, int]
"""A node and the number of its output."""


@dataclass(frozen=True)
class Node:
    """One node of a symbol."""

    op: str  # the operator, `null` for variables
    name: str
    attributes: Mapping[str, str]  # as text, the way MXNet writes them
    inputs: tuple[Entry, ...]  # each an earlier node and the number of its output


@dataclass(frozen=True)
class Symbol:
    """A network without its weights."""

    nodes: tuple[Node, ...]  # in an order in which they can run
    heads: tuple[Entry, ...]
    version: str  # of the MXNet that wrote the file; empty if unknown
    name: str  # of the file, for messages

    def live(self) -> list[int]:
        """Indices of the nodes that an output needs, in order."""
        needed = {node for node, _ in self.heads}
        for index in reversed(range(len(self.nodes))):
            if index in needed:
                needed.update(node for node, _ in self.nodes[index].inputs)
        return sorted(needed)


def read_symbol(path: str | Path) -> Symbol:
    """Read and check a `-symbol.json`."""
    path = Path(path)
    tree = _json(path)
    name = str(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("nodes"), list) or not isinstance(tree.get("heads"), list):
        raise ExportError(f"{name}: not an MXNet symbol (it has no lists of nodes and heads); give the -symbol.json")
    nodes: list[Node] = []
    for entry in tree["nodes"]:
        nodes.append(_node(entry, nodes, name))
    heads = tuple(_entry(head, len(nodes), f"{name}: an entry of heads") for head in tree["heads"])
    if not heads:
        raise ExportError(f"{name}: the symbol has no outputs; save it again with MXNet")
    return Symbol(tuple(nodes), heads, _version(tree), name)


def _json(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror or exc}); give the path of a -symbol.json") from exc
    if data.startswith(_PARAMETER_MAGIC):
        raise ExportError(f"{path}: holds weights and no graph; {_EXPORT_REMEDY}")
    if len(data) > _LARGEST_FILE:
        raise ExportError(f"{path}: larger than any symbol ({_LARGEST_FILE >> 20} MiB); is it the right file?")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ExportError(f"{path}: not valid JSON ({reason(exc)}); give the complete -symbol.json") from exc


def _node(entry: Any, before: list[Node], file: str) -> Node:
    where = f"{file}: node {len(before)}"
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("op", "name")):
        raise ExportError(f"{where} has no operator and name; save the symbol again with MXNet")
    op, name = entry["op"], entry["name"]
    where = f"{file}: node {name!r}"
    if not name or not name.isprintable() or not op.isprintable():
        raise ExportError(
            f"{file}: node {len(before)} ({op!r}) has no printable name; name it and save the symbol again"
        )
    # Before 0.9 the operator's attributes are `param` and the user's `attr`; `attr` up to 0.12, `attrs` since.
    attributes: dict[str, str] = {}
    for key in ("attr", "param", "attrs"):
        texts = entry.get(key, {})
        if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
            raise ExportError(f"{where}: its {key} is not an object of strings; save the symbol again with MXNet")
        attributes |= texts
    inputs = entry.get("inputs", [])
    if not isinstance(inputs, list) or (op == VARIABLE and inputs):
        raise ExportError(f"{where}: its inputs do not fit {op!r}; save the symbol again with MXNet")
    entries = tuple(_entry(each, len(before), f"{where}: an input") for each in inputs)
    return Node(op, name, attributes, entries)


def _entry(entry: Any, count: int, where: str) -> Entry:
    if (
        not isinstance(entry, list)
        or len(entry) not in (2, 3)
        or not all(isinstance(number, int) and not isinstance(number, bool) for number in entry)
        or entry[1] < 0
    ):
        raise ExportError(f"{where} is not [node, output, version]; save the symbol again with MXNet")
    if not 0 <= entry[0] < count:
        raise ExportError(f"{where} refers to node {entry[0]}, but only {count} precede it; save the symbol again")
    return entry[0], entry[1]


def _version(tree: dict[str, Any]) -> str:
    attributes = tree.get("attrs", tree.get("attr"))
    stamp = attributes.get("mxnet_version") if isinstance(attributes, dict) else None
    number = stamp[1] if isinstance(stamp, list) and len(stamp) == 2 else None
    if not isinstance(number, int) or not 0 < number < 10**6:
        return ""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


_DATA = "data"
_GLUON_ZOO = re.compile(r"(alexnet|densenet|inception3|mobilenetv2|mobilenet|resnetv1|resnetv2|squeezenet|vgg)\d+_")
_GLUON_SIDES = {"inception3": 299}
_GLUON_SIDE = 224
_EXPORT_REMEDY = "in MXNet run net.hybridize(); net(x); net.export(prefix) and give the two files it writes"
_LAYOUTS = {3: "NCW", 4: "NCHW", 5: "NCDHW"}
_DTYPES = {"0": np.float32, "1": np.float64, "2": np.float16, "3": np.uint8, "4": np.int32, "5": np.int8, "6": np.int64}


def read_mxnet(
    symbol: str | Path,
    params: str | Path,
    *,
    input_shape: Sequence[int] | None = None,
    input_values: Mapping[str, npt.ArrayLike] | None = None,
    names: str | Path | Mapping[str, str] | None = None,
) -> Product:
    """Read a network of MXNet 0.7 to 1.9, or of gluon, from the files that Module and `HybridBlock.export` write.

    ::

        read_mxnet("net-symbol.json", "net-0000.params", input_shape=(3, 224, 224))

    Each node's result is a tensor of the node's name; nodes without effect in prediction (Dropout, identity) share
    the tensor of their input.

    Args:
        symbol: the `-symbol.json`.
        params: the `.params` that belongs to it.
        input_shape: of one image, `(channels, height, width)`; by default what the symbol or the weights imply, else
            height and width stay free.
        input_values: the numbers of inputs other than the image, by name, such as `{"stage_num0": [[0, 1, 2]]}`; they
            become constants of the model.
        names: further layer names, such as `features[8][2]`, and the nodes that they stand for; also a JSON file.
    """
    network = _Network(read_symbol(symbol), read_parameters(params), str(params), input_values or {})
    shape, warnings = network.sample_shape(input_shape), []
    try:
        translation = network.translated(shape)
    except FreeSizeError as refusal:
        translation, warning = network.sized(shape, refusal)
        warnings.append(warning)
    model = translation.writer.finished()
    architecture = network.zoo_architecture()
    return Product(
        model=model,
        framework="mxnet",
        version=network.symbol.version,
        layers=_with_names(translation.layers(), _read_names(names)),
        preprocessing=PRESETS["mxnet-gluon"].to_dict() if architecture and shape[0] == 3 else None,
        biases="apart",
        warnings=warnings,
    )


def _read_names(names: str | Path | Mapping[str, str] | None) -> Mapping[str, str]:
    """Further layer names, from a JSON file if it is a path."""
    values: Any = names or {}
    if isinstance(values, (str, Path)):
        try:
            values = json.loads(read_text(values, _LARGEST_FILE, "a JSON object of layer names and nodes"))
        except (ValueError, RecursionError) as exc:
            raise InputError(
                f"the names in {str(names)!r} are not valid JSON ({reason(exc)}); write an object"
            ) from exc
    if not isinstance(values, Mapping) or not all(isinstance(part, str) for pair in values.items() for part in pair):
        raise InputError('names have to be an object of layers and their nodes; write {"features[8][2]": "conv4_fwd"}')
    return values


def _with_names(layers: dict[str, CarriedLayer], names: Mapping[str, str]) -> dict[str, CarriedLayer]:
    for name, node in names.items():
        if node not in layers:
            raise TargetError(
                f"layer {name!r} stands for node {node!r}, which is not in the symbol" + near_matches(node, layers)
            )
    return layers | {name: layers[node] for name, node in names.items()}


class _Network:
    """A symbol and the weights that belong to it."""

    def __init__(
        self, symbol: Symbol, parameters: Parameters, file: str, input_values: Mapping[str, npt.ArrayLike]
    ) -> None:
        self.symbol = symbol
        self.live = symbol.live()
        self.weights = _without_prefixes(parameters, file)
        variables = [n.name for i in self.live if (n := symbol.nodes[i]).op == VARIABLE]
        for name, numbers in input_values.items():
            if name not in variables or name in self.weights:
                free = [variable for variable in variables if variable not in self.weights]
                raise InputError(
                    f"the symbol has no input {name!r}{near_matches(name, free)} (inputs: {', '.join(free)})"
                )
            self.weights[name] = np.asarray(numbers, np.float32)
        self._check_operators()
        self.data = self._data(parameters, file)

    def _check_operators(self) -> None:
        for node in self._operators():
            if node.op not in OPERATORS:
                close = near_matches(node.op, OPERATORS)
                raise ExportError(
                    f"{self.symbol.name}: node {node.name!r} has the unknown operator {node.op}; rewrite "
                    f"that part of the network with other operators{close}"
                )

    def _operators(self) -> Iterator[Node]:
        return (node for node in map(self.symbol.nodes.__getitem__, self.live) if node.op != VARIABLE)

    def _data(self, parameters: Parameters, file: str) -> str:
        """The variable that takes images: the only one without weights that is not a label."""
        used = set()
        for node in self._operators():
            taken = OPERATORS[node.op].inputs
            for place, (index, _) in enumerate(node.inputs):
                if place >= len(taken) or taken[place] != LABEL:
                    used.add(self.symbol.nodes[index].name)
        free = [n.name for i in self.live if (n := self.symbol.nodes[i]).op == VARIABLE]
        free = [name for name in free if name in used and name not in self.weights]
        if len(free) == 1:
            return free[0]
        if not free:
            raise ExportError(f"{self.symbol.name}: no variable is left for the image; {file} has weights for each")
        missing = ", ".join(map(repr, [name for name in free if name != _DATA][:3]))
        if parameters and not any(name.startswith(("arg:", "aux:")) for name in parameters):
            example = next(iter(parameters))
            raise ExportError(
                f"{file}: its weights are named after gluon's attributes ({example!r}), not the symbol's nodes "
                f"({missing}); {_EXPORT_REMEDY}"
            )
        if _DATA in free:
            raise ExportError(
                f"{file}: holds no weights for {missing}; give the .params that belongs to the symbol, or, of an input "
                "besides the image, the numbers with --input-value NAME=NUMBERS (in Python: input_values)"
            )
        raise ExportError(
            f"{self.symbol.name}: has several inputs ({missing}); export a network with one input, the image"
        )

    def variable(self) -> Node:
        """The node of the image."""
        return next(n for i in self.live if (n := self.symbol.nodes[i]).name == self.data)

    def sample_shape(self, input_shape: Sequence[int] | None) -> Shape:
        """The shape of one image: `input_shape`, else the symbol's, else derived from the weights."""
        if input_shape is not None:
            shape = tuple(input_shape)
            if not shape or not all(isinstance(d, int) and not isinstance(d, bool) and d > 0 for d in shape):
                raise InputError(f"input_shape is {shape}; give positive integers (channels, height, width)")
            return shape
        stored = re.findall(r"-?\d{1,9}", self.variable().attributes.get("__shape__", ""))
        free = ("height", "width") if len(stored) == 4 else tuple(f"size_{i}" for i in range(1, len(stored) - 1))
        if len(stored) >= 2 and int(stored[1]) > 0:
            channels, *sizes = (int(number) for number in stored[1:])
            return (channels, *(d if d > 0 else f for d, f in zip(sizes, free, strict=True)))
        return self._derived_shape()

    def _consumer(self) -> tuple[Node, npt.NDArray[Any]] | None:
        """The first layer with weights behind the image, and the weights."""
        behind = {index for index in self.live if self.symbol.nodes[index].name == self.data}
        for index in self.live:
            node = self.symbol.nodes[index]
            if not any(source in behind for source, _ in node.inputs):
                continue
            behind.add(index)
            if node.op in ("Convolution", "Convolution_v1", "FullyConnected") and len(node.inputs) > 1:
                weight = self.weights.get(self.symbol.nodes[node.inputs[1][0]].name)
                return None if weight is None else (node, weight)
        return None

    def _derived_shape(self) -> Shape:
        consumer = self._consumer()
        if consumer is not None and consumer[0].op != "FullyConnected" and consumer[1].ndim in (3, 4, 5):
            node, weight = consumer
            groups = node.attributes.get("num_group", "1")
            channels = weight.shape[1] * (int(groups) if groups.isdecimal() and len(groups) < 9 else 1)
            return (channels, *{3: ("width",), 4: ("height", "width"), 5: ("depth", "height", "width")}[weight.ndim])
        raise ExportError(f"{self.symbol.name}: the shape of its input {self.data!r} is unknown; {SHAPE_REMEDY}")

    def sized(self, shape: Shape, refusal: FreeSizeError) -> tuple[_Translation, str]:
        """The network for the square image that fits it, and a warning; raises `refusal` if the size cannot be told."""

        def translated(side: int) -> _Translation:
            return self.translated((shape[0], side, side))

        if tuple(shape[1:]) != ("height", "width"):
            raise refusal
        remedy = "--input-shape C,H,W gives another one"
        architecture = self.zoo_architecture()
        if architecture is not None:
            side = _GLUON_SIDES.get(architecture, _GLUON_SIDE)
            # Weights trained at another size do not fit this one, but may tell theirs.
            with contextlib.suppress(SizeError):
                return translated(side), f"the image size was fixed at {side}x{side}, the model zoo's; {remedy}"
        fitting = fitting_side(translated)
        if fitting is None:
            raise refusal
        warning = f"the image size was fixed at {fitting}x{fitting}, which fits the weights; {remedy}"
        return translated(fitting), warning

    def zoo_architecture(self) -> str | None:
        """The name of gluon's architecture, if every node's name starts with it."""
        prefixes = {match.group(1) if (match := _GLUON_ZOO.match(n.name)) else None for n in self._operators()}
        return prefixes.pop() if len(prefixes) == 1 else None

    def translated(self, shape: Shape) -> _Translation:
        """The network for images of this shape, before its shapes are inferred."""
        return _Translation(self, shape)


def _without_prefixes(parameters: Parameters, file: str) -> Parameters:
    weights: Parameters = {}
    for name, array in parameters.items():
        short = name[4:] if name.startswith(("arg:", "aux:")) else name
        if short in weights:
            raise ExportError(f"{file}: holds two arrays named {short!r}; save it again with MXNet")
        weights[short] = array
    return weights


class _Translation:
    """Write the nodes of a network in their order."""

    def __init__(self, network: _Network, shape: Shape) -> None:
        self._network = network
        self._symbol = network.symbol
        self.writer = Writer(Path(network.symbol.name).name)
        self._values: dict[Entry, Value] = {}
        self._weights: dict[str, Value] = {}
        self._channels_first: set[Value] = set()
        self._layers: dict[str, tuple[Value, str]] = {}
        dtype = _DTYPES.get(network.variable().attributes.get("__dtype__", "0"), np.float32)
        self._image = self.writer.input(network.data, dtype, (BATCH, *shape))
        self._channels_first.add(self._image)
        for index in network.live:
            if self._symbol.nodes[index].op != VARIABLE:
                self._translate(index, self._symbol.nodes[index])
        for entry in dict.fromkeys(self._symbol.heads):
            self._output(entry)
        for weight in self._weights.values():
            # Not read: a gamma fixed at one, or slopes that were reshaped.
            if not weight.core.uses():
                self.writer.graph.initializers.pop(weight.name)

    def _translate(self, index: int, node: Node) -> None:
        operator = OPERATORS[node.op]
        try:
            inputs = self._inputs(node, operator)
            result = operator.rule(self.writer, *inputs, **operator.parsed(node.attributes))
        except ExportError as exc:
            exc.args = (f"{self._symbol.name}: node {node.name!r} ({node.op}): {exc}",)
            raise
        except (ModelError, UnsupportedError) as exc:
            # ONNX's own shape inference refuses it, or a dimension that has to be known is free.
            raise SizeError(f"{self._symbol.name}: node {node.name!r} ({node.op}): {exc}") from exc
        outputs = result if isinstance(result, tuple) else (result,)
        maps = operator.layout == "made" or (
            operator.layout == "kept" and any(isinstance(v, Value) and v in self._channels_first for v in inputs)
        )
        for number, value in enumerate(outputs):
            name = node.name if not isinstance(result, tuple) else f"{node.name}_output{number}"
            self._values[index, number] = value
            if not any(value is tensor for tensor in inputs):  # else the rule made no tensor to name
                self.writer.rename(value, name)
            self._layers[name] = (value, node.op)
            if maps:
                self._channels_first.add(value)

    def _inputs(self, node: Node, operator: Operator) -> list[Value | None]:
        count = len(node.inputs)
        if not operator.variadic and count > len(operator.inputs):
            raise ExportError(f"it has {count} inputs, but at most {len(operator.inputs)} are known; save it again")
        if operator.variadic and not count:
            raise ExportError("it has no inputs; save the symbol again with MXNet")
        inputs: list[Value | None] = []
        for place, entry in enumerate(node.inputs):
            label = place < len(operator.inputs) and operator.inputs[place] == LABEL
            inputs.append(None if label else self._value(entry))
        # Before 0.9 a symbol does not list auxiliary states: they are named after the node.
        states = operator.inputs[count : operator.needed]
        return inputs + [self._weight(f"{node.name}_{state}") for state in states]

    def _value(self, entry: Entry) -> Value:
        node = self._symbol.nodes[entry[0]]
        if node.op == VARIABLE:
            return self._image if node.name == self._network.data else self._weight(node.name)
        if entry not in self._values:
            raise ExportError(f"it reads output {entry[1]} of {node.name!r} ({node.op}), which is not exported")
        return self._values[entry]

    def _weight(self, name: str) -> Value:
        if name not in self._weights:
            if name not in self._network.weights:
                raise ExportError(f"the parameter file holds no {name!r}; give the .params that belongs to the symbol")
            self._weights[name] = self.writer.weight(name, lazy(name, self._network.weights[name]))
        return self._weights[name]

    def _output(self, entry: Entry) -> None:
        node = self._symbol.nodes[entry[0]]
        if node.op == VARIABLE or entry not in self._values:
            raise ExportError(
                f"{self._symbol.name}: output {entry[1]} of {node.name!r} ({node.op}) is not computed; save the "
                "symbol with the network's last layer as its output"
            )
        value = self._values[entry]
        if value.rank == 2 and value.shape[1] is None:
            raise FreeSizeError(
                f"{self._symbol.name}: the number of outputs of {node.name!r} depends on the image size, which is "
                f"free; {SHAPE_REMEDY}"
            )
        several = (entry[0], 1) in self._values
        name = f"{node.name}_output{entry[1]}" if several else node.name
        if value.name == name:
            self.writer.expose(value)
        else:
            self.writer.output(value, name)

    def layers(self) -> dict[str, CarriedLayer]:
        """The table of layers, once the shapes are known."""
        return {
            name: CarriedLayer(
                tensor=value.name,
                kind=kind,
                shape=list(value.known_shape or ()),
                layout=_LAYOUTS.get(len(value.known_shape or ()), "") if value in self._channels_first else "",
            )
            for name, (value, kind) in self._layers.items()
        }
