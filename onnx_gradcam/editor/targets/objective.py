"""Objectives: functions of several class scores that are differentiated instead of the score of one class.

An objective is a function `(builder, scores [N, K], classes int64 [N]) -> [N]` that is appended to the graph and
differentiated by the backward pass. To add one, add an entry to `OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnx_gradcam.graph.builder import Builder, Value

__all__ = ["OBJECTIVES", "Objective", "against"]

Objective = Callable[[Builder, Value, Value], Value]

_SIMILAR = 3
"""Number of classes Finer-CAM compares with, as in pytorch-grad-cam."""


def runner_up(t: Builder, scores: Value, classes: Value) -> Value:
    """The lead of the class's score over the highest other one."""
    return _score(t, scores, classes) - t.reduce("ReduceMax", _others(t, scores, classes), [1], keepdims=False)


def against(other: int) -> Objective:
    """An objective: the lead of the class's score over that of class `other`."""

    def difference(t: Builder, scores: Value, classes: Value) -> Value:
        reference = t.op("Gather", scores, t.const(other, np.int64), axis=1)
        return _score(t, scores, classes) - reference

    return difference


def finer(t: Builder, scores: Value, classes: Value) -> Value:
    """The lead over the three classes with the nearest scores, each weighted by its probability.

    Zhang et al. 2025, eq. 4; pytorch-grad-cam utils/model_targets.py, FinerWeightedTarget, with alpha = 1.
    """
    own = t.op("Unsqueeze", _score(t, scores, classes), t.ints(1))
    distance = t.op("Abs", scores - own)
    width = scores.shape[1]
    count = min(_SIMILAR + 1, width) if isinstance(width, int) else _SIMILAR + 1
    _, nearest = t.ops("TopK", distance, t.ints(count), outputs=2, axis=1, largest=0)
    others = t.op("Slice", nearest, t.ints(1), t.ints(count), t.ints(1))
    weights = t.op("GatherElements", t.op("Softmax", scores, axis=1), others, axis=1)
    lead = own - t.op("GatherElements", scores, others, axis=1)
    return t.sum(t.op("Mul", weights, lead), [1], keepdims=False) / (t.sum(weights, [1], keepdims=False) + 1e-9)


def _score(t: Builder, scores: Value, classes: Value) -> Value:
    """The score of each sample's class, `[N]`."""
    picked = t.op("GatherElements", scores, t.op("Unsqueeze", classes, t.ints(1)), axis=1)
    return t.op("Squeeze", picked, t.ints(1))


def _others(t: Builder, scores: Value, classes: Value) -> Value:
    """The scores, with the class's own far below all others."""
    depth = t.op("Shape", scores, start=1, end=2)
    values = t.const(np.array([0, -1e30], np.float32))
    return scores + t.cast(t.op("OneHot", classes, depth, values, axis=1), scores.dtype)


OBJECTIVES: dict[str, Objective] = {"finer": finer, "runner-up": runner_up}
"""Objectives by name; `class`, the score of the class itself, needs no function."""
