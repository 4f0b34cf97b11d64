"""Attach an explanation to a model, and check by a run that the model's own outputs stay what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_gradcam.editor.attachment import Explained
from onnx_gradcam.editor.attachment import attach as attach_only
from onnx_gradcam.editor.engines import find_engine
from onnx_gradcam.errors import ModelError
from onnx_gradcam.feeds import Declared, Feeds, View
from onnx_gradcam.files import ModelSource, file_or_bytes
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.read import read_opset
from onnx_gradcam.graph.shapes import TensorInfo
from onnx_gradcam.images.preprocessing import Preprocessing, parse_preprocessing
from onnx_gradcam.options import Options

from .agreement import Precision, check_agreement, differences, random_feeds
from .references import with_reference
from .runners import image_input, other_inputs
from .session import InputInfo, Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnx_gradcam.options import Choices

__all__ = ["attach"]

Array = npt.NDArray[Any]

_OLDEST_RUN = 7
"""The first opset that ONNX Runtime promises to run (its `docs/Versioning.md`)."""

_LARGEST_CHECKED = 10**9
"""Bytes of weights above which both models are run only on request."""

_ROWS = 3
_USUAL_SIZES = ((193, 191), (224, 224))
"""Heights and widths of random images, where the model leaves them open; at odd sizes, wrong rounding would show."""
_USUAL_LENGTHS = {1: (509, 4096, 16000), 3: (33, 64)}
"""The same for each axis of signals and of volumes."""


def attach(
    source: ModelSource,
    options: Options | None = None,
    *,
    engine: str | None = None,
    check: bool | None = False,
    **choices: Unpack[Choices],
) -> Explained:
    """Add heatmap outputs to a model.

    Args:
        source: path, bytes or proto of the model.
        options: what to explain and how.
        engine: what will run the model (`openvino`, `web` ...): its class input and profile in place of those of
            `options`. `choices` win over both.
        check: run the original and the explained model on one random input and compare the original outputs; `None`
            does so unless the weights exceed 1 GB.
        choices: fields of `Options`, in place of those of `options`; `reference` may also be an image or a `.npy` file.

    Returns:
        The explained model, with its own inputs and outputs, an input `target_class`, and the outputs `heatmap`,
        `float32 [N, H, W]` in [0, 1], `cam`, `float32 [N, h, w]`, and `heatmap_class`, `int64 [N]`.

    Raises:
        InputError: an option, class name or preprocessing that is not possible.
        ModelError: the file is not a usable model, or an original output changed.
        TargetError: the score, layer or class chosen is not in the model, or there is no such engine.
        UnsupportedError: the model cannot be explained this way.

    Example::

        attach("model.onnx", labels="labels.txt", preprocess="torchvision").save("explained.onnx")
    """
    options = options or Options()
    if engine is not None:
        options = options.replaced(find_engine(engine).choices)
    options = options.replaced(choices)
    explained = attach_only(source, with_reference(source, options))
    _check_preprocessing(explained)
    if check is None:
        size = explained.model.weight_bytes
        check = size <= _LARGEST_CHECKED
        if not check:
            explained.warnings.append(
                f"not checked against the original, for its {size / 1e9:.1f} GB of weights; --check does it"
            )
    # An original with an operator that ONNX Runtime does not have cannot be run.
    if not check or explained.cut:
        return explained
    difference, warnings = _compared(source, explained, options.bake or {})
    return replace(explained, difference=difference, warnings=[*explained.warnings, *warnings])


def _check_preprocessing(explained: Explained) -> None:
    """Refuse a description that contradicts the model now, and not when the first image comes."""
    _described(explained)


def _described(explained: Explained) -> Preprocessing | None:
    """The preprocessing that the model carries, adapted to its input."""
    metadata, model = explained.metadata, explained.model
    if metadata.preprocessing is None:
        return None
    dtype = str(model.info(metadata.image_input).dtype)
    described = parse_preprocessing(metadata.preprocessing)
    return described.for_input(metadata.layout, model.shape(metadata.image_input), dtype)


def _compared(source: ModelSource, explained: Explained, baked: Mapping[str, Any]) -> tuple[float | None, list[str]]:
    """The largest relative difference of the original outputs on a random input, and what the user should know of it.

    The difference is `None` if nothing says the size of images and the original runs at no usual one.

    Raises:
        ModelError: they differ, or one of the two models does not run.
    """
    # One after the other: both at once would hold the weights twice.
    try:
        model = _runnable(source, explained)
        feeds, size, original = _first_run(model, explained, baked)
    except _NoSizeFitsError as exc:
        return None, [str(exc)]
    except ModelError as exc:
        raise ModelError(
            f"the original does not run: {exc}; nothing was written (--no-check writes it anyway)"
        ) from exc
    try:
        return _agreement(model, explained, feeds, size, original)
    except ModelError as exc:
        raise ModelError(
            f"the explained model does not match the original: {exc}; nothing was written (--no-check writes it anyway)"
        ) from exc


def _runnable(source: ModelSource, explained: Explained) -> str | Path | bytes:
    """The original, raised to the opset of the explained model if it is older than what ONNX Runtime runs."""
    if read_opset(source) < _OLDEST_RUN:
        explained.warnings.append(
            "ONNX Runtime does not run opsets this old, so outputs were compared with those of the model raised to "
            f"opset {explained.model.opset}"
        )
        return bytes(load(source).to_proto().SerializeToString())
    return file_or_bytes(source)


def _agreement(
    model: str | Path | bytes,
    explained: Explained,
    feeds: Mapping[str, Array],
    size: tuple[int, ...],
    original: Mapping[str, Array],
) -> tuple[float, list[str]]:
    """Run the explained model, and both without optimizations if their outputs differ; otherwise as `_compared`."""
    metadata, precision = explained.metadata, _precision(explained)
    attached = explained.to_proto().SerializeToString()
    results = _run(attached, explained, feeds, size)
    warnings = []
    if not all(np.isfinite(results[name]).all() for name in (metadata.heatmap, metadata.cam)):
        warnings.append("the heatmap of a random input is NaN; check the model's weights")
    elif not np.any(results[metadata.cam]):
        warnings.append(
            "the raw map of a random input is zero everywhere, as those of images may be; check the model's weights "
            "or choose another layer with --layer"
        )
    try:
        return check_agreement(original, results, precision), warnings
    except ModelError:
        # With one output more, ONNX Runtime may not fuse nodes that it computes differently when they are fused.
        plain, other = (_run(each, explained, feeds, size, optimized=False) for each in (model, attached))
        difference = check_agreement(plain, other, precision)
    apart = max(each.relative for each in differences(original, results))
    warnings.append(
        f"ONNX Runtime's optimizations change the model's own outputs by up to {apart:.1e} of their largest value, "
        "since it fuses fewer nodes beside heatmap outputs; without optimizations, both models agree"
    )
    return difference, warnings


def _run(
    model: str | Path | bytes,
    explained: Explained,
    feeds: Mapping[str, Array],
    size: tuple[int, ...],
    *,
    optimized: bool = True,
) -> dict[str, Array]:
    """Run one of the two models on `feeds`, and on random values for inputs that only the explained one has."""
    session = _session(model, explained, optimized=optimized)
    added = [info for info in session.inputs if info.name not in feeds]
    own = {info.name: feeds[info.name] for info in session.inputs if info.name in feeds}
    return session.run({**own, **random_feeds(added, _input_shapes(added, explained, size))})


class _NoSizeFitsError(ModelError):
    """The original runs at none of the sizes that were tried, and nothing says which size is right."""


def _session(model: str | Path | bytes, explained: Explained, *, optimized: bool = True) -> Session:
    folder = explained.model.folder if isinstance(model, bytes) else None
    return Session(
        model, folder=folder, disabled_optimizers=explained.metadata.disabled_optimizers, optimized=optimized
    )


def _first_run(
    model: str | Path | bytes, explained: Explained, baked: Mapping[str, Any]
) -> tuple[dict[str, Array], tuple[int, ...], dict[str, Array]]:
    """Run the original on random values, or those baked into the other; its feeds, the size of images, its outputs."""
    session = _session(model, explained)
    inputs = [info for info in session.inputs if info.name not in baked]
    sizes, given = _sizes(explained)
    for size in sizes:
        feeds = random_feeds(inputs, _input_shapes(inputs, explained, size))
        feeds |= _by_convention(session, explained, feeds)
        feeds |= _as_baked(session, explained, feeds, baked)
        try:
            return feeds, size, session.run(feeds)
        except ModelError as exc:
            if given:
                raise
            reason = str(exc)
    tried = " or ".join("x".join(map(str, size)) for size in sizes)
    raise _NoSizeFitsError(
        f"not checked against the original, which does not run on images of {tried} ({reason}); "
        'give their size with --preprocess, as "size": [height, width]'
    )


def _as_baked(
    session: Session, explained: Explained, feeds: Mapping[str, Array], baked: Mapping[str, Any]
) -> dict[str, Array]:
    """The values of inputs that are constants of the explained model, for every row."""
    metadata = explained.metadata
    image, rows = image_input(metadata, session), feeds[metadata.image_input]
    batch = rows if metadata.batched else rows[None]
    others = [info for info in session.inputs if info.name in baked]
    constants = Feeds(image, others, [], baked, batched=metadata.batched)
    view = View((0, 0), (0, 0), (0, 0))
    one = constants.of_image(view, (1, *batch.shape[1:]))
    return constants.fed([one] * len(batch)).of(range(len(batch)))


def _by_convention(session: Session, explained: Explained, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What inputs take that are known by convention: sizes of 0 would hide differences behind NaN."""
    metadata = explained.metadata
    image, rows = image_input(metadata, session), feeds[metadata.image_input]
    batch = rows if metadata.batched else rows[None]
    others = [info for info in other_inputs(metadata, session) if info.name in feeds]
    words = Feeds(image, others, session.outputs).defaults
    sides = dict(zip(metadata.batch_layout, batch.shape, strict=True))
    size = sides.get("H", 1), sides["W"]
    view = View(size, size, (1, 1))
    fixed = [Declared(i.name, i.dtype, feeds[i.name].shape) for i in others if i.name in words]
    filled = Feeds(image, fixed, [], words).of_image(view, (1, *batch.shape[1:]))
    return {name: np.broadcast_to(value, feeds[name].shape) for name, value in filled.items()}


