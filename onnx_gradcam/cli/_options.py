"""Options that several commands share, declared once: `@explains()` gives a command those of `onnx_gradcam.Options`."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from onnx_gradcam.options import (
    Background,
    BoxFormat,
    ChannelReduction,
    ClassInput,
    Combine,
    GradDtype,
    MaskKind,
    ModifierName,
    Probabilities,
    ScoreKind,
    Weights,
)

if TYPE_CHECKING:
    from onnx_gradcam.runtime.detections import Selection

__all__ = ["OPTIONS", "BoxIndex", "BoxNumber", "BoxRank", "Command", "ImagesArgument", "ImagesOption", "Json"]
__all__ += [
    "FeedValues",
    "LeastScore",
    "MethodNames",
    "ModelFile",
    "ModelName",
    "ModelPath",
    "OutFolder",
    "Provider",
    "Seed",
]
__all__ += ["Targets", "Threads", "count", "explains", "flags", "model_source", "named", "names", "option"]
__all__ += ["read_feeds", "registered", "selected_boxes"]

_PANELS = ("Model", "Target", "Method", "Image", "Output", "Runtime")
"""The groups of options in the help, in this order; what has none comes last."""

_FILE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".npy", ".npz", ".onnx", ".png", ".tif", ".tiff", ".webp")


def option(panel: str, help: str, *flags: str, **more: Any) -> Any:  # noqa: A002 - typer's own word
    """An option in a panel of the help; `{tasks}` and the like in its text stand for the names in a registry."""
    return typer.Option(*flags, help=help, rich_help_panel=panel, show_default=more.pop("show_default", True), **more)


def count(help: str, **more: Any) -> Any:  # noqa: A002 - typer's own word
    """An option in the panel Runtime that takes an integer of at least 1."""
    return option("Runtime", help, **{"min": 1, "metavar": "N", **more})


_REGISTRIES = {
    "methods": ("editor.methods.catalogue", "methods"),
    "presets": ("editor.presets", "PRESETS"),
    "profiles": ("autodiff.providers", "PROFILES"),
    "engines": ("editor.engines", "ENGINES"),
    "tasks": ("editor.targets.task", "TASKS"),
    "preprocessing": ("images.preprocessing", "PRESETS"),
}


def registered(kind: str) -> list[str]:
    """The names in a registry, which is imported only now: --help must not wait for it."""
    module, name = _REGISTRIES[kind]
    entries = getattr(importlib.import_module(f"onnx_gradcam.{module}"), name)
    return list(entries() if callable(entries) else entries)


def named(kind: str) -> dict[str, Any]:
    """What options have that take names of a registry: completion of the last of several with commas between."""

    def complete(incomplete: str) -> Iterator[str]:
        before, comma, last = incomplete.rpartition(",")
        return (before + comma + name for name in registered(kind) if name.startswith(last))

    return {"metavar": "NAME", "autocompletion": complete}


def _no_file(value: Any) -> Any:
    for name in [value] if isinstance(value, str) else value or ():
        if name.lower().endswith(_FILE_SUFFIXES):
            raise typer.BadParameter(
                f"{name!r} looks like a file, but --output names one of the model's outputs; name the file to write "
                "with -o or --out."
            )
    return value


ModelFile = Annotated[
    str, typer.Argument(metavar="MODEL", help="ONNX file; - reads it from standard input.", show_default=False)
]
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file, explained or not.")]
OutFolder = Annotated[Path, option("Output", "Folder to create.", "-o", "--out", metavar="FOLDER", show_default=False)]
ModelName = Annotated[
    str | None, option("Output", "Name of the model in requests. [default: that of the file]", metavar="NAME")
]
ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES",
        help="Image files, folders, quoted patterns such as 'photos/*.jpg', or - for standard input.",
        show_default=False,
    ),
]
ImagesOption = Annotated[
    list[str],
    option(
        "Image",
        "Images: a folder, a quoted pattern or a file. Give it several times for more.",
        "--images",
        metavar="FOLDER",
        show_default=False,
    ),
]
BoxNumber = Annotated[
    str | None,
    option(
        "Target",
        "Detection only: a box by its number in the list of boxes, `all` for a map each, or `sum` for one map of "
        "all boxes of the class. [default: the surest]",
        "--box",
        metavar="N|all|sum",
    ),
]
BoxRank = Annotated[
    int | None,
    option("Target", "Detection only: rank of the object in its class, 0 for the surest.", min=0, metavar="RANK"),
]
BoxIndex = Annotated[
    int | None,
    option(
        "Target", "Detection only: index of the box in the model's own table.", "--box-index", min=0, metavar="INDEX"
    ),
]
LeastScore = Annotated[
    float | None,
    option("Target", "With --box: lowest score in the list. [default: 0.25]", min=0, max=1, metavar="0..1"),
]
Targets = Annotated[
    list[str] | None,
    option(
        "Target",
        "Class to explain: name, index, or top3; several separated by commas. [default: predicted class]",
        metavar="CLASS",
    ),
]
MethodNames = Annotated[
    str | None,
    option(
        "Method",
        "Method; several separated by commas are compared. `methods` lists them. [default: the task's own]",
        "--method",
        **{**named("methods"), "metavar": "NAME[,NAME...]"},
    ),
]
Provider = Annotated[str, option("Runtime", "Execution provider; `doctor` lists them.", metavar="NAME")]
Threads = Annotated[int | None, count("Number of CPU threads. [default: all cores]")]
Seed = Annotated[int, count("Random seed, for methods that draw random numbers.", min=0)]


def read_feeds(values: list[str] | None) -> dict[str, Any]:
    """The values of `--feed` by name."""
    from onnx_gradcam.feeds import read_pairs  # noqa: PLC0415 - --help must not wait for it

    return read_pairs(values or ())


FeedValues = Annotated[
    list[str] | None,
    option(
        "Image",
        "Value of another input: a .npy file, FILE.npz:KEY, a picture, JSON, zeros, ones, image-size (of the photo: "
        "width, height), image-size-hw, or scale; or @FILE.json with values by name. Repeat it for more inputs.",
        "--feed",
        metavar="NAME=VALUE",
    ),
]
Json = Annotated[bool, option("Output", "Print one JSON document and nothing else.", "--json")]


def _declared(kind: Any, panel: str, help: str, *flags: str, **more: Any) -> Any:  # noqa: A002 - typer's own word
    return Annotated[kind | None, option(panel, help, *flags, **more)]


OPTIONS: dict[str, Any] = {
    "probabilities": _declared(
        Probabilities,
        "Model",
        "How scores become probabilities, for a classifier without a final activation; `sigmoid` if several classes "
        "may be in one image. [default: as stored in the model, else softmax; sigmoid for a single logit]",
        metavar="softmax|sigmoid|none",
    ),
    "labels": _declared(
        Path, "Model", "Class names: text or JSON (list, id2label). [default: those in the model]", metavar="FILE"
    ),
    "output": _declared(
        list[str],
        "Model",
        "Model output with the scores, repeated for several. (-o names the file to write.)",
        "--output",
        metavar="NAME",
        callback=_no_file,
    ),
    "image": _declared(str, "Model", "Model input that takes the image.", "--input", metavar="NAME"),
    "bake": _declared(
        list[str],
        "Model",
        "Another input that becomes a constant of the model: a .npy file, FILE.npz:KEY, JSON, zeros or ones. Repeat it "
        "for more.",
        "--bake",
        metavar="NAME=VALUE",
    ),
    "task": _declared(
        str,
        "Model",
        "What the model does: {tasks}. [default: detection if it holds tables of boxes, else classification]",
        **named("tasks"),
    ),
    "target": _declared(
        str, "Target", "With --class-input none: class to fix in the model. [default: predicted class]", metavar="CLASS"
    ),
    "against": _declared(
        str, "Target", "Explain the lead over this class, the `runner-up`, or all `others`.", metavar="CLASS"
    ),
    "score": _declared(
        ScoreKind,
        "Target",
        "Explain the logit, before a final softmax or sigmoid, or the output. [default: as the preset says]",
        metavar="logit|output",
    ),
    "mask": _declared(
        MaskKind,
        "Target",
        "Segmentation only: sum scores over the class's own mask, all positions, or an input. [default: own]",
        metavar="own|all|input",
    ),
    "boxes": _declared(
        BoxFormat,
        "Target",
        "Detection only: box format, scores [N, boxes, classes], yolov5 [N, boxes, 5 + classes] or yolov8 "
        "[N, 4 + classes, boxes]. [default: as the graph says]",
        metavar="FORMAT",
    ),
    "background": _declared(
        Background,
        "Target",
        "Detection only: which score of a box is the background's. [default: as the graph or the class names say]",
        metavar="first|last|none",
    ),
    "box_rank": _declared(
        int, "Target", "Detection only: rank of the box in its class. [default: 0, the best]", min=0, metavar="RANK"
    ),
    "box": BoxIndex,
    "at": _declared(
        int,
        "Target",
        "Place on the second axis of an output [N, places, classes] to explain: a task, a step of time, a word.",
        min=0,
        metavar="INDEX",
    ),
    "reference": _declared(Path, "Target", "Embedding only: image or .npy embedding to compare with.", metavar="FILE"),
    "method": _declared(
        str,
        "Method",
        "Method; `methods` lists them. [default: the task's own, gradcam for classifiers]",
        **named("methods"),
    ),
    "preset": _declared(
        str, "Method", "Library whose conventions to follow; `methods --presets` lists them.", **named("presets")
    ),
    "layer": _declared(
        list[str],
        "Method",
        "Layer to explain, as `inspect` lists them, or `backbone` for the end of a detector's; repeat it to combine "
        "several. [default: automatic]",
        metavar="NAME",
    ),
    "combine": _declared(
        Combine,
        "Method",
        "How heatmaps of several layers become one; sum adds raw maps. [default: sum for the levels of a detector, "
        "else mean]",
        metavar="mean|max|product|sum",
    ),
    "baseline": _declared(
        list[str],
        "Method",
        "What stands for no information: zero, black, white, darkest, lightest, mean, uniform:SEED, blur:SIGMA, or an "
        "image or .npy file. Repeat it to average. [default: as the method says]",
        metavar="WORD|FILE",
    ),
    "steps": _declared(
        int, "Method", "Path methods: gradients for each baseline. [default: as the method says]", min=1, metavar="N"
    ),
    "idgi": _declared(
        bool, "Method", "Path methods: weight each step by what it changes of the score (IDGI).", "--idgi"
    ),
    "smooth": _declared(
        int, "Method", "Path methods: average over N noisy copies of the image. [default: none]", min=1, metavar="N"
    ),
    "players": _declared(
        str,
        "Method",
        "Games: parts of the image, grid:ROWSxCOLUMNS, segments:SCALE or a .npy file of numbers, one a pixel. "
        "[default: as the method says]",
        metavar="PARTS",
    ),
    "max_passes": _declared(
        int, "Method", "Games: most forward passes. [default: as the method says]", min=1, metavar="N"
    ),
    "weights": _declared(
        Weights,
        "Method",
        "How channel weights are computed: linear (closed form), gradient, or finite (differences). "
        "[default: auto, the first that applies]",
        metavar="KIND",
    ),
    "modifier": _declared(
        ModifierName,
        "Method",
        "How the gradient is passed back: guided and deconvnet change rectifiers; libra is complete. "
        "[default: unchanged]",
        metavar="guided|deconvnet|libra",
    ),
    "channels": _declared(
        ChannelReduction,
        "Method",
        "How color channels of an attribution become one map. [default: max for absolute values, else sum]",
        metavar="max|sum",
    ),
    "eigen_smooth": _declared(
        bool, "Method", "Leading principal component of the weighted maps, not their sum.", "--eigen-smooth"
    ),
    "preprocess": _declared(
        str,
        "Image",
        "How an image becomes the input: {preprocessing}; or JSON, or a JSON file. [default: as stored in the model]",
        metavar="NAME|FILE|JSON",
    ),
    "class_input": _declared(
        ClassInput,
        "Target",
        "How clients choose the class: optional or required input, none (fixed now), or all classes at once "
        "(linear heads). [default: optional]",
        metavar="KIND",
    ),
    "expose_activation": _declared(
        bool, "Output", "Output the activation maps of the layer as well.", "--expose-activation"
    ),
    "profile": _declared(
        str,
        "Runtime",
        "Operators for gradients: {profiles}. [default: portable for a file; where a command runs the model on ONNX "
        "Runtime's CPU provider, cpu]",
        **named("profiles"),
    ),
    "grad_dtype": _declared(
        GradDtype, "Runtime", "Dtype of gradients: the model's, or float32. [default: model]", metavar="model|float32"
    ),
}
"""How each field of `Options` is said on the command line."""


def explains(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of `Options`, but for `without`, to a command, which gets those that users give as `choices`."""
    shared = {name: declaration for name, declaration in OPTIONS.items() if name not in without}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        # Of a parameter whose default is None, get_type_hints loses the declaration in Python 3.10.
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name != "choices"]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=declaration)
            for name, declaration in shared.items()
        ]

        @functools.wraps(command)
        def call(**values: Any) -> None:
            choices = {name: value for name in shared if (value := values.pop(name)) not in (None, [])}
            if "bake" in choices:
                choices["bake"] = read_feeds(choices["bake"])
            command(**values, choices=choices)

        # typer reads these; __wrapped__ would lead it to the undecorated function.
        call.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
        del call.__wrapped__
        return call

    return decorate


