"""Model configurations for Triton, in protobuf text format.

What they may say: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto; what the
ONNX Runtime backend wants beyond that (no optional inputs and a reshape for rank-1 tensors where it batches) was found
by loading them.

What stands beside a model in a Triton repository, for whoever runs it.

A model repository for Triton: the explained model, its configuration, and an ensemble that takes image files.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from onnx_gradcam.editor.attachment import with_required_class
from onnx_gradcam.errors import InputError, ModelError, ServerError
from onnx_gradcam.files import Drafts, make_folder
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.shapes import TensorInfo
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.metadata import Metadata

from .limits import Limits

__all__ = ["Port", "ensemble_config", "onnx_config", "readme", "step_config", "write_repository"]

TYPES: Final[Mapping[str, str]] = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bytes": "TYPE_STRING",
}
"""Triton's names of NumPy's types, and of byte strings."""

_TENSORRT: Final = """optimization {
  execution_accelerators {
    gpu_execution_accelerator: [ {
      name: "tensorrt"
      parameters { key: "precision_mode" value: "FP32" }
      parameters { key: "max_workspace_size_bytes" value: "1073741824" }
      parameters { key: "trt_engine_cache_enable" value: "1" }
      parameters { key: "trt_engine_cache_path" value: "/tmp/trt_cache" }
    } ]
  }
}
instance_group [ { kind: KIND_GPU count: 1 } ]
"""


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a model.

    Attributes:
        name: of the tensor.
        dtype: its NumPy type, or `bytes`.
        shape: its whole shape, the batch first; -1 is any size.
        labels: file of class names beside the configuration.
        optional: whether a request may leave it out.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    labels: str = ""
    optional: bool = False

    def text(self, *, batching: bool) -> str:
        """The entry of a configuration."""
        dims = list(self.shape[1:] if batching else self.shape)
        parts = [f"name: {_string(self.name)}", f"data_type: {TYPES[self.dtype]}"]
        # Triton has no tensors without dimensions: one of a single number a row is sent as [N, 1].
        parts.append(f"dims: [ {', '.join(map(str, dims or [1]))} ]")
        if not dims:
            parts.append("reshape: { shape: [ ] }")
        if self.labels:
            parts.append(f"label_filename: {_string(self.labels)}")
        if self.optional:
            parts.append("optional: true")
        return "{ " + " ".join(parts) + " }"


def onnx_config(
    name: str, inputs: Sequence[Port], outputs: Sequence[Port], max_batch: int, *, tensorrt: bool = False
) -> str:
    """The configuration of an ONNX model on the ONNX Runtime backend."""
    head = f'name: {_string(name)}\nplatform: "onnxruntime_onnx"\nbackend: "onnxruntime"\n'
    return head + _body(inputs, outputs, max_batch, batcher=True) + (_TENSORRT if tensorrt else "")


def step_config(
    name: str, inputs: Sequence[Port], outputs: Sequence[Port], max_batch: int, parameters: Mapping[str, str]
) -> str:
    """The configuration of a step in Python."""
    said = "".join(
        f"parameters {{ key: {_string(key)} value: {{ string_value: {_string(value)} }} }}\n"
        for key, value in parameters.items()
    )
    head = f'name: {_string(name)}\nbackend: "python"\n'
    cpu = "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
    return head + _body(inputs, outputs, max_batch, batcher=False) + cpu + said


def ensemble_config(
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    max_batch: int,
    steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]],
) -> str:
    """The configuration of models one behind the other.

    Args:
        name: of the ensemble.
        inputs: of the ensemble.
        outputs: of the ensemble.
        max_batch: the largest batch.
        steps: each step's model, and the tensors of the ensemble by the names of its inputs and of its outputs.
    """
    entries = []
    for model, taken, given in steps:
        lines = [f"model_name: {_string(model)}", "model_version: -1"]
        lines += [f"input_map {{ key: {_string(k)} value: {_string(v)} }}" for k, v in taken.items()]
        lines += [f"output_map {{ key: {_string(k)} value: {_string(v)} }}" for k, v in given.items()]
        entries.append("    {\n      " + "\n      ".join(lines) + "\n    }")
    scheduling = "ensemble_scheduling {\n  step [\n" + ",\n".join(entries) + "\n  ]\n}\n"
    head = f'name: {_string(name)}\nplatform: "ensemble"\n'
    return head + _body(inputs, outputs, max_batch, batcher=False) + scheduling


def _body(inputs: Sequence[Port], outputs: Sequence[Port], max_batch: int, *, batcher: bool) -> str:
    lines = [f"max_batch_size: {max_batch}"]
    for word, ports in (("input", inputs), ("output", outputs)):
        entries = ",\n".join("  " + port.text(batching=max_batch > 0) for port in ports)
        lines.append(f"{word} [\n{entries}\n]")
    if batcher and max_batch:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _string(text: str) -> str:
    """A string of the text format; JSON's escapes are among its own."""
    return json.dumps(text, ensure_ascii=False)


