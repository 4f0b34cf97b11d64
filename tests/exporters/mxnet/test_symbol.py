"""Symbols that no MXNet wrote."""

from __future__ import annotations

import json

import pytest

from onnx_gradcam.errors import ExportError, InputError
from onnx_gradcam.exporters.mxnet.symbols import read_symbol

DATA = {"op": "null", "name": "data", "inputs": []}


def relu(*inputs, **more):
    return {"op": "relu", "name": "y", "inputs": list(inputs)} | more


def symbol(*nodes, heads=((1, 0, 0),)):
    return {"nodes": [DATA, *nodes], "heads": [list(h) for h in heads]}


DAMAGE = {
    "list": ([], "not an MXNet symbol"),
    "no_nodes": ({"heads": []}, "not an MXNet symbol"),
    "nodes_object": ({"nodes": {}, "heads": []}, "not an MXNet symbol"),
    "no_heads": (symbol(relu([0, 0, 0]), heads=()), "the symbol has no outputs"),
    "node_text": (symbol("relu"), "node 1 has no operator and name"),
    "no_op": (symbol({"name": "y", "inputs": []}), "node 1 has no operator and name"),
    "name_number": (symbol({"op": "relu", "name": 3, "inputs": []}), "node 1 has no operator and name"),
    "name_empty": (symbol({"op": "relu", "name": "", "inputs": []}), "has no printable name"),
    "name_control": (symbol(relu([0, 0, 0]) | {"name": "y\n\x1b[31m"}), "has no printable name"),
    "op_control": (symbol(relu([0, 0, 0]) | {"op": "relu\n\x1b[31m"}), "has no printable name"),
    "attrs_list": (symbol(relu([0, 0, 0], attrs=[1])), "node 'y': its attrs is not an object of strings"),
    "attrs_number": (symbol(relu([0, 0, 0], param={"a": 1})), "node 'y': its param is not an object of strings"),
    "inputs_object": (symbol(relu() | {"inputs": {}}), "node 'y': its inputs do not fit 'relu'"),
    "variable_inputs": (symbol({"op": "null", "name": "w", "inputs": [[0, 0]]}), "node 'w': its inputs do not fit"),
    "input_number": (symbol(relu(0)), r"an input is not \[node, output, version\]"),
    "input_short": (symbol(relu([0])), r"an input is not \[node"),
    "input_text": (symbol(relu(["0", 0, 0])), r"an input is not \[node"),
    "input_float": (symbol(relu([0.0, 0, 0])), r"an input is not \[node"),
    "input_bool": (symbol(relu([False, 0, 0])), r"an input is not \[node"),
    "input_negative_output": (symbol(relu([0, -1, 0])), r"an input is not \[node"),
    "itself": (symbol(relu([1, 0, 0])), "an input refers to node 1, but only 1 precede it"),
    "forward": (symbol(relu([2, 0, 0]), relu([1, 0, 0])), "an input refers to node 2, but only 1"),
    "negative": (symbol(relu([-1, 0, 0])), "an input refers to node -1"),
    "head": (symbol(relu([0, 0, 0]), heads=[(9, 0, 0)]), "an entry of heads refers to node 9"),
    "head_huge": (symbol(relu([0, 0, 0]), heads=[(10**30, 0, 0)]), "an entry of heads refers to node 1000000"),
}


def written(folder, data: bytes):
    path = folder / "n-symbol.json"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_symbol(tmp_path, kind):
    tree, message = DAMAGE[kind]
    path = written(tmp_path, json.dumps(tree).encode())
    with pytest.raises(ExportError, match=message) as caught:
        read_symbol(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000, b'{"nodes": ' + b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}"],
    ids=["empty", "truncated", "binary", "deep", "deep_inside", "long_number"],
)
def test_no_json(tmp_path, data):
    with pytest.raises(ExportError, match="not valid JSON"):
        read_symbol(written(tmp_path, data))


def test_a_file_too_large(tmp_path):
    path = tmp_path / "n-symbol.json"
    with path.open("wb") as stream:
        stream.truncate(2**27)
    with pytest.raises(ExportError, match="larger than any symbol"):
        read_symbol(path)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_symbol(tmp_path / "none-symbol.json")


@pytest.mark.parametrize(
    ("stamp", "version"),
    [(["int", 10901], "1.9.1"), (["int", 1100], "0.11.0"), (["int", -3], ""), (["int", "x"], ""), (3, ""), ([], "")],
)
def test_the_version(tmp_path, stamp, version):
    tree = symbol(relu([0, 0, 0])) | {"attrs": {"mxnet_version": stamp}}
    assert read_symbol(written(tmp_path, json.dumps(tree).encode())).version == version


def test_only_what_an_output_needs_is_live(tmp_path):
    tree = symbol(relu([0, 0]), {"op": "tanh", "name": "dead", "inputs": [[1, 0]]})
    assert read_symbol(written(tmp_path, json.dumps(tree).encode())).live() == [0, 1]
