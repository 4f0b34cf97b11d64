"""MXNet's `-symbol.json`: the graph of a network, in the forms of all versions.

Format: nnvm `src/pass/saveload_json.cc`, MXNet `src/nnvm/legacy_json_util.cc`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_gradcam.errors import ModelError

__all__ = ["VARIABLE", "Node", "Symbol", "read_symbol"]

VARIABLE = "null"
"""The operator of nodes that are inputs or weights."""

_LARGEST_FILE = 64 * 2**20
_PARAMETER_MAGIC = b"\x12\x01\0\0\0\0\0\0"

Entry = tuple[int, int]
"""A node and the number of its output."""


@dataclass(frozen=True)
class Node:
    """One node of a symbol.

    Attributes:
        op: the operator, `null` for variables.
        name: of the node.
        attributes: as text, as MXNet writes them.
        inputs: each a node before this one and the number of its output.
    """

    op: str
    name: str
    attributes: Mapping[str, str]
    inputs: tuple[Entry, ...]


@dataclass(frozen=True)
class Symbol:
    """A network without its weights.

    Attributes:
        nodes: in an order in which they can run.
        heads: the outputs.
        version: of the MXNet that wrote it, empty where the file does not say.
        name: of the file, for messages.
    """

    nodes: tuple[Node, ...]
    heads: tuple[Entry, ...]
    version: str
    name: str

    def live(self) -> list[int]:
        """Numbers of the nodes that an output needs, in order."""
        needed = {node for node, _ in self.heads}
        for index in reversed(range(len(self.nodes))):
            if index in needed:
                needed.update(node for node, _ in self.nodes[index].inputs)
        return sorted(needed)


def read_symbol(path: str | Path) -> Symbol:
    """Read and check a `-symbol.json`.

    Raises:
        ModelError: no such file, no JSON, or no graph that could run.
    """
    path = Path(path)
    tree = _json(path)
    name = str(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("nodes"), list) or not isinstance(tree.get("heads"), list):
        raise ModelError(f"{name}: not an MXNet symbol (it has no lists of nodes and heads); give the -symbol.json")
    nodes: list[Node] = []
    for entry in tree["nodes"]:
        nodes.append(_node(entry, nodes, name))
    heads = tuple(_entry(head, len(nodes), f"{name}: an entry of heads") for head in tree["heads"])
    if not heads:
        raise ModelError(f"{name}: the symbol has no outputs; save it again with MXNet")
    return Symbol(tuple(nodes), heads, _version(tree), name)


def _json(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
    except OSError as exc:
        raise ModelError(f"{path}: cannot be read ({exc.strerror or exc}); give the path of a -symbol.json") from exc
    if data.startswith(_PARAMETER_MAGIC):
        raise ModelError(
            f"{path}: holds weights and no graph; in MXNet run net.hybridize(); net(x); net.export(prefix) and give "
            "the -symbol.json and the .params that this writes"
        )
    if len(data) > _LARGEST_FILE:
        raise ModelError(f"{path}: larger than any symbol ({_LARGEST_FILE >> 20} MiB); is it the right file?")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{path}: not valid JSON ({exc}); give the complete -symbol.json") from exc


def _node(entry: Any, before: list[Node], file: str) -> Node:
    where = f"{file}: node {len(before)}"
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("op", "name")):
        raise ModelError(f"{where} has no operator and name; save the symbol again with MXNet")
    op, name = entry["op"], entry["name"]
    where = f"{file}: node {name!r}"
    if not name or not name.isprintable() or not op.isprintable():
        raise ModelError(
            f"{file}: node {len(before)} ({op!r}) has no name that can be written; give it one and save it again"
        )
    # Before 0.9 the operator's attributes are `param` and the user's `attr`; `attr` up to 0.12, `attrs` since.
    attributes: dict[str, str] = {}
    for key in ("attr", "param", "attrs"):
        given = entry.get(key, {})
        if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
            raise ModelError(f"{where}: its {key} is not an object of strings; save the symbol again with MXNet")
        attributes |= given
    inputs = entry.get("inputs", [])
    if not isinstance(inputs, list) or (op == VARIABLE and inputs):
        raise ModelError(f"{where}: its inputs are not what {op!r} takes; save the symbol again with MXNet")
    entries = tuple(_entry(each, len(before), f"{where}: an input") for each in inputs)
    return Node(op, name, attributes, entries)


def _entry(entry: Any, count: int, where: str) -> Entry:
    if (
        not isinstance(entry, list)
        or len(entry) not in (2, 3)
        or not all(isinstance(number, int) and not isinstance(number, bool) for number in entry)
        or entry[1] < 0
    ):
        raise ModelError(f"{where} is not [node, output, version]; save the symbol again with MXNet")
    if not 0 <= entry[0] < count:
        raise ModelError(
            f"{where} names node {entry[0]}, where only the {count} before it can be used; save the symbol again"
        )
    return entry[0], entry[1]


def _version(tree: dict[str, Any]) -> str:
    attributes = tree.get("attrs", tree.get("attr"))
    stamp = attributes.get("mxnet_version") if isinstance(attributes, dict) else None
    number = stamp[1] if isinstance(stamp, list) and len(stamp) == 2 else None
    if not isinstance(number, int) or not 0 < number < 10**6:
        return ""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
