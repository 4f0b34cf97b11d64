"""A model and pictures in, explanations out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import ImageError, ModelError, PreprocessingError, TargetError
from onnx_gradcam.metadata import Metadata, peek
from onnx_gradcam.preprocessing import PRESETS, Preprocessing, parse_preprocessing, read_labels

from .classes import Top, expanded, find_class, parse_top
from .image import Placement, prepare, read_image
from .render import overlay, save_image, sheet
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

__all__ = ["ClassMap", "Explainer", "Explanation", "Picture", "Target"]

Array = npt.NDArray[Any]
Wanted = int | str | Sequence[int | str] | None
Source = str | Path | bytes | Array


@dataclass(frozen=True)
class Target:
    """A class: its index, its name and the model's score for it.

    The score is what the model itself puts out: a logit, a probability, whatever its last operator gives.
    """

    index: int
    label: str
    score: float


@dataclass(frozen=True, eq=False)
class ClassMap:
    """The explanation of one class.

    Attributes:
        target: the class.
        heatmap: `float32 [H, W]` in [0, 1], over the model's input.
        cam: `float32 [h, w]`, the raw signed map at the layer's resolution.
        attribution: a number for every value of the model's input, with the input's axes; `None` for methods that
            look at a layer.
    """

    target: Target
    heatmap: npt.NDArray[np.float32]
    cam: npt.NDArray[np.float32]
    attribution: Array | None = None


@dataclass(frozen=True, eq=False)
class Picture:
    """An RGB picture, `uint8 [H, W, 3]`."""

    pixels: npt.NDArray[np.uint8]

    def save(self, path: str | Path) -> None:
        """Write it in the format of the path's suffix.

        Raises:
            ImageError: an unknown suffix, or a folder that cannot be written.
        """
        save_image(self.pixels, path)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model looked at in one picture.

    Attributes:
        image: the picture, `uint8 [H, W, 3]` RGB, as it was read.
        placement: which part of it the model saw.
        scores: the model's scores, one a class.
        labels: class names, or `None`.
        maps: one map for each explained class.
    """

    image: npt.NDArray[np.uint8]
    placement: Placement
    scores: Array
    labels: Sequence[str] | None
    maps: Sequence[ClassMap]

    @property
    def heatmap(self) -> npt.NDArray[np.float32]:
        """The (first) heatmap, over the model's input."""
        return self.maps[0].heatmap

    @property
    def cam(self) -> npt.NDArray[np.float32]:
        """The (first) raw map."""
        return self.maps[0].cam

    @property
    def target(self) -> Target:
        """The (first) explained class."""
        return self.maps[0].target

    def top(self, count: int = 5) -> list[Target]:
        """The classes with the highest scores."""
        best = np.argsort(-self.scores.astype(np.float64), kind="stable")[:count]
        return [_target(int(i), self.scores, self.labels) for i in best]

    def heatmap_on_image(self, which: int = 0) -> npt.NDArray[np.float32]:
        """A heatmap laid on the whole picture: zero where the model did not look, as in the cut-off margins."""
        return self.placement.project(self.maps[which].heatmap)

    def overlay(self, which: int = 0, *, colormap: str = "jet", opacity: float = 0.5) -> Picture:
        """The picture with a heatmap over it."""
        return Picture(overlay(self.image, self.heatmap_on_image(which), colormap=colormap, opacity=opacity))

    def sheet(self, *, colormap: str = "jet", opacity: float = 0.5) -> Picture:
        """The picture, and beside it one overlay for each explained class with its name and score."""
        panels = [(f"{m.target.label} {m.target.score:.3g}", self.heatmap_on_image(i)) for i, m in enumerate(self.maps)]
        return Picture(sheet(self.image, panels, colormap=colormap, opacity=opacity))


