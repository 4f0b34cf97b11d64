"""Options that several commands share, declared once: `@explains()` gives a command those of `onnx_gradcam.Options`."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from onnx_gradcam.options import (
    BoxFormat,
    ChannelReduction,
    ClassInput,
    Combine,
    GradDtype,
    MaskKind,
    ModifierName,
    ScoreKind,
    Weights,
)

__all__ = [
    "OPTIONS",
    "Command",
    "ImagesArgument",
    "Json",
    "MethodNames",
    "ModelFile",
    "Provider",
    "Seed",
    "Targets",
    "Threads",
    "explains",
    "model_source",
    "names",
    "option",
    "registered",
]

_PANELS = ("Model", "Target", "Method", "Image", "Output", "Runtime")
"""The groups of options in the help, in this order; what has none comes last."""

_FILE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".npy", ".npz", ".onnx", ".png", ".tif", ".tiff", ".webp")


def option(panel: str, help: str, *flags: str, **more: Any) -> Any:  # noqa: A002 - typer's own word
    """An option of a group of the help.

    Args:
        panel: Model, Target, Method, Image, Output or Runtime.
        help: a sentence; `{tasks}` and the like stand for the names in a registry.
        flags: `--name`, where it is not the parameter's name.
        more: other arguments of `typer.Option`.
    """
    return typer.Option(*flags, help=help, rich_help_panel=panel, show_default=more.pop("show_default", True), **more)


def registered(kind: str) -> list[str]:
    """The names in a registry: `methods`, `presets`, `profiles` or `tasks`."""
    if kind == "methods":
        from onnx_gradcam.editor.methods.catalogue import methods  # noqa: PLC0415 - --help must not wait for it

        return list(methods())
    if kind == "presets":
        from onnx_gradcam.editor.presets import PRESETS  # noqa: PLC0415

        return list(PRESETS)
    if kind == "profiles":
        from onnx_gradcam.autodiff.providers import PROFILES  # noqa: PLC0415

        return list(PROFILES)
    if kind == "tasks":
        from onnx_gradcam.editor.targets.task import TASKS  # noqa: PLC0415

        return list(TASKS)
    raise KeyError(kind)


def _completed(kind: str) -> Callable[[str], Iterator[str]]:
    """Completion of the last of several names with commas between."""

    def complete(incomplete: str) -> Iterator[str]:
        before, comma, last = incomplete.rpartition(",")
        return (before + comma + name for name in registered(kind) if name.startswith(last))

    return complete


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
ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES",
        help="Image files, folders, quoted patterns such as 'photos/*.jpg', or - for standard input.",
        show_default=False,
    ),
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
        metavar="NAME[,NAME...]",
        autocompletion=_completed("methods"),
    ),
]
Provider = Annotated[str, option("Runtime", "Execution provider; `doctor` lists them.", metavar="NAME")]
Threads = Annotated[int | None, option("Runtime", "Number of CPU threads. [default: all cores]", min=1, metavar="N")]
Seed = Annotated[int, option("Runtime", "Random seed, for methods that draw random numbers.", min=0, metavar="N")]
Json = Annotated[bool, option("Output", "Print one JSON document and nothing else.", "--json")]

OPTIONS: dict[str, Any] = {
    "labels": Annotated[
        Path | None,
        option(
            "Model",
            "Class names: text, one per line, or JSON (list, id2label). [default: those in the model]",
            metavar="FILE",
        ),
    ],
    "output": Annotated[
        list[str] | None,
        option(
            "Model",
            "Model output with the scores, repeated for several. (-o names the file to write.)",
            "--output",
            metavar="NAME",
            callback=_no_file,
        ),
    ],
    "image": Annotated[str | None, option("Model", "Model input that takes the image.", "--input", metavar="NAME")],
    "task": Annotated[
        str | None,
        option(
            "Model",
            "What the model does: {tasks}. [default: classification]",
            metavar="NAME",
            autocompletion=_completed("tasks"),
        ),
    ],
    "target": Annotated[
        str | None,
        option(
            "Target",
            "With --class-input none: class to fix in the model, by name or index. [default: predicted class]",
            metavar="CLASS",
        ),
    ],
    "against": Annotated[
        str | None, option("Target", "Explain the lead over this class, or over the `runner-up`.", metavar="CLASS")
    ],
    "score": Annotated[
        ScoreKind | None,
        option(
            "Target",
            "Explain the logit, before a final softmax or sigmoid, or the output. [default: as the preset says]",
            metavar="logit|output",
        ),
    ],
    "mask": Annotated[
        MaskKind | None,
        option(
            "Target",
            "Segmentation only: sum scores over the class's own mask, all positions, or an input. [default: own]",
            metavar="own|all|input",
        ),
    ],
    "boxes": Annotated[
        BoxFormat | None,
        option(
            "Target",
            "Detection only: box format, scores [N, boxes, classes], yolov5 [N, boxes, 5 + classes] or yolov8 "
            "[N, 4 + classes, boxes]. [default: scores]",
            metavar="FORMAT",
        ),
    ],
    "box_rank": Annotated[
        int | None,
        option("Target", "Detection only: rank of the box in its class. [default: 0, the best]", min=0, metavar="RANK"),
    ],
    "box": Annotated[int | None, option("Target", "Detection only: index of the box.", min=0, metavar="INDEX")],
    "reference": Annotated[
        Path | None, option("Target", "Embedding only: image or .npy embedding to compare with.", metavar="FILE")
    ],
    "method": Annotated[
        str | None,
        option(
            "Method",
            "Method; `methods` lists them. [default: the task's own, gradcam for classifiers]",
            metavar="NAME",
            autocompletion=_completed("methods"),
        ),
    ],
    "preset": Annotated[
        str | None,
        option(
            "Method",
            "Library whose conventions to follow; `methods --presets` lists them.",
            metavar="NAME",
            autocompletion=_completed("presets"),
        ),
    ],
    "layer": Annotated[
        list[str] | None,
        option(
            "Method",
            "Layer to explain, as `inspect` lists them; repeat it to combine several. [default: automatic]",
            metavar="NAME",
        ),
    ],
    "combine": Annotated[
        Combine | None,
        option("Method", "How heatmaps of several layers become one. [default: mean]", metavar="mean|max|product"),
    ],
    "weights": Annotated[
        Weights | None,
        option(
            "Method",
            "How channel weights are computed: linear (closed form), gradient, or finite (differences). "
            "[default: auto, the first that applies]",
            metavar="KIND",
        ),
    ],
    "modifier": Annotated[
        ModifierName | None,
        option("Method", "How rectifiers pass the gradient back. [default: unchanged]", metavar="guided|deconvnet"),
    ],
    "channels": Annotated[
        ChannelReduction | None,
        option(
            "Method",
            "How color channels of an attribution become one map. [default: max for absolute values, else sum]",
            metavar="max|sum",
        ),
    ],
    "eigen_smooth": Annotated[
        bool | None,
        option("Method", "Leading principal component of the weighted maps, not their sum.", "--eigen-smooth"),
    ],
    "preprocess": Annotated[
        str | None,
        option(
            "Image",
            "How an image becomes the model's input: {preprocessing}, a JSON file or JSON. [default: as stored in "
            "the model]",
            metavar="NAME|FILE|JSON",
        ),
    ],
    "class_input": Annotated[
        ClassInput | None,
        option(
            "Target",
            "How clients choose the class: optional or required input, none (fixed now), or all classes at once "
            "(linear heads). [default: optional]",
            metavar="KIND",
        ),
    ],
    "expose_activation": Annotated[
        bool | None, option("Output", "Output the activation maps of the layer as well.", "--expose-activation")
    ],
    "profile": Annotated[
        str | None,
        option(
            "Runtime",
            "Operators for gradients: {profiles}. [default: portable]",
            metavar="NAME",
            autocompletion=_completed("profiles"),
        ),
    ],
    "grad_dtype": Annotated[
        GradDtype | None,
        option(
            "Runtime", "Dtype of gradients: that of the model, or float32. [default: model]", metavar="model|float32"
        ),
    ],
}
"""How each field of `Options` is said on the command line."""


def explains(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of `Options` to a command; it gets those that were given as `choices`.

    Args:
        without: fields that the command does not take, or declares itself.
    """
    shared = {name: declaration for name, declaration in OPTIONS.items() if name not in without}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        hints = get_type_hints(command, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values() if p.name != "choices"]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=declaration)
            for name, declaration in shared.items()
        ]

        @functools.wraps(command)
        def call(**values: Any) -> None:
            choices = {name: value for name in shared if (value := values.pop(name)) not in (None, [])}
            command(**values, choices=choices)

        # typer reads these; __wrapped__ would lead it to the undecorated function.
        call.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
        del call.__wrapped__
        return call

    return decorate


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


def _filled(help: str) -> str:  # noqa: A002 - typer's own word
    for kind in ("profiles", "tasks"):
        if f"{{{kind}}}" in help:
            help = help.replace(f"{{{kind}}}", _listed(registered(kind)))  # noqa: A001
    if "{preprocessing}" in help:
        from onnx_gradcam.images.preprocessing import PRESETS  # noqa: PLC0415 - --help must not wait for it

        help = help.replace("{preprocessing}", ", ".join(PRESETS))  # noqa: A001
    return help


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def names(text: str | None, flag: str) -> list[str]:
    """The names in a comma-separated list.

    Raises:
        typer.BadParameter: an empty or a repeated name.
    """
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if "" in parts or len(set(parts)) < len(parts):
        raise typer.BadParameter(f"{text!r} has an empty or a repeated name.", param_hint=flag)
    return parts


def model_source(model: str) -> Path | bytes:
    """The model's path, or its bytes where it comes from standard input."""
    if not model:
        raise typer.BadParameter("the name is empty.", param_hint="MODEL")
    return sys.stdin.buffer.read() if model == "-" else Path(model)
