"""What the framework called each layer: the table of layer names, from what an exporter wrote on the nodes.

An exporter notes on a node which modules it belongs to: PyTorch's dynamo exporter in the node's metadata, TorchScript
and TensorFlow in the names of nodes and tensors. The tensor that leaves the nodes of a module is the module's output,
so `layer4.1` stands for a tensor although no tensor is called that.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from onnx_gradcam.errors import TargetError, near_matches
from onnx_gradcam.graph.builder import PREFIX, Builder, Value
from onnx_gradcam.options import Biases

__all__ = ["DYNAMO_SCOPES", "LayerNames", "biases_of", "innermost", "noted_scopes"]

DYNAMO_SCOPES = "pkg.torch.onnx.name_scopes"
"""The key under which PyTorch's dynamo exporter lists the modules of a node, outermost first, and the call itself."""

_LONGEST_NOTE = 10_000
_MEASURES = {"Shape", "Size"}
_FOLDED_WEIGHT = "onnx::Conv"
"""How TorchScript's exporter names the weights of a convolution that it computed from those of two modules."""

_MERGED_NOTE, _MERGED_NODE, _ADDED_BIAS = "batch_norm", "node_Conv", "weight_bias"
"""What dynamo's exporter writes where it merged two modules: the call of the second, a node of its own, and the bias of
a convolution that had none."""

_MERGED_BY_TENSORFLOW, _TENSORFLOW_BIAS = ("FusedBatchNorm", "_fused_bn"), "BiasAdd"
"""What tf2onnx and TFLite write where they merged two operators; and what the bias is named after, if there was one."""

_MERGED_BY_ONNX_RUNTIME = "ConvBnFusion"

_VARIABLES = {"model", "net", "network", "self", "module"}
"""What a whole network is called in code: `model.layer4` is `layer4`."""

_ATOM = re.compile(r"""\[\s*['"]?([^\[\]'"]+?)['"]?\s*\]|([^./\[\]]+)""")
_REPEATED = re.compile(r"(.+)_\d+")
_SHOWN = 5

Atoms = tuple[str, ...]
Scopes = tuple[str, ...]
"""The modules of a node by their full names, outermost first."""


def noted_scopes(node: ir.Node) -> list[str]:
    """What dynamo's exporter notes on a node: its modules, outermost first, then the call; empty if damaged."""
    text = node.metadata_props.get(DYNAMO_SCOPES, "")
    if not text or len(text) > _LONGEST_NOTE:
        return []
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return scopes if isinstance(scopes, list) and all(isinstance(scope, str) for scope in scopes) else []


def biases_of(node: ir.Node) -> Biases:
    """Whether the bias of a convolution is one of the framework's, or merged with that of a normalization behind it.

    Exporters multiply a batch normalization into the convolution in front of it. A convolution that had no bias has
    that of the normalization then, which still is one bias. Names tell both, but for some exporters only the first.
    """
    if node.op_type not in {"Conv", "ConvTranspose"} or len(node.inputs) < 3 or node.inputs[2] is None:
        return "apart"
    weight, bias = (_stored_name(value) for value in node.inputs[1:3])
    notes, output = noted_scopes(node), str(node.outputs[0].name)
    if any(sign in name for sign in _MERGED_BY_TENSORFLOW for name in (bias, output)):
        return "merged" if _TENSORFLOW_BIAS in bias else "apart"
    if notes:
        # Of transposed convolutions only a normalization's bias counts, which is lost in theirs.
        counted = node.op_type == "ConvTranspose" or _ADDED_BIAS not in bias
        return "merged" if counted and _MERGED_NOTE in notes[-1] else "apart"
    if _ADDED_BIAS in bias:
        return "apart"
    # Numbers are what older exporters and optimizers call a tensor that they computed.
    computed = bias.isdecimal() or weight.startswith((_FOLDED_WEIGHT, _MERGED_BY_ONNX_RUNTIME))
    return "unknown" if computed or str(node.name).startswith(_MERGED_NODE) else "apart"


def _stored_name(value: ir.Value | None) -> str:
    """The name of a weight as the file stores it, in front of its dequantisation or cast."""
    while value is not None and (node := value.producer()) is not None and node.inputs:
        value = node.inputs[0]
    return "" if value is None else str(value.name)


def innermost(node: ir.Node) -> str:
    """The full name of the module that a node belongs to; empty if nothing tells it."""
    return (_scopes(node) or ("",))[-1]


