"""`onnx-gradcam export`: one command a framework."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Labels, Output, Preprocess, chosen

__all__ = ["export"]

export = typer.Typer(name="export", no_args_is_help=True, rich_markup_mode=None)

Out = Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The ONNX model to write.", show_default=False)]
Layer = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The layer to explain, by the framework's name: it becomes an output of that name, and `attach` and "
        "`explain` look there by default. [default: the last place in the model that still has a height and a width]",
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Let the model's own code run. Whoever made the model then has your rights here."),
]
Python = Annotated[
    Path | None,
    typer.Option(
        "--python",
        metavar="FILE",
        help="The Python interpreter whose environment has the framework. [default: the one that runs this]",
    ),
]


class Via(str, Enum):
    """How a Keras model is read."""

    READER = "reader"
    TF = "tf"
    TORCH = "torch"


class Exporter(str, Enum):
    """Which of PyTorch's exporters is taken."""

    AUTO = "auto"
    DYNAMO = "dynamo"
    TORCHSCRIPT = "torchscript"


@export.callback()
def root() -> None:
    """Convert a model to ONNX with the layer to explain among its outputs, under the framework's own layer names.

    \b
    Examples:
      onnx-gradcam export keras model.keras -o model.onnx --layer mixed10
      onnx-gradcam export mxnet net-symbol.json net-0000.params -o net.onnx
      onnx-gradcam export pytorch model.pt2 -o model.onnx --layer layer4
    """  # noqa: D301 - \b keeps the lines of the example apart


@export.command(short_help="A .keras, .h5 or .hdf5 file, or a SavedModel.")
def keras(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The file, or the SavedModel's folder.")],
    *,
    out: Out,
    layer: Layer = None,
    via: Annotated[
        Via,
        typer.Option(
            help="How the model is read: `reader` needs no framework and knows Keras's own layers; `tf` (TensorFlow "
            "and tf2onnx) and `torch` (Keras on PyTorch) run Keras itself, for custom and subclassed models, `tf` "
            "for SavedModels too."
        ),
    ] = Via.READER,
    custom: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE",
            help="With --via tf or torch: the Python module that defines the model's own "
            "classes, from the current folder or installed. Takes --trust.",
        ),
    ] = None,
    trust: Trust = False,
    python: Python = None,
    output: Output = None,
    labels: Labels = None,
    preprocess: Preprocess = None,
    as_json: Json = False,
) -> None:
    """Convert a Keras model (Keras 2 or 3); TensorFlow is not needed.

    \b
    Examples:
      onnx-gradcam export keras model.keras -o model.onnx --layer mixed10 --preprocess keras-tf
      onnx-gradcam export keras saved_model/ -o model.onnx --via tf --trust
      onnx-gradcam export keras mine.keras -o model.onnx --via torch --custom my_layers --trust
    """  # noqa: D301 - \b keeps the lines of the examples apart
    if via is Via.READER:
        for name, given in (("--custom", custom), ("--trust", trust), ("--python", python)):
            if given:
                raise typer.BadParameter(
                    "the reader runs no code; this is for --via tf or --via torch.", param_hint=name
                )
    if custom is not None and not trust:
        raise typer.BadParameter("it runs the module's code, which takes --trust.", param_hint="--custom")
    from .exporting import export_keras  # noqa: PLC0415 - --help must not wait for it

    export_keras(
        model,
        out,
        via=via.value,
        layer=layer,
        custom=custom,
        trust=trust,
        python=python,
        **chosen(output=output, labels=labels, preprocess=preprocess, as_json=as_json),
    )


@export.command(short_help="A -symbol.json and its .params.")
def mxnet(
    symbol: Annotated[Path, typer.Argument(metavar="SYMBOL", help="The NAME-symbol.json file.", show_default=False)],
    params: Annotated[Path, typer.Argument(metavar="PARAMS", help="The NAME-0000.params file.", show_default=False)],
    *,
    out: Out,
    layer: Layer = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--input-shape",
            metavar="C,H,W",
            help="Channels, height and width of the input, where the symbol leaves them open.",
        ),
    ] = None,
    output: Output = None,
    labels: Labels = None,
    preprocess: Preprocess = None,
    as_json: Json = False,
) -> None:
    """Convert an MXNet model, from gluon or the Module API; MXNet is not needed.

    \b
    Example:
      onnx-gradcam export mxnet net-symbol.json net-0000.params -o net.onnx --preprocess mxnet-gluon

    The two files are what `HybridBlock.export` and `Module.save_checkpoint` write. Layers are the nodes of the symbol.
    """  # noqa: D301 - \b keeps the lines of the example apart
    shape = None if size is None else _numbers(size, 3, "--input-shape")
    from .exporting import export_mxnet  # noqa: PLC0415 - --help must not wait for it

    export_mxnet(
        symbol,
        params,
        out,
        shape=shape,
        layer=layer,
        **chosen(output=output, labels=labels, preprocess=preprocess, as_json=as_json),
    )


