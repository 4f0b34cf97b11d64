"""`onnx-gradcam explain`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnx_gradcam.options import Style

from ._images import Place, find_images, places
from ._options import (
    BoxIndex,
    BoxNumber,
    BoxRank,
    FeedValues,
    ImagesArgument,
    Json,
    LeastScore,
    MethodNames,
    ModelFile,
    Provider,
    Seed,
    Targets,
    Threads,
    count,
    explains,
    model_source,
    names,
    option,
    read_feeds,
    selected_boxes,
)
from ._output import complain, layers, say, say_json, table, warn
from ._texts import LogitBias, LogitScale, Prompts, Templates, TextEmbeddings, Tokenizer, of_texts

if TYPE_CHECKING:
    from onnx_gradcam import Explainer, Explanation
    from onnx_gradcam.files import Drafts, ModelSource
    from onnx_gradcam.metadata import Metadata
    from onnx_gradcam.runtime.detections import Selection

__all__ = ["explain"]

_MOST_PANELS = 12
"""Boxes that have a panel each on one sheet."""
_MOST_LISTED = 20
"""Boxes that are printed: a detector whose boxes have no known places lists hundreds that overlap."""


@explains(without=("method", "target", "class_input", "expose_activation", "bake", "box", "box_rank"))
def explain(
    model: ModelFile,
    images: ImagesArgument,
    *,
    target: Targets = None,
    box: BoxNumber = None,
    box_rank: BoxRank = None,
    box_index: BoxIndex = None,
    least: LeastScore = None,
    methods: MethodNames = None,
    region: Annotated[
        Path | None, option("Target", "With --mask input: image that is not black where to explain.", metavar="FILE")
    ] = None,
    feed: FeedValues = None,
    augment: Annotated[
        bool, option("Image", "Average six explanations: mirrored or not, three brightnesses.", "--augment")
    ] = False,
    provider: Provider = "cpu",
    threads: Threads = None,
    batch_size: Annotated[int, count("Images per run; rows per run for methods that run the model many times.")] = 8,
    seed: Seed = 0,
    out: Annotated[
        str | None,
        option(
            "Output",
            "Image to write (- is standard output), or folder for several. [default: NAME_gradcam.png]",
            "-o",
            "--out",
            metavar="FILE|FOLDER",
        ),
    ] = None,
    style: Annotated[
        Style | None,
        option(
            "Output",
            "Look: overlay, mask (rest darkened), contour, box, alpha (transparent), signed (negative values too), "
            "grey (values without the image). [default: overlay; grey for attributions]",
            metavar="STYLE",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        option("Output", "For mask, contour, box: share of the maximum that counts. [default: 0.5]", metavar="0..1"),
    ] = None,
    top_percent: Annotated[
        float | None,
        option("Output", "For mask, contour, box: percentage of the pixels that count.", metavar="PERCENT"),
    ] = None,
    colormap: Annotated[
        str | None,
        option(
            "Output",
            "Colormap, such as turbo or viridis. [default: jet; bwr for signed; gray for grey]",
            metavar="NAME",
        ),
    ] = None,
    opacity: Annotated[
        float | None,
        option(
            "Output", "Opacity of the heatmap. [default: 0.5, or as the preset draws]", min=0, max=1, metavar="0..1"
        ),
    ] = None,
    npy: Annotated[
        bool, option("Output", "Write each heatmap as NAME_CLASS.npy: float32 [height, width] in [0, 1].", "--npy")
    ] = False,
    npz: Annotated[
        bool, option("Output", "Write heatmaps, raw maps, classes and scores as NAME.npz.", "--npz")
    ] = False,
    arrays: Annotated[
        Path | None, option("Output", "Folder for --npy and --npz. [default: beside the image]", metavar="FOLDER")
    ] = None,
    as_json: Json = False,
    prompts: Prompts = None,
    tokenizer: Tokenizer = None,
    templates: Templates = None,
    text_embeddings: TextEmbeddings = None,
    logit_scale: LogitScale = None,
    logit_bias: LogitBias = None,
    choices: dict[str, Any],
) -> None:
    """Draw heatmaps of what a model looks at.

    MODEL is any ONNX classifier, or one that `attach` has explained. An image that cannot be read is reported, the
    others are explained, and the exit code is 1.

    \b
    Examples:
      onnx-gradcam explain model.onnx photo.jpg -o out.png --preprocess torchvision --labels names.txt
      onnx-gradcam explain model.onnx photo.jpg --target tabby,boxer
      onnx-gradcam explain model.onnx photos/ -o heatmaps/ --target top3
      onnx-gradcam explain detector.onnx photo.jpg --box all --least 0.4
      onnx-gradcam explain model.onnx photo.jpg --feed table=patient.npy --feed age=[[61]]
      onnx-gradcam explain model.onnx photo.jpg --method gradcam,hirescam,layercam
      onnx-gradcam explain clip.onnx photo.jpg --prompt "a dog" --prompt "a cat" --target "a dog"
      onnx-gradcam explain explained.onnx 'photos/*.jpg' --json --npy
    """  # noqa: D301 - \b keeps the lines of the examples apart
    _check_usage(model, images, out, arrays, as_json=as_json, writes_arrays=npy or npz)
    regions = {"threshold": threshold, "top_percent": top_percent}
    _check_regions(style, [name for name, value in regions.items() if value is not None])
    look = {"style": style, "colormap": colormap, "opacity": opacity, **regions}
    job = _Job(
        images=find_images(images),
        targets=list(target or ()),
        selection=selected_boxes(box, box_rank, box_index, least, most=_MOST_PANELS),
        out=out,
        draw=out is not None or not as_json,
        npy=npy,
        npz=npz,
        as_json=as_json,
        batch_size=batch_size,
        look=_chosen(look),
    )
    numbers = {"logit_scale": logit_scale, "logit_bias": logit_bias}
    source = of_texts(model_source(model), choices, prompts, tokenizer, templates, text_embeddings, numbers)
    arguments = {"provider": provider, "seed": seed, "augment": augment, "batch_size": batch_size, **choices}
    arguments |= _chosen({"threads": threads, "region": region, "feeds": read_feeds(feed) or None})
    _run(job, (model, source), names(methods, "--method"), places(job.images, out, arrays), arguments)


def _chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What to write of the explanations; the fields are the command's options."""

    images: Sequence[str]
    targets: list[str]
    selection: Selection | None
    out: str | None
    draw: bool
    npy: bool
    npz: bool
    as_json: bool
    batch_size: int
    look: Mapping[str, Any]

    @property
    def quiet(self) -> bool:
        """Whether standard output is for something else than sentences."""
        return self.as_json or self.out == "-"


