"""Triton model configurations (`config.pbtxt`), in protobuf text format.

Format: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto. What the ONNX Runtime
backend requires beyond it (with batching, no optional inputs, and a `reshape` for rank-1 tensors) was found by loading
models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .query import DATATYPES

__all__ = ["TYPES", "Port", "ensemble_config", "onnx_config", "step_config"]

TYPES: Final[Mapping[str, str]] = {
    **{dtype: f"TYPE_{datatype}" for datatype, dtype in DATATYPES.items()},
    "bytes": "TYPE_STRING",
}
"""Triton's names of NumPy types and of byte strings."""

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
    """An input or output of a model, of a NumPy type or `bytes`; its shape has a batch axis, and -1 for free sizes.

    `labels` is a file of class names beside the configuration, and requests may omit what is `optional`.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    labels: str = ""
    optional: bool = False

    def text(self, *, batching: bool) -> str:
        """The entry in a configuration."""
        dims = list(self.shape[1:] if batching else self.shape)
        parts = [f"name: {_string(self.name)}", f"data_type: {TYPES[self.dtype]}"]
        # Triton has no tensors without dimensions: one number per row is sent as [N, 1].
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
    """The configuration of a model on the ONNX Runtime backend."""
    head = f'name: {_string(name)}\nplatform: "onnxruntime_onnx"\nbackend: "onnxruntime"\n'
    return head + _body(inputs, outputs, max_batch, batcher=True) + (_TENSORRT if tensorrt else "")


def step_config(
    name: str, inputs: Sequence[Port], outputs: Sequence[Port], max_batch: int, parameters: Mapping[str, str]
) -> str:
    """The configuration of a step in the Python backend."""
    entries = "".join(
        f"parameters {{ key: {_string(key)} value: {{ string_value: {_string(value)} }} }}\n"
        for key, value in parameters.items()
    )
    head = f'name: {_string(name)}\nbackend: "python"\n'
    cpu = "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
    return head + _body(inputs, outputs, max_batch, batcher=False) + cpu + entries


def ensemble_config(
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    max_batch: int,
    steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]],
) -> str:
    """The configuration of an ensemble of models that run in sequence.

    `steps` are the model of each step, and the tensors of the ensemble by the names of the model's inputs and outputs.
    """
    entries = []
    for model, inputs_of, outputs_of in steps:
        lines = [f"model_name: {_string(model)}", "model_version: -1"]
        lines += [f"input_map {{ key: {_string(k)} value: {_string(v)} }}" for k, v in inputs_of.items()]
        lines += [f"output_map {{ key: {_string(k)} value: {_string(v)} }}" for k, v in outputs_of.items()]
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
    """A string of the text format, whose escapes include those of JSON."""
    return json.dumps(text, ensure_ascii=False)
