"""Class names: read from files, checked against the model, and looked up by index, name or rank."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, TargetError
from onnx_gradcam.files import read_text

__all__ = ["check_labels", "parse_labels", "read_labels"]
__all__ += ["Top", "check_class", "expanded", "find_class", "find_label", "parse_top", "separated"]

_TOP = re.compile(r"top([0-9]{1,9})")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_LARGEST_FILE = 2**24
"""Bytes of a label file."""
_MOST_CLASSES = 2**20
_SUGGESTIONS = 5


def read_labels(labels: str | Path | Sequence[str]) -> list[str]:
    """Class names from a list or a file; the position is the class index, from 0.

    A text file (UTF-8) has one name a line; empty lines at the end are dropped, another one is a class without a name.
    A JSON file holds a list of names, an object from index to name (also inside `id2label`, as in the `config.json` of
    Hugging Face models) or from name to index (`class_indices` of Keras).

    Raises:
        InputError: no such file, one that holds no class names, or names that are not text.
    """
    if not isinstance(labels, (str, Path)):
        return _as_names(list(labels), "the list of class names")
    text = read_text(labels, _LARGEST_FILE, "class names, one per line, or JSON").rstrip()
    if not text:
        raise InputError(f"the label file {str(labels)!r} is empty; write one class name per line")
    value = _parsed(text)
    if value is not None:
        return parse_labels(value, f"the label file {str(labels)!r}")
    return [line.strip() for line in text.split("\n")]


def _parsed(text: str) -> Any:
    """The JSON list or object that a text is, else `None`."""
    if text.lstrip()[0] not in "[{":
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def parse_labels(value: Any, origin: str) -> list[str]:
    """Class names from a list, or from an object between index and name; `origin` says in messages whose it is.

    Raises:
        InputError: it holds no class names.
    """
    if isinstance(value, Mapping) and "id2label" in value:
        value = value["id2label"]
    if isinstance(value, Mapping) and value and all(_is_index(index) for index in value.values()):
        value = {str(index): name for name, index in value.items()}
    if not isinstance(value, Mapping):
        return _as_names(value, origin)
    if not value or not all(_NUMBER.fullmatch(str(index)) for index in value):
        raise InputError(f"{origin} is a JSON object without class indices; write a list of names, or index: name")
    by_index = {int(index): name for index, name in value.items()}
    if min(by_index) < 0 or max(by_index) >= _MOST_CLASSES:
        raise InputError(f"{origin} has the class index {max(by_index, key=abs)}; count classes from 0")
    return _as_names([by_index.get(index, "") for index in range(max(by_index) + 1)], origin)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_names(values: Any, origin: str) -> list[str]:
    """A list of names; of entries like ["n02123045", "tabby"], Keras's index of ImageNet, the last part."""
    if not isinstance(values, list) or not values:
        raise InputError(f"{origin} holds no class names; give a list of names, one per class")
    names = [value[-1] if isinstance(value, list) and value else value for value in values]
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise InputError(f"{origin} has {str(name)[:40]!r} as the name of class {index}; names are text")
    return names


def check_labels(labels: Sequence[str] | None, count: int | None) -> None:
    """Refuse class names, if any, that are not one for each class."""
    if labels is None or count is None or len(labels) == count:
        return
    remedies = {
        count + 1: "the first, often 'background', may have to go",
        count - 1: "a first one for 'background' may be missing",
    }
    names, classes = _counted(len(labels), "class name"), _counted(count, "class", "classes")
    verb = "is" if len(labels) == 1 else "are"
    remedy = remedies.get(len(labels), "give the list that belongs to this model")
    raise InputError(f"there {verb} {names} for {classes}; {remedy}")


def _counted(count: int, one: str, several: str = "") -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"


@dataclass(frozen=True)
class Top:
    """As many classes as `count`, those with the highest scores."""

    count: int