def _check_usage(
    model: str, images: Sequence[str], out: str | None, arrays: Path | None, *, as_json: bool, writes_arrays: bool
) -> None:
    if model == "-" and "-" in images:
        raise typer.BadParameter("standard input cannot be both the model and an image.", param_hint="IMAGES")
    if out == "-" and as_json:
        raise typer.BadParameter("standard output cannot be both the image and JSON.", param_hint="-o")
    if arrays is not None and not writes_arrays:
        raise typer.BadParameter("it is for --npy and --npz; give one of them.", param_hint="--arrays")


def _check_regions(style: str | None, chosen: Sequence[str]) -> None:
    flags = [f"--{name.replace('_', '-')}" for name in chosen]
    if flags and style not in {"mask", "contour", "box"}:
        raise typer.BadParameter("it is for the styles mask, contour and box.", param_hint=flags[0])
    if len(flags) > 1:
        raise typer.BadParameter("it replaces --threshold; give one of the two.", param_hint=flags[1])


def _run(
    job: _Job,
    model: tuple[str, ModelSource],
    methods: Sequence[str],
    targets: Sequence[Place],
    arguments: Mapping[str, Any],
) -> None:
    """Explain the images by a model, given by its name and as it is."""
    from onnx_gradcam import Explainer  # noqa: PLC0415 - --help must not wait for it

    _check_drawing(job, targets[0], len(methods))
    name, source = model
    from ._progress import bars  # noqa: PLC0415 - --help must not wait for it

    with bars("explaining", len(job.images)) as shown:
        runs = shown.within if shown is not None else None
        by_method = {name: {**arguments, "method": name} for name in methods} or {"": dict(arguments)}
        explainers = {name: Explainer(source, progress=runs, **each) for name, each in by_method.items()}
        for warning in dict.fromkeys(warning for explainer in explainers.values() for warning in explainer.warnings):
            warn(warning)
        reports = []
        for report in _explained(explainers, targets, job):
            reports.append(report)
            if shown is not None:
                shown.advance()
    failed = ["error" in report for report in reports]
    if job.as_json:
        settings = [_settings(explainer.metadata) for explainer in explainers.values()]
        how = settings[0] if len(settings) == 1 else {"methods": settings}
        say_json({"model": name, **how, "images": reports})
    elif not job.quiet and not all(failed):
        for metadata in (explainer.metadata for explainer in explainers.values()):
            say(f"{layers(metadata)}, method {metadata.method}, weights {metadata.weights}")
    if any(failed):
        raise typer.Exit(1)


