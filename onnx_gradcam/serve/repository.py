"""Triton model repositories: an explained model, its configuration and README, and an ensemble for image files."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from onnx_gradcam.editor.attachment import with_required_choices
from onnx_gradcam.errors import InputError, ModelError
from onnx_gradcam.files import Drafts, make_folder
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.shapes import TensorInfo
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.metadata import Metadata

from .configuration import TYPES, Port, ensemble_config, onnx_config, step_config
from .limits import Limits
from .triton_step import CHOICES

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnx_gradcam.options import Choices

__all__ = ["write_repository"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STEP: Final = """from onnx_gradcam.serve.triton_step import ImageStep as TritonPythonModel

__all__ = ["TritonPythonModel"]
"""
_README: Final = """# {name}

A model for {task} with heatmap outputs, written by onnx-gradcam {version}. Method: {method}.
Layers: {layers}.

Start Triton in the repository, the folder above this one:

    docker run --rm --user 1000:1000 -p 127.0.0.1:8000:8000 -p 127.0.0.1:8001:8001 -p 127.0.0.1:8002:8002 \\
      -v "$PWD:/models:ro" nvcr.io/nvidia/tritonserver:26.02-py3 \\
      tritonserver --model-repository=/models --model-control-mode=none --http-max-input-size=67108864

REST is on port 8000, gRPC on 8001, metrics on 8002.

| tensor | | type | shape in requests |
|---|---|---|---|
{table}
{notes}
## Before you expose it

- Use release 26.02 or later. Earlier releases have known vulnerabilities that let a request run code or crash the
  server, among them CVE-2025-23310, -23311, -23317, -23319, -23320 and -23334 (before 25.07), -23316 (before 25.08) and
  -23327 (before 25.05).
- Triton has no authentication and listens on all networks by default. Put a gateway with access control in front of it,
  and publish its ports on loopback only, as above.
- Keep `--model-control-mode=none`, and mount repositories that nobody else can write to: a model is code.
- Limit the size, the number and the duration of requests in the gateway.
- Use `/v2/health/live` and `/v2/health/ready` for probes, and `nv_inference_*` on port 8002 for monitoring.
"""
_CLASS: Final = """
`{name}` is the class to explain, one per row; a negative value is the predicted class. It is required. An index that is
out of range fails the request, and all others in the same batch.
"""
_BOX: Final = """
`{box_input}` is the box to explain, one per row: an index of the detector's own table; a negative value is the surest
box of the class, or of the rank that the model was attached with. It is required, too. With a box and a negative class,
the best class of the box is explained.
`{heatmap_box}` and `{heatmap_score}` are the explained box and its probability. The table of all boxes is large, so
name the outputs that you need in each request:

- `{detection_scores}`: the probabilities.
{corners}"""
_CORNERS: Final = "- `{detection_boxes}`: x0 y0 x1 y1 in pixels of the model's input, over which the heatmap is, too.\n"
_LEFT_OUT: Final = """
The model also has {names}, which have no batch axis and cannot be requested here.
"""
_ENSEMBLE: Final = """
## Images

`{name}_images` takes image files (JPEG, PNG, WebP) in `image_bytes`, one per row{optional}.
Its first step, `{name}_preprocess`, runs in Triton's Python backend. Install onnx-gradcam in the container, from a
clone:

    pip install --no-deps . opencv-python-headless && pip install numpy

