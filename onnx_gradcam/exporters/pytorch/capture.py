"""PyTorch's own remarks, kept out of the way of this project's.

What a PyTorch network computes: its outputs by name, and the output of each of its modules as it was made.
"""

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

from onnx_gradcam.errors import TargetError, UnsupportedError, near_matches

__all__ = ["TARGET", "Array", "Captured", "module_outputs", "named_outputs", "silent", "submodule"]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Neither warnings nor progress lines: what matters of them, the values, is compared afterwards."""
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
    """A network with its outputs flat, and behind them the output of one of its modules.

    The hook puts a *copy* in the place of the module's output: what the network computes in place afterwards, a ReLU
    most of all, would overwrite the captured tensor otherwise.

    Args:
        network: in evaluation mode, of one argument.
        layer: path of the module, which gives a tensor at that call; `None` captures nothing.
        call: which of the module's calls, as a list index.
    """

    def __init__(self, network: torch.nn.Module, layer: str | None, call: int = -1) -> None:
        super().__init__()
        self.network, self.layer, self.call = network, layer, call
        self._calls: list[Any] = []
        if layer is not None:
            self._hook = submodule(network, layer).register_forward_hook(self._keep)

    def forward(self, x: Any) -> tuple[Any, ...]:
        """The outputs, and the captured tensor last."""
        return tuple(self._named(x).values())

    def named(self, x: Any) -> list[str]:
        """The names of the outputs, that of the captured tensor last."""
        return list(self._named(x))

    def _named(self, x: Any) -> dict[str, Any]:
        self._calls.clear()
        outputs = named_outputs(self.network(x))
        if self.layer is None:
            return outputs
        return {**outputs, TARGET: self._calls[self.call]}

    def release(self) -> None:
        """Take the hook off the network."""
        if self.layer is not None:
            self._hook.remove()

    def _keep(self, _module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        tensor, rest = _first_tensor(output)
        if tensor is None:
            return output
        self._calls.append(tensor)
        return rest(tensor.clone())


def submodule(network: torch.nn.Module, path: str) -> torch.nn.Module:
    """The module at a path.

    Raises:
        TargetError: there is none.
    """
    known = dict(network.named_modules())
    if path not in known or not path:
        raise TargetError(f"there is no module {path!r} in the network{near_matches(path, known)}")
    return known[path]


def named_outputs(result: Any) -> dict[str, Any]:
    """The tensors that a network gives, by name.

    Raises:
        UnsupportedError: there is something else than tensors among them.
    """
    logits = getattr(result, "logits", None)
    if isinstance(logits, torch.Tensor):
        return {"logits": logits}
    if isinstance(result, torch.Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        flat = {str(key): value for key, value in result.items()}
    elif isinstance(result, Sequence) and not isinstance(result, str):
        flat = {f"output_{index}": value for index, value in enumerate(result)}
    else:
        flat = {"output": result}
    for name, value in flat.items():
        if not isinstance(value, torch.Tensor):
            raise UnsupportedError(
                f"the network's output {name!r} is a {type(value).__name__} and no tensor; export a network that gives "
                "tensors, such as the classifier inside it"
            )
    if not flat:
        raise UnsupportedError("the network gives no output; export one that gives a tensor of scores")
    return flat


def module_outputs(
    network: torch.nn.Module, x: Any, only: str | None = ""
) -> tuple[dict[str, Array], dict[str, list[Array]]]:
    """The outputs of a network, and of its modules each call's output, in the order in which they are done.

    Args:
        network: in evaluation mode.
        x: its input.
        only: the one module that is wanted; empty for all, `None` for none.
    """
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
    """The tensor that a module's output is or begins with, and how another is put in its place."""
    if isinstance(output, torch.Tensor):
        return output, lambda new: new
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], torch.Tensor):
        if hasattr(output, "_fields"):
            return output[0], lambda new: type(output)(new, *output[1:])
        return output[0], lambda new: type(output)([new, *output[1:]])
    if isinstance(output, Mapping) and output and isinstance(first := next(iter(output.values())), torch.Tensor):
        return first, lambda new: type(output)(**{**output, next(iter(output)): new})
    return None, None
