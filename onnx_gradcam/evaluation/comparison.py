"""Compare the predictions and heatmaps of models: numbers per image, a summary, gates and a report."""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Final, cast, get_args

import numpy as np

from onnx_gradcam.editor.targets.classes import parse_top
from onnx_gradcam.errors import InputError, TargetError
from onnx_gradcam.exporters.sources import as_onnx
from onnx_gradcam.files import ModelSource, check_replaceable, make_folder, write_file
from onnx_gradcam.images.decoding import resized
from onnx_gradcam.options import Description, HeatmapMetric, check_word
from onnx_gradcam.runtime.explainer import Explainer, Target

from .pairing import Agreement, Compared, NativeMaps, compare_models, named_errors
from .similarity import METRICS, Metric

__all__ = ["Comparison", "Gates", "Record", "Side", "Spread", "Summary", "compare", "spreads"]

_SHOWN: Final = 24
"""How many images the page shows; its table lists all."""
_SIDE: Final = 320
"""Longer side of a shown image, in pixels."""
_NAMED: Final = 10
"""How many images a sentence lists."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One model of a comparison, with settings of its own.

    Attributes:
        model: path of an ONNX or a framework's file, bytes, a proto, or a ready `Explainer`, to which none of the
            settings below applies.
        name: what reports call it; by default the file's name.
        labels: class names, or a file with one per line; by default those of the model.
        preprocess: how images become the model's input; by default as the model says.
        layer: the layer to explain.
        method: the method; `gradcam` by default.
        provider: execution provider.
        feeds: values of the model's other inputs, as for `Explainer`.
    """

    model: ModelSource | Explainer
    name: str = ""
    labels: str | Path | Sequence[str] | None = None
    preprocess: str | Path | Mapping[str, Any] | Description | None = None
    layer: str | None = None
    method: str | None = None
    provider: str = "cpu"
    feeds: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The path of the model; empty for a model in memory."""
        return str(self.model) if isinstance(self.model, (str, Path)) else ""

    def explainer(self) -> Explainer:
        """Load the model; refuses settings that it cannot be explained with."""
        if isinstance(self.model, Explainer):
            return self.model
        model = as_onnx(self.model, self.layer) if isinstance(self.model, (str, Path)) else self.model
        choices: dict[str, Any] = {"layer": self.layer, "method": self.method}
        choices = {name: value for name, value in choices.items() if value is not None}
        explainer = Explainer(
            model,
            labels=self.labels,
            preprocess=self.preprocess,
            provider=self.provider,
            feeds=self.feeds,
            **choices,
        )
        explainer.metadata.require_images("compare")
        return explainer


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What a comparison must reach to pass, for example in continuous integration; `None` sets no limit.

    Attributes:
        mean: lowest mean of the metric over the images, -1 to 1.
        worst: lowest value of the metric on any image, -1 to 1.
        top1: lowest share of images on which both models predict the same top-1 class, 0 to 1.

    Raises:
        InputError: a limit is out of its range.
    """

    mean: float | None = None
    worst: float | None = None
    top1: float | None = None

    def __post_init__(self) -> None:
        for name, low in {"mean": -1, "worst": -1, "top1": 0}.items():
            limit = getattr(self, name)
            if limit is not None and not low <= limit <= 1:
                raise InputError(f"the gate {name!r} is {limit}; give a number from {low} to 1")


@dataclass(frozen=True, kw_only=True)
class Record:
    """The numbers of one image, without its pixels.

    Attributes:
        path: path of the image.
        target: the explained class as the first side has it; `None` if the image could not be compared.
        top: the first side's top-1 class.
        agreements: one for each side but the first.
        error: why the image could not be compared, else empty.
    """

    path: str
    target: Target | None = None
    top: Target | None = None
    agreements: Sequence[Agreement] = ()
    error: str = ""


