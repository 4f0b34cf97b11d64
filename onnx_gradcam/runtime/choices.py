"""The reference of a similarity: an embedding, or an image that the plain model is run on for its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.plan import image_input
from onnx_gradcam.editor.targets.classes import find_class, read_labels
from onnx_gradcam.editor.targets.objective import OBJECTIVES
from onnx_gradcam.errors import InputError, TargetError, near_matches
from onnx_gradcam.graph.read import read_proto
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.images.preprocessing import Preprocessing, parse_preprocessing
from onnx_gradcam.metadata import Carried

from .session import Session

if TYPE_CHECKING:
    import onnx

__all__ = ["read_reference", "resolve_choices"]

Array = npt.NDArray[Any]

_IMAGE = 3
"""The rank of an image `[H, W, 3]`, which an embedding does not have."""


def read_reference(
    model: str | Path | bytes | onnx.ModelProto,
    reference: str | Path | bytes | Array,
    *,
    preprocess: str | Path | Mapping[str, Any] | Preprocessing | None = None,
    image: str | None = None,
    output: str | None = None,
) -> Array:
    """The embedding to be similar to.

    Args:
        model: the model, not explained.
        reference: the embedding as an array or a `.npy` file, or an image: a path, its bytes, or `uint8 [H, W, 3]`.
        preprocess: how images become the model's input; by default what the model carries.
        image: the input that takes images, where several would do.
        output: the output that holds the embedding, where several would do.

    Returns:
        `[D]`.

    Raises:
        ExplainError: the file holds no embedding or image, the model's preprocessing is not known, or which output
            holds the embedding is not.
    """
    if isinstance(reference, np.ndarray) and reference.ndim != _IMAGE:
        return reference.reshape(-1)
    if isinstance(reference, (str, Path)) and str(reference).lower().endswith(".npy"):
        return _stored(Path(reference))
    proto, folder = read_proto(model)
    name, layout = image_input(proto, image)
    asked = preprocess
    if asked is None:
        asked = Carried.from_props({p.key: p.value for p in proto.metadata_props}).preprocessing
    if asked is None:
        raise InputError("how the reference image becomes the model's input is not known; say --preprocess")
    session = Session(model if isinstance(model, (str, Path, bytes)) else proto.SerializeToString(), folder=folder)
    info = next(i for i in session.inputs if i.name == name)
    row, _ = prepare(read_image(reference), parse_preprocessing(asked).for_input(layout, info.shape, info.dtype))
    count = info.shape[0] if isinstance(info.shape[0], int) else 1
    results = session.run({name: np.repeat(row[None], count, axis=0)})
    if output is None and len(results) > 1:
        raise TargetError(f"which output holds the embedding cannot be told (outputs: {', '.join(results)}); --output")
    if output is not None and output not in results:
        raise TargetError(f"the model has no output {output!r}{near_matches(output, results)}")
    return np.asarray(results[output or next(iter(results))][0], np.float64).reshape(-1)


def resolve_choices(
    model: str | Path | bytes | onnx.ModelProto,
    choices: Mapping[str, Any],
    labels: str | Path | Sequence[str] | None,
    preprocess: str | Path | Mapping[str, Any] | Preprocessing | None,
) -> dict[str, Any]:
    """Fields of `Options`, the class to compare with as a number and the reference as an embedding.

    Args:
        model: the model, not explained.
        choices: these fields; `against` may be the name of a class, `reference` what `read_reference` reads.
        labels: class names, or a file with one a line; by default those that the model carries.
        preprocess: how images become the model's input; by default what the model carries.

    Raises:
        ExplainError: no class is called that, or the reference cannot be read.
    """
    found = dict(choices)
    against, reference = found.get("against"), found.get("reference")
    if isinstance(against, str) and against not in OBJECTIVES:
        names = read_labels(labels) if isinstance(labels, (str, Path)) else labels
        if names is None:
            proto, _ = read_proto(model)
            names = Carried.from_props({p.key: p.value for p in proto.metadata_props}).labels
        found["against"] = find_class(against, names)
    if reference is not None:
        output = found.get("output")
        first = output if isinstance(output, str) or output is None else next(iter(output), None)
        found["reference"] = read_reference(
            model, reference, preprocess=preprocess, image=found.get("image"), output=first
        )
    return found


def _stored(path: Path) -> Array:
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        return np.asarray(stored, np.float64).reshape(-1)
    except (OSError, ValueError, EOFError, MemoryError) as exc:
        raise TargetError(f"the file {str(path)!r} holds no embedding ({exc}); write one with numpy.save") from exc
