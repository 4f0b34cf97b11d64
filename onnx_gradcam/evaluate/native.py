"""Heatmaps that were computed elsewhere, by a framework's own Grad-CAM say: one `.npz` file, one array a picture."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import ImageError

__all__ = ["NativeMaps"]

_LARGEST_SIDE: Final = 4096
_MOST_MAPS: Final = 100_000


class NativeMaps:
    """The maps of a `.npz` file, as `numpy.savez` writes it, read one at a time.

    The name of an array is the name of its picture's file. An array is a map ``[h, w]`` of floats of any resolution,
    raw and signed or in [0, 1]: values below zero are cut off, and the rest is divided by the largest, as in the
    heatmaps of this package.

    Args:
        path: of the file.

    Raises:
        ImageError: it is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile, ValueError) as exc:
            why = getattr(exc, "strerror", None) or "it is no zip archive"
            raise ImageError(f"{str(path)!r} holds no maps ({why}); write them with numpy.savez") from exc
        self._members = {name.removesuffix(".npy"): name for name in self._archive.namelist()[:_MOST_MAPS]}

    def close(self) -> None:
        """Let the file go."""
        self._archive.close()

    def heatmap(self, picture: str) -> npt.NDArray[np.float32]:
        """The heatmap of a picture, ``float32 [h, w]`` in [0, 1].

        Args:
            picture: path of the picture: an array of that name is looked for, then one named like the file with and
                without its suffix.

        Raises:
            ImageError: there is none, or it is no map.
        """
        path = Path(picture)
        member = next((self._members[n] for n in (picture, path.name, path.stem) if n in self._members), None)
        if member is None:
            raise ImageError(f"{str(self.path)!r} holds no map for {picture!r}: name the array {path.name!r}")
        values = self._read(member)
        if not np.isfinite(values).all():
            raise ImageError(f"the map {member!r} of {str(self.path)!r} holds NaN or infinite values: compute it again")
        positive = np.maximum(values.astype(np.float64), 0)
        largest = positive.max()
        return cast("npt.NDArray[np.float32]", (positive / largest if largest > 0 else positive).astype(np.float32))

    def _read(self, member: str) -> npt.NDArray[Any]:
        """One array; what its header says is checked before any memory is taken."""
        wrong = f"the map {member!r} of {str(self.path)!r}"
        try:
            with self._archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version not in {(1, 0), (2, 0)}:
                    raise ImageError(f"{wrong} is no array of floats: write it with numpy.savez")
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, by_columns, dtype = read(file)
                if dtype.kind != "f" or len(shape) != 2 or not all(0 < side <= _LARGEST_SIDE for side in shape):
                    raise ImageError(
                        f"{wrong} is {dtype} of shape {list(shape)}, but a map is of floats, [height, width], neither "
                        f"side above {_LARGEST_SIDE}"
                    )
                size = shape[0] * shape[1] * dtype.itemsize
                data = file.read(size)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as exc:
            raise ImageError(f"{wrong} is damaged ({' '.join(str(exc).split())[:120]}): write it again") from exc
        if len(data) < size:
            raise ImageError(f"{wrong} is cut off: write it again")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
