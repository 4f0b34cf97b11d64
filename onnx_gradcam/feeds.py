"""What a model's other inputs take, beside the image: values that a user gives, and defaults by convention."""

from __future__ import annotations

import copy
import io
import json
import os
import wave
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from .errors import InputError, near_matches
from .files import open_file, read_text

__all__ = ["NOTHING", "Declared", "Fed", "Feeds", "Input", "Picture", "View", "described", "in_folder"]
__all__ += ["is_array_file", "is_signal_file", "picture_layout"]
__all__ += ["read_array", "read_constant", "read_input", "read_pairs"]

Array = npt.NDArray[Any]

_PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_SIGNALS: Final = (".csv", ".wav")
_LARGEST_JSON: Final = 2**24
_KINDS: Final = "a .npy file, FILE.npz:KEY, a picture, JSON, zeros, ones, image-size, image-size-hw or scale"

_OF_VIEW: Final[Mapping[str, Callable[[View], Sequence[float]]]] = {
    "image-size": lambda view: (view.photo[1], view.photo[0]),
    "image-size-hw": lambda view: view.photo,
    "scale": lambda view: view.scale,
    "input-size-hw": lambda view: view.size,
    "im-info": lambda view: (*view.size, view.scale[0]),
}
"""Words for numbers that depend on the photo and on how it became the model's input."""
_FILLED: Final = {"zeros": 0, "ones": 1}
"""Words for one number everywhere."""


class Input(Protocol):
    """An input of a model; free sizes are symbols or `None`."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def dtype(self) -> str:
        """Its type, as NumPy names it, or `string`."""

    @property
    def shape(self) -> tuple[int | str | None, ...]:
        """Its sizes."""


@dataclass(frozen=True)
class Declared:
    """An input as a graph declares it."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


Picture = Callable[[Any, Input], Array]
"""Makes the value of an input from a picture, `[1, C, H, W]` or `[1, H, W, C]`."""


@dataclass(frozen=True)
class View:
    """How a photo became the model's input.

    Attributes:
        photo: height and width of the photo in pixels.
        size: height and width of the model's input in pixels.
        scale: pixels of the input for one of the photo, down and across.
    """

    photo: tuple[float, float]
    size: tuple[float, float]
    scale: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Fed:
    """Values of the other inputs for a batch of images.

    Attributes:
        rows: by name, those with a row for every image.
        whole: by name, those that all images share.
        apart: images have to run one by one, since the model may not read the shared ones row by row.
    """

    rows: Mapping[str, Array] = field(default_factory=dict)
    whole: Mapping[str, Array] = field(default_factory=dict)
    apart: bool = False

    def of(self, images: Sequence[int] | Array) -> dict[str, Array]:
        """The values for images of some indices; an index may occur several times."""
        chosen = np.asarray(images, np.intp)
        return {**self.whole, **{name: rows[chosen] for name, rows in self.rows.items()}}

    def __bool__(self) -> bool:
        """Whether there is any value."""
        return bool(self.rows or self.whole)

    def at(self, image: int) -> Fed:
        """The values of one image."""
        return Fed({name: rows[image : image + 1] for name, rows in self.rows.items()}, self.whole, self.apart)

    def repeated(self, count: int) -> Fed:
        """The values of the first image, for so many versions of it."""
        return Fed(
            {name: np.repeat(rows[:1], count, axis=0) for name, rows in self.rows.items()}, self.whole, self.apart
        )


NOTHING: Final = Fed()
"""What a model takes that has no other inputs."""


