"""What ONNX Runtime computes with an exported graph, held against what the framework computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.model import Model
from onnx_gradcam.runtime.session import Session

Array = npt.NDArray[Any]

__all__ = ["TOLERANCE", "compare", "difference", "run"]

TOLERANCE = 1e-4
"""The largest difference, relative to the largest value, with which a graph is still taken for the network."""


def run(model: Model, x: Array, tensors: Iterable[str] = ()) -> dict[str, Array]:
    """The outputs of a graph, and further tensors of it, by name.

    Raises:
        ModelError: ONNX Runtime cannot run it.
    """
    proto = model.to_proto()
    there = {output.name for output in proto.graph.output}
    for name in tensors:
        if name not in there:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, model.info(name).elem_type, None))
    session = Session(proto.SerializeToString(), disabled_optimizers=["Pad_Fusion"])
    return session.run({session.inputs[0].name: x})


def difference(found: Array, wanted: Array) -> float:
    """The largest difference, relative to the largest wanted value; infinite where the shapes differ."""
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    # What is not a number on one side only is a difference as well.
    with np.errstate(invalid="ignore"):
        gap = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    gap[(found == wanted) | (np.isnan(found) & np.isnan(wanted))] = 0
    scale = float(np.max(np.abs(wanted), initial=0.0, where=np.isfinite(wanted)))
    worst = float(np.max(gap))
    return worst / scale if scale else worst


def compare(found: Mapping[str, Array], wanted: Mapping[str, Array], what: str, framework: str) -> float:
    """The largest difference over all wanted tensors.

    Args:
        found: what the graph computes.
        wanted: what the framework computed.
        what: of which images, in words.
        framework: its name.

    Raises:
        UnsupportedError: the difference is above `TOLERANCE`.
    """
    gaps = {name: difference(found[name], value) for name, value in wanted.items()}
    name, worst = max(gaps.items(), key=lambda item: np.nan_to_num(item[1], nan=np.inf))
    if not worst <= TOLERANCE:
        raise UnsupportedError(
            f"the exported graph is not the network: at {what} its {name!r} differs from {framework}'s by {worst:.1e} "
            f"of the largest value (up to {TOLERANCE:.0e} is rounding); try the other exporter or another {framework}"
        )
    return worst
