"""Smoothing by test-time augmentation: the mean explanation of a picture, mirrored or not, in three strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import TargetError
from onnx_gradcam.metadata import Metadata

from .batches import in_type

__all__ = ["augmented"]

Array = npt.NDArray[Any]

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
                    "the model chooses the class itself, and not the same one for the mirrored or weakened picture; "
                    "start from the original model, or leave the augmentation out"
                )
            for name, axis in axes.items():
                total[name] += np.flip(results[name], axis) if mirrored else results[name]
    count = 2 * len(_STRENGTHS)
    return found | {name: (value / count).astype(found[name].dtype) for name, value in total.items()}
