"""How an image becomes a model's input: the description, its presets and its JSON form.

Nothing here touches pixels; `images.decoding.prepare` applies a description. Its JSON form is what `--preprocess` takes
and what an explained model stores in its metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from onnx_gradcam.errors import InputError, near_matches
from onnx_gradcam.files import is_path, read_text
from onnx_gradcam.options import Description

__all__ = ["MAX_PIXELS", "PADDING", "PRESETS", "Align", "Color", "DType", "Layout", "Preprocessing", "Resize"]
__all__ += ["parse_preprocessing"]

Resize = Literal["stretch", "short_crop", "letterbox", "none"]
Align = Literal["center", "top_left"]
Color = Literal["rgb", "bgr", "gray"]
Layout = Literal["NCHW", "NHWC"]
DType = Literal["float16", "float32", "float64", "uint8", "int8", "uint16", "int16", "int32"]

INTEGER_RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "uint8": (0, 2**8 - 1),
    "int8": (-(2**7), 2**7 - 1),
    "uint16": (0, 2**16 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
}

MAX_PIXELS: Final = 2**27
"""The largest image that is decoded or given to a model: 134 million pixels (400 MB), more than any camera has."""
PADDING: Final = 114
"""The grey level beside a letterboxed image, as Ultralytics and YOLOX have it."""

# A narrower integer input would merge more than half of the 256 pixel levels.
_LEAST_INTEGER_SPAN: Final = 127
_LARGEST_JSON: Final = 2**20
_CHOICES: Final[Mapping[str, tuple[str | None, ...]]] = {
    "resize": get_args(Resize),
    "align": (*get_args(Align), None),
    "color": get_args(Color),
    "layout": get_args(Layout),
    "dtype": get_args(DType),
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pixels(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_choice(key: str, value: object, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        words = [word for word in allowed if word is not None]
        raise InputError(f'"{key}" cannot be {value!r}{near_matches(str(value), words)} (allowed: {", ".join(words)})')


def _check_size(key: str, size: object) -> None:
    if size is None:
        return
    if not (isinstance(size, tuple) and len(size) == 2 and all(map(_is_pixels, size))):
        raise InputError(f'"{key}" has to be [height, width] in pixels above 0, not {size!r}')
    if math.prod(size) > MAX_PIXELS:
        raise InputError(f'"{key}" has to be at most {MAX_PIXELS} pixels, not {size[0]} x {size[1]}')


def _check_numbers(key: str, values: tuple[object, ...], *, nonzero: bool) -> None:
    for value in values:
        if not _is_number(value) or (nonzero and value == 0):
            allowed = "a number other than 0" if nonzero else "a number"
            raise InputError(f'"{key}" has to be {allowed}, not {value!r}')


def _check_channels(key: str, values: object, channels: int) -> None:
    if values is None:
        return
    if not isinstance(values, tuple) or len(values) not in (1, channels):
        counts = "1 value" if channels == 1 else f"1 or {channels} values"
        raise InputError(f'"{key}" has to have {counts}, not {values!r}')
    _check_numbers(key, values, nonzero=key == "std")


def _by(size: tuple[int | None, int | None]) -> str:
    return "x".join("?" if side is None else str(side) for side in size)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How the pixels of an image, 0 to 255, become a model's input: `(pixel * scale - mean) / std`.

    For an integer `dtype` the values are rounded and clipped to its range.

    Attributes:
        size: (height, width) of the model's input in pixels; `None` for the size that the model declares.
        resize: `stretch` scales both sides to `size`; `short_crop` scales the shorter side to `short`, keeping the
            aspect ratio, and crops `size` from the centre; `letterbox` scales the image to fit into `size`, keeping
            the aspect ratio, and fills the rest with grey (114); `none` requires images of exactly `size`.
        short: the shorter side before the crop in pixels; `None` for 256/224 of the shorter side of `size`.
        align: where `letterbox` puts the image: at the `center` (the default; as Ultralytics) or the `top_left` (as
            YOLOX).
        color: the order of the channels; `gray` is one channel, the luma of ITU-R BT.601.
        scale: factor applied to the pixels before `mean` is subtracted.
        mean: one value for all channels, or one a channel in the order of `color`; `None` for 0.
        std: like `mean`; `None` for 1.
        layout: whether the channels come before or after height and width.
        dtype: dtype of the input.
        fallback_size: (height, width) if neither `size` nor the model has one.

    Raises:
        InputError: a value is out of range, or two values contradict each other.

    Example::

        Preprocessing(size=(224, 224), scale=1 / 255, mean=(0.5,), std=(0.5,))
    """

    size: tuple[int, int] | None = None
    resize: Resize = "stretch"
    short: int | None = None
    align: Align | None = None
    color: Color = "rgb"
    scale: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Layout = "NCHW"
    dtype: DType = "float32"
    fallback_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            _check_choice(key, getattr(self, key), allowed)
        for key in ("size", "fallback_size"):
            _check_size(key, getattr(self, key))
        _check_numbers("scale", (self.scale,), nonzero=True)
        for key in ("mean", "std"):
            _check_channels(key, getattr(self, key), self.channels)
        self._check_short()
        if self.align is not None and self.resize != "letterbox":
            raise InputError(
                f'"align" belongs to "resize": "letterbox", but "resize" is "{self.resize}"; leave one of the two out'
            )

    @property
    def channels(self) -> int:
        """The number of channels of the input, 1 for gray, else 3."""
        return 1 if self.color == "gray" else 3

    def level(self, pixel: float) -> tuple[float, ...]:
        """What an image of one level from 0 to 255 becomes, a value for each channel, before rounding."""
        mean, std = self.mean or (0.0,), self.std or (1.0,)
        return tuple((pixel * self.scale - mean[c % len(mean)]) / std[c % len(std)] for c in range(self.channels))

    def value_range(self) -> tuple[float, float]:
        """The lowest and the highest value of the input, before rounding."""
        ends = (*self.level(0.0), *self.level(255.0))
        return min(ends), max(ends)

    def fitted(
        self,
        *,
        channels: int | None = None,
        height: int | None = None,
        width: int | None = None,
        layout: Layout | None = None,
        dtype: str | None = None,
    ) -> Preprocessing:
        """The description adapted to a model's input; `None` for what the model leaves open.

        The model determines layout and dtype, and the size if the description has none; contradictions are refused.
        """
        return replace(
            self,
            size=self._fitted_size(height, width),
            fallback_size=None,
            layout=layout or self.layout,
            dtype=self._fitted_dtype(dtype),
            **self._fitted_color(channels),
        )

    def for_input(self, layout: str, shape: Sequence[int | str | None], dtype: str) -> Preprocessing:
        """The description adapted to a model's input of axes `layout`, a shape with free sizes, and a dtype.

        The layout of an input without a batch axis is `CHW` or `HWC`.
        """
        sizes = dict(zip(layout, shape, strict=True))
        if sorted(layout.replace("N", "")) != ["C", "H", "W"]:
            raise InputError(
                f"preprocessing makes images, and the model's input is {layout}; leave it out and give arrays"
            )
        fixed = {axis: size if isinstance(size, int) and size > 0 else None for axis, size in sizes.items()}
        batched = cast("Layout", layout if "N" in layout else f"N{layout}")
        return self.fitted(channels=fixed["C"], height=fixed["H"], width=fixed["W"], layout=batched, dtype=dtype)

    def to_dict(self) -> dict[str, Any]:
        """What is not `None`, as JSON has it; `parse_preprocessing` reads it back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if value is not None
        }

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Read a JSON object; missing keys have their defaults."""
        return _from_json(text, "the inline JSON")

    def _check_short(self) -> None:
        if self.short is None:
            return
        if self.resize != "short_crop":
            raise InputError(
                f'"short" belongs to "resize": "short_crop", but "resize" is "{self.resize}"; leave one of the two out'
            )
        if not _is_pixels(self.short):
            raise InputError(f'"short" has to be a number of pixels above 0, not {self.short!r}')
        if self.size is not None and self.short < min(self.size):
            raise InputError(
                f'"short" is {self.short} pixels, too small to crop {_by(self.size)} from; '
                f"make it at least {min(self.size)}"
            )

    def _fitted_size(self, height: int | None, width: int | None) -> tuple[int, int] | None:
        if self.size is not None:
            for side, declared in zip(self.size, (height, width), strict=True):
                if declared is not None and side != declared:
                    raise InputError(
                        f"the preprocessing makes images of {_by(self.size)} (height x width), but the model's "
                        f'input is {_by((height, width))}; leave "size" out or make it the model\'s'
                    )
            return self.size
        if height is not None and width is not None:
            return height, width
        if height is None and width is None:
            return self.fallback_size
        raise InputError(
            f"the model's input is {_by((height, width))} (height x width), one side open; "
            'give both in the preprocessing as "size": [height, width]'
        )

    def _fitted_color(self, channels: int | None) -> dict[str, Any]:
        if channels in (None, self.channels):
            return {}
        if channels != 1:
            raise InputError(
                f'the model\'s input has {channels} channels, but "color": "{self.color}" has {self.channels}; '
                "a model has to take 1 channel (gray) or 3 (rgb, bgr)"
            )
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None and len(set(values)) > 1:
                raise InputError(
                    f'the model\'s input has 1 channel, but "{key}" has a value for each of 3 '
                    f'({", ".join(map(str, values))}); give "color": "gray" and one "{key}"'
                )
        return {"color": "gray", "mean": self.mean and self.mean[:1], "std": self.std and self.std[:1]}

    def _fitted_dtype(self, dtype: str | None) -> DType:
        if dtype is None or dtype == self.dtype:
            return self.dtype
        if dtype not in _CHOICES["dtype"]:
            raise InputError(
                f"the model's input is of type {dtype}, which an image cannot be converted to; "
                f"it has to be one of {', '.join(get_args(DType))}"
            )
        if dtype in INTEGER_RANGES:
            (low, high), (least, most) = self.value_range(), INTEGER_RANGES[dtype]
            if low < least or high > most or high - low < _LEAST_INTEGER_SPAN:
                raise InputError(
                    f"the model's input is {dtype} ({least} to {most}), but the preprocessing makes values from "
                    f'{low:.4g} to {high:.4g}; choose "scale", "mean" and "std" that fill that range'
                )
        return cast("DType", dtype)


