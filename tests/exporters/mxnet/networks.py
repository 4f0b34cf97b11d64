"""Symbols and parameter files written by hand, in every version of the format."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = ["float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool"]


def array(content: np.ndarray, version: int = V2) -> bytes:
    """One array as `NDArray::Save` of that version writes it; 0 is the oldest, without a magic number."""
    shape = content.shape
    if version == 0:
        head = struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    else:
        storage = b"" if version == V1 else struct.pack("<i", 0)
        head = struct.pack("<I", version) + storage + struct.pack(f"<i{len(shape)}q", len(shape), *shape)
    return head + struct.pack("<3i", 1, 0, DTYPES.index(content.dtype.name)) + content.tobytes()


def name(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def params(arrays: list[bytes], names: list[bytes], count: int | None = None, named: int | None = None) -> bytes:
    """A parameter file; the counts may lie."""
    return b"".join(
        [
            struct.pack("<3Q", 0x112, 0, len(arrays) if count is None else count),
            *arrays,
            struct.pack("<Q", len(names) if named is None else named),
            *names,
        ]
    )


def variable(text: str) -> str:
    """An input of the network."""
    return text


class Network:
    """A symbol that grows node by node, and random weights."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder, self.prefix = folder, prefix
        self.nodes: list[dict] = []
        self.weights: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(0)

    def _index(self, name: str) -> int:
        for i, node in enumerate(self.nodes):
            if node["name"] == name:
                return i
        self.nodes.append({"op": "null", "name": name, "inputs": []})
        return len(self.nodes) - 1

    def weight(self, name: str, shape: tuple[int, ...], dtype: type = np.float32) -> str:
        self.weights[f"arg:{name}"] = self.rng.normal(0, 0.1, shape).astype(dtype)
        return name

    def node(self, op: str, name: str, *inputs: str, **attributes: str) -> str:
        entries = [[self._index(i), 0, 0] for i in inputs]
        self.nodes.append({"op": op, "name": self.prefix + name, "attrs": attributes, "inputs": entries})
        return self.prefix + name

    def write(self, *heads: str) -> tuple[Path, Path]:
        symbol, weights = self.folder / "n-symbol.json", self.folder / "n-0000.params"
        entries = [[self._index(head), 0, 0] for head in heads]
        symbol.write_text(json.dumps({"nodes": self.nodes, "heads": entries}), encoding="utf-8")
        weights.write_bytes(params([array(w) for w in self.weights.values()], [name(k) for k in self.weights]))
        return symbol, weights