class Explainer:
    """Explains what a model looks at.

    Args:
        model: path, bytes or proto of a model; one that is not explained yet is attached first.
        labels: class names, or a file with one a line; by default those that the model carries.
        preprocess: how pictures become the model's input: a preset, a JSON file or object; by default what the model
            carries.
        provider: execution provider, `cpu`, `cuda` ...
        threads: threads within an operator.
        choices: fields of `onnx_gradcam.plan.Options`, for a model that is not explained yet.

    Raises:
        ExplainError: the model, the choices or the provider cannot be used; see `onnx_gradcam.errors`.

    Example::

        explainer = Explainer("model.onnx", labels="labels.txt", preprocess="torchvision")
        explanation = explainer("photo.jpg", target="tabby")
        explanation.overlay().save("out.png")
    """

    def __init__(
        self,
        model: str | Path | bytes | onnx.ModelProto,
        *,
        labels: str | Path | Sequence[str] | None = None,
        preprocess: str | Path | Mapping[str, Any] | Preprocessing | None = None,
        provider: str = "cpu",
        threads: int | None = None,
        **choices: Any,
    ) -> None:
        self.warnings: list[str] = []
        self.metadata, runnable, folder = self._explained(model, choices)
        self.labels = self._labels(labels)
        asked = preprocess if preprocess is not None else self.metadata.preprocessing
        described = parse_preprocessing(asked) if asked is not None else None
        self.session = Session(
            runnable,
            provider=provider,
            folder=folder,
            disabled_optimizers=self.metadata.disabled_optimizers,
            threads=threads,
        )
        self._input = next(i for i in self.session.inputs if i.name == self.metadata.image_input)
        self.preprocessing = self._fitted(described)
        count = self._class_count()
        if self.labels is not None and count is not None and len(self.labels) != count:
            self.warnings.append(
                f"there are {len(self.labels)} class names for {count} classes: are they this model's?"
            )

    def _explained(
        self, model: str | Path | bytes | onnx.ModelProto, choices: dict[str, Any]
    ) -> tuple[Metadata, str | Path | bytes, Path | None]:
        """Metadata and what to run; a model that is explained already needs nothing but ONNX Runtime."""
        if isinstance(model, (str, Path, bytes)):
            metadata = Metadata.from_props(peek(model))
            if metadata is not None:
                if choices:
                    raise TargetError(
                        f"the model is explained already (layer {metadata.target_tensor!r}, method {metadata.method}), "
                        f"so {', '.join(choices)} cannot be chosen any more; start from the original model"
                    )
                return metadata, model, None
        from onnx_gradcam.attachment import attach  # noqa: PLC0415 - explained models run without graph code

        explained = attach(model, **choices)
        self.warnings.extend(explained.warnings)
        return explained.metadata, explained.to_proto().SerializeToString(), explained.model.folder

    def _labels(self, labels: str | Path | Sequence[str] | None) -> list[str] | None:
        if labels is None:
            return self.metadata.labels
        return read_labels(labels) if isinstance(labels, (str, Path)) else list(labels)

    def _fitted(self, described: Preprocessing | None) -> Preprocessing:
        if described is None:
            raise PreprocessingError(
                "how pictures become this model's input is not known; say it with --preprocess: one of "
                f"{', '.join(PRESETS)}, or a JSON object with size, color, scale, mean and std"
            )
        return fit_preprocessing(described, self.metadata.layout, self._input.shape, self._input.dtype)

    @property
    def fixed_batch(self) -> int | None:
        """The batch size, where the model allows only one."""
        size = self._input.shape[0]
        return size if isinstance(size, int) and size > 0 else None

    def __call__(self, image: Source, target: Wanted = None) -> Explanation:
        """Explain one picture.

        Args:
            image: a path, the bytes of a picture file, or `uint8 [H, W, 3]` RGB.
            target: class index or name, several of them, `"top3"`, or `None` for the class with the highest score.

        Raises:
            ImageError: the picture cannot be read.
            TargetError: there is no such class.
            ModelError: the model does not run, or gives NaN.
        """
        (result,) = self.stream([image], target)
        if isinstance(result, ImageError):
            raise result
        return result

    def stream(
        self, images: Iterable[Source], target: Wanted = None, *, batch_size: int = 8
    ) -> Iterator[Explanation | ImageError]:
        """Explain many pictures, in order, holding one batch at a time.

        A picture that cannot be read gives its error instead of an explanation, and the others go on.
        """
        waiting: list[Source] = []
        for image in images:
            waiting.append(image)
            if len(waiting) == batch_size:
                yield from self._batch(waiting, target, batch_size)
                waiting = []
        if waiting:
            yield from self._batch(waiting, target, batch_size)

    def run(self, batch: Array, classes: Sequence[int]) -> dict[str, Array]:
        """Run the explained model on ready inputs.

        Args:
            batch: the model's input, one row a sample.
            classes: the class to explain in each row; -1 for the one with the highest score.

        Returns:
            All outputs by name, one row a sample.
        """
        size = self.fixed_batch
        if size is None or size == len(batch):
            return self._run(batch, classes)
        parts = []
        for start in range(0, len(batch), size):
            rows, wanted = batch[start : start + size], list(classes[start : start + size])
            missing = size - len(rows)
            padded = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
            parts.append({k: v[: len(rows)] for k, v in self._run(padded, wanted + wanted[-1:] * missing).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, batch: Array, classes: Sequence[int]) -> dict[str, Array]:
        feeds = {self.metadata.image_input: batch}
        if self.metadata.class_input:
            feeds[self.metadata.class_input] = np.array(classes, np.int64)
        return self.session.run(feeds)

    def _batch(self, sources: Sequence[Source], target: Wanted, most: int) -> list[Explanation | ImageError]:
        jobs = [self._job(source) for source in sources]
        good = [job for job in jobs if isinstance(job, _Job)]
        wanted = [Top(1)] if target is None else self._wanted(target)
        first = wanted[0]
        self._explain(good, [[-1 if isinstance(first, Top) else first]] * len(good), most)
        self._explain(good, [expanded(wanted, job.scores, job.maps[0].target.index)[1:] for job in good], most)
        return [job if isinstance(job, ImageError) else job.finished(self.labels) for job in jobs]

    def _job(self, source: Source) -> _Job | ImageError:
        try:
            image = read_image(source)
            return _Job(image, *prepare(image, self.preprocessing))
        except ImageError as exc:
            return exc

    def _explain(self, jobs: Sequence[_Job], classes: Sequence[Sequence[int]], most: int) -> None:
        """Run one row for each class of each picture, at most `most` rows of one size at once; hand the maps out."""
        by_size: dict[tuple[int, ...], list[tuple[_Job, int]]] = {}
        for job, mine in zip(jobs, classes, strict=True):
            by_size.setdefault(job.tensor.shape, []).extend((job, c) for c in mine)
        for rows in by_size.values():
            for start in range(0, len(rows), most):
                self._explain_rows(rows[start : start + most])

    def _explain_rows(self, rows: Sequence[tuple[_Job, int]]) -> None:
        names = self.metadata
        results = self.run(np.stack([job.tensor for job, _ in rows]), [c for _, c in rows])
        for i, (job, _) in enumerate(rows):
            job.scores = self._scores(results[names.scores_output][i])
            index = int(results[names.heatmap_class][i])
            if index >= len(job.scores):
                raise TargetError(f"class {index} is out of range (the model has classes 0 to {len(job.scores) - 1})")
            heatmap, cam = results[names.heatmap][i], results[names.cam][i]
            attribution = results[names.attribution][i] if names.attribution else None
            # A score may well be minus infinity: the logarithm of no chance.
            if np.isnan(job.scores).any() or not (np.isfinite(heatmap).all() and np.isfinite(cam).all()):
                raise ModelError("the model gives NaN for this picture; check --preprocess, and the model's weights")
            job.maps.append(ClassMap(_target(index, job.scores, self.labels), heatmap, cam, attribution))

    def _scores(self, row: Array) -> Array:
        """One score a class; a single logit speaks for its complement as well."""
        scores = row.reshape(-1)
        if not self.metadata.single_logit:
            return scores
        complement = 1 - scores if self.metadata.activation == "sigmoid" else -scores
        return np.concatenate([complement, scores])

    def _wanted(self, target: int | str | Sequence[int | str]) -> list[int | Top]:
        several = [target] if isinstance(target, (int, str, np.integer)) else list(target)
        if not several:
            raise TargetError("no class was asked for; give one, or None for the class with the highest score")
        wanted = [parse_top(one) or self._index(one) for one in several]
        if not self.metadata.class_input:
            raise TargetError("the class is fixed in this model; start from the original model to choose another")
        return wanted

    def _index(self, wanted: int | str) -> int:
        """The index of a class, given as a number or a name.

        Raises:
            TargetError: no such class; the message has near matches.
        """
        count = self._class_count()
        index = find_class(wanted, self.labels)
        if index < 0 or (count is not None and index >= count):
            upto = f" (the model has classes 0 to {count - 1})" if count is not None else ""
            raise TargetError(f"class {index} is out of range{upto}")
        return index

    def _class_count(self) -> int | None:
        if self.metadata.single_logit:
            return 2
        output = next(o for o in self.session.outputs if o.name == self.metadata.scores_output)
        sizes = [d for d in output.shape[1:] if d != 1]
        return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], int) else None


