"""Heatmaps that another program computed, for example a framework's own Grad-CAM: one array per image in a `.npz`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, reason

__all__ = ["NativeMaps"]

_LARGEST_SIDE: Final = 4096
_MOST_MAPS: Final = 100_000


class NativeMaps:
    """The maps of a `.npz` file as `numpy.savez` writes it, read one at a time.

    Each array is a map ``[h, w]`` of floats, of any resolution, and is named like its image's file. Values below zero
    become zero and the rest is divided by the largest, as in the heatmaps of this package.

    Args:
        path: path of the file.

    Raises:
        InputError: the file cannot be read or is not a zip archive.

    Example::

        maps = NativeMaps("pytorch_maps.npz")
        maps.heatmap("photos/dog.jpg")  # of the array "dog.jpg"
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile, ValueError) as exc:
            why = getattr(exc, "strerror", None) or "not a zip archive"
            raise InputError(f"{str(path)!r} holds no maps ({why}); write them with numpy.savez") from exc
        self._members = {name.removesuffix(".npy"): name for name in self._archive.namelist()[:_MOST_MAPS]}

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def heatmap(self, image: str) -> npt.NDArray[np.float32]:
        """The heatmap of an image, ``float32 [h, w]`` in [0, 1].

        Args:
            image: path of the image. Its array is named like the path, the file, or the file without its suffix.

        Raises:
            InputError: there is no map of the image, or the array is not a map.
        """
        path = Path(image)
        member = next((self._members[n] for n in (image, path.name, path.stem) if n in self._members), None)
        if member is None:
            raise InputError(f"{str(self.path)!r} holds no map for {image!r}; name the array {path.name!r}")
        values = self._read(member)
        if not np.isfinite(values).all():
            raise InputError(f"the map {member!r} of {str(self.path)!r} holds NaN or infinite values; compute it again")
        positive = np.maximum(values.astype(np.float64), 0)
        largest = positive.max()
        return cast("npt.NDArray[np.float32]", (positive / largest if largest > 0 else positive).astype(np.float32))

    def _read(self, member: str) -> npt.NDArray[Any]:
        """One array; its header is checked before any memory is allocated."""
        culprit = f"the map {member!r} of {str(self.path)!r}"
        try:
            with self._archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version not in {(1, 0), (2, 0)}:
                    raise InputError(f"{culprit} is not an array of floats; write it with numpy.savez")
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, by_columns, dtype = read(file)
                if dtype.kind != "f" or len(shape) != 2 or not all(0 < side <= _LARGEST_SIDE for side in shape):
                    raise InputError(
                        f"{culprit} is {dtype} of shape {list(shape)}; a map holds floats, [height, width], neither "
                        f"side above {_LARGEST_SIDE}"
                    )
                size = shape[0] * shape[1] * dtype.itemsize
                data = file.read(size)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as exc:
            raise InputError(f"{culprit} is damaged ({reason(exc)}); write it again") from exc
        if len(data) < size:
            raise InputError(f"{culprit} is truncated; write it again")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
