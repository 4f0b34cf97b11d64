"""Operators outside the standard, and quantised ones, written in standard operators.

ONNX Runtime's optimiser and the quantisation tools write operators that ONNX does not have (`com.microsoft`), or that
hide a quantised tensor's real numbers (`QLinearConv`). Every one with a decomposition is replaced when a model is
loaded, wherever it stands, so that shapes can be inferred and everything behind it sees standard operators only.
Runtimes fuse them again when they load the model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import onnx_ir as ir

from onnx_gradcam.errors import ModelError

from .builder import Builder, Value
from .model import Model

__all__ = ["DECOMPOSITIONS", "decompose", "decomposes", "decomposition_table"]

Decomposition = Callable[..., Value | Sequence[Value] | None]
"""`(t, *inputs, **attributes)` -> the node's outputs, or `None` where this very node cannot be served."""

DECOMPOSITIONS: dict[tuple[str, str], Decomposition] = {}

MICROSOFT = "com.microsoft"
_HARDWARE_BOUND = "com.microsoft.nchwc"
_TABLES = ("fused", "quantised")


_F = TypeVar("_F", bound=Decomposition)


def decomposes(*op_types: str, domain: str = MICROSOFT) -> Callable[[_F], _F]:
    """Register the decomposition of `op_types`."""

    def register(function: _F) -> _F:
        DECOMPOSITIONS.update(((domain, op_type), function) for op_type in op_types)
        return function

    return register


def decomposition_table() -> dict[tuple[str, str], Decomposition]:
    """All decompositions, by domain and operator; their files are imported on the first call."""
    for name in _TABLES:
        importlib.import_module(f"{__package__}.{name}")
    return DECOMPOSITIONS


def decompose(model: Model) -> None:
    """Replace, in place, every node that has a decomposition; tensors keep their names.

    Raises:
        ModelError: the model was optimised for one kind of processor and cannot be taken apart.
    """
    bound = next((n for n in model.core.graph if n.domain == _HARDWARE_BOUND), None)
    if bound is not None:
        raise ModelError(
            f"{model.name}: node {bound.name!r} ({bound.domain}) was optimised for one kind of processor; "
            "take the original model, or save the optimised one at level `extended`"
        )
    table = decomposition_table()
    if not any((n.domain, n.op_type) in table for n in model.core.graph):
        return
    t = Builder(model)
    for node in t.nodes:
        outputs = _decomposed(t, node, table)
        if outputs is not None:
            _replace(t, node, outputs)
        elif node.domain == "" and any(t.wrap(o).dtype is None for o in node.outputs):
            # Inference over the whole graph stopped at the first operator it did not know.
            _try_inference(t, node)
    t.graph.sort()
    t.finish()
    model.infer()


def _decomposed(t: Builder, node: ir.Node, table: dict[tuple[str, str], Decomposition]) -> Sequence[Value] | None:
    function = table.get((node.domain, node.op_type))
    if function is None:
        return None
    inputs = [None if i is None else t.wrap(i) for i in node.inputs]
    attributes: dict[str, Any] = {name: a.value for name, a in node.attributes.items()}
    try:
        found = function(t, *inputs, **attributes)
    except TypeError as exc:
        raise ModelError(f"node {node.name!r}: {node.op_type} has an attribute that is not known here ({exc})") from exc
    return [found] if isinstance(found, Value) else found


def _replace(t: Builder, node: ir.Node, outputs: Sequence[Value]) -> None:
    for old, new in zip(node.outputs, outputs, strict=False):
        t.take_over(old, new)
    if any(o.uses() for o in node.outputs):
        raise ModelError(f"node {node.name!r}: {node.op_type} has an output in use that no decomposition gives")
    t.graph.remove(node, safe=True)


def _try_inference(t: Builder, node: ir.Node) -> None:
    if all(i is None or t.wrap(i).dtype is not None for i in node.inputs):
        try:
            t.infer(node)
        except ModelError as exc:
            raise ModelError(f"node {node.name!r} is not valid: {exc}") from exc
