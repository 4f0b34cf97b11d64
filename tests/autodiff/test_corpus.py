"""Every usable node case of the ONNX package, differentiated by every input that its schema calls differentiable.

A random projection of the emitted gradient is compared with central differences in float64, and the emitted graph
in ONNX Runtime in float32 with the float64 gradient. What is left out is listed here, with the reason.
"""

from __future__ import annotations

import fnmatch
from collections import Counter

import pytest
from autodiff.corpus import cases, examine, operators
from support.helpers import OLD_RUNTIME

EXCLUDED: dict[str, tuple[str, ...]] = {
    "training mode is random": ("test_training_dropout*/y/x",),
    "running statistics of training mode: no score depends on them": (
        "test_batchnorm_*_training_mode/output_mean/*",
        "test_batchnorm_*_training_mode/output_var/*",
    ),
    "infinite: the reduction of an empty set": (
        "test_reduce_log_sum_empty_set/*",
        "test_reduce_log_sum_exp_empty_set/*",
        "test_reduce_max_empty_set/*",
        "test_reduce_min_empty_set/*",
    ),
    "not a number: modulo zero": ("test_mod_float_edge_cases_fmod_0_*/z/x",),
}
"""Reason -> patterns of `case/output/input` that cannot be judged for it."""


def excused(finding) -> str | None:
    name = f"{finding.case}/{finding.output}/{finding.wrt}"
    return next((why for why, names in EXCLUDED.items() if any(fnmatch.fnmatchcase(name, n) for n in names)), None)


@pytest.mark.parametrize("op_type", operators())
def test_gradients_of_the_node_cases(op_type, record_property):
    if OLD_RUNTIME and op_type in {"AveragePool", "LpPool"}:
        pytest.skip("this ONNX Runtime computes some padded pools otherwise")
    findings = [finding for case in cases().get(op_type, []) for finding in examine(case)]
    verdicts: Counter[str] = Counter()
    wrong = []
    for finding in findings:
        reason = excused(finding)
        fine = finding.verdict.startswith("passed")
        if fine or finding.verdict == "no rule yet":
            verdicts[finding.verdict] += 1
        elif reason is not None:
            verdicts[f"excluded: {reason}"] += 1
        else:
            verdicts[finding.verdict] += 1
            wrong.append(str(finding))
    record_property("corpus", dict(verdicts))
    if verdicts["no rule yet"]:
        record_property("corpus: no rule yet", op_type)
    assert not wrong, "\n".join(wrong)
