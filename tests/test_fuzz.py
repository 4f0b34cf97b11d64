"""Damaged input ends in the project's own errors or in right results: a seeded sample of the cases of `fuzzing`.

FUZZ_MODELS and FUZZ_OTHERS run more of them; see CONTRIBUTING.md.
"""

from __future__ import annotations

import os
import random

import pytest
from support.fuzzing import KINDS, damaged_model, outcome, run_cases

MODELS, OTHERS = int(os.environ.get("FUZZ_MODELS", "120")), int(os.environ.get("FUZZ_OTHERS", "60"))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input(kind):
    if kind == "keras":
        pytest.importorskip("h5py", reason="h5py is not installed")
    outcomes = dict(run_cases(kind, MODELS if kind == "model" else OTHERS))
    assert {number: text for number, text in outcomes.items() if text.startswith("fault")} == {}
    # Damage everywhere would hide what comes after the reading.
    assert set(outcomes.values()) == {"result", "refused"}


def raises(rng, folder):
    raise KeyError("x")


def leaves_a_file(rng, folder):
    (folder / "out" / "half.onnx").write_bytes(b"x")
    return True


@pytest.mark.parametrize(
    ("use", "answer"),
    [
        (raises, "fault KeyError at test_fuzz.py"),
        (leaves_a_file, "fault: files left behind: ['half.onnx']"),
        (lambda *_: True, "result"),
        (lambda *_: False, "refused"),
    ],
)
def test_faults_are_noticed(tmp_path, monkeypatch, use, answer):
    monkeypatch.setitem(KINDS, "image", use)
    monkeypatch.chdir(tmp_path)
    assert outcome("image", 0, tmp_path / "case").startswith(answer)


def test_a_case_is_the_same_every_time():
    assert damaged_model(random.Random("model 7")) == damaged_model(random.Random("model 7"))