class Feeds:
    """What the other inputs of a model take.

    An input whose first size is the batch's takes a row for every image: one row is for all images, several are for as
    many images in order. Any other input is fed as it is. Inputs that are known by convention have defaults
    (`orig_target_sizes` of RT-DETR, `scale_factor`, `im_shape` and `im_info` of PaddleDetection and Faster R-CNN,
    attention masks, training flags, and states, which an output of the same shape hands on).

    Args:
        image: the image input, with a batch axis.
        others: the other inputs to feed.
        outputs: the model's outputs.
        given: values by name: an array, a number, nested lists, or a string as `--feed` takes it.
        batched: whether the image input has a batch axis itself.
        optional: further inputs that may be fed, since they have values of their own.
        picture: makes a value from a picture; without it, pictures are refused.

    Attributes:
        defaults: the word for what an input takes by convention, by name.

    Raises:
        InputError: there is no such input, or a value does not fit it.

    Example::

        Feeds(image, [table], [], {"table": [[0.1, 0.2]]}).fed([None])
    """

    def __init__(
        self,
        image: Input,
        others: Sequence[Input],
        outputs: Sequence[Input],
        given: Mapping[str, Any] | None = None,
        *,
        batched: bool = True,
        optional: Sequence[Input] = (),
        picture: Picture | None = None,
    ) -> None:
        self._image, self._batched, self._picture = image, batched, picture
        self._known = {one.name: one for one in (*others, *optional)}
        self._needed = [one.name for one in others]
        self.defaults = {one.name: word for one in others if (word := _default(one, outputs))}
        self._given = self._read(given or {})

    @property
    def names(self) -> list[str]:
        """The names of inputs that can be fed."""
        return list(self._known)

    @property
    def notes(self) -> list[str]:
        """What is fed by default, one sentence each."""
        defaults = {name: word for name, word in self.defaults.items() if name not in self._given}
        return [
            f"the input {name!r} takes {_MEANING[word]} by default; give another value with --feed {name}=VALUE"
            for name, word in defaults.items()
        ]

    @property
    def missing(self) -> list[str]:
        """The names of inputs that have no value."""
        return [name for name in self._needed if name not in self._given and name not in self.defaults]

    def replaced(self, more: Mapping[str, Any] | None) -> Feeds:
        """A copy in which some values replace those given before."""
        if not more:
            return self
        changed = copy.copy(self)
        changed.__dict__["_given"] = {**self._given, **self._read(more)}
        return changed

    def check(self, besides: Collection[str] = ()) -> None:
        """Refuse to go on while inputs have no value, other than those `besides`: all of them are named."""
        missing = [name for name in self.missing if name not in besides]
        if not missing:
            return
        shown = ", ".join(described(self._known[name]) for name in missing)
        many = "inputs besides the image that need values" if len(missing) > 1 else "another input that needs a value"
        raise InputError(
            f"the model has {many}: {shown}; give {'each' if len(missing) > 1 else 'it'} with --feed NAME=VALUE, "
            f"in Python feeds={{NAME: VALUE}} ({_KINDS})"
        )

    def check_shared(self) -> None:
        """Refuse values with several rows, where each is for all images."""
        for name, value in self._given.items():
            if not isinstance(value, str) and self._by_row(name) and len(value) != 1:
                raise InputError(
                    f"the input {name!r} got {len(value)} rows, and one is for all images here; give one row "
                    "(`batch` takes a row for each image with --feed-table)"
                )

    def check_count(self, images: int) -> None:
        """Refuse values with several rows unless there are as many images."""
        for name, value in self._given.items():
            if not isinstance(value, str) and self._by_row(name) and len(value) not in {1, images}:
                raise InputError(
                    f"the input {name!r} got {len(value)} rows for {images} image{'s' if images > 1 else ''}; give one "
                    "row for all images, or one for each"
                )

    def of_image(self, view: View | None, sizes: Sequence[int], which: int | None = None) -> dict[str, Array]:
        """The values for one image, those by row as `[1, ...]`.

        Args:
            view: how the photo became the input; `None` where there is no photo.
            sizes: of the image input, with a batch axis.
            which: the number of the image, where values have a row for each.
        """
        self.check()
        chosen = {**self.defaults, **self._given}
        known = {d: size for d, size in zip(self._image.shape, sizes, strict=True) if isinstance(d, str)}
        if isinstance(self._image.shape[0], str):
            known[self._image.shape[0]] = 1
        values: dict[str, Array] = {}
        for name, value in chosen.items():
            if isinstance(value, str):
                continue
            values[name] = self._row(name, value, which)
            known |= {
                d: size
                for d, size in zip(self._known[name].shape, values[name].shape, strict=True)
                if isinstance(d, str)
            }
        for name, value in chosen.items():
            if isinstance(value, str):
                filled = _by_word(value, self._known[name], view, known)
                values[name] = filled[:1] if self._by_row(name) else filled
        return values

    def fed(self, images: Sequence[Mapping[str, Array]]) -> Fed:
        """The values of several images, which share those that are not by row."""
        rows = {n: np.concatenate([one[n] for one in images]) for n in images[0] if self._by_row(n)}
        whole = {name: value for name, value in images[0].items() if name not in rows}
        free = any(self._known[n].shape and not isinstance(self._known[n].shape[0], int) for n in whole)
        return Fed(rows, whole, free)

    def alike(self, values: Mapping[str, Array]) -> tuple[Any, ...]:
        """What images have in common that may run together: shapes, and the values that are not by row."""
        return tuple(
            (name, value.shape if self._by_row(name) else (value.shape, value.tobytes()))
            for name, value in sorted(values.items())
        )

    def _by_row(self, name: str) -> bool:
        shape, batch = self._known[name].shape, self._image.shape[0]
        return self._batched and bool(shape) and batch is not None and shape[0] == batch

    def _row(self, name: str, value: Array, which: int | None) -> Array:
        if not self._by_row(name) or len(value) == 1:
            return value
        if which is None or which >= len(value):
            raise InputError(
                f"the input {name!r} got {len(value)} rows for one image; give one row, or as many rows as images"
            )
        return value[which : which + 1]

    def _read(self, given: Mapping[str, Any]) -> dict[str, Array | str]:
        """Arrays in the inputs' types and shapes, and words."""
        read: dict[str, Array | str] = {}
        for name, value in given.items():
            info = self._known.get(name)
            if info is None:
                if name == self._image.name:
                    raise InputError(f"{name!r} is the input that takes the image; feed the others, or choose --input")
                raise InputError(
                    f"the model has no other input {name!r} to feed{near_matches(name, self._known) or ';'} "
                    f"{'it has ' + ', '.join(map(described, self._known.values())) if self._known else 'leave it out'}"
                )
            source = _read_value(name, value, info)
            if isinstance(source, _PictureFile):
                if self._picture is None:
                    raise InputError(f"a picture cannot be fed to {name!r} here; give its values as a .npy file")
                source = self._picture(source.source, info)
            read[name] = source if isinstance(source, str) else _fitted(source, info, by_row=self._by_row(name))
        return read


