"""`onnx-gradcam inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnx_gradcam.metadata import OWN
from onnx_gradcam.options import Options

from ._options import Json, ModelFile, explains, model_source, option
from ._output import complain, layers, say, say_json, shape, table

if TYPE_CHECKING:
    from onnx_gradcam.evaluation.inspection import Decisions, Inspection, ScoreInfo, SeenImage
    from onnx_gradcam.metadata import Metadata

__all__ = ["inspect"]

_SHOWN_CANDIDATES = 12


@explains(without={"class_input", "target", "eigen_smooth", "expose_activation", "probabilities", "profile"})
def inspect(
    model: ModelFile,
    photo: Annotated[
        Path | None,
        typer.Argument(metavar="IMAGE", help="Image, to see what the preprocessing makes of it.", show_default=False),
    ] = None,
    *,
    choices: dict[str, Any],
    out: Annotated[
        Path | None,
        option("Output", "With IMAGE: write it as the model sees it.", "-o", "--out", metavar="FILE"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which layer and output would be explained, and why.

    \b
    Examples:
      onnx-gradcam inspect model.onnx
      onnx-gradcam inspect model.onnx --layer block3_out --json
      onnx-gradcam inspect model.onnx photo.jpg --preprocess torchvision -o seen.png

    Prints, without running the model: inputs and outputs, the score and the layer with the reasons for choosing them,
    the other layers to choose from, and the operators on the way that have no gradient rule. If the model cannot be
    explained, the last line says why, and the exit code is 1.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from onnx_gradcam.evaluation import inspection  # noqa: PLC0415 - --help must not wait for it

    if out is not None and photo is None:
        raise typer.BadParameter("it is for an image as the model sees it; name the image.", param_hint="-o")
    result = inspection.inspect(model_source(model), Options(**choices), photo=photo)
    if out is not None and result.seen is not None:
        from onnx_gradcam.images.drawing import save_image  # noqa: PLC0415

        save_image(result.seen.image, out)
    if as_json:
        say_json({"model": model, **result.to_dict()})
    else:
        _say(model, result)
        if result.seen is not None:
            _say_seen(result.seen, photo, out)
    if result.refusal:
        if not as_json:
            complain(result.refusal)
        raise typer.Exit(1)


def _say(name: str, result: Inspection) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in result.opset.items())
    if result.explained is not None and result.explained.raised_from is not None:
        opsets += f" (raised from {result.explained.raised_from})"
    say(f"{name}: opset {opsets}" + (f", written by {result.producer}" if result.producer else ""))
    for kind, tensors in (("inputs", result.inputs), ("outputs", result.outputs)):
        say(kind)
        say(table([(repr(tensor.name), tensor.dtype, shape(tensor.shape)) for tensor in tensors]))
    say(f"class names: {_labels(result.labels)}{_origin(result, 'labels')}")
    say(f"preprocessing: {result.preprocessing or 'none stored'}{_origin(result, 'preprocessing')}")
    for origin, stated in result.stated.items():
        say(f"{origin} says: {', '.join(f'{name} {value}' for name, value in stated.items())}")
    if result.decisions is None:
        for line in result.remarks:
            say(f"warning: {line}")
    if result.framework:
        say(f"exported from {result.framework}")
    if result.explained is not None:
        _say_explained(result.explained)
    if result.score is not None:
        _say_score(result.score)
    if result.decisions is not None:
        _say_decisions(result, result.decisions)
    for task, outputs in result.tasks.items():
        say(f"could be explained with --task {task}: output {', '.join(map(repr, outputs))}")


def _say_seen(seen: SeenImage, photo: Path | None, out: Path | None) -> None:
    say(f"{photo} as the model takes it: {seen.dtype} {shape(seen.shape)}, from {seen.low:.4g} to {seen.high:.4g}")
    means, deviations = (", ".join(f"{one:.3g}" for one in values) for values in (seen.means, seen.deviations))
    say(f"  mean of each channel {means}; standard deviation {deviations}")
    if out is not None:
        say(f"  as it sees it -> {out}")


def _labels(labels: Sequence[str] | None) -> str:
    if not labels:
        return "none stored"
    return f"{len(labels)} ({', '.join(labels[:3])}{' ...' if len(labels) > 3 else ''})"


def _origin(result: Inspection, name: str) -> str:
    """Who says it, unless this package stored it itself."""
    origin = result.origins.get(name, OWN)
    return "" if origin == OWN else f", from {origin}"


def _say_explained(metadata: Metadata) -> None:
    say(f"explained already by onnx-gradcam {metadata.version}: {metadata.method} of {layers(metadata)}")
    say(f"  weights {metadata.weights}, score {metadata.score_tensor!r}, scores in output {metadata.scores_output!r}")
    say(f"  image in input {metadata.image_input!r} ({metadata.layout})")
    say(f"  heatmap in output {metadata.heatmap!r}, raw map in output {metadata.cam!r}")
    if metadata.completeness:
        say(f"  what attribution and biases leave of the score: output {metadata.completeness!r}")
    chooser = f"is chosen by input {metadata.class_input!r}" if metadata.class_input else "is fixed in the model"
    say(f"  the class {chooser}; output {metadata.heatmap_class!r} says which one was explained")
    if metadata.heatmap_box:
        box = f"is chosen by input {metadata.box_input!r}" if metadata.box_input else "is fixed in the model"
        say(f"  the box {box}; output {metadata.heatmap_box!r} says which one was explained")
        where = f"places in {metadata.detection_boxes!r}" if metadata.detection_boxes else "places unknown"
        say(f"  all boxes: scores in output {metadata.detection_scores!r}, {where}")


def _say_score(score: ScoreInfo) -> None:
    count = "an unknown number of" if score.classes is None else score.classes
    say(f"score: {score.tensor!r}, {count} classes")
    say(f"  {score.reason}")


def _say_decisions(result: Inspection, decisions: Decisions) -> None:
    say(f"image: {decisions.image_input!r}, {decisions.image_layout}")
    for name, default in decisions.to_feed.items():
        say(f"other input: {name!r}, " + (f"takes {default} unless fed" if default else f"give --feed {name}=VALUE"))
    for layer in decisions.levels:
        say(f"layer: {layer.tensor!r} {shape(layer.shape)} {layer.layout}")
    say(f"  {decisions.layer_reason}")
    say(f"head: {decisions.head}")
    if decisions.task != "classification":
        say(f"task: {decisions.task}")
    modifier = f", modifier {decisions.modifier}" if decisions.modifier else ""
    say(f"method: {decisions.method}, weights {decisions.weights}{modifier}")
    if decisions.complete:
        say(
            "  complete: the image times its gradient, plus biases, is the score; output 'completeness' is what is left"
        )
    if decisions.method_reason:
        say(f"  {decisions.method_reason}")
    named = _named_rows(result, decisions)
    if named:
        _say_choices(named, f"layers of the {result.framework.split()[0] if result.framework else 'original'} model")
    if not any(row[0] == "*" for row in named):
        _say_choices(_candidate_rows(decisions), "tensors" if named else "layers")
    say("operators on the way without a gradient rule:" + ("" if decisions.missing_rules else " none"))
    for line in decisions.missing_rules:
        say(f"  {line}")
    for line in decisions.warnings:
        say(f"warning: {line}")


def _say_choices(rows: Sequence[Sequence[str]], kind: str) -> None:
    shown = [row for i, row in enumerate(rows) if i < _SHOWN_CANDIDATES or row[0] == "*"]
    hidden = len(rows) - len(shown)
    say(f"{kind} to choose from with --layer, the last first" + (f" ({hidden} more with --json)" if hidden else ""))
    say(table(shown))


def _candidate_rows(decisions: Decisions) -> list[tuple[str, ...]]:
    explained = {layer.tensor for layer in decisions.levels}
    return [
        (
            "*" if candidate.tensor in explained else " ",
            repr(candidate.tensor),
            candidate.operator or "input",
            shape(candidate.shape),
            candidate.layout,
            "every path" if candidate.every_path else "a branch",
        )
        for candidate in reversed(decisions.candidates)
    ]


def _named_rows(result: Inspection, decisions: Decisions) -> list[tuple[str, ...]]:
    """The framework's layers that can be explained: name, class, shape, and the tensor if its name is another."""
    candidates = {candidate.tensor: candidate for candidate in decisions.candidates}
    explained = {layer.tensor for layer in decisions.levels}
    return [
        (
            "*" if layer["tensor"] in explained else " ",
            repr(name),
            layer["kind"],
            shape(candidates[layer["tensor"]].shape),
            candidates[layer["tensor"]].layout,
            "every path" if candidates[layer["tensor"]].every_path else "a branch",
            "" if name == layer["tensor"] else f"tensor {layer['tensor']!r}",
        )
        for name, layer in reversed(list(result.layers.items()))
        if layer["tensor"] in candidates
    ]
