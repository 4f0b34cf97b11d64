"""The layers of a TorchScript, whose modules take no hooks: named by the exporter, proved by running them alone."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from onnx_gradcam.export.parity import difference, run
from onnx_gradcam.graph.model import Model

from .capture import Array
from .layers import CLOSE, on_path

__all__ = ["scripted_layers"]


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