def flags(choices: Mapping[str, Any]) -> list[str]:
    """Choices of `Options` as words of the command line."""
    words: list[str] = []
    for name, value in choices.items():
        declared = OPTIONS[name].__metadata__[0].default
        # In an annotation, typer takes the first flag for a default.
        flag = declared if isinstance(declared, str) else f"--{name.replace('_', '-')}"
        repeated = list(value) if isinstance(value, list) else [value]
        if isinstance(value, Mapping):
            pairs = [f"{key}={_said(one)}" for key, one in value.items()]
            repeated = pairs if name == "bake" else [_said(value)]
        for one in repeated:
            words += [flag] if one is True else [flag, str(one)]
    return words


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class Command(TyperCommand):
    """A command whose help groups the options, with the names of registries filled in."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options group by group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        groups |= {panel: [] for panel in (*_PANELS, "Options")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            panel = getattr(parameter, "rich_help_panel", None) or "Options"
            if parameter.param_type_name == "argument":
                panel = "Arguments"
            groups.setdefault(panel, []).append((record[0], _filled(record[1])))
        for panel, records in groups.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records, col_max=27)


def _filled(text: str) -> str:
    """A help text with the names of registries in place of `{tasks}` and the like."""
    for kind in _REGISTRIES:
        if f"{{{kind}}}" in text:
            words = registered(kind)
            text = text.replace(f"{{{kind}}}", f"{', '.join(words[:-1])} or {words[-1]}")
    return text


def names(text: str | None, flag: str) -> list[str]:
    """The names in a comma-separated list; refuses an empty or a repeated one."""
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if "" in parts or len(set(parts)) < len(parts):
        raise typer.BadParameter(f"{text!r} has an empty or a repeated name.", param_hint=flag)
    return parts


def model_source(model: str) -> Path | bytes:
    """The model's path, or its bytes where it comes from standard input."""
    if not model:
        raise typer.BadParameter("the name is empty.", param_hint="MODEL")
    return sys.stdin.buffer.read() if model == "-" else Path(model)


