"""The files of onnxruntime-web, from a folder, npm's registry or an earlier download, checked against their hashes."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from onnx_gradcam.errors import InputError, reason
from onnx_gradcam.files import Drafts, make_folder

__all__ = ["FILES", "VERSION", "runtime_files"]

VERSION: Final = "1.30.0"
FILES: Final[Mapping[str, str]] = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""The files that a page needs, with their SHA-256."""

_REGISTRY: Final = "https://registry.npmjs.org/"
_ARCHIVE: Final = f"onnxruntime-web-{VERSION}.tgz"
# `integrity` in the registry
_ARCHIVE_SHA512: Final = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
_ARCHIVE_BYTES: Final = 33_106_585
_OFFLINE: Final = f"fetch it elsewhere with `npm pack onnxruntime-web@{VERSION}` and pass the file to --runtime"
_TIMEOUT: Final = 60


def runtime_files(source: Path | None = None, notify: Callable[[str], object] = lambda _: None) -> dict[str, bytes]:
    """The files of onnxruntime-web by name.

    Args:
        source: the package as `npm pack` writes it, unpacked, or installed in a project; by default, the files are
            downloaded once from npm's registry, or the one in npm's variable `npm_config_registry`.
        notify: called with a line of text before a download.

    Raises:
        InputError: a file is missing or of another version, or the download fails.
    """
    if source is not None:
        files = _of_archive(_read(source), str(source)) if source.is_file() else _of_folder(source)
        return _checked(files, str(source))
    cache = _cache()
    if all((cache / name).is_file() for name in FILES):
        return _checked({name: _read(cache / name) for name in FILES}, str(cache))
    address = _address()
    notify(f"downloading {address} ({_ARCHIVE_BYTES >> 20} MB, once)")
    archive = _download(address)
    if hashlib.sha512(archive).hexdigest() != _ARCHIVE_SHA512:
        raise InputError(f"{address} is not the published onnxruntime-web {VERSION}; {_OFFLINE}")
    files = _checked(_of_archive(archive, address), address)
    _keep(files, cache)
    return files


def _address() -> str:
    # npm reads the variable in either case, and sets it in lower case for the programs that it runs.
    values = (os.environ.get(name) for name in ("NPM_CONFIG_REGISTRY", "NPM_CONFIG_REGISTRY".lower()))
    registry = next(filter(None, values), _REGISTRY)
    parts = urllib.parse.urlsplit(registry)
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        raise InputError(f"npm_config_registry={registry!r} is not an https:// address; correct or unset it")
    return f"{registry.rstrip('/')}/onnxruntime-web/-/{_ARCHIVE}"


def _download(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer:  # noqa: S310 - `_address` allows only http
            archive = answer.read(_ARCHIVE_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        raise InputError(f"cannot download onnxruntime-web from {address} ({cause}); {_OFFLINE}") from error
    assert isinstance(archive, bytes)  # noqa: S101 - for mypy
    return archive


def _of_archive(archive: bytes, name: str) -> dict[str, bytes]:
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as packed:
            files = {file: packed.extractfile(f"package/dist/{file}") for file in FILES}
            # A malicious archive may expand to anything; no file of the package is larger than the package.
            return {file: data.read(_ARCHIVE_BYTES) for file, data in files.items() if data is not None}
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise InputError(
            f"{name} is not a package of onnxruntime-web {VERSION} ({reason(error)}); {_OFFLINE}"
        ) from error


def _of_folder(folder: Path) -> dict[str, bytes]:
    places = [folder / below for below in ("dist", "package/dist", "node_modules/onnxruntime-web/dist", ".")]
    place = next((p for p in places if all((p / name).is_file() for name in FILES)), None)
    if place is None:
        raise InputError(
            f"{folder} does not contain onnxruntime-web ({', '.join(FILES)}, directly or in dist/); {_OFFLINE}"
        )
    return {name: _read(place / name) for name in FILES}


def _read(path: Path) -> bytes:
    """Read a file, up to the size of the package."""
    try:
        with path.open("rb") as file:
            return file.read(_ARCHIVE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {_OFFLINE}") from error


def _checked(files: dict[str, bytes], origin: str) -> dict[str, bytes]:
    for name, digest in FILES.items():
        if name not in files or hashlib.sha256(files[name]).hexdigest() != digest:
            raise InputError(
                f"{name} in {origin} is not that of onnxruntime-web {VERSION}; remove it and try again, or {_OFFLINE}"
            )
    return files


def _cache() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "onnx-gradcam" / f"onnxruntime-web-{VERSION}"


def _keep(files: Mapping[str, bytes], cache: Path) -> None:
    """Put the files into the cache, all of them at once."""
    try:
        make_folder(cache)
        with Drafts() as drafts:
            for name, data in files.items():
                drafts.file(cache / name).write_bytes(data)
    except InputError as error:
        raise InputError(f"cannot cache the download: {error}; make {cache} writable, or {_OFFLINE}") from error
