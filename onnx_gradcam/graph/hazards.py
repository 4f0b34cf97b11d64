"""Graphs that ONNX Runtime's optimiser computes wrongly, or fails on.

Its `Pad_Fusion` (on by default, in versions 1.20 to 1.31 at least) replaces the Pad by the padding of the MaxPool,
which is minus infinity: a window of negative numbers loses its largest value, zero. A Pad with minus zero is not fused
and computes the same.

Its `ReshapeFusion` reads a size of zero in the target of a Reshape as "keep this dimension". Where the number of boxes
depends on the image, and none is left, the optimised graph fails: "Input shape:{0,2,2}, requested shape:{0,-1}".

A file of its own, so that the workarounds can be deleted in one piece.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .builder import Builder

__all__ = ["PAD_FUSION", "RESHAPE_FUSION", "guard_padded_pools", "hazards", "padded_pools"]

PAD_FUSION = "Pad_Fusion"
RESHAPE_FUSION = "ReshapeFusion"

_COUNTING = {"NonZero", "NonMaxSuppression", "Compress", "Unique"}


def hazards(t: Builder) -> dict[str, str]:
    """The optimizations to disable for a graph, each with what it does to which node, as a sentence without it."""
    reasons: dict[str, str] = {}
    pads = padded_pools(t)
    if pads:
        name = str(pads[0].name or pads[0].outputs[0].name)
        reasons[PAD_FUSION] = f"ONNX Runtime computes {name!r} (a zero Pad before a MaxPool) wrongly"
    counting = next((node for node in t.nodes if _counts(t, node)), None)
    if counting is not None:
        name = str(counting.name or counting.outputs[0].name)
        reasons[RESHAPE_FUSION] = f"ONNX Runtime can fail where {name!r} ({counting.op_type}) finds nothing in an image"
    return reasons


def _counts(t: Builder, node: ir.Node) -> bool:
    """Whether the number of a node's results depends on the image."""
    if node.op_type == "TopK" and len(node.inputs) > 1 and node.inputs[1] is not None:
        return t.wrap(node.inputs[1]).array() is None
    return node.op_type in _COUNTING and not node.domain


def padded_pools(t: Builder) -> list[ir.Node]:
    """The Pads that the optimiser may fuse into the MaxPool after them."""
    pads = []
    for node in t.nodes:
        pad = node.inputs[0].producer() if node.op_type == "MaxPool" and node.inputs[0] is not None else None
        if pad is None or pad.op_type != "Pad":
            continue
        mode = pad.attributes.get("mode")
        value = _fill(t, pad)
        negative_zero = value is not None and bool(np.signbit(value).all()) and not np.any(value)
        if (mode is None or mode.as_string() == "constant") and not negative_zero:
            pads.append(pad)
    return pads


def guard_padded_pools(t: Builder) -> bool:
    """Let these Pads, in place, pad with minus zero if they pad floating-point numbers; whether there were any."""
    guarded = False
    for pad in padded_pools(t):
        data, value = t.wrap(pad.outputs[0]), _fill(t, pad)
        if data.is_float and value is not None and not np.any(value):
            if len(pad.inputs) < 3:
                pad.resize_inputs(3)
            pad.replace_input_with(2, t.const(-0.0, data.dtype).core)
            guarded = True
    return guarded


def _fill(t: Builder, pad: ir.Node) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """The number that a Pad pads with; `None` if it is not a constant."""
    fill = pad.inputs[2] if len(pad.inputs) > 2 else None
    return np.zeros(()) if fill is None else t.wrap(fill).array()