def described(info: Input) -> str:
    """Name, type and shape of an input."""
    return f"{info.name!r} {info.dtype} [{', '.join('?' if d is None else str(d) for d in info.shape)}]"


def picture_layout(shape: Sequence[int | str | None]) -> str:
    """The axes of an input that takes pictures, `NCHW` or `NHWC`, by its number of channels; empty for any other."""
    if len(shape) != 4:
        return ""
    return "NCHW" if shape[1] in {1, 3} else "NHWC" if shape[3] in {1, 3} else ""


def read_pairs(pairs: Iterable[str]) -> dict[str, Any]:
    """Values by name, of `NAME=VALUE` and of `@FILE.json` with an object of values by name.

    Raises:
        InputError: one is neither, or a name is given twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if pair.startswith("@"):
            more = _read_json(read_text(pair[1:], _LARGEST_JSON, "a JSON object of values"), pair)
            if not isinstance(more, dict):
                raise InputError(
                    f'{pair!r} is no JSON object of values by name, such as {{"table": [[1, 2]]}}; give one'
                )
        elif not name or not equals or not value:
            raise InputError(f"{pair!r} is not NAME=VALUE; name an input and its value")
        else:
            more = {name: value}
        for key, one in more.items():
            if key in values:
                raise InputError(f"the input {key!r} is given twice; give it once")
            values[key] = one
    return values


def in_folder(value: str, folder: str | Path) -> str:
    """A value as `--feed` takes it; the path of a file in it is relative to a folder."""
    named = is_array_file(value) or value.lower().endswith(_PICTURES)
    return os.path.join(folder, value) if named else value  # noqa: PTH118 - FILE.npz:KEY is no path


def is_array_file(source: Any) -> bool:
    """Whether a path names an array: a `.npy` file, `FILE.npz:KEY`, or a signal in a `.csv` or `.wav` file."""
    text = str(source).lower() if isinstance(source, str | Path) else ""
    return is_signal_file(source) or text.endswith(".npy") or ".npz:" in text


def is_signal_file(source: Any) -> bool:
    """Whether a path names a signal, a `.csv` or `.wav` file."""
    return isinstance(source, str | Path) and str(source).lower().endswith(_SIGNALS)


def read_array(source: Any) -> Array:
    """An array, a `.npy` file, or `FILE.npz:KEY`.

    Raises:
        InputError: the file cannot be read.
    """
    if not isinstance(source, str | Path):
        return _array("the input", source)
    archive, _, key = str(source).rpartition(":")
    return _load(archive, key) if archive.lower().endswith(".npz") else _load(str(source), None)


def read_input(source: Any, info: Input, layout: str) -> Array:
    """A model's own input without its batch axis, in its type, from an array or an array file.

    Args:
        source: the array, without a batch axis or with one of size 1.
        info: the input, with a batch axis.
        layout: its axes.

    Raises:
        InputError: it is no array, or one of other sizes.
    """
    if not (is_array_file(source) or isinstance(source, np.ndarray | list) or hasattr(source, "detach")):
        raise InputError(
            f"the input {described(info)} ({layout}) takes arrays and no pictures; give a .npy file, FILE.npz:KEY, or "
            "an array"
        )
    source = source.detach().cpu().numpy() if hasattr(source, "detach") else source
    batch = layout.index("N")
    if is_signal_file(source):
        array = _laid(_read_signal(str(source)), layout.replace("N", ""), str(source))
    else:
        array = read_array(source)
    if array.ndim == len(layout) and array.shape[batch] == 1:
        array = array.take(0, axis=batch)
    sizes = [d for axis, d in enumerate(info.shape) if axis != batch]
    fits = array.ndim == len(sizes) and all(
        not isinstance(d, int) or d == n for d, n in zip(sizes, array.shape, strict=True)
    )
    if not fits or array.size == 0:
        raise InputError(
            f"the array has shape {list(array.shape)}, and the input is {described(info)} ({layout}); give one sample, "
            "with or without a batch axis of 1"
        )
    cast = _cast(array, info)
    if not np.isfinite(cast).all():
        raise InputError("the array has numbers that are not finite; check how it was made")
    return cast


def _read_signal(path: str) -> Array:
    """A signal, `[T, C]`: the columns of a `.csv` file, below a line of names or not; a `.wav` file, from -1 to 1.

    https://docs.python.org/3/library/wave.html: samples of one byte are unsigned, others signed and little-endian.
    """
    try:
        open_file(path).close()
        if path.lower().endswith(".csv"):
            text = read_text(path, _LARGEST_JSON, "numbers, a column for each channel")
            first = text.partition("\n")[0].replace(",", " ").split()
            named = any(not _is_number(cell) for cell in first)
            return np.loadtxt(io.StringIO(text), delimiter=",", skiprows=int(named), ndmin=2)
        with wave.open(path) as file:
            width, channels, count = file.getsampwidth(), file.getnchannels(), file.getnframes()
            kind = {1: "u1", 2: "<i2", 4: "<i4"}.get(width)
            if kind is None:
                raise InputError(
                    f"{path!r} has samples of {8 * width} bits; convert it to 16 bits, or give a .npy file"
                )
            whole = np.frombuffer(file.readframes(count), kind).reshape(-1, channels).astype(np.float64)
            return (whole - 128) / 128 if width == 1 else whole / 2 ** (8 * width - 1)
    except (OSError, ValueError, EOFError, wave.Error) as exc:
        raise InputError(f"{path!r} cannot be read as a signal ({exc}); give its samples as a .npy file") from exc


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _laid(signal: Array, axes: str, path: str) -> Array:
    """A signal `[T, C]` in the axes of an input."""
    if axes == "W" and signal.shape[1] == 1:
        return signal[:, 0]
    if sorted(axes) != ["C", "W"]:
        raise InputError(
            f"{path!r} is a signal of {signal.shape[1]} channels, and the input has the axes {axes}; give a .npy file"
        )
    return signal.T if axes == "CW" else signal


def read_constant(value: Any, info: Input, *, by_row: bool) -> Array:
    """A value that is the same for every image, in an input's type and shape; `[1, ...]` where it is by row.

    Raises:
        InputError: the value depends on the photo, is a picture, or does not fit.
    """
    source = _read_value(info.name, value, info)
    if isinstance(source, _PictureFile) or (isinstance(source, str) and source not in _FILLED):
        raise InputError(
            f"the value of {info.name!r} depends on the photo, so it cannot be a constant; feed it instead"
        )
    if isinstance(source, str):
        view = View((0, 0), (0, 0), (0, 0))
        known = {info.shape[0]: 1} if by_row and isinstance(info.shape[0], str) else {}
        return _by_word(source, info, view, known)
    array = _fitted(source, info, by_row=by_row)
    if by_row and len(array) != 1:
        raise InputError(f"a constant for {info.name!r} has one row for all images, not {len(array)}; give one")
    return array


@dataclass(frozen=True)
class _PictureFile:
    source: Any


def _read_value(name: str, value: Any, info: Input) -> Array | str | _PictureFile:
    """An array of any type, a word, or a picture."""
    if hasattr(value, "getexif") or isinstance(value, bytes):
        return _PictureFile(value)
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu().numpy()
    if not isinstance(value, str | Path):
        array = _array(name, value)
        photo = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and picture_layout(info.shape)
        return _PictureFile(array) if photo else array
    text = str(value)
    archive, colon, key = text.rpartition(":")
    if text in _FILLED or text in _OF_VIEW:
        return text
    if text.lower().endswith(_PICTURES):
        return _PictureFile(text)
    if text.lower().endswith(".npz"):
        raise InputError(f"{text!r} holds several arrays; name one for {name!r} as {text}:KEY")
    if text.lower().endswith(".npy"):
        return _load(text, None)
    return _load(archive, key) if colon and archive.lower().endswith(".npz") else _literal(name, text, info)


def _literal(name: str, text: str, info: Input) -> Array:
    parsed = _read_json(text, f"the value for {name!r}")
    if isinstance(parsed, dict | type(None)) or (info.dtype != "string" and isinstance(parsed, str)):
        raise InputError(f"the value for {name!r} is {text[:80]!r}, which is no number or array; give {_KINDS}")
    return _array(name, parsed)


def _array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except ValueError as exc:
        raise InputError(f"the value for {name!r} is no array ({exc}); give rows of equal lengths") from exc


def _read_json(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{origin} is {text[:80]!r}, which is neither JSON nor one of {_KINDS}; correct it") from exc


def _load(path: str, key: str | None) -> Array:
    try:
        open_file(path).close()
        stored = np.load(path, allow_pickle=False)
        if key is None:
            return np.asarray(stored)
        if key not in stored:
            raise InputError(
                f"{path!r} has no array {key!r}{near_matches(key, stored.files)}; it has {', '.join(stored)}"
            )
        return np.asarray(stored[key])
    except (OSError, ValueError, EOFError, MemoryError) as exc:
        raise InputError(f"{path!r} cannot be read as an array ({exc}); write it with numpy.save") from exc


def _fitted(value: Array, info: Input, *, by_row: bool) -> Array:
    """A value in an input's type, with the input's rank and fixed sizes; its rows stay, where it has some."""
    array = _cast(value, info)
    rank = len(info.shape)
    if array.ndim > rank:
        raise InputError(
            f"the value for {described(info)} has shape {list(array.shape)}, which has too many axes; reshape it"
        )
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    target: list[int] = []
    for axis, declared in enumerate(info.shape):
        size = int(array.shape[axis])
        if not isinstance(declared, int) or size == declared or (by_row and axis == 0):
            target.append(size)
        elif size == 1:
            target.append(declared)
        else:
            raise InputError(
                f"the value for {described(info)} has shape {list(value.shape)}; give {declared} numbers on axis {axis}"
            )
    # `ascontiguousarray` would give a number without axes one.
    whole: Array = np.broadcast_to(array, target).copy()
    return whole


def _cast(value: Array, info: Input) -> Array:
    """A value in an input's type, refused where that changes it."""
    if info.dtype == "string":
        if value.dtype.kind not in "UO":
            raise InputError(f"the input {info.name!r} takes text, and the value is {value.dtype}; give strings")
        return value.astype(object)
    try:
        dtype = np.dtype(info.dtype)
    except TypeError as exc:
        raise InputError(
            f"the input {info.name!r} takes {info.dtype}, which cannot be fed; make it a constant"
        ) from exc
    if value.dtype.kind not in "fiub":
        raise InputError(f"the value for {info.name!r} is an array of {value.dtype}, not of numbers; give numbers")
    with np.errstate(all="ignore"):
        cast = value.astype(dtype)
    # Rounding decimal numbers to a float is no change, but an overflow is.
    same = np.isfinite(cast) == np.isfinite(value) if dtype.kind == "f" and value.dtype.kind == "f" else cast == value
    if not np.all(same):
        raise InputError(
            f"the value for {info.name!r} cannot be {dtype.name} without being changed; give other numbers"
        )
    return cast


