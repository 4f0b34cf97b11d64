"""Reading images, making a model's input from them, and projecting heatmaps and regions between the two."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, ModelError, TargetError, reason
from onnx_gradcam.files import read_file

from .header import HeaderError, checked, stored_size
from .preprocessing import INTEGER_RANGES, MAX_PIXELS, PADDING, Preprocessing

__all__ = ["MAX_BYTES", "Image", "ImageSource", "Placement", "as_array", "check_heatmap", "check_image", "prepare"]
__all__ += ["read_image", "read_region", "resized", "unprepared"]

Array = npt.NDArray[Any]
Image = npt.NDArray[np.uint8]
"""An image, uint8 RGB `[H, W, 3]`."""


class PillowImage(Protocol):
    """An image of Pillow, which need not be installed."""

    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def mode(self) -> str: ...
    def convert(self, mode: str) -> Any: ...
    def getexif(self) -> Any: ...


class TorchTensor(Protocol):
    """A tensor of PyTorch, which need not be installed."""

    def detach(self) -> Any: ...
    def cpu(self) -> Any: ...


ImageSource = str | Path | bytes | Array | PillowImage | TorchTensor
"""What an image is read from."""

MAX_BYTES: Final = 2**29
"""The largest file that is read, in bytes."""


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read an image as uint8 RGB `[H, W, 3]`.

    A file, or its bytes, may be in any format that OpenCV reads: grey becomes RGB, transparency is dropped, 16 bits
    become 8, the EXIF orientation is applied, and an animation gives its first image. An array is uint8 RGB: `[H, W]`,
    `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]`; a tensor of PyTorch `[C, H, W]` too. An image of Pillow is turned as its
    EXIF orientation says.

    Raises:
        InputError: no such file, no image, a damaged one, one above `max_pixels`, or an array of another kind.
    """
    if hasattr(source, "getexif") and hasattr(source, "convert"):
        return _from_array(_of_pillow(source, max_pixels))
    array = as_array(source)
    if array is not None:
        return _from_array(array if array is source else _channels_last(array))
    if isinstance(source, bytes):
        return _decode(source, f"the image ({len(source)} bytes)", max_pixels)
    if not isinstance(source, (str, Path)):
        raise InputError(
            f"an image is a path, bytes, an array or an image of Pillow, and not a {type(source).__name__}; several "
            "images go to `stream`, one after the other"
        )
    if str(source).startswith(("http:/", "https:/")):
        raise InputError(f"{str(source)!r} is an address, and nothing is fetched from the network; download the file")
    return _decode(read_file(source, MAX_BYTES), repr(str(source)), max_pixels)


def as_array(source: object) -> npt.NDArray[Any] | None:
    """An array, or a tensor of PyTorch as one; `None` for anything else."""
    if isinstance(source, np.ndarray):
        return source
    if hasattr(source, "detach") and hasattr(source, "cpu"):
        array: npt.NDArray[Any] = source.detach().cpu().numpy()
        return array
    return None


def unprepared(tensor: npt.NDArray[Any], preprocessing: Preprocessing) -> Image:
    """The image that a model's input was made from, uint8 RGB `[H, W, 3]`, as far as 8 bits can hold it.

    `tensor` is `[C, H, W]` or `[H, W, C]`, as `preprocessing` says.
    """
    channels = np.moveaxis(tensor, 0, -1) if preprocessing.layout == "NCHW" else tensor
    mean, std = np.array(preprocessing.mean or (0.0,)), np.array(preprocessing.std or (1.0,))
    levels = (channels.astype(np.float64) * std + mean) / preprocessing.scale
    pixels = np.clip(np.rint(np.nan_to_num(levels)), 0, 255).astype(np.uint8)
    if preprocessing.color == "bgr":
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def prepare(image: Image, preprocessing: Preprocessing) -> tuple[npt.NDArray[Any], Placement]:
    """Make a model's input from an image, uint8 RGB `[H, W, 3]`.

    If `preprocessing` leaves the size open, `stretch` and `none` keep that of the image. Images are reduced by area
    averaging (`letterbox`: bilinearly, as the detectors that use it do) and enlarged by bilinear interpolation, rounded
    to 8 bits. The input, `[C, H, W]` or `[H, W, C]`, comes with the part of the image that it is.

    Raises:
        InputError: the size is not the one that `none` requires, or too narrow or open for `short_crop` or `letterbox`.
    """
    check_image(image)
    # Grey first: the same as reading the file as grey, and a third of the work.
    pixels = cv2_module().cvtColor(image, cv2_module().COLOR_RGB2GRAY) if preprocessing.color == "gray" else image
    fitted, placement = _fit(pixels, preprocessing)
    channels = fitted.reshape(*fitted.shape[:2], preprocessing.channels)
    if preprocessing.color == "bgr":
        channels = channels[:, :, ::-1]
    values = _values(preprocessing)
    planes_first = preprocessing.layout == "NCHW"
    shape = (channels.shape[2], *channels.shape[:2]) if planes_first else channels.shape
    tensor = np.empty(shape, values.dtype)
    for c in range(preprocessing.channels):
        # No level is out of range, and "clip" is faster than a check.
        np.take(values[:, c], channels[:, :, c], out=tensor[c] if planes_first else tensor[:, :, c], mode="clip")
    return tensor, placement