_LONGEST_NUMBER = 9


def selected_boxes(
    box: str | None, rank: int | None, index: int | None, least: float | None, *, most: int | None
) -> Selection | None:
    """The boxes to explain, as the options say; of all boxes at most so many."""
    given = {"--box": box, "--box-rank": rank, "--box-index": index}
    flags = [flag for flag, value in given.items() if value is not None]
    if len(flags) > 1:
        raise typer.BadParameter(f"it and {flags[0]} both choose the box; give one of them.", param_hint=flags[1])
    if least is not None and box is None:
        raise typer.BadParameter("it is for the list that --box chooses from; give both.", param_hint="--least")
    if not flags:
        return None
    from onnx_gradcam.runtime.detections import Selection  # noqa: PLC0415 - --help must not wait for it

    if rank is not None:
        return Selection(which="rank", value=rank)
    if index is not None:
        return Selection(which="index", value=index)
    lowest = Selection.least if least is None else least
    if box == "all":
        return Selection(which="all", least=lowest, most=most)
    if box == "sum":
        return Selection(which="sum", least=lowest)
    if box is None or not box.isdecimal() or len(box) > _LONGEST_NUMBER:
        raise typer.BadParameter(f"{box!r} is neither a number nor all or sum.", param_hint="--box")
    return Selection(which="number", value=int(box), least=lowest)
