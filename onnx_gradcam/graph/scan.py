"""Append a Scan whose body is written with a Builder of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .builder import Builder, Value
from .subgraph import Inner

__all__ = ["Body", "scan"]

Body = Callable[[Builder, list[Value], list[Value]], tuple[Sequence[Value], Sequence[Value]]]
"""(builder of the body, states, slices of the sequences) -> (next states, what to stack)."""


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
    for value, made in zip(outputs[len(after) :], stacked, strict=True):
        t.refine(value, (*length, *made.shape))
    return list(outputs[: len(after)]), list(outputs[len(after) :])
