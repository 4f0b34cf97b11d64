"""Rules of operators with subgraphs, If and Scan, and the reverse of a Scan that recurrent layers share.

The gradient of an If is an If over the gradients of its branches. That of a Scan is a Scan in reverse order over the
backward pass of its body. A Loop of known length is unrolled before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.autodiff.backward import cotangents_or_zero
from onnx_gradcam.autodiff.registry import Cotangent, Table, vjp
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.subgraph import Body, Inner, copied, either, scan

__all__ = ["flipped", "scan_vjp"]


@vjp("If", all_outputs=True, subgraphs=True)
def if_(
    t: Builder, gs: Sequence[Value | None], ys: Sequence[Value], condition: Value,
    *, then_branch: ir.Graph, else_branch: ir.Graph, captured: Sequence[Value], table: Table,
    dtype: npt.DTypeLike | None,
) -> Sequence[Cotangent]:  # fmt: skip
    """Each branch recomputes what its cotangents need; tensors that it does not read have the cotangent zero."""

    def reversed_(branch: ir.Graph) -> Callable[[Inner], Sequence[Value]]:
        def write(inner: Inner) -> Sequence[Value]:
            outputs = copied(inner, branch)
            inner.nodes = tuple(inner.graph)
            seeds: dict[Value, Value] = {}
            for output, g in zip(outputs, gs, strict=True):
                if g is not None:
                    # Outside, only the dimensions that the branches share are known, perhaps not even the rank.
                    here = inner.op("Identity", g, shape=output.known_shape)
                    seeds[output] = seeds[output] + here if output in seeds else here
            return cotangents_or_zero(inner, seeds, [inner.wrap(v.core) for v in captured], table, dtype)

        return write

    return [None, *either(t, condition, [reversed_(then_branch), reversed_(else_branch)])]


def flipped(t: Builder, v: Value) -> Value:
    """`v` with its first dimension, time, reversed."""
    whole = t.ints(np.iinfo(np.int64).min)
    return t.op("Slice", v, t.ints(-1), whole, t.ints(0), t.ints(-1), shape=v.known_shape)


def scan_vjp(
    t: Builder,
    body: Body,
    states: Sequence[Value],
    sequences: Sequence[Value],
    g_states: Sequence[Value | None],
    g_stacked: Sequence[Value | None],
    captured: Sequence[Value] = (),
    table: Table | None = None,
    dtype: npt.DTypeLike | None = None,
) -> tuple[list[Value], list[Value], list[Value]]:
    """Run a Scan again for the states before every step, then in reverse, with one step's backward pass as its body.

    Args:
        t: the builder.
        body: one step of the Scan.
        states: the first states.
        sequences: the tensors to scan, along the first dimension.
        g_states: cotangents of the last states.
        g_stacked: cotangents of the stacked outputs.
        captured: outer tensors that the body reads, to differentiate by as well.
        table: rules for the body; the registered ones by default.
        dtype: the type of all cotangents; by default that of each tensor.

    Returns:
        The cotangents of the first states and of the sequences, both without integers, and of the captured tensors.
    """

    def forward(inner: Builder, ins: list[Value], slices: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        after, stacked = body(inner, ins, slices)
        for g, value in zip(g_stacked, stacked, strict=True):
            # Inference over the whole model knows little about the outputs that a Scan stacks.
            if g is not None and value.known_shape is not None:
                t.refine(g, (sequences[0].shape[0], *value.shape))
        return after, ins

    _, before = scan(t, states, sequences, forward) if states else ([], [])
    n, m = len(states), len(sequences)
    real_states = [i for i, v in enumerate(states) if v.is_float]
    real_sequences = [i for i, v in enumerate(sequences) if v.is_float]
    with_cotangent = {i: g for i, g in enumerate(g_stacked) if g is not None}
    k = len(real_states)

    def back(inner: Builder, ins: list[Value], slices: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        xs, previous = slices[:m], slices[m : m + n]
        after, stacked = body(inner, previous, xs)
        inner.nodes = tuple(inner.graph)
        seeds: dict[Value, Value] = {}
        ends = [*(after[i] for i in real_states), *(stacked[i] for i in with_cotangent)]
        for end, g in zip(ends, (*ins[:k], *slices[m + n :]), strict=True):
            seeds[end] = seeds[end] + g if end in seeds else g
        own = [previous[i] for i in real_states] + [xs[i] for i in real_sequences]
        cotangents = cotangents_or_zero(inner, seeds, [*own, *(inner.wrap(v.core) for v in captured)], table, dtype)
        totals = [total + new for total, new in zip(ins[k:], cotangents[len(own) :], strict=True)]
        return [*cotangents[:k], *totals], cotangents[k : len(own)]

    last = [g if (g := g_states[i]) is not None else t.full_like(states[i], 0.0, dtype) for i in real_states]
    zeros = [t.full_like(v, 0.0, dtype) for v in captured]
    final, steps = scan(
        t, [*last, *zeros], [flipped(t, v) for v in (*sequences, *before, *with_cotangent.values())], back
    )
    return final[:k], [flipped(t, v) for v in steps], final[k:]


@vjp("Scan", all_outputs=True, subgraphs=True)
def scan_(
    t: Builder, gs: Sequence[Value | None], ys: Sequence[Value], *inputs: Value,
    body: ir.Graph, num_scan_inputs: int, scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None, scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None, captured: Sequence[Value], table: Table,
    dtype: npt.DTypeLike | None,
) -> Sequence[Cotangent]:  # fmt: skip
    """Any number of states and sequences, along any axis, in either direction."""
    n = len(inputs) - num_scan_inputs
    states, sequences = inputs[:n], inputs[n:]
    axes, directions = scan_input_axes or [0] * len(sequences), scan_input_directions or [0] * len(sequences)
    leading = [_leading(t, *s) for s in zip(sequences, axes, directions, strict=True)]
    count = len(gs) - n
    out = zip(gs[n:], scan_output_axes or [0] * count, scan_output_directions or [0] * count, strict=True)
    stacked = [None if g is None else _leading(t, g, axis, direction) for g, axis, direction in out]

    def step(inner: Builder, ins: list[Value], slices: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        outputs = copied(inner, body, [*ins, *slices])
        return outputs[:n], outputs[n:]

    d_states, d_sequences, d_captured = scan_vjp(t, step, states, leading, gs[:n], stacked, captured, table, dtype)
    back = [(a, d) for v, a, d in zip(sequences, axes, directions, strict=True) if v.is_float]
    restored = [_restored(t, g, axis, direction) for g, (axis, direction) in zip(d_sequences, back, strict=True)]
    cotangents = iter([*d_states, *restored])
    return [*(next(cotangents) if v.is_float else None for v in inputs), *d_captured]


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
