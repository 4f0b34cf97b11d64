"""The images that arguments name, and the files that their results are written to."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from onnx_gradcam.errors import InputError
from onnx_gradcam.images.header import IMAGE_SUFFIXES

__all__ = ["Place", "find_images", "places"]


@dataclass(frozen=True)
class Place:
    """Where the results of one image are written: the drawing, and the arrays, to whose name a suffix is added."""

    image: Path
    arrays: Path


def find_images(arguments: Sequence[str]) -> list[str]:
    """The images in folders and matched by patterns, sorted by name, among those named themselves; `-` stays."""
    images: list[str] = []
    for argument in arguments:
        if not argument:
            # An empty path means the current folder, but it comes from a shell variable that is not set.
            raise InputError("the name of an image is empty; check the command")
        if argument == "-":
            if "-" in images:
                raise InputError("standard input holds one image only; give '-' once")
            images.append(argument)
        elif Path(argument).is_dir():
            images.extend(_in_folder(Path(argument)))
        elif glob.has_magic(argument) and not Path(argument).exists():
            files = sorted(f for f in glob.glob(argument, recursive=True) if Path(f).is_file())  # noqa: PTH207
            if not files:
                raise InputError(f"no file matches {argument!r}; check the pattern")
            images.extend(files)
        else:
            images.append(argument)
    return images


def _in_folder(folder: Path) -> list[str]:
    try:
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith("."))
    except OSError as exc:
        raise InputError(f"the folder {str(folder)!r} cannot be read ({exc.strerror}); check its permissions") from exc
    if not files:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"the folder {str(folder)!r} holds no image ({suffixes}); choose another one")
    return [str(f) for f in files]


def places(images: Sequence[str], out: str | None, arrays: Path | None) -> list[Place]:
    """Where the results of each image are written: never over an image that is read, never two to the same file.

    Args:
        images: their paths, `-` for standard input.
        out: the file for one image, `-` for standard output, or the folder for several: a name without suffix, or
            one that ends in a slash. By default the current folder.
        arrays: the folder for arrays; by default that of the image.
    """
    taken = {_key(Path(p)) for p in images if p != "-"}
    if out is not None and _is_file(out):
        file = Path(out)
        if len(images) > 1:
            raise typer.BadParameter(
                f"{len(images)} images do not fit into the one file {out!r}; give a folder.", param_hint="-o"
            )
        if _key(file) in taken:
            raise InputError(f"{out!r} is the image itself; choose another name with -o")
        stem = _stem(images[0]) if out == "-" else file.stem
        results = [Place(file, (arrays or file.parent) / stem)]
    else:
        folder, end = (Path(), "_gradcam") if out is None else (Path(out), "")
        results = [_free(folder, arrays, _stem(p) + end, taken) for p in images]
    for folder in {results[0].image.parent, results[0].arrays.parent}:
        _check_writable(folder)
    return results


def _is_file(out: str) -> bool:
    return out == "-" or bool(Path(out).suffix and not out.endswith((os.sep, "/")) and not Path(out).is_dir())


def _stem(image: str) -> str:
    return "stdin" if image == "-" else Path(image).stem


def _free(folder: Path, arrays: Path | None, stem: str, taken: set[str]) -> Place:
    """The first of `stem`, `stem_2`, `stem_3` ... that is not taken."""
    number, name = 1, stem
    while _key(folder / f"{name}.png") in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(_key(folder / f"{name}.png"))
    return Place(folder / f"{name}.png", (arrays or folder) / name)


def _key(path: Path) -> str:
    # Two names that differ in case alone are one file on many systems.
    return os.path.realpath(path).casefold()


def _check_writable(folder: Path) -> None:
    """Refuse before the model runs what could not be written afterwards."""
    nearest = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        problem = "cannot be written to" if nearest.is_dir() else "is not a folder"
        raise InputError(f"{str(nearest)!r} {problem}; choose another place with -o")
