"""Scan: a Scan that runs backwards over the body's own backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

from ._scan import flipped, scan_vjp


@vjp("Scan", all_outputs=True)
def scan(
    t: Builder,
    gs: Sequence[Value | None],
    ys: Sequence[Value],
    *inputs: Value,
    body: ir.Graph,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
) -> Sequence[Cotangent]:
    """Any number of states and sequences, along any axis, in either direction."""
    n = len(inputs) - num_scan_inputs
    states, sequences = inputs[:n], inputs[n:]
    axes, directions = scan_input_axes or [0] * len(sequences), scan_input_directions or [0] * len(sequences)
    leading = [_leading(t, *s) for s in zip(sequences, axes, directions, strict=True)]
    count = len(gs) - n
    out = zip(gs[n:], scan_output_axes or [0] * count, scan_output_directions or [0] * count, strict=True)
    stacked = [None if g is None else _leading(t, g, axis, direction) for g, axis, direction in out]

    def step(inner: Builder, ins: list[Value], slices: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        made = _copied(inner, body, [*ins, *slices])
        return made[:n], made[n:]

    d_states, d_sequences, _ = scan_vjp(t, step, states, leading, gs[:n], stacked)
    back = [(a, d) for v, a, d in zip(sequences, axes, directions, strict=True) if v.is_float]
    restored = [_restored(t, g, axis, direction) for g, (axis, direction) in zip(d_sequences, back, strict=True)]
    found = iter([*d_states, *restored])
    return [next(found) if v.is_float else None for v in inputs]


def _leading(t: Builder, v: Value, axis: int, direction: int) -> Value:
    """`v` with the scanned dimension first, in the order of the scan."""
    if axis:
        axis %= v.rank
        v = t.transpose(v, [axis, *(a for a in range(v.rank) if a != axis)])
    return flipped(t, v) if direction else v


def _restored(t: Builder, v: Value, axis: int, direction: int) -> Value:
    """The inverse of `_leading`."""
    v = flipped(t, v) if direction else v
    axis %= v.rank
    return t.transpose(v, [*range(1, axis + 1), 0, *range(axis + 1, v.rank)])


def _copied(t: Builder, body: ir.Graph, inputs: Sequence[Value]) -> list[Value]:
    """The nodes of `body` appended once more, with `inputs` for its inputs; the copies of its outputs."""
    known = {old: new.core for old, new in zip(body.inputs, inputs, strict=True)}
    for value in body.initializers.values():
        if value.const_value is not None:
            known[value] = t.const(value.const_value.numpy()).core
    for node in body:
        if any(a.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for a in node.attributes.values()):
            raise UnsupportedError(
                f"no VJP rule for Scan with {node.op_type} inside (node {node.name!r}); choose a later layer"
            )
        args = [None if i is None else t.wrap(known.get(i, i)) for i in node.inputs]
        made = t.ops(
            node.op_type,
            *args,
            outputs=len(node.outputs),
            domain=node.domain,
            **{name: a.value for name, a in node.attributes.items()},
        )
        known |= {old: new.core for old, new in zip(node.outputs, made, strict=True)}
    return [t.wrap(known.get(o, o)) for o in body.outputs]
