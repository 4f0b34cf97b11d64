"""Picture files of strangers, decoded within limits."""

from __future__ import annotations

from typing import Any, Final

import numpy.typing as npt

from onnx_gradcam.errors import ImageError, RequestError
from onnx_gradcam.runtime.image import read_image
from onnx_gradcam.runtime.image_header import HeaderError, stored_size

from .limits import Limits

__all__ = ["decode_picture"]

_KINDS: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
_LARGEST_RATIO: Final = 32
"""Of the sides: a crop scales the shorter one up, and a thread of pixels would become gigabytes."""


def decode_picture(source: bytes, limits: Limits, *, free_size: bool) -> npt.NDArray[Any]:
    """The pixels of a JPEG, PNG or WebP file, `uint8 [H, W, 3]` RGB.

    Args:
        source: the file.
        limits: on its bytes and pixels; the latter are read from the header before anything is decoded.
        free_size: whether the model takes pictures of any size, as they are.

    Raises:
        RequestError: no picture, a damaged one, or one that is too large.
    """
    if len(source) > limits.image_bytes:
        raise RequestError(f"the picture has {len(source)} bytes; {limits.image_bytes} are allowed", 413)
    if not source.startswith(_KINDS):
        raise RequestError("what was sent is no picture of a kind that is served: JPEG, PNG or WebP")
    try:
        size = stored_size(source)
    except HeaderError as error:
        raise RequestError(f"the picture is damaged: {error}") from error
    if size is None or 0 in size:
        raise RequestError("the picture's header says no size; it is damaged")
    height, width = size
    most = min(limits.image_pixels, limits.input_pixels) if free_size else limits.image_pixels
    if height * width > most:
        raise RequestError(f"the picture is {height}x{width} (height x width), above the limit of {most} pixels", 413)
    if max(size) > _LARGEST_RATIO * min(size):
        raise RequestError(f"the picture is {height}x{width}, too narrow: 1 to {_LARGEST_RATIO} is the most")
    try:
        return read_image(source, max_pixels=limits.image_pixels)
    except ImageError as error:
        raise RequestError(f"the picture cannot be read: {error}") from error
