"""Replace fused and quantised operators by standard ones.

ONNX Runtime's optimiser writes operators outside of the ONNX standard (`com.microsoft`); quantisation tools write
operators that hide real numbers (`QLinearConv`). When a model is loaded, each of them that has a decomposition is
replaced, so that shapes can be inferred and all other code meets standard operators only. Runtimes fuse them again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import onnx
import onnx_ir as ir

from onnx_gradcam.errors import ModelError

from .builder import Builder, Value
from .model import Model
from .shapes import TensorInfo

__all__ = [
    "DECOMPOSITIONS",
    "decompose",
    "decomposes",
    "decomposition_table",
    "to_channels_first",
    "to_channels_last",
    "unknown_operator",
]

Decomposition = Callable[..., Value | Sequence[Value] | None]
"""`(t, *inputs, **attributes)` -> the node's outputs, or `None` if it does not cover this node."""

DECOMPOSITIONS: dict[tuple[str, str], Decomposition] = {}

MICROSOFT = "com.microsoft"
_QONNX = "uses QONNX operators, which ONNX Runtime does not have; export it with QuantizeLinear (QCDQ) instead"
_REFUSED = {
    "com.microsoft.nchwc": "is optimised for one kind of CPU; use the original, or optimise at level 'extended'",
    "onnx.brevitas": _QONNX,
    "qonnx.custom_op.general": _QONNX,
    "finn.custom_op.general": _QONNX,
}
"""Domains of operators that cannot be decomposed, and what to do with a model that uses them."""

_MOST_ROUNDS = 20
_TABLES = ("fused", "quantised")


_F = TypeVar("_F", bound=Decomposition)


def decomposes(*op_types: str, domain: str = MICROSOFT) -> Callable[[_F], _F]:
    """Register a function as the decomposition of `op_types`."""

    def register(function: _F) -> _F:
        DECOMPOSITIONS.update(((domain, op_type), function) for op_type in op_types)
        return function

    return register


def decomposition_table() -> dict[tuple[str, str], Decomposition]:
    """All decompositions, by domain and operator; the first call imports their modules."""
    for name in _TABLES:
        importlib.import_module(f"{__package__}.{name}")
    return DECOMPOSITIONS


def decompose(model: Model) -> bool:
    """Replace, in place, every node that has a decomposition; whether there were any. Tensors keep their names.

    Raises:
        ModelError: the model has operators that cannot be decomposed, or a node is invalid.
    """
    for node in model.core.graph:
        if node.domain in _REFUSED:
            raise ModelError(f"{model.name} {_REFUSED[node.domain]} (node {node.name!r}, {node.domain}.{node.op_type})")
    changed = False
    # Inference over the graph stops at the first operator that it does not know, and goes on where that is decomposed.
    for _ in range(_MOST_ROUNDS):
        if not _decompose_ranked(model):
            break
        changed = True
    return _decompose_ranked(model, unranked=True) or changed


def _decompose_ranked(model: Model, *, unranked: bool = False) -> bool:
    """Replace the nodes whose inputs have known ranks, and with `unranked` the others too; whether there were any."""
    table = decomposition_table()
    if not any((n.domain, n.op_type) in table for n in model.core.graph):
        return False
    t = Builder(model)
    changed = False
    for node in t.nodes:
        outputs = _decomposed(t, node, table, unranked=unranked)
        if outputs is not None:
            _replace(t, node, outputs)
            changed = True
        elif node.domain == "" and any(o.name and t.wrap(o).known_shape is None for o in node.outputs):
            _try_inference(t, node)
    if changed:
        t.graph.sort()
        t.finish()
        model.infer()
    return changed


def unknown_operator(model: Model, nodes: Iterable[ir.Node]) -> str | None:
    """Which of the nodes hides the shapes behind it: neither standard nor decomposed; `None` without one."""
    for node in nodes:
        version = int(model.core.opset_imports.get(node.domain) or 1)
        hidden = [str(o.name) for o in node.outputs if o.name and TensorInfo.of(o).shape is None]
        if hidden and node.domain and not onnx.defs.has(node.op_type, version, node.domain):
            return (
                f"the operator {node.domain}.{node.op_type} ({str(node.name or hidden[0])!r}) is unknown in this form, "
                f"and {model.name} does not state the shape of its output {hidden[0]!r}; export the model without it"
            )
    return None


def to_channels_first(t: Builder, x: Value) -> Value:
    """`[N, ..., C]` as `[N, C, ...]`."""
    return t.transpose(x, [0, x.rank - 1, *range(1, x.rank - 1)])


def to_channels_last(t: Builder, x: Value) -> Value:
    """`[N, C, ...]` as `[N, ..., C]`."""
    return t.transpose(x, [0, *range(2, x.rank), 1])


def _decomposed(
    t: Builder, node: ir.Node, table: dict[tuple[str, str], Decomposition], *, unranked: bool
) -> Sequence[Value] | None:
    function = table.get((node.domain, node.op_type))
    inputs = [None if i is None else t.wrap(i) for i in node.inputs]
    present = [i for i in inputs if i is not None]
    if function is None or any(i.dtype is None or (i.known_shape is None and not unranked) for i in present):
        return None
    attributes: dict[str, Any] = {name: a.value for name, a in node.attributes.items()}
    try:
        outputs = function(t, *inputs, **attributes)
    except TypeError as exc:
        raise ModelError(
            f"node {node.name!r}: {node.op_type} has an unknown attribute ({exc}); use the original model"
        ) from exc
    return [outputs] if isinstance(outputs, Value) else outputs


def _replace(t: Builder, node: ir.Node, outputs: Sequence[Value]) -> None:
    for old, new in zip(node.outputs, outputs, strict=False):
        t.take_over(old, new)
    if any(o.uses() for o in node.outputs):
        raise ModelError(
            f"node {node.name!r}: an optional output of {node.op_type} is read, which its decomposition does not "
            "compute; use the original model"
        )
    t.graph.remove(node, safe=True)


def _try_inference(t: Builder, node: ir.Node) -> None:
    if all(i is None or t.wrap(i).dtype is not None for i in node.inputs):
        try:
            t.infer(node)
        except ModelError as exc:
            raise ModelError(f"node {node.name!r} is not valid: {exc}") from exc
