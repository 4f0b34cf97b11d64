"""The protocol of workers: read the request, write the answer and the framework's values for random images.

Imports only the standard library, as workers run in other environments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["IMAGE", "RefusedError", "checked_tensor", "record", "serve"]

Work = Callable[[dict[str, Any], Path], dict[str, Any]]


class RefusedError(Exception):
    """The worker refuses the request; the message is for the user."""


def serve(work: Work, folder: Path) -> None:
    """Carry out `request.json` of a folder: `work` writes `model.onnx` there and returns the answer."""
    try:
        answer = work(json.loads((folder / "request.json").read_text("utf-8")), folder)
    except RefusedError as exc:
        answer = {"refused": str(exc)}
    except ModuleNotFoundError as exc:
        answer = {"missing": exc.name}
    (folder / "answer.json").write_text(json.dumps(answer), "utf-8")


IMAGE = ""
"""The image's entry, in the place of a tensor's name."""

_BATCHES = (1, 3)
_LARGEST_VALUE = 255


def checked_tensor(layers: Sequence[Sequence[str]], layer: str | None) -> str:
    """The tensor of `layer`, else of the last of `layers` (name, class and tensor of each); empty without layers."""
    tensors = {name: tensor for name, _, tensor in layers}
    return tensors.get(layer or "", layers[-1][2] if layers else "")


def record(
    folder: Path, shape: Sequence[int | None], run: Callable[[Any], Mapping[str, Any]], tensors: Collection[str]
) -> None:
    """Write random images and the framework's values of `tensors` to `reference.npz`, at two batch sizes.

    Entries are named `BATCH TENSOR`; `run` returns tensors by name. Nothing is written if images may have any size.
    """
    import numpy as np  # noqa: PLC0415 - every framework depends on it

    sizes = [size for size in shape[1:] if size is not None]
    if len(sizes) < len(shape) - 1:
        return
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for batch in _BATCHES:
        image = (_LARGEST_VALUE * rng.random((batch, *sizes))).astype(np.float32)
        arrays[f"{batch} {IMAGE}"] = image
        arrays |= {f"{batch} {name}": np.asarray(value) for name, value in run(image).items() if name in tensors}
    np.savez(folder / "reference.npz", **arrays)