_TEXT = """# {name}

An image classifier that explains itself ({method}, layer `{layer}`), written by onnx-gradcam {version}.

    docker run --rm --user 1000:1000 -p 127.0.0.1:8000:8000 -p 127.0.0.1:8001:8001 -p 127.0.0.1:8002:8002 \\
      -v "$PWD:/models:ro" nvcr.io/nvidia/tritonserver:26.02-py3 \\
      tritonserver --model-repository=/models --model-control-mode=none --http-max-input-size=67108864

in the repository, the folder above this one. REST is on port 8000, gRPC on 8001, metrics on 8002.

| tensor | | type | shape as sent |
|---|---|---|---|
{table}
{notes}
## Before it is reachable

- Use release 26.02 or later. Earlier ones have known holes, among them CVE-2025-23310, -23311, -23317, -23319, -23320
  and -23334 (before 25.07), -23316 (before 25.08) and -23327 (before 25.05); they let a request run code or end the
  server.
- Triton has no accounts and listens on every network by itself: keep it behind a gateway that says who may ask, and
  publish its ports on loopback only, as above.
- Keep `--model-control-mode=none`, and mount repositories that nobody else can write to: a model is code.
- Limit requests in the gateway too: their size, their number and their time.
- `/v2/health/live` and `/v2/health/ready` are for probes, `nv_inference_*` on port 8002 for monitoring.
"""

_CLASS = """
`{name}` is the class to explain, one a row; negative is the class with the highest score. It has to be sent.
A class that the model does not have fails the request, with whatever else is in its batch.
"""
_LEFT_OUT = """
The model also has {names}, which have no batch axis and cannot be asked for here.
"""
_ENSEMBLE = """
## Images

`{name}_images` takes image files (JPEG, PNG, WebP) in `image_bytes`, one a row, and the class in `target_class`,
which may be left out. Its first step, `{name}_preprocess`, runs in Triton's Python backend and needs, in the image:

    pip install --no-deps onnx-gradcam opencv-python-headless && pip install numpy

It reads an image's size from its header and refuses large ones before they are decoded: `limits` in its config.pbtxt.
"""


def readme(
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    left_out: Sequence[str],
    metadata: Metadata,
    *,
    ensemble: bool,
) -> str:
    """The text, in Markdown."""
    rows = [f"| `{p.name}` | {word} | {p.dtype} | {_shape(p)} |" for word, ps in _named(inputs, outputs) for p in ps]
    notes = _CLASS.format(name=metadata.class_input) if metadata.class_input else ""
    if left_out:
        notes += _LEFT_OUT.format(names=", ".join(f"`{one}`" for one in left_out))
    if ensemble:
        notes += _ENSEMBLE.format(name=name)
    return _TEXT.format(
        name=name,
        method=metadata.method,
        layer=metadata.target_tensor,
        version=metadata.version,
        table="\n".join(rows),
        notes=notes,
    )


def _named(inputs: Sequence[Port], outputs: Sequence[Port]) -> Sequence[tuple[str, Sequence[Port]]]:
    return [("in", inputs), ("out", outputs)]


def _shape(port: Port) -> str:
    sizes = [str(size) if size > 0 else "N" for size in port.shape]
    return "[" + ", ".join(sizes if len(sizes) > 1 else [*sizes, "1"]) + "]"


