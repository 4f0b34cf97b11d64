"""Headers of image files: size and completeness, checked before anything is decoded.

OpenCV allocates memory before it checks the size, allows up to 2^30 pixels, and its older versions decode half a JPEG
file without an error. Only as much of a format is parsed as its size needs.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import Final

__all__ = ["IMAGE_SUFFIXES", "HeaderError", "checked", "stored_size"]

IMAGE_SUFFIXES: Final = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""File names that count as images where folders are searched."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED: Final = (b"tRNS", b"eXIf")  # of the ancillary chunks: transparency and orientation


class HeaderError(ValueError):
    """A file of a known format is damaged; the message is the second half of a sentence."""


def stored_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels as stored, before any EXIF rotation; `None` for an unknown format."""
    for is_format, read in _FORMATS:
        if is_format(data):
            try:
                height, width = read(data)
            except (struct.error, OverflowError) as error:
                raise HeaderError("its header is damaged or truncated") from error
            return abs(height), abs(width)
    return None


def checked(data: bytes) -> bytes:
    """The image, refused if its format shows that it is truncated or a checksum is wrong.

    PNG files lose their colour profile, text and time, which a decoder only warns about.
    """
    if data.startswith(_PNG):
        return _checked_png(data)
    if data.startswith(b"\xff\xd8\xff") and data.find(b"\xff\xd9", _jpeg_marker(data, b"\xda")) < 0:
        raise HeaderError("it is truncated")
    return data


def _checked_png(data: bytes) -> bytes:
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        if len(chunk) < 12 + length:
            break
        if kind[:1].isupper() or kind in _PNG_NEEDED:
            if zlib.crc32(chunk[4:-4]) != struct.unpack(">I", chunk[-4:])[0]:
                raise HeaderError("a checksum in it is wrong")
            kept.append(chunk)
        if kind == b"IEND":
            return b"".join(kept)
        at += 12 + length
    raise HeaderError("it is truncated")


def _jpeg_marker(data: bytes, markers: bytes) -> int:
    """The position of the length field of the first segment whose marker is one of `markers`."""
    at = 2
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            raise HeaderError("it is truncated")
        marker = data[at + 1]
        at += 1 if marker == 0xFF else 2
        if marker in markers:
            return at
        if marker == 0xDA:  # the scan: nothing about the image comes after it
            raise HeaderError("its header has no size")
        if marker not in (0x00, 0x01, *range(0xD0, 0xDA), 0xFF):
            at += int.from_bytes(data[at : at + 2], "big")


def _png(data: bytes) -> tuple[int, int]:
    kind, width, height = struct.unpack_from(">4sII", data, 12)
    if kind != b"IHDR":
        raise HeaderError("its header is damaged or truncated")
    return height, width


def _jpeg(data: bytes) -> tuple[int, int]:
    frames = bytes(set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC})
    height, width = struct.unpack_from(">HH", data, _jpeg_marker(data, frames) + 3)
    return height, width


def _tiff(data: bytes) -> tuple[int, int]:
    order = "<" if data.startswith(b"II") else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    offset, count, entry = ("Q", "Q", "HHQ") if big else ("I", "H", "HHI")
    at = struct.unpack_from(order + offset, data, 8 if big else 4)[0]
    entries = struct.unpack_from(order + count, data, at)[0]
    at += struct.calcsize(order + count)
    formats = {1: "B", 3: "H", 4: "I", 16: "Q"}
    sizes: dict[int, int] = {}
    for _ in range(min(entries, 4096)):
        tag, kind, _count = struct.unpack_from(order + entry, data, at)
        at += struct.calcsize(order + entry)
        if tag in (256, 257) and kind in formats:
            sizes[tag] = struct.unpack_from(order + formats[kind], data, at)[0]
        at += 8 if big else 4
    if len(sizes) < 2:
        raise HeaderError("its header has no size")
    return sizes[257], sizes[256]


def _bmp(data: bytes) -> tuple[int, int]:
    old = struct.unpack_from("<I", data, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return height, width


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return height, width


def _avif(data: bytes) -> tuple[int, int]:
    boxes = [struct.unpack_from(">II", data, match.end() + 4) for match in re.finditer(b"ispe", data[: 2**16])]
    if not boxes:
        raise HeaderError("its header has no size")
    width, height = max(boxes, key=lambda box: box[0] * box[1])
    return height, width


def _jpeg2000(data: bytes) -> tuple[int, int]:
    at = data.find(b"\xff\x4f\xff\x51")  # start of codestream, then SIZ
    if at < 0:
        raise HeaderError("its header has no size")
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    return bottom - top, right - left


def _packed(layout: str, at: int) -> Callable[[bytes], tuple[int, int]]:
    """Reader of a width followed by a height at a fixed position."""

    def read(data: bytes) -> tuple[int, int]:
        width, height = struct.unpack_from(layout, data, at)
        return height, width

    return read


def _worded(pattern: bytes, *, height_first: bool = False) -> Callable[[bytes], tuple[int, int]]:
    """Reader of a text header: `pattern` matches two numbers."""

    def read(data: bytes) -> tuple[int, int]:
        match = re.search(pattern, data[: 2**16])
        if match is None:
            raise HeaderError("its header has no size")
        first, second = int(match[1][:12]), int(match[2][:12])
        return (first, second) if height_first else (second, first)

    return read


def _starts(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(signatures)


_GAP: Final = rb"(?:\s|#[^\n]*\n)+"
_FORMATS: Final[tuple[tuple[Callable[[bytes], bool], Callable[[bytes], tuple[int, int]]], ...]] = (
    (_starts(_PNG), _png),
    (_starts(b"\xff\xd8\xff"), _jpeg),
    (_starts(b"GIF87a", b"GIF89a"), _packed("<HH", 6)),
    (lambda data: data.startswith(b"BM") and data[15:18] == b"\0\0\0", _bmp),
    (lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP", _webp),
    (_starts(b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0", b"MM\0\x2b"), _tiff),
    (lambda data: data[4:12] in (b"ftypavif", b"ftypavis", b"ftypmif1"), _avif),
    (_starts(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), _jpeg2000),
    (
        lambda data: re.match(rb"P[1-6Ff][\s#]", data) is not None,
        _worded(rb"^P." + _GAP + rb"(\d+)" + _GAP + rb"(\d+)"),
    ),
    (_starts(b"P7"), _worded(rb"WIDTH\s+(\d+)\s+HEIGHT\s+(\d+)")),
    (_starts(b"\x59\xa6\x6a\x95"), _packed(">II", 4)),
    (_starts(b"#?RGBE", b"#?RADIANCE"), _worded(rb"\n\n-Y\s+(\d+)\s+\+X\s+(\d+)", height_first=True)),
)
