"""Graphs that ONNX Runtime's optimiser computes wrongly: a Pad with zeros before a MaxPool.

Its `Pad_Fusion` (on by default, in versions 1.20 to 1.31 at least) replaces the Pad by the padding of the MaxPool,
which is minus infinity: a window of negative numbers loses its largest value, zero. A Pad with minus zero is not fused
and computes the same. A file of its own, so that the workaround can be deleted in one piece.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .builder import Builder

__all__ = ["guard_padded_pools", "padded_pools"]


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
