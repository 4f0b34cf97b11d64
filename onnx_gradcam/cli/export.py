"""`onnx-gradcam export`: one command per framework, all of them `onnx_gradcam.export` with its options."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnx_gradcam.options import TorchExporter, Via

from ._options import OPTIONS, Command, Json, explains, option
from ._output import say, say_json, shape, warn

if TYPE_CHECKING:
    from onnx_gradcam.exporters.finishing import Exported

__all__ = ["export"]

export = typer.Typer(name="export", no_args_is_help=True, rich_markup_mode=None)

Out = Annotated[Path, option("Output", "ONNX file to write.", "-o", "--out", metavar="FILE", show_default=False)]
Layer = Annotated[
    str | None,
    option(
        "Target",
        "Layer to explain, by the framework's name; `attach` and `explain` use it by default. [default: the last with "
        "spatial positions]",
        metavar="NAME",
    ),
]
Trust = Annotated[
    bool, option("Runtime", "Run code that comes with the model; its author then has your permissions.", "--trust")
]
Python = Annotated[
    Path | None,
    option(
        "Runtime",
        "Python interpreter whose environment has the framework. [default: the current one]",
        "--python",
        metavar="FILE",
    ),
]


_shared = explains(without=set(OPTIONS) - {"labels", "preprocess", "task", "output", "image", "boxes", "background"})


@export.callback()
def root() -> None:
    """Export a framework model to ONNX, keeping layer names.

    \b
    Examples:
      onnx-gradcam export keras model.keras -o model.onnx --layer mixed10
      onnx-gradcam export mxnet net-symbol.json net-0000.params -o net.onnx
      onnx-gradcam export pytorch model.pt2 -o model.onnx --layer layer4
    """  # noqa: D301 - \b keeps the lines of the example apart


@export.command(cls=Command, short_help="Export a .keras, .h5 or .hdf5 file, or a SavedModel.")
@_shared
def keras(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model file, or folder of a SavedModel.")],
    *,
    out: Out,
    layer: Layer = None,
    via: Annotated[
        Via,
        option(
            "Runtime",
            "How to read the model: `reader` needs no framework and knows Keras's own layers; `tf` (TensorFlow and "
            "tf2onnx) and `torch` (Keras on PyTorch) run Keras itself, for custom and subclassed models. SavedModels "
            "need `tf`.",
        ),
    ] = "reader",
    keep_layout: Annotated[
        bool,
        option(
            "Image",
            "Leave the input channels last (NHWC), for clients that send images to Keras; else it becomes NCHW.",
            "--keep-layout",
        ),
    ] = False,
    custom: Annotated[
        str | None,
        option(
            "Runtime", "With --via tf or torch, and --trust: module with the model's own classes.", metavar="MODULE"
        ),
    ] = None,
    trust: Trust = False,
    python: Python = None,
    as_json: Json = False,
    choices: dict[str, Any],
) -> None:
    """Export a Keras 2 or Keras 3 model, without TensorFlow.

    \b
    Examples:
      onnx-gradcam export keras model.keras -o model.onnx --layer mixed10 --preprocess keras-tf
      onnx-gradcam export keras saved_model/ -o model.onnx --via tf --trust
      onnx-gradcam export keras mine.keras -o model.onnx --via torch --custom my_layers --trust
    """  # noqa: D301 - \b keeps the lines of the examples apart
    if via == "reader":
        for flag, value in (("--custom", custom), ("--trust", trust), ("--python", python)):
            if value:
                raise typer.BadParameter("the reader runs no code; this needs --via tf or torch.", param_hint=flag)
    if custom is not None and not trust:
        raise typer.BadParameter("the module's code runs with --trust only.", param_hint="--custom")
    how = {"via": via, "keep_layout": keep_layout, "custom": custom, "trust": trust, "python": python}
    _run(model, out, as_json=as_json, framework="keras", layer=layer, **how, **choices)


@export.command(cls=Command, short_help="Export a -symbol.json with its .params.")
@_shared
def mxnet(
    symbol: Annotated[Path, typer.Argument(metavar="SYMBOL", help="NAME-symbol.json file.", show_default=False)],
    params: Annotated[Path, typer.Argument(metavar="PARAMS", help="NAME-0000.params file.", show_default=False)],
    *,
    out: Out,
    layer: Layer = None,
    size: Annotated[
        str | None,
        option("Image", "Size of the input, if the symbol leaves it open.", "--input-shape", metavar="C,H,W"),
    ] = None,
    values: Annotated[
        list[str] | None,
        option(
            "Model",
            "Numbers of an input besides the image, which become a constant row, such as stage_num0=0,1,2.",
            "--input-value",
            metavar="NAME=NUMBERS",
        ),
    ] = None,
    names: Annotated[
        Path | None,
        option(
            "Target",
            "JSON file of further layer names, such as gluon's paths, and the nodes that they stand for.",
            "--names",
            metavar="FILE",
        ),
    ] = None,
    as_json: Json = False,
    choices: dict[str, Any],
) -> None:
    """Export an MXNet model, from gluon or the Module API, without MXNet.

    \b
    Example:
      onnx-gradcam export mxnet net-symbol.json net-0000.params -o net.onnx --preprocess mxnet-gluon

    `HybridBlock.export` and `Module.save_checkpoint` write the two files. Layers are the nodes of the symbol; with
    --names also gluon's paths: --layer 'net.features[8][2]'.
    """  # noqa: D301 - \b keeps the lines of the example apart
    shape_of_image = None if size is None else _numbers(size, 3, "--input-shape")
    numbers = dict(map(_row, values or ())) or None
    how = {"weights": params, "input_shape": shape_of_image, "input_values": numbers, "names": names}
    _run(symbol, out, as_json=as_json, framework="mxnet", layer=layer, **how, **choices)


@export.command(cls=Command, short_help="Export a .pt2, module:factory, timm, Hugging Face or TorchScript model.")
@_shared
def pytorch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help=".pt2 file, torchvision.models:NAME, timm:NAME, Hugging Face folder, module:factory (your own code), "
            "or TorchScript .pt file.",
            show_default=False,
        ),
    ],
    *,
    out: Out,
    layer: Layer = None,
    weights: Annotated[
        str | None,
        option(
            "Model",
            "Weights: .safetensors or .pth file of plain tensors, or a name that torchvision knows.",
            metavar="FILE|NAME",
        ),
    ] = None,
    call: Annotated[
        int,
        option("Target", "Which call of the layer, if the model calls it several times; -1 is the last.", metavar="N"),
    ] = -1,
    size: Annotated[
        str | None, option("Image", "Height and width of the images, if the model does not say.", metavar="H,W")
    ] = None,
    exporter: Annotated[TorchExporter, option("Runtime", "Which of PyTorch's own exporters to use.")] = "auto",
    keep_normalization: Annotated[
        bool,
        option(
            "Model",
            "Leave batch normalizations as they are, as FullGrad needs it; else PyTorch merges them with convolutions.",
            "--keep-normalization",
        ),
    ] = False,
    trust: Trust = False,
    as_json: Json = False,
    choices: dict[str, Any],
) -> None:
    """Export a PyTorch model; needs PyTorch and onnxscript.

    \b
    Examples:
      onnx-gradcam export pytorch model.pt2 -o model.onnx --layer layer4
      onnx-gradcam export pytorch mine:build -o model.onnx --weights mine.safetensors --trust
      onnx-gradcam export pytorch torchvision.models:resnet18 -o model.onnx --weights resnet18.pth
    """  # noqa: D301 - \b keeps the lines of the examples apart
    sides = None if size is None else _numbers(size, 2, "--size")
    how = {
        "weights": weights, "call": call, "size": sides, "exporter": exporter, "keep_normalization": keep_normalization,
        "trust": trust,
    }  # fmt: skip
    _run(source, out, as_json=as_json, framework="pytorch", layer=layer, **how, **choices)


@export.command(cls=Command, short_help="Export a .tflite file, through TensorFlow and tf2onnx.")
@_shared
def tflite(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=".tflite file.", show_default=False)],
    *,
    out: Out,
    layer: Layer = None,
    python: Python = None,
    as_json: Json = False,
    choices: dict[str, Any],
) -> None:
    """Export a TFLite model, quantised or not; needs TensorFlow and tf2onnx, here or in the environment of --python.

    \b
    Example:
      onnx-gradcam export tflite model.tflite -o model.onnx --python ~/tf/bin/python
    """  # noqa: D301 - \b keeps the lines of the example apart
    _run(model, out, as_json=as_json, framework="tflite", layer=layer, python=python, **choices)


@export.command(cls=Command, short_help="Add layer, class names and preprocessing to any ONNX model.")
@_shared
def onnx(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file.", show_default=False)],
    *,
    out: Out,
    layer: Layer = None,
    as_json: Json = False,
    choices: dict[str, Any],
) -> None:
    """Rewrite an ONNX model with the layer to explain among its outputs, at opset 18 or above.

    \b
    Example:
      onnx-gradcam export onnx model.onnx -o named.onnx --layer relu5 --labels names.txt --preprocess torchvision
    """  # noqa: D301 - \b keeps the lines of the example apart
    _run(model, out, as_json=as_json, framework="onnx", layer=layer, **choices)


def _run(source: str | Path, out: Path, *, as_json: bool, **choices: Any) -> None:
    if str(out) == "-":
        raise typer.BadParameter("an export goes to a file, not to standard output.", param_hint="-o")
    from onnx_gradcam.exporters.sources import export as export_model  # noqa: PLC0415 - --help must not wait for it

    from ._progress import stages  # noqa: PLC0415

    steps = iter(range(3))
    with stages(f"reading {source}", "exposing the layer", f"writing {out}") as begin_next:
        # The first stage has begun already.
        exported = export_model(source, out, progress=lambda _step: begin_next() if next(steps) else None, **choices)
    for warning in exported.warnings:
        warn(warning)
    if as_json:
        say_json({"model": str(out), **exported.to_dict()})
    else:
        _say(exported, out)


def _say(exported: Exported, out: Path) -> None:
    carried = exported.carried
    origin = " ".join(filter(None, (carried.framework, carried.framework_version)))
    say(f"{out}: from {origin}, with the output {exported.target!r} {shape(exported.shape)} {exported.layout}.")
    turned = f", turned from {carried.framework}'s {exported.framework_layout}; --keep-layout keeps it"
    change = turned if exported.framework_layout else ""
    say(f"Input: {exported.image!r} {shape(exported.image_shape)} {exported.image_layout}{change}.")
    say(f"Layer: {exported.reason}.")
    outputs = ", ".join(map(repr, exported.outputs))
    say(f"Scores: {outputs} ({carried.score_kind})." if carried.score_kind else f"Task: {exported.task}, of {outputs}.")
    if carried.parity:
        say(f"Compared with {carried.framework}: {carried.parity}.")
    if carried.layers:
        say(f"{len(carried.layers)} layers can be given to --layer; `onnx-gradcam inspect {out}` lists them.")
    content = {"class names": carried.labels, "preprocessing": carried.preprocessing}
    stored = [name for name, value in content.items() if value]
    say(f"Stored in the file: {' and '.join(stored) or 'neither class names nor preprocessing'}.")


def _row(text: str) -> tuple[str, list[list[float]]]:
    """A name and a row of numbers, from `NAME=NUMBERS`."""
    name, _, numbers = text.partition("=")
    try:
        row = [float(number) for number in numbers.split(",")]
    except ValueError:
        row = []
    if not name or not row or not all(map(math.isfinite, row)):
        raise typer.BadParameter(f"{text!r} is not NAME=NUMBERS, with commas between.", param_hint="--input-value")
    return name, [row]


def _numbers(text: str, count: int, flag: str) -> tuple[int, ...]:
    """`count` positive integers, separated by commas."""
    parts = text.split(",")
    if len(parts) != count or not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
        raise typer.BadParameter(f"{text!r} is not {count} positive integers separated by commas.", param_hint=flag)
    return tuple(int(p) for p in parts)
