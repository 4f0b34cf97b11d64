"""Read an untrusted ONNX file, and bring it to the one form that the rest of the package expects.

The ONNX C API copies what it is given. So it is given a *skeleton*: the model with a graph input in place of each
weight above a kilobyte. A model of several gigabytes costs no more than its nodes.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, external_data_helper, inliner, version_converter

from onnx_gradcam.errors import ExplainError, InputError, ModelError, UnsupportedError
from onnx_gradcam.files import ModelSource, model_data, read_file

__all__ = [
    "MIN_OPSET",
    "MOST_INLINED_BYTES",
    "MOST_INLINED_NODES",
    "MOST_NESTED_CALLS",
    "invalid_models_refused",
    "normalise",
    "opset_of",
    "read_opset",
    "read_proto",
    "skeleton",
]

MIN_OPSET = 18
"""The lowest opset that models are converted to: from here on nearly all function bodies exist, and axes are inputs."""

MOST_INLINED_NODES = 50_000
"""Nodes of the largest model that inlining functions may produce."""

MOST_INLINED_BYTES = 2**30
"""Bytes of the functions, with their constants, in the largest such model."""

MOST_NESTED_CALLS = 100
"""The longest chain of functions that call each other; ONNX's inliner is recursive, and some versions refuse more."""

MIN_IR_VERSION = 8
_SMALL_TENSOR_BYTES = 1000
_NUMPY_BROADCASTING = 7
"""The opset from which on PRelu aligns its slope with the last axes of its input; before, with the channels."""

_NAMED_COORDINATES = 11
"""The opset from which on Resize says where it samples; before, at the index divided by the scale."""

_INDICES = {TensorProto.INT32, TensorProto.INT64}
_LONGEST_VECTOR = 2**16
_LARGEST_INPUT = 2**32
"""Numbers that an input may declare: 17 GB in float32. Of more, ONNX's inference may try to write out each."""

_LONGEST_NORMALIZATION = 3
"""Outputs that BatchNormalization has since opset 14; before, five stand for training."""

_DEFAULT_DOMAINS = ("", "ai.onnx")
_POOLS = {"AveragePool", "LpPool", "MaxPool"}
_OTHER_FORMATS = (
    (b"ORTM", 4, "an ONNX Runtime (.ort) model; use the .onnx model that it was converted from"),
    (b"TFL3", 4, "a TFLite model; convert it with 'onnx-gradcam export tflite'"),
    (b"\x89HDF", 0, "an HDF5 file; convert a Keras model with 'onnx-gradcam export keras'"),
    (b"PK\x03\x04", 0, "a ZIP archive; convert a Keras or PyTorch model with 'onnx-gradcam export keras|pytorch'"),
    (b"\x80\x02", 0, "a pickle; convert a PyTorch model with 'onnx-gradcam export pytorch'"),
    (b'{"', 8, "a safetensors file, weights alone; give it to 'onnx-gradcam export pytorch' with --weights"),
    (b"\x12\x01\0\0\0\0\0\0", 0, "weights of MXNet; convert them and their symbol with 'onnx-gradcam export mxnet'"),
    (b"{", 0, "a JSON file; convert a symbol of MXNet and its .params with 'onnx-gradcam export mxnet'"),
)
"""First bytes of other model formats, where they start, and what to do with such a file."""


def read_proto(source: ModelSource) -> tuple[onnx.ModelProto, Path | None]:
    """Parse a model, and find the folder that external weights are relative to (`None` for bytes and protos).

    Raises:
        ModelError: no such file, not an ONNX model, or weights that are missing or outside of the model's folder.
    """
    data = model_data(source)
    if isinstance(data, onnx.ModelProto):
        proto, folder, name = data, None, "the model"
    elif isinstance(data, bytes):
        proto, folder, name = _parse(data, "the model"), None, "the model"
    else:
        path = Path(data)
        try:
            data = read_file(path)
        except InputError as exc:
            raise ModelError(str(exc)) from exc
        proto, folder, name = _parse(data, str(path)), path.resolve().parent, str(path)
    _check_fields(proto, name)
    if not proto.graph.node and proto.graph.output:
        raise ModelError(f"{name}: the graph has no nodes, so there is nothing to explain; is it the right file?")
    if not proto.graph.node:
        raise ModelError(f"{name} is not an ONNX model (it has no graph); is it the right file, and complete?")
    _check_external_data(proto, folder, name)
    _read_small_tensors(proto, folder)
    _check_inner_data(proto, name)
    return proto, folder


