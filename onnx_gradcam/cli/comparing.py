"""What `compare` does: run all models on each image, report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from onnx_gradcam.errors import ExplainError, InputError, TargetError
from onnx_gradcam.evaluation.comparison import METRICS, Agreement, Compared, NativeMaps, compare_models, spreads
from onnx_gradcam.evaluation.report import Report
from onnx_gradcam.exporters.sources import as_onnx
from onnx_gradcam.files import make_folder, write_file
from onnx_gradcam.runtime.classes import parse_top
from onnx_gradcam.runtime.explainer import Explainer

from .output import complain, finite, say, say_json, table, warn
from .progress import progress
from .sources import find_images

__all__ = ["Request", "run"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to compare, and what to make of it; see the options of the command.

    Attributes:
        models: their files, the first is what the others are compared with.
        natives: files of maps that were computed elsewhere.
        images: images, folders, patterns.
        target: the class, `None` for the first model's best.
        choices: what was chosen for each model: `labels`, `preprocess`, `layer`, `method`, `provider`.
        metric: that orders the images and is held against `limit`.
        limit: the least mean of it, if any.
        report: where the page goes.
        as_json: print JSON.
    """

    models: Sequence[str]
    natives: Sequence[Path]
    images: Sequence[str]
    target: str | None
    choices: Sequence[Mapping[str, str]]
    metric: str
    limit: float | None
    report: Path | None
    as_json: bool


def run(request: Request) -> None:
    """Compare the models.

    Raises:
        ExplainError: they cannot be compared.
        typer.Exit: code 1 where an image could not be compared, or the agreement is below the limit.
    """
    images = find_images(request.images)
    if request.report is not None and any(_same_file(request.report, p) for p in images):
        raise InputError(f"{str(request.report)!r} is one of the images: choose another name with --report")
    if request.target is not None and parse_top(request.target) is not None:
        raise TargetError(f"{request.target} may be several classes, and models are compared by one; name it")
    names = _distinct([*request.models, *map(str, request.natives)])
    count = len(request.models)
    with ExitStack() as open_files:
        natives = {
            name: open_files.enter_context(closing(NativeMaps(path)))
            for name, path in zip(names[count:], request.natives, strict=True)
        }
        models = {
            name: _explainer(name, path, choices)
            for name, path, choices in zip(names[:count], request.models, request.choices, strict=True)
        }
        sides = {
            name: {"file": path, **_facts(models[name])}
            for name, path in zip(names[:count], request.models, strict=True)
        }
        sides |= {name: {"file": str(maps.path), "method": "computed elsewhere"} for name, maps in natives.items()}
        page = Report(sides, request.metric, _common_folder(images), request.limit)
        results = compare_models(models, images, request.target, natives=natives)
        reports, agreements = _collect(images, results, names[0], page if request.report is not None else None)
    if request.report is not None:
        make_folder(request.report.parent)
        write_file(request.report, page.html().encode("utf-8", "replace"))
    summary = {name: [a for a in agreements if a.side == name] for name in names[1:]}
    if request.as_json:
        say_json(
            {
                "models": [{"name": name, **facts} for name, facts in sides.items()],
                "metric": request.metric,
                "summary": [_summary(name, mine) for name, mine in summary.items()],
                "images": reports,
            }
        )
    elif agreements:
        _say(names[0], summary, request.report)
    low = _below(summary, request)
    if low:
        complain(low)
    if low or any("error" in image for image in reports):
        raise typer.Exit(1)


def _collect(
    images: Sequence[str], results: Iterable[Compared | InputError], first: str, page: Report | None
) -> tuple[list[dict[str, Any]], list[Agreement]]:
    """What JSON says of each image, and the numbers; no pixels are kept but what the page shows."""
    reports: list[dict[str, Any]] = []
    agreements: list[Agreement] = []
    with progress("comparing", len(images)) as advance:
        for image, result in zip(images, results, strict=True):
            if isinstance(result, InputError):
                complain(str(result))
                reports.append({"path": image, "error": str(result)})
                if page is not None:
                    page.fail(image, str(result))
            else:
                reports.append(_as_json(result, first))
                agreements += result.agreements
                if page is not None:
                    page.add(result)
            advance()
    return reports, agreements


