"""Where onnxruntime-web comes from: only the published bytes are taken, from wherever they come."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import tarfile
import threading

import pytest

from onnx_gradcam.errors import InputError
from onnx_gradcam.web import runtime_files as module
from onnx_gradcam.web.runtime_files import FILES, runtime_files

CONTENTS = {name: f"the contents of {name}".encode() for name in FILES}


def packed(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in contents.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A small package in the place of the published one, a cache of its own, and no registry that answers."""
    archive = packed(CONTENTS)
    monkeypatch.setattr(module, "FILES", {name: hashlib.sha256(data).hexdigest() for name, data in CONTENTS.items()})
    monkeypatch.setattr(module, "_ARCHIVE_SHA512", hashlib.sha512(archive).hexdigest())
    monkeypatch.setattr(module, "_cache", lambda: tmp_path / "cache")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9/")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return archive


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """A registry on this computer; what it serves lies in the folder."""
    root = tmp_path / "registry"
    place = root / "npm" / "onnxruntime-web" / "-"
    place.mkdir(parents=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_address[1]}/npm")
        yield place / f"onnxruntime-web-{module.VERSION}.tgz"
        server.shutdown()
        thread.join()


def test_the_download_is_kept(published, registry):
    registry.write_bytes(published)
    said = []
    assert runtime_files(notify=said.append) == CONTENTS
    assert len(said) == 1
    registry.unlink()
    assert runtime_files(notify=said.append) == CONTENTS
    assert len(said) == 1


def test_a_changed_package_is_refused(published, registry, tmp_path):
    registry.write_bytes(packed({**CONTENTS, "ort.wasm.min.mjs": b"evil"}))
    with pytest.raises(InputError, match=r"is not the published onnxruntime-web 1\.30\.0; .*npm pack"):
        runtime_files()
    assert not (tmp_path / "cache").exists()


def test_a_changed_cache_is_refused(published, registry, tmp_path):
    registry.write_bytes(published)
    runtime_files()
    (tmp_path / "cache" / "ort.wasm.min.mjs").write_bytes(b"evil")
    with pytest.raises(InputError, match=r"ort\.wasm\.min\.mjs in .*cache.* is not that of onnxruntime-web"):
        runtime_files()


@pytest.mark.parametrize("below", ["dist", "package/dist", "node_modules/onnxruntime-web/dist", "."])
def test_an_unpacked_package(published, tmp_path, below):
    place = tmp_path / "given" / below
    place.mkdir(parents=True)
    for name, data in CONTENTS.items():
        (place / name).write_bytes(data)
    assert runtime_files(tmp_path / "given") == CONTENTS


def test_the_file_of_npm_pack(published, tmp_path):
    (tmp_path / "o.tgz").write_bytes(published)
    assert runtime_files(tmp_path / "o.tgz") == CONTENTS


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda p: p.write_bytes(b"no archive"), "is not a package of onnxruntime-web"),
        (lambda p: p.write_bytes(packed(CONTENTS)[:100]), "is not a package of onnxruntime-web"),
        (lambda p: p.write_bytes(packed({"a": b""})), "is not a package of onnxruntime-web"),
        (lambda p: p.write_bytes(packed(dict.fromkeys(FILES, b"x"))), "is not that of onnxruntime-web"),
        (lambda p: p.mkdir(), "does not contain onnxruntime-web"),
        (lambda _: None, "does not contain onnxruntime-web"),
    ],
)
def test_what_is_no_package_is_refused(published, tmp_path, made, message):
    made(tmp_path / "given")
    with pytest.raises(InputError, match=message):
        runtime_files(tmp_path / "given")


def test_offline_says_what_to_do(published):
    with pytest.raises(InputError, match=r"cannot download .*; fetch it elsewhere with `npm pack .* --runtime"):
        runtime_files()


@pytest.mark.parametrize("address", ["file:///etc", "ftp://host/", "nonsense", "https://"])
def test_other_addresses_are_refused(published, monkeypatch, address):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", address)
    with pytest.raises(InputError, match="is not an https:// address"):
        runtime_files()