@dataclass(frozen=True)
class Placement:
    """Which part of an image a model sees.

    Attributes:
        box: (x0, y0, x1, y1) of the model's input in pixels of the image from its upper left corner; fractions are
            allowed. With padding around the image it is larger than the image.
        height: height of the image in pixels.
        width: width of the image in pixels.
    """

    box: tuple[float, float, float, float]
    height: int
    width: int

    def scaled(self, height: int, width: int) -> Placement:
        """The same part of the image resized to `height` and `width`."""
        x0, y0, x1, y1 = self.box
        across, down = width / self.width, height / self.height
        return Placement((x0 * across, y0 * down, x1 * across, y1 * down), height, width)

    def part(self, top: float, left: float, bottom: float, right: float) -> Placement:
        """A part of the model's input, its edges as shares of the input's height and width."""
        x0, y0, x1, y1 = self.box
        box = (x0 + left * (x1 - x0), y0 + top * (y1 - y0), x0 + right * (x1 - x0), y0 + bottom * (y1 - y0))
        return Placement(box, self.height, self.width)

    def beside(self, heatmap: npt.NDArray[Any]) -> float:
        """The share of the heat `[h, w]` in [0, 1] that lies in padding, beside the image; 0 for a blank map."""
        x0, y0, x1, y1 = self.box
        inside = []
        for cells, start, end, pixels in zip(heatmap.shape, (y0, x0), (y1, x1), (self.height, self.width), strict=True):
            centre = start + (np.arange(cells) + 0.5) * ((end - start) / cells)
            inside.append((centre >= 0) & (centre <= pixels))
        total = float(heatmap.sum())
        return 1 - float(heatmap[np.ix_(*inside)].sum()) / total if total > 0 else 0.0

    def project(self, heatmap: npt.NDArray[Any], outside: float = 0) -> npt.NDArray[np.float32]:
        """Project a heatmap `[h, w]` of any size on the image: float32 `[height, width]`, `outside` around the box.

        Interpolates bilinearly between the centres of the heatmap's cells, as `cv2.INTER_LINEAR` and ONNX's
        `half_pixel` do.
        """
        check_heatmap(heatmap)
        x0, y0, x1, y1 = self.box
        rows, row_part, row_inside = _taps(self.height, y0, y1, heatmap.shape[0])
        columns, column_part, column_inside = _taps(self.width, x0, x1, heatmap.shape[1])
        cells = heatmap.astype(np.float32)
        above, below = cells[rows[0]], cells[rows[1]]
        tall = above + (below - above) * row_part[:, None]
        left, right = tall[:, columns[0]], tall[:, columns[1]]
        laid = left + (right - left) * column_part
        laid[~(row_inside[:, None] & column_inside)] = outside
        return laid