@export.command(short_help="A .pt2, a module:factory with weights, a timm or Hugging Face model, TorchScript.")
def pytorch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A .pt2 file, torchvision.models:NAME, timm:NAME, a Hugging Face folder, module:factory (your own "
            "code), or a TorchScript .pt file.",
            show_default=False,
        ),
    ],
    *,
    out: Out,
    layer: Layer = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="The weights: a .safetensors or .pth file of plain tensors, or a name that torchvision knows.",
        ),
    ] = None,
    call: Annotated[
        int,
        typer.Option(
            metavar="N", help="Which call of the layer, where the model calls it several times: -1 is the last."
        ),
    ] = -1,
    size: Annotated[
        str | None,
        typer.Option(metavar="H,W", help="Height and width of the images, where the model does not say."),
    ] = None,
    exporter: Annotated[Exporter, typer.Option(help="Which of PyTorch's own exporters to take.")] = Exporter.AUTO,
    trust: Trust = False,
    output: Output = None,
    labels: Labels = None,
    preprocess: Preprocess = None,
    as_json: Json = False,
) -> None:
    """Convert a PyTorch model; PyTorch has to be installed.

    \b
    Examples:
      onnx-gradcam export pytorch model.pt2 -o model.onnx --layer layer4
      onnx-gradcam export pytorch mine:build -o model.onnx --weights mine.safetensors --trust
      onnx-gradcam export pytorch torchvision.models:resnet18 -o model.onnx --weights resnet18.pth
    """  # noqa: D301 - \b keeps the lines of the examples apart
    sides = None if size is None else _numbers(size, 2, "--size")
    from .exporting import export_pytorch  # noqa: PLC0415 - --help must not wait for it

    export_pytorch(
        source,
        out,
        weights=weights,
        layer=layer,
        call=call,
        size=sides,
        exporter=exporter.value,
        trust=trust,
        **chosen(output=output, labels=labels, preprocess=preprocess, as_json=as_json),
    )


@export.command(short_help="A .tflite file, quantised or not; through TensorFlow and tf2onnx.")
def tflite(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .tflite file.", show_default=False)],
    *,
    out: Out,
    layer: Layer = None,
    python: Python = None,
    output: Output = None,
    labels: Labels = None,
    preprocess: Preprocess = None,
    as_json: Json = False,
) -> None:
    """Convert a TFLite model; TensorFlow and tf2onnx have to be installed, here or beside --python.

    \b
    Example:
      onnx-gradcam export tflite model.tflite -o model.onnx --python ~/tf/bin/python
    """  # noqa: D301 - \b keeps the lines of the example apart
    from .exporting import export_tflite  # noqa: PLC0415 - --help must not wait for it

    export_tflite(
        model,
        out,
        python=python,
        layer=layer,
        **chosen(output=output, labels=labels, preprocess=preprocess, as_json=as_json),
    )


@export.command(short_help="Any ONNX model: its layer exposed, class names and preprocessing put in.")
def onnx(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)],
    *,
    out: Out,
    layer: Layer = None,
    output: Output = None,
    labels: Labels = None,
    preprocess: Preprocess = None,
    as_json: Json = False,
) -> None:
    """Write an ONNX model again with the layer to explain among its outputs; opset 18 or above, weights off the inputs.

    \b
    Example:
      onnx-gradcam export onnx model.onnx -o named.onnx --layer relu5 --labels names.txt --preprocess torchvision
    """  # noqa: D301 - \b keeps the lines of the example apart
    from .exporting import export_onnx  # noqa: PLC0415 - --help must not wait for it

    export_onnx(model, out, layer=layer, **chosen(output=output, labels=labels, preprocess=preprocess, as_json=as_json))


def _numbers(text: str, count: int, option: str) -> tuple[int, ...]:
    """So many positive numbers, between commas."""
    parts = text.split(",")
    if len(parts) != count or not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
        raise typer.BadParameter(f"{count} numbers above 0 with commas between them, not {text!r}.", param_hint=option)
    return tuple(int(p) for p in parts)
