"""One page on whether heatmaps can be trusted: checks with limits, so that continuous integration can hold a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, UnsupportedError, near_matches
from onnx_gradcam.files import ModelSource, make_folder, write_file
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.images.drawing import overlay
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.prober import as_channels_first

from .comparison import Side, compare
from .experiment import Evaluation, evaluate
from .metrics import METRICS
from .pages import Figure, Row, Section, check_page, tables_page
from .randomization import randomized
from .report import jpeg
from .verification import TOLERANCE, verify

__all__ = ["CHECKS", "Check", "Finding", "Report", "fixed_pixels", "flat_pixels", "report", "shares", "shortcut_shares"]

Array = npt.NDArray[Any]

_METHOD: Final = "gradcam"
_FIGURES: Final = 8
_BORDER: Final = 0.1
"""Width of the border relative to a side."""
_FLAT: Final = 0.01
_STILL: Final = 0.2
_ALIKE: Final = 4
"""So many images of a class are needed to tell what is the same in all of them."""
_LEAST_AREA: Final = 0.001
_METRICS: Final = ("deletion", "insertion", "completeness", "sensitivity", "random_logit", "focus")

LIMITS_IN_WORDS: Final = (
    "Passing does not mean that the model is right, nor that a heatmap shows all its reasons.",
    "Every figure is of these images, which are few; a shortcut that none of them has is not found.",
    "The shortcut checks look at places: borders, flat regions, and pixels that are alike in all images of a class.",
    "They find no mark that moves, no colour and no texture; an object that is always in one place looks like a mark.",
    "The limits are conventions, not theorems. Hold your own model to its own figures with --limit.",
)


@dataclass(frozen=True)
class Check:
    """A question to the model with a figure for an answer.

    Attributes:
        name: its name.
        title: its title in tables.
        better: whether the figure must be no `lower` or no `higher` than the limit.
        limit: the limit by default.
        meaning: what the figure is.
    """

    name: str
    title: str
    better: Literal["higher", "lower"]
    limit: float
    meaning: str

    def passes(self, value: float, limit: float) -> bool:
        """Whether a figure is within a limit."""
        return value >= limit if self.better == "higher" else value <= limit


CHECKS: Final[Mapping[str, Check]] = {
    check.name: check
    for check in (
        Check(
            "gradient",
            "gradient",
            "lower",
            TOLERANCE,
            "relative difference of gradient and finite differences along a random direction",
        ),
        Check(
            "completeness",
            "completeness gap",
            "lower",
            0.05,
            "how far an attribution's sum is from the score less that of the input zero",
        ),
        Check(
            "libra",
            "completeness with libra",
            "lower",
            0.01,
            "what the image times its gradient with `--modifier libra`, and biases, leave of the first image's score, "
            "relative to the score or to one",
        ),
        Check(
            "top_layer",
            "topmost layer randomized",
            "lower",
            0.95,
            "rank correlation with heatmaps after the topmost layer's weights are shuffled",
        ),
        Check(
            "randomization",
            "all weights randomized",
            "lower",
            0.7,
            "rank correlation with heatmaps after all weights are shuffled",
        ),
        Check(
            "random_logit", "random logit", "lower", 0.8, "structural similarity to the heatmap of a random other class"
        ),
        Check(
            "focus",
            "focus",
            "higher",
            0.5,
            "share of heat on the class's images in mosaics with others; a half is chance",
        ),
        Check(
            "sensitivity",
            "stability under noise",
            "lower",
            0.6,
            "largest relative change under noise of 5 % of the input's range",
        ),
        Check(
            "deletion",
            "deletion against random",
            "higher",
            0.0,
            "by how much the score falls faster than with a random heatmap",
        ),
        Check(
            "insertion",
            "insertion against random",
            "higher",
            0.0,
            "by how much the score rises faster than with a random heatmap",
        ),
        Check(
            "border",
            "heat on the border",
            "lower",
            1.5,
            "share of heat in the outer tenth of each side over that of the area",
        ),
        Check(
            "flat",
            "heat on flat regions",
            "lower",
            1.5,
            "share of heat on regions without structure over that of the area",
        ),
        Check(
            "fixed",
            "heat on fixed marks",
            "lower",
            2.0,
            "share of heat on pixels alike in all images of a class over that of the area",
        ),
        Check("agreement", "agreement with the other model", "higher", 0.9, "mean Pearson correlation of the heatmaps"),
    )
}
"""Every check, by name."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The answer to a check.

    Attributes:
        check: name of the check.
        value: the figure; `None` where there is none.
        limit: the limit it was held against.
        passed: whether it is within the limit; `None` without a figure.
        text: why there is no figure, or what else to know of it.
    """

    check: str
    value: float | None
    limit: float
    passed: bool | None
    text: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """What `report` found.

    Attributes:
        model: name of the model.
        method: the method.
        images: number of images that were explained.
        errors: why an image could not be used, by its path.
        findings: the answer to each of `CHECKS`.
        figures: the first images with their heatmaps, ``uint8 [H, W, 3]``, by caption.
    """

    model: str
    method: str
    images: int
    errors: Mapping[str, str]
    findings: Sequence[Finding]
    figures: Sequence[tuple[str, Array]]

    @property
    def passed(self) -> bool:
        """Whether every check that has a figure is within its limit."""
        return all(finding.passed is not False for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Every figure, as JSON values."""
        return {
            "model": self.model,
            "method": self.method,
            "images": self.images,
            "passed": self.passed,
            "checks": [asdict(finding) for finding in self.findings],
            "errors": dict(self.errors),
            "limits": list(LIMITS_IN_WORDS),
        }

    def html(self) -> str:
        """The page."""
        words = {True: "passed", False: "failed", None: "no figure"}
        colours = {True: "good", False: "bad", None: ""}
        rows = [
            Row(
                [CHECKS[f.check].title, words[f.passed], _figure(f.value), f"{_sign(f.check)} {f.limit:g}"],
                CHECKS[f.check].meaning + (f". {f.text}" if f.text else ""),
                colours[f.passed],
            )
            for f in self.findings
        ]
        pictures = [Figure(jpeg(pixels, f"Heatmap over {title}"), title) for title, pixels in self.figures]
        failed = [CHECKS[f.check].title for f in self.findings if f.passed is False]
        verdict = f"Failed: {', '.join(failed)}." if failed else "Every check with a figure is within its limit."
        lead = f"{self.model}, method {self.method}, {self.images} images. {verdict}"
        return tables_page(
            "Can these heatmaps be trusted?",
            lead,
            [
                Section("Checks", head=["check", "result", "figure", "limit"], rows=rows),
                Section("Heatmaps", [f"The first {len(pictures)} images."], figures=pictures),
                Section("What this page does not say", LIMITS_IN_WORDS),
            ],
        )

    def write(self, path: str | Path) -> None:
        """Write the page to a file."""
        check_page(path, [])
        make_folder(Path(path).parent)
        write_file(path, self.html().encode("utf-8", "replace"))


