"""Export a model of any framework: recognise the source, read it, expose its layer, write the ONNX file."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import onnx

from onnx_gradcam.editor.origins import read_statements
from onnx_gradcam.editor.targets.classes import read_labels
from onnx_gradcam.errors import ExportError, InputError
from onnx_gradcam.graph.load import load
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.metadata import Carried, Metadata
from onnx_gradcam.options import Background, BoxFormat, Description, Framework, Options, TorchExporter, Via, check_word

from .finishing import Exported, finish_export
from .writer import Product

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

__all__ = ["as_onnx", "export", "framework_of", "read_onnx"]


def export(
    source: str | Path | torch.nn.Module,
    out: str | Path | None = None,
    *,
    framework: Framework | None = None,
    layer: str | None = None,
    task: str | None = None,
    output: str | Sequence[str] | None = None,
    image: str | None = None,
    boxes: BoxFormat | None = None,
    background: Background | None = None,
    labels: str | Path | Sequence[str] | None = None,
    preprocess: str | Path | Mapping[str, Any] | Description | None = None,
    weights: str | Path | None = None,
    input_shape: Sequence[int] | None = None,
    input_values: Mapping[str, npt.ArrayLike] | None = None,
    names: str | Path | Mapping[str, str] | None = None,
    size: tuple[int, int] | None = None,
    call: int = -1,
    exporter: TorchExporter = "auto",
    keep_normalization: bool = False,
    via: Via = "reader",
    keep_layout: bool = False,
    custom: str | None = None,
    trust: bool = False,
    python: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Exported:
    """Export a model to ONNX with the layer to explain among its outputs.

    Example::

        exported = export("model.keras", "model.onnx", layer="mixed10", preprocess="keras-tf")
        exported.target, exported.shape            # 'mixed10', ('batch', 2048, 8, 8)

        export("net-symbol.json", "net.onnx", labels="names.txt")
        export(network, "net.onnx", layer="layer4.2.bn3")      # a torch.nn.Module

    Args:
        source: the model file, the folder of a SavedModel or of a Hugging Face model, `torchvision.models:NAME`,
            `timm:NAME`, `module:factory`, or a `torch.nn.Module`.
        out: the ONNX file to write, atomically; `None` writes nothing.
        framework: the source's framework; by default told from the source (see `framework_of`).
        layer: the framework's name of the layer to explain; by default the last layer with spatial positions.
        task: what the model does; see `onnx_gradcam.editor.targets.task`; by default classification.
        output: the output that holds the scores, where several would do; several for a detector.
        image: the input that takes the image, where several would do.
        boxes: detection only: how the table of boxes is laid out; by default as the graph says.
        background: detection only: which of the scores of a box is that of the background.
        labels: class names, or a file of them; by default those that the framework knows.
        preprocess: a preset, a description or a file of one; by default what the framework says.
        weights: PyTorch: a state dictionary, or a name that torchvision knows. MXNet: the `.params` file; by default
            the only one beside the symbol.
        input_shape: MXNet: `(channels, height, width)`, where the symbol leaves it open.
        input_values: MXNet: the numbers of inputs other than the image, by name; they become constants.
        names: MXNet: further layer names, such as `features[8][2]`, and the symbol's nodes that they stand for; also a
            JSON file of them.
        size: PyTorch: height and width of the images, where the model does not say.
        call: PyTorch: which call of the layer, where the model calls it several times; -1 is the last.
        exporter: PyTorch: which of its two exporters to use.
        keep_normalization: PyTorch: leave batch normalizations as they are, which its exporters merge with the
            convolutions in front of them; FullGrad needs the biases of both.
        via: Keras: `reader` needs no framework; `tf` and `torch` run Keras itself.
        keep_layout: Keras: leave the input channels last (`NHWC`), for clients that send images to Keras; `tf` and
            `torch` always do.
        custom: Keras with `tf` or `torch`: the module that defines the model's own classes; needs `trust`.
        trust: run code that comes with the model.
        python: Keras with `tf` or `torch`, TFLite: the interpreter that has the framework.
        progress: called with each step, in words, before it starts.

    Returns:
        The exported model. Its tensors are channels first (`NCHW`), whatever the framework's layout; `keep_layout`
        makes an exception for the input.

    Raises:
        InputError: a path, an option, class names or preprocessing that do not fit; nothing is written.
        TargetError: the layer or the output is not in the model.
        ExportError: the model cannot be exported.
        ModelError: an ONNX source is damaged or unsafe.
    """
    options = Options(task=task, output=output, image=image, boxes=boxes, background=background)
    kind = framework or framework_of(source)
    check_word("framework", kind, get_args(Framework))
    check_word("via", via, get_args(Via))
    check_word("exporter", exporter, get_args(TorchExporter))
    choices: dict[str, Any] = {
        "weights": weights, "input_shape": input_shape, "input_values": input_values, "names": names, "size": size,
        "call": call, "exporter": exporter, "keep_normalization": keep_normalization, "via": via,
        "keep_layout": keep_layout, "custom": custom, "trust": trust, "python": python,
    }  # fmt: skip
    choices = {key: value for key, value in choices.items() if value != _DEFAULTS[key]}
    foreign = next((key for key in choices if key not in _keywords(_READERS[kind])), None)
    if foreign is not None:
        raise InputError(f"{foreign!r} does not apply to {kind} models; leave it out")
    if out is not None:
        _check_place(Path(out), [source, weights])
    classes = read_labels(labels) if isinstance(labels, (str, Path)) else labels
    description = None if preprocess is None else parse_preprocessing(preprocess).to_dict()
    report = progress or (lambda _step: None)
    report(f"reading {source if isinstance(source, (str, Path)) else type(source).__name__}")
    product = _READERS[kind](source, layer, **choices)
    report("exposing the layer")
    exported = finish_export(product, layer, options, labels=classes, preprocessing=description)
    described = exported.carried.preprocessing
    if described is not None and exported.image_layout in {"NCHW", "NHWC"}:
        # Refuse what contradicts the model now rather than at the first image.
        parse_preprocessing(described).for_input(exported.image_layout, exported.image_shape, exported.image_dtype)
    if out is not None:
        report(f"writing {out}")
        exported.save(out)
    return exported


def _check_place(out: Path, sources: Sequence[object]) -> None:
    """Refuse before minutes of work a path that cannot be written after it."""
    if os.path.realpath(out) in {os.path.realpath(source) for source in sources if isinstance(source, (str, Path))}:
        raise InputError(f"{out}: this is the model itself; choose another output name")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of a file in it")
    if not Path(os.path.realpath(out)).parent.is_dir():
        raise InputError(f"{out}: its folder does not exist; create it, or choose another one")


_SYMBOL = "-symbol.json"
_ENDINGS: dict[str, Framework] = {
    ".keras": "keras", ".h5": "keras", ".hdf5": "keras", _SYMBOL: "mxnet", ".pt2": "pytorch", ".pt": "pytorch",
    ".tflite": "tflite", ".onnx": "onnx",
}  # fmt: skip
_AMBIGUOUS = ".pt"
"""TorchScript by its ending, but so are pickled weights: `as_onnx` leaves these files alone."""

_FOLDERS: dict[str, Framework] = {"saved_model.pb": "keras", "config.json": "pytorch"}
_IN_CODE = re.compile(r"[A-Za-z_][\w.]*:[\w./-]+")


def framework_of(source: str | Path | torch.nn.Module) -> Framework:
    """Tell the framework of a source from its name, or of a folder from the files in it."""
    if not isinstance(source, (str, Path)):
        return "pytorch"
    kind = _by_ending(Path(source))
    if kind is not None:
        return kind
    for file, kind in _FOLDERS.items():
        if (Path(source) / file).is_file():
            return kind
    if _IN_CODE.fullmatch(str(source)) and not Path(source).exists():
        return "pytorch"
    raise InputError(f"cannot tell the framework of {str(source)!r}; give it: {', '.join(get_args(Framework))}")


def _by_ending(path: Path) -> Framework | None:
    return next((kind for ending, kind in _ENDINGS.items() if path.name.lower().endswith(ending)), None)


def as_onnx(path: str | Path, layer: str | None = None) -> Path | onnx.ModelProto:
    """Export a framework's model file in memory, by `layer`; leave any other path to the code that loads ONNX.

    `.keras`, `.h5` and `.hdf5` are Keras models, `NAME-symbol.json` is an MXNet model with its `NAME-*.params` beside
    it, `.pt2` an exported PyTorch program, `.tflite` a TFLite model.
    """
    path = Path(path)
    if _by_ending(path) in {None, "onnx"} or path.suffix.lower() == _AMBIGUOUS:
        return path
    return export(path, layer=layer).to_proto()


def read_onnx(path: str | Path) -> Product:
    """Read an ONNX model, converted to opset 18 where it is lower; what it carries of a framework is kept."""
    model = load(Path(path))
    metadata = Metadata.from_props(model.metadata)
    if metadata is not None:
        raise ExportError(
            f"{path}: the model is explained already (layer {metadata.target_tensor!r}); export the original model"
        )
    carried, statements = Carried.from_props(model.metadata), read_statements(model.metadata, model.folder)
    core = model.core
    producer = " ".join(filter(None, (core.producer_name, core.producer_version)))
    return Product(
        model=model,
        framework=carried.framework or "onnx",
        version=carried.framework_version or producer,
        layers=carried.layers,
        labels=statements.labels,
        preprocessing=statements.preprocessing,
        warnings=statements.remarks,
        parity=carried.parity,
        biases=carried.biases,
    )


def _keras(
    source: str | Path,
    layer: str | None,
    *,
    via: Via = "reader",
    keep_layout: bool = False,
    custom: str | None = None,
    trust: bool = False,
    python: str | Path | None = None,
) -> Product:
    if via != "reader":
        from .elsewhere import read_keras_with  # noqa: PLC0415 - each reader loads its own libraries

        return read_keras_with(via, source, layer=layer, custom=custom, trust=trust, python=python)
    unread = next((key for key, value in {"custom": custom, "trust": trust, "python": python}.items() if value), None)
    if unread is not None:
        raise InputError(f"{unread!r} needs via 'tf' or 'torch'; the reader runs no code")
    from .keras import read_keras  # noqa: PLC0415

    return read_keras(source, keep_layout=keep_layout)


def _mxnet(
    source: str | Path,
    _layer: str | None,
    *,
    weights: str | Path | None = None,
    input_shape: Sequence[int] | None = None,
    input_values: Mapping[str, npt.ArrayLike] | None = None,
    names: str | Path | Mapping[str, str] | None = None,
) -> Product:
    from .mxnet import read_mxnet  # noqa: PLC0415

    symbol = Path(source)
    params = weights or _beside(symbol)
    return read_mxnet(symbol, params, input_shape=input_shape, input_values=input_values, names=names)


def _beside(symbol: Path) -> Path:
    """The only parameter file of an MXNet symbol's name in its folder."""
    name = symbol.name.removesuffix(_SYMBOL)
    files = sorted(p.name for p in symbol.parent.glob("*.params") if p.name.startswith(f"{name}-"))
    if len(files) != 1:
        count = f"there are {len(files)} ({', '.join(files[:5])})" if files else "there is none"
        raise InputError(f"{symbol.name} needs its weights in one file {name}-0000.params beside it, but {count}")
    return symbol.parent / files[0]


def _pytorch(
    source: str | Path | torch.nn.Module,
    layer: str | None,
    *,
    weights: str | Path | None = None,
    call: int = -1,
    size: tuple[int, int] | None = None,
    exporter: TorchExporter = "auto",
    keep_normalization: bool = False,
    trust: bool = False,
) -> Product:
    from .pytorch import export_pytorch  # noqa: PLC0415

    return export_pytorch(
        source, layer=layer, weights=weights, call=call, size=size, exporter=exporter,
        keep_normalization=keep_normalization, trust=trust,
    )  # fmt: skip


def _tflite(source: str | Path, _layer: str | None, *, python: str | Path | None = None) -> Product:
    from .elsewhere import read_tflite  # noqa: PLC0415

    return read_tflite(source, python=python)


_READERS: dict[str, Callable[..., Product]] = {
    "keras": _keras, "mxnet": _mxnet, "pytorch": _pytorch, "tflite": _tflite, "onnx": lambda path, _: read_onnx(path),
}  # fmt: skip
"""A reader's keyword parameters are the options that apply to its framework."""


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


_DEFAULTS = _keywords(export)
