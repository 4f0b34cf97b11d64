"""Reading and writing files: only regular files are read, and what is written appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Literal, Protocol, Union, cast, runtime_checkable

from .errors import InputError, reason

if TYPE_CHECKING:
    from types import TracebackType

    import onnx
    from typing_extensions import Self

__all__ = ["Drafts", "is_path", "locked", "make_folder", "open_file", "read_file", "read_text", "sync", "write_file"]
__all__ += ["Convertible", "ModelSource", "check_replaceable", "file_or_bytes", "model_data"]


@runtime_checkable
class Convertible(Protocol):
    """A result of this package that is a model: what `attach` and `export` return."""

    def to_proto(self) -> onnx.ModelProto:
        """The model as a proto."""


ModelSource = Union[str, "os.PathLike[str]", bytes, "onnx.ModelProto", Convertible]
"""What every function takes as a model: its file, the bytes of one, a proto, or the result of `attach` or `export`."""


def model_data(source: ModelSource) -> str | Path | bytes | onnx.ModelProto:
    """A source as a path, bytes or a proto.

    Raises:
        InputError: it is nothing that can be a model.
    """
    given: object = source
    if isinstance(given, Convertible):
        return given.to_proto()
    if isinstance(given, str | bytes):
        return given
    if isinstance(given, os.PathLike):
        return Path(given)
    kind = type(given).__name__
    if kind != "ModelProto":
        raise InputError(f"a model is a path, bytes or an onnx.ModelProto, not {kind}; give one of these")
    return cast("onnx.ModelProto", given)


def file_or_bytes(source: ModelSource) -> str | Path | bytes:
    """A source as ONNX Runtime takes it: a path, or the bytes of a proto; errors as of `model_data`."""
    data = model_data(source)
    return data if isinstance(data, str | Path | bytes) else data.SerializeToString()


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; a pipe or a device, which may never end, is refused."""
    name = repr(str(path))
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - Path.open takes no opener
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    except FileNotFoundError as error:
        raise InputError(f"there is no file {name}; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{name} is a folder; give the path of a file in it") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read: {reason(error)}") from error
    raise InputError(f"{name} is not a regular file; copy its content to one")


def is_path(text: str) -> bool:
    """Whether there is a file or folder of this name; a text that cannot be a name is none."""
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def read_file(path: str | Path, limit: int | None = None) -> bytes:
    """Read a regular file of at most `limit` bytes."""
    with open_file(path) as file:
        try:
            data = file.read() if limit is None else file.read(limit + 1)
        except OSError as error:
            raise InputError(f"{str(path)!r} cannot be read: {reason(error)}") from error
    if limit is not None and len(data) > limit:
        raise InputError(f"{str(path)!r} is larger than {limit >> 20} MB; give a smaller file")
    return data