def _sign(check: str) -> str:
    return "≥" if CHECKS[check].better == "higher" else "≤"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def report(
    model: ModelSource,
    images: Sequence[str | Path],
    *,
    options: Options | None = None,
    against: ModelSource | None = None,
    limits: Mapping[str, float] | None = None,
    feeds: Mapping[str, Any] | None = None,
    steps: int = 20,
    seed: int = 0,
    batch_size: int = 8,
    provider: str = "cpu",
    threads: int | None = None,
) -> Report:
    """Check gradient, completeness, randomization, classes, noise, faithfulness and shortcuts of a model's heatmaps.

    Args:
        model: a model that is not explained yet.
        images: paths of images as the model will see them; ten or more of several classes.
        options: what to explain and how; its `method` is checked.
        against: a second model, such as a quantized one, whose heatmaps should agree.
        limits: limits in place of those of `CHECKS`, by name.
        feeds: values of the model's other inputs, as for `Explainer`.
        steps: number of steps of deletion and insertion.
        seed: random seed.
        batch_size: number of images to run at once.
        provider: execution provider.
        threads: number of CPU threads; all cores by default.

    Returns:
        The findings, and the page by `Report.write`.

    Raises:
        InputError: no image can be used, or a limit names an unknown check.
        ExplainError: the model cannot be explained with these options.

    Example::

        found = report("model.onnx", images, options=Options(preprocess="torchvision"), limits={"sensitivity": 0.3})
        assert found.passed
    """
    held = _limits(limits)
    options = options or Options()
    evaluation = evaluate(
        model, images, methods=[options.method or _METHOD], metrics=_METRICS, options=options, feeds=feeds, steps=steps,
        seed=seed, batch_size=batch_size, provider=provider, threads=threads,
    )  # fmt: skip
    if not evaluation.results:
        raise InputError(f"none of the images can be used: {next(iter(evaluation.errors.values()))}")
    values: dict[str, float | str] = {
        **_of_metrics(evaluation),
        "gradient": _verified(model, evaluation.results[0].image, options, feeds, seed),
        "libra": _verified(model, evaluation.results[0].image, options.replaced({"modifier": "libra"}), feeds, seed),
        **_of_weights(evaluation),
    }
    figures, places = _of_places(evaluation)
    values |= places
    if against is not None:
        values["agreement"] = _agreement(model, against, evaluation, options, feeds)
    return Report(
        model=Path(model).name if isinstance(model, (str, Path)) else "the model",
        method=evaluation.evaluator.methods[0],
        images=len(evaluation.results),
        errors=evaluation.errors,
        findings=[_finding(check, values.get(name, ""), held[name]) for name, check in CHECKS.items()],
        figures=figures,
    )


