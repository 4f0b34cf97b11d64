"""Every operator against what MXNet 1.9.1 computed (`tests/oracles/make_mxnet.py`)."""

from __future__ import annotations

import json

import pytest

from onnx_gradcam.errors import ExportError
from onnx_gradcam.exporters.mxnet import read_mxnet
from onnx_gradcam.exporters.mxnet.operator_table import OPERATORS

from .conftest import Case, oracles

CASES = oracles()["cases"]
MAPS = [name for name, stored in CASES.items() if stored["input"] in ("map", "square")]

# What cannot be written for an image whose size is free.
NEED_SIZE = {
    "adaptive_even",
    "adaptive_uneven",
    "crop_center",
    "crop_like",
    "crop",
    "deconvolution_target",
    "resize_like",
    "layer_norm_last",
    "resize_scale_half_pixel",
    "reshape_keep_rest",
    "dense",
    "flatten",
    "pool_avg_full",
    "pool_max_full",
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_gives_what_mxnet_gave(name, tmp_path):
    case = Case(name)
    product = read_mxnet(*case.write(tmp_path), input_shape=case.x.shape[1:])
    product.model.check()
    case.check(product.model)
    assert product.warnings == []


@pytest.mark.parametrize("name", MAPS)
def test_a_free_size_gives_the_same_or_is_refused(name, tmp_path):
    case = Case(name)
    case.node("data")["attrs"] = {"__shape__": "(0, 4, 0, 0)"}
    files = case.write(tmp_path)
    if name in NEED_SIZE:
        with pytest.raises(ExportError, match="give the shape of one image with --input-shape"):
            read_mxnet(*files)
        return
    product = read_mxnet(*files)
    assert tuple(product.model.shape("data")) == ("batch", 4, "height", "width")
    case.check(product.model)


def test_every_operator_has_a_case():
    """Old names aside, which share the rules of the new ones."""
    tried = {node["op"] for stored in CASES.values() for node in stored["symbol"]["nodes"]}
    rules = {id(OPERATORS[op]) for op in tried & OPERATORS.keys()}
    untried = {op for op, operator in OPERATORS.items() if id(operator) not in rules}
    assert untried == set()


def test_the_oracles_say_where_they_come_from():
    provenance = oracles()["provenance"]
    assert provenance["made by"] == "tests/oracles/make_mxnet.py"
    assert "mxnet 1.9.1" in provenance["with"]
    assert len(json.dumps(CASES)) < 500_000
