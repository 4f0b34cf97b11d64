"""`explain` with methods that run the model many times, and its smoothing."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest

from onnx_gradcam import Explainer

from .conftest import PREPROCESS


def heatmap(result):
    assert result.exit_code == 0, result.stderr
    return np.load("x_0.npy")


def test_the_seed_is_the_users(explain, image):
    def found(*options):
        return heatmap(explain(image, "-o", "x.png", "--npy", "--target", 0, "--method", "smoothgrad", *options))

    one, same, other = found("--seed", 3), found("--seed", 3), found("--seed", 4)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("options", [["--augment"], ["--eigen-smooth"], ["--method", "scorecam", "--batch-size", 3]])
def test_options_reach_the_explainer(explain, image, classifier, options):
    arguments = {"--augment": {"augment": True}, "--eigen-smooth": {"eigen_smooth": True}, "--method": {}}[options[0]]
    method = "scorecam" if "scorecam" in options else "gradcam"
    expected = Explainer(classifier, preprocess=PREPROCESS, method=method, **arguments)(image, 0).heatmap
    plain = Explainer(classifier, preprocess=PREPROCESS)(image, 0).heatmap
    found = heatmap(explain(image, "-o", "x.png", "--npy", "--target", 0, *options))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, plain, atol=1e-3)


def test_eigen_smoothing_of_what_adds_up_nothing_is_refused(explain, image):
    result = explain(image, "--method", "eigencam", "--eigen-smooth")
    assert result.exit_code == 1
    assert (
        "eigen smoothing applies to methods that sum weighted activation maps, and Eigen-CAM is not one"
        in result.stderr
    )


def test_a_method_of_many_runs_cannot_be_attached(call, classifier, here):
    result = call("attach", classifier, "-o", "x.onnx", "--method", "scorecam")
    assert result.exit_code == 1
    assert "Score-CAM runs the model many times, so it cannot be written into a model; use explain" in result.stderr
    assert not list(here.glob("x.onnx*"))


def test_the_runs_of_one_image_have_a_bar_at_a_terminal(classifier, image, here):
    main, worker = pty.openpty()
    command = [sys.executable, "-m", "onnx_gradcam", "explain", str(classifier), str(image), "--preprocess"]
    command += [PREPROCESS, "--method", "rise", "--batch-size", "1", "-o", "x.png"]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=worker, env=os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    )
    os.close(worker)
    seen = b""
    while True:
        try:
            chunk = os.read(main, 4096)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(main)
    out, _ = started.communicate(timeout=60)
    assert started.returncode == 0, seen.decode()
    assert re.search(r"running the model.*\d+/4000", seen.decode())
    assert "explaining" not in seen.decode()
    assert b"x.png" in out
