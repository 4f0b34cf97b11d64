"""A model repository for Triton: the explained model, its configuration, and an ensemble that takes picture files."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx

from onnx_gradcam.errors import ModelError, RequestError
from onnx_gradcam.graph.model import Model
from onnx_gradcam.metadata import Metadata
from onnx_gradcam.preprocessing import parse_preprocessing
from onnx_gradcam.required_class import with_required_class
from onnx_gradcam.runtime.explainer import fit_preprocessing

from .limits import Limits
from .triton_config import TYPES, Port, ensemble_config, onnx_config, step_config
from .triton_readme import readme

__all__ = ["write_repository"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STEP: Final = """from onnx_gradcam.serve.triton_step import PictureStep as TritonPythonModel

__all__ = ["TritonPythonModel"]
"""


@dataclass(frozen=True, kw_only=True)
class _Repository:
    """What is written, before it is."""

    name: str
    model: Model
    metadata: Metadata
    inputs: list[Port]
    outputs: list[Port]
    left_out: list[str]
    max_batch: int
    tensorrt: bool
    ensemble: bool


def write_repository(
    source: str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    max_batch: int = 32,
    tensorrt: bool = False,
    ensemble: bool = False,
    **choices: Any,
) -> list[Path]:
    """Write the folders of a model into a Triton repository; they appear complete or not at all.

    The class becomes an input that every request has to send, negative for the best one: Triton's ONNX Runtime
    backend batches no model with an optional input.

    Args:
        source: an explained model, or one that is attached first.
        folder: the repository; made where it is missing.
        name: of the model; by default that of the file.
        max_batch: rows that Triton may run at once; 0 for a model that takes whole batches as they come.
        tensorrt: run on TensorRT, on a GPU.
        ensemble: also write `NAME_pictures`, which takes picture files.
        choices: fields of `onnx_gradcam.options.Options`, for a model that is not explained yet.

    Returns:
        The folders written.

    Raises:
        ExplainError: the model cannot be served this way, a folder is there already, or cannot be written.
    """
    name = name if name is not None else Path(source).stem
    if not _NAME.fullmatch(name):
        raise RequestError(f"{name!r} is no name for a model; use letters, digits, '.', '_' and '-' (--name)")
    model, metadata = with_required_class(source, choices)
    if metadata.disabled_optimizers:
        raise ModelError(
            f"ONNX Runtime's optimisation {metadata.disabled_optimizers[0]!r} computes this model wrongly, and Triton "
            "cannot switch it off; export the model again with `onnx-gradcam export`"
        )
    inputs = [_port(model, value.name) for value in model.core.graph.inputs]
    outputs = [_port(model, value.name, metadata) for value in model.core.graph.outputs if value.name in model.shapes]
    if max_batch:
        _check_batch(inputs)
    kept = [port for port in outputs if not max_batch or (port.shape and port.shape[0] < 0)]
    made = _Repository(
        name=name,
        model=model,
        metadata=metadata,
        inputs=inputs,
        outputs=kept,
        left_out=[port.name for port in outputs if port not in kept],
        max_batch=max_batch,
        tensorrt=tensorrt,
        ensemble=ensemble,
    )
    return _write(made, Path(folder))


def _port(model: Model, name: str | None, metadata: Metadata | None = None) -> Port:
    assert name is not None  # noqa: S101 - inputs and outputs of a graph have names
    dtype = onnx.helper.tensor_dtype_to_np_dtype(model.types[name]).name
    if dtype not in TYPES:
        raise ModelError(f"Triton has no type for the tensor {name!r} of {dtype}; cast it in the model")
    shape = [size if isinstance(size, int) and size > 0 else -1 for size in model.shapes[name]]
    labels = metadata is not None and metadata.labels is not None and name == metadata.scores_output
    return Port(name=name, dtype=dtype, shape=shape, labels="labels.txt" if labels else "")


def _check_batch(inputs: Sequence[Port]) -> None:
    for port in inputs:
        if not port.shape or port.shape[0] > 0:
            raise ModelError(
                f"the input {port.name!r} has a fixed batch {list(port.shape)}, so that Triton cannot batch requests; "
                "use --max-batch 0, or export the model with a free batch"
            )


def _write(made: _Repository, folder: Path) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-gradcam-") as scratch:
            drafts = _drafts(made, Path(scratch))
            places = [folder / draft.name for draft in drafts]
            for place in places:
                if place.exists():
                    raise RequestError(f"{str(place)!r} is there already; remove it, or choose another --name")
            for draft, place in zip(drafts, places, strict=True):
                shutil.move(draft, place)
    except OSError as error:
        raise ModelError(f"{str(folder)!r} cannot be written to ({error.strerror or error})") from error
    return places


def _drafts(made: _Repository, scratch: Path) -> list[Path]:
    """Write everything below `scratch`; returns the folders."""
    main = _folder(scratch / made.name)
    made.model.save(main / "1" / "model.onnx")
    config = onnx_config(made.name, made.inputs, made.outputs, made.max_batch, tensorrt=made.tensorrt)
    (main / "config.pbtxt").write_text(config, "utf-8")
    if made.metadata.labels is not None:
        (main / "labels.txt").write_text("\n".join(made.metadata.labels) + "\n", "utf-8")
    (main / "README.md").write_text(
        readme(made.name, made.inputs, made.outputs, made.left_out, made.metadata, ensemble=made.ensemble), "utf-8"
    )
    return [main, *_ensemble_drafts(made, scratch)] if made.ensemble else [main]


def _ensemble_drafts(made: _Repository, scratch: Path) -> list[Path]:
    facts = made.metadata
    if facts.preprocessing is None:
        raise RequestError(
            "how pictures become this model's input is not known, so that there can be no ensemble; attach with "
            "--preprocess first"
        )
    image = next(port for port in made.inputs if port.name == facts.image_input)
    sizes = [size if size > 0 else None for size in image.shape]
    fitted = fit_preprocessing(parse_preprocessing(facts.preprocessing), facts.layout, sizes, image.dtype)
    files = [Port(name="image_bytes", dtype="bytes", shape=[-1, 1] if made.max_batch else [-1])]
    if facts.class_input:
        shape = [-1, 1] if made.max_batch else [-1]
        files.append(Port(name="target_class", dtype="int64", shape=shape, optional=True))
    limits = {f.name: getattr(Limits(), f.name) for f in dataclasses.fields(Limits) if f.name.startswith("im")}
    step = _folder(scratch / f"{made.name}_preprocess")
    (step / "1" / "model.py").write_text(_STEP, "utf-8")
    # The same tensors as the model takes, in the order that the step gives them.
    given = [image, *(port for port in made.inputs if port.name == facts.class_input)]
    said = {"preprocessing": fitted.to_json(), "limits": json.dumps(limits)}
    as_sent = [_as_sent(port, batching=made.max_batch > 0) for port in given]
    (step / "config.pbtxt").write_text(step_config(step.name, files, as_sent, made.max_batch, said), "utf-8")
    whole = _folder(scratch / f"{made.name}_pictures")
    results = [_as_sent(port, batching=made.max_batch > 0) for port in made.outputs]
    steps = [
        (step.name, {port.name: port.name for port in files}, {port.name: f"model {port.name}" for port in given}),
        (made.name, {p.name: f"model {p.name}" for p in given}, {p.name: p.name for p in made.outputs}),
    ]
    (whole / "config.pbtxt").write_text(ensemble_config(whole.name, files, results, made.max_batch, steps), "utf-8")
    if facts.labels is not None:
        shutil.copy(scratch / made.name / "labels.txt", whole / "labels.txt")
    return [step, whole]


def _as_sent(port: Port, *, batching: bool) -> Port:
    """The port as clients see it: what the model takes as [N] is sent as [N, 1]."""
    return dataclasses.replace(port, shape=[*port.shape, 1]) if batching and len(port.shape) == 1 else port


def _folder(place: Path) -> Path:
    (place / "1").mkdir(parents=True)
    return place