@contextlib.contextmanager
def invalid_models_refused(source: ModelSource) -> Iterator[None]:
    """Raise what ONNX's checker says of a model where an error shows that its graph cannot be what it says it is.

    The checker's full inference is not run first, because it refuses models that runtimes accept.

    Raises:
        ModelError: the model is not valid, and the block failed; errors of valid models stay what they are.
    """
    try:
        yield
    except (ExplainError, MemoryError):
        raise
    except Exception as exc:
        objection = _objection(source)
        if not objection:
            raise
        raise ModelError(f"the model is not valid ONNX: {objection}; export it again with a current exporter") from exc


def _objection(source: ModelSource) -> str:
    """What the checker says against a model, in one line; empty if it says nothing."""
    try:
        proto, _ = read_proto(source)
        small, _ = normalise(proto)
        onnx.checker.check_model(small, full_check=True)
        onnx.shape_inference.infer_shapes(small, check_type=True, strict_mode=True, data_prop=True)
    except Exception as exc:  # noqa: BLE001 - every error is an objection
        return " ".join(str(exc).split())[:300] or type(exc).__name__
    return ""


def read_opset(source: ModelSource) -> int:
    """The version of the default operator set that a model was written for; errors as of `read_proto`."""
    return opset_of(read_proto(source)[0])


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(data)
    except (DecodeError, ValueError, RuntimeError) as exc:
        for magic, start, advice in _OTHER_FORMATS:
            if data.startswith(magic, start):
                raise ModelError(f"{name} is not an ONNX model but {advice}") from exc
        raise ModelError(f"{name} is not an ONNX model ({exc}); is the file complete?") from exc


def _check_external_data(proto: onnx.ModelProto, folder: Path | None, name: str) -> None:
    """Refuse weights that are missing or outside of the model's folder: an untrusted file may name any path."""
    # `external_data_helper` leaves out sparse initializers, graphs in functions and training graphs.
    for tensor in filter(
        external_data_helper.uses_external_data, (m for m in _messages(proto) if isinstance(m, TensorProto))
    ):
        keys = Counter(entry.key for entry in tensor.external_data)
        if max(keys.values(), default=0) > 1:
            # Readers disagree on which of them counts.
            raise ModelError(f"{name}: weight {tensor.name!r} has two positions in files; refused")
        if folder is None:
            raise ModelError(f"{name}: weight {tensor.name!r} is in another file; load the model from its path")
        try:
            info = external_data_helper.ExternalDataInfo(tensor)
            resolved = (folder / info.location).resolve(strict=True)
        except OSError as exc:
            raise ModelError(f"{name}: the weights file {info.location!r} is missing; put it beside the model") from exc
        except (RuntimeError, ValueError) as exc:
            raise ModelError(
                f"{name}: weight {tensor.name!r} has no valid position in a file ({exc}); refused"
            ) from exc
        if Path(info.location).is_absolute() or not resolved.is_relative_to(folder):
            raise ModelError(f"{name}: weight {tensor.name!r} is outside of the model's folder; refused")
        if not resolved.is_file():
            raise ModelError(
                f"{name}: {info.location!r}, which should hold weight {tensor.name!r}, is not a file; refused"
            )
        stat = resolved.stat()
        if stat.st_nlink > 1:
            raise ModelError(f"{name}: the weights file {info.location!r} is a hard link; copy it instead")
        size = _bytes_of(tensor, name)
        length = size if info.length is None else info.length
        if length < size or (info.offset or 0) + length > stat.st_size:
            raise ModelError(f"{name}: the weights file {info.location!r} is truncated; fetch it again")


def _read_small_tensors(proto: onnx.ModelProto, folder: Path | None) -> None:
    """Take small tensors of other files into the model, in place: they may be shapes, axes and other settings."""
    for tensor in (t for t in proto.graph.initializer if external_data_helper.uses_external_data(t)):
        if _bytes_of(tensor, "the model") <= _SMALL_TENSOR_BYTES:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


def _check_fields(proto: onnx.ModelProto, name: str) -> None:
    """Refuse text that is not UTF-8, types that ONNX does not have, and inputs that no computer can hold."""
    types = set(TensorProto.DataType.values())
    try:
        for message in _messages(proto):
            if isinstance(message, onnx.TypeProto.Tensor) and message.elem_type not in types:
                raise ModelError(f"{name}: a tensor is of the unknown type {message.elem_type}; export the model again")
    except UnicodeDecodeError as exc:
        raise ModelError(f"{name}: the file is damaged (a name in it is not UTF-8 text); fetch it again") from exc
    for info in proto.graph.input:
        sizes = [dim.dim_value for dim in info.type.tensor_type.shape.dim if dim.dim_value > 0]
        if math.prod(sizes) > _LARGEST_INPUT:
            raise ModelError(
                f"{name}: the input {info.name[:100]!r} declares {' x '.join(map(str, sizes[:8]))} numbers, more than "
                "fit in memory; export the model with the true size"
            )


