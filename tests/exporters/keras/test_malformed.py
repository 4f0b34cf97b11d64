"""Files that are damaged, hostile or not supported: one sentence each, and no memory or files for what is not there."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="h5py is not installed")

from onnx_gradcam.errors import ExplainError, ExportError  # noqa: E402 - behind the check for h5py
from onnx_gradcam.exporters.keras import read_keras  # noqa: E402

ORACLES = Path(__file__).resolve().parents[2] / "oracles" / "keras"
ARCHIVE, LISTED = ORACLES / "keras_sequential.keras", ORACLES / "tf_keras_sequential.h5"
CONV = ("sequential", "conv")


def refused(path, *words):
    """Assert that reading fails with one sentence with these words in it."""
    with pytest.raises(ExplainError) as caught:
        read_keras(path).model.to_proto()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def members(path=ARCHIVE):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path, held, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return path


def edited(path, change, source=ARCHIVE):
    """The archive with its configuration changed."""
    held = members(source)
    config = json.loads(held["config.json"])
    change(config)
    return packed(path, held | {"config.json": json.dumps(config)})


def layer(config, name):
    return next(entry for entry in config["config"]["layers"] if entry["config"]["name"] == name)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "model.keras"


# ----- the file --------------------------------------------------------------


def test_what_is_no_model(tmp_path):
    refused(tmp_path / "none.keras", "cannot be read")
    refused(tmp_path, "is a folder", "--via tf")
    (tmp_path / "text.keras").write_text("hello")
    refused(tmp_path / "text.keras", "neither a .keras archive nor an HDF5 file")
    (tmp_path / "empty.h5").touch()
    refused(tmp_path / "empty.h5", "neither a .keras archive nor an HDF5 file")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("source", [ARCHIVE, LISTED, ORACLES / "keras_wrapped.keras"], ids=lambda p: p.name)
def test_a_truncated_file(source, part, tmp_path):
    content = source.read_bytes()
    (tmp_path / source.name).write_bytes(content[: int(len(content) * part)])
    refused(tmp_path / source.name, "damaged")


def test_a_changed_byte_in_the_weights_of_an_archive(target):
    content = bytearray(ARCHIVE.read_bytes())
    content[content.find(b"\x89HDF") + 3000] ^= 1
    target.write_bytes(content)
    refused(target, "damaged", "CRC")


def test_changed_bytes_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(7)
    for source in (ARCHIVE, ORACLES / "keras_wrapped.keras"):
        content = source.read_bytes()
        for at in rng.integers(0, len(content), 60):
            broken = bytearray(content)
            broken[at] ^= 1 << int(rng.integers(8))
            (tmp_path / "broken").write_bytes(broken)
            with contextlib.suppress(ExplainError):
                read_keras(tmp_path / "broken").model.to_proto()


def test_a_group_whose_index_is_damaged(monkeypatch):
    def damaged(_group):
        raise RuntimeError("ran off the end of the image buffer")

    monkeypatch.setattr(h5py.Group, "__len__", damaged)
    refused(ARCHIVE, "layer 'conv'", "cannot be read (ran off", "save the file again")


@pytest.mark.parametrize("entry", ["../outside.txt", "/etc/outside", "C:\\outside", "a\\..\\..\\outside"])
def test_an_archive_that_points_outside(entry, target, tmp_path):
    packed(target, members() | {entry: b"x"})
    refused(target, "named outside", "refused")
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


def test_an_archive_with_an_entry_twice(target):
    packed(target, members())
    with zipfile.ZipFile(target, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("config.json", b"{}")
    refused(target, "twice")


def test_archives_that_lack_something(target):
    held = members()
    for name in ("config.json", "metadata.json", "model.weights.h5"):
        packed(target, {k: v for k, v in held.items() if k != name})
        refused(target, f"contains no {name}")
    packed(target, {k: v for k, v in held.items() if k != "model.weights.h5"} | {"model.weights.json": b"{}"})
    refused(target, "shards")
    packed(target, held | {"metadata.json": b"{}"})
    refused(target, "which version")


def test_an_encrypted_archive(target):
    content = bytearray(packed(target, members()).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + offset] |= 1
    target.write_bytes(content)
    refused(target, "encrypted")


def test_archives_that_would_unpack_to_too_much(target):
    packed(target, members() | {"model.weights.h5": bytes(2**25)}, zipfile.ZIP_DEFLATED)
    refused(target, "would unpack", "refused")
    packed(target, members() | {"config.json": b" " * (2**26 + 1)}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    refused(target, "larger than", "refused")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_an_archive_whose_sizes_lie(target):
    content = bytearray(packed(target, members()).read_bytes())
    at = content.find(b"model.weights.h5", content.find(b"PK\x01\x02")) - 46
    content[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    target.write_bytes(content)
    refused(target, "damaged")


# ----- the configuration -----------------------------------------------------


@pytest.mark.parametrize("text", [b"", b"[1", b"[]", b"null", b'{"a":' * 100_000])
def test_a_configuration_that_is_no_json_object(text, target):
    refused(packed(target, members() | {"config.json": text}), "config.json is not")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.clear(), ["neither Functional nor Sequential"]),
        (lambda c: c.update(class_name="MyModel", module="mine"), ["'MyModel' of mine", "--via tf"]),
        (lambda c: c["config"].update(layers=[]), ["lists no layers"]),
        (lambda c: c["config"].update(layers=[7]), ["the invalid layer '7'"]),
        (lambda c: layer(c, "conv")["config"].update(name=None), ["no printable name"]),
        (lambda c: layer(c, "conv")["config"].update(name="a\ud800"), ["no printable name"]),
        (lambda c: layer(c, "conv").update(class_name="Conv2D\n"), ["the invalid layer"]),
        (lambda c: layer(c, "conv")["config"].update(name="pool"), ["two layers are named 'pool'"]),
        (lambda c: layer(c, "conv").update(class_name="Conv2d"), ["did you mean", "'Conv2D'"]),
        (lambda c: layer(c, "conv").update(class_name="Lambda"), ["'conv'", "Lambda", "--via"]),
        (lambda c: layer(c, "conv").update(module="mine", registered_name="Conv2D"), ["class of 'mine'"]),
        (lambda c: layer(c, "conv").update(registered_name="mine>Conv2D"), ["mine>Conv2D", "not Keras's own"]),
        (lambda c: layer(c, "conv").update(registered_name={}), ["class of {}", "not Keras's own"]),
        (lambda c: layer(c, "conv")["config"].update(new_key=3), ["new_key = 3", "unknown"]),
        (lambda c: layer(c, "conv")["config"].update(lora_rank=4), ["lora_rank = 4"]),
        (lambda c: layer(c, "conv")["config"].pop("kernel_size"), ["lacks 'kernel_size'"]),
        (lambda c: layer(c, "conv")["config"].update(kernel_size=["a", "b"]), ["is invalid"]),
        (lambda c: layer(c, "conv")["config"].update(kernel_size=[5, 5]), ["variable 'kernel'", "[3, 3, 3, 5]"]),
        (lambda c: layer(c, "conv")["config"].update(filters=10**9), ["variable 'kernel'"]),
        (lambda c: layer(c, "conv")["config"].update(strides=[0, 0]), ["'conv'"]),
        (lambda c: layer(c, "conv")["config"].update(padding="reflect"), ["'reflect'"]),
        (lambda c: layer(c, "conv")["config"].update(groups=0), ["'conv'"]),
        (lambda c: layer(c, "conv")["config"].update(data_format="middle"), ["'middle'"]),
        (lambda c: layer(c, "conv")["config"].update(activation="mine>wave"), ["activation 'mine>wave'"]),
        (lambda c: layer(c, "conv")["config"].update(use_bias=False), ["1 variables (kernel)", "the file has 2"]),
        (lambda c: layer(c, "conv")["config"].update(dtype="int8"), ["computes in 'int8'"]),
        (lambda c: layer(c, "pool")["config"].update(pool_size=[9, 9]), ["'pool'"]),
        (lambda c: layer(c, "picture")["config"].update(batch_shape="8x8"), ["the shape of input"]),
        (lambda c: layer(c, "conv")["config"].update(strides=float("nan")), ["strides = nan"]),
        (lambda c: layer(c, "conv")["config"].update(dilation_rate=float("inf")), ["dilation_rate = inf"]),
        (
            lambda c: layer(c, "picture")["config"].update(batch_shape=[None, 2**40, 2**40, 3]),
            ["larger than any image"],
        ),
        (lambda c: layer(c, "picture")["config"].update(dtype="int32"), ["'int32'"]),
        (lambda c: layer(c, "picture")["config"].update(dtype={}), ["the dtype {}"]),
        (lambda c: c.update(class_name=[]), ["neither Functional nor Sequential"]),
        (lambda c: layer(c, "picture")["config"].update(batch_shape=[None, 8, 8, 4]), ["'kernel'"]),
    ],
)
def test_a_configuration_that_does_not_fit(change, words, target):
    refused(edited(target, change), str(target), *words)


@pytest.mark.parametrize("kind", ["Bidirectional", "GRU", "LSTM"])
def test_an_unknown_layer_gets_no_far_suggestions(kind, target):
    assert "did you mean" not in refused(edited(target, lambda c: layer(c, "conv").update(class_name=kind)), kind)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["config"].update(output_layers=[["nowhere", 0, 0]]), ["'nowhere'"]),
        (lambda c: c["config"].update(output_layers=7), ["7"]),
        (lambda c: c["config"].update(input_layers=[["block", 0, 0]]), ["not an InputLayer"]),
        (lambda c: layer(c, "block")["inbound_nodes"][0]["kwargs"].update(mask=3), ["mask = 3"]),
        (lambda c: layer(c, "block")["inbound_nodes"][0].update(args=[1.5]), ["constant 1.5"]),
        (lambda c: layer(c, "block")["inbound_nodes"][0].update(kwargs=[1]), ["called with", "[1]"]),
        (lambda c: layer(c, "block")["inbound_nodes"][0]["args"][0].update(class_name=[1]), ["block"]),
        (lambda c: layer(c, "block")["inbound_nodes"].pop(0), ["'block'"]),
        (lambda c: layer(c, "block").update(inbound_nodes=7), ["7"]),
    ],
)
def test_calls_that_do_not_fit(change, words, target):
    refused(edited(target, change, ORACLES / "keras_wrapped.keras"), *words)


def test_dropout_that_is_told_to_work_in_keras_2(target):
    def change(config):
        entry = layer(config, "drop")
        entry["inbound_nodes"][0][0][3]["training"] = True

    refused(edited(target, change, ORACLES / "tf_keras_structure.keras"), "'drop'", "training = True")


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_1.00_224", "efficientnetb0"])
def test_the_name_of_a_network_alone_says_nothing_of_its_preprocessing(name, target):
    edited(target, lambda c: c["config"].update(name=name), ORACLES / "keras_wrapped.keras")
    assert read_keras(target).preprocessing is None


def test_models_in_models_without_end(target):
    def change(config):
        inner = json.loads(json.dumps(layer(config, "head")))
        for _ in range(100):
            inner = {**inner, "config": {**inner["config"], "layers": [inner]}}
        config["config"]["layers"] = [*config["config"]["layers"][:1], inner]

    refused(edited(target, change), "refused")


# ----- the weights -----------------------------------------------------------


def rewritten(path, change, source=LISTED):
    shutil.copy(source, path)
    path.chmod(0o644)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def kernel(file):
    group = file["model_weights/conv"]
    name = next(n for n in group.attrs["weight_names"] if "kernel" in n)
    return group, name


def replaced(make):
    def change(file):
        group, name = kernel(file)
        shape = group[name].shape
        del group[name]
        make(group, name, shape)

    return change


def nothing(group, name, shape):
    pass


def outside(group, name, shape):
    group.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(group, name, shape):
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource("/tmp/other.h5", "x", shape)  # noqa: S108 - never opened
    group.create_virtual_dataset(name, layout)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.attrs.pop("model_config"), ["no model configuration", "only weights?"]),
        (lambda f: f.attrs.pop("keras_version") + f["model_weights"].attrs.pop("keras_version"), ["which version"]),
        (lambda f: f.attrs.modify("keras_version", "1.2.2"), ["Keras 1.2.2"]),
        (lambda f: f.attrs.modify("model_config", "{"), ["model_config is not valid JSON"]),
        (lambda f: f.pop("model_weights"), ["no model configuration"]),
        (lambda f: f["model_weights"].pop("conv"), ["'conv'", "the file has 0"]),
        (replaced(nothing), ["is missing"]),
        (replaced(lambda g, n, _: g.create_dataset(n, data=np.zeros((9, 9), "f4"))), ["shape [9, 9]"]),
        (replaced(lambda g, n, s: g.create_dataset(n, data=np.full(s, np.nan, "f4"))), ["kernel", "contains NaN"]),
        (replaced(lambda g, n, s: g.create_dataset(n, s, "f4", chunks=True)), ["fewer values are stored"]),
        (replaced(lambda g, n, _: g.create_dataset(n, (2**40,), "f4", chunks=(8,))), ["fewer values are stored"]),
        (replaced(lambda g, n, s: g.create_dataset(n, data=np.zeros(s, "S3"))), ["not numeric"]),
        (replaced(lambda g, n, _: g.__setitem__(n, h5py.ExternalLink("/etc/passwd", "/x"))), ["is a link"]),
        (replaced(lambda g, n, _: g.__setitem__(n, h5py.SoftLink("/model_weights"))), ["is a link"]),
        (replaced(outside), ["stored in another file"]),
        (replaced(virtual), ["stored in another file"]),
    ],
)
def test_weights_that_do_not_fit(change, words, tmp_path):
    refused(rewritten(tmp_path / "model.h5", change), *words)


def test_the_version_decides_about_the_activation(tmp_path):
    """The same bytes mean another hard sigmoid in Keras 2 and in Keras 3."""
    slopes = []
    for version in ("2.15.0", "3.4.0"):
        path = tmp_path / f"{version}.keras"

        def change(config):
            layer(config, "conv")["config"]["activation"] = "hard_sigmoid"

        edited(path, change)
        held = members(path) | {"metadata.json": json.dumps({"keras_version": version})}
        graph = read_keras(packed(path, held)).model.core.graph
        slopes.append(next(n for n in graph if n.op_type == "HardSigmoid").attributes["alpha"].value)
    assert slopes == [pytest.approx(0.2), pytest.approx(1 / 6)]


def test_weights_that_are_nan_write_nothing(tmp_path):
    change = replaced(lambda g, n, s: g.create_dataset(n, data=np.full(s, np.nan, "f4")))
    path = rewritten(tmp_path / "model.h5", change)
    with pytest.raises(ExportError, match="contains NaN"):
        read_keras(path).model.save(tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.h5"]
