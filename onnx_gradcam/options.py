"""What a user can choose, in one place: every set of words, every default, and the checks of both.

The names in registries (methods, presets, profiles, tasks) are looked up there when the model is at hand.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, get_args, get_origin

from .errors import InputError, near_matches

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt


__all__ = ["BASELINES", "Choices", "Description", "Options", "check_choices", "check_word"]
__all__ += [
    "Background",
    "BatchFormat",
    "Biases",
    "BoxFormat",
    "ChannelReduction",
    "ClassInput",
    "Combine",
    "Framework",
    "GradDtype",
    "HeatmapMetric",
    "MaskKind",
    "ModifierName",
    "Probabilities",
    "ScoreKind",
    "Style",
    "TorchExporter",
    "Via",
    "Weights",
]

Weights = Literal["auto", "linear", "gradient", "finite"]
ScoreKind = Literal["logit", "output"]
ModifierName = Literal["guided", "deconvnet", "libra"]
ChannelReduction = Literal["max", "sum"]
Combine = Literal["mean", "max", "product", "sum"]
MaskKind = Literal["own", "all", "input"]
BoxFormat = Literal["scores", "yolov5", "yolov8"]
Background = Literal["first", "last", "none"]
ClassInput = Literal["optional", "required", "none", "all"]
GradDtype = Literal["model", "float32"]
HeatmapMetric = Literal["pearson", "spearman", "cosine", "ssim", "overlap"]
Framework = Literal["keras", "mxnet", "pytorch", "tflite", "onnx"]
Via = Literal["reader", "tf", "torch"]
TorchExporter = Literal["auto", "dynamo", "torchscript"]
Biases = Literal["apart", "merged", "unknown"]
BatchFormat = Literal["parquet", "npz", "png"]
Probabilities = Literal["softmax", "sigmoid", "none"]
Watched = Literal["similarity", "score"]
Randomization = Literal["shuffle", "initialise"]
Style = Literal["overlay", "mask", "contour", "box", "alpha", "signed", "grey"]


BASELINES: dict[str, type[int | float] | None] = {
    "zero": None,
    "black": None,
    "white": None,
    "darkest": None,
    "lightest": None,
    "mean": None,
    "uniform": int,
    "blur": float,
}
"""What stands for no information, and the number behind a colon that a word takes; a file is one as well."""

_PLAYERS = r"grid:[1-9]\d{0,3}x[1-9]\d{0,3}|segments:\d{1,6}(\.\d+)?|.+\.npy"

_IMAGE_FILES = (".bmp", ".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp")


class Description(Protocol):
    """A description of preprocessing that has been read: `onnx_gradcam.images.preprocessing.Preprocessing`."""

    def to_dict(self) -> dict[str, Any]:
        """Its settings by name."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to explain and how.

    Attributes:
        layer: name of a tensor, a node or a framework layer, `backbone` for the end of a detector's, or `auto`: the
            layer the model was exported with, else the last one with spatial positions on every path to the score;
            several give one map of several layers.
        method: name of the method; by default the task's own (`gradcam`, and `hirescam` for segmentation and
            detection, where weights averaged over all positions miss what a score depends on).
        preset: library whose conventions the score, the gradient and the heatmap follow.
        modifier: how the gradient is passed back: `guided` and `deconvnet` change what rectifiers do, `libra` makes the
            image times its gradient, plus biases, add up to the score; by default as method and preset say.
        channels: how the channels of an attribution become one map, `max` or `sum`; by default `max` where the sign
            does not matter, else `sum`.
        combine: how the heatmaps of several layers become one, `mean`, `max` or `product`; by default as method and
            preset say.
        eigen_smooth: use the leading principal component of the weighted activation maps instead of their sum.
        against: explain the score's lead over this class, given by index or name, over the `runner-up`, or over all
            `others` together, as the log odds of their softmax.
        baseline: what stands for no information, where the method compares with that: `zero` (the number 0),
            `black` or `white` through the preprocessing, `darkest` or `lightest` (the image's lowest or highest value
            everywhere), `mean` (of each channel of the image), `uniform:SEED` (random values of the image's range),
            `blur:SIGMA` (the image, blurred, with zeros beyond its border; pixels), or a file: an image, or a `.npy`
            array as the model takes it. Of several, attributions are averaged. By default as the method says.
        steps: gradients along the path to each baseline, for path methods; by default as the method says.
        idgi: weight the steps of a path by what they change of the score, in the direction of the gradient, so that the
            values add up to its change exactly.
        smooth: average the attribution over this many noisy copies of the image, for path methods.
        players: the parts of the image that games weigh: `grid:ROWSxCOLUMNS`, `segments:SCALE` (by color; a larger
            scale makes larger segments), or a `.npy` file of whole numbers `[H, W]`. By default as the method says.
        max_passes: the most forward passes that a game takes; by default as the method says.
        weights: how the channel weights are computed; `auto` takes the first of `linear`, `gradient` and `finite`
            that applies.
        score: `logit` explains the tensor before a trailing activation, `output` the output itself; by default as the
            preset says.
        output: name of the output with the scores; several for a detector whose scores are in several outputs.
        task: what the model does; see `onnx_gradcam.editor.targets.task`; by default the task it was exported for, else
            classification.
        mask: segmentation only: sum the scores of a class over its `own` mask, over `all` positions, or over the mask
            fed to the new input `target_mask`.
        boxes: detection only: how the table of boxes is laid out; by default as the graph says.
        background: detection only: which of the scores of a box is that of the background, `first`, `last` or `none`,
            where neither the graph nor the number of class names tells.
        box_rank: detection only: explain the box of this rank among those of the class, 0 for the highest score.
        box: detection only: explain the box at this index instead.
        at: explain the scores at this place of an output `[N, places, K]`: a task, a step of time, a word.
        reference: embedding only: the embedding to compare with, `[D]`; for `Explainer` also a `.npy` file
            or an image.
        image: name of the image input, where several could be it.
        bake: values of other inputs, which become constants of the model, as `Explainer` takes them in `feeds`, but for
            pictures and what depends on the photo.
        class_input: how the class, and the box of a detector, is chosen at run time: by an `optional` input, a
            `required` one, `none` to fix it now, or `all` for the maps of all classes at once behind a linear head:
            heatmap `[N, K, H, W]` and raw map `[N, K, h, w]`, beside the predicted class.
        target: the class to explain with `class_input="none"`, by index or name; `None` for the predicted class.
        expose_activation: add the activation maps of the layer to the outputs.
        labels: class names, or a file of them; by default those stored in the model.
        preprocess: how an image becomes the model's input: a preset, a JSON file or object, a mapping; by default what
            is stored in the model.
        probabilities: how the scores of a classifier without a final activation become the probabilities that are
            shown: `softmax`, `sigmoid` if several classes may be in one image, or `none`; by default what is stored in
            the model, else `softmax`, or `sigmoid` for a single logit. No heatmap depends on it.
        profile: which of several equal ways a gradient is written in: `portable` for every runtime, or operators that
            suit one execution provider. What runs a model itself, as `Explainer` and `explain` do, takes `cpu` on ONNX
            Runtime's CPU provider unless you name another.
        grad_dtype: compute gradients in the dtype of the `model` or in `float32`.

    Raises:
        InputError: a word or value that is not one of those above.

    Example::

        attach("model.onnx", Options(method="layercam", class_input="required")).save("explained.onnx")
    """

    layer: str | Sequence[str] = "auto"
    method: str | None = None
    preset: str = "default"
    modifier: ModifierName | None = None
    channels: ChannelReduction | None = None
    combine: Combine | None = None
    eigen_smooth: bool = False
    against: int | str | None = None
    baseline: str | Sequence[str] | None = None
    steps: int | None = None
    idgi: bool | None = None
    smooth: int | None = None
    players: str | None = None
    max_passes: int | None = None
    weights: Weights = "auto"
    score: ScoreKind | None = None
    output: str | Sequence[str] | None = None
    task: str | None = None
    mask: MaskKind = "own"
    boxes: BoxFormat | None = None
    background: Background | None = None
    box_rank: int = 0
    box: int | None = None
    at: int | None = None
    reference: str | Path | bytes | npt.NDArray[Any] | None = None
    image: str | None = None
    bake: Mapping[str, Any] | None = None
    class_input: ClassInput = "optional"
    target: int | str | None = None
    expose_activation: bool = False
    labels: str | Path | Sequence[str] | None = None
    preprocess: str | Path | Mapping[str, Any] | Description | None = None
    probabilities: Probabilities | None = None
    profile: str = "portable"
    grad_dtype: GradDtype = "model"

    def __post_init__(self) -> None:
        for name, words in _words().items():
            check_word(name, getattr(self, name), words)
        for name in ("preset", "profile"):
            _check_text(name, getattr(self, name))
        for name in ("method", "task", "image"):
            _check_text(name, getattr(self, name), optional=True)
        for name in ("layer", "output", "baseline"):
            _check_names(name, getattr(self, name), optional=name != "layer")
        for name in ("eigen_smooth", "expose_activation"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; give True or False")
        for name in ("box_rank", "box", "at"):
            _check_index(name, getattr(self, name), optional=name != "box_rank")
        for name in ("against", "target"):
            _check_class(name, getattr(self, name))
        if not isinstance(self.bake, Mapping | None):
            raise InputError(f"bake is {_shortened(self.bake)}; give values by the names of inputs")
        self._check_path()
        if self.target is not None and self.class_input != "none":
            raise InputError("a target fixes the class in the model; combine it with class_input 'none'")

    def _check_path(self) -> None:
        """Refuse what no path method and no game takes."""
        for word in self.baselines or ():
            _check_baseline(word)
        if self.players is not None and not re.fullmatch(_PLAYERS, str(self.players)):
            raise InputError(
                f"players is {_shortened(self.players)}; choose 'grid:ROWSxCOLUMNS', 'segments:SCALE' or a .npy file"
            )
        for name in ("steps", "smooth", "max_passes"):
            _check_count(name, getattr(self, name))
        if not isinstance(self.idgi, bool | None):
            raise InputError(f"idgi is {_shortened(self.idgi)}; give True or False")

    @property
    def baselines(self) -> tuple[str, ...] | None:
        """The baselines, one or more; `None` for those of the method."""
        given = self.baseline
        return (given,) if isinstance(given, str) else tuple(given) if given is not None else None

    def replaced(self, choices: Mapping[str, Any]) -> Options:
        """A copy with some fields replaced; unknown names and impossible values are refused."""
        check_choices(choices)
        return dataclasses.replace(self, **choices)


class Choices(TypedDict, total=False):
    """The fields of `Options` as keyword arguments, so that editors complete them."""

    layer: str | Sequence[str]
    method: str | None
    preset: str
    modifier: ModifierName | None
    channels: ChannelReduction | None
    combine: Combine | None
    eigen_smooth: bool
    against: int | str | None
    baseline: str | Sequence[str] | None
    steps: int | None
    idgi: bool | None
    smooth: int | None
    players: str | None
    max_passes: int | None
    weights: Weights
    score: ScoreKind | None
    output: str | Sequence[str] | None
    task: str | None
    mask: MaskKind
    boxes: BoxFormat | None
    background: Background | None
    box_rank: int
    box: int | None
    at: int | None
    reference: str | Path | bytes | npt.NDArray[Any] | None
    image: str | None
    bake: Mapping[str, Any] | None
    class_input: ClassInput
    target: int | str | None
    expose_activation: bool
    labels: str | Path | Sequence[str] | None
    preprocess: str | Path | Mapping[str, Any] | Description | None
    probabilities: Probabilities | None
    profile: str
    grad_dtype: GradDtype


def check_choices(choices: Mapping[str, Any], *, more: Sequence[str] = ()) -> None:
    """Refuse names that are neither fields of `Options` nor in `more`."""
    names = [*(field.name for field in dataclasses.fields(Options)), *more]
    for name in choices:
        if name not in names:
            raise InputError(f"there is no option {name!r}{near_matches(name, names) or '; see onnx_gradcam.Options'}")


def check_word(name: str, value: object, words: Sequence[object]) -> None:
    """Refuse a value that is not one of some words."""
    if isinstance(value, (str, type(None))) and value in words:
        return
    allowed = [word for word in words if isinstance(word, str)]
    near = near_matches(value, allowed) if isinstance(value, str) else ""
    raise InputError(f"{name} is {_shortened(value)}{near or ';'} choose {_listed(allowed)}")


@functools.cache
def _words() -> dict[str, tuple[object, ...]]:
    """The words of every field that takes one of a fixed set."""
    words: dict[str, tuple[object, ...]] = {}
    for field in dataclasses.fields(Options):
        name, _, rest = str(field.type).partition(" | ")
        literal = globals().get(name)
        if get_origin(literal) is Literal:
            words[field.name] = (*get_args(literal), None) if rest == "None" else get_args(literal)
    return words


def _check_text(name: str, value: object, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} is {_shortened(value)}; give a name")


def _check_names(name: str, value: object, *, optional: bool) -> None:
    if isinstance(value, str) or (value is None and optional):
        values: Sequence[object] = [value] if value is not None else []
    elif isinstance(value, Sequence):
        values = value
        if not values and not optional:
            raise InputError(f"{name} is empty; name at least one")
    else:
        values = [value]
    for one in values:
        _check_text(name, one)


def _check_index(name: str, value: object, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise InputError(f"{name} is {_shortened(value)}; give an integer from 0 on")


def _check_count(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
        raise InputError(f"{name} is {_shortened(value)}; give an integer from 1 on")


def _check_baseline(text: str) -> None:
    word, colon, number = text.partition(":")
    if text.lower().endswith(_IMAGE_FILES):
        return
    if word not in BASELINES:
        listed = [f"{key}:{'SEED' if kind is int else 'SIGMA'}" if kind else key for key, kind in BASELINES.items()]
        near = near_matches(word, BASELINES) or ";"
        raise InputError(f"baseline is {_shortened(text)}{near} choose {_listed(listed)}, or an image or .npy file")
    kind = BASELINES[word]
    if kind is None and colon:
        raise InputError(f"baseline is {_shortened(text)}, but {word!r} takes no number; leave it out")
    if kind is not None and not (number.isdecimal() or (kind is float and number.replace(".", "", 1).isdecimal())):
        example = "uniform:0" if kind is int else "blur:20"
        raise InputError(f"baseline is {_shortened(text)}; give a number behind the colon, as in {example!r}")


def _check_class(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (Integral, str, type(None))) or value == "":
        raise InputError(f"{name} is {_shortened(value)}; give the index or the name of a class")


def _shortened(value: object, limit: int = 80) -> str:
    shown = repr(value)
    return shown if len(shown) <= limit else shown[:limit] + "..."


def _listed(words: Sequence[str]) -> str:
    quoted = [repr(word) for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
