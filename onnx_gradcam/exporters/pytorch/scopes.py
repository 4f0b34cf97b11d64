"""Match each PyTorch module to the tensor of the exported graph that holds its output.

Modules are matched by value, against tensors on the path to an output. A TorchScript's modules take no hooks: they are
matched by the exporter's node names, and each match is proved by running the module by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import torch

from onnx_gradcam.editor.targets.layer_names import noted_scopes
from onnx_gradcam.exporters.parity import difference, run
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.paths import between
from onnx_gradcam.graph.shapes import TensorInfo

from .capture import Array

__all__ = ["match", "name_after_modules", "on_path", "scripted_layers", "strip_notes", "take_target"]

CLOSE = 1e-5
"""The largest difference, relative to the largest value, at which a tensor counts as a module's output."""

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}


def take_target(model: Model, name: str) -> ir.Value:
    """Remove the extra output and return the tensor behind it, without the Identity that the hook's copy may leave."""
    graph = model.core.graph
    (target,) = (value for value in graph.outputs if value.name == name)
    graph.outputs.remove(target)
    while (node := target.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        source = node.inputs[0]
        model.remove_unread([node], [])
        target = source
    return target


def on_path(model: Model) -> list[ir.Value]:
    """The floating-point tensors on a path from the input to an output, in execution order."""
    graph = model.core.graph
    nodes, alive = between(tuple(graph), graph.inputs, graph.outputs, lambda _node, _value: True)
    return [o for node in nodes for o in node.outputs if o in alive and TensorInfo.of(o).elem_type in _FLOATS]


def match(
    calls: Mapping[str, Sequence[Array]], tensors: Sequence[ir.Value], values: Mapping[str, Array]
) -> dict[str, ir.Value]:
    """The tensor of each module's last call, by values in PyTorch (`calls`) and in ONNX Runtime for the same input.

    A module is left out if no tensor has its values, or if several tensors with different values are close to them.
    """
    last = {scope: tensor for tensor in tensors for scope in _scopes(tensor)}
    shaped: dict[tuple[int, ...], list[ir.Value]] = {}
    for tensor in tensors:
        shaped.setdefault(values[str(tensor.name)].shape, []).append(tensor)
    matches: dict[str, ir.Value] = {}
    for path, outputs in calls.items():
        reference = outputs[-1]
        scoped = last.get(path)
        if scoped is not None and difference(values[str(scoped.name)], reference) <= CLOSE:
            matches[path] = scoped
            continue
        close = [t for t in shaped.get(reference.shape, ()) if difference(values[str(t.name)], reference) <= CLOSE]
        # The first of equal tensors: later ones repeat it, such as a dropout or the ReLU of non-negative values.
        if close and all((values[str(t.name)] == values[str(close[0].name)]).all() for t in close[1:]):
            matches[path] = close[0]
    return matches


def _scopes(tensor: ir.Value) -> Iterable[str]:
    """The paths of the modules that a tensor's node belongs to, from the dynamo exporter."""
    node = tensor.producer()
    return [] if node is None else [scope.removeprefix("network.") for scope in noted_scopes(node)]


def strip_notes(model: Model) -> None:
    """Remove the exporter's own metadata from nodes and tensors."""
    graph = model.core.graph
    for part in (*graph, *graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs)):
        part.metadata_props.clear()


def name_after_modules(model: Model, tensors: Mapping[str, ir.Value]) -> None:
    """Name tensors after their modules, the outermost of several; outputs keep their names."""
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
    """The tensor of each module with one input that is called once, in execution order.

    The exporter names a node after its modules. The last of a module's nodes holds the module's output if the module,
    run by itself in PyTorch on the input of those nodes in ONNX Runtime, computes the same values.
    """
    scopes: dict[str, list[ir.Node]] = {}
    for node in model.core.graph:
        parts = str(node.name).split("/")[1:-1]
        for depth in range(len(parts)):
            scopes.setdefault(".".join(parts[: depth + 1]), []).append(node)
    alive = on_path(model)
    ends: dict[str, tuple[ir.Value, ir.Value]] = {}
    for path, nodes in scopes.items():
        inside = set(nodes)
        read = {i for node in nodes for i in node.inputs if i is not None and i.const_value is None}
        sources = {value for value in read if value.producer() not in inside}
        if f"{path}_1" not in scopes and len(sources) == 1 and nodes[-1].outputs[0] in alive:
            ends[path] = (sources.pop(), nodes[-1].outputs[0])
    values = run(model, x, [str(t.name) for pair in ends.values() for t in pair if not t.is_graph_input()])
    values[str(model.core.graph.inputs[0].name)] = x
    matches = {}
    for path, module in script.named_modules():
        if path in ends:
            source, output = (values[str(t.name)] for t in ends[path])
            alone = _alone(module, source)
            if alone is not None and difference(output, alone) <= CLOSE:
                matches[path] = ends[path][1]
    return matches


def _alone(module: Any, x: Array) -> Array | None:
    """A module's output by itself; `None` if it takes other inputs or returns no tensor."""
    try:
        with torch.no_grad():
            y = module(torch.from_numpy(x.copy()))
    except (RuntimeError, TypeError, ValueError):
        return None
    return y.numpy() if isinstance(y, torch.Tensor) else None