class LayerNames:
    """The layers of a model by the framework's names.

    Args:
        t: the builder over the model.
        carried: tensors by layer, as the model's metadata has them.
        alive: the tensors on the way from the image to the score, which others of a layer give way to.
    """

    def __init__(self, t: Builder, carried: Mapping[str, str], alive: set[ir.Value]) -> None:
        self._t = t
        self._carried = carried
        self._alive = alive
        self._nodes = _nodes_by_path(t)
        self._paths: dict[Atoms, list[str]] = defaultdict(list)
        self._prefixes: set[Atoms] = set()
        for path in dict.fromkeys([*carried, *self._nodes]):
            atoms = _atoms(path)
            self._paths[atoms].append(path)
            self._prefixes.update(atoms[:end] for end in range(1, len(atoms) + 1))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._carried, *self._nodes]))

    def find(self, layer: str) -> tuple[Value, str] | None:
        """The tensor that a layer stands for, and how it was found; `None` if there is no such layer.

        `layer` is the name of a tensor or a node, the framework's name of a layer (`layer4.1`), the end of one
        (`out_relu` for `mobilenetv2/out_relu`), or what you write in code (`model.layer4[-1]`).

        Raises:
            TargetError: several tensors could be meant.
        """
        if layer in self._carried and (value := self._t.find(self._carried[layer])) is not None:
            return value, f"layer {layer!r}, as requested"
        value = self._t.find(layer)
        if value is not None:
            if layer in self._nodes and self.outputs(layer) not in ([], [value.core]):
                self._ask(layer, [value.core, *self.outputs(layer)])
            return value, f"tensor {layer!r}, as requested"
        node = next((n for n in self._t.nodes if n.name == layer and layer), None)
        if node is not None:
            return self._t.wrap(node.outputs[0]), f"the output of node {layer!r}, as requested"
        return self._module(layer)

    def outputs(self, path: str) -> list[ir.Value]:
        """The tensors that leave the nodes of a layer, in graph order: several if it is called more than once."""
        if path in self._carried:
            value = self._t.find(self._carried[path])
            return [] if value is None else [value.core]
        inside = set(self._nodes.get(path, ()))
        leaving = [o for node in self._nodes.get(path, ()) for o in node.outputs if _leaves(o, inside)]
        leaving = [o for o in leaving if self._t.wrap(o).is_float]
        return [o for o in leaving if o in self._alive] or leaving

    def single(self) -> dict[str, ir.Value]:
        """The tensor of every layer that stands for one, in the order of the nodes."""
        outputs = {path: self.outputs(path) for path in self}
        single = {path: values[0] for path, values in outputs.items() if len(values) == 1}
        return {path: value for path, value in single.items() if not _is_folded(path, value)}

    def near(self, layer: str, others: Sequence[str]) -> str:
        """The tail of a message that suggests names like `layer`, of this table and of `others`; empty without any."""
        atoms = self._counted(_atoms(layer), layer)
        plain = ".".join(atoms[1:] if len(atoms) > 1 and atoms[0] in _VARIABLES else atoms)
        return near_matches(plain, [*self, *others])

    def _module(self, layer: str) -> tuple[Value, str] | None:
        atoms = self._counted(_atoms(layer), layer)
        paths = [path for known in _ending(atoms, self._paths) for path in self._paths[known]]
        values = list(dict.fromkeys(value for path in paths for value in self.outputs(path)))
        if not values:
            return None
        if len(values) > 1:
            self._ask(layer, values)
        path = min(paths, key=len)
        how = f"layer {path!r}, as requested" + ("" if path == layer else f" ({layer!r})")
        if _is_folded(path, values[0]):
            raise TargetError(
                f"the exporter merged layer {path!r} with the normalization behind it; name its tensor "
                f"{values[0].name!r} to explain what both compute"
            )
        return self._t.wrap(values[0]), how

    def _counted(self, atoms: Atoms, layer: str) -> Atoms:
        """The name with indices from the end, such as -1, counted from the start."""
        place = next((i for i, atom in enumerate(atoms) if re.fullmatch(r"-\d{1,6}", atom)), None)
        if place is None:
            return atoms
        whole = not set(atoms[:place]) - _VARIABLES
        parents = _ending(atoms[:place], self._prefixes) or [()] * whole
        if len(parents) != 1:
            return atoms
        depth = len(parents[0])
        below = {p[depth] for p in self._prefixes if len(p) > depth and p[:depth] == parents[0]}
        count = 1 + max((int(atom) for atom in below if atom.isdecimal()), default=-1)
        index = count + int(atoms[place])
        if index < 0:
            raise TargetError(
                f"layer {layer!r} is out of range; {'.'.join(parents[0]) or 'the model'!r} has {count} numbered layers"
            )
        return self._counted((*parents[0], str(index), *atoms[place + 1 :]), layer)

    def _ask(self, layer: str, values: Sequence[ir.Value]) -> None:
        names = [str(v.name) if v.name != layer else str(p.name) for v in values if (p := v.producer()) is not None]
        more = f" ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
        raise TargetError(
            f"layer {layer!r} stands for {len(names)} tensors; name one of them: "
            f"{', '.join(map(repr, names[:_SHOWN]))}{more}"
        )