def _messages(message: Message) -> Iterator[Message]:
    """The messages in a message, itself first; a `UnicodeDecodeError` for damaged text."""
    yield message
    if isinstance(message, TensorProto):
        # The fields of a tensor are not listed, which would copy its content.
        _decode(message.name)
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in (value,) if isinstance(value, Message) else value:
                yield from _messages(part)
        elif field.type == field.TYPE_STRING:
            for text in (value,) if isinstance(value, (str, bytes)) else value:
                _decode(text)


def _decode(text: str | bytes) -> None:
    """Some versions of protobuf give damaged text as bytes, others raise the error themselves."""
    if isinstance(text, bytes):
        text.decode()


def _check_inner_data(proto: onnx.ModelProto, name: str) -> None:
    """Refuse weights with too few or too many bytes for their shapes: the checker does not see large ones."""
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.STRING and not tensor.HasField("raw_data"):
            continue
        size = _bytes_of(tensor, name)
        if tensor.HasField("raw_data") and len(tensor.raw_data) != size:
            raise ModelError(
                f"{name}: weight {tensor.name!r} has {len(tensor.raw_data)} bytes, but its shape and type need {size}; "
                "fetch the file again"
            )


def _bytes_of(tensor: TensorProto, name: str) -> int:
    """The size of the content of a tensor by its shape and type."""
    try:
        bits = int(ir.DataType(tensor.data_type).bitwidth)
    except (TypeError, ValueError) as exc:
        raise ModelError(
            f"{name}: weight {tensor.name!r} is of the unknown type {tensor.data_type}; export the model again"
        ) from exc
    return (math.prod(int(d) for d in tensor.dims) * bits + 7) // 8


def normalise(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, TensorProto]]:
    """Convert a model to opset 18 or above, with functions inlined and without initializers among the inputs.

    Returns:
        The skeleton, with the weights as its last graph inputs, and the weights by name, neither copied nor read.

    Raises:
        ModelError: the model is invalid, or cannot be converted to opset 18.
        UnsupportedError: an output is no tensor but a map of class names.
    """
    small = skeleton(proto)
    # Before the checker: versions below 4 list weights among the inputs, which ONNX Runtime's optimiser does not do.
    small.ir_version = max(small.ir_version, MIN_IR_VERSION)
    opset = opset_of(small)
    if small.functions:
        _check_inlined_size(small)
    try:
        if not all(o.type.tensor_type.HasField("shape") for o in small.graph.output):
            # Some exporters leave it out and runtimes do not need it, but the checker does.
            small = onnx.shape_inference.infer_shapes(small)
        small = _in_order(small)
        _check(small, opset)
        if small.functions:
            small = inliner.inline_local_functions(small)
        if opset < _NUMPY_BROADCASTING:
            _align_slopes(small)
        if opset < MIN_OPSET:
            small = version_converter.convert_version(small, MIN_OPSET)
        if opset < _NAMED_COORDINATES:
            _name_coordinates(small)
        _trim_pools(small)
    except Exception as exc:
        reason = _culprit(small, opset) or " ".join(str(exc).split())[:300]
        raise ModelError(
            f"the model is not valid ONNX of opset {opset}, or cannot be converted to opset {MIN_OPSET}: {reason}; "
            "export it again with a current exporter"
        ) from exc
    _refuse_maps(small)
    weights = {t.name: t for t in proto.graph.initializer if _is_weight(t)}
    light = {t.name for t in small.graph.initializer}
    inputs = sorted((i for i in small.graph.input if i.name not in light), key=lambda i: i.name in weights)
    del small.graph.input[:]
    small.graph.input.extend(inputs)
    kept = {p.key for p in small.metadata_props}
    small.metadata_props.extend(p for p in proto.metadata_props if p.key not in kept)
    return small, weights


def _refuse_maps(small: onnx.ModelProto) -> None:
    for info in small.graph.output:
        if any(isinstance(message, onnx.TypeProto.Map) for message in _messages(info)):
            raise UnsupportedError(
                f"the output {info.name[:100]!r} maps class names to scores, as ZipMap makes it; export the model "
                "without ZipMap, so that its scores are a tensor"
            )