It reads the size of an image from its header and refuses large images before decoding them; see `limits` in its
config.pbtxt.
"""


@dataclass(frozen=True, kw_only=True)
class _Repository:
    """A model and its place in a repository."""

    name: str
    model: Model
    metadata: Metadata
    inputs: list[Port]
    outputs: list[Port]
    left_out: list[str]
    max_batch: int
    tensorrt: bool
    ensemble: bool

    @property
    def batching(self) -> bool:
        """Whether Triton batches requests."""
        return self.max_batch > 0


def write_repository(
    model: str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    max_batch: int = 32,
    tensorrt: bool = False,
    ensemble: bool = False,
    **choices: Unpack[Choices],
) -> list[Path]:
    """Write a model into a Triton model repository, atomically.

    Class and box become required inputs, negative for the predicted class and the surest box, because Triton's ONNX
    Runtime backend cannot batch models with optional inputs.

    Args:
        model: path of a model; one that is not explained yet is attached first.
        folder: the repository; created if it does not exist.
        name: name of the model; by default, that of the file.
        max_batch: maximum number of rows per batch; 0 for a model with a fixed batch.
        tensorrt: run on TensorRT, on a GPU.
        ensemble: also write `NAME_images`, which takes image files.
        choices: fields of `onnx_gradcam.Options`, for a model that is not explained yet.

    Returns:
        The folders written.

    Raises:
        InputError: the name or a number is not valid, or a folder exists already or cannot be written.
        ExplainError: the model cannot be served by Triton; see `onnx_gradcam.errors`.

    Example::

        write_repository("explained.onnx", "repository", name="shapes", ensemble=True)
    """
    name = name if name is not None else Path(model).stem
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name[:99]!r} is not a valid model name; use at most 100 letters, digits, '.', '_' and '-' (--name)"
        )
    if not isinstance(max_batch, int) or isinstance(max_batch, bool) or max_batch < 0:
        raise InputError(f"max_batch is {max_batch!r}; choose a whole number from 0 up")
    explained, metadata = with_required_choices(model, choices)
    if metadata.disabled_optimizers:
        names = ", ".join(map(repr, metadata.disabled_optimizers))
        raise ModelError(
            f"with ONNX Runtime's optimization {names} this model runs wrongly or not at all, and Triton cannot "
            "disable it; export the model again with `onnx-gradcam export`, or use `onnx-gradcam serve`"
        )
    if metadata.couples_rows and max_batch != 1:
        raise ModelError(
            "the model computes a range or a mean over the whole batch, so results would depend on the other requests "
            "in it; use --max-batch 1"
        )
    inputs = [_port(explained, value.name) for value in explained.core.graph.inputs]
    ranked = [value for value in explained.core.graph.outputs if TensorInfo.of(value).shape is not None]
    outputs = [_port(explained, value.name, metadata) for value in ranked]
    if max_batch:
        _check_batch(inputs)
    served = [port for port in outputs if not max_batch or (port.shape and port.shape[0] < 0)]
    repository = _Repository(
        name=name,
        model=explained,
        metadata=metadata,
        inputs=inputs,
        outputs=served,
        left_out=[port.name for port in outputs if port not in served],
        max_batch=max_batch,
        tensorrt=tensorrt,
        ensemble=ensemble,
    )
    return _write(repository, Path(folder))


def _port(model: Model, name: str | None, metadata: Metadata | None = None) -> Port:
    assert name is not None  # noqa: S101 - inputs and outputs of a graph have names
    dtype = str(model.info(name).dtype)
    if dtype not in TYPES:
        raise ModelError(f"Triton has no type for the tensor {name!r} of {dtype}; cast it in the model")
    shape = [size if isinstance(size, int) and size > 0 else -1 for size in model.shape(name)]
    labels = metadata is not None and metadata.labels is not None and name == metadata.scores_output
    return Port(name=name, dtype=dtype, shape=shape, labels="labels.txt" if labels else "")


def _check_batch(inputs: Sequence[Port]) -> None:
    for port in inputs:
        if not port.shape or port.shape[0] > 0:
            raise ModelError(
                f"the input {port.name!r} has the fixed shape {list(port.shape)}, so Triton cannot batch requests; "
                "use --max-batch 0, or export the model with a free batch axis"
            )


def _write(repository: _Repository, folder: Path) -> list[Path]:
    suffixes = ("", "_preprocess", "_images") if repository.ensemble else ("",)
    places = [folder / f"{repository.name}{suffix}" for suffix in suffixes]
    for place in places:
        if place.exists():
            raise InputError(f"{str(place)!r} already exists; remove it, or choose another --name")
    make_folder(folder)
    with Drafts() as drafts:
        main, *others = [drafts.folder(place) for place in places]
        _write_model(repository, main)
        if others:
            _write_ensemble(repository, main, *others)
    return places


def _write_model(repository: _Repository, main: Path) -> None:
    (main / "1").mkdir()
    repository.model.save(main / "1" / "model.onnx")
    config = onnx_config(
        repository.name, repository.inputs, repository.outputs, repository.max_batch, tensorrt=repository.tensorrt
    )
    (main / "config.pbtxt").write_text(config, "utf-8")
    if repository.metadata.labels is not None:
        (main / "labels.txt").write_text("\n".join(repository.metadata.labels) + "\n", "utf-8")
    (main / "README.md").write_text(_readme(repository), "utf-8")


def _write_ensemble(repository: _Repository, main: Path, step: Path, whole: Path) -> None:
    metadata, batching = repository.metadata, repository.batching
    if metadata.preprocessing is None:
        raise InputError("the model carries no preprocessing, which an ensemble needs; give it with --preprocess")
    if not metadata.batched:
        raise ModelError(
            f"an ensemble feeds batches of images, and the input {metadata.image_input!r} takes one without a batch "
            "axis; export the model with one, or leave the ensemble out"
        )
    image = next(port for port in repository.inputs if port.name == metadata.image_input)
    sizes = [size if size > 0 else None for size in image.shape]
    preprocessing = parse_preprocessing(metadata.preprocessing).for_input(metadata.layout, sizes, image.dtype)
    column = [-1, 1] if batching else [-1]
    files = [Port(name="image_bytes", dtype="bytes", shape=column)]
    chosen = _chosen(metadata)
    files += [Port(name=name, dtype="int64", shape=column, optional=True) for name in CHOICES[: len(chosen)]]
    limits = {f.name: getattr(Limits(), f.name) for f in dataclasses.fields(Limits) if f.name.startswith("im")}
    for folder in (step, whole):
        (folder / "1").mkdir()
    (step / "1" / "model.py").write_text(_STEP, "utf-8")
    # The inputs of the model, in the order in which the step outputs them.
    ports = {port.name: port for port in repository.inputs}
    prepared = [image, *(ports[name] for name in chosen)]
    parameters = {"preprocessing": preprocessing.to_json(), "limits": json.dumps(limits)}
    step_outputs = [_as_sent(port, batching=batching) for port in prepared]
    (step / "config.pbtxt").write_text(
        step_config(step.name, files, step_outputs, repository.max_batch, parameters), "utf-8"
    )
    results = [_as_sent(port, batching=batching) for port in repository.outputs]
    inner = {port.name: f"model {port.name}" for port in prepared}
    steps = [
        (step.name, {port.name: port.name for port in files}, inner),
        (repository.name, inner, {port.name: port.name for port in repository.outputs}),
    ]
    (whole / "config.pbtxt").write_text(
        ensemble_config(whole.name, files, results, repository.max_batch, steps), "utf-8"
    )
    if metadata.labels is not None:
        shutil.copy(main / "labels.txt", whole / "labels.txt")


def _chosen(metadata: Metadata) -> list[str]:
    """The inputs that choose what is explained, in the order of `CHOICES`."""
    return [name for name in (metadata.class_input, metadata.box_input) if name]


def _as_sent(port: Port, *, batching: bool) -> Port:
    """The port as clients see it: what the model takes as [N] is sent as [N, 1]."""
    return dataclasses.replace(port, shape=[*port.shape, 1]) if batching and len(port.shape) == 1 else port


def _readme(repository: _Repository) -> str:
    """The README of a model, in Markdown."""
    metadata = repository.metadata
    batching = repository.batching
    ports = [("in", port) for port in repository.inputs] + [("out", port) for port in repository.outputs]
    notes = _CLASS.format(name=metadata.class_input) if metadata.class_input else ""
    if metadata.box_input:
        corners = _CORNERS.format(**vars(metadata)) if metadata.detection_boxes else ""
        notes += _BOX.format(corners=corners, **vars(metadata))
    if repository.left_out:
        notes += _LEFT_OUT.format(names=", ".join(f"`{name}`" for name in repository.left_out))
    if repository.ensemble:
        names = [f"`{name}`" for name in CHOICES[: len(_chosen(metadata))]]
        optional = f"; {' and '.join(names)} may be left out" if names else ""
        notes += _ENSEMBLE.format(name=repository.name, optional=optional)
    table = [f"| `{port.name}` | {way} | {port.dtype} | {_shape(port, batching=batching)} |" for way, port in ports]
    return _README.format(
        name=repository.name,
        task=metadata.task,
        method=metadata.method,
        layers=", ".join(f"`{name}`" for name in metadata.layers),
        version=metadata.version,
        table="\n".join(table),
        notes=notes,
    )


def _shape(port: Port, *, batching: bool) -> str:
    """The shape of a tensor in requests."""
    return "[" + ", ".join(str(size) if size > 0 else "N" for size in _as_sent(port, batching=batching).shape) + "]"
