"""Upper bounds on requests, and the decoding of untrusted image files within them."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt

from onnx_gradcam.errors import InputError, ServerError, near_matches
from onnx_gradcam.images.decoding import read_image
from onnx_gradcam.images.header import HeaderError, stored_size

__all__ = ["Limits", "decode_image", "release"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper bounds, checked before a request costs memory or time.

    Attributes:
        request_bytes: size of a request body or message.
        image_bytes: size of an image file.
        image_pixels: pixels of an image, read from its header before it is decoded.
        input_pixels: pixels of the model's input over all rows of a request, and over all rows of a batch; bounds
            models with free image sizes.
        rows: images times classes per request.
        batch: rows per run of the model.
        workers: requests that are decoded, run and encoded concurrently.
        pending: concurrent requests, including waiting ones.
        seconds: time from the arrival of a request to its answer.

    Raises:
        ServerError: a value that is not a number above 0.
    """

    request_bytes: int = 32 << 20
    image_bytes: int = 20 << 20
    image_pixels: int = 24_000_000
    input_pixels: int = 1 << 22
    rows: int = 32
    batch: int = 8
    workers: int = 8
    pending: int = 64
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            whole = field.name != "seconds"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value > 0:
                kind = "whole number" if whole else "number"
                raise ServerError(f"the limit {field.name!r} is {str(value)[:40]!r}; choose a {kind} above 0")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Limits:
        """Read limits from a server's settings; the others have their defaults."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in names:
                raise ServerError(f"unknown limit {name!r}{near_matches(name, names)}; available: {', '.join(names)}")
        return cls(**settings)


_KINDS: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
_LARGEST_RATIO: Final = 32
"""Longer side to shorter: preprocessing may scale the shorter one up, which would make gigabytes of a narrow image."""


def decode_image(source: bytes, limits: Limits, *, free_size: bool) -> npt.NDArray[Any]:
    """The pixels of a JPEG, PNG or WebP file, `uint8 [H, W, 3]` RGB; its size is read and checked before it is decoded.

    `free_size` says that the model takes images of any size, without scaling, so that its own limit applies as well.
    """
    if len(source) > limits.image_bytes:
        raise ServerError(
            f"the image has {len(source)} bytes, which exceeds the limit of {limits.image_bytes}; send a smaller one",
            413,
        )
    if not source.startswith(_KINDS):
        raise ServerError("the data is not an image in a supported format; send JPEG, PNG or WebP")
    try:
        size = stored_size(source)
    except HeaderError as error:
        raise ServerError(f"the image is damaged: {error}") from error
    if size is None or 0 in size:
        raise ServerError("the image is damaged: its header has no size")
    height, width = size
    most = min(limits.image_pixels, limits.input_pixels) if free_size else limits.image_pixels
    if height * width > most:
        raise ServerError(
            f"the image is {width}x{height}, which exceeds the limit of {most} pixels; send a smaller one", 413
        )
    if max(size) > _LARGEST_RATIO * min(size):
        raise ServerError(
            f"the image is {width}x{height}, too narrow; its sides may differ by a factor of {_LARGEST_RATIO}"
        )
    try:
        return read_image(source, max_pixels=limits.image_pixels)
    except InputError as error:
        raise ServerError(f"the image cannot be decoded: {error}") from error


_LARGE_REQUEST: Final = 1 << 20


def release(size: int) -> None:
    """Free what a request of `size` bytes leaves behind, once its answer is on the way.

    Tracebacks of refusals form reference cycles with the frames that hold the body, and Python looks for such cycles by
    the number of objects, not by their size.
    """
    if size >= _LARGE_REQUEST:
        asyncio.get_running_loop().call_soon(gc.collect)
