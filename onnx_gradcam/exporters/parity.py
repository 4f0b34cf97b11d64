"""Compare an exported graph's values in ONNX Runtime with the framework's values."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_gradcam.errors import ExportError
from onnx_gradcam.graph.model import Model
from onnx_gradcam.runtime.session import Session

Array = npt.NDArray[Any]

__all__ = ["TOLERANCE", "ParityError", "compare", "difference", "run"]

TOLERANCE = 1e-4
"""The largest accepted difference, relative to the largest value."""


class ParityError(ExportError):
    """The exported graph's values are not the framework's."""


def run(model: Model, x: Array, tensors: Iterable[str] = ()) -> dict[str, Array]:
    """The outputs of a graph, and further tensors of it, by name."""
    proto = model.to_proto()
    outputs = {output.name for output in proto.graph.output}
    for name in tensors:
        if name not in outputs:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, model.info(name).elem_type, None))
    with _opened(proto, model) as session:
        return session.run({session.inputs[0].name: x})


@contextmanager
def _opened(proto: onnx.ModelProto, model: Model) -> Iterator[Session]:
    """A session of a proto; one that is too large to be serialized is written with its weights in another file."""
    if model.fits_one_file:
        yield Session(proto.SerializeToString(), disabled_optimizers=["Pad_Fusion"])
        return
    with tempfile.TemporaryDirectory(prefix="onnx-gradcam-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(proto, path, save_as_external_data=True, location="weights")
        yield Session(path, disabled_optimizers=["Pad_Fusion"])


def difference(values: Array, reference: Array) -> float:
    """The largest difference, relative to the largest reference value; infinite if the shapes differ."""
    if values.shape != reference.shape:
        return float("inf")
    if not reference.size:
        return 0.0
    # NaN on one side only is a difference as well.
    with np.errstate(invalid="ignore"):
        gap = np.abs(values.astype(np.float64) - reference.astype(np.float64))
    gap[(values == reference) | (np.isnan(values) & np.isnan(reference))] = 0
    scale = float(np.max(np.abs(reference), initial=0.0, where=np.isfinite(reference)))
    worst = float(np.max(gap))
    return worst / scale if scale else worst


def compare(values: Mapping[str, Array], reference: Mapping[str, Array], images: str, framework: str) -> float:
    """The largest difference over all reference tensors, of values from `images` (in words) and `framework` (its name).

    Raises:
        ParityError: the difference is above `TOLERANCE`.
    """
    gaps = {name: difference(values[name], value) for name, value in reference.items()}
    name, worst = max(gaps.items(), key=lambda item: np.nan_to_num(item[1], nan=np.inf))
    if not worst <= TOLERANCE:
        raise ParityError(
            f"the exported graph is not the network: at {images} its {name!r} differs from {framework}'s by "
            f"{worst:.1e} of the largest value (up to {TOLERANCE:.0e} is rounding); try the other exporter or another "
            f"version of {framework}"
        )
    return worst
