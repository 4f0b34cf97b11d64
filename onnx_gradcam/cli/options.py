"""The options that several commands share, in the user's words."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Against",
    "Box",
    "BoxRank",
    "Boxes",
    "BoxesKind",
    "ChannelKind",
    "Channels",
    "Combine",
    "CombineKind",
    "EigenSmooth",
    "GradDtype",
    "GradDtypeKind",
    "Image",
    "Json",
    "Labels",
    "Layer",
    "Mask",
    "MaskKind",
    "Method",
    "ModelFile",
    "Modifier",
    "ModifierKind",
    "Output",
    "Outputs",
    "Preprocess",
    "Preset",
    "Profile",
    "ProfileKind",
    "Reference",
    "Score",
    "ScoreKind",
    "StyleKind",
    "Task",
    "TaskKind",
    "WeightKind",
    "Weights",
    "chosen",
    "model_source",
]

_FILE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".npy", ".npz", ".onnx", ".png", ".tif", ".tiff", ".webp")


class WeightKind(str, Enum):
    """How the weights of the activation maps are had."""

    AUTO = "auto"
    LINEAR = "linear"
    GRADIENT = "gradient"
    FINITE = "finite"


class ProfileKind(str, Enum):
    """Which runtime a gradient is written for."""

    PORTABLE = "portable"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    COREML = "coreml"
    WEBGPU = "webgpu"


class GradDtypeKind(str, Enum):
    """What a gradient is computed in."""

    MODEL = "model"
    FLOAT32 = "float32"


class ModifierKind(str, Enum):
    """How the gradient is changed on its way back."""

    GUIDED = "guided"
    DECONVNET = "deconvnet"


class ChannelKind(str, Enum):
    """How channels become one map."""

    MAX = "max"
    SUM = "sum"


class CombineKind(str, Enum):
    """How several layers become one map."""

    MEAN = "mean"
    MAX = "max"
    PRODUCT = "product"


class StyleKind(str, Enum):
    """How a heatmap is shown."""

    OVERLAY = "overlay"
    MASK = "mask"
    CONTOUR = "contour"
    BOX = "box"
    ALPHA = "alpha"
    SIGNED = "signed"


class ScoreKind(str, Enum):
    """Which score of the class is explained."""

    LOGIT = "logit"
    OUTPUT = "output"


class TaskKind(str, Enum):
    """What the model does."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    SEGMENTATION = "segmentation"
    DETECTION = "detection"
    EMBEDDING = "embedding"


class MaskKind(str, Enum):
    """Where a segmentation is explained."""

    OWN = "own"
    ALL = "all"
    INPUT = "input"


class BoxesKind(str, Enum):
    """How the scores of boxes lie."""

    SCORES = "scores"
    YOLOV5 = "yolov5"
    YOLOV8 = "yolov8"


def _no_file(value: str | None) -> str | None:
    if value is not None and value.lower().endswith(_FILE_SUFFIXES):
        raise typer.BadParameter(
            f"{value!r} looks like a file, but --output names one of the model's outputs; "
            "the file to write is given with -o or --out."
        )
    return value


def _no_files(values: list[str] | None) -> list[str] | None:
    for value in values or ():
        _no_file(value)
    return values


