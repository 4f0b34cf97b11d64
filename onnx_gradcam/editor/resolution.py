"""Options completed by what the model's file and its neighbours say, before anything is planned."""

from __future__ import annotations

from dataclasses import replace

from onnx_gradcam.errors import TargetError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.model import Model
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.metadata import OWN, Carried
from onnx_gradcam.options import Options

from .methods.catalogue import Method, find_method
from .origins import Statements
from .presets import find_preset
from .targets.classes import find_class, read_labels
from .targets.score import OBJECTIVES, Aim, unranked
from .targets.task import SCORES, USUAL_TASK, Task, expose, find_task, usual_task

__all__ = ["added", "as_exported", "chosen_method", "resolved", "with_class_scores"]


def as_exported(model: Model, options: Options, statements: Statements) -> Options:
    """The image, and the task with its outputs, that the model was exported for, where the user names none.

    Class names tell what the outputs of a detector are; `statements` may bring them.
    """
    carried = Carried.from_props(model.metadata)
    own = carried.task
    if not own:
        labels = statements.labels if options.labels is None else read_labels(options.labels)
        own = USUAL_TASK if options.task else usual_task(Builder(model), replace(options, labels=labels))
    task = options.task or own
    outputs = carried.outputs if task == own else []
    return replace(
        options, task=task, output=options.output or outputs or None, image=options.image or carried.image_input or None
    )


def resolved(statements: Statements, options: Options, task: Task) -> Options:
    """Class names and preprocessing read, the names of classes as indices; without those that others stored."""
    known = statements.labels if task.names_apply else None
    own = statements.origin("labels") == OWN
    labels = (known if own else None) if options.labels is None else read_labels(options.labels)
    against, target = options.against, options.target
    if against is not None and against not in OBJECTIVES:
        against = find_class(against, labels or known)
    if target is not None:
        target = find_class(target, labels or known)
    described = statements.preprocessing if statements.origin("preprocessing") == OWN else None
    if options.preprocess is not None:
        described = parse_preprocessing(options.preprocess).to_dict()
    return replace(options, labels=labels, preprocess=described, against=against, target=target)


def chosen_method(options: Options) -> Method:
    """The method that the options name, else the task's own, else the first that the preset stands for."""
    if options.method is not None:
        return find_method(options.method)
    preset, own = find_preset(options.preset), find_task(options.task or USUAL_TASK).method
    return find_method(own if preset.methods is None or own in preset.methods else next(iter(preset.methods)))


def with_class_scores(model: Model, options: Options, task: Task) -> tuple[Options, Aim | None]:
    """Append one score per class for a task that has none; the options that explain these, and what it aims at."""
    outputs = [options.output] if isinstance(options.output, str) else list(options.output or ())
    if len(outputs) > 1 and not task.several_outputs:
        raise TargetError(
            f"--output was given {len(outputs)} times, but only a detector's scores are in several outputs"
        )
    t = Builder(model)
    if task.scores is not None:
        aim = task.scores(t, options, options.score or find_preset(options.preset).score)
        t.finish()
        return replace(options, output=SCORES), aim
    output = outputs[0] if outputs else None
    scores = unranked(t, output) if task.classes_compete else None
    if scores is None:
        return replace(options, output=output), None
    if scores.core.is_graph_output():
        return replace(options, output=scores.name), None
    expose(t, scores)
    t.finish()
    return replace(options, output=SCORES), None


def added(task: Task, options: Options) -> str:
    """What the output with the scores holds, if it was added to the model."""
    if options.output != SCORES:
        return ""
    return f"added for this task: {task.about}" if task.scores is not None else "added: the scores that outputs rank"
