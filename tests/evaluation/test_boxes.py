"""Files of boxes, and whether heatmaps point into them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnx_gradcam.errors import InputError
from onnx_gradcam.evaluation.boxes import Annotation, energy_inside, matched, points_inside, read_boxes
from onnx_gradcam.runtime.answers import Box, Target


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_list_for_each_image(tmp_path):
    path = write(
        tmp_path / "b.json",
        {
            "photos/a.jpg": [
                {"label": "dog", "box": [1, 2, 30, 40], "classes": [5, "boxer"]},
                {"label": "dog", "box": [3, 4, 5, 6], "classes": [5, 7]},
                {"label": "cat", "box": [0, 0, 9, 9.5]},
            ],
            "b.png": [{"label": "x", "imagenet": [3], "box": [0, 0, 1, 1], "source": "by eye"}],
        },
    )
    assert read_boxes(path) == {
        "a.jpg": [
            Annotation("dog", [(1, 2, 30, 40), (3, 4, 5, 6)], [5, "boxer", 7]),
            Annotation("cat", [(0, 0, 9, 9.5)], ["cat"]),
        ],
        "b.png": [Annotation("x", [(0, 0, 1, 1)], [3])],
    }


def test_objects_by_name(tmp_path):
    objects = {"bird": {"boxes": [[27, 45, 266, 375]], "imagenet_candidates": [7, 8], "difficult": [0]}}
    path = write(tmp_path / "b.json", {"note": "", "images": {"0068": {"file": "voc/0068.jpg", "objects": objects}}})
    assert read_boxes(path) == {"0068.jpg": [Annotation("bird", [(27, 45, 266, 375)], [7, 8])]}


VOC = """<annotation><filename>a.jpg</filename>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>7</xmax><ymax>8</ymax></bndbox></object>
</annotation>"""


def test_a_folder_of_voc(tmp_path):
    """VOC counts from one."""
    write(tmp_path / "a.xml", VOC)
    assert read_boxes(tmp_path) == {"a.jpg": [Annotation("dog", [(0, 10, 19, 29), (4, 5, 6, 7)], ["dog"])]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "holds no boxes"),
        ("3", "holds no boxes"),
        ('{"a.jpg": 3}', "holds no boxes"),
        ('{"a.jpg": [{"label": "x"}]}', "holds no boxes"),
        ('{"a.jpg": [{"label": "x", "box": [1, 2, 3]}]}', "holds no boxes"),
        ('{"a.jpg": [{"label": "x", "box": [5, 2, 3, 9]}]}', "is not a box"),
        ('{"a.jpg": [{"label": "x", "box": [0, 0, 1e400, 9]}]}', "is not a box"),
        ('{"a.jpg": [{"label": "x", "box": [0, 0, NaN, 9]}]}', "is not a box"),
        ('{"a.jpg": [{"label": "x", "box": [0, 0, 1, 1], "classes": [[]]}]}', "neither indices nor names"),
        ('{"images": {"a": {"objects": {"x": {"boxes": 3}}}}}', "holds no boxes"),
    ],
)
def test_other_files(tmp_path, text, sentence):
    with pytest.raises(InputError, match=sentence):
        read_boxes(write(tmp_path / "b.json", text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_boxes(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"holds no \.xml file"):
        read_boxes(tmp_path)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not a text file"):
        read_boxes(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<annotation>", "is not a PASCAL VOC annotation"),
        ("<annotation><object><name>x</name></object></annotation>", "is not a PASCAL VOC annotation"),
        (VOC.replace("20", "-20"), "is not a box"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]>' + VOC, "DOCTYPE"),
    ],
)
def test_other_annotations(tmp_path, text, sentence):
    write(tmp_path / "a.xml", text)
    with pytest.raises(InputError, match=sentence):
        read_boxes(tmp_path)


def test_pixels_of_boxes():
    """The last row and column belong to a box; what lies outside of the image is left out."""
    inside = Annotation("x", [(1, 2, 3, 2), (-5, 4, 0, 99)], []).inside(6, 5)
    assert sorted(map(tuple, np.argwhere(inside).tolist())) == [(2, 1), (2, 2), (2, 3), (4, 0), (5, 0)]


def test_classes_that_the_model_has():
    dog = Annotation("dog", [], ["boxer", 3, "no such dog"])
    assert dog.indices(["cat", "boxer"]) == [1, 3]
    assert dog.indices(None) == [3]


def test_pointing_and_energy():
    heatmap = np.zeros((4, 6))
    heatmap[1, 1:4] = 1
    heatmap[3, 5] = 1 / 3
    middle = np.zeros((4, 6), bool)
    middle[1, 2] = True
    assert points_inside(heatmap, middle)
    assert not points_inside(heatmap, ~middle)
    assert energy_inside(heatmap, middle) == pytest.approx(0.3)
    blank = np.zeros((4, 6))
    assert not points_inside(blank, ~middle | middle)
    assert energy_inside(blank, middle) == 0


def test_the_maximum_of_a_flat_border_is_its_middle():
    heatmap = np.zeros((9, 9), np.float32)
    heatmap[0:3, 4:9] = 1
    middle = np.zeros((9, 9), bool)
    middle[1, 6] = True
    assert points_inside(heatmap, middle)
    assert not points_inside(heatmap, ~middle)


def test_boxes_are_the_annotated_objects_that_they_overlap_most_each_once():
    annotation = Annotation("dog", [(0, 0, 10, 10), (100, 0, 110, 10), (105, 0, 115, 10)], [1])
    corners = [
        (0, 0, 10, 5),
        (0, 0, 10, 10),
        (103, 0, 113, 10),
        None,
        (0, 0, 10, 4.9),
        (60, 0, 70, 10),
        (99, 0, 110, 10),
    ]
    boxes = [Box(n, n, Target(1, "dog", 1 - n / 10), xyxy) for n, xyxy in enumerate(corners)]
    objects = [(box.n, place.boxes, place.label) for box, place in matched(boxes, annotation)]
    assert objects == [(0, [(0, 0, 10, 10)], "dog"), (2, [(105, 0, 115, 10)], "dog"), (6, [(100, 0, 110, 10)], "dog")]
    assert [box.n for box, _ in matched(boxes[1:], annotation)] == [1, 2, 6]
    assert list(matched(boxes, Annotation("dog", [], [1]))) == []