def _by_word(word: str, info: Input, view: View | None, known: Mapping[str, int]) -> Array:
    """The value that a word stands for; `known` are free sizes."""
    if word in _OF_VIEW and view is None:
        raise InputError(f"{word} for {info.name!r} is of a photo, and the model takes none; give numbers")
    if word in _OF_VIEW and view is not None:
        numbers = np.asarray(_OF_VIEW[word](view), np.float64)
        whole = np.dtype(info.dtype).kind in "iu"
        return _fitted(np.rint(numbers) if whole else numbers, info, by_row=True)
    shape = [known.get(d, d) if isinstance(d, str) else d for d in info.shape]
    free = next((d for d in shape if not isinstance(d, int)), 0)
    if free != 0:
        raise InputError(
            f"{described(info)} leaves its size {free or '?'} open, so {word} have no shape; give an array"
        )
    return np.full([int(size or 0) for size in shape], _FILLED[word], np.dtype(info.dtype))


_MEANING: Final = {
    "zeros": "zeros",
    "ones": "ones (nothing is masked)",
    "image-size": "width and height of the photo",
    "scale": "the scale of the photo, down and across",
    "input-size-hw": "height and width of the model's input",
    "im-info": "height, width and scale of the model's input",
}


def _default(info: Input, outputs: Sequence[Input]) -> str:
    """The word for what an input takes by convention; empty if there is no convention."""
    name, kind, last = info.name.lower(), info.dtype, info.shape[-1] if info.shape else None
    sizes = {"orig_target_sizes": "image-size", "scale_factor": "scale", "im_shape": "input-size-hw"}
    if name in sizes and last == 2:
        return sizes[name]
    if name == "im_info" and last == 3:
        return "im-info"
    if name.endswith(("attention_mask", "pixel_mask")) and kind.startswith(("int", "bool", "float")):
        return "ones"
    single = all(size == 1 for size in info.shape)
    if single and "train" in name and kind.startswith(("bool", "float", "int")):
        return "zeros"
    handed_on = (out for out in outputs if out.name.lower().startswith((f"{name}_", f"{name}n", f"new_{name}")))
    state = any(out.shape == info.shape and out.dtype == info.dtype for out in handed_on)
    return "zeros" if state and kind.startswith("float") and not single else ""
