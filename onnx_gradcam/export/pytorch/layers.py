"""Which tensor of an exported graph each module's output has become: decided by the values, on the path alone."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx_ir as ir

from onnx_gradcam.export.parity import difference
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.paths import between

from .capture import Array
from .conversion import SCOPES

__all__ = ["match", "name_after_modules", "on_path", "strip_notes", "take_target"]

CLOSE = 1e-5
"""The largest difference, relative to the largest value, within which a tensor is taken for a module's output."""

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}


def take_target(model: Model, name: str) -> ir.Value:
    """Take the extra output off the graph and give the tensor on the path that it is.

    The copy in the hook may have left an Identity behind it, which nothing else reads.
    """
    graph = model.core.graph
    (target,) = (value for value in graph.outputs if value.name == name)
    graph.outputs.remove(target)
    while (node := target.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        source = node.inputs[0]
        if not target.uses() and target not in graph.outputs:
            graph.remove(node, safe=True)
        target = source
    return target


def on_path(model: Model) -> list[ir.Value]:
    """The floating-point tensors on some path from the input to an output, in the order in which they are computed."""
    graph = model.core.graph
    nodes, alive = between(tuple(graph), graph.inputs, graph.outputs, lambda _node, _value: True)
    return [o for node in nodes for o in node.outputs if o in alive and model.types.get(str(o.name)) in _FLOATS]


def match(
    calls: Mapping[str, Sequence[Array]], tensors: Sequence[ir.Value], values: Mapping[str, Array]
) -> dict[str, ir.Value]:
    """The tensor of each module's last call.

    A module is left out where no tensor has its values, and where several with different values are close to them.

    Args:
        calls: each module's outputs in PyTorch.
        tensors: of the graph, in the order in which they are computed.
        values: theirs in ONNX Runtime, for the same input.
    """
    last = {scope: tensor for tensor in tensors for scope in _scopes(tensor)}
    shaped: dict[tuple[int, ...], list[ir.Value]] = {}
    for tensor in tensors:
        shaped.setdefault(values[str(tensor.name)].shape, []).append(tensor)
    found: dict[str, ir.Value] = {}
    for path, outputs in calls.items():
        wanted = outputs[-1]
        here = last.get(path)
        if here is not None and difference(values[str(here.name)], wanted) <= CLOSE:
            found[path] = here
            continue
        close = [t for t in shaped.get(wanted.shape, ()) if difference(values[str(t.name)], wanted) <= CLOSE]
        # The first of equal ones: what follows it only repeats it, a dropout or the ReLU of what is above zero.
        if close and all((values[str(t.name)] == values[str(close[0].name)]).all() for t in close[1:]):
            found[path] = close[0]
    return found


def _scopes(tensor: ir.Value) -> Iterable[str]:
    """The paths of the modules that a tensor's node belongs to, as the dynamo exporter says."""
    node = tensor.producer()
    text = node.metadata_props.get(SCOPES, "[]") if node is not None else "[]"
    return [str(scope).removeprefix("network.") for scope in ast.literal_eval(text)]


def strip_notes(model: Model) -> None:
    """Take off what PyTorch's exporter noted on nodes and tensors for itself."""
    graph = model.core.graph
    for part in (*graph, *graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs)):
        part.metadata_props.clear()


def name_after_modules(model: Model, tensors: Mapping[str, ir.Value]) -> None:
    """Give tensors the paths of their modules as names, the outermost's where it is several; outputs keep theirs."""
    graph = model.core.graph
    taken = {str(v.name) for v in (*graph.inputs, *graph.initializers.values())}
    taken |= {str(o.name) for node in graph for o in node.outputs}
    names: dict[ir.Value, str] = {}
    for path in sorted(tensors, key=lambda path: path.count(".")):
        if tensors[path] not in names and not tensors[path].is_graph_output() and path not in taken:
            names[tensors[path]] = path
    for tensor, name in names.items():
        tensor.name = name
    model.infer()
