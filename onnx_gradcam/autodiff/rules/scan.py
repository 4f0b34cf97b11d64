"""Scan: a Scan that runs backwards over the body's own backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.autodiff.registry import Cotangent, Table, vjp
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.subgraph import copied

from ._scan import flipped, scan_vjp


@vjp("Scan", all_outputs=True, subgraphs=True)
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
    captured: Sequence[Value],
    table: Table,
    dtype: npt.DTypeLike | None,
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
        made = copied(inner, body, [*ins, *slices])
        return made[:n], made[n:]

    d_states, d_sequences, d_captured = scan_vjp(t, step, states, leading, gs[:n], stacked, captured, table, dtype)
    back = [(a, d) for v, a, d in zip(sequences, axes, directions, strict=True) if v.is_float]
    restored = [_restored(t, g, axis, direction) for g, (axis, direction) in zip(d_sequences, back, strict=True)]
    found = iter([*d_states, *restored])
    return [*(next(found) if v.is_float else None for v in inputs), *d_captured]


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
