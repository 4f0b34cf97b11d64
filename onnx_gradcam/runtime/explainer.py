"""A model and images in, explanations out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.targets.classes import (
    Top,
    check_class,
    check_labels,
    expanded,
    find_class,
    parse_top,
    read_labels,
    separated,
)
from onnx_gradcam.errors import InputError, ModelError, TargetError
from onnx_gradcam.images.decoding import Placement, prepare, read_image, read_region
from onnx_gradcam.images.preprocessing import PRESETS, Preprocessing, parse_preprocessing
from onnx_gradcam.metadata import ONE_AT_A_TIME, Metadata, peek
from onnx_gradcam.options import Description

from .explanation import ClassMap, Drawing, Explanation, Target, class_of
from .runners import Attached, Augmented, Runner, fixed_size
from .session import InputInfo, Session

if TYPE_CHECKING:
    import onnx
    from typing_extensions import Unpack

    from onnx_gradcam.options import Choices

__all__ = ["ClassMap", "Drawing", "Explainer", "Explanation", "Prepared", "Target", "TargetChoice"]

Array = npt.NDArray[Any]
TargetChoice = int | str | Sequence[int | str] | None
Source = str | Path | bytes | Array


class Explainer:
    """Explains what a model looks at.

    Args:
        model: path, bytes or proto of a model; a model that is not explained yet is attached first.
        provider: execution provider, `cpu`, `cuda` ...
        threads: number of CPU threads within an operator.
        region: where a segmentation with `mask="input"` is explained: an image that is not black there, or an array
            `[h, w]` that is not zero; it is stretched over the part of the image that the model sees.
        augment: average the maps of six versions of each image: mirrored or not, in three strengths.
        seed: random seed, for methods that use random numbers.
        batch_size: rows to run at once, for methods that run the model many times.
        progress: called with `(done, total)` by these methods while they explain an image.
        choices: fields of `onnx_gradcam.Options`. `labels` and `preprocess` replace what the model carries, also where
            it is explained already; the others are for models that are not. `against` may be the name of a class,
            `reference` an image or a `.npy` file.

    Attributes:
        metadata: what the explained model says about itself.
        session: the model that is run.
        runner: what runs it.
        labels: class names, or `None`.
        preprocessing: how images become the model's input.
        warnings: what you should know about the model.

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
        provider: str = "cpu",
        threads: int | None = None,
        region: str | Path | Array | None = None,
        augment: bool = False,
        seed: int = 0,
        batch_size: int = 16,
        progress: Callable[[int, int], None] | None = None,
        **choices: Unpack[Choices],
    ) -> None:
        execution: dict[str, Any] = {"provider": provider, "threads": threads}
        repeats: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "progress": progress}
        runner, self.warnings = _open_explained(model, choices, region, execution) or _attach_or_probe(
            model, choices, region, repeats, execution
        )
        self.runner: Runner = Augmented(runner) if augment else runner
        # Of several layers or runs, a heatmap is more than the finished `cam`.
        self._one_cam = len(runner.metadata.target_tensors) < 2 and not augment
        self.metadata, self.session = runner.metadata, runner.session
        labels, preprocess = choices.get("labels"), choices.get("preprocess")
        self.labels = self.metadata.labels if labels is None else read_labels(labels)
        check_labels(self.labels, self._class_count())
        self._input = self.session.input(self.metadata.image_input)
        self.preprocessing = self._fitted(self.metadata.preprocessing if preprocess is None else preprocess)

    def _fitted(self, described: str | Path | Mapping[str, Any] | Description | None) -> Preprocessing:
        if described is None:
            raise InputError(
                "the model carries no preprocessing; give it with --preprocess: one of "
                f"{', '.join(PRESETS)}, or a JSON object with size, color, scale, mean and std"
            )
        return parse_preprocessing(described).for_input(self.metadata.layout, self._input.shape, self._input.dtype)

    @property
    def results(self) -> list[InputInfo]:
        """Name, dtype and shape of each output of `run`."""
        return self.runner.results

    @property
    def fixed_batch(self) -> int | None:
        """The batch size, if the model allows only one."""
        return fixed_size(self._input)

    def __call__(self, image: Source, target: TargetChoice = None) -> Explanation:
        """Explain one image.

        Args:
            image: a path, the bytes of an image file, or `uint8 [H, W, 3]` RGB.
            target: a class index or name, several of them, `"top3"`, or `None` for the predicted class.

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
        self, images: Iterable[Source], target: TargetChoice = None, *, batch_size: int = 8
    ) -> Iterator[Explanation | InputError]:
        """Explain many images, in order, holding one batch at a time.

        For an image that cannot be read the error takes the place of the explanation; the others go on.
        """
        batch: list[Source] = []
        for image in images:
            batch.append(image)
            if len(batch) == batch_size:
                yield from self._batch(batch, target, batch_size)
                batch = []
        if batch:
            yield from self._batch(batch, target, batch_size)

    def run(
        self, batch: Array, classes: Sequence[int], boxes: Sequence[int] | None = None, *, tables: bool = False
    ) -> dict[str, Array]:
        """Run the explained model on prepared inputs.

        Args:
            batch: the model's input, one row a sample; there may be none.
            classes: the class to explain in each row; -1 for the predicted class.
            boxes: for a detector, the index of the box to explain in each row, in the order of its table; -1 for the
                best box of the class; by default as the model was attached.
            tables: for a detector, also give the probabilities of all boxes, `[N, boxes, K]`, and their corners, `[N,
                boxes, 4]`.

        Returns:
            All outputs by name, one row a sample.

        Raises:
            TargetError: boxes for a model that has none to choose.
            ModelError: the model does not run, which it does not for an index out of range.
        """
        if boxes is not None and not self.metadata.box_input:
            raise TargetError("the box is fixed in this model, or it has none; start from the original detector")
        if len(batch) > 0:
            return self.runner.run(batch, classes, boxes, tables=tables)
        # Not every graph runs on no rows: one row has the outputs' shapes.
        outputs = self.runner.run(np.zeros((1, *batch.shape[1:]), batch.dtype), [-1], tables=tables)
        return {name: values[:0] for name, values in outputs.items()}

    def prepared(self, source: Source) -> Prepared | InputError:
        """Read an image and make the model's input from it, or return why that fails; safe to call from threads."""
        try:
            image = read_image(source)
            return Prepared(image, *prepare(image, self.preprocessing))
        except InputError as exc:
            return exc

    def explained(
        self, images: Sequence[Prepared], target: TargetChoice = None, *, batch_size: int = 8
    ) -> list[Explanation]:
        """Explain prepared images, in order; safe to call from threads.

        Raises:
            TargetError: there is no such class.
            ModelError: the model does not run, or gives NaN.
        """
        pending = [_Pending(image) for image in images]
        targets = [Top(1)] if target is None else self._targets(target)
        first = targets[0]
        self._explain(pending, [[-1 if isinstance(first, Top) else first]] * len(pending), batch_size)
        rest = [expanded(targets, one.scores, one.maps[0].target.index)[1:] for one in pending]
        if self.metadata.all_classes:
            for one, classes in zip(pending, rest, strict=True):
                one.maps += [self._class_map(one, index, one.heatmaps[index], one.cams[index]) for index in classes]
        else:
            self._explain(pending, rest, batch_size)
        return [one.finished(self.labels, self.metadata, one_layer=self._one_cam) for one in pending]

    def class_indices(self, targets: Sequence[int | str]) -> list[int]:
        """The indices of classes given by index or name.

        Raises:
            TargetError: there is no such class, or the class is fixed in this model.
        """
        return [index for index in self._targets(targets) if isinstance(index, int)]

    def _batch(
        self, sources: Sequence[Source], target: TargetChoice, batch_size: int
    ) -> list[Explanation | InputError]:
        images = [self.prepared(source) for source in sources]
        readable = [image for image in images if isinstance(image, Prepared)]
        explanations = iter(self.explained(readable, target, batch_size=batch_size))
        return [image if isinstance(image, InputError) else next(explanations) for image in images]

    def _explain(self, pending: Sequence[_Pending], classes: Sequence[Sequence[int]], batch_size: int) -> None:
        """Run one row for each class of each image, at most `batch_size` rows of one size at once."""
        by_size: dict[tuple[int, ...], list[tuple[_Pending, int]]] = {}
        for one, targets in zip(pending, classes, strict=True):
            by_size.setdefault(one.prepared.tensor.shape, []).extend((one, index) for index in targets)
        for rows in by_size.values():
            for start in range(0, len(rows), batch_size):
                self._explain_rows(rows[start : start + batch_size])

    def _explain_rows(self, rows: Sequence[tuple[_Pending, int]]) -> None:
        names = self.metadata
        results = self.run(np.stack([one.prepared.tensor for one, _ in rows]), [target for _, target in rows])
        for i, (one, target) in enumerate(rows):
            one.scores = self._scores(results[names.scores_output][i])
            index = int(results[names.heatmap_class][i])
            check_class(index, len(one.scores))
            heatmap, cam = results[names.heatmap][i], results[names.cam][i]
            if names.all_classes:
                one.heatmaps, one.cams = heatmap, cam
                index = target if target >= 0 else index
                heatmap, cam = heatmap[index], cam[index]
            attribution = results[names.attribution][i] if names.attribution else None
            # A score may be minus infinity: the logarithm of a probability of 0.
            if np.isnan(one.scores).any() or not (np.isfinite(heatmap).all() and np.isfinite(cam).all()):
                raise ModelError("the model gives NaN for this image; check --preprocess and the model's weights")
            one.maps.append(self._class_map(one, index, heatmap, cam, attribution))

    def _class_map(
        self, one: _Pending, index: int, heatmap: Array, cam: Array, attribution: Array | None = None
    ) -> ClassMap:
        return ClassMap(class_of(index, one.scores, self.labels), heatmap, cam, attribution)

    def _scores(self, row: Array) -> Array:
        """One score for each class; a single logit also gives the score of its complement."""
        scores = row.reshape(-1)
        if not self.metadata.single_logit:
            return scores
        complement = 1 - scores if self.metadata.activation == "sigmoid" else -scores
        return np.concatenate([complement, scores])

    def _targets(self, target: int | str | Sequence[int | str]) -> list[int | Top]:
        several = [target] if isinstance(target, (int, str, np.integer)) else list(target)
        if not several:
            raise TargetError("the list of classes is empty; name one, or give None for the predicted class")
        targets = [parse_top(one) or self._index(one) for one in separated(several, self.labels)]
        if not self.metadata.class_input and not self.metadata.all_classes:
            raise TargetError("the class is fixed in this model; start from the original model to choose another")
        return targets

    def _index(self, target: int | str) -> int:
        """The index of a class given by index or name; near matches if there is none."""
        count = self._class_count()
        index = find_class(target, self.labels)
        return check_class(index, count)

    def _class_count(self) -> int | None:
        if self.metadata.single_logit:
            return 2
        sizes = [d for d in self.session.output(self.metadata.scores_output).shape[1:] if d != 1] or [1]
        return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], int) else None


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image that is ready for the model.

    Attributes:
        image: the image, `uint8 [H, W, 3]` RGB.
        tensor: the model's input made from it, without a batch axis.
        placement: which part of the image the model sees.
    """

    image: npt.NDArray[np.uint8]
    tensor: Array
    placement: Placement


@dataclass(eq=False)
class _Pending:
    """An image that is being explained; `heatmaps` and `cams` are of all classes if the model gives them at once."""

    prepared: Prepared
    scores: Array = field(default_factory=lambda: np.zeros(0))
    heatmaps: Array = field(default_factory=lambda: np.zeros(0))
    cams: Array = field(default_factory=lambda: np.zeros(0))
    maps: list[ClassMap] = field(default_factory=list)

    def finished(self, labels: Sequence[str] | None, metadata: Metadata, *, one_layer: bool) -> Explanation:
        box = metadata.box_in(*self.maps[0].heatmap.shape) if metadata.extent else None
        return Explanation(
            self.prepared.image,
            self.prepared.placement,
            self.scores,
            labels,
            self.maps,
            metadata.preset,
            one_layer,
            box,
        )


def _open_explained(
    model: str | Path | bytes | onnx.ModelProto,
    choices: Choices,
    region: str | Path | Array | None,
    execution: Mapping[str, Any],
) -> tuple[Runner, list[str]] | None:
    """A model that is explained already, which needs nothing but ONNX Runtime; `None` for any other."""
    metadata = Metadata.from_props(
        peek(model)
        if isinstance(model, (str, Path, bytes))
        else {entry.key: entry.value for entry in model.metadata_props}
    )
    if metadata is None:
        return None
    fixed = [name for name in choices if name not in {"labels", "preprocess"}]
    if fixed:
        raise TargetError(
            f"the model is explained already (layer {metadata.target_tensor!r}, method {metadata.method}), "
            f"so {', '.join(fixed)} cannot be chosen any more; start from the original model"
        )
    source = model if isinstance(model, (str, Path, bytes)) else model.SerializeToString()
    session = Session(source, disabled_optimizers=metadata.disabled_optimizers, **execution)
    metadata.check_graph(
        {info.name: (info.dtype, info.shape or None) for info in (*session.inputs, *session.optional_inputs)},
        {info.name: (info.dtype, info.shape or None) for info in session.outputs},
    )
    return Attached(metadata, session, region), [ONE_AT_A_TIME] if metadata.couples_rows else []


def _attach_or_probe(
    model: str | Path | bytes | onnx.ModelProto,
    choices: Choices,
    region: str | Path | Array | None,
    repeats: Mapping[str, Any],
    execution: Mapping[str, Any],
) -> tuple[Runner, list[str]]:
    """A model that is not explained yet, attached or made ready for a method that runs it many times; and warnings."""
    # Explained models run without graph code.
    from onnx_gradcam.editor.attachment import attach  # noqa: PLC0415
    from onnx_gradcam.editor.probes import probed  # noqa: PLC0415
    from onnx_gradcam.editor.resolution import chosen_method  # noqa: PLC0415
    from onnx_gradcam.options import Options  # noqa: PLC0415

    from .prober import Prober  # noqa: PLC0415
    from .references import with_reference  # noqa: PLC0415

    options = with_reference(model, Options().replaced(choices))
    if chosen_method(options).runs_often:
        models = probed(model, options)
        read_region(region, "", None)
        return Prober(models, channels=options.channels, **repeats, **execution), models.warnings
    explained = attach(model, options)
    session = Session(
        explained.to_proto().SerializeToString(),
        folder=explained.model.folder,
        disabled_optimizers=explained.metadata.disabled_optimizers,
        **execution,
    )
    return Attached(explained.metadata, session, region), list(explained.warnings)
