"""Which classes are meant: by number, by name, or by rank."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import TargetError, near_matches

__all__ = ["Top", "expanded", "find_class", "find_label", "parse_top"]

_TOP = re.compile(r"top([0-9]{1,9})")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True)
class Top:
    """As many classes as `count`, those with the highest scores."""

    count: int


def parse_top(wanted: int | str) -> Top | None:
    """Read `topK`; `None` for anything else.

    Raises:
        TargetError: top0.
    """
    match = _TOP.fullmatch(wanted) if isinstance(wanted, str) else None
    if match is None:
        return None
    if int(match.group(1)) == 0:
        raise TargetError("top0 asks for no class; ask for top1 or more")
    return Top(int(match.group(1)))


def expanded(wanted: Sequence[int | Top], scores: npt.NDArray[Any], best: int) -> list[int]:
    """The classes to explain, in the order asked for, each once only.

    Args:
        wanted: what was asked for.
        scores: one a class.
        best: the class that the model itself holds for the best: among equals it is the first.
    """
    order = np.argsort(-scores.astype(np.float64), kind="stable").tolist()
    if isinstance(wanted[0], Top):
        order.remove(best)
        order.insert(0, best)
    classes: list[int] = []
    for one in wanted:
        asked = order[: one.count] if isinstance(one, Top) else [one]
        classes += [c for c in asked if c not in classes]
    return classes


def find_class(wanted: int | str, labels: Sequence[str] | None) -> int:
    """The index of a class given as a number or a name; whether the model has so many is not asked.

    Raises:
        TargetError: no class of that name.
    """
    if isinstance(wanted, str) and not _NUMBER.fullmatch(wanted):
        return find_label(wanted, labels)
    return int(wanted)


def find_label(name: str, labels: Sequence[str] | None) -> int:
    """The index of the class called `name`; case and underscores do not matter, nor do synonyms after a comma.

    Raises:
        TargetError: no such class, or several.
    """
    if labels is None:
        raise TargetError(f"class {name!r} cannot be looked up without class names; give them with --labels")

    def plain(text: str) -> str:
        return " ".join(text.casefold().replace("_", " ").split())

    for same in (
        lambda label: label == name,
        lambda label: plain(label) == plain(name),
        lambda label: plain(name) in [plain(part) for part in label.split(",")],
    ):
        found = [i for i, label in enumerate(labels) if same(label)]
        if len(found) > 1:
            raise TargetError(f"several classes are called {name!r} ({', '.join(map(str, found))}); give the number")
        if found:
            return found[0]
    raise TargetError(f"no class is called {name!r}{near_matches(plain(name), map(plain, labels))}")