@dataclass(frozen=True)
class Spread:
    """A metric over many images."""

    mean: float
    median: float
    worst: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One side against the first, over all images.

    Attributes:
        images: how many images were compared.
        same_top: share of images with the same top-1 class, 0 to 1; `None` for native maps.
        flipped: paths of the images whose top-1 class is another.
        blank: how many images have a blank heatmap on either side.
        spreads: mean, median and worst value of each of `METRICS`; `None` where no image has it.
    """

    images: int
    same_top: float | None
    flipped: Sequence[str]
    blank: int
    spreads: Mapping[str, Spread | None]


@dataclass(eq=False, kw_only=True)
class Comparison:
    """The results of `compare`, computed image by image.

    Iterate to get each image's `Compared` (or its error) as it is computed; one image is held at a time. Everything
    else first computes what has not been iterated, and needs memory for the numbers of all images and for small
    copies of the 24 with the lowest agreement.

    Attributes:
        sides: facts about each side by its name; the others are compared with the first.
        images: paths of the images.
        metric: the metric that orders the images and that gates apply to, one of `METRICS` that rise.
        gates: what the comparison must reach.
        warnings: what users should know about the models.
    """

    sides: Mapping[str, Mapping[str, str]]
    images: Sequence[str]
    results: Iterator[Compared | InputError]
    metric: str = "pearson"
    gates: Gates = Gates()
    warnings: Sequence[str] = ()
    _records: list[Record] = field(default_factory=list)
    _shown: list[tuple[float, int, Compared]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Compared | InputError]:
        for result in self.results:
            self._take(result)
            yield result

    def _take(self, result: Compared | InputError) -> None:
        number = len(self._records)
        if isinstance(result, InputError):
            self._records.append(Record(path=self.images[number], error=str(result)))
            return
        record = Record(path=result.path, target=result.target, top=result.top, agreements=result.agreements)
        self._records.append(record)
        rank = self.rank(record)
        if len(self._shown) < _SHOWN or -rank > self._shown[0][0]:
            heapq.heappush(self._shown, (-rank, number, _small(result)))
            if len(self._shown) > _SHOWN:
                heapq.heappop(self._shown)

    def _finish(self) -> None:
        for _ in self:
            pass

    def rank(self, record: Record) -> float:
        """The lowest value of the metric on an image."""
        return min(cast("float", agreement.numbers[self.metric]) for agreement in record.agreements)

    @property
    def records(self) -> Sequence[Record]:
        """The numbers of every image, in the order of the images."""
        self._finish()
        return self._records

    @property
    def shown(self) -> Sequence[tuple[int, Compared]]:
        """The images with the lowest agreement, lowest first, with their index; at most 24, as small copies."""
        self._finish()
        ranked = sorted(self._shown, key=lambda entry: (-entry[0], entry[1]))
        return [(number, small) for _, number, small in ranked]

    @cached_property
    def folder(self) -> str:
        """The folder that all images are in; empty if there is none."""
        try:
            return os.path.commonpath([os.path.dirname(p) for p in self.images])  # noqa: PTH120 - paths stay as given
        except ValueError:
            # Some are absolute and some are not, or they are on different drives.
            return ""

    def short(self, path: str) -> str:
        """The path of an image without `folder`."""
        pure = PurePath(path)
        return str(pure.relative_to(self.folder)) if self.folder and pure.is_relative_to(self.folder) else path

    @property
    def summary(self) -> Mapping[str, Summary]:
        """Every side but the first, over all images, by its name."""
        return {side: self._summary(side) for side in list(self.sides)[1:]}

    def _summary(self, side: str) -> Summary:
        pairs = [(record.path, a) for record in self.records for a in record.agreements if a.side == side]
        same = [a.same_top for _, a in pairs if a.same_top is not None]
        return Summary(
            images=len(pairs),
            same_top=sum(same) / len(same) if same else None,
            flipped=[path for path, a in pairs if a.same_top is False],
            blank=sum(any(a.maps.blank) for _, a in pairs),
            spreads=spreads(a for _, a in pairs),
        )

    @property
    def broken(self) -> Sequence[str]:
        """One sentence for each gate that a side does not pass."""
        return [sentence for side, summary in self.summary.items() for sentence in self._broken(side, summary)]

    def _broken(self, side: str, summary: Summary) -> Iterator[str]:
        gates, title = self.gates, METRICS[self.metric].title
        spread = summary.spreads[self.metric]
        if gates.mean is not None and spread is not None and spread.mean < gates.mean:
            yield f"{side}: the mean {title} is {spread.mean:.4g}, below {gates.mean:g}; see --report for the images"
        if gates.worst is not None and spread is not None and spread.worst < gates.worst:
            values = {r.path: a.numbers[self.metric] for r in self.records for a in r.agreements if a.side == side}
            low = sorted((v, path) for path, v in values.items() if v is not None and v < gates.worst)
            names = self._names([path for _, path in low])
            yield f"{side}: the {title} of {_count(len(low), 'image')} is below {gates.worst:g}: {names}"
        if gates.top1 is not None and summary.same_top is not None and summary.same_top < gates.top1:
            yield (
                f"{side}: the top-1 class is the same on {summary.same_top:.1%} of the images, below {gates.top1:.1%}; "
                f"it differs on {self._names(summary.flipped)}"
            )

    def _names(self, paths: Sequence[str]) -> str:
        more = len(paths) - _NAMED
        return ", ".join(map(self.short, paths[:_NAMED])) + (f" and {more} more" if more > 0 else "")

    def to_dict(self) -> dict[str, Any]:
        """Every number, as JSON values; docs/compare.md describes them."""
        return {
            "models": [{"name": name, **facts} for name, facts in self.sides.items()],
            "metric": self.metric,
            "summary": [_summary_dict(side, summary) for side, summary in self.summary.items()],
            "images": [_record_dict(record, next(iter(self.sides))) for record in self.records],
        }

    def html(self) -> str:
        """The page that `report` writes."""
        from .report import render  # noqa: PLC0415 - a comparison without a page needs no templates

        return render(self)

    def report(self, path: str | Path) -> None:
        """Write one HTML file: images side by side, largest disagreements first, and all images in a table."""
        self.check_report(path)
        make_folder(Path(path).parent)
        write_file(path, self.html().encode("utf-8", "replace"))

    def check_report(self, path: str | Path) -> None:
        """Refuse a path for the report that is one of the images or another file, before any image is explained."""
        if any(Path(path).resolve() == Path(image).resolve() for image in self.images):
            raise InputError(f"{str(path)!r} is one of the images; choose another name for the report")
        check_replaceable(path, "an HTML page")


def compare(
    models: Sequence[Side | ModelSource | Explainer],
    images: Sequence[str | Path],
    *,
    natives: Sequence[str | Path] = (),
    target: int | str | None = None,
    labels: str | Path | Sequence[str] | None = None,
    preprocess: str | Path | Mapping[str, Any] | Description | None = None,
    metric: HeatmapMetric = "pearson",
    gates: Gates | None = None,
) -> Comparison:
    """Compare the predictions and heatmaps of two or more models.

    Every image is explained by all models for the same class, and each model is compared with the first.

    Args:
        models: files, models in memory, explainers, or a `Side` for a model with settings of its own.
        images: paths of the images.
        natives: `.npz` files of heatmaps from other programs, each one more side; see `NativeMaps`.
        target: class index or name of the first model; by default its top-1 class of each image.
        labels: class names of every model that is not a `Side` or an `Explainer`.
        preprocess: preprocessing of these models.
        metric: orders the images and is what gates apply to.
        gates: what the comparison must reach; see `Comparison.broken`.

    Returns:
        The comparison. Models are loaded at once, images are explained as you iterate or ask for a result.

    Raises:
        InputError: fewer than two sides, no image, an unknown metric, or files that cannot be read.
        TargetError: `target` may be several classes. While iterating also: the models have different classes.
        ModelError: a model cannot be loaded. While iterating also: it does not run.

    Example::

        comparison = compare(["float.onnx", "int8.onnx"], images, preprocess="torchvision", gates=Gates(top1=0.95))
        comparison.report("report.html")
        print(comparison.summary["int8.onnx"].spreads["pearson"].mean, comparison.broken)
    """
    gates = gates or Gates()
    sides = [m if isinstance(m, Side) else Side(model=m, labels=labels, preprocess=preprocess) for m in models]
    if not sides or len(sides) + len(natives) < 2:
        raise InputError("two models are needed for a comparison; give another model or native maps")
    if not images:
        raise InputError("there is no image to compare models on; give at least one")
    check_word("metric", metric, get_args(HeatmapMetric))
    if gates.top1 is not None and len(sides) < 2:
        raise InputError("native maps have no top-1 class; give another model, or leave out the gate on it")
    if isinstance(target, str) and parse_top(target) is not None:
        raise TargetError(f"{target} may be several classes, and models are compared on one; name it")
    names = _distinct([side.name or side.file or "model" for side in sides] + [str(path) for path in natives])
    with ExitStack() as stack:
        files = zip(names[len(sides) :], natives, strict=True)
        maps = {name: stack.enter_context(closing(NativeMaps(path))) for name, path in files}
        named = dict(zip(names, sides, strict=False))
        explainers = {name: _load(name, side) for name, side in named.items()}
        facts = {name: {"file": side.file, **_facts(explainers[name])} for name, side in named.items()}
        facts |= {name: {"file": str(native.path), "method": "computed elsewhere"} for name, native in maps.items()}
        paths = [str(image) for image in images]
        results = compare_models(explainers, paths, target, natives=maps)
        return Comparison(
            sides=facts,
            images=paths,
            results=_closing(results, stack.pop_all()),
            metric=metric,
            gates=gates,
            warnings=[f"{name}: {warning}" for name, e in explainers.items() for warning in e.warnings],
        )


def spreads(agreements: Iterable[Agreement]) -> dict[str, Spread | None]:
    """Mean, median and worst value of each metric; `None` where no image has it."""
    rows = [agreement.numbers for agreement in agreements]
    columns = {name: [value for row in rows if (value := row[name]) is not None] for name in METRICS}
    return {name: _spread(METRICS[name], values) for name, values in columns.items()}


def _spread(metric: Metric, values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    worst = min(values) if metric.rising else max(values)
    return Spread(math.fsum(values) / len(values), float(np.median(values)), worst)


def _closing(results: Iterator[Compared | InputError], stack: ExitStack) -> Iterator[Compared | InputError]:
    with stack:
        yield from results


def _load(name: str, side: Side) -> Explainer:
    with named_errors(name):
        return side.explainer()


def _facts(explainer: Explainer) -> dict[str, str]:
    metadata = explainer.metadata
    return {
        "layer": ", ".join(metadata.layers),
        "method": metadata.method,
        "weights": metadata.weights,
        "provider": explainer.session.provider.removesuffix("ExecutionProvider"),
    }


def _distinct(paths: Sequence[str]) -> list[str]:
    """A name for each file: its own; the whole path where two are alike; a number where these are too."""
    names = [Path(path).name for path in paths]
    names = [name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)]
    return [f"{name} #{names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _small(result: Compared) -> Compared:
    """The result with a copy of the image that is as large as the page shows it."""
    height, width = result.image.shape[:2]
    factor = _SIDE / max(height, width)
    return replace(result, image=resized(result.image, max(1, round(height * factor)), max(1, round(width * factor))))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _summary_dict(side: str, summary: Summary) -> dict[str, Any]:
    metrics = {metric: spread and asdict(spread) for metric, spread in summary.spreads.items()}
    return {
        "model": side,
        "images": summary.images,
        "same_top": summary.same_top,
        "flipped": list(summary.flipped),
        "blank": summary.blank,
        **metrics,
    }


def _record_dict(record: Record, first: str) -> dict[str, Any]:
    if record.target is None or record.top is None:
        return {"path": record.path, "error": record.error}
    return {
        "path": record.path,
        "class": record.target.to_dict(),
        "top": record.top.to_dict(),
        "agreement": [
            {
                "model": a.side,
                "score": None if a.target is None else a.target.to_dict()["score"],
                "top": a.top and a.top.to_dict(),
                "same_top": a.same_top,
                **({} if a.box_overlap is None else {"box_overlap": a.box_overlap}),
                **a.numbers,
                "blank": [name for name, blank in zip((first, a.side), a.maps.blank, strict=True) if blank],
            }
            for a in record.agreements
        ],
    }
