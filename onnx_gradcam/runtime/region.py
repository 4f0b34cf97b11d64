"""The part of a picture that a segmentation is explained in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import ImageError, ModelError, TargetError

from .image import read_image

__all__ = ["read_region"]

Array = npt.NDArray[Any]


def read_region(
    region: str | Path | Array | None, name: str, shape: Sequence[int | str | None] | None
) -> npt.NDArray[np.float32] | None:
    """The region at the resolution of the model's maps.

    Args:
        region: a picture that is not black inside of the region, or an array `[h, w]` that is not zero there; it is
            stretched over what the model sees.
        name: of the input that takes it; empty where there is none.
        shape: of this input, `[N, h, w]`; `None` where there is none.

    Returns:
        `float32 [h, w]` of zeros and ones; `None` where the model takes none.

    Raises:
        TargetError: a region for a model that takes none, or none for one that does.
        ImageError: the picture cannot be read, or the array is no map.
        ModelError: the model leaves the size of its maps open.
    """
    if shape is None:
        if region is not None:
            raise TargetError("the model takes no region; explain a segmentation with --mask input to give it one")
        return None
    if region is None:
        raise TargetError(f"the model wants to know where to explain (its input {name!r}); give a --region")
    height, width = shape[1], shape[2]
    if not isinstance(height, int) or not isinstance(width, int):
        raise ModelError(
            f"the model leaves the size of its maps open ({list(shape)}), so a region cannot be fitted to them; export "
            f"it with fixed sizes, or feed {name!r} yourself"
        )
    inside = region if isinstance(region, np.ndarray) else read_image(region).max(2)
    if inside.ndim != 2 or 0 in inside.shape:
        raise ImageError(f"the region is of shape {inside.shape}, but it is a map [h, w]")
    # Each cell of the maps takes the pixel under its middle.
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip((height, width), inside.shape, strict=True)
    )
    chosen: npt.NDArray[np.float32] = (inside[np.ix_(rows, columns)] != 0).astype(np.float32)
    return chosen
