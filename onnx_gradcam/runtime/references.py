"""The reference of a similarity: an embedding, or an image whose embedding the model computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.origins import read_statements
from onnx_gradcam.editor.planning import image_input
from onnx_gradcam.errors import InputError, TargetError, near_matches
from onnx_gradcam.files import ModelSource, file_or_bytes, open_file
from onnx_gradcam.graph.read import read_proto
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.options import Description

from .session import Session

if TYPE_CHECKING:
    from onnx_gradcam.options import Options

__all__ = ["read_reference", "with_reference"]

Array = npt.NDArray[Any]

_IMAGE_RANK = 3


def with_reference(model: ModelSource, options: Options) -> Options:
    """The options with their reference, if any, as an embedding; the model is not explained yet."""
    if options.reference is None:
        return options
    output = options.output if isinstance(options.output, (str, type(None))) else next(iter(options.output), None)
    embedding = read_reference(
        model, options.reference, preprocess=options.preprocess, image=options.image, output=output
    )
    return options.replaced({"reference": embedding})


def read_reference(
    model: ModelSource,
    reference: str | Path | bytes | Array,
    *,
    preprocess: str | Path | Mapping[str, Any] | Description | None = None,
    image: str | None = None,
    output: str | None = None,
) -> Array:
    """Read an embedding `[D]`, an array or a `.npy` file, or compute that of an image.

    An image is a path, its bytes, or `uint8 [H, W, 3]`; `preprocess` is by default what the model carries.

    Raises:
        ExplainError: the file holds no embedding or image, or the preprocessing or output is unknown.
    """
    if isinstance(reference, np.ndarray) and reference.ndim != _IMAGE_RANK:
        return reference.reshape(-1)
    if isinstance(reference, (str, Path)) and str(reference).lower().endswith(".npy"):
        return _stored(Path(reference))
    proto, folder = read_proto(model)
    name, layout = image_input(model, image)
    if "N" not in layout:
        raise TargetError(
            f"the input {name!r} takes one image without a batch axis, and embeddings are compared row by row; export "
            "the model with a batch axis"
        )
    described = preprocess
    if described is None:
        described = read_statements({p.key: p.value for p in proto.metadata_props}, folder).preprocessing
    if described is None:
        raise InputError("the model carries no preprocessing for the reference image; give it with --preprocess")
    session = Session(file_or_bytes(model), folder=folder)
    info = session.input(name)
    row, _ = prepare(read_image(reference), parse_preprocessing(described).for_input(layout, info.shape, info.dtype))
    count = info.shape[0] if isinstance(info.shape[0], int) else 1
    results = session.run({name: np.repeat(row[None], count, axis=0)})
    if output is None and len(results) > 1:
        raise TargetError(
            f"several outputs could hold the embedding of the reference ({', '.join(results)}); name one with --output"
        )
    if output is not None and output not in results:
        raise TargetError(f"the model has no output {output!r}{near_matches(output, results)}")
    return np.asarray(results[output or next(iter(results))][0], np.float64).reshape(-1)


def _stored(path: Path) -> Array:
    try:
        open_file(path).close()
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        return np.asarray(stored, np.float64).reshape(-1)
    except (InputError, OSError, ValueError, EOFError, MemoryError) as exc:
        raise TargetError(f"the file {str(path)!r} holds no embedding ({exc}); write one with numpy.save") from exc
