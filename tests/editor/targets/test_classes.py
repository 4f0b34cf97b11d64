"""Which classes are meant: by number, by name, by rank."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_gradcam.editor.targets.classes import Top, expanded, find_class, find_label, parse_top
from onnx_gradcam.errors import TargetError

LABELS = ["tench, Tinca tinca", "great_white_shark", "crane", "crane", "Crane bird"]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("great_white_shark", 1),
        ("Great White Shark", 1),
        ("  great   white shark ", 1),
        ("tinca tinca", 0),
        ("tench", 0),
        ("crane_bird", 4),
    ],
)
def test_names(name, index):
    assert find_label(name, LABELS) == index


def test_a_name_that_several_classes_have():
    with pytest.raises(TargetError, match=r"several classes are called 'crane' \(2, 3\); give the index"):
        find_label("crane", LABELS)


def test_a_name_that_no_class_has():
    with pytest.raises(TargetError, match="no class is called 'grate white shark'; did you mean 'great white shark'"):
        find_label("grate white shark", LABELS)


def test_a_number_needs_no_names():
    assert [find_class(one, None) for one in (3, "3", "-1")] == [3, 3, -1]
    with pytest.raises(TargetError, match="--labels"):
        find_class("³", None)


def test_ranks():
    assert parse_top("top12") == Top(12)
    assert [parse_top(one) for one in ("top", "topper", "12", 12, "top-1", "Top3")] == [None] * 6
    with pytest.raises(TargetError, match="top1"):
        parse_top("top0")


@pytest.mark.parametrize(
    ("wanted", "classes"),
    [
        ([Top(1)], [2]),
        ([Top(3)], [2, 1, 3]),
        ([Top(99)], [2, 1, 3, 0]),
        ([3, Top(2)], [3, 1, 2]),
        ([1, Top(2)], [1, 2]),
        ([Top(2), 0, 0], [2, 1, 0]),
        ([0, 3, 0], [0, 3]),
    ],
)
def test_order(wanted, classes):
    """Classes 1 and 2 have the same score; the model itself holds 2 for the best."""
    assert expanded(wanted, np.array([0.0, 5.0, 5.0, 1.0], np.float16), 2) == classes
