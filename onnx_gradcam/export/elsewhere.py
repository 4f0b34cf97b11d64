"""Conversions in a process of their own: frameworks that need settings of the whole process, or another environment.

tf2onnx takes several times the memory with protobuf's fast implementation, which is chosen when protobuf is first
imported; Keras's back end is chosen when Keras is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_gradcam.errors import ExportError
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.read import read_proto

from .writer import BATCH

__all__ = ["Converted", "convert_elsewhere"]

Array = npt.NDArray[Any]

_START = Path(__file__).parent / "workers" / "start.py"

_SETTINGS = {
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
}


@dataclass(frozen=True, eq=False)
class Converted:
    """What a worker made.

    Attributes:
        model: the graph.
        answer: what else it says; its entries are the worker's.
        reference: what the framework computed, for each batch the tensors by name; the picture's name is empty.
    """

    model: Model
    answer: dict[str, Any]
    reference: dict[int, dict[str, Array]]


def convert_elsewhere(
    worker: str, request: Mapping[str, Any], *, packages: str, python: Path | None = None, **settings: str
) -> Converted:
    """Let a worker convert a model.

    Args:
        worker: name of the script in `workers`.
        request: what it is asked; `path` is the model.
        packages: what it takes, as `pip install` wants it.
        python: the interpreter; by default the one that runs this.
        settings: environment variables.

    Raises:
        ExportError: the interpreter or a package is missing, or the worker refuses or fails; the message says why.
        ModelError: what it made is no valid ONNX.
    """
    executable = str(python or sys.executable)
    source = request["path"]
    with tempfile.TemporaryDirectory(prefix="onnx-gradcam-") as scratch:
        folder = Path(scratch)
        (folder / "request.json").write_text(json.dumps(request), "utf-8")
        try:
            done = subprocess.run(  # noqa: S603 - the user's own interpreter, a script of this package
                [executable, str(_START), worker, scratch],
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, **_SETTINGS, **settings},
            )
        except OSError as exc:
            raise ExportError(
                f"the Python {executable!r} cannot be started ({exc.strerror}); name another one with --python"
            ) from exc
        if done.returncode:
            raise ExportError(f"{source}: cannot be converted: {_reason(done)}")
        answer = json.loads((folder / "answer.json").read_text("utf-8"))
        if "refused" in answer:
            raise ExportError(f"{source}: {answer['refused']}")
        if "missing" in answer:
            raise ExportError(
                f"{source}: the Python module {answer['missing']!r} is missing for {executable}; "
                f"run `{executable} -m pip install {packages}`, or name a Python that has it with --python"
            )
        proto, _ = read_proto(folder / "model.onnx")
        _name_batch(proto)
        model = load(proto)
        reference = _reference(folder / "reference.npz")
    model.name = str(source)
    return Converted(model, answer, reference)


def _reference(path: Path) -> dict[int, dict[str, Array]]:
    found: dict[int, dict[str, Array]] = {}
    if path.exists():
        with np.load(path) as archive:
            for key in archive.files:
                batch, _, name = key.partition(" ")
                found.setdefault(int(batch), {})[name] = archive[key]
    return found


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a traceback, or the signal that ended the process."""
    if done.returncode < 0:
        return f"the converter was stopped by signal {-done.returncode}; is there enough memory?"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    # What follows the name of the exception may be of several lines.
    start = next(
        (i for i in range(len(lines) - 1, -1, -1) if lines[i].split(":")[0].endswith(("Error", "Exception"))), -1
    )
    return " ".join(lines[start:])[:400] if lines else "the converter failed without a word"


def _name_batch(proto: onnx.ModelProto) -> None:
    """Give the free first dimension, which converters call by numbers, its usual name."""
    del proto.graph.value_info[:]
    for info in (*proto.graph.input, *proto.graph.output):
        dims = info.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_param = BATCH