def _settings(metadata: Metadata) -> dict[str, Any]:
    """How images are explained; `target_tensor` is the first of several layers."""
    keys = ("target_tensor", "score_tensor", "method", "weights")
    return {"target_tensors": metadata.layers, **{key: getattr(metadata, key) for key in keys}}


def _explained(explainers: Mapping[str, Explainer], targets: Sequence[Place], job: _Job) -> Iterator[dict[str, Any]]:
    """Explain the images one after another, write the files, print, and report on each."""
    from onnx_gradcam.errors import InputError  # noqa: PLC0415 - --help must not wait for it

    # Every method reads the images anew, and standard input holds its image only once.
    stdin = cache(sys.stdin.buffer.read)
    streams = [
        explainer.stream(
            [stdin() if path == "-" else path for path in job.images],
            job.targets or None,
            box=job.selection,
            batch_size=job.batch_size,
        )
        for explainer in explainers.values()
    ]
    for image, place, *results in zip(job.images, targets, *streams, strict=True):
        error = next((result for result in results if isinstance(result, InputError)), None)
        if error is not None:
            complain(str(error) if image in str(error) or len(job.images) == 1 else f"{image}: {error}")
            yield {"path": image, "error": str(error)}
            continue
        explanations: dict[str, Explanation] = dict(zip(explainers, results, strict=True))
        files = _write(explanations, place, job)
        _warn_of_blank(image, explanations)
        if not job.quiet:
            drawn = place.image if job.draw else None
            (_print_short if len(job.images) > 1 else _print_whole)(image, results[0], drawn)
        yield _report(image, explanations, files, job)


def _check_drawing(job: _Job, place: Place, methods: int) -> None:
    if not job.draw:
        return
    from onnx_gradcam.editor.targets.classes import parse_top  # noqa: PLC0415 - --help must not wait for it
    from onnx_gradcam.errors import InputError  # noqa: PLC0415
    from onnx_gradcam.files import check_replaceable  # noqa: PLC0415
    from onnx_gradcam.images.drawing import check_suffix  # noqa: PLC0415
    from onnx_gradcam.images.masks import Look  # noqa: PLC0415

    transparent = Look(**job.look).style == "alpha"
    if job.out != "-":
        check_suffix(place.image, transparent=transparent)
        check_replaceable(place.image, "an image")
    if not transparent:
        return
    tops = [parse_top(target) for target in job.targets]
    if methods > 1 or len(tops) > 1 or any(top is not None and top.count > 1 for top in tops):
        raise InputError("the style alpha makes one transparent image; ask for one class and one method")


def _write(explanations: Mapping[str, Explanation], place: Place, job: _Job) -> list[str | None]:
    """Write the files; the `.npy` file of each class, method by method, or `None`."""
    import numpy as np  # noqa: PLC0415 - --help must not wait for it

    from onnx_gradcam.files import Drafts, check_replaceable, make_folder  # noqa: PLC0415

    files: list[str | None] = []
    with Drafts() as drafts:
        if job.draw:
            _draw(explanations, place.image, job.look, drafts)
        if job.npy or job.npz:
            make_folder(place.arrays.parent)
        for method, explanation in explanations.items():
            base = place.arrays
            if len(explanations) > 1:
                base = base.with_name(f"{base.name}_{method}")
            if job.npz:
                archive = base.with_name(f"{base.name}.npz")
                check_replaceable(archive, "a ZIP archive")
                with drafts.file(archive).open("wb") as file:
                    np.savez_compressed(file, **explanation.arrays())
            for class_map in explanation.maps:
                box = f"_box{class_map.boxes[0].index}" if job.selection is not None and class_map.boxes else ""
                path = base.with_name(f"{base.name}_{class_map.target.index}{box}.npy") if job.npy else None
                if path is not None:
                    check_replaceable(path, "a NumPy array")
                    with drafts.file(path).open("wb") as file:
                        np.save(file, class_map.heatmap)
                files.append(None if path is None else str(path))
    return files


