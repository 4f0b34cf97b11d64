"""Pages of tables: what `evaluate` computes, and the pieces of which `report` and `drift` make theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from onnx_gradcam.errors import InputError
from onnx_gradcam.files import check_replaceable

from .metrics import METRICS
from .report import filled
from .scoring import BASELINES
from .statistics import Mean, Paired

__all__ = ["Figure", "Row", "Section", "check_page", "evaluation_page", "figure_of", "tables_page"]


@dataclass(frozen=True)
class Row:
    """A row of a table: its cells, a note below the first, and whether the second is `good` or `bad`."""

    cells: Sequence[str]
    note: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Figure:
    """An image of `onnx_gradcam.evaluation.report.jpeg` with its caption."""

    image: Mapping[str, Any]
    title: str
    text: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page: paragraphs, a table whose columns from `numbers` on are numbers, and images."""

    title: str
    texts: Sequence[str] = ()
    head: Sequence[str] = ()
    rows: Sequence[Row] = ()
    numbers: int = 2
    figures: Sequence[Figure] = ()


class Evaluated(Protocol):
    """What the page of an evaluation shows: an `onnx_gradcam.evaluation.experiment.Evaluation`."""

    metrics: Sequence[str]
    evaluator: Any

    @property
    def results(self) -> Sequence[Any]: ...
    @property
    def errors(self) -> Mapping[str, str]: ...
    @property
    def means(self) -> Mapping[str, Mapping[str, Mean]]: ...
    @property
    def paired(self) -> Mapping[str, Mapping[str, Mapping[str, Paired]]]: ...
    @property
    def agreement(self) -> float | None: ...
    @property
    def undecided(self) -> Sequence[str]: ...


def tables_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """A page of sections, in one file that loads nothing."""
    return filled("tables.html.jinja", title=title, lead=lead, sections=sections)


def check_page(path: str | Path, images: Sequence[str]) -> None:
    """Refuse a path for a page that is one of the images, or a file that is no page."""
    if any(Path(path).resolve() == Path(image).resolve() for image in images):
        raise InputError(f"{str(path)!r} is one of the images; choose another name for the report")
    check_replaceable(path, "an HTML page")


def figure_of(value: Mean | None) -> str:
    """A mean with its standard error, as in all tables."""
    if value is None:
        return "–"
    return f"{value.mean:.3f}" if value.error is None else f"{value.mean:.3f} ±{value.error:.3f}"


def evaluation_page(evaluation: Evaluated, title: str, stages: Sequence[Any]) -> str:
    """Every table of an evaluation: means, differences to the baselines, agreement, parameter randomization."""
    count = len(evaluation.results)
    lead = (
        f"{count} {'record' if count == 1 else 'records'}, {len(evaluation.errors)} left out. Every figure is a mean "
        "with its standard error. The heatmaps random and centre do not depend on the model: a method that is no "
        "better than they are tells nothing."
    )
    sections = [
        *_means(evaluation),
        *(_against(evaluation, baseline) for baseline in BASELINES),
        _agreement(evaluation),
    ]
    return tables_page(title, lead, [*sections, *_randomization(list(evaluation.evaluator.methods), stages)])


def _means(evaluation: Evaluated) -> list[Section]:
    """A table for each group of metrics."""
    means = evaluation.means
    groups: dict[str, list[Row]] = {}
    for name in evaluation.metrics:
        cells = [row.get(name) for row in means.values()]
        if any(cells):
            metric = METRICS[name]
            row = Row([metric.title, metric.better, *map(figure_of, cells)], metric.meaning.replace("`", ""))
            groups.setdefault(metric.group, []).append(row)
    return [Section(group.capitalize(), head=["metric", "better", *means], rows=rows) for group, rows in groups.items()]


def _against(evaluation: Evaluated, baseline: str) -> Section:
    """What every method gains over a baseline, image by image."""
    methods = list(evaluation.paired)
    rows = []
    for name in evaluation.metrics:
        pairs = [evaluation.paired[method][baseline].get(name) for method in methods]
        if any(pairs):
            rows.append(Row([METRICS[name].title, *("–" if pair is None else _gain(pair) for pair in pairs)]))
    text = (
        "The mean difference on the same image, positive if the method is better, with its standard error; then on how "
        "many images it is better and worse, and the probability of so uneven a split by chance (sign test)."
    )
    return Section(f"Against {baseline}", [text], ["metric", *methods], rows, numbers=1)


def _gain(pair: Paired) -> str:
    error = "" if pair.error is None else f" ±{pair.error:.3f}"
    return f"{pair.difference:+.3f}{error}, {pair.better}:{pair.worse}, p {pair.p:.2g}"


def _agreement(evaluation: Evaluated) -> Section:
    found = evaluation.agreement
    texts = [
        "Kendall's W between metrics needs three methods and two metrics."
        if found is None
        else f"Kendall's W between the metrics' orders of the methods: {found:.2f} (0: none, 1: the same order)."
    ]
    if evaluation.undecided:
        titles = ", ".join(METRICS[name].title for name in evaluation.undecided)
        texts.append(
            f"These metrics do not tell the methods apart, since the best and the worst are less than two standard "
            f"errors of their difference apart: {titles}. More images may."
        )
    return Section("Do the metrics agree?", texts)


def _randomization(methods: Sequence[str], stages: Sequence[Any]) -> list[Section]:
    if not stages:
        return []
    rows = [
        Row(
            [
                f"{s.stage.kind}: {s.stage.named[0].name}",
                str(len(s.stage.layers)),
                *(_three(s.spearman[m]) for m in methods),
            ]
        )
        for s in stages
    ]
    whole = [stage for stage in stages if stage.stage.kind == "cascading"][-1]
    kept = (
        "Mean rank correlation of heatmaps with those of the model itself after some layers' weights were randomized. "
        "A heatmap that stays the same does not show what the model has learnt."
    )
    spread = ", ".join(f"{m} {_three(whole.entropy[m])}" for m in methods)
    texts = [
        kept,
        f"With all weights random the entropy of the heatmap changes by (efficient test, higher is better): {spread}.",
    ]
    return [Section("Parameter randomization", texts, ["stage, topmost layer", "layers", *methods], rows, numbers=1)]


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