def parse_top(target: int | str) -> Top | None:
    """Read `topK`; `None` for anything else, and an error for top0."""
    match = _TOP.fullmatch(target) if isinstance(target, str) else None
    if match is None:
        return None
    if int(match.group(1)) == 0:
        raise TargetError("top0 is no class; give top1 or more")
    return Top(int(match.group(1)))


def expanded(targets: Sequence[int | Top], scores: npt.NDArray[Any], best: int) -> list[int]:
    """The classes to explain, in order and each once only.

    `scores` is one per class; `best` is the model's own predicted class, the first among equals.
    """
    order = np.argsort(-scores.astype(np.float64), kind="stable").tolist()
    if isinstance(targets[0], Top):
        order.remove(best)
        order.insert(0, best)
    classes: list[int] = []
    for target in targets:
        indices = order[: target.count] if isinstance(target, Top) else [target]
        classes += [index for index in indices if index not in classes]
    return classes


def check_class(index: int, count: int | None) -> int:
    """The class index, refused if the model has no such class."""
    if index < 0 or (count is not None and index >= count):
        remedy = "count classes from 0"
        if count is not None:
            remedy = f"the model has classes 0 to {count - 1}" if count > 1 else "the model has class 0 alone"
        raise TargetError(f"class {index} is out of range; {remedy}")
    return index


def separated(targets: Sequence[int | str], labels: Sequence[str] | None) -> list[int | str]:
    """Several classes written with commas between, one by one; a class name with commas stays whole.

    `["boxer,tabby", "tench, Tinca tinca"]` becomes `["boxer", "tabby", "tench, Tinca tinca"]`.
    """
    plain = {_plain(label) for label in labels or ()}
    parts: list[int | str] = []
    for target in targets:
        if isinstance(target, str) and "," in target and _plain(target) not in plain:
            parts += [part.strip() for part in target.split(",")]
        else:
            parts.append(target)
    return parts


def find_class(target: int | str, labels: Sequence[str] | None) -> int:
    """The index of a class given as a number or a name; it may be out of range."""
    if isinstance(target, str) and not _NUMBER.fullmatch(target):
        return find_label(target, labels)
    return int(target)


def find_label(name: str, labels: Sequence[str] | None) -> int:
    """The index of the class called `name`; case and underscores do not matter, nor do synonyms after a comma.

    If there is none, the message suggests classes that share a word, then similar spellings.
    """
    if labels is None:
        raise TargetError(f"class {name!r} cannot be looked up without class names; give them with --labels")
    for same in (
        lambda label: label == name,
        lambda label: _plain(label) == _plain(name),
        lambda label: _plain(name) in [_plain(part) for part in label.split(",")],
    ):
        indices = [index for index, label in enumerate(labels) if same(label)]
        if len(indices) > 1:
            raise TargetError(f"several classes are called {name!r} ({', '.join(map(str, indices))}); give the index")
        if indices:
            return indices[0]
    near = _suggestions(_plain(name), list(dict.fromkeys(map(_plain, labels))))
    tail = f"; did you mean {', '.join(map(repr, near))}?" if near else "; give its index, or one of the class names"
    raise TargetError(f"no class is called {name!r}{tail}")


def _suggestions(name: str, labels: Sequence[str]) -> list[str]:
    """Labels that share words with a name, those with the most first, then labels that are spelled like it."""
    words = {_singular(word) for word in name.split()}
    shared = {label: len(words & {_singular(word) for word in re.split(r"[\s,()/-]+", label)}) for label in labels}
    by_word = sorted((label for label in labels if shared[label]), key=lambda label: (-shared[label], len(label)))
    by_spelling = difflib.get_close_matches(name, labels, n=_SUGGESTIONS, cutoff=0.5)
    near = by_spelling if len(name.split()) > 1 and by_spelling else [*by_word, *by_spelling]
    return list(dict.fromkeys(near))[:_SUGGESTIONS]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").split())