def _limits(given: Mapping[str, float] | None) -> dict[str, float]:
    for name in given or {}:
        if name not in CHECKS:
            raise InputError(f"unknown check {name!r}{near_matches(name, CHECKS)} (choose from: {', '.join(CHECKS)})")
    return {name: check.limit for name, check in CHECKS.items()} | dict(given or {})


_WITHOUT: Final = {
    "completeness": "This method has no attribution.",
    "random_logit": "The model has no classes to choose from.",
    "focus": "The images are all predicted to be of one class, or the model has none.",
    "flat": "No image has flat regions.",
    "fixed": "No predicted class has four images with pixels that are alike.",
    "agreement": "No second model was given.",
}
"""Why a check has no figure, where nothing else is known."""


def _finding(check: Check, value: float | str, limit: float) -> Finding:
    if isinstance(value, str) or not np.isfinite(value):
        text = (value if isinstance(value, str) else "") or _WITHOUT.get(check.name, "It has no value on these images.")
        return Finding(check=check.name, value=None, limit=limit, passed=None, text=text)
    return Finding(check=check.name, value=value, limit=limit, passed=check.passes(value, limit))


def _of_metrics(evaluation: Evaluation) -> dict[str, float | str]:
    """Means of the metrics, and of their differences to the random heatmap where that is the check."""
    (method,) = evaluation.evaluator.methods
    means = evaluation.means[method]
    values: dict[str, float | str] = {name: mean.mean for name, mean in means.items() if name in CHECKS}
    against = evaluation.paired[method]["random"]
    return values | {name: against[name].difference for name in ("deletion", "insertion") if name in METRICS}


def _verified(
    model: ModelSource, image: str, options: Options, feeds: Mapping[str, Any] | None, seed: int
) -> float | str:
    """How far a gradient is from finite differences, or with `libra` what adds up from the score."""
    try:
        return verify(model, image, options, feeds=feeds, seed=seed).relative
    except UnsupportedError as exc:
        # What to leave out instead is of no use here: the check chose it.
        return f"It cannot be checked: {str(exc).partition('; ')[0]}."


def _of_weights(evaluation: Evaluation) -> dict[str, float | str]:
    """Rank correlation after the topmost layer, and after all layers, are randomized."""
    evaluator, (method,) = evaluation.evaluator, evaluation.evaluator.methods
    try:
        cascading = [stage for stage in evaluation.stages if stage.kind == "cascading"]
        subjects = [(result.image, result.target.index, result.box) for result in evaluation.results]
        found = list(randomized(evaluator, [cascading[0], cascading[-1]], subjects, evaluator.seed))
    except UnsupportedError as exc:
        return dict.fromkeys(("top_layer", "randomization"), f"It cannot be checked: {exc}.")
    values = (stage.spearman[method] for stage in found)
    blank = "No randomized model gives a heatmap."
    return dict(zip(("top_layer", "randomization"), (blank if v is None else v for v in values), strict=True))


