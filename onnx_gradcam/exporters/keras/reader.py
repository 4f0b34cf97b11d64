"""Read Keras files without Keras: each layer's output becomes an ONNX tensor of the layer's name.

The preprocessing of a `keras.applications` network, which its file does not contain, is recognised by the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnx_gradcam.errors import ExportError
from onnx_gradcam.exporters.writer import BATCH, Product, Writer
from onnx_gradcam.images.preprocessing import PRESETS
from onnx_gradcam.metadata import CarriedLayer

from .archive import REMEDY, Archive, open_archive
from .call import Layer, Tensor
from .parts import Arguments, Container, Context, count_variables, layer_entries, policy_of
from .weights import ByPath, LayerList, Source

__all__ = ["preprocessing_of", "read_keras"]


_IN_MODEL = "none"
"""The preset of networks that begin with layers that prepare the image."""

# By the preset for `preprocess_input` in keras/src/applications/<module>.py: the number of layers with Conv in their
# class, with and without the classifier. Counted in Keras 3.15.
_COUNTS: dict[str, dict[str, tuple[int, ...]]] = {
    "keras-caffe": {"vgg16": (13,), "vgg19": (16,), "resnet50": (53,), "resnet101": (104,), "resnet152": (155,)},
    "keras-tf": {
        "resnet50v2": (53,), "resnet101v2": (104,), "resnet152v2": (155,), "inception_v3": (94,),
        "inception_resnet_v2": (244,), "xception": (40,), "mobilenet": (28, 27), "mobilenetv2": (52,),
        "nasnet_mobile": (196,), "nasnet_large": (268, 263),
    },
    "keras-torch": {"densenet121": (120,), "densenet169": (168,), "densenet201": (200,)},
    _IN_MODEL: {
        "mobilenetv3small": (54, 52), "mobilenetv3large": (64, 62), "efficientnetb0": (81,), "efficientnetb1": (115,),
        "efficientnetb2": (115,), "efficientnetb3": (130,), "efficientnetb4": (160,), "efficientnetb5": (194,),
        "efficientnetb6": (224,), "efficientnetb7": (273,), "efficientnetv2-b0": (91,), "efficientnetv2-b1": (111,),
        "efficientnetv2-b2": (116,), "efficientnetv2-b3": (136,), "efficientnetv2-s": (170,),
        "efficientnetv2-m": (245,), "efficientnetv2-l": (339,), "convnext_tiny": (18,), "convnext_small": (36,),
        "convnext_base": (36,), "convnext_large": (36,), "convnext_xlarge": (36,),
    },
}  # fmt: skip
_NETWORKS = {name: (preset, counts) for preset, networks in _COUNTS.items() for name, counts in networks.items()}


def preprocessing_of(config: Mapping[str, Any], layout: Literal["NCHW", "NHWC"] = "NCHW") -> dict[str, Any] | None:
    """The preprocessing of a network of `keras.applications`, for images of a `layout`.

    `None` unless name, layers and input agree.
    """
    inner = config.get("config")
    if config.get("class_name") not in {"Functional", "Model"} or not isinstance(inner, Mapping):
        return None
    # MobileNets have their sizes in their names: mobilenet_1.00_224.
    name = re.sub(r"_\d\.\d+_(\d+|None)$", "", str(inner.get("name"))).lower()
    preset, counts = _NETWORKS.get(name, ("", ()))
    layers = [layer for layer in inner.get("layers", ()) if isinstance(layer, Mapping)]
    classes = [str(layer.get("class_name")) for layer in layers]
    if sum("Conv" in kind for kind in classes) not in counts:
        return None
    within = bool({"Rescaling", "Normalization"} & set(classes[1:3]))
    shape = layers[0]["config"].get("batch_shape") or layers[0]["config"].get("batch_input_shape")
    if classes[0] != "InputLayer" or within != (preset == _IN_MODEL) or not isinstance(shape, list) or shape[3:] != [3]:
        return None
    _, height, width, _ = shape
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    described: dict[str, Any] = replace(PRESETS[preset], layout=layout, size=size).to_dict()
    return described


_LAYOUTS = {3: "NCW", 4: "NCHW", 5: "NCDHW"}
_LARGEST_SIZE = 2**20
_DTYPES: dict[str, np.dtype[Any]] = {
    **dict.fromkeys(("float32", "float16", "bfloat16", "float64", "uint8"), np.dtype(np.float32)),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
}
"""The dtype of an input of the graph: images are numbers, indices stay indices."""

_FREE = {4: (BATCH, "height", "width", "channels")}


def read_keras(path: str | Path, *, keep_layout: bool = False) -> Product:
    """Read a `.keras` file of Keras 3 or 2, or an `.h5` file that holds a whole model.

    Needs h5py, but neither Keras nor TensorFlow. Weights are read when the product's model is saved; until then the
    file must not move. A functional or sequential model of Keras's own layers is written at opset 18:

    * Each layer's tensor is named after the layer: `inner/layer` for a layer of an inner model, `layer:1`,
      `layer:2` ... for further calls of a shared layer. An inner model stands for its output.
    * Maps are `[N, C, H, W]`, even if they are `[N, H, W, C]` in Keras, and so are inputs of rank 4, unless
      `keep_layout` keeps these as they are, with a Transpose behind them. Other inputs, and outputs, keep Keras's axes:
      an output of rank 4 is a transposed copy of the layer's tensor, named `layer/channels_last`.
    * Everything is computed in float32, even after mixed-precision training.

    Raises:
        InputError: there is no such file.
        ExportError: it is damaged or not a Keras model, or a layer or its configuration is not supported.
    """
    archive = open_archive(path)
    try:
        return _product(archive, keep_layout=keep_layout)
    except RecursionError as exc:
        raise ExportError(f"{archive.name}: its configuration is nested too deeply; refused") from exc
    except ExportError as exc:
        if str(exc).startswith(archive.name):
            raise
        raise type(exc)(f"{archive.name}: {exc}") from exc


def _product(archive: Archive, *, keep_layout: bool) -> Product:
    config = archive.config
    source: Source
    if archive.legacy:
        source = LayerList(archive.weights, lambda entry: count_variables(entry, archive.major))
    else:
        source = ByPath(archive.weights)
    if isinstance(config.get("config"), list):  # sequential models of Keras below 2.2.3
        config = {**config, "config": {"layers": config["config"]}}
    model = Container(config, source, "", archive.major)
    inner = config.get("config")
    writer = Writer(str((inner.get("name") if isinstance(inner, Mapping) else None) or "keras"))
    channels_last = not any(c.get("data_format") == "channels_first" for c, _ in _configs(config))
    context = Context(writer=writer, major=archive.major, channels_last=channels_last, keep_layout=keep_layout)
    warnings = list(_warnings(config))
    images = _inputs(context, model, config)
    for tensor in model(context, Arguments(list(images), {}), ""):
        if tensor.moved:
            copied = context.call(Layer(path=tensor.value.name, kind="output")).plain(tensor)
            writer.output(copied.value, f"{tensor.value.name}/channels_last")
        else:
            writer.expose(tensor.value)
    finished = writer.finished()
    kept = {o.name for node in finished.core.graph for o in node.outputs} | {i.name for i in finished.core.graph.inputs}
    layers = {
        name: CarriedLayer(
            tensor=tensor.value.name,
            kind=kind,
            shape=list(tensor.value.known_shape or ()),
            layout=_LAYOUTS.get(tensor.rank, "") if tensor.moved or (tensor.rank > 3 and not channels_last) else "",
        )
        for name, (tensor, kind) in context.layers.items()
        if tensor.value.name in kept
    }
    return Product(
        model=finished,
        framework="keras",
        version=archive.version,
        layers=layers,
        image_layout="NHWC" if any(tensor.moved for tensor in images) and not keep_layout else "",
        biases="apart",
        preprocessing=preprocessing_of(config, "NHWC" if keep_layout and channels_last else "NCHW"),
        warnings=warnings,
    )


def _configs(entry: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Configuration and entry of each layer, inner models included."""
    config = entry.get("config")
    for inner in layer_entries(entry) if isinstance(config, Mapping) and "layers" in config else ():
        yield inner["config"], inner
        yield from _configs(inner)


