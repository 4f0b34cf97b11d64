"""Append a Scan whose body is written with a Builder of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from .builder import Builder, Value
from .model import Model

__all__ = ["Body", "scan"]

Body = Callable[[Builder, list[Value], list[Value]], tuple[Sequence[Value], Sequence[Value]]]
"""(builder of the body, states, slices of the sequences) -> (next states, what to stack)."""


class _Inner(Builder):
    """A builder for a subgraph: names are unique in the whole model, types of outer tensors are known."""

    def __init__(self, outer: Builder, graph: ir.Graph) -> None:
        core = ir.Model(graph, ir_version=outer.model.core.ir_version)
        core.opset_imports.update(outer.model.core.opset_imports)
        model = outer.model
        super().__init__(Model(core, model.folder, model.types, model.shapes, model.example, model.name))
        self._outer = outer

    def unique(self, stem: str) -> str:
        return self._outer.unique(stem)

    def parameter(self, like: Value, drop: int) -> Value:
        """Add an input of the type of `like` and of its shape without the first `drop` dimensions."""
        value = ir.Value(name=self.unique("body_input"))
        kind = self.model.types[like.name]
        self._register(value, kind, like.shape[drop:])
        self.graph.inputs.append(value)
        return self.wrap(value)


def scan(
    t: Builder, states: Sequence[Value], sequences: Sequence[Value], body: Body
) -> tuple[list[Value], list[Value]]:
    """Run `body` over the first dimension of the sequences.

    Args:
        t: where the Scan is appended.
        states: the first states.
        sequences: tensors of equal length in their first dimension.
        body: one step; it may use tensors of the outer graph, wrapped by its own builder.

    Returns:
        The last states, and the stacked outputs.
    """
    graph = ir.Graph([], [], nodes=[], name=t.unique("body"))
    inner = _Inner(t, graph)
    ins = [inner.parameter(v, 0) for v in states]
    slices = [inner.parameter(v, 1) for v in sequences]
    after, stacked = body(inner, ins, slices)
    for value in (*after, *stacked):
        # Identity: an output must be made in the body, and only once.
        graph.outputs.append(inner.op("Identity", value, shape=value.known_shape).core)
    inner.finish()
    outputs = t.ops(
        "Scan", *states, *sequences, outputs=len(after) + len(stacked), body=graph, num_scan_inputs=len(sequences)
    )
    length = sequences[0].shape[:1]
    for value, state in zip(outputs, states, strict=False):
        t.refine(value, state.shape)
    for value, made in zip(outputs[len(after) :], stacked, strict=True):
        t.refine(value, (*length, *made.shape))
    return list(outputs[: len(after)]), list(outputs[len(after) :])
