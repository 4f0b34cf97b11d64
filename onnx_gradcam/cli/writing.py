"""Files that appear whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx_gradcam.errors import InputError

__all__ = ["make_folder", "write_whole"]


def write_whole(path: Path, write: Callable[[Any], object]) -> None:
    """Let `write` fill a binary file, then put it at `path`; folders that are missing are made.

    Raises:
        InputError: it cannot be written there.
    """
    make_folder(path.parent)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-gradcam-") as scratch:
            draft = Path(scratch) / path.name
            with draft.open("wb") as file:
                write(file)
            draft.replace(path)
    except OSError as exc:
        raise InputError(f"{str(path)!r} cannot be written ({exc.strerror})") from exc


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(f"the folder {str(folder)!r} cannot be made ({exc.strerror})") from exc
