"""The VJP rule of Einsum."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.helpers import check_model, check_node

CASES = {
    "product": ("ij,jk->ik", [(2, 3), (3, 4)]),
    "spaces": (" i j , j k -> i k ", [(2, 3), (3, 4)]),
    "implicit output": ("ij,jk", [(2, 3), (3, 4)]),
    "implicit output, out of order": ("ba", [(2, 3)]),
    "implicit, capitals": ("bA,Ac", [(2, 3), (3, 4)]),
    "batched": ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
    "attention": ("bnqd,bnkd->bnqk", [(2, 2, 3, 4), (2, 2, 5, 4)]),
    "transpose": ("ijk->kij", [(2, 3, 4)]),
    "sum": ("ij->", [(2, 3)]),
    "row sums": ("ij->i", [(2, 3)]),
    "summed alone": ("ij,kl->ik", [(2, 3), (4, 5)]),
    "outer": ("i,j->ij", [(2,), (3,)]),
    "outer to a scalar": ("i,j->", [(2,), (3,)]),
    "inner": ("i,i", [(3,), (3,)]),
    "elementwise": ("ij,ij->ij", [(2, 3), (2, 3)]),
    "three operands": ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 2)]),
    "bilinear": ("bi,oij,bj->bo", [(2, 3), (5, 3, 4), (2, 4)]),
    "ellipsis": ("...ij,...jk->...ik", [(2, 2, 3), (2, 3, 4)]),
    "ellipsis, broadcast": ("...ij,...jk->...ik", [(1, 2, 3), (4, 3, 2)]),
    "ellipsis, implicit": ("...ij,jk", [(2, 3, 4), (4, 5)]),
    "ellipsis of nothing": ("...ij,...jk->...ik", [(2, 3), (3, 4)]),
    "ellipsis in the middle": ("i...j->j...i", [(2, 3, 4, 5)]),
    "ellipsis, only one": ("...i,i->...", [(2, 3, 4), (4,)]),
}
REPEATED = {
    "trace": ("ii->", [(3, 3)]),
    "diagonal": ("ii->i", [(3, 3)]),
    "batched diagonal": ("...ii->...i", [(2, 3, 3)]),
    "diagonal of two labels": ("ijij->ij", [(2, 3, 2, 3)]),
    "thrice": ("iii->i", [(3, 3, 3)]),
    "with another": ("iij,jk->ik", [(2, 2, 3), (3, 4)]),
    "implicit trace": ("ii", [(3, 3)]),
}


def operands(shapes):
    rng = np.random.default_rng(41)
    return {f"x{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}


@pytest.mark.parametrize("case", CASES)
def test_equation(case):
    equation, shapes = CASES[case]
    check_node("Einsum", operands(shapes), equation=equation)


@pytest.mark.parametrize("case", REPEATED)
def test_repeated_labels(case):
    equation, shapes = REPEATED[case]
    check_node("Einsum", operands(shapes), equation=equation)


@pytest.mark.parametrize("constant", ["x0", "x1"])
def test_by_a_constant(constant):
    check_node("Einsum", operands([(2, 3), (3, 4)]), equation="ij,jk->ik", constants=[constant])


def test_the_same_operand_twice():
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 18]>
        m (float[b,n] x) => (float[n,n] y) { y = Einsum<equation="bi,bj->ij">(x, x) }""")
    check_model(model, {"x": operands([(2, 3)])["x0"]}, ["x"])