def _taps(
    pixels: int, start: float, end: float, cells: int
) -> tuple[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """For each pixel along an axis: its two neighbouring cells, the weight of the second, and whether it is inside."""
    centre = np.arange(pixels) + 0.5
    position = np.clip((centre - start) * (cells / (end - start)) - 0.5, 0, cells - 1)
    first = np.floor(position).astype(np.intp)
    inside = (centre >= start) & (centre <= end)
    return (first, np.minimum(first + 1, cells - 1)), (position - first).astype(np.float32), inside


def _values(preprocessing: Preprocessing) -> npt.NDArray[Any]:
    """The input value of each pixel level, `[256, C]`, computed in float64 and rounded once."""
    mean = np.array(preprocessing.mean or (0.0,))
    std = np.array(preprocessing.std or (1.0,))
    level = np.arange(256.0)[:, None]
    values = np.broadcast_to((level * preprocessing.scale - mean) / std, (256, preprocessing.channels))
    if preprocessing.dtype in INTEGER_RANGES:
        values = np.clip(np.rint(values), *INTEGER_RANGES[preprocessing.dtype])
    return values.astype(preprocessing.dtype)


def _fit(pixels: Image, preprocessing: Preprocessing) -> tuple[Image, Placement]:
    """Resize and crop an image to the size of the input."""
    height, width = pixels.shape[:2]
    whole = Placement((0.0, 0.0, float(width), float(height)), height, width)
    if preprocessing.resize == "short_crop":
        return _short_crop(pixels, preprocessing)
    if preprocessing.resize == "letterbox":
        return _letterbox(pixels, preprocessing)
    size = preprocessing.size or (height, width)
    if preprocessing.resize == "none" and size != (height, width):
        raise InputError(
            f'the image is {height}x{width} (height x width), but "resize": "none" requires exactly '
            f'{size[0]}x{size[1]}; resize the image, or give "resize": "stretch"'
        )
    return resized(pixels, *size), whole


def _short_crop(pixels: Image, preprocessing: Preprocessing) -> tuple[Image, Placement]:
    height, width = pixels.shape[:2]
    if preprocessing.size is None:
        raise InputError('"short_crop" needs the size of the crop; give "size": [height, width]')
    crop_height, crop_width = preprocessing.size
    if preprocessing.short is not None:
        factor = preprocessing.short / min(height, width)
    else:  # 256/224 of the side of a square crop; the same margin around any other
        margin = round(min(preprocessing.size) * 256 / 224) / min(preprocessing.size)
        factor = margin * max(crop_height / height, crop_width / width)
    tall, wide = max(1, round(height * factor)), max(1, round(width * factor))
    if tall < crop_height or wide < crop_width:
        raise InputError(
            f"the image, {tall}x{wide} (height x width) after its shorter side was scaled, is too small for a crop of "
            f'{crop_height}x{crop_width}; raise "short", or give "resize": "stretch"'
        )
    if tall * wide > MAX_PIXELS:
        raise InputError(
            f'the image, {height}x{width} (height x width), is too narrow for "short_crop", which would make it '
            f'{tall}x{wide}; give "resize": "stretch"'
        )
    top, left = round((tall - crop_height) / 2), round((wide - crop_width) / 2)
    down, right = height / tall, width / wide
    box = (left * right, top * down, (left + crop_width) * right, (top + crop_height) * down)
    scaled = resized(pixels, tall, wide)[top : top + crop_height, left : left + crop_width]
    return scaled, Placement(box, height, width)


def _letterbox(pixels: Image, preprocessing: Preprocessing) -> tuple[Image, Placement]:
    """Scale an image to fit into the input, and fill the rest; sizes are rounded as the two libraries do."""
    height, width = pixels.shape[:2]
    if preprocessing.size is None:
        raise InputError('"letterbox" needs the size of the input; give "size": [height, width]')
    rows, columns = preprocessing.size
    factor = min(rows / height, columns / width)
    centred = preprocessing.align != "top_left"
    tall, wide = ((round if centred else int)(side * factor) for side in (height, width))
    if not tall or not wide:
        raise InputError(
            f'the image, {height}x{width} (height x width), is too narrow for "letterbox", which would make it '
            f'{tall}x{wide}; give "resize": "stretch"'
        )
    # An odd rest: the smaller half comes first.
    top, left = ((rows - tall) // 2, (columns - wide) // 2) if centred else (0, 0)
    down, right = height / tall, width / wide
    box = (-left * right, -top * down, (columns - left) * right, (rows - top) * down)
    fitted = np.full((rows, columns, *pixels.shape[2:]), PADDING, np.uint8)
    if (tall, wide) != (height, width):
        pixels = cv2_module().resize(pixels, (wide, tall), interpolation=cv2_module().INTER_LINEAR)
    fitted[top : top + tall, left : left + wide] = pixels
    return fitted, Placement(box, height, width)


def resized(pixels: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Resize `[H, W]` or `[H, W, 3]`: sides that get smaller by area averaging, those that get larger bilinearly.

    Like the antialiased resizing of Pillow and torchvision, area averaging uses every pixel; the top-1 logit of
    MobileNetV2 was within 3 % of theirs on the photos measured.
    """
    cv2 = cv2_module()
    smaller = min(height, pixels.shape[0]), min(width, pixels.shape[1])
    if smaller != pixels.shape[:2]:
        pixels = cv2.resize(pixels, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return pixels


def check_image(image: npt.NDArray[Any]) -> None:
    """Refuse an array that is not an image, uint8 `[H, W, 3]`."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InputError(
            f"an image is uint8 of shape [height, width, 3], not {image.dtype} of shape {list(image.shape)}; "
            "read it with read_image"
        )


def check_heatmap(heatmap: npt.NDArray[Any]) -> None:
    """Refuse an array that is not a heatmap `[H, W]`."""
    if heatmap.ndim != 2 or heatmap.size == 0:
        raise InputError(f"a heatmap is [height, width], not of shape {list(heatmap.shape)}; give that of one sample")


def _of_pillow(image: Any, max_pixels: int) -> npt.NDArray[Any]:
    """The pixels of an image of Pillow, turned as its EXIF orientation says."""
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            f"the image is {height}x{width} (height x width), above the limit of {max_pixels} pixels; reduce it"
        )
    if image.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}:
        raise InputError(f"the image of Pillow has mode {image.mode!r}, not 8 bits a channel; convert it to RGB")
    turned = _TURNED.get(image.getexif().get(_ORIENTATION, 1))
    pixels: npt.NDArray[Any] = np.asarray(image.convert("RGB"))
    return pixels if turned is None else turned(pixels)


