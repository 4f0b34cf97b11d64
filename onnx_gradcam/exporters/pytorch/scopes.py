"""Which tensor of an exported graph each module's output has become: decided by the values, on the path alone.

The layers of a TorchScript, whose modules take no hooks: named by the exporter, proved by running them alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import torch

from onnx_gradcam.exporters.parity import difference, run
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.paths import between
from onnx_gradcam.graph.shapes import TensorInfo

from .capture import Array
from .conversion import SCOPES

__all__ = ["match", "name_after_modules", "on_path", "scripted_layers", "strip_notes", "take_target"]

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
        model.remove_unread([node], [])
        target = source
    return target


def on_path(model: Model) -> list[ir.Value]:
    """The floating-point tensors on some path from the input to an output, in the order in which they are computed."""
    graph = model.core.graph
    nodes, alive = between(tuple(graph), graph.inputs, graph.outputs, lambda _node, _value: True)
    return [o for node in nodes for o in node.outputs if o in alive and TensorInfo.of(o).elem_type in _FLOATS]


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


def scripted_layers(model: Model, script: torch.jit.ScriptModule, x: Array) -> dict[str, ir.Value]:
    """The tensor of each module of one input that is called once, in the order in which they are done.

    The exporter names a node after the modules that it is in; the last of a module's nodes gives the module's output
    if the module, run by itself in PyTorch on what ONNX Runtime fed to those nodes, gives the same values.
    """
    ways: dict[str, list[ir.Node]] = {}
    for node in model.core.graph:
        parts = str(node.name).split("/")[1:-1]
        for depth in range(len(parts)):
            ways.setdefault(".".join(parts[: depth + 1]), []).append(node)
    alive = on_path(model)
    fed: dict[str, tuple[ir.Value, ir.Value]] = {}
    for path, nodes in ways.items():
        inside = set(nodes)
        sources = {i for n in nodes for i in n.inputs if i is not None and _comes_from_outside(i, inside)}
        if f"{path}_1" not in ways and len(sources) == 1 and nodes[-1].outputs[0] in alive:
            fed[path] = (sources.pop(), nodes[-1].outputs[0])
    values = run(model, x, [str(t.name) for pair in fed.values() for t in pair if not t.is_graph_input()])
    values[str(model.core.graph.inputs[0].name)] = x
    found = {}
    for path, module in script.named_modules():
        if path in fed:
            source, output = (values[str(t.name)] for t in fed[path])
            alone = _alone(module, source)
            if alone is not None and difference(output, alone) <= CLOSE:
                found[path] = fed[path][1]
    return found


def _comes_from_outside(value: ir.Value, nodes: set[ir.Node]) -> bool:
    return value.const_value is None and value.producer() not in nodes


def _alone(module: Any, x: Array) -> Array | None:
    """What a module gives by itself; `None` where it takes another input or gives no tensor."""
    try:
        with torch.no_grad():
            y = module(torch.from_numpy(x.copy()))
    except (RuntimeError, TypeError, ValueError):
        return None
    return y.numpy() if isinstance(y, torch.Tensor) else None
