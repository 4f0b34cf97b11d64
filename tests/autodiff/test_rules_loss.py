"""VJP rules of losses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.helpers import check_model, check_node

SHAPES = {"classes": (4, 3), "segments": (2, 3, 4), "images": (2, 3, 2, 2)}
WEIGHT = np.array([0.4, 1.3, 0.7], np.float32)


def inputs(op_type, shape, weight, kind=np.int64):
    rng = np.random.default_rng(61)
    x = rng.standard_normal(shape).astype(np.float32)
    if op_type == "NegativeLogLikelihoodLoss":
        x = np.log(rng.uniform(0.1, 0.9, shape)).astype(np.float32)
    labels = rng.integers(0, 3, (shape[0], *shape[2:])).astype(kind)
    labels.flat[0], labels.flat[1] = 1, 2
    return {"x": x, "labels": labels, "weight": WEIGHT if weight else None}


@pytest.mark.parametrize("op_type", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
@pytest.mark.parametrize("reduction", [None, "none", "mean", "sum"])
@pytest.mark.parametrize("weight", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("ignore_index", [None, 1], ids=["all", "but one"])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss(op_type, reduction, weight, ignore_index, shape):
    given = inputs(op_type, SHAPES[shape], weight)
    check_node(op_type, given, wrt=["x"], reduction=reduction, ignore_index=ignore_index)


@pytest.mark.parametrize("op_type", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_int32_labels(op_type):
    check_node(op_type, inputs(op_type, (4, 3), weight=True, kind=np.int32), wrt=["x"], ignore_index=2)


@pytest.mark.parametrize("op_type", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_ignored_label_outside_the_classes(op_type):
    given = inputs(op_type, (4, 3), weight=True)
    given["labels"][2] = -1
    check_node(op_type, given, wrt=["x"], ignore_index=-1)


@pytest.mark.parametrize("output", ["y", "y1"])
def test_log_probabilities_as_an_output(output):
    given = inputs("SoftmaxCrossEntropyLoss", (2, 3, 4), weight=False)
    check_node("SoftmaxCrossEntropyLoss", given, wrt=["x"], outputs=2, output=output)


def test_loss_and_log_probabilities_into_one_score():
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 18]>
        m (float[4,3] x, int64[4] labels) => (float[4,3] y) {
            loss, log_prob = SoftmaxCrossEntropyLoss(x, labels)
            y = Mul(log_prob, loss)
        }""")
    given = inputs("SoftmaxCrossEntropyLoss", (4, 3), weight=False)
    check_model(model, {"x": given["x"], "labels": given["labels"]}, ["x"])
