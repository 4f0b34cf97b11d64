"""ONNX's own `Gradient` operator, which no runtime implements, in operators that every runtime has.

`ai.onnx.preview.training.Gradient` names tensors of its graph: its outputs are the derivatives of the sum of `y` by
each of `xs`.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.model import Model

from .backward import backward
from .expand import expand_missing

__all__ = ["lower_gradients"]

_DOMAIN = "ai.onnx.preview.training"


def lower_gradients(source: str | Path | bytes | onnx.ModelProto) -> Model:
    """Load a model and replace its `Gradient` nodes, one after the other, by what they compute.

    Gradients of gradients work: what a node was replaced by is differentiated like anything else.

    Raises:
        ModelError: the file is not a usable model.
        UnsupportedError: a node names tensors that are not in the graph, asks for another point than the tensors
            themselves, or an operator on the way has no rule.
    """
    model, builders = load(source), []
    while (node := next((n for n in model.core.graph if _is_gradient(n)), None)) is not None:
        names, y = list(node.attributes["xs"].as_strings()), node.attributes["y"].as_string()
        _check(node, names)
        expand_missing(model, [y], names)
        t = Builder(model)
        score, *xs = (_find(t, node, name) for name in (y, *names))
        gradients = backward(t, {score: t.full_like(score, 1.0)}, xs)
        for old, new in zip(node.outputs, gradients, strict=True):
            t.take_over(old, t.op("Identity", new, shape=new.known_shape))
        t.graph.remove(node, safe=True)
        t.graph.sort()
        builders.append(t)
    # Not before: a later node may name a tensor that nothing else reads.
    for t in reversed(builders):
        t.finish()
    model.core.opset_imports.pop(_DOMAIN, None)
    return model


def _is_gradient(node: ir.Node) -> bool:
    return node.domain == _DOMAIN and node.op_type == "Gradient"


def _check(node: ir.Node, names: list[str]) -> None:
    """The operator may ask for the derivative at values from elsewhere; only the tensors themselves are served."""
    zs = node.attributes.get("zs")
    asked = names + (list(zs.as_strings()) if zs is not None else [])
    given = [None if i is None else i.name for i in node.inputs]
    if given != asked:
        raise UnsupportedError(
            f"the Gradient node {node.name!r} asks for the derivative by {asked} at {given}; "
            "only derivatives at the named tensors themselves can be had"
        )


def _find(t: Builder, node: ir.Node, name: str) -> Value:
    value = t.find(name)
    if value is None:
        raise UnsupportedError(f"the Gradient node {node.name!r} names a tensor {name!r} that the graph does not have")
    return value
