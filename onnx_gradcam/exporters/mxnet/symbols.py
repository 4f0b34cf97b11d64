"""MXNet's `-symbol.json`: the graph of a network, in the forms of all versions.

Format: nnvm `src/pass/saveload_json.cc`, MXNet `src/nnvm/legacy_json_util.cc`.

MXNet's `-symbol.json` and `.params` to ONNX, without MXNet.
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

from onnx_gradcam.errors import ExplainError, ExportError, ModelError, TargetError, UnsupportedError, near_matches
from onnx_gradcam.exporters.writer import BATCH, Product, Writer
from onnx_gradcam.graph.builder import Value
from onnx_gradcam.graph.shapes import Shape
from onnx_gradcam.images.preprocessing import PRESETS
from onnx_gradcam.metadata import CarriedLayer

from . import arithmetic, dense, shaping, spatial  # noqa: F401 - their rules register themselves
from .operator_table import LABEL, OPERATORS, FreeSizeError, Operator, fitting_side
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
    """One node of a symbol.

    Attributes:
        op: the operator, `null` for variables.
        name: of the node.
        attributes: as text, as MXNet writes them.
        inputs: each a node before this one and the number of its output.
    """

    op: str
    name: str
    attributes: Mapping[str, str]
    inputs: tuple[Entry, ...]


@dataclass(frozen=True)
class Symbol:
    """A network without its weights.

    Attributes:
        nodes: in an order in which they can run.
        heads: the outputs.
        version: of the MXNet that wrote it, empty where the file does not say.
        name: of the file, for messages.
    """

    nodes: tuple[Node, ...]
    heads: tuple[Entry, ...]
    version: str
    name: str

    def live(self) -> list[int]:
        """Numbers of the nodes that an output needs, in order."""
        needed = {node for node, _ in self.heads}
        for index in reversed(range(len(self.nodes))):
            if index in needed:
                needed.update(node for node, _ in self.nodes[index].inputs)
        return sorted(needed)


def read_symbol(path: str | Path) -> Symbol:
    """Read and check a `-symbol.json`.

    Raises:
        ModelError: no such file, no JSON, or no graph that could run.
    """
    path = Path(path)
    tree = _json(path)
    name = str(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("nodes"), list) or not isinstance(tree.get("heads"), list):
        raise ModelError(f"{name}: not an MXNet symbol (it has no lists of nodes and heads); give the -symbol.json")
    nodes: list[Node] = []
    for entry in tree["nodes"]:
        nodes.append(_node(entry, nodes, name))
    heads = tuple(_entry(head, len(nodes), f"{name}: an entry of heads") for head in tree["heads"])
    if not heads:
        raise ModelError(f"{name}: the symbol has no outputs; save it again with MXNet")
    return Symbol(tuple(nodes), heads, _version(tree), name)


def _json(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
    except OSError as exc:
        raise ModelError(f"{path}: cannot be read ({exc.strerror or exc}); give the path of a -symbol.json") from exc
    if data.startswith(_PARAMETER_MAGIC):
        raise ModelError(
            f"{path}: holds weights and no graph; in MXNet run net.hybridize(); net(x); net.export(prefix) and give "
            "the -symbol.json and the .params that this writes"
        )
    if len(data) > _LARGEST_FILE:
        raise ModelError(f"{path}: larger than any symbol ({_LARGEST_FILE >> 20} MiB); is it the right file?")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{path}: not valid JSON ({exc}); give the complete -symbol.json") from exc


def _node(entry: Any, before: list[Node], file: str) -> Node:
    where = f"{file}: node {len(before)}"
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("op", "name")):
        raise ModelError(f"{where} has no operator and name; save the symbol again with MXNet")
    op, name = entry["op"], entry["name"]
    where = f"{file}: node {name!r}"
    if not name or not name.isprintable() or not op.isprintable():
        raise ModelError(
            f"{file}: node {len(before)} ({op!r}) has no name that can be written; give it one and save it again"
        )
    # Before 0.9 the operator's attributes are `param` and the user's `attr`; `attr` up to 0.12, `attrs` since.
    attributes: dict[str, str] = {}
    for key in ("attr", "param", "attrs"):
        given = entry.get(key, {})
        if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
            raise ModelError(f"{where}: its {key} is not an object of strings; save the symbol again with MXNet")
        attributes |= given
    inputs = entry.get("inputs", [])
    if not isinstance(inputs, list) or (op == VARIABLE and inputs):
        raise ModelError(f"{where}: its inputs are not what {op!r} takes; save the symbol again with MXNet")
    entries = tuple(_entry(each, len(before), f"{where}: an input") for each in inputs)
    return Node(op, name, attributes, entries)


def _entry(entry: Any, count: int, where: str) -> Entry:
    if (
        not isinstance(entry, list)
        or len(entry) not in (2, 3)
        or not all(isinstance(number, int) and not isinstance(number, bool) for number in entry)
        or entry[1] < 0
    ):
        raise ModelError(f"{where} is not [node, output, version]; save the symbol again with MXNet")
    if not 0 <= entry[0] < count:
        raise ModelError(
            f"{where} names node {entry[0]}, where only the {count} before it can be used; save the symbol again"
        )
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
_EXPORT_REMEDY = "in MXNet run net.hybridize(); net(x); net.export(prefix) and give the two files that this writes"
_LAYOUTS = {3: "NCW", 4: "NCHW", 5: "NCDHW"}
_DTYPES = {"0": np.float32, "1": np.float64, "2": np.float16, "3": np.uint8, "4": np.int32, "5": np.int8, "6": np.int64}


def read_mxnet(
    symbol: str | Path,
    params: str | Path,
    *,
    input_shape: Sequence[int] | None = None,
    names: Mapping[str, str] | None = None,
) -> Product:
    """Read a network of MXNet 0.7 to 1.9, or of gluon, from the files that Module and `HybridBlock.export` write.

    Every node's result is a tensor of the node's name; nodes that change nothing in prediction (Dropout, identity)
    share the tensor of their input.

    Args:
        symbol: the `-symbol.json`.
        params: the `.params` that belongs to it.
        input_shape: of one image, `(channels, height, width)`; without it what the symbol says, else what the
            weights tell, else height and width stay free.
        names: further names of layers, such as `features[8][2]`, and the nodes that they stand for.

    Raises:
        ModelError: a file is missing or damaged, or the two do not belong together.
        UnsupportedError: an operator, or an attribute of one, that has no equal here.
        ExportError: weights or images of the wrong shape.
        TargetError: `names` holds a node that is not in the symbol.
    """
    network = _Network(read_symbol(symbol), read_parameters(params), str(params))
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
        layers=_with_names(translation.layers(), names or {}),
        preprocessing=PRESETS["mxnet-gluon"].to_dict() if architecture and shape[0] == 3 else None,
        warnings=warnings,
    )


def _with_names(layers: dict[str, CarriedLayer], names: Mapping[str, str]) -> dict[str, CarriedLayer]:
    for name, node in names.items():
        if node not in layers:
            raise TargetError(
                f"the layer {name!r} stands for node {node!r}, which the symbol does not have"
                + near_matches(node, layers)
            )
    return layers | {name: layers[node] for name, node in names.items()}


class _Network:
    """A symbol and the weights that belong to it."""

    def __init__(self, symbol: Symbol, parameters: Parameters, file: str) -> None:
        self.symbol = symbol
        self.live = symbol.live()
        self.weights = _without_prefixes(parameters, file)
        self._check_operators()
        self.data = self._data(parameters, file)

    def _check_operators(self) -> None:
        for node in self._operators():
            if node.op not in OPERATORS:
                close = near_matches(node.op, OPERATORS)
                raise UnsupportedError(
                    f"{self.symbol.name}: node {node.name!r} is of operator {node.op}, which this exporter does not "
                    f"know; rewrite that part of the network with other operators{close}"
                )

    def _operators(self) -> Iterator[Node]:
        return (node for node in map(self.symbol.nodes.__getitem__, self.live) if node.op != VARIABLE)

    def _data(self, parameters: Parameters, file: str) -> str:
        """The variable that takes images: the only one that has no weights and is no label."""
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
            raise ModelError(f"{self.symbol.name}: no variable is left for the image; {file} holds one for each")
        missing = ", ".join(map(repr, [name for name in free if name != _DATA][:3]))
        if parameters and not any(name.startswith(("arg:", "aux:")) for name in parameters):
            known = next(iter(parameters))
            raise ModelError(
                f"{file}: its weights are called after gluon's attributes ({known!r}), not after the symbol's nodes "
                f"({missing}); {_EXPORT_REMEDY}"
            )
        if _DATA in free:
            raise ModelError(f"{file}: holds no weights for {missing}; give the .params that belongs to the symbol")
        raise UnsupportedError(
            f"{self.symbol.name}: has several inputs ({missing}); export a network with one input, the image"
        )

    # ----- the size of an image ---------------------------------------------

    def sample_shape(self, given: Sequence[int] | None) -> Shape:
        """The shape of one image: as given, as the symbol says, or its channels as the weights want them."""
        if given is not None:
            if not given or not all(isinstance(d, int) and not isinstance(d, bool) and d > 0 for d in given):
                raise ExportError(f"input_shape is {tuple(given)}; give positive integers (channels, height, width)")
            return tuple(given)
        variable = next(n for i in self.live if (n := self.symbol.nodes[i]).name == self.data)
        stated = re.findall(r"-?\d{1,9}", variable.attributes.get("__shape__", ""))
        free = ("height", "width") if len(stated) == 4 else tuple(f"size_{i}" for i in range(1, len(stated) - 1))
        if len(stated) >= 2 and int(stated[1]) > 0:
            channels, *sizes = (int(number) for number in stated[1:])
            return (channels, *(d if d > 0 else f for d, f in zip(sizes, free, strict=True)))
        return self._derived_shape()

    def _consumer(self) -> tuple[Node, npt.NDArray[Any]] | None:
        """The first layer with weights that an image meets, and the weights."""
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
        found = self._consumer()
        if found is not None and found[0].op != "FullyConnected" and found[1].ndim in (3, 4, 5):
            node, weight = found
            groups = node.attributes.get("num_group", "1")
            channels = weight.shape[1] * (int(groups) if groups.isdecimal() and len(groups) < 9 else 1)
            return (channels, *{3: ("width",), 4: ("height", "width"), 5: ("depth", "height", "width")}[weight.ndim])
        raise ExportError(
            f"{self.symbol.name}: the shape of its input {self.data!r} is not known; pass "
            "input_shape=(channels, height, width)"
        )

    def sized(self, shape: Shape, refusal: FreeSizeError) -> tuple[_Translation, str]:
        """The network for the square image that it wants, and what to tell the user.

        Raises:
            FreeSizeError: nothing tells the size; the refusal that was met without one.
        """

        def translated(side: int) -> _Translation:
            return self.translated((shape[0], side, side))

        if tuple(shape[1:]) != ("height", "width"):
            raise refusal
        remedy = "pass input_shape for another size"
        architecture = self.zoo_architecture()
        if architecture is not None:
            side = _GLUON_SIDES.get(architecture, _GLUON_SIDE)
            # Trained at another size than the zoo's, the weights do not fit, but may tell.
            with contextlib.suppress(ExportError):
                return translated(side), f"the size of the image is now {side} by {side}, the model zoo's; {remedy}"
        found = fitting_side(translated)
        if found is None:
            raise refusal
        return translated(found), f"the size of the image is now {found} by {found}, which fits the weights; {remedy}"

    def zoo_architecture(self) -> str | None:
        """The name of gluon's architecture, where every node's name starts with it."""
        found = {match.group(1) if (match := _GLUON_ZOO.match(n.name)) else None for n in self._operators()}
        return found.pop() if len(found) == 1 else None

    def translated(self, shape: Shape) -> _Translation:
        """The network for images of this shape, before its shapes are inferred."""
        return _Translation(self, shape)


def _without_prefixes(parameters: Parameters, file: str) -> Parameters:
    weights: Parameters = {}
    for name, array in parameters.items():
        short = name[4:] if name.startswith(("arg:", "aux:")) else name
        if short in weights:
            raise ModelError(f"{file}: holds two arrays called {short!r}; save it again with MXNet")
        weights[short] = array
    return weights


class _Translation:
    """Writes the nodes of a network in their order."""

    def __init__(self, network: _Network, shape: Shape) -> None:
        self._network = network
        self._symbol = network.symbol
        self.writer = Writer(Path(network.symbol.name).name)
        self._values: dict[Entry, Value] = {}
        self._weights: dict[str, Value] = {}
        self._channels_first: set[Value] = set()
        self._layers: dict[str, tuple[Value, str]] = {}
        self._image = self.writer.input(network.data, self._dtype(), (BATCH, *shape))
        self._channels_first.add(self._image)
        for index in network.live:
            if self._symbol.nodes[index].op != VARIABLE:
                self._translate(index, self._symbol.nodes[index])
        for entry in dict.fromkeys(self._symbol.heads):
            self._output(entry)
        for weight in self._weights.values():
            # A gamma that is fixed at one, slopes that were reshaped.
            if not weight.core.uses():
                self.writer.graph.initializers.pop(weight.name)

    def _dtype(self) -> npt.DTypeLike:
        nodes = self._symbol.nodes
        stated = next(n for i in self._network.live if (n := nodes[i]).name == self._network.data)
        return _DTYPES.get(stated.attributes.get("__dtype__", "0"), np.float32)

    def _translate(self, index: int, node: Node) -> None:
        operator = OPERATORS[node.op]
        try:
            inputs = self._inputs(node, operator)
            made = operator.rule(self.writer, *inputs, **operator.parsed(node.attributes))
        except ExplainError as exc:
            exc.args = (f"{self._symbol.name}: node {node.name!r} ({node.op}): {exc}",)
            raise
        outputs = made if isinstance(made, tuple) else (made,)
        maps = operator.layout == "made" or (
            operator.layout == "kept" and any(isinstance(v, Value) and v in self._channels_first for v in inputs)
        )
        for number, value in enumerate(outputs):
            name = node.name if not isinstance(made, tuple) else f"{node.name}_output{number}"
            self._values[index, number] = value
            self._named(name, value, inputs)
            self._layers[name] = (value, node.op)
            if maps:
                self._channels_first.add(value)

    def _named(self, name: str, value: Value, inputs: Sequence[Value | None]) -> None:
        """A rule that gives back one of its inputs makes no tensor to name."""
        if not any(value is given for given in inputs):
            self.writer.rename(value, name)

    def _inputs(self, node: Node, operator: Operator) -> list[Value | None]:
        count = len(node.inputs)
        if not operator.variadic and count > len(operator.inputs):
            raise UnsupportedError(f"it has {count} inputs, where {len(operator.inputs)} are known; save it again")
        if operator.variadic and not count:
            raise ModelError("it has no inputs; save the symbol again with MXNet")
        inputs: list[Value | None] = []
        for place, entry in enumerate(node.inputs):
            label = place < len(operator.inputs) and operator.inputs[place] == LABEL
            inputs.append(None if label else self._value(entry))
        # Before 0.9 a symbol does not list auxiliary states: they are called after the node.
        states = operator.inputs[count : operator.needed]
        return inputs + [self._weight(f"{node.name}_{state}") for state in states]

    def _value(self, entry: Entry) -> Value:
        node = self._symbol.nodes[entry[0]]
        if node.op == VARIABLE:
            return self._image if node.name == self._network.data else self._weight(node.name)
        if entry not in self._values:
            raise UnsupportedError(f"it takes output {entry[1]} of {node.name!r} ({node.op}), which is not exported")
        return self._values[entry]

    def _weight(self, name: str) -> Value:
        if name not in self._weights:
            if name not in self._network.weights:
                raise ModelError(f"the parameter file holds no {name!r}; give the .params that belongs to the symbol")
            self._weights[name] = self.writer.weight(name, lazy(name, self._network.weights[name]))
        return self._weights[name]

    def _output(self, entry: Entry) -> None:
        node = self._symbol.nodes[entry[0]]
        if node.op == VARIABLE or entry not in self._values:
            raise UnsupportedError(
                f"{self._symbol.name}: its output {entry[1]} of {node.name!r} ({node.op}) is no result; save the "
                "symbol with the network's last layer as its output"
            )
        value = self._values[entry]
        if value.rank == 2 and value.shape[1] is None:
            raise FreeSizeError(
                f"{self._symbol.name}: how many outputs {node.name!r} has depends on the size of the image, which is "
                "free; pass input_shape=(channels, height, width)"
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