_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STEP: Final = """from onnx_gradcam.serve.triton_step import ImageStep as TritonPythonModel

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
        ensemble: also write `NAME_images`, which takes image files.
        choices: fields of `onnx_gradcam.options.Options`, for a model that is not explained yet.

    Returns:
        The folders written.

    Raises:
        ExplainError: the model cannot be served this way, a folder is there already, or cannot be written.
    """
    name = name if name is not None else Path(source).stem
    if not _NAME.fullmatch(name):
        raise ServerError(f"{name!r} is no name for a model; use letters, digits, '.', '_' and '-' (--name)")
    model, metadata = with_required_class(source, choices)
    if metadata.disabled_optimizers:
        raise ModelError(
            f"ONNX Runtime's optimisation {metadata.disabled_optimizers[0]!r} computes this model wrongly, and Triton "
            "cannot switch it off; export the model again with `onnx-gradcam export`"
        )
    inputs = [_port(model, value.name) for value in model.core.graph.inputs]
    ranked = [value for value in model.core.graph.outputs if TensorInfo.of(value).shape is not None]
    outputs = [_port(model, value.name, metadata) for value in ranked]
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
                f"the input {port.name!r} has a fixed batch {list(port.shape)}, so that Triton cannot batch requests; "
                "use --max-batch 0, or export the model with a free batch"
            )


def _write(made: _Repository, folder: Path) -> list[Path]:
    names = [made.name, *((f"{made.name}_preprocess", f"{made.name}_images") if made.ensemble else ())]
    places = [folder / name for name in names]
    for place in places:
        if place.exists():
            raise InputError(f"{str(place)!r} already exists; remove it, or choose another --name")
    make_folder(folder)
    with Drafts() as drafts:
        main, *others = [drafts.folder(place) for place in places]
        _write_model(made, main)
        if others:
            _write_ensemble(made, main, *others)
    return places


def _write_model(made: _Repository, main: Path) -> None:
    (main / "1").mkdir()
    made.model.save(main / "1" / "model.onnx")
    config = onnx_config(made.name, made.inputs, made.outputs, made.max_batch, tensorrt=made.tensorrt)
    (main / "config.pbtxt").write_text(config, "utf-8")
    if made.metadata.labels is not None:
        (main / "labels.txt").write_text("\n".join(made.metadata.labels) + "\n", "utf-8")
    (main / "README.md").write_text(
        readme(made.name, made.inputs, made.outputs, made.left_out, made.metadata, ensemble=made.ensemble), "utf-8"
    )


def _write_ensemble(made: _Repository, main: Path, step: Path, whole: Path) -> None:
    facts = made.metadata
    if facts.preprocessing is None:
        raise ServerError(
            "how images become this model's input is not known, so that there can be no ensemble; attach with "
            "--preprocess first"
        )
    image = next(port for port in made.inputs if port.name == facts.image_input)
    sizes = [size if size > 0 else None for size in image.shape]
    fitted = parse_preprocessing(facts.preprocessing).for_input(facts.layout, sizes, image.dtype)
    files = [Port(name="image_bytes", dtype="bytes", shape=[-1, 1] if made.max_batch else [-1])]
    if facts.class_input:
        shape = [-1, 1] if made.max_batch else [-1]
        files.append(Port(name="target_class", dtype="int64", shape=shape, optional=True))
    limits = {f.name: getattr(Limits(), f.name) for f in dataclasses.fields(Limits) if f.name.startswith("im")}
    for folder in (step, whole):
        (folder / "1").mkdir()
    (step / "1" / "model.py").write_text(_STEP, "utf-8")
    # The same tensors as the model takes, in the order that the step gives them.
    given = [image, *(port for port in made.inputs if port.name == facts.class_input)]
    said = {"preprocessing": fitted.to_json(), "limits": json.dumps(limits)}
    as_sent = [_as_sent(port, batching=made.max_batch > 0) for port in given]
    (step / "config.pbtxt").write_text(step_config(step.name, files, as_sent, made.max_batch, said), "utf-8")
    results = [_as_sent(port, batching=made.max_batch > 0) for port in made.outputs]
    steps = [
        (step.name, {port.name: port.name for port in files}, {port.name: f"model {port.name}" for port in given}),
        (made.name, {p.name: f"model {p.name}" for p in given}, {p.name: p.name for p in made.outputs}),
    ]
    (whole / "config.pbtxt").write_text(ensemble_config(whole.name, files, results, made.max_batch, steps), "utf-8")
    if facts.labels is not None:
        shutil.copy(main / "labels.txt", whole / "labels.txt")


def _as_sent(port: Port, *, batching: bool) -> Port:
    """The port as clients see it: what the model takes as [N] is sent as [N, 1]."""
    return dataclasses.replace(port, shape=[*port.shape, 1]) if batching and len(port.shape) == 1 else port