def _inputs(context: Context, model: Container, config: Mapping[str, Any]) -> list[Tensor]:
    """The inputs of the graph."""
    if model.kind == "Sequential":
        first = model.entries[0]
        name = model.inputs[0].layer or "input"
        shape = _batch_shape(first["config"]) or config["config"].get("build_input_shape")
        if shape is None and isinstance(build := config.get("build_config"), Mapping):
            shape = build.get("input_shape")
        return [_input(context, name, shape, first["config"].get("dtype") if model.inputs[0].layer else None)]
    entries = {str(entry["config"]["name"]): entry for entry in model.entries}
    tensors = []
    for reference in model.inputs:
        entry = entries.get(reference.layer)
        if entry is None or entry["class_name"] != "InputLayer":
            raise ExportError(f"the input {reference.layer!r} is not an InputLayer; save the model again")
        tensors.append(_input(context, reference.layer, _batch_shape(entry["config"]), entry["config"].get("dtype")))
    return tensors


def _batch_shape(config: Mapping[str, Any]) -> Any:
    return config.get("batch_shape") or config.get("batch_input_shape")


def _input(context: Context, name: str, shape: Any, dtype: object) -> Tensor:
    if not isinstance(shape, list) or not all(
        d is None or (isinstance(d, int) and not isinstance(d, bool) and d > 0) for d in shape
    ):
        raise ExportError(f"the shape of input {name!r} is {shape!r}; build the model before you save it")
    if max((d for d in shape if d is not None), default=0) > _LARGEST_SIZE:
        raise ExportError(f"the shape of input {name!r} is {shape}, larger than any image; refused")
    rank = len(shape)
    kind = _DTYPES.get("float32" if dtype is None else str(dtype))
    if kind is None or (kind.kind == "i" and rank > 3):
        raise ExportError(f"input {name!r} has the dtype {dtype!r}, so it is not an image; {REMEDY}")
    free = _FREE.get(rank, (BATCH, *(f"{name}_{i}" for i in range(1, rank))))
    if context.writer.graph.inputs and rank == 4:
        free = (BATCH, *(f"{name}_{axis}" for axis in free[1:]))
    if rank == 4 and not context.channels_last:
        free = (free[0], free[3], free[1], free[2])
    sizes = [BATCH, *(symbol if size is None else size for size, symbol in zip(shape[1:], free[1:], strict=True))]
    moved = rank == 4 and context.channels_last
    if moved and context.keep_layout:
        image = Tensor(context.writer.input(name, kind, tuple(sizes)))
        turned = context.call(Layer(path=name, kind="InputLayer")).move(image)
        context.writer.rename(turned.value, f"{name}/channels_first")
        return turned
    if moved:
        sizes = [sizes[0], sizes[3], sizes[1], sizes[2]]
    return Tensor(context.writer.input(name, kind, tuple(sizes)), moved)


_WITHOUT_DTYPE = {"InputLayer", "Functional", "Model", "Sequential", "TFOpLambda", "SlicingOpLambda"}


def _warnings(config: Mapping[str, Any]) -> Iterator[str]:
    computing = [entry for _, entry in _configs(config) if entry["class_name"] not in _WITHOUT_DTYPE]
    rounded = sorted({policy_of(entry, str(entry["config"]["name"])) for entry in computing} - {"float32"})
    if rounded:
        yield f"the model's precision is {', '.join(rounded)} in Keras; here everything is computed in float32"
    for inner, entry in _configs(config):
        if entry["class_name"] == "InputLayer" and inner.get("dtype") == "uint8":
            yield f"input {inner['name']!r} takes uint8 in Keras and the same numbers as float32 here"
