"""A model and images in, explanations out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.targets.classes import Top, check_labels, expanded, find_class, parse_top, read_labels
from onnx_gradcam.errors import InputError, ModelError, TargetError
from onnx_gradcam.images.decoding import Placement, prepare, read_image, read_region
from onnx_gradcam.images.preprocessing import PRESETS, Preprocessing, parse_preprocessing
from onnx_gradcam.metadata import Metadata, peek

from .explanation import ClassMap, Drawing, Explanation, Target, class_of
from .runners import augmented, fixed_size, in_batches
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from onnx_gradcam.options import Options

    from .prober import Prober

__all__ = ["ClassMap", "Drawing", "Explainer", "Explanation", "Prepared", "Target", "Wanted"]

Array = npt.NDArray[Any]
Wanted = int | str | Sequence[int | str] | None
Source = str | Path | bytes | Array


class Explainer:
    """Explains what a model looks at.

    Args:
        model: path, bytes or proto of a model; one that is not explained yet is attached first.
        labels: class names, or a file with one a line; by default those that the model carries.
        preprocess: how images become the model's input: a preset, a JSON file or object; by default what the model
            carries.
        provider: execution provider, `cpu`, `cuda` ...
        threads: threads within an operator.
        region: where a segmentation with `mask="input"` is explained: an image that is not black there, or an array
            `[h, w]` that is not zero; it is stretched over what the model sees.
        augment: explain each image six times, mirrored or not and in three strengths, and give the mean of the maps.
        seed: of the random numbers of methods that use some.
        batch_size: rows to run at once, for methods that run the model many times.
        progress: called with `(done, total)` by these while they work on an image.
        choices: fields of `onnx_gradcam.Options`, for a model that is not explained yet; `against` may be the name
            of a class, `reference` an image or a `.npy` file.

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
        region: str | Path | Array | None = None,
        augment: bool = False,
        seed: int = 0,
        batch_size: int = 16,
        progress: Callable[[int, int], None] | None = None,
        **choices: Any,
    ) -> None:
        self.warnings: list[str] = []
        self._prober: Prober | None = None
        self._augment = augment
        runs = {"seed": seed, "batch_size": batch_size, "progress": progress}
        if not {"against", "reference"}.isdisjoint(choices):
            from .choices import resolve_choices  # noqa: PLC0415 - explained models run without graph code

            choices = resolve_choices(model, choices, labels, preprocess)
        self.metadata, self.session = self._explained(model, choices, runs, {"provider": provider, "threads": threads})
        self.labels = self._labels(labels)
        asked = preprocess if preprocess is not None else self.metadata.preprocessing
        described = parse_preprocessing(asked) if asked is not None else None
        self._input = next(i for i in self.session.inputs if i.name == self.metadata.image_input)
        self.preprocessing = self._fitted(described)
        takes = {i.name: i.shape for i in self.session.inputs}.get(self.metadata.mask_input)
        if augment and (takes is not None or self.metadata.task == "detection"):
            raise TargetError(
                "a mirrored image has its boxes and its region elsewhere, so they cannot be augmented; leave it out"
            )
        self._region = read_region(region, self.metadata.mask_input, takes)
        check_labels(self.labels, self._class_count())

    def _explained(
        self,
        model: str | Path | bytes | onnx.ModelProto,
        choices: dict[str, Any],
        runs: dict[str, Any],
        where: dict[str, Any],
    ) -> tuple[Metadata, Session]:
        """Metadata and what to run; a model that is explained already needs nothing but ONNX Runtime."""
        if isinstance(model, (str, Path, bytes)):
            metadata = Metadata.from_props(peek(model))
            if metadata is not None:
                if choices:
                    raise TargetError(
                        f"the model is explained already (layer {metadata.target_tensor!r}, method {metadata.method}), "
                        f"so {', '.join(choices)} cannot be chosen any more; start from the original model"
                    )
                return metadata, Session(model, disabled_optimizers=metadata.disabled_optimizers, **where)
        from onnx_gradcam.editor.plan import chosen_method  # noqa: PLC0415 - explained models run without graph code
        from onnx_gradcam.options import Options  # noqa: PLC0415

        options = Options().replaced(choices)
        if chosen_method(options).runs_often:
            self._prober = self._probing(model, options, runs, where)
            return self._prober.metadata, self._prober.session
        from onnx_gradcam.editor.attachment import attach  # noqa: PLC0415

        explained = attach(model, options)
        self.warnings.extend(explained.warnings)
        facts, proto = explained.metadata, explained.to_proto()
        folder = explained.model.folder
        return facts, Session(
            proto.SerializeToString(), folder=folder, disabled_optimizers=facts.disabled_optimizers, **where
        )

    def _probing(
        self,
        model: str | Path | bytes | onnx.ModelProto,
        options: Options,
        runs: dict[str, Any],
        where: dict[str, Any],
    ) -> Prober:
        from onnx_gradcam.editor.probes import probed  # noqa: PLC0415 - explained models run without graph code

        from .prober import Prober  # noqa: PLC0415

        models = probed(model, options)
        self.warnings.extend(models.warnings)
        return Prober(models, channels=options.channels, **runs, **where)

    def _labels(self, labels: str | Path | Sequence[str] | None) -> list[str] | None:
        if labels is None:
            return self.metadata.labels
        return read_labels(labels)

    def _fitted(self, described: Preprocessing | None) -> Preprocessing:
        if described is None:
            raise InputError(
                "how images become this model's input is not known; say it with --preprocess: one of "
                f"{', '.join(PRESETS)}, or a JSON object with size, color, scale, mean and std"
            )
        return described.for_input(self.metadata.layout, self._input.shape, self._input.dtype)

    @property
    def fixed_batch(self) -> int | None:
        """The batch size, where the model allows only one."""
        return fixed_size(self._input)

    def __call__(self, image: Source, target: Wanted = None) -> Explanation:
        """Explain one image.

        Args:
            image: a path, the bytes of an image file, or `uint8 [H, W, 3]` RGB.
            target: class index or name, several of them, `"top3"`, or `None` for the class with the highest score.

        Raises:
            InputError: the image cannot be read.
            TargetError: there is no such class.
            ModelError: the model does not run, or gives NaN.
        """
        (result,) = self.stream([image], target)
        if isinstance(result, InputError):
            raise result
        return result

    def stream(
        self, images: Iterable[Source], target: Wanted = None, *, batch_size: int = 8
    ) -> Iterator[Explanation | InputError]:
        """Explain many images, in order, holding one batch at a time.

        An image that cannot be read gives its error instead of an explanation, and the others go on.
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
        if self._augment:
            return augmented(self._once, self.metadata, batch, classes)
        return self._once(batch, classes)

    def _once(self, batch: Array, classes: Sequence[int]) -> dict[str, Array]:
        if self._prober is not None:
            return self._prober.run(batch, classes)
        return in_batches(self._run, batch, classes, self.fixed_batch)

    def _run(self, batch: Array, classes: Sequence[int]) -> dict[str, Array]:
        feeds = {self.metadata.image_input: batch}
        if self.metadata.class_input:
            feeds[self.metadata.class_input] = np.array(classes, np.int64)
        if self._region is not None:
            feeds[self.metadata.mask_input] = np.repeat(self._region[None], len(batch), axis=0)
        return self.session.run(feeds)

    def prepared(self, source: Source) -> Prepared | InputError:
        """Read an image and make the model's input of it, or say why not; threads may do so at the same time."""
        try:
            image = read_image(source)
            return Prepared(image, *prepare(image, self.preprocessing))
        except InputError as exc:
            return exc

    def explained(self, images: Sequence[Prepared], target: Wanted = None, *, batch_size: int = 8) -> list[Explanation]:
        """Explain images that are prepared, in order; threads may do so at the same time.

        Raises:
            TargetError: there is no such class.
            ModelError: the model does not run, or gives NaN.
        """
        jobs = [_Job(image) for image in images]
        wanted = [Top(1)] if target is None else self._wanted(target)
        first = wanted[0]
        self._explain(jobs, [[-1 if isinstance(first, Top) else first]] * len(jobs), batch_size)
        rest = [expanded(wanted, job.scores, job.maps[0].target.index)[1:] for job in jobs]
        if self.metadata.all_classes:
            for job, mine in zip(jobs, rest, strict=True):
                job.maps += [self._class_map(job, index, job.heatmaps[index], job.cams[index]) for index in mine]
        else:
            self._explain(jobs, rest, batch_size)
        one_layer = len(self.metadata.target_tensors) < 2 and not self._augment
        return [job.finished(self.labels, self.metadata.preset, one_layer=one_layer) for job in jobs]

    def _batch(self, sources: Sequence[Source], target: Wanted, most: int) -> list[Explanation | InputError]:
        read = [self.prepared(source) for source in sources]
        found = iter(self.explained([p for p in read if isinstance(p, Prepared)], target, batch_size=most))
        return [p if isinstance(p, InputError) else next(found) for p in read]

    def _explain(self, jobs: Sequence[_Job], classes: Sequence[Sequence[int]], most: int) -> None:
        """Run one row for each class of each image, at most `most` rows of one size at once; hand the maps out."""
        by_size: dict[tuple[int, ...], list[tuple[_Job, int]]] = {}
        for job, mine in zip(jobs, classes, strict=True):
            by_size.setdefault(job.prepared.tensor.shape, []).extend((job, c) for c in mine)
        for rows in by_size.values():
            for start in range(0, len(rows), most):
                self._explain_rows(rows[start : start + most])

    def _explain_rows(self, rows: Sequence[tuple[_Job, int]]) -> None:
        names = self.metadata
        results = self.run(np.stack([job.prepared.tensor for job, _ in rows]), [c for _, c in rows])
        for i, (job, wanted) in enumerate(rows):
            job.scores = self._scores(results[names.scores_output][i])
            index = int(results[names.heatmap_class][i])
            if index >= len(job.scores):
                raise TargetError(f"class {index} is out of range (the model has classes 0 to {len(job.scores) - 1})")
            heatmap, cam = results[names.heatmap][i], results[names.cam][i]
            if names.all_classes:
                job.heatmaps, job.cams = heatmap, cam
                index = wanted if wanted >= 0 else index
                heatmap, cam = heatmap[index], cam[index]
            attribution = results[names.attribution][i] if names.attribution else None
            # A score may well be minus infinity: the logarithm of no chance.
            if np.isnan(job.scores).any() or not (np.isfinite(heatmap).all() and np.isfinite(cam).all()):
                raise ModelError("the model gives NaN for this image; check --preprocess, and the model's weights")
            job.maps.append(self._class_map(job, index, heatmap, cam, attribution))

    def _class_map(
        self, job: _Job, index: int, heatmap: Array, cam: Array, attribution: Array | None = None
    ) -> ClassMap:
        return ClassMap(class_of(index, job.scores, self.labels), heatmap, cam, attribution)

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
        if not self.metadata.class_input and not self.metadata.all_classes:
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


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image that is ready for the model.

    Attributes:
        image: the image, `uint8 [H, W, 3]` RGB.
        tensor: the model's input made of it, without a batch axis.
        placement: which part of the image that is.
    """

    image: npt.NDArray[np.uint8]
    tensor: Array
    placement: Placement


@dataclass(eq=False)
class _Job:
    """One image on its way through the model; `heatmaps` and `cams` of all classes where it gives them at once."""

    prepared: Prepared
    scores: Array = field(default_factory=lambda: np.zeros(0))
    heatmaps: Array = field(default_factory=lambda: np.zeros(0))
    cams: Array = field(default_factory=lambda: np.zeros(0))
    maps: list[ClassMap] = field(default_factory=list)

    def finished(self, labels: Sequence[str] | None, preset: str, *, one_layer: bool) -> Explanation:
        return Explanation(
            self.prepared.image, self.prepared.placement, self.scores, labels, self.maps, preset, one_layer
        )
