"""Models that allow one batch size only.

Smoothing by test-time augmentation: the mean explanation of an image, mirrored or not, in three strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import TargetError
from onnx_gradcam.metadata import Metadata

from .session import InputInfo

__all__ = ["augmented", "fixed_size", "in_batches", "in_type"]

Array = npt.NDArray[Any]
Run = Callable[[Array, Sequence[int]], dict[str, Array]]


def fixed_size(image: InputInfo) -> int | None:
    """The batch size, where the model allows only one."""
    size = image.shape[0]
    return size if isinstance(size, int) and size > 0 else None


def in_type(values: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers in the type of a model's input: where that is whole numbers, rounded and cut off at its ends."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def in_batches(run: Run, rows: Array, classes: Sequence[int], size: int | None) -> dict[str, Array]:
    """Run any number of rows through a model of a fixed batch size, the last row repeated to fill a batch.

    Args:
        run: takes `size` rows and their classes.
        rows: one row a sample.
        classes: one a row.
        size: the one batch size; `None` where any will do.

    Returns:
        All outputs by name, one row a sample.
    """
    if size is None or size == len(rows):
        return run(rows, classes)
    parts = []
    for start in range(0, len(rows), size):
        some, wanted = rows[start : start + size], list(classes[start : start + size])
        missing = size - len(some)
        padded = np.concatenate([some, np.repeat(some[-1:], missing, axis=0)])
        parts.append({k: v[: len(some)] for k, v in run(padded, wanted + wanted[-1:] * missing).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_STRENGTHS = (0.9, 1.0, 1.1)


def augmented(
    run: Callable[[Array, Sequence[int]], dict[str, Array]], facts: Metadata, batch: Array, classes: Sequence[int]
) -> dict[str, Array]:
    """Explain every row of a batch six times, and give the mean of the maps.

    The model's input is mirrored or not, and multiplied by 0.9, 1 and 1.1, as pytorch-grad-cam 1.5.7 has it
    (`base_cam.py`, `aug_smooth=True`). All six explain the class of the input as it is. The mean of heatmaps is not
    scaled again, so that places where the six agree stand out.

    Args:
        run: explains a batch.
        facts: what the explained model says of itself.
        batch: the model's input, one row a sample.
        classes: the class to explain in each row; -1 for the one with the highest score.

    Returns:
        All outputs by name; the maps are means, the others those of the input as it is.

    Raises:
        TargetError: the model chooses the class itself, and not the same one every time.
    """
    found = run(batch, classes)
    wanted = [int(index) for index in found[facts.heatmap_class]]
    width = facts.layout.index("W")
    # The axis of the width in each of the maps.
    axes = {facts.heatmap: -1, facts.cam: -1} | ({facts.attribution: width} if facts.attribution else {})
    total = {name: found[name].astype(np.float64) for name in axes}
    for mirrored in (False, True):
        for strength in _STRENGTHS:
            if not mirrored and strength == 1:
                continue
            turned = np.flip(batch, width) if mirrored else batch
            results = run(in_type(turned.astype(np.float32) * np.float32(strength), batch.dtype), wanted)
            if results[facts.heatmap_class].tolist() != wanted:
                raise TargetError(
                    "the model chooses the class itself, and not the same one for the mirrored or weakened image; "
                    "start from the original model, or leave the augmentation out"
                )
            for name, axis in axes.items():
                total[name] += np.flip(results[name], axis) if mirrored else results[name]
    count = 2 * len(_STRENGTHS)
    return found | {name: (value / count).astype(found[name].dtype) for name, value in total.items()}