_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_USUAL: Final = (224, 224)
_USUAL_OF_DETECTORS: Final = (640, 640)

PRESETS: Final[Mapping[str, Preprocessing]] = {
    # torchvision.transforms._presets.ImageClassification with its defaults
    "torchvision": Preprocessing(
        resize="short_crop", scale=1 / 255, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, fallback_size=_USUAL
    ),
    # keras.applications.imagenet_utils.preprocess_input, mode "caffe"
    "keras-caffe": Preprocessing(color="bgr", mean=(103.939, 116.779, 123.68), layout="NHWC", fallback_size=_USUAL),
    # the same, mode "tf": x / 127.5 - 1
    "keras-tf": Preprocessing(scale=1 / 127.5, mean=(1.0,), layout="NHWC", fallback_size=_USUAL),
    # the same, mode "torch"
    "keras-torch": Preprocessing(
        scale=1 / 255, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, layout="NHWC", fallback_size=_USUAL
    ),
    # gluoncv.data.transforms.presets.imagenet.transform_eval with its defaults
    "mxnet-gluon": Preprocessing(
        resize="short_crop", scale=1 / 255, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, fallback_size=_USUAL
    ),
    # ultralytics.data.augment.LetterBox with auto=False, then / 255; also YOLOv5 to YOLOv7
    "ultralytics": Preprocessing(resize="letterbox", scale=1 / 255, fallback_size=_USUAL_OF_DETECTORS),
    # yolox.data.data_augment.preproc, since YOLOX 0.1.1, which no longer normalizes
    "yolox": Preprocessing(resize="letterbox", align="top_left", color="bgr", fallback_size=_USUAL_OF_DETECTORS),
    "none": Preprocessing(),
}


