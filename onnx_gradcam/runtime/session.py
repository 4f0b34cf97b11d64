"""ONNX Runtime: sessions on the chosen execution provider, and its errors in one sentence.

This is the only module that imports onnxruntime. Every model passes the check of its weights here, explained or not.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from onnx_gradcam.errors import InputError, ModelError, near_matches
from onnx_gradcam.files import open_file

__all__ = ["InputInfo", "Session", "available_providers", "resolve_provider"]

_SHORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "qnn": "QNNExecutionProvider",
}

_SOURCE_PLACE = re.compile(r"(?:/\S*?|\w+)\.(?:cc|cpp|cu|h):\d+ ")
_SIGNATURE = re.compile(r"[^()]*?::[^()]*\(")

_LOCATION = b"location"
"""The key under which a weight names another file."""

_FATAL_ONLY = 4
_WARNINGS_TOO = 2
"""ONNX Runtime's own default."""


@dataclass(frozen=True)
class InputInfo:
    """Name, dtype as NumPy names it, and shape of an input or output; free dimensions are symbols or `None`."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


def available_providers() -> list[str]:
    """Short names of the execution providers of this ONNX Runtime build."""
    short_names = {long: short for short, long in _SHORT_NAMES.items()}
    return [short_names.get(name, name) for name in ort.get_available_providers()]


def resolve_provider(name: str) -> str:
    """ONNX Runtime's own name of an execution provider, refused if this build does not have it."""
    provider = _SHORT_NAMES.get(name.lower(), name)
    if provider not in ort.get_available_providers():
        names = [*_SHORT_NAMES, *_SHORT_NAMES.values()]
        raise InputError(
            f"there is no execution provider {name!r}{near_matches(name, names) if name not in names else ''} "
            f"(this ONNX Runtime has: {', '.join(available_providers())}); install a build that has it"
        )
    return provider


class Session:
    """A model on one execution provider, named short or in full.

    External weights of a model given as bytes are relative to `folder`, and loading has checked them;
    `disabled_optimizers` would compute this model wrongly; `threads` is the number of CPU threads within an operator.
    Without `optimized`, no nodes are fused or replaced.

    Raises:
        InputError: the provider is not available or did not start.
        ModelError: ONNX Runtime cannot load the model, or weights are missing or outside of its folder.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        *,
        provider: str = "cpu",
        folder: Path | None = None,
        disabled_optimizers: Sequence[str] = (),
        threads: int | None = None,
        optimized: bool = True,
    ) -> None:
        self.provider = resolve_provider(provider)
        if folder is None:
            _check_weights(model)
        options = ort.SessionOptions()
        # Otherwise a file of another format could pass the check as ONNX, and be run as what it is.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        # Errors are raised as exceptions; printed too, they would bury the one sentence.
        options.log_severity_level = _FATAL_ONLY
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if threads is not None:
            options.intra_op_num_threads = threads
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        fallback = [] if self.provider == "CPUExecutionProvider" else ["CPUExecutionProvider"]
        try:
            with _quiet_start(self.provider):
                self._session = ort.InferenceSession(
                    model if isinstance(model, bytes) else str(model),
                    options,
                    providers=[self.provider, *fallback],
                    disabled_optimizers=list(disabled_optimizers) or None,
                )
        except Exception as exc:
            raise ModelError(f"ONNX Runtime cannot load the model: {_reason(exc)}") from exc
        # Operators that the provider lacks run on the CPU by design, but the provider itself must have started.
        if self.provider not in self._session.get_providers():
            raise InputError(
                f"the execution provider {provider!r} did not start (its driver or libraries are missing); "
                "install them, or use --provider cpu"
            )
        self.inputs = [_info(i) for i in self._session.get_inputs()]
        self.optional_inputs = [_info(i) for i in self._session.get_overridable_initializers()]
        self.outputs = [_info(o) for o in self._session.get_outputs()]

    def input(self, name: str) -> InputInfo:
        """The input of a name."""
        return next(info for info in self.inputs if info.name == name)

    def output(self, name: str) -> InputInfo:
        """The output of a name."""
        return next(info for info in self.outputs if info.name == name)

    @property
    def metadata(self) -> dict[str, str]:
        """The model's `metadata_props`."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def run(
        self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the model on inputs by name; the outputs by name, all of them by default.

        Raises:
            ModelError: the run failed; the message is ONNX Runtime's.
        """
        try:
            results = self._session.run(None if outputs is None else list(outputs), dict(feeds))
        except Exception as exc:
            raise ModelError(f"ONNX Runtime cannot run the model: {_reason(exc)}") from exc
        names = [o.name for o in self.outputs] if outputs is None else outputs
        return {name: np.asarray(r) for name, r in zip(names, results, strict=True)}


def _check_weights(model: str | Path | bytes) -> None:
    """Refuse weights that `read_proto` refuses; a file that names no other file needs no graph code."""
    if _may_name_files(model):
        from onnx_gradcam.graph.read import read_proto  # noqa: PLC0415 - most explained models do without

        read_proto(model)


def _may_name_files(model: str | Path | bytes) -> bool:
    if isinstance(model, bytes):
        return _LOCATION in model
    try:
        with open_file(model) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return content.find(_LOCATION) >= 0
    except (InputError, OSError, ValueError) as exc:
        raise ModelError(str(exc)) from exc


@contextlib.contextmanager
def _quiet_start(provider: str) -> Iterator[None]:
    """Load a provider's libraries; the error that follows replaces what ONNX Runtime prints about missing ones."""
    if provider == "CPUExecutionProvider":
        yield
        return
    ort.set_default_logger_severity(_FATAL_ONLY)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if provider in {"CUDAExecutionProvider", "TensorrtExecutionProvider"}:
                ort.preload_dlls()
            yield
    finally:
        ort.set_default_logger_severity(_WARNINGS_TOO)


def _info(node: Any) -> InputInfo:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return InputInfo(node.name, {"float": "float32", "double": "float64"}.get(kind, kind), tuple(node.shape))


def _reason(exc: Exception) -> str:
    """ONNX Runtime's message without its error codes and source lines."""
    text = " ".join(str(exc).split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    while place := _SOURCE_PLACE.search(text):
        text = f"{text[: place.start()].rstrip()} {_without_function(text[place.end() :])}".lstrip()
    return text[:400]


def _without_function(text: str) -> str:
    """The text without the C++ function at its start, a name or a whole signature."""
    signature = _SIGNATURE.match(text)
    if signature is None:
        return text.partition(" ")[2]
    depth = 1
    for at in range(signature.end(), len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return text[at + 1 :].removeprefix(" const").lstrip()
    return ""
