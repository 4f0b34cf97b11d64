"""The reverse of a Scan: what recurrent layers and Scan itself have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnx_gradcam.autodiff.backward import cotangents_or_zero
from onnx_gradcam.autodiff.registry import Table
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.scan import Body, scan

__all__ = ["flipped", "scan_vjp"]


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
    """Run a Scan again to have the states before every step, then backwards, one step's backward pass a step.

    Args:
        t: the builder.
        body: one step of the Scan.
        states: the first states.
        sequences: what is scanned, along the first dimension.
        g_states: cotangents of the last states.
        g_stacked: cotangents of the stacked outputs.
        captured: outer tensors that the body uses and whose cotangents are wanted.
        table: rules for the body, instead of the registered ones.
        dtype: the type of all cotangents, where it is not that of their tensors.

    Returns:
        The cotangents of the first states and of the sequences, integers left out, and of the captured tensors.
    """

    def forward(inner: Builder, ins: list[Value], slices: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        after, stacked = body(inner, ins, slices)
        for g, value in zip(g_stacked, stacked, strict=True):
            # Inference over a whole model says little of what a Scan stacks.
            if g is not None and value.known_shape is not None:
                t.refine(g, (sequences[0].shape[0], *value.shape))
        return after, ins

    _, before = scan(t, states, sequences, forward) if states else ([], [])
    n, m = len(states), len(sequences)
    real_states = [i for i, v in enumerate(states) if v.is_float]
    real_sequences = [i for i, v in enumerate(sequences) if v.is_float]
    given = {i: g for i, g in enumerate(g_stacked) if g is not None}
    k = len(real_states)

    def back(inner: Builder, ins: list[Value], slices: list[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        xs, previous = slices[:m], slices[m : m + n]
        after, stacked = body(inner, previous, xs)
        inner.nodes = tuple(inner.graph)
        seeds: dict[Value, Value] = {}
        ends = [*(after[i] for i in real_states), *(stacked[i] for i in given)]
        for end, g in zip(ends, (*ins[:k], *slices[m + n :]), strict=True):
            seeds[end] = seeds[end] + g if end in seeds else g
        wanted = [previous[i] for i in real_states] + [xs[i] for i in real_sequences]
        found = cotangents_or_zero(inner, seeds, [*wanted, *(inner.wrap(v.core) for v in captured)], table, dtype)
        totals = [total + new for total, new in zip(ins[k:], found[len(wanted) :], strict=True)]
        return [*found[:k], *totals], found[k : len(wanted)]

    last = [g if (g := g_states[i]) is not None else t.full_like(states[i], 0.0, dtype) for i in real_states]
    zeros = [t.full_like(v, 0.0, dtype) for v in captured]
    final, made = scan(t, [*last, *zeros], [flipped(t, v) for v in (*sequences, *before, *given.values())], back)
    return final[:k], [flipped(t, v) for v in made], final[k:]