def _sizes(explained: Explained) -> tuple[list[tuple[int, ...]], bool]:
    """The heights and widths of images to try, and whether the model or its preprocessing says that they are right."""
    metadata = explained.metadata
    shape = dict(zip(metadata.layout, explained.model.shape(metadata.image_input), strict=True))
    described = _described(explained)
    if described is not None and described.size is not None:
        return [described.size], True
    declared = [size if isinstance(size := shape[letter], int) else None for letter in metadata.positions]
    usual = _USUAL_SIZES if len(declared) == 2 else [(one,) * len(declared) for one in _USUAL_LENGTHS[len(declared)]]
    sizes = [tuple(known or one for known, one in zip(declared, each, strict=True)) for each in usual]
    return list(dict.fromkeys(sizes)), None not in declared


def _input_shapes(inputs: Sequence[InputInfo], explained: Explained, size: tuple[int, ...]) -> dict[str, Sequence[int]]:
    """A shape for every input: images of `size`, several rows where the batch is free, and one where all else is."""
    metadata, model = explained.metadata, explained.model
    image = model.shape(metadata.image_input)
    count = metadata.batch_shape(image)[0]
    rows = count if isinstance(count, int) else _ROWS
    letters = dict(zip(metadata.positions, size, strict=True))
    sizes = {d: letters[letter] for letter, d in zip(metadata.layout, image, strict=True) if letter in letters}
    shapes: dict[str, Sequence[int]] = {}
    for info in inputs:
        declared = enumerate(model.shape(info.name))
        shapes[info.name] = [d if isinstance(d, int) else sizes.get(d, 1 if axis else rows) for axis, d in declared]
    return shapes


def _precision(explained: Explained) -> Precision:
    if any(node.op_type == "QuantizeLinear" for node in explained.model.core.graph):
        return "quantised"
    types = {TensorInfo.of(value).elem_type for value in explained.model.tensors()}
    return "float16" if onnx.TensorProto.FLOAT16 in types else "float32"