def parse_preprocessing(source: str | Path | Mapping[str, Any] | Description) -> Preprocessing:
    """Read a description: the name of a preset, a JSON object, the path of a JSON file, or a mapping."""
    if isinstance(source, Preprocessing):
        return source
    if isinstance(source, Mapping):
        return _from_mapping(source, "the preprocessing")
    text = str(source).strip()
    if text in PRESETS:
        return PRESETS[text]
    if text.startswith("{"):
        return Preprocessing.from_json(text)
    if not is_path(text):
        raise InputError(
            f"unknown preprocessing {text!r}{near_matches(text, PRESETS)}; give a preset ({', '.join(PRESETS)}), "
            "a JSON object or the path of a JSON file"
        )
    return _from_json(read_text(text, _LARGEST_JSON, "a JSON object"), repr(text))


def _from_json(text: str, origin: str) -> Preprocessing:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"the preprocessing in {origin} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(
            f'the preprocessing in {origin} has to be a JSON object such as {{"size": [224, 224]}}, '
            f"not a {type(value).__name__}"
        )
    return _from_mapping(value, origin)


def _from_mapping(values: Mapping[str, Any], origin: str) -> Preprocessing:
    allowed = [field.name for field in fields(Preprocessing)]
    for key in values:
        if key not in allowed:
            raise InputError(
                f"unknown key {key!r} in {origin}{near_matches(str(key), allowed)} (allowed: {', '.join(allowed)})"
            )
    arguments = {key: value for key, value in values.items() if value is not None}
    for key in ("size", "fallback_size", "mean", "std"):
        if isinstance(arguments.get(key), list):
            arguments[key] = tuple(arguments[key])
    for key in ("mean", "std"):
        if _is_number(arguments.get(key)):
            arguments[key] = (arguments[key],)
    try:
        return Preprocessing(**arguments)
    except InputError as error:
        raise InputError(f"in {origin}: {error}") from error
