import struct
import zlib

import cv2
import numpy as np
import pytest

from onnx_gradcam.images.header import HeaderError, checked, stored_size


def encoded(suffix, height=80, width=120):
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    done, data = cv2.imencode(suffix, noise.astype(np.float32) if suffix in (".hdr", ".pfm") else noise)
    assert done
    return data.tobytes()


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(height, width):
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


@pytest.mark.parametrize(
    "suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff", ".jp2", ".ppm", ".pam", ".ras", ".hdr", ".pfm"]
)
def test_size_of_what_opencv_writes(suffix):
    assert stored_size(encoded(suffix)) == (80, 120)


@pytest.mark.parametrize("suffix", [".gif", ".avif"])
def test_size_of_what_only_newer_opencv_writes(suffix):
    if not cv2.haveImageWriter("x" + suffix):
        pytest.skip(f"this OpenCV writes no {suffix}")
    assert stored_size(encoded(suffix)) == (80, 120)


def entry(order, tag, kind, value, *, big):
    value_form = {3: "H", 4: "I", 16: "Q"}[kind]
    head = struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, 1)
    return head + struct.pack(order + value_form, value).ljust(8 if big else 4, b"\0")


@pytest.mark.parametrize("kind", [3, 4])
def test_size_of_hand_made_tiff(kind):
    entries = entry(">", 254, 4, 0, big=False) + entry(">", 256, kind, 700, big=False)
    entries += entry(">", 257, kind, 500, big=False)
    classic = b"MM\0*" + struct.pack(">IH", 8, 3) + entries
    assert stored_size(classic) == (500, 700)
    entries = entry("<", 256, 16, 70_000, big=True) + entry("<", 257, kind, 500, big=True)
    big = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 2) + entries
    assert stored_size(big) == (500, 70_000)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"BM" + bytes(12) + struct.pack("<Iii", 40, 30, -20), (20, 30)),
        (b"BM" + bytes(12) + struct.pack("<IHH", 12, 30, 20), (20, 30)),
        (b"RIFF____WEBPVP8X" + bytes(8) + b"\x1d\0\0\x13\0\0", (20, 30)),
        (b"RIFF____WEBPVP8L" + bytes(4) + b"\x2f" + struct.pack("<I", 29 | 19 << 14), (20, 30)),
        (b"P5 # 9 9\n30 20\n255\n", (20, 30)),
        (b"\xff\xd8\xff\xe1\0\x0a\xff\xc0\0\0\0\1\0\1\xff\xff\xc2\0\x0b\x08\0\x14\0\x1e", (20, 30)),
        # A Huffman table that looks like a frame comes first.
        (b"\xff\xd8\xff\xc4\0\x09\x08\0\1\0\1\0\0\xff\xc0\0\x0b\x08\0\x14\0\x1e", (20, 30)),
        (b"a text about images", None),
        (b"BMW builds cars, not images", None),
        (b"P1 is not an image", "its header has no size"),
        (b"\xff\xd8\xff\xda\0\0", "its header has no size"),
        (b"\xff\xd8\xff\xe0\0", "it is truncated"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "it is truncated"),
        (b"\x89PNG\r\n\x1a\n", "its header is damaged or truncated"),
        # A chunk that looks like a small header in front of the real, large one.
        (b"\x89PNG\r\n\x1a\n" + png_chunk(b"tEXt", bytes(16)) + png_header(9**9, 9**9), "its header is damaged"),
        (b"II*\0\x08\0\0\0\0\0", "its header has no size"),
        (b"II+\0\x08\0\0\0" + b"\xff" * 8, "its header is damaged or truncated"),
        (b"\0\0\0\x0cjP  \r\n", "its header has no size"),
        (b"\0\0\0 ftypavif", "its header has no size"),
    ],
)
def test_size_of_hand_made_headers(data, size):
    if not isinstance(size, str):
        assert stored_size(data) == size
        return
    with pytest.raises(HeaderError, match=size):
        stored_size(data)


def test_whole_files_pass_unchanged():
    for suffix in (".png", ".jpg", ".webp"):
        data = encoded(suffix)
        assert checked(data) == data


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("lost", [1, 5, 13, 100])
def test_a_cut_off_file_is_seen(suffix, lost):
    with pytest.raises(HeaderError, match="truncated"):
        checked(encoded(suffix)[:-lost])


def test_bytes_after_the_end_are_no_damage():
    data = encoded(".jpg") + b"more"
    assert checked(data) == data


def test_an_end_marker_inside_a_jpeg_thumbnail_does_not_count():
    data = encoded(".jpg")
    thumbnail = b"\xff\xe1\0\x08Ex\xff\xd9\0\0"
    assert checked(data[:2] + thumbnail + data[2:])
    with pytest.raises(HeaderError, match="truncated"):
        checked(data[:2] + thumbnail + data[2:-2])


def test_png_checksum_and_notes():
    data = encoded(".png")
    noted = data[:33] + png_chunk(b"iCCP", b"junk") + png_chunk(b"eXIf", b"MM\0*") + data[33:]
    assert checked(noted) == data[:33] + png_chunk(b"eXIf", b"MM\0*") + data[33:]
    damaged = bytearray(data)
    damaged[45] ^= 1
    with pytest.raises(HeaderError, match="a checksum in it is wrong"):
        checked(bytes(damaged))
