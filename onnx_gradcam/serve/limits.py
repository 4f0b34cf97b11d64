"""What a server grants one request, and all of them together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnx_gradcam.errors import RequestError

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper bounds; what exceeds one is refused before it costs memory or time.

    Attributes:
        request_bytes: of a request's body or message.
        image_bytes: of one picture file.
        image_pixels: of one picture, read from its header before it is decoded.
        input_pixels: of all rows of a request, and of all that run at once, at the model's input; bounds models of free
            picture size.
        rows: pictures times classes in one request.
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
                raise RequestError(
                    f"the limit {field.name!r} has to be a {'whole ' if whole else ''}number above 0, not {value!r}"
                )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Limits:
        """Read the limits among a server's settings; those that are not there have their default.

        Raises:
            RequestError: an unknown limit, or a value that is none.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = set(settings) - known
        if unknown:
            raise RequestError(f"there is no limit {min(unknown)!r}; known: {', '.join(sorted(known))}")
        return cls(**settings)