_ORIENTATION = 0x0112
_TURNED: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""What shows an image upright, by the orientation that its EXIF entry says (Exif 2.32, table 4.6.4 A)."""


def _channels_last(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A tensor of PyTorch with its channels behind, where its first axis are channels."""
    return np.moveaxis(array, 0, -1) if array.ndim == 3 and array.shape[0] in (1, 3, 4) else array


def _from_array(array: npt.NDArray[Any]) -> Image:
    if array.dtype != np.uint8:
        raise InputError(
            f"the image is an array of {array.dtype}, but it has to be uint8 with pixels from 0 to 255; "
            "scale and convert it"
        )
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if channels not in (1, 3, 4) or array.size == 0:
        raise InputError(
            f"the image is an array of shape {list(array.shape)}, but it has to be [height, width] or "
            "[height, width, channels] with 1, 3 or 4 channels (RGB, transparency last)"
        )
    cube = array.reshape(*array.shape[:2], channels)[:, :, :3]
    return np.ascontiguousarray(np.broadcast_to(cube, (*array.shape[:2], 3)))


def _decode(data: bytes, name: str, max_pixels: int) -> Image:
    if not data:
        raise InputError(f"{name} is empty; give an image file")
    if len(data) > MAX_BYTES:
        raise InputError(f"{name} is larger than {MAX_BYTES >> 20} MB; give a smaller image")
    try:
        size = stored_size(data)
        if size is not None and size[0] * size[1] > max_pixels:
            raise InputError(
                f"{name} is {size[0]}x{size[1]} (height x width), above the limit of {max_pixels} pixels; "
                "give a smaller image"
            )
        data = checked(data)
    except HeaderError as error:
        raise InputError(f"{name} is a damaged image, {error}; fetch it again") from error
    cv2 = cv2_module()
    try:
        with QUIET:
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise InputError(f"{name} cannot be decoded: {reason(error)}") from error
    if decoded is None:
        problem = "a damaged image, or of a kind OpenCV cannot read" if size else "not an image that OpenCV can read"
        raise InputError(f"{name} is {problem}; give a JPEG, PNG, WebP, TIFF, BMP or similar file")
    image: Image = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return image