def _atoms(name: str) -> Atoms:
    """The parts of a name: `net.features[8][2]` has four."""
    return tuple(bracketed or plain for bracketed, plain in _ATOM.findall(name))


def _ending(atoms: Atoms, known: Mapping[Atoms, object] | set[Atoms]) -> list[Atoms]:
    """The names that `atoms` stand for: the same, else those that end like it, with the variable left out if none."""
    if atoms in known:
        return [atoms]
    ending = [name for name in known if name[-len(atoms) :] == atoms] if atoms else []
    if not ending and len(atoms) > 1 and atoms[0] in _VARIABLES:
        return _ending(atoms[1:], known)
    return ending


def _leaves(value: ir.Value, inside: set[ir.Node]) -> bool:
    """Whether a tensor is read, for more than its shape, by a node that is not `inside`."""
    readers = [use.node for use in value.uses()]
    return value.is_graph_output() or any(n not in inside and n.op_type not in _MEASURES for n in readers)


def _is_folded(path: str, value: ir.Value) -> bool:
    """Whether a layer is a convolution that TorchScript's exporter merged with the normalization behind it."""
    node = value.producer()
    weight = node.inputs[1] if node is not None and len(node.inputs) > 1 else None
    if node is None or weight is None or not str(weight.name).startswith(_FOLDED_WEIGHT):
        return False
    # Of a module around both, the tensor is the output.
    return innermost(node) == path


def _nodes_by_path(t: Builder) -> dict[str, list[ir.Node]]:
    """The nodes of every module, in graph order."""
    scopes = {node: _scopes(node) for node in t.nodes}
    if not any(scopes.values()):
        return {}
    for node in reversed(t.nodes):
        if scopes[node] is None:
            # What optimizers put in between belongs to the modules that all of its readers are in.
            readers = (scopes.get(use.node) for o in node.outputs for use in o.uses())
            scopes[node] = _shared([paths for paths in readers if paths is not None])
    nodes: dict[str, list[ir.Node]] = defaultdict(list)
    for node, paths in scopes.items():
        for path in dict.fromkeys(paths or ()):
            nodes[path].append(node)
    for path in list(nodes):
        first = _REPEATED.fullmatch(path)
        if first is not None and first.group(1) in nodes and _calls_again(path, nodes[path]):
            nodes[first.group(1)] += nodes[path]
    return dict(nodes)


def _calls_again(path: str, nodes: Sequence[ir.Node]) -> bool:
    """Whether nodes are a further call of a module, numbered by TorchScript (`relu_1`), and no module of that name."""
    weights = [str(i.name) for node in nodes for i in node.inputs if i is not None]
    return str(nodes[0].name).startswith("/") and not any(name.startswith(f"{path}.") for name in weights)


def _scopes(node: ir.Node) -> Scopes | None:
    """The modules of a node; `None` if nothing tells them."""
    noted = noted_scopes(node)
    if noted:
        return tuple(scope for scope in noted[:-1] if scope)
    for name in (*(str(o.name) for o in node.outputs), str(node.name)):
        # TFLite joins the names of what it fused, the last operator first.
        joined = name.split(";")[0]
        if "/" in joined and not joined.startswith(PREFIX):
            first, *parts = joined.split("/")[:-1]
            return tuple("/".join([first, *parts[:end]]) for end in range(len(parts) + 1)) if first else _modules(parts)
    return None


def _modules(parts: Sequence[str]) -> Scopes:
    """Full names from TorchScript's, which leave out what comes before a module's own name.

    The modules `layer4`, `layer4.1` and `layer4.1.conv1` are written as `layer4`, `layer4.1` and `conv1`.
    """
    atoms: list[str] = []
    paths = []
    for part in parts:
        own = part.split(".")
        depth = next((i for i in range(1, len(own)) if atoms[-i:] == own[:i]), 0)
        atoms = [*atoms[: len(atoms) - depth], *own]
        paths.append(".".join(atoms))
    return tuple(paths)


def _shared(scopes: Sequence[Scopes]) -> Scopes:
    """The modules that all have in common."""
    return tuple(paths[0] for paths in zip(*scopes, strict=False) if len(set(paths)) == 1) if scopes else ()