def _draw(explanations: Mapping[str, Explanation], path: Path, look: Mapping[str, Any], drafts: Drafts) -> None:
    from onnx_gradcam.files import check_replaceable, make_folder  # noqa: PLC0415 - --help must not wait for it
    from onnx_gradcam.images.drawing import encode_image  # noqa: PLC0415
    from onnx_gradcam.runtime.explanation import method_sheet  # noqa: PLC0415

    (first, *_) = explanations.values()
    drawing = first.overlay(**look) if look.get("style") == "alpha" else method_sheet(explanations, **look)
    if str(path) == "-":
        sys.stdout.buffer.write(encode_image(drawing.pixels, ".png"))
        sys.stdout.buffer.flush()
        return
    make_folder(path.parent)
    check_replaceable(path, "an image")
    drafts.file(path).write_bytes(encode_image(drawing.pixels, path.suffix.lower()))


def _report(
    image: str, explanations: Mapping[str, Explanation], files: Sequence[str | None], job: _Job
) -> dict[str, Any]:
    explained: list[dict[str, Any]] = []
    for method, explanation in explanations.items():
        for which, class_map in enumerate(explanation.maps):
            entry: dict[str, Any] = {"method": method} if len(explanations) > 1 else {}
            entry |= {**class_map.target.to_dict(), "heatmap": files[len(explained)]}
            if class_map.boxes:
                entry["boxes"] = [box.to_dict() for box in class_map.boxes]
            if job.look.get("style") == "box":
                regions = {name: job.look[name] for name in ("threshold", "top_percent") if name in job.look}
                entry["box"] = explanation.box(which, **regions)
            explained.append(entry)
    (first, *_) = explanations.values()
    report = {"path": image, "top": [target.to_dict() for target in first.top()], "explained": explained}
    if any(class_map.boxes for class_map in first.maps):
        report["boxes"] = [box.to_dict() for box in first.boxes]
    return report


def _warn_of_blank(image: str, explanations: Mapping[str, Explanation]) -> None:
    for method, explanation in explanations.items():
        for sentence in explanation.warnings:
            warn(f"{image}, {method}: {sentence}" if len(explanations) > 1 else f"{image}: {sentence}")


def _print_whole(image: str, explanation: Explanation, drawn: Path | None) -> None:
    from onnx_gradcam.runtime.answers import percentage  # noqa: PLC0415 - --help must not wait for it

    say(f"{image} -> {drawn}" if drawn else image)
    if any(class_map.boxes for class_map in explanation.maps):
        _print_boxes(explanation)
        return
    explained = [class_map.target for class_map in explanation.maps]
    shown = list({target.index: target for target in (*explanation.top(), *explained)}.values())
    marked = {target.index for target in explained}
    columns = {
        "": ["*" if target.index in marked else " " for target in shown],
        "class": [str(target.index) for target in shown],
        "name": [target.label for target in shown],
        "score": [f"{target.score:.4g}" for target in shown],
        "probability": [percentage(target.probability) for target in shown if target.probability is not None],
    }
    if explanation.labels is None:
        del columns["name"]
    columns = {title: cells for title, cells in columns.items() if cells}
    right = [i for i, title in enumerate(columns) if title in {"class", "score", "probability"}]
    say(table([tuple(columns), *zip(*columns.values(), strict=True)], right=right))
    say("  * explained")


def _print_boxes(explanation: Explanation) -> None:
    """The list of boxes, and those that are explained though they are not among the first of it."""
    marked = {(box.index, box.target.index): box for class_map in explanation.maps for box in class_map.boxes}
    first, rest = explanation.boxes[:_MOST_LISTED], explanation.boxes[_MOST_LISTED:]
    known = {(box.index, box.target.index) for box in first}
    listed = [*first, *(box for key, box in marked.items() if key not in known)]
    rows = [
        (
            "*" if (box.index, box.target.index) in marked else " ",
            "" if box.n is None else str(box.n),
            box.target.label,
            f"{box.target.score:.4g}",
            "unknown" if box.xyxy is None else " ".join(f"{side:.0f}" for side in box.xyxy),
            str(box.index),
        )
        for box in listed
    ]
    say(table([("", "box", "name", "score", "x0 y0 x1 y1", "index"), *rows], right=(1, 3, 5)))
    hidden = sum((box.index, box.target.index) not in marked for box in rest)
    say("  * explained" + (f" ({hidden} more boxes with --json)" if hidden else ""))


def _print_short(image: str, explanation: Explanation, drawn: Path | None) -> None:
    classes = ", ".join(one.target.caption for one in explanation.maps)
    say(f"{image}: {classes}" + (f" -> {drawn}" if drawn else ""))
