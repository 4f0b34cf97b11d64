"""Read PyTorch state dictionaries without running code, and load them into a network, completely or not at all."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from onnx_gradcam.errors import ExportError, InputError, reason

from .archives import kind_of

__all__ = ["fit", "read_weights", "unwrapped"]

_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
"""The prefixes of DataParallel and torch.compile."""

_COUNTER = "num_batches_tracked"
_CLASS = re.compile(r"GLOBAL ([\w.]+)")


def read_weights(path: str | Path) -> dict[str, Any]:
    """The tensors of a `.safetensors` file or of a pickled state dictionary, by name.

    A wrapper's prefix is removed if all names have it, and a training checkpoint is searched for its state dictionary.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "safetensors":
        content = _read_safetensors(path)
    elif kind == "pickle":
        content = _read_pickle(path)
    else:
        raise InputError(f"{path}: is a whole {kind}, not a state dictionary; export it without --weights")
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ExportError(f"{path}: is a {type(content).__name__}, not a state dictionary; save model.state_dict()")
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise ExportError(
                f"{path}: its entry {str(key)!r} is a {type(value).__name__}, not a tensor; save model.state_dict()"
            )
    state = {str(key): value for key, value in content.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError  # noqa: PLC0415 - optional
        from safetensors.torch import load_file  # noqa: PLC0415
    except ImportError as exc:
        raise ExportError(f"{path}: reading it needs safetensors; run pip install safetensors") from exc
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as exc:
        raise ExportError(f"{path}: damaged safetensors ({reason(exc)}); fetch it again") from exc


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        match = _CLASS.search(str(exc))
        objects = f"an object of class {match[1]}" if match else "Python objects"
        raise ExportError(
            f"{path}: holds {objects}, and reading it would run whatever code the file names; in the program that "
            "made it run torch.export.save(torch.export.export(model, (example,)), 'model.pt2'), or save "
            "model.state_dict() and give the network as module:factory"
        ) from exc
    except Exception as exc:
        raise ExportError(f"{path}: damaged weights ({reason(exc)}); fetch the file again") from exc


def unwrapped(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a network in the checkpoint of a module that contains it, such as Lightning's `model.`.

    These are the ones below the one prefix that has all names of `own`, without the prefix; else all of `state`.
    """
    names = [key for key in own if not key.endswith(_COUNTER)]
    if not names or all(key in state for key in names):
        return dict(state)
    for key in state:
        prefix = key.removesuffix(names[0])
        if prefix.endswith(".") and prefix != key and all(prefix + name in state for name in names):
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return dict(state)


def fit(network: torch.nn.Module, state: Mapping[str, Any], where: str | Path) -> None:
    """Load weights into a network, all of them; names and shapes must agree."""
    # How many batches a normalization has seen does not matter any more.
    own = {key: value for key, value in network.state_dict().items() if not key.endswith(_COUNTER)}
    state = {key: value for key, value in unwrapped(state, own).items() if not key.endswith(_COUNTER)}
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    if missing or unknown:
        lacks = f"lacks {_some(missing)}" if missing else ""
        has = f"has {_some(unknown)}, which the network does not have" if unknown else ""
        raise ExportError(
            f"{where}: {' and '.join(part for part in (lacks, has) if part)}; give the network that these weights "
            "belong to"
        )
    other = [key for key, value in state.items() if value.shape != own[key].shape]
    if other:
        shapes = ", ".join(f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}" for key in other[:3])
        raise ExportError(f"{where}: {shapes}; give the network that these weights belong to")
    network.load_state_dict(dict(state), strict=False)


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