def _agreement(
    model: ModelSource,
    against: ModelSource,
    evaluation: Evaluation,
    options: Options,
    feeds: Mapping[str, Any] | None,
) -> float | str:
    first, second = (
        Side(model=side, preprocess=options.preprocess, method=options.method, feeds=feeds or {})
        for side in (model, against)
    )
    paths = list(dict.fromkeys(result.image for result in evaluation.results))
    summary = next(iter(compare([replace(first, name="this"), replace(second, name="other")], paths).summary.values()))
    spread = summary.spreads["pearson"]
    return "No image has a heatmap of both models." if spread is None else spread.mean


def _of_places(evaluation: Evaluation) -> tuple[list[tuple[str, Array]], dict[str, float]]:
    """The first images with their heatmaps, and the shares of heat on borders, flat regions and fixed marks."""
    explainer = evaluation.evaluator.first
    figures: list[tuple[str, Array]] = []
    inputs: list[Array] = []
    maps: list[Array] = []
    classes: list[int] = []
    for result in evaluation.results:
        image = read_image(result.image)
        explanation = explainer(image, result.target.index, result.box)
        tensor = prepare(image, explainer.preprocessing)[0]
        inputs.append(as_channels_first(tensor[None], explainer.metadata)[0])
        maps.append(explanation.heatmap)
        classes.append(result.target.index)
        if len(figures) < _FIGURES:
            title = f"{Path(result.image).name}: {result.target.label}"
            figures.append((title, overlay(image, explanation.heatmap_on_image())))
    return figures, shortcut_shares(inputs, maps, classes)


def shortcut_shares(inputs: Sequence[Array], maps: Sequence[Array], classes: Sequence[int]) -> dict[str, float]:
    """The figures of the checks `border`, `flat` and `fixed` that can be told.

    Args:
        inputs: images as the model receives them, ``[C, H, W]``.
        maps: their heatmaps, ``[H, W]``.
        classes: the explained classes.
    """
    border = shares(maps, [_frame(heatmap.shape) for heatmap in maps])
    flat = shares(maps, [flat_pixels(image) for image in inputs])
    fixed = [
        float(np.mean(found))
        for index in sorted(set(classes))
        if (found := _on_fixed([(x, m) for x, m, c in zip(inputs, maps, classes, strict=True) if c == index]))
    ]
    figures = {name: float(np.mean(values)) for name, values in (("border", border), ("flat", flat)) if values}
    return figures | ({"fixed": max(fixed)} if fixed else {})


def _on_fixed(pairs: Sequence[tuple[Array, Array]]) -> list[float]:
    """The shares of heat on pixels that are alike in the images of one class, those of the first one's size."""
    same = [(image, heatmap) for image, heatmap in pairs if image.shape == pairs[0][0].shape]
    if len(same) < _ALIKE:
        return []
    fixed = fixed_pixels(np.stack([image for image, _ in same]))
    return shares([heatmap for _, heatmap in same], [fixed] * len(same))


def shares(maps: Sequence[Array], masks: Sequence[npt.NDArray[np.bool_]]) -> list[float]:
    """The share of heat inside each mask ``[H, W]`` over the share of the area; 1 is what a flat heatmap has.

    Masks of under a thousandth or over half of the area, and blank heatmaps, are left out.
    """
    pairs = zip(maps, masks, strict=True)
    return [
        float(heat[mask].sum() / heat.sum() / mask.mean())
        for heat, mask in pairs
        if heat.any() and _LEAST_AREA <= mask.mean() <= 1 / 2
    ]


def _frame(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    frame = np.ones(shape, bool)
    frame[tuple(slice(width, -width) for width in (max(1, round(_BORDER * side)) for side in shape))] = False
    return frame


def flat_pixels(image: Array) -> npt.NDArray[np.bool_]:
    """Pixels of ``[C, H, W]`` around which, in 5x5, no channel varies by more than a hundredth of the image's range."""
    wide = np.pad(image, [(0, 0), (2, 2), (2, 2)], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (5, 5), (1, 2))
    span = (windows.max((-1, -2)) - windows.min((-1, -2))).max(0)
    return np.asarray(span <= _FLAT * max(float(np.ptp(image)), np.finfo(np.float32).tiny))


def fixed_pixels(images: Array) -> npt.NDArray[np.bool_]:
    """Pixels of ``[N, C, H, W]`` that vary between images by less than a fifth of what half of the pixels do."""
    spread = images.astype(np.float64).std(0).mean(0)
    return np.asarray(spread < _STILL * np.median(spread))
