"""A model and images in, explanations out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
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
from onnx_gradcam.errors import InputError, ModelError, NothingFoundError, TargetError
from onnx_gradcam.feeds import Fed, Feeds
from onnx_gradcam.files import ModelSource
from onnx_gradcam.images.decoding import ImageSource

from .answers import Box, Target
from .detections import EMPTY_TABLE, Selection, parse_selection
from .explanation import ClassMap, Drawing, Explanation
from .opening import attach_or_probe, open_explained
from .pending import Pending, Prepared
from .preparing import Preparation
from .rows import Rows, run_rows
from .runners import Attached, Augmented, Halved, Runner, fixed_size
from .session import InputInfo, Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnx_gradcam.options import Choices

__all__ = ["Box", "BoxChoice", "ClassMap", "Drawing", "Explainer", "Explanation", "Prepared", "Selection", "Target"]
__all__ += ["TargetChoice"]

Array = npt.NDArray[Any]
TargetChoice = int | str | Sequence[int | str] | None
BoxChoice = int | str | Box | Selection | None

_NO_DETECTOR = "the model is no detector, or was explained without its boxes; leave the box out"


class Explainer:
    """Explains what a model looks at.

    Args:
        model: path, bytes or proto of a model; a model that is not explained yet is attached first.
        provider: execution provider, `cpu`, `cuda` ...
        threads: number of CPU threads within an operator.
        region: where a segmentation with `mask="input"` is explained: an image that is not black there, or an array
            `[h, w]` that is not zero; it is stretched over the part of the image that the model sees.
        feeds: values of the model's other inputs by name: an array, a number, nested lists, a picture, or a string as
            `--feed` takes it. Of an input with a row for every image, one row is for all images, several are for as
            many images of `stream`, in order.
        augment: average the maps of six versions of each image: mirrored or not, in three strengths.
        seed: random seed, for methods that use random numbers.
        batch_size: rows to run at once, for methods that run the model many times.
        progress: called with `(done, total)` by these methods while they explain an image.
        choices: fields of `onnx_gradcam.Options`. `labels`, `preprocess` and `probabilities` replace what the model
            carries, also where it is explained already; the others are for models that are not. `against` may be the
            name of a class, `reference` an image or a `.npy` file.

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
        model: ModelSource,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        region: str | Path | Array | None = None,
        feeds: Mapping[str, Any] | None = None,
        augment: bool = False,
        seed: int = 0,
        batch_size: int = 16,
        progress: Callable[[int, int], None] | None = None,
        **choices: Unpack[Choices],
    ) -> None:
        execution: dict[str, Any] = {"provider": provider, "threads": threads}
        repeats: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "progress": progress}
        runner, self.warnings = open_explained(model, choices, region, execution) or attach_or_probe(
            model, choices, region, repeats, execution
        )
        self.runner: Runner = Augmented(runner) if augment else runner
        # Of several layers or runs, a heatmap is more than the finished `cam`, unless raw maps are added.
        one_map = len(runner.metadata.target_tensors) < 2 or runner.metadata.combine == "sum"
        self._one_cam = one_map and not augment
        self.metadata, self.session = runner.metadata, runner.session
        labels, preprocess = choices.get("labels"), choices.get("preprocess")
        self.labels = self.metadata.labels if labels is None else read_labels(labels)
        check_labels(self.labels, self._class_count())
        how = self.metadata.preprocessing if preprocess is None else preprocess
        self._preparation = Preparation(self.metadata, self.session, how, feeds)
        self.preprocessing = self._preparation.preprocessing
        self.warnings = [*self.warnings, *self._preparation.feeds.notes]

    def prepared(self, source: ImageSource, feeds: Mapping[str, Any] | None = None) -> Prepared | InputError:
        """Read an image and make the model's input from it, or return why that fails; safe to call from threads.

        Args:
            source: the image.
            feeds: values of other inputs for this image, in place of those of the explainer; with them, also if there
                are none, the values of all other inputs are computed now.
        """
        try:
            prepared = self._preparation.prepared(source)
            if feeds is None:
                return prepared
            others = self._preparation.feeds.replaced(feeds)
            return replace(prepared, feeds=self._preparation.values(prepared, others))
        except InputError as exc:
            return exc

    def fed(self, prepared: Prepared) -> Fed:
        """What the model's other inputs take for a prepared image.

        Raises:
            InputError: an input has no value.
        """
        return self._preparation.fed(prepared)

    @property
    def _rows(self) -> Rows:
        """What runs rows, by the runner of this moment, which a server replaces by its own."""
        return Rows(self.runner, self.labels, self._preparation.feeds)

    @property
    def results(self) -> list[InputInfo]:
        """Name, dtype and shape of each output of `run`."""
        return self.runner.results

    @property
    def fixed_batch(self) -> int | None:
        """The batch size, if the model allows only one."""
        return fixed_size(self._preparation.image)

    def __call__(
        self,
        image: ImageSource,
        target: TargetChoice = None,
        box: BoxChoice = None,
        *,
        feeds: Mapping[str, Any] | None = None,
    ) -> Explanation:
        """Explain one image.

        Args:
            image: a path, the bytes of an image file, `uint8 [H, W, 3]` RGB, an image of Pillow, or a tensor of
                PyTorch; a floating-point array is the model's own input, `[C, H, W]` or with a batch axis of 1.
            target: a class index or name, several of them, `"top3"`, or `None` for the predicted class.
            box: for a detector, a box of `boxes`, or its index in the table (`Box.index`), `"all"` for one map of each
                box, in `Explanation.maps`, `"sum"` for one map of all boxes of the class, or a `Selection`; `None` for
                the best box of each class.
            feeds: values of other inputs for this image, in place of those of the explainer.

        Raises:
            InputError: the image cannot be read, or an input has no value; `NothingFoundError` if a detector finds
                nothing in it.
            TargetError: there is no such class or box.
            ModelError: the model does not run, or gives NaN.

        Example::

            boxes = explainer.boxes("street.jpg", "dog")
            second = explainer("street.jpg", "dog", box=boxes[1])
        """
        (result,) = self.stream([image], target, box=box, feeds=feeds)
        if isinstance(result, InputError):
            raise result
        return result

    def missing(self, feeds: Mapping[str, Any] | None = None) -> list[str]:
        """The names of the model's other inputs that have no value, neither of the explainer nor in `feeds`.

        Raises:
            InputError: a value does not fit.
        """
        return self._preparation.feeds.replaced(feeds).missing

    def check_feeds(self, columns: Collection[str]) -> list[str]:
        """Refuse a run over images unless every other input has a value, the same for all images or one for each.

        Args:
            columns: the names of what has a value for each image.

        Returns:
            The names among them that are no inputs to feed.

        Raises:
            InputError: an input has no value, or several rows for all images.
        """
        feeds = self._preparation.feeds
        feeds.check(columns)
        feeds.check_shared()
        return [name for name in columns if name not in feeds.names]

    def boxes(
        self, image: ImageSource, target: TargetChoice = None, *, least: float = 0.25, overlap: float = 0.45
    ) -> list[Box]:
        """The boxes that a detector finds in an image, one for each object, the surest first.

        Args:
            image: as for a call.
            target: class indices or names whose boxes to list; `None` for all classes, each box with its best one.
            least: boxes below this score are left out.
            overlap: of two boxes of one class whose intersection over union is larger, only the surer one is kept.

        Raises:
            InputError: the image cannot be read, or a number is out of range.
            TargetError: the model is no detector, or there is no such class.
            ModelError: the model does not run.
        """
        Selection(which="all", least=least, overlap=overlap)  # refuses numbers out of range
        if not self.metadata.detection_scores:
            raise TargetError(_NO_DETECTOR)
        prepared = self.prepared(image)
        if isinstance(prepared, InputError):
            raise prepared
        try:
            outputs = run_rows(
                self.runner, prepared.tensor[None], [-1], None, self.fed(prepared), tables=True, maps=False
            )
        except ModelError as exc:
            if EMPTY_TABLE not in str(exc):
                raise
            return []
        table = self._rows.table(prepared, outputs, 0)
        best = table.scores.max(0, initial=0)
        classes = None if target is None else expanded(self._targets(target, fixed=True), best, int(best.argmax()))
        return table.listed(classes, least=least, overlap=overlap)

    def stream(
        self,
        images: Iterable[ImageSource],
        target: TargetChoice = None,
        *,
        box: BoxChoice = None,
        batch_size: int = 8,
        feeds: Mapping[str, Any] | None = None,
    ) -> Iterator[Explanation | InputError]:
        """Explain many images, in order, holding one batch at a time.

        For an image that cannot be read, or in which a detector finds nothing, the error takes the place of the
        explanation; the others go on. `feeds` replace those of the explainer, and may have a row for every image.
        """
        others = self._preparation.feeds.replaced(feeds)
        others.check()
        if isinstance(images, Sized):
            others.check_count(len(images))
        batch: list[ImageSource] = []
        done = 0
        for image in images:
            batch.append(image)
            if len(batch) == batch_size:
                yield from self._batch(batch, target, box, batch_size, others, done)
                done += len(batch)
                batch = []
        if batch:
            yield from self._batch(batch, target, box, batch_size, others, done)
        others.check_count(done + len(batch))

    def run(
        self,
        batch: Array,
        classes: Sequence[int],
        boxes: Sequence[int] | None = None,
        *,
        tables: bool = False,
        maps: bool = True,
        feeds: Mapping[str, Any] | None = None,
    ) -> dict[str, Array]:
        """Run the explained model on prepared inputs.

        Args:
            batch: the model's input, one row a sample; there may be none.
            classes: the class to explain in each row; -1 for the predicted class.
            boxes: for a detector, the index of the box to explain in each row, in the order of its table; -1 for the
                best box of the class; by default as the model was attached.
            tables: for a detector, also give the probabilities of all boxes, `[N, boxes, K]`, and their corners, `[N,
                boxes, 4]`.
            maps: give the maps; without them, a method that runs the model many times runs it once.
            feeds: values of other inputs, in place of those of the explainer. Where they depend on the photo, it is
                taken to be as large as the model's input.

        Returns:
            All outputs by name, one row a sample.

        Raises:
            InputError: an input has no value.
            TargetError: boxes for a model that has none to choose.
            ModelError: the model does not run, which it does not for an index out of range.
        """
        if boxes is not None and not self.metadata.box_input:
            raise TargetError("the box is fixed in this model, or it has none; start from the original detector")
        others = self._preparation.feeds.replaced(feeds)
        others.check_count(len(batch))
        if len(batch) > 0:
            values = [others.of_image(*self._preparation.view(row, None), i) for i, row in enumerate(batch)]
            return run_rows(self.runner, batch, classes, boxes, others.fed(values), tables=tables, maps=maps)
        # Not every graph runs on no rows: one row has the outputs' shapes.
        row = np.zeros((1, *batch.shape[1:]), batch.dtype)
        fed = others.fed([others.of_image(*self._preparation.view(row[0], None), 0)])
        outputs = run_rows(self.runner, row, [-1], None, fed, tables=tables, maps=True)
        return {name: values[:0] for name, values in outputs.items()}

    def explained(
        self,
        images: Sequence[Prepared],
        target: TargetChoice = None,
        *,
        box: BoxChoice = None,
        batch_size: int = 8,
    ) -> list[Explanation]:
        """Explain prepared images, in order; safe to call from threads.

        Raises:
            NothingFoundError: a detector finds nothing in one of the images.
            TargetError: there is no such class or box.
            ModelError: the model does not run, or gives NaN.
        """
        results = self._each(images, [self._preparation.values(one) for one in images], target, box, batch_size)
        error = next((result for result in results if isinstance(result, InputError)), None)
        if error is not None:
            raise error
        return [result for result in results if isinstance(result, Explanation)]

    def _each(
        self,
        images: Sequence[Prepared],
        values: Sequence[Mapping[str, Array]],
        target: TargetChoice,
        box: BoxChoice,
        batch_size: int,
    ) -> list[Explanation | InputError]:
        """The explanation of every prepared image, or why there is none; `values` are of the other inputs."""
        selection = parse_selection(box)
        if selection is not None:
            self._check_boxes(selection)
        several, runner = selection is not None and selection.which in {"all", "sum"}, self.runner
        halved = runner.halved if several and isinstance(runner, Attached) else None
        pending = [Pending(image, feeds=fed) for image, fed in zip(images, values, strict=True)]
        targets = [Top(1)] if target is None else self._targets(target)
        first = targets[0]
        best = -1 if isinstance(first, Top) else first
        self._rows.explain(pending, [[(best, None)]] * len(pending), batch_size, halved, maps=selection is None)
        found = [one for one in pending if one.problem is None]
        if selection is not None:
            self._select(found, None if target is None else targets, selection, batch_size, halved)
            return [one.finished(self.labels, self.metadata, one_layer=self._one_cam) for one in pending]
        rest = [expanded(targets, one.scores, one.maps[0].target.index)[1:] for one in found]
        if self.metadata.all_classes:
            for one, classes in zip(found, rest, strict=True):
                one.maps += [
                    self._rows.class_map(one, index, one.heatmaps[index], one.cams[index]) for index in classes
                ]
        else:
            self._rows.explain(found, [[(index, None) for index in classes] for classes in rest], batch_size)
        for one in found:
            if self.metadata.detection_scores and all(m.target.score == 0 for m in one.maps):
                what = "anything" if target is None else ", ".join(repr(m.target.label) for m in one.maps)
                one.problem = NothingFoundError(f"the model does not find {what} in this image: its best score is 0")
            elif self.metadata.detection_scores:
                one.note_low_score()
        return [one.finished(self.labels, self.metadata, one_layer=self._one_cam) for one in pending]

    def _select(
        self,
        pending: Sequence[Pending],
        targets: Sequence[int | Top] | None,
        selection: Selection,
        batch_size: int,
        halved: Halved | None,
    ) -> None:
        """Replace the maps of the best boxes by those of the boxes that a selection stands for."""
        chosen: list[list[Box]] = []
        for one in pending:
            best = one.best
            classes = None if targets is None else expanded(targets, one.scores, best)
            table = one.table
            assert table is not None  # noqa: S101 - `_check_boxes` has made sure
            one.boxes = table.listed(classes, least=selection.least, overlap=selection.overlap)
            one.notes = table.notes(selection, one.boxes, classes)
            try:
                boxes = table.chosen(selection, classes, best)
                # Of one class they are counted by themselves, and have other numbers in the list.
                chosen.append([one.listed(box.index, box.target.index) for box in boxes])
            except NothingFoundError as exc:
                one.problem = exc
                chosen.append([])
        rows = [[(box.target.index, box.index) for box in boxes] for boxes in chosen]
        self._rows.explain(pending, rows, batch_size, halved)
        for one, boxes in zip(pending, chosen, strict=True):
            one.shared = {}
            if selection.which == "rank":
                one.note_low_score()
            if selection.which == "sum" and boxes:
                one.maps = [self._summed(one, boxes)]
            else:
                one.maps = [replace(m, boxes=[box]) for m, box in zip(one.maps, boxes, strict=True)]

    def _summed(self, one: Pending, boxes: Sequence[Box]) -> ClassMap:
        """One map of several boxes: the sum of their raw maps, made a heatmap as the preset says."""
        from onnx_gradcam.editor.probes import HEATMAP, finisher  # noqa: PLC0415 - few explanations need graph code

        cam = np.stack([m.cam for m in one.maps]).sum(0)
        size = one.maps[0].heatmap.shape
        finish = Session(finisher(self.metadata.preset, cam.shape, size, self.metadata.extent))
        heatmap = finish.run({"cam": cam[None]})[HEATMAP][0]
        return ClassMap(boxes[0].target, heatmap, cam, boxes=boxes)

    def _check_boxes(self, selection: Selection) -> None:
        """Refuse boxes that cannot be chosen in this model."""
        if not self.metadata.detection_scores:
            raise TargetError(_NO_DETECTOR)
        if not self.metadata.box_input:
            raise TargetError("the box is fixed in this model; start from the original model to choose another")
        if selection.which == "sum" and (not self._one_cam or self.metadata.attribution):
            raise TargetError("one map of several boxes is the sum of the maps of one layer; name one with --layer")

    def class_indices(self, targets: Sequence[int | str]) -> list[int]:
        """The indices of classes given by index or name.

        Raises:
            TargetError: there is no such class, or the class is fixed in this model.
        """
        return [index for index in self._targets(targets) if isinstance(index, int)]

    def _batch(
        self,
        sources: Sequence[ImageSource],
        target: TargetChoice,
        box: BoxChoice,
        batch_size: int,
        feeds: Feeds,
        first: int,
    ) -> list[Explanation | InputError]:
        """Explain images of which the first has a number in the stream."""
        images = [self.prepared(source) for source in sources]
        numbered = [(image, i) for i, image in enumerate(images, first) if isinstance(image, Prepared)]
        values = [self._preparation.values(image, feeds, i) for image, i in numbered]
        explanations = iter(self._each([image for image, _ in numbered], values, target, box, batch_size))
        return [image if isinstance(image, InputError) else next(explanations) for image in images]

    def _targets(self, target: int | str | Sequence[int | str], *, fixed: bool = False) -> list[int | Top]:
        """The classes; refused in a model whose class is fixed, unless nothing is explained."""
        several = [target] if isinstance(target, (int, str, np.integer)) else list(target)
        if not several:
            raise TargetError("the list of classes is empty; name one, or give None for the predicted class")
        targets = [parse_top(one) or self._index(one) for one in separated(several, self.labels)]
        if not fixed and not self.metadata.class_input and not self.metadata.all_classes:
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