def _same_file(path: Path, other: str) -> bool:
    return path.resolve() == Path(other).resolve()


def _common_folder(images: Sequence[str]) -> str:
    try:
        return os.path.commonpath([os.path.dirname(p) for p in images])  # noqa: PTH120 - as the paths were given
    except ValueError:
        # Some are absolute and some are not, or they lie on different drives.
        return ""


def _distinct(paths: Sequence[str]) -> list[str]:
    """A name for each: that of the file, the whole path where two are alike, a number where these are too."""
    names = [Path(path).name for path in paths]
    names = [name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)]
    return [f"{name} #{names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _explainer(name: str, path: str, choices: Mapping[str, str]) -> Explainer:
    """Load a model; what goes wrong is said with its name."""
    try:
        explainer = Explainer(as_onnx(path, choices.get("layer")), **choices)  # type: ignore[arg-type]
    except ExplainError as exc:
        raise type(exc)(f"{name}: {exc}") from exc
    for warning in explainer.warnings:
        warn(f"{name}: {warning}")
    return explainer


def _facts(explainer: Explainer) -> dict[str, str]:
    facts = explainer.metadata
    return {
        "layer": ", ".join(facts.target_tensors or [facts.target_tensor]),
        "method": facts.method,
        "weights": facts.weights,
        "provider": explainer.session.provider.removesuffix("ExecutionProvider"),
    }


def _as_json(result: Compared, first: str) -> dict[str, Any]:
    target = result.target
    return {
        "path": result.path,
        "class": {"index": target.index, "label": target.label, "score": finite(target.score)},
        "agreement": [
            {
                "model": a.side,
                "score": None if a.target is None else finite(a.target.score),
                "same_top": a.same_top,
                **a.numbers,
                "blank": [name for name, blank in zip((first, a.side), a.maps.blank, strict=True) if blank],
            }
            for a in result.agreements
        ],
    }


def _summary(name: str, agreements: Sequence[Agreement]) -> dict[str, Any]:
    known = [a.same_top for a in agreements if a.same_top is not None]
    metrics = {metric: spread and asdict(spread) for metric, spread in spreads(agreements).items()}
    return {
        "model": name,
        "images": len(agreements),
        "same_top": sum(known) / len(known) if known else None,
        "blank": sum(any(a.maps.blank) for a in agreements),
        **metrics,
    }


def _say(first: str, summary: Mapping[str, Sequence[Agreement]], report: Path | None) -> None:
    for name, agreements in summary.items():
        known = [a.same_top for a in agreements if a.same_top is not None]
        best = f", the same best class on {sum(known)}" if known else ""
        say(f"{name} against {first}: {len(agreements)} images{best}")
        rows: list[tuple[str, ...]] = [("", "mean", "median", "worst")]
        for metric, spread in spreads(agreements).items():
            if spread is not None:
                values = (f"{value:.4g}" for value in (spread.mean, spread.median, spread.worst))
                rows.append((METRICS[metric].title, *values))
        say(table(rows, right=(1, 2, 3)))
        blank = sum(any(a.maps.blank) for a in agreements)
        if blank:
            say(f"  {blank} with a blank heatmap")
    if report is not None:
        say(f"report: {report}")


def _below(summary: Mapping[str, Sequence[Agreement]], request: Request) -> str:
    """The sentence about models whose agreement is too low; empty where there is none."""
    if request.limit is None:
        return ""
    title = METRICS[request.metric].title
    low = []
    for name, agreements in summary.items():
        spread = spreads(agreements)[request.metric]
        if spread is not None and spread.mean < request.limit:
            low.append(f"{name} (mean {title} {spread.mean:.4g})")
    return f"the agreement is below {request.limit:g} for {', '.join(low)}; see --report for the images" if low else ""
