"""Run a PyTorch network and capture its outputs by name and the output of each module, before in-place changes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onnx_gradcam.errors import ExportError, TargetError, near_matches

__all__ = ["TARGET", "Array", "Captured", "module_outputs", "named_outputs", "silent", "submodule"]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppress PyTorch's warnings and progress lines; the values are compared afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


Array = npt.NDArray[Any]

TARGET = "onnx_gradcam_target"
"""Name of the extra output while a network is being exported."""


class Captured(torch.nn.Module):  # type: ignore[misc]  # PyTorch counts as untyped
    """A network with flat outputs, followed by the output of its module `layer` (`None`: of none) at one of its calls.

    The hook replaces the module's output with a *copy*: a later in-place operation, such as a ReLU, would overwrite the
    captured tensor otherwise.
    """

    def __init__(self, network: torch.nn.Module, layer: str | None, call: int = -1) -> None:
        super().__init__()
        self.network, self.layer, self.call = network, layer, call
        self._calls: list[Any] = []
        if layer is not None:
            self._hook = submodule(network, layer).register_forward_hook(self._keep)

    def forward(self, x: Any) -> tuple[Any, ...]:
        """The outputs, then the captured tensor."""
        return tuple(self._named(x).values())

    def named(self, x: Any) -> list[str]:
        """The names of the outputs, then that of the captured tensor."""
        return list(self._named(x))

    def _named(self, x: Any) -> dict[str, Any]:
        self._calls.clear()
        outputs = named_outputs(self.network(x))
        if self.layer is None:
            return outputs
        return {**outputs, TARGET: self._calls[self.call]}

    def release(self) -> None:
        """Remove the hook from the network."""
        if self.layer is not None:
            self._hook.remove()

    def _keep(self, _module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        tensor, rest = _first_tensor(output)
        if tensor is None:
            return output
        self._calls.append(tensor)
        return rest(tensor.clone())


def submodule(network: torch.nn.Module, path: str) -> torch.nn.Module:
    """The module at a path, or a `TargetError`."""
    modules = dict(network.named_modules())
    if path not in modules or not path:
        raise TargetError(f"there is no module {path!r} in the network{near_matches(path, modules)}")
    return modules[path]


def named_outputs(result: Any) -> dict[str, Any]:
    """A network's output tensors, by name; anything else than tensors is an `ExportError`."""
    logits = getattr(result, "logits", None)
    if isinstance(logits, torch.Tensor):
        return {"logits": logits}
    if isinstance(result, torch.Tensor):
        return {"output": result}
    flat = dict(_leaves(result, ""))
    if not flat:
        raise ExportError("the network returns no output; export one that returns a tensor of scores")
    return flat


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The tensors in nested results, such as `output_1_0` for the first of a list that comes second."""
    if isinstance(value, torch.Tensor):
        yield name or "output", value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}_{key}" if name else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{name or 'output'}_{index}")
    else:
        raise ExportError(
            f"the network's output {name or 'output'!r} is a {type(value).__name__}, not a tensor; export a network "
            "that returns tensors, such as the classifier inside it"
        )


def module_outputs(
    network: torch.nn.Module, x: Any, only: str | None = ""
) -> tuple[dict[str, Array], dict[str, list[Array]]]:
    """A network's outputs, and each call's outputs of its modules: of all (`only` is empty), of one, or of none."""
    calls: dict[str, list[Array]] = {}

    def keep(path: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            tensor, _ = _first_tensor(output)
            if tensor is not None:
                calls.setdefault(path, []).append(_copied(tensor))

        return hook

    hooks = [
        module.register_forward_hook(keep(path))
        for path, module in network.named_modules()
        if path and only in {"", path}
    ]
    try:
        with torch.no_grad():
            outputs = named_outputs(network(x))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _copied(value) for name, value in outputs.items()}, calls


def _copied(tensor: Any) -> Array:
    return np.array(tensor.detach().numpy())


def _first_tensor(output: Any) -> tuple[Any, Any]:
    """The tensor that a module's output is or begins with, and a function that replaces it."""
    if isinstance(output, torch.Tensor):
        return output, lambda new: new
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], torch.Tensor):
        if hasattr(output, "_fields"):
            return output[0], lambda new: type(output)(new, *output[1:])
        return output[0], lambda new: type(output)([new, *output[1:]])
    if isinstance(output, Mapping) and output and isinstance(first := next(iter(output.values())), torch.Tensor):
        return first, lambda new: type(output)(**{**output, next(iter(output)): new})
    return None, None
