"""Zero Pads before a MaxPool, which ONNX Runtime's optimiser computes wrongly.

Its `Pad_Fusion` (on by default, versions 1.20 to 1.31 at least) makes the Pad the pool's own padding, and a MaxPool
pads with minus infinity: where all of a window is negative, the zeros that would have won are gone. A fill of minus
zero is the same number and is not fused.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .builder import Builder

__all__ = ["guard_padded_pools", "padded_pools"]


def padded_pools(t: Builder) -> list[ir.Node]:
    """The Pads right before a MaxPool that the optimiser may fold into it."""
    found = []
    for node in t.nodes:
        pad = node.inputs[0].producer() if node.op_type == "MaxPool" and node.inputs[0] is not None else None
        if pad is None or pad.op_type != "Pad":
            continue
        mode = pad.attributes.get("mode")
        value = _fill(t, pad)
        negative_zero = value is not None and bool(np.signbit(value).all()) and not np.any(value)
        if (mode is None or mode.as_string() == "constant") and not negative_zero:
            found.append(pad)
    return found


def guard_padded_pools(t: Builder) -> None:
    """Write the fill of floating-point zero Pads before a MaxPool as minus zero: the values stay what they are."""
    for pad in padded_pools(t):
        data, value = t.wrap(pad.outputs[0]), _fill(t, pad)
        if data.is_float and value is not None and not np.any(value):
            if len(pad.inputs) < 3:
                pad.resize_inputs(3)
            pad.replace_input_with(2, t.const(-0.0, data.dtype).core)


def _fill(t: Builder, pad: ir.Node) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """What a Pad pads with; `None` where that is no constant."""
    fill = pad.inputs[2] if len(pad.inputs) > 2 else None
    return np.zeros(()) if fill is None else t.wrap(fill).array()
