"""How a model comes to run: as it is, if it is explained already, or with an explanation attached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from onnx_gradcam.editor.engines import ENGINES
from onnx_gradcam.errors import TargetError
from onnx_gradcam.files import ModelSource, file_or_bytes
from onnx_gradcam.images.decoding import read_region
from onnx_gradcam.metadata import ONE_AT_A_TIME, Metadata

from .runners import Attached, Halved, Runner
from .session import Session, resolve_provider

if TYPE_CHECKING:
    from onnx_gradcam.options import Choices

__all__ = ["attach_or_probe", "open_explained"]

Array = npt.NDArray[Any]

_SUITED: dict[str, Choices] = {
    "CPUExecutionProvider": {"profile": "cpu"},
    "OpenVINOExecutionProvider": ENGINES["onnxruntime-openvino"].choices,
}
"""How a model is attached to run on an execution provider, where that is not the default."""


def open_explained(
    model: ModelSource,
    choices: Choices,
    region: str | Path | Array | None,
    execution: Mapping[str, Any],
) -> tuple[Runner, list[str]] | None:
    """A model that is explained already, which needs nothing but ONNX Runtime; `None` for any other."""
    metadata = Metadata.of(model)
    if metadata is None:
        return None
    fixed = [name for name in choices if name not in {"labels", "preprocess", "probabilities"}]
    if fixed:
        raise TargetError(
            f"the model is explained already (layer {metadata.target_tensor!r}, method {metadata.method}), "
            f"so {', '.join(fixed)} cannot be chosen any more; start from the original model"
        )
    metadata = metadata.with_probabilities(choices.get("probabilities"))
    source = file_or_bytes(model)
    session = Session(source, disabled_optimizers=metadata.disabled_optimizers, **execution)
    metadata.check_graph(
        {info.name: (info.dtype, info.shape or None) for info in (*session.inputs, *session.optional_inputs)},
        {info.name: (info.dtype, info.shape or None) for info in session.outputs},
    )

    def halved() -> Halved | None:
        # Most explanations of explained files need no graph code.
        from onnx_gradcam.graph.read import read_proto  # noqa: PLC0415

        return Halved.of(metadata, *read_proto(source), execution)

    runner = Attached(metadata, session, region, halved if metadata.box_input else None)
    return runner, [ONE_AT_A_TIME] if metadata.couples_rows else []


def attach_or_probe(
    model: ModelSource,
    choices: Choices,
    region: str | Path | Array | None,
    repeats: Mapping[str, Any],
    execution: Mapping[str, Any],
) -> tuple[Runner, list[str]]:
    """A model that is not explained yet, attached or made ready for a method that runs it many times; and warnings."""
    # Explained models run without graph code.
    from onnx_gradcam.editor.attachment import Explained, attach  # noqa: PLC0415
    from onnx_gradcam.editor.planning import chosen_method  # noqa: PLC0415
    from onnx_gradcam.editor.probes import Probed, probed  # noqa: PLC0415
    from onnx_gradcam.options import Options  # noqa: PLC0415

    from .prober import Prober  # noqa: PLC0415
    from .references import with_reference  # noqa: PLC0415

    suited = _SUITED.get(resolve_provider(execution["provider"]), {})
    options = with_reference(model, Options().replaced({**suited, **choices}))
    often = chosen_method(options).runs_often

    def written(options: Options) -> Explained | Probed:
        return probed(model, options) if often else attach(model, options)

    explained = written(options)
    if "profile" not in choices and not explained.model.fits_one_file:
        # `cpu` stores mirrored weights, and a session takes what is not in other files in one piece.
        explained = written(replace(options, profile=Options.profile))
    if isinstance(explained, Probed):
        read_region(region, "", None)
        return Prober(explained, channels=options.channels, **repeats, **execution), explained.warnings
    session = Session(
        explained.to_proto().SerializeToString(),
        folder=explained.model.folder,
        disabled_optimizers=explained.metadata.disabled_optimizers,
        **execution,
    )
    metadata, proto, folder = explained.metadata, explained.to_proto(), explained.model.folder
    halved = partial(Halved.of, metadata, proto, folder, execution) if metadata.box_input else None
    return Attached(metadata, session, region, halved), list(explained.warnings)
