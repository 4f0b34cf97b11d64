"""How a worker is asked and how it answers; imports nothing beyond the standard library.

What the framework computes of random images, for the comparison with what was made of the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["IMAGE", "RefusedError", "checked_tensor", "record", "serve"]

Work = Callable[[dict[str, Any], Path], dict[str, Any]]


class RefusedError(Exception):
    """What was asked for is not done; the message is the sentence for the user."""


def serve(work: Work, folder: Path) -> None:
    """Do what the request in a folder asks for and leave the answer there.

    Args:
        work: takes the request and the folder, writes `model.onnx` there and gives the answer.
        folder: where `request.json` is.
    """
    try:
        answer = work(json.loads((folder / "request.json").read_text("utf-8")), folder)
    except RefusedError as exc:
        answer = {"refused": str(exc)}
    except ModuleNotFoundError as exc:
        answer = {"missing": exc.name}
    (folder / "answer.json").write_text(json.dumps(answer), "utf-8")


IMAGE = ""
"""Stands for the image in the place of a tensor's name."""

_BATCHES = (1, 3)
_LARGEST_VALUE = 255


def checked_tensor(layers: Sequence[Sequence[str]], layer: str | None) -> str:
    """The tensor of the layer asked for, else of the last one; empty where there are no layers.

    Args:
        layers: name, class and tensor of each.
        layer: a name, or nothing.
    """
    tensors = {name: tensor for name, _, tensor in layers}
    return tensors.get(layer or "", layers[-1][2] if layers else "")


def record(
    folder: Path, shape: Sequence[int | None], run: Callable[[Any], Mapping[str, Any]], wanted: Collection[str]
) -> None:
    """Leave images and what the framework makes of them in `reference.npz`, at two batch sizes.

    Each entry is called after the batch and, behind a blank, the tensor. Nothing is left where the model takes
    images of any size.

    Args:
        folder: where the answer goes.
        shape: of the input.
        run: gives tensors by name for images.
        wanted: the tensors to keep.
    """
    import numpy as np  # noqa: PLC0415 - every framework brings it

    sizes = [size for size in shape[1:] if size is not None]
    if len(sizes) < len(shape) - 1:
        return
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for batch in _BATCHES:
        image = (_LARGEST_VALUE * rng.random((batch, *sizes))).astype(np.float32)
        found[f"{batch} {IMAGE}"] = image
        found |= {f"{batch} {name}": np.asarray(value) for name, value in run(image).items() if name in wanted}
    np.savez(folder / "reference.npz", **found)
