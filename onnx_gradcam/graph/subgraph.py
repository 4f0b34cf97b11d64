"""Append nodes that have subgraphs: If and Scan.

Each subgraph is written with a builder of its own, `Inner`. `copied` appends the nodes of an existing subgraph again,
which the gradients of If and Scan need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from onnx_gradcam.errors import UnsupportedError

from .builder import Builder, Value
from .model import Model
from .shapes import declare

__all__ = ["Body", "Inner", "copied", "either", "scan"]


class Inner(Builder):
    """Builder of a new subgraph; its names are unique in the whole model."""

    def __init__(self, outer: Builder) -> None:
        core = ir.Model(ir.Graph([], [], nodes=[], name=outer.unique("body")), ir_version=outer.model.core.ir_version)
        core.opset_imports.update(outer.model.core.opset_imports)
        model = outer.model
        super().__init__(Model(core, model.folder, model.name))
        self._outer = outer

    def unique(self, stem: str) -> str:
        """A name that is new in the whole model."""
        return self._outer.unique(stem)

    def parameter(self, like: Value, drop: int) -> Value:
        """Add an input of the type of `like` and of its shape without the first `drop` dimensions."""
        value = ir.Value(name=self.unique("body_input"))
        declare(value, like.elem_type, like.shape[drop:])
        self.graph.inputs.append(value)
        return self.wrap(value)

    def close(self, outputs: Sequence[Value]) -> ir.Graph:
        """Make `outputs` the outputs of the subgraph, and return it."""
        for value in outputs:
            # Identity: an output must be computed in the body, and be listed only once.
            self.graph.outputs.append(self.op("Identity", value, shape=value.known_shape).core)
        self.finish()
        return self.graph


def either(t: Builder, condition: Value, branches: Sequence[Callable[[Inner], Sequence[Value]]]) -> list[Value]:
    """Append an If, and return its outputs.

    `branches` are functions that write the branches for true and for false and return tensors of the same types.
    """
    graphs = []
    for write in branches:
        inner = Inner(t)
        graphs.append(inner.close(write(inner)))
    then, otherwise = graphs
    return list(t.ops("If", condition, outputs=len(then.outputs), then_branch=then, else_branch=otherwise))


def copied(t: Builder, body: ir.Graph, inputs: Sequence[Value] = ()) -> list[Value]:
    """Append the nodes of `body` again, with `inputs` for its inputs; returns the copies of its outputs."""
    return _copied(t, body, {old: new.core for old, new in zip(body.inputs, inputs, strict=True)})


def _copied(t: Builder, body: ir.Graph, outer: Mapping[ir.Value, ir.Value]) -> list[Value]:
    copies = dict(outer)
    for value in body.initializers.values():
        if value.const_value is not None:
            copies[value] = t.const(value.const_value.numpy()).core
    for node in body:
        args = [None if i is None else t.wrap(copies.get(i, i)) for i in node.inputs]
        attributes: dict[str, Any] = {
            name: _copied_graph(t, node, a.as_graph(), copies) if a.type == ir.AttributeType.GRAPH else a.value
            for name, a in node.attributes.items()
        }
        if any(a is not None and a.dtype is None for a in args):
            raise _refused(node)  # sequences
        try:
            outputs = t.ops(node.op_type, *args, outputs=len(node.outputs), domain=node.domain, **attributes)
        except onnx.defs.SchemaError as exc:
            raise _refused(node) from exc
        copies |= {old: new.core for old, new in zip(node.outputs, outputs, strict=True)}
    return [t.wrap(copies.get(o, o)) for o in body.outputs]


def _copied_graph(t: Builder, node: ir.Node, body: ir.Graph, copies: Mapping[ir.Value, ir.Value]) -> ir.Graph:
    """Copy a subgraph inside of a subgraph: only branches, whose types follow from the tensors that they read."""
    if body.inputs:
        raise _refused(node)
    inner = Inner(t)
    return inner.close(_copied(inner, body, copies))


def _refused(node: ir.Node) -> UnsupportedError:
    return UnsupportedError(
        f"no VJP rule for {node.op_type} inside of a subgraph (node {node.name!r}); choose a later layer"
    )


Body = Callable[[Builder, list[Value], list[Value]], tuple[Sequence[Value], Sequence[Value]]]
"""(builder of the body, states, slices of the sequences) -> (next states, outputs to stack)."""


def scan(
    t: Builder, states: Sequence[Value], sequences: Sequence[Value], body: Body
) -> tuple[list[Value], list[Value]]:
    """Append a Scan: run `body` over the first dimension of the sequences, which is equally long.

    The body can read tensors of the outer graph that its own builder wraps. Returns the final states, and the stacked
    outputs.
    """
    inner = Inner(t)
    ins = [inner.parameter(v, 0) for v in states]
    slices = [inner.parameter(v, 1) for v in sequences]
    after, stacked = body(inner, ins, slices)
    graph = inner.close([*after, *stacked])
    outputs = t.ops(
        "Scan", *states, *sequences, outputs=len(after) + len(stacked), body=graph, num_scan_inputs=len(sequences)
    )
    length = sequences[0].shape[:1]
    for value, state in zip(outputs, states, strict=False):
        t.refine(value, state.shape)
    for value, row in zip(outputs[len(after) :], stacked, strict=True):
        t.refine(value, (*length, *row.shape))
    return list(outputs[: len(after)]), list(outputs[len(after) :])