def _check(small: onnx.ModelProto, opset: int) -> None:
    """Run ONNX's checker, which lets some withdrawn operators pass and writes their names to standard output."""
    if _unknown_operator(small, opset) is not None:
        raise onnx.checker.ValidationError
    onnx.checker.check_model(small)


def _check_inlined_size(small: onnx.ModelProto) -> None:
    """Refuse functions that call each other so often, or so deeply, that inlining them fills memory or stack."""
    operators = {
        (f.domain, f.name, f.overload): Counter((n.domain, n.op_type, n.overload) for n in _nodes(f))
        for f in small.functions
    }
    own = {(f.domain, f.name, f.overload): f.ByteSize() for f in small.functions}
    nodes: dict[tuple[str, str, str], int] = {}
    sizes: dict[tuple[str, str, str], int] = {}
    depths: dict[tuple[str, str, str], int] = {}
    try:
        for key in TopologicalSorter(operators).static_order():
            called = operators.get(key, Counter())
            nodes[key] = 1 + sum(count * nodes[o] for o, count in called.items())
            sizes[key] = own.get(key, 0) + sum(count * sizes[o] for o, count in called.items())
            depths[key] = (key in own) + max((depths[o] for o in called), default=0)
    except CycleError as exc:
        raise ModelError("a function of the model calls itself; export it without functions") from exc
    calls = [(n.domain, n.op_type, n.overload) for n in _nodes(small.graph)]
    if max((depths.get(call, 0) for call in calls), default=0) > MOST_NESTED_CALLS:
        raise ModelError(
            f"functions of the model call each other more than {MOST_NESTED_CALLS} deep; export it without functions"
        )
    for most, unit, found in ((MOST_INLINED_NODES, "nodes", nodes), (MOST_INLINED_BYTES, "bytes", sizes)):
        if sum(found.get(call, 1) for call in calls) > most:
            raise ModelError(
                f"the functions of the model amount to more than {most} {unit}; export it without functions"
            )


def _align_slopes(small: onnx.ModelProto) -> None:
    """Give the slopes of PRelu, in place, the shape `[C, 1, 1]`; the version converter leaves `[C]` as it is."""
    inferred = onnx.shape_inference.infer_shapes(small).graph
    infos = (*inferred.input, *inferred.value_info, *inferred.output)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in infos}
    shapes |= {t.name: list(t.dims) for t in inferred.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in small.graph.node:
        x, slopes = (shapes.get(name, []) for name in node.input) if node.op_type == "PRelu" else ([], [])
        if len(x) > 2 and len(slopes) == 1 and slopes != [1]:
            slope, axes = f"{node.output[0]}/slope", range(1, len(x) - 1)
            nodes.append(onnx.helper.make_node("Unsqueeze", [node.input[1]], [slope], name=slope, axes=axes))
            node.input[1] = slope
        nodes.append(node)
    del small.graph.node[:]
    small.graph.node.extend(nodes)


def _name_coordinates(small: onnx.ModelProto) -> None:
    """Say, in place, where a Resize samples, as it did before opset 11, and Upsample too; the converter does not."""
    for node in _nodes(small.graph):
        named = {a.name: a for a in node.attribute}
        if node.op_type != "Resize" or "coordinate_transformation_mode" in named:
            continue
        node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        if "mode" not in named or named["mode"].s == b"nearest":
            node.attribute.append(onnx.helper.make_attribute("nearest_mode", "floor"))


def _trim_pools(small: onnx.ModelProto) -> None:
    """Reduce, in place, end padding of pools in which a last window could start; no value changes.

    With `ceil_mode`, runtimes leave out this window while ONNX's shape inference counts it.
    """
    for node in _nodes(small.graph):
        attributes = {a.name: a for a in node.attribute}
        pads, kernel = attributes.get("pads"), attributes.get("kernel_shape")
        ceil = "ceil_mode" in attributes and attributes["ceil_mode"].i
        # Averages that count padding would change.
        counted = "count_include_pad" in attributes and attributes["count_include_pad"].i
        if node.op_type not in _POOLS or pads is None or kernel is None or not ceil or counted:
            continue
        rank = len(kernel.ints)
        strides, dilations = (attributes[n].ints if n in attributes else [1] * rank for n in ("strides", "dilations"))
        for i, (size, stride, dilation) in enumerate(zip(kernel.ints, strides, dilations, strict=True)):
            pads.ints[rank + i] = max(0, min(pads.ints[rank + i], (size - 1) * dilation + 1 - stride))


def _culprit(small: onnx.ModelProto, opset: int) -> str:
    """The first node of an operator that ONNX does not have, or in training mode of old opsets; empty without one."""
    node = _unknown_operator(small, opset)
    if node is not None:
        return f"opset {opset} has no operator {node.op_type} (node {_name(node)!r})"
    for node in _nodes(small.graph):
        if node.op_type == "BatchNormalization" and not node.domain and len(node.output) > _LONGEST_NORMALIZATION:
            return f"the BatchNormalization {_name(node)!r} is in training mode"
    return ""


def _unknown_operator(small: onnx.ModelProto, opset: int) -> onnx.NodeProto | None:
    standard = (node for node in _nodes(small.graph) if node.domain in _DEFAULT_DOMAINS)
    return next((node for node in standard if not onnx.defs.has(node.op_type, opset, "")), None)


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or next(iter(node.output), node.op_type))