ModelFile = Annotated[
    str, typer.Argument(metavar="MODEL", help="The .onnx file; - reads it from standard input.", show_default=False)
]
Layer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Where in the model to look: the name of a tensor or a node, as `inspect` lists them. By default the "
        "last place in the model that still has a height and a width. Several make one map of several layers.",
    ),
]
Method = Annotated[
    str | None, typer.Option(metavar="NAME", help="How the heatmap is made; `methods` lists them. [default: gradcam]")
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Follow the conventions of another library, from the score to the image; `methods --presets` lists "
        "them. [default: default]",
    ),
]
Modifier = Annotated[
    ModifierKind | None,
    typer.Option(
        help="Change the gradient on its way back through ReLUs and the like: `guided` backpropagation or `deconvnet`. "
        "[default: what method and preset say]"
    ),
]
Channels = Annotated[
    ChannelKind | None,
    typer.Option(
        help="How the colour channels of an attribution become one map. [default: max where the sign does not matter, "
        "else sum]"
    ),
]
Combine = Annotated[
    CombineKind | None,
    typer.Option(
        help="With several layers: how their heatmaps become one. [default: what method and preset say, mostly mean]"
    ),
]
EigenSmooth = Annotated[
    bool,
    typer.Option(
        "--eigen-smooth",
        help="Show the leading principal component of the weighed activation maps and not their sum: less noise, and "
        "a sign that is a guess.",
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS|runner-up",
        help="Explain how far the class is ahead of this one, given by its number or its name, or of the `runner-up`, "
        "rather than its score.",
    ),
]
Weights = Annotated[
    WeightKind | None,
    typer.Option(
        help="How the importance of each activation map is had: `linear` in closed form where the model ends in "
        "pooling and one linear layer, `gradient` by the chain rule, `finite` by small changes where an operator "
        "has no rule. They agree where they apply. [default: auto, the first that applies]"
    ),
]
Profile = Annotated[
    ProfileKind | None,
    typer.Option(
        help="How a gradient is written into the model: `portable` for every runtime, `cpu` for speed in ONNX "
        "Runtime on the CPU, with mirrored weights stored a second time, the others in operators that the provider "
        "of that name documents. The results are the same. [default: portable]"
    ),
]
GradDtype = Annotated[
    GradDtypeKind | None,
    typer.Option(
        help="What a gradient is computed in: the number type of the `model`, kept within its range where that is "
        "float16, or `float32` whatever the model's is. [default: model]"
    ),
]
Score = Annotated[
    ScoreKind | None,
    typer.Option(
        help="Explain the class's `logit`, before a final softmax or sigmoid, or the `output` itself. [default: logit, "
        "unless the preset says otherwise]"
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        metavar="NAME",
        callback=_no_file,
        help="The model's output that holds the scores, where several could. (The file to write is -o.)",
    ),
]
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        "--output",
        metavar="NAME",
        callback=_no_files,
        help="The model's output that holds the scores, where several could; several times for a detector whose boxes "
        "lie in several. (The file to write is -o.)",
    ),
]
Task = Annotated[
    TaskKind | None,
    typer.Option(
        help="What the model does. Of a `segmentation` the scores of a class are summed over a part of the image, of "
        "a `detection` the score of one box is explained, of an `embedding` its similarity to --reference, and each "
        "value of a `regression` itself. [default: classification]"
    ),
]
Mask = Annotated[
    MaskKind | None,
    typer.Option(
        help="Of a segmentation: sum the scores of a class over its `own` mask, over `all` of the image, or over a "
        "region that the explained model gets as its `input` target_mask. [default: own]"
    ),
]
Boxes = Annotated[
    BoxesKind | None,
    typer.Option(
        help="Of a detector, how its boxes lie: `scores` [N, boxes, classes], `yolov5` [N, boxes, 5 + classes], "
        "`yolov8` [N, 4 + classes, boxes]. [default: scores]"
    ),
]
BoxRank = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="RANK",
        help="Of a detector: explain the box of this rank among those of the class. [default: 0, the one with the "
        "highest score]",
    ),
]
Box = Annotated[
    int | None,
    typer.Option(min=0, metavar="NUMBER", help="Of a detector: explain the box of this number instead of a rank."),
]
Reference = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Of an embedding: what to be similar to, an image or an embedding in a .npy file.",
    ),
]
Image = Annotated[
    str | None,
    typer.Option("--input", metavar="NAME", help="The model's input that takes the image, where several could."),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Class names, one a line, the first for class 0. By default those that the model carries, if any.",
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE|JSON",
        help="How an image becomes the model's input: torchvision, keras-caffe, keras-tf, keras-torch, mxnet-gluon, "
        'none, a JSON file, or JSON such as \'{"size": [224, 224], "color": "rgb", "scale": 0.0039, "mean": '
        '[0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}\'. By default what the model carries.',
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs, and nothing else.")]


def chosen(**options: Any) -> dict[str, Any]:
    """Those options that were given, enumerations as plain text."""
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value in options.items()
        if value is not None and value != []
    }


def model_source(model: str) -> Path | bytes:
    """The model's path, or its bytes where it comes from standard input."""
    if not model:
        raise typer.BadParameter("the name is empty.", param_hint="MODEL")
    return sys.stdin.buffer.read() if model == "-" else Path(model)
