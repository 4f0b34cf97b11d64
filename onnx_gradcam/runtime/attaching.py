"""Attach an explanation to a model, and check by a run that the model's own outputs stay what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx

from onnx_gradcam.editor.attachment import Explained
from onnx_gradcam.editor.attachment import attach as attach_only
from onnx_gradcam.errors import ModelError
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.read import read_opset
from onnx_gradcam.graph.shapes import TensorInfo
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.options import Options

from .agreement import Precision, check_agreement, random_feeds
from .references import with_reference
from .session import Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnx_gradcam.options import Choices

__all__ = ["attach"]

Array = npt.NDArray[Any]

_OLDEST_RUN = 7
"""The first opset that ONNX Runtime promises to run (its `docs/Versioning.md`)."""

_LARGEST_CHECKED = 10**9
"""Bytes of weights above which both models are run only on request."""


def attach(
    source: str | Path | bytes | onnx.ModelProto,
    options: Options | None = None,
    *,
    check: bool | None = False,
    **choices: Unpack[Choices],
) -> Explained:
    """Add heatmap outputs to a model.

    Args:
        source: path, bytes or proto of the model.
        options: what to explain and how.
        check: run the original and the explained model on one random input and compare the original outputs; `None`
            does so unless the weights exceed 1 GB.
        choices: fields of `Options`, in place of those of `options`; `reference` may also be an image or a `.npy` file.

    Returns:
        The explained model: its own inputs and outputs, an input `target_class`, and the outputs `heatmap`, `float32
        [N, H, W]` in [0, 1], `cam`, `float32 [N, h, w]`, and `heatmap_class`, `int64 [N]`.

    Raises:
        InputError: an option, class name or preprocessing that is not possible.
        ModelError: the file is not a usable model, or an original output changed.
        TargetError: the score, layer or class chosen is not in the model.
        UnsupportedError: the model cannot be explained this way.

    Example::

        attach("model.onnx", labels="labels.txt", preprocess="torchvision").save("explained.onnx")
    """
    explained = attach_only(source, with_reference(source, (options or Options()).replaced(choices)))
    _check_preprocessing(explained)
    if check is None:
        size = explained.model.weight_bytes
        check = size <= _LARGEST_CHECKED
        if not check:
            explained.warnings.append(
                f"not checked against the original, for its {size / 1e9:.1f} GB of weights; --check does it"
            )
    # An original with an operator that ONNX Runtime does not have cannot be run.
    return replace(explained, difference=_compared(source, explained)) if check and not explained.cut else explained


def _check_preprocessing(explained: Explained) -> None:
    """Refuse a description that contradicts the model now, and not when the first image comes."""
    metadata, model = explained.metadata, explained.model
    if metadata.preprocessing is not None:
        dtype = str(model.info(metadata.image_input).dtype)
        described = parse_preprocessing(metadata.preprocessing)
        described.for_input(metadata.layout, model.shape(metadata.image_input), dtype)


def _compared(source: str | Path | bytes | onnx.ModelProto, explained: Explained) -> float:
    """The largest relative difference of the original outputs on a random input.

    Raises:
        ModelError: they differ, or one of the two models does not run.
    """
    # One after the other: both at once would hold the weights twice.
    try:
        feeds, original = _random_run(_runnable(source, explained), explained, {})
    except ModelError as exc:
        raise ModelError(
            f"the original does not run: {exc}; nothing was written (--no-check writes it anyway)"
        ) from exc
    try:
        _, results = _random_run(explained.to_proto().SerializeToString(), explained, feeds)
        return check_agreement(original, results, _precision(explained))
    except ModelError as exc:
        raise ModelError(
            f"the explained model does not match the original: {exc}; nothing was written (--no-check writes it anyway)"
        ) from exc


def _runnable(source: str | Path | bytes | onnx.ModelProto, explained: Explained) -> str | Path | bytes:
    """The original, raised to the opset of the explained model if it is older than what ONNX Runtime runs."""
    if read_opset(source) < _OLDEST_RUN:
        explained.warnings.append(
            "ONNX Runtime does not run opsets this old, so outputs were compared with those of the model raised to "
            f"opset {explained.model.opset}"
        )
        return bytes(load(source).to_proto().SerializeToString())
    return source.SerializeToString() if isinstance(source, onnx.ModelProto) else source


def _random_run(
    model: str | Path | bytes, explained: Explained, feeds: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Run one of the two models on `feeds`, and on random values for its other inputs; its feeds and its outputs."""
    folder = explained.model.folder if isinstance(model, bytes) else None
    session = Session(model, folder=folder, disabled_optimizers=explained.metadata.disabled_optimizers)
    missing = [info for info in session.inputs if info.name not in feeds]
    complete = {**feeds, **random_feeds(missing, _input_shapes(session, explained))}
    return complete, session.run(complete)


def _input_shapes(session: Session, explained: Explained) -> dict[str, Sequence[int]]:
    """A shape for every input; free dimensions as shape inference probed them, else one."""
    metadata = explained.metadata
    probed = {info.name: explained.model.info(info.name).probe_shape for info in session.inputs}
    rows = (probed[metadata.image_input] or (1,))[0]
    shapes: dict[str, Sequence[int]] = {}
    for info in session.inputs:
        free = [size if isinstance(size, int) else 1 for size in info.shape]
        shapes[info.name] = (rows,) if info.name == metadata.class_input else probed[info.name] or free
    return shapes


def _precision(explained: Explained) -> Precision:
    if any(node.op_type == "QuantizeLinear" for node in explained.model.core.graph):
        return "quantised"
    types = {TensorInfo.of(value).elem_type for value in explained.model.tensors()}
    return "float16" if onnx.TensorProto.FLOAT16 in types else "float32"
