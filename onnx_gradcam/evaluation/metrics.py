"""The table of metrics: the command line, the page about them and the tests read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, near_matches

from . import boxes, faithfulness, flipping, robustness
from .faithfulness import Trial

__all__ = ["DEFAULT", "METRICS", "Group", "Metric", "localize", "measure", "named"]

Array = npt.NDArray[Any]
Group = Literal["faithfulness", "robustness", "randomization", "complexity", "localization"]
"""What a metric asks of a heatmap; the groups of LATEC (Klein et al. 2024), with randomization and localization."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of a heatmap.

    Attributes:
        name: its name.
        title: its title in tables.
        group: what it asks.
        better: which direction is better; empty if neither is.
        cost: what it runs besides the explanation itself: `steps` forward passes, explanations.
        meaning: what it is, with its source, in a line of Markdown.
        function: of a trial and a heatmap over the input; `None` if it needs boxes.
        inside: of a heatmap over the image and the pixels inside boxes, for metrics that need them.
        default: whether it is computed without being named.
    """

    name: str
    title: str
    group: Group
    better: Literal["higher", "lower", ""]
    cost: str
    meaning: str
    function: Callable[[Trial, Array], float | None] | None = None
    inside: Callable[[Array, Array], float | None] | None = None
    default: bool = False

    @property
    def of_boxes(self) -> bool:
        """Whether it needs the boxes of the objects."""
        return self.inside is not None

    def worth(self, value: float) -> float:
        """The value with the sign by which higher is better."""
        return -value if self.better == "lower" else value


def _rows() -> Sequence[Metric]:
    """Every metric, group by group, those that are computed by default first."""
    f, p, r, b = faithfulness, flipping, robustness, boxes
    return (
        Metric(
            name="deletion", title="deletion AUC", group="faithfulness", better="lower", function=f.deletion,
            default=True, cost="`--steps` f",
            meaning="area under the score while the hottest pixels become zero first (Petsiuk et al. 2018)",
        ),
        Metric(
            name="insertion", title="insertion AUC", group="faithfulness", better="higher", function=f.insertion,
            default=True, cost="`--steps` f",
            meaning="area under the score while the hottest pixels are put into a blurred image first",
        ),
        Metric(
            name="road", title="ROAD", group="faithfulness", better="higher", function=f.road, default=True,
            cost="18 f",
            meaning="half the difference of the mean scores when the coldest and when the hottest 10 to 90 % of the "
            "pixels are removed and filled in by noisy linear imputation (Rong et al. 2022; pytorch-grad-cam's "
            "`ROADCombined`)",
        ),
        Metric(
            name="average_drop", title="average drop", group="faithfulness", better="lower", function=f.average_drop,
            default=True, cost="1 f",
            meaning="share of the score that is lost when the image is multiplied by `H` (Chattopadhay et al. 2018)",
        ),
        Metric(
            name="increase", title="increase", group="faithfulness", better="higher", function=f.increase,
            default=True, cost="1 f", meaning="share of the images that score higher then",
        ),
        Metric(
            name="deletion_drop", title="drop in deletion", group="faithfulness", better="higher", default=True,
            function=f.deletion_drop, cost="1 f",
            meaning="share of the score that is lost when the image is multiplied by `1 - H` (Jung and Oh 2021)",
        ),
        Metric(
            name="completeness", title="completeness gap", group="faithfulness", better="lower", default=True,
            function=r.completeness, cost="1 f",
            meaning="attributions only: how far their sum is from the score less that of the input zero, relative to "
            "that difference; 0 is complete (Sundararajan et al. 2017)",
        ),
        Metric(
            name="road_accuracy", title="ROAD accuracy", group="faithfulness", better="lower", cost="9 f",
            function=f.road_accuracy,
            meaning="share of ROAD's percentages at which the class is still predicted without the hottest pixels, "
            "the paper's own figure (Rong et al. 2022)",
        ),
        Metric(
            name="faithfulness_correlation", title="faithfulness correlation", group="faithfulness", better="higher",
            function=p.faithfulness_correlation, cost="100 f",
            meaning="correlation of the heat of 100 random sets of 224 pixels with the loss of score when each is "
            "black (Bhatt et al. 2020)",
        ),
        Metric(
            name="faithfulness_estimate", title="faithfulness estimate", group="faithfulness", better="higher",
            function=p.faithfulness_estimate, cost="`--steps` f",
            meaning="the same correlation over `--steps` blocks of pixels from the hottest to the coldest "
            "(Alvarez-Melis and Jaakkola 2018)",
        ),
        Metric(
            name="pixel_flipping", title="pixel flipping", group="faithfulness", better="lower",
            function=p.pixel_flipping, cost="`--steps` f",
            meaning="mean score while blocks of the hottest pixels become black (Bach et al. 2015)",
        ),
        Metric(
            name="region_perturbation", title="region perturbation", group="faithfulness", better="higher",
            function=p.region_perturbation, cost="100 f",
            meaning="mean loss of score while the hottest of 16x16 cells become black (AOPC, Samek et al. 2017)",
        ),
        Metric(
            name="irof", title="IROF", group="faithfulness", better="higher", function=p.irof, cost="about 100 f",
            meaning="mean share of the score that is lost while the hottest superpixels take the image's mean "
            "(Rieger and Hansen 2020)",
        ),
        Metric(
            name="infidelity", title="infidelity", group="faithfulness", better="lower", function=p.infidelity,
            cost="256 f",
            meaning="how badly the heat of each of 16x16 cells foretells the loss of score when it is black, at the "
            "heatmap's best scale; 1 is no better than a blank heatmap (Yeh et al. 2019)",
        ),
        Metric(
            name="arcc", title="ARCC", group="faithfulness", better="higher", function=r.arcc, cost="1 e, 8 f",
            meaning="harmonic mean of coherency, 1 - mean heat and twice ROAD (pytorch-grad-cam after 1.5.7)",
        ),
        Metric(
            name="adcc", title="ADCC", group="faithfulness", better="higher", function=r.adcc, cost="1 e, 1 f",
            meaning="harmonic mean of coherency, 1 - mean heat and 1 - average drop (Poppi et al. 2021)",
        ),
        Metric(
            name="sensitivity", title="sensitivity", group="robustness", better="lower", function=r.sensitivity,
            default=True, cost="3 e",
            meaning="largest relative change of the heatmap among three images with uniform noise of 5 % of the "
            "input's range (max-sensitivity, Yeh et al. 2019)",
        ),
        Metric(
            name="avg_sensitivity", title="average sensitivity", group="robustness", better="lower", cost="3 e",
            function=r.avg_sensitivity, meaning="the mean in place of the largest change",
        ),
        Metric(
            name="lipschitz", title="local Lipschitz estimate", group="robustness", better="lower", cost="3 e",
            function=r.lipschitz,
            meaning="largest change of the heatmap over the change of the input under Gaussian noise "
            "(Alvarez-Melis and Jaakkola 2018)",
        ),
        Metric(
            name="relative_stability", title="relative input stability", group="robustness", better="lower",
            function=r.relative_stability, cost="3 e",
            meaning="largest relative change of the heatmap over the relative change of the input "
            "(Agarwal et al. 2022)",
        ),
        Metric(
            name="random_logit", title="random logit", group="randomization", better="lower", function=r.random_logit,
            default=True, cost="1 e",
            meaning="structural similarity of the heatmaps of the class and of a random other class: 1 if the class "
            "makes no difference (Sixt et al. 2020); classifiers only",
        ),
        Metric(
            name="focus", title="focus", group="randomization", better="higher", function=r.focus, cost="1 e, 1 f",
            meaning="share of heat on the two images of the class in a mosaic with two images of other classes, a "
            "half by chance (Arias-Duart et al. 2022); classifiers only",
        ),
        Metric(
            name="sparsity", title="sparsity (Gini)", group="complexity", better="", function=r.gini, default=True,
            cost="0",
            meaning="Gini index of the heatmap's values: 0 if all are equal, near 1 if a few hold the whole sum "
            "(Hurley and Rickard 2009, Chalasani et al. 2020)",
        ),
        Metric(
            name="complexity", title="complexity (nats)", group="complexity", better="", function=r.complexity,
            default=True, cost="0",
            meaning="entropy of the heatmap as a distribution over pixels (Bhatt et al. 2020)",
        ),
        Metric(
            name="effective_complexity", title="effective complexity", group="complexity", better="", cost="0",
            function=r.effective_complexity,
            meaning="share of the pixels above a hundredth of the largest value (Nguyen and Martinez 2020)",
        ),
        Metric(
            name="pointing", title="pointing game", group="localization", better="higher", inside=b.points_inside,
            default=True, cost="0",
            meaning="whether the largest value is inside a box of the object, without tolerance (Zhang et al. 2016)",
        ),
        Metric(
            name="energy", title="energy-based pointing game", group="localization", better="higher",
            inside=b.energy_inside, default=True, cost="0",
            meaning="share of the heatmap's sum inside the boxes (Wang et al. 2020); relevance mass accuracy and "
            "attribution localization are the same number, since a heatmap has no negative values",
        ),
        Metric(
            name="relevance_rank", title="relevance rank", group="localization", better="higher",
            inside=b.rank_inside, default=True, cost="0",
            meaning="of as many hottest pixels as the boxes have, the share inside (Arras et al. 2022)",
        ),
        Metric(
            name="top_k", title="top-1000 intersection", group="localization", better="higher", inside=b.top_inside,
            cost="0", meaning="share of the 1000 hottest pixels of the image inside the boxes (Theiner et al. 2021)",
        ),
        Metric(
            name="roc_auc", title="ROC AUC", group="localization", better="higher", inside=b.area_under_roc, cost="0",
            meaning="probability that a pixel inside the boxes is hotter than one outside (Fawcett 2006)",
        ),
    )  # fmt: skip


METRICS: Final[Mapping[str, Metric]] = {metric.name: metric for metric in _rows()}
DEFAULT: Final = tuple(name for name, metric in METRICS.items() if metric.default)
"""The metrics that are computed without being named."""


def named(names: Sequence[str] | None) -> list[str]:
    """The names of metrics in the order of `METRICS`: by default `DEFAULT`; `all` stands for every one.

    Raises:
        InputError: there is no such metric.
    """
    words = DEFAULT if names is None else names
    known = ("all", *METRICS)
    for word in words:
        if word not in known:
            raise InputError(f"unknown metric {word!r}{near_matches(word, known)} (choose from: {', '.join(known)})")
    return [name for name in METRICS if {name, "all"} & set(words)]


def measure(trial: Trial, heatmap: Array, metrics: Sequence[str]) -> dict[str, float]:
    """The values of those `metrics`, names of `METRICS`, that need no boxes and have a value in this trial."""
    if heatmap.shape != trial.image.shape[1:]:
        raise InputError(
            f"the heatmap is {list(heatmap.shape)} and the model's input {list(trial.image.shape[1:])} (height, "
            "width); pass the heatmap over the input"
        )
    functions = {name: METRICS[name].function for name in metrics}
    values = {name: function(trial, heatmap) for name, function in functions.items() if function is not None}
    return {name: float(value) for name, value in values.items() if value is not None}


def localize(heatmap: Array, inside: npt.NDArray[np.bool_], metrics: Sequence[str]) -> dict[str, float]:
    """The values of those `metrics` that need boxes, of a heatmap ``[H, W]`` over the image."""
    functions = {name: METRICS[name].inside for name in metrics}
    values = {name: function(heatmap, inside) for name, function in functions.items() if function is not None}
    return {name: float(value) for name, value in values.items() if value is not None}