def read_text(path: str | Path, limit: int, content: str) -> str:
    """Read a UTF-8 text file of at most `limit` bytes, its line ends made newlines; the message names its `content`."""
    try:
        text = read_file(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"{str(path)!r} is not a UTF-8 text file; it should hold {content}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_file(path: str | Path, content: bytes, *, durable: bool = False) -> None:
    """Write one file; see `Drafts`."""
    with Drafts(durable=durable) as drafts:
        drafts.file(path).write_bytes(content)


Kind = Literal["an image", "a model", "an HTML page", "a NumPy array", "a ZIP archive"]

_KINDS: Final = (
    (
        "an image",
        rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0|....ftyp(avi|hei|mif)",
    ),
    ("a NumPy array", rb"\x93NUMPY"),
    ("a ZIP archive", rb"PK\x03\x04"),
    ("an HTML page", rb"\s*<(!doctype html|html)"),
    ("an HDF5 file", rb"\x89HDF"),
    ("a TFLite model", rb"....TFL3"),
    ("a PDF document", rb"%PDF"),
    ("a pickle", rb"\x80[\x02-\x05]"),
    ("a compressed file", rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd"),
    ("a program", rb"\x7fELF"),
    ("a text", rb"[^\x00-\x08\x0e-\x1f\x7f-\xff]{16}"),
)
"""Contents by how a file begins: what it is called, and a pattern. A model of ONNX has none."""


def check_replaceable(path: str | Path, kind: Kind) -> None:
    """Refuse to write a file over one whose content is clearly of another kind, such as a model over an image.

    What cannot be told may be replaced, and so may what is no regular file, which is written to.

    Raises:
        InputError: the file is clearly something else, or cannot be read.
    """
    if not Path(path).is_file():
        return
    with open_file(path) as file:
        begin = file.read(64)
    found = next((name for name, pattern in _KINDS if re.match(pattern, begin, re.DOTALL | re.IGNORECASE)), kind)
    if found != kind:
        raise InputError(f"{str(path)!r} exists and is {found}, not {kind}; remove it, or choose another name")


def _resolved(path: Path) -> Path:
    """Where links lead, whether or not there is a file; a loop of them is an OSError or, up to 3.12, a RuntimeError."""
    if path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # from Python 3.13 on, `resolve` leaves a loop as it is
    return path.resolve()


class Drafts:
    """Files and folders that appear together when the `with` block ends, and not at all if it fails.

    Drafts are written beside their destinations and renamed. A symbolic link stays a link: the file it points to is
    replaced. What is not a regular file, such as `/dev/null` or a named pipe, is written to, not replaced.

    Args:
        durable: wait until the content is on the disk before anything appears, so that a power failure leaves no
            empty files.

    Raises:
        InputError: on leaving the block, if a draft cannot be written or renamed.

    Example::

        with Drafts() as drafts:
            drafts.file("labels.txt").write_text("cat")
            with drafts.file("maps.npz").open("wb") as file:
                np.savez(file, heatmap=heatmap)
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._durable = durable
        self._path: Path | None = None
        self._places: dict[Path, Path] = {}
        self._scratches: dict[Path | None, Path] = {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def file(self, path: str | Path) -> Path:
        """A draft of the file `path`, to be written before the block ends; without one, `path` is left alone.

        Drafts of the same folder are in the same folder, under their own names.
        """
        self._path = path = Path(path)
        try:
            if path.is_dir():
                raise InputError(f"{str(path)!r} is a folder; give the path of a file in it")
            if path.exists() and not path.is_file():
                return self._draft(path, None)
            place = _resolved(path) if path.is_symlink() else path
            return self._draft(place, place.parent)
        except (OSError, RuntimeError, ValueError) as error:
            raise self._refusal(error) from error

    def folder(self, path: str | Path) -> Path:
        """A draft of the folder `path`, new or empty: an empty folder to be filled before the block ends."""
        self._path = path = Path(path)
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise InputError(f"{str(path)!r} already exists; remove it or choose another name")
            place = _resolved(path)
            draft = self._draft(place, place.parent)
            draft.mkdir()
        except (OSError, RuntimeError, ValueError) as error:
            raise self._refusal(error) from error
        return draft

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._cleanup:
            if isinstance(error, OSError):
                raise self._refusal(error) from error
            if error is None:
                try:
                    self._publish()
                except OSError as failure:
                    raise self._refusal(failure) from failure

    def _draft(self, place: Path, folder: Path | None) -> Path:
        if folder not in self._scratches:
            scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-gradcam-", ignore_cleanup_errors=True)
            self._scratches[folder] = Path(self._cleanup.enter_context(scratch))
        draft = self._scratches[folder] / place.name
        self._places[draft] = place
        return draft

    def _publish(self) -> None:
        written = {draft: place for draft, place in self._places.items() if draft.exists()}
        if self._durable:
            sync(written)
        for draft, place in written.items():
            self._path = place
            if place.is_dir():
                place.rmdir()
            if place.exists() and not place.is_file():
                with draft.open("rb") as source, place.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            else:
                draft.replace(place)
        if self._durable:
            sync({place.parent for place in written.values() if place.is_file()})

    def _refusal(self, error: BaseException) -> InputError:
        return InputError(f"{str(self._path)!r} cannot be written: {reason(error)}")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, if they do not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {str(folder)!r} cannot be made: {reason(error)}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that call this out of a folder; the system ends the lock with the process, however it ends.

    Raises:
        InputError: another process has the folder.
    """
    try:
        handle = _exclusive(folder)
    except (BlockingIOError, FileExistsError) as error:
        raise InputError(
            f"another process is writing to {str(folder)!r}; wait until it has ended, or choose another folder"
        ) from error
    except OSError as error:
        raise InputError(f"the folder {str(folder)!r} cannot be locked: {reason(error)}") from error
    try:
        yield
    finally:
        os.close(handle)


def _exclusive(folder: Path) -> int:
    """A handle that no other process has; an `OSError` if one does."""
    if sys.platform == "win32":
        # Removed by the system when it is closed.
        return os.open(folder / ".lock", os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_TEMPORARY)
    import fcntl  # noqa: PLC0415 - Windows does not have it

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def sync(paths: Iterable[Path]) -> None:
    """Wait until files, and the names in folders, are on the disk."""
    for path in paths:
        # Windows cannot open folders and does not need to.
        if path.is_dir() and os.name == "nt":
            continue
        handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _without_waiting(path: str, flags: int) -> int:
    """Open without waiting for the other end of a named pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