class _Quiet:
    """Keeps the messages of OpenCV and its libraries off stderr: the error says what went wrong.

    OpenCV's log has a level. libjpeg and libpng always write to stderr, so what is written there meanwhile is held
    back, and passed on without their lines: it may be a server's log. Both belong to the process, and threads decode
    at the same time: the first one to enter closes, the last one to leave opens.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._level = 0
        self._stderr: tuple[int, BinaryIO] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._level = self._log().getLogLevel()
                self._log().setLogLevel(0)
                # A process may have no stderr, or no place for a file.
                with contextlib.suppress(OSError):
                    self._stderr = _held_back()
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._log().setLogLevel(self._level)
                if self._stderr is not None:
                    _passed_on(*self._stderr)
                    self._stderr = None

    @staticmethod
    def _log() -> Any:
        """OpenCV 4 has the two functions at its top level, OpenCV 5 in `cv2.utils.logging`."""
        return cv2_module() if hasattr(cv2_module(), "setLogLevel") else cv2_module().utils.logging


QUIET: Final = _Quiet()
_COMPLAINT: Final = re.compile(
    rb"(libpng (error|warning): |Corrupt JPEG data|Premature end of JPEG|Invalid (SOS|progressive) parameters"
    rb"|Inconsistent progression sequence|Unsupported marker type|Warning: unknown JFIF|Unknown Adobe color).*\r?\n"
)
"""What libpng and libjpeg write to stderr about an image."""


def _held_back() -> tuple[int, BinaryIO]:
    """Let stderr lead to a file, in memory where there is such a thing; the old stderr and the file."""
    stderr = os.dup(2)
    try:
        memory = getattr(os, "memfd_create", None)
        file = os.fdopen(memory("stderr"), "w+b") if memory else tempfile.TemporaryFile()  # noqa: SIM115
        os.dup2(file.fileno(), 2)
    except OSError:
        os.close(stderr)
        raise
    return stderr, file


def _passed_on(stderr: int, file: BinaryIO) -> None:
    """Let stderr be the old one again, and write to it what was held back."""
    os.dup2(stderr, 2)
    with file:
        file.seek(0)
        text = _COMPLAINT.sub(b"", file.read())
    with contextlib.suppress(OSError), os.fdopen(stderr, "wb") as old:
        old.write(text)


def cv2_module() -> Any:
    """OpenCV, imported when it is first used: running a model needs none of its system libraries."""
    try:
        import cv2  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InputError("OpenCV is not installed; run `pip install opencv-python-headless`") from error
    except ImportError as error:
        raise InputError(
            f"OpenCV cannot be loaded ({error}); install `opencv-python-headless` instead of `opencv-python`"
        ) from error
    return cv2


def read_region(
    region: str | Path | Array | None, name: str, shape: Sequence[int | str | None] | None
) -> npt.NDArray[np.float32] | None:
    """The region at the resolution of the model's maps, `float32 [h, w]` of zeros and ones; `None` if it takes none.

    A region is an image that is not black inside, or an array `[h, w]` that is not zero there; it is stretched over the
    part of the image that the model sees. `name` and `shape`, `[N, h, w]`, are those of the input that takes it.

    Raises:
        TargetError: there is a region but the model takes none, or the other way round.
        InputError: the image cannot be read, or the array is not a map.
        ModelError: the model leaves the size of its maps open.
    """
    if shape is None:
        if region is not None:
            raise TargetError("the model takes no region; explain a segmentation with --mask input to give it one")
        return None
    if region is None:
        raise TargetError(f"the model needs a region to explain (its input {name!r}); give a --region")
    height, width = shape[1], shape[2]
    if not isinstance(height, int) or not isinstance(width, int):
        raise ModelError(
            f"the model leaves the size of its maps open ({list(shape)}), so a region cannot be fitted to them; export "
            f"it with fixed sizes, or feed {name!r} yourself"
        )
    inside = region if isinstance(region, np.ndarray) else read_image(region).max(2)
    if inside.ndim != 2 or 0 in inside.shape:
        raise InputError(f"the region has shape {inside.shape}; give a map [h, w]")
    # Each cell takes the pixel under its centre.
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip((height, width), inside.shape, strict=True)
    )
    chosen: npt.NDArray[np.float32] = (inside[np.ix_(rows, columns)] != 0).astype(np.float32)
    return chosen
