"""State dictionaries: read without running code, and fitted into a network completely or not at all."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from onnx_gradcam.errors import ModelError, UnsupportedError

from .archives import kind_of

__all__ = ["fit", "read_weights"]

_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

_COUNTER = "num_batches_tracked"
_CLASS = re.compile(r"GLOBAL ([\w.]+)")


def read_weights(path: str | Path) -> dict[str, Any]:
    """The tensors of a `.safetensors` file or of a pickled state dictionary, by name.

    Names lose the prefix that a wrapper gave to all of them, and a training checkpoint is opened to find them.

    Raises:
        ModelError: the file is damaged, or no state dictionary.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "safetensors":
        content = _read_safetensors(path)
    elif kind == "pickle":
        content = _read_pickle(path)
    else:
        raise ModelError(f"{path}: is a whole {kind} and no state dictionary; export it by itself, without --weights")
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{path}: holds a {type(content).__name__} and no state dictionary; save model.state_dict()")
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{path}: its entry {str(key)!r} is a {type(value).__name__} and no tensor; save model.state_dict()"
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
        raise ModelError(f"{path}: reading it needs the package safetensors; run pip install safetensors") from exc
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as exc:
        raise ModelError(f"{path}: damaged safetensors ({' '.join(str(exc).split())[:200]}); fetch it again") from exc


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        found = _CLASS.search(str(exc))
        what = f"an object of class {found[1]}" if found else "Python objects"
        raise ModelError(
            f"{path}: holds {what}, and reading it would run whatever code the file names; in the program that made "
            "it save torch.export.save(torch.export.export(model, (example,)), 'model.pt2'), or model.state_dict() "
            "and give the network as module:factory"
        ) from exc
    except Exception as exc:
        raise ModelError(f"{path}: damaged weights ({' '.join(str(exc).split())[:200]}); fetch the file again") from exc


def fit(network: torch.nn.Module, state: Mapping[str, Any], where: str | Path) -> None:
    """Load weights into a network.

    Raises:
        UnsupportedError: names are missing or left over, or shapes differ.
    """
    # How many batches a normalisation has seen is of no use any more.
    own = {key: value for key, value in network.state_dict().items() if not key.endswith(_COUNTER)}
    state = {key: value for key, value in state.items() if not key.endswith(_COUNTER)}
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    if missing or unknown:
        lacks = f"lacks {_some(missing)}" if missing else ""
        has = f"has {_some(unknown)}, which the network does not know" if unknown else ""
        raise UnsupportedError(
            f"{where}: {' and '.join(part for part in (lacks, has) if part)}; give the network that these weights "
            "were trained in"
        )
    other = [key for key, value in state.items() if value.shape != own[key].shape]
    if other:
        shapes = ", ".join(f"{key} is {tuple(state[key].shape)} and not {tuple(own[key].shape)}" for key in other[:3])
        raise UnsupportedError(f"{where}: {shapes}; give the network that these weights were trained in")
    network.load_state_dict(dict(state), strict=False)


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