def fit_preprocessing(
    described: Preprocessing, layout: str, shape: Sequence[int | str | None], dtype: str
) -> Preprocessing:
    """Adapt a description to the model's input.

    Args:
        described: how pictures become the input.
        layout: the input's axes, `NCHW` or `NHWC`.
        shape: its shape; free dimensions are symbols or `None`.
        dtype: its NumPy type.

    Raises:
        PreprocessingError: the two contradict each other.
    """
    sizes = dict(zip(layout, shape, strict=True))
    fixed = {axis: size if isinstance(size, int) and size > 0 else None for axis, size in sizes.items()}
    return described.fitted(
        channels=fixed["C"],
        height=fixed["H"],
        width=fixed["W"],
        layout="NCHW" if layout == "NCHW" else "NHWC",
        dtype=dtype,
    )


@dataclass(eq=False)
class _Job:
    """One picture on its way through the model."""

    image: npt.NDArray[np.uint8]
    tensor: Array
    placement: Placement
    scores: Array = field(default_factory=lambda: np.zeros(0))
    maps: list[ClassMap] = field(default_factory=list)

    def finished(self, labels: Sequence[str] | None) -> Explanation:
        return Explanation(self.image, self.placement, self.scores, labels, self.maps)


def _target(index: int, scores: Array, labels: Sequence[str] | None) -> Target:
    label = labels[index] if labels is not None and index < len(labels) else f"class {index}"
    return Target(index, label, float(scores[index]))
