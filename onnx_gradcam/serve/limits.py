"""What a server grants one request, and all of them together.

Image files of strangers, decoded within limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt

from onnx_gradcam.errors import InputError, ServerError
from onnx_gradcam.images.decoding import read_image
from onnx_gradcam.images.header import HeaderError, stored_size

__all__ = ["Limits", "decode_image"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper bounds; what exceeds one is refused before it costs memory or time.

    Attributes:
        request_bytes: of a request's body or message.
        image_bytes: of one image file.
        image_pixels: of one image, read from its header before it is decoded.
        input_pixels: of all rows of a request, and of all that run at once, at the model's input; bounds models of free
            image size.
        rows: images times classes in one request.
        batch: rows that run at once.
        workers: requests that are decoded, run and encoded at once.
        pending: requests that may be there at once, waiting ones included.
        seconds: from a request's arrival to its answer.
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
            right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and value > 0
            if not right:
                raise ServerError(
                    f"the limit {field.name!r} has to be a {'whole ' if whole else ''}number above 0, not {value!r}"
                )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Limits:
        """Read the limits among a server's settings; those that are not there have their default.

        Raises:
            ServerError: an unknown limit, or a value that is none.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = set(settings) - known
        if unknown:
            raise ServerError(f"there is no limit {min(unknown)!r}; known: {', '.join(sorted(known))}")
        return cls(**settings)


_KINDS: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
_LARGEST_RATIO: Final = 32
"""Of the sides: a crop scales the shorter one up, and a thread of pixels would become gigabytes."""


def decode_image(source: bytes, limits: Limits, *, free_size: bool) -> npt.NDArray[Any]:
    """The pixels of a JPEG, PNG or WebP file, `uint8 [H, W, 3]` RGB.

    Args:
        source: the file.
        limits: on its bytes and pixels; the latter are read from the header before anything is decoded.
        free_size: whether the model takes images of any size, as they are.

    Raises:
        ServerError: no image, a damaged one, or one that is too large.
    """
    if len(source) > limits.image_bytes:
        raise ServerError(f"the image has {len(source)} bytes; {limits.image_bytes} are allowed", 413)
    if not source.startswith(_KINDS):
        raise ServerError("what was sent is not an image of a kind that is served: JPEG, PNG or WebP")
    try:
        size = stored_size(source)
    except HeaderError as error:
        raise ServerError(f"the image is damaged: {error}") from error
    if size is None or 0 in size:
        raise ServerError("the image's header says no size; it is damaged")
    height, width = size
    most = min(limits.image_pixels, limits.input_pixels) if free_size else limits.image_pixels
    if height * width > most:
        raise ServerError(f"the image is {height}x{width} (height x width), above the limit of {most} pixels", 413)
    if max(size) > _LARGEST_RATIO * min(size):
        raise ServerError(f"the image is {height}x{width}, too narrow: 1 to {_LARGEST_RATIO} is the most")
    try:
        return read_image(source, max_pixels=limits.image_pixels)
    except InputError as error:
        raise ServerError(f"the image cannot be read: {error}") from error