def _in_order(small: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or a copy with its nodes sorted if one reads a tensor before it is computed.

    Some tools only append (`onnxruntime.transformers.float16`), and runtimes sort for themselves.
    """
    pending = {o for node in small.graph.node for o in node.output if o}
    for node in small.graph.node:
        inner = (i for graph in _subgraphs(node) for n in _nodes(graph) for i in n.input)
        if not pending.isdisjoint((*node.input, *inner)):
            model = ir.from_proto(small)
            model.graph.sort()
            return ir.to_proto(model)
        pending.difference_update(node.output)
    return small


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with a graph input in place of each initializer above a kilobyte, and without sizes that mean "any"."""
    small = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name == "graph":
            continue
        if field.name in {"opset_import", "metadata_props", "functions", "training_info", "configuration"}:
            getattr(small, field.name).extend(value)
        else:
            setattr(small, field.name, value)
    graph, light = proto.graph, small.graph
    light.name = graph.name or "graph"
    light.node.extend(graph.node)
    light.output.extend(graph.output)
    light.value_info.extend(graph.value_info)
    light.sparse_initializer.extend(graph.sparse_initializer)
    light.quantization_annotation.extend(graph.quantization_annotation)
    light.input.extend(graph.input)
    listed = {i.name for i in graph.input}
    for tensor in graph.initializer:
        if not _is_weight(tensor):
            light.initializer.append(tensor)
        elif tensor.name not in listed:
            light.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    _name_default_domain(small)
    _free_dimensions(light)
    return small


def _free_dimensions(graph: onnx.GraphProto) -> None:
    """Make dimensions unknown, in place, that some exporters write as -1, or as 0 at inputs and outputs."""
    initializers = {t.name for t in graph.initializer}
    ends = {info.name for info in (*graph.input, *graph.output)} - initializers
    for info in (*graph.input, *graph.output, *graph.value_info):
        declared = info.type.tensor_type
        if declared.elem_type in _INDICES and len(declared.shape.dim) == 1:
            # ONNX's inference follows the values of vectors of integers one by one, as they may be shapes.
            for dim in declared.shape.dim:
                if dim.dim_value > _LONGEST_VECTOR:
                    dim.ClearField("dim_value")
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_value < 0 or (info.name in ends and dim.HasField("dim_value") and not dim.dim_value):
                dim.ClearField("dim_value")


def _is_weight(tensor: TensorProto) -> bool:
    # protobuf cannot give the size of a message above 2 GB.
    is_large = math.prod(tensor.dims) > _SMALL_TENSOR_BYTES or len(tensor.raw_data) > _SMALL_TENSOR_BYTES
    return is_large or tensor.data_location == TensorProto.EXTERNAL or tensor.ByteSize() > _SMALL_TENSOR_BYTES


def _name_default_domain(proto: onnx.ModelProto) -> None:
    """Rename the domain `ai.onnx`, in place, to the empty string, which means the same."""
    holders = [proto.graph, *proto.functions]
    imports = [*proto.opset_import, *(o for f in proto.functions for o in f.opset_import)]
    for entry in (*imports, *(n for holder in holders for n in _nodes(holder))):
        if entry.domain == "ai.onnx":
            entry.domain = ""


def _nodes(holder: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in holder.node:
        yield node
        for graph in _subgraphs(node):
            yield from _nodes(graph)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from (attribute.g, *attribute.graphs)


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of the default operator set of a proto; a `ModelError` without one that is known."""
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in _DEFAULT_DOMAINS:
            if entry.version > newest:
                raise ModelError(
                    f"the model is of opset {entry.version}, but the installed onnx package ends at {newest}; "
                    "upgrade onnx"
                )
            return int(entry.version)
    raise ModelError("the model imports no ONNX operator set; export it again with a current exporter")
