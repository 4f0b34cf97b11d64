"""`report` and `drift` through the command line: tables, JSON, pages, exit codes, what is refused."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from .conftest import PREPROCESS, refused


@pytest.fixture
def photos(here):
    """Squares of two colours at random places, twelve of each."""
    rng = np.random.default_rng(0)
    folder = here / "photos"
    folder.mkdir()
    for i in range(24):
        image = rng.integers(30, 60, (32, 32, 3)).astype(np.uint8)
        y, x = rng.integers(2, 20, 2)
        noise = rng.integers(-15, 15, (10, 10, 3))
        image[y : y + 10, x : x + 10] = noise + ((40, 40, 235) if i % 2 else (235, 40, 40))
        cv2.imwrite(str(folder / f"{i:02}.png"), image)
    return folder


def test_report(call, classifier, photos, here):
    options = ("--images", photos, "--preprocess", PREPROCESS, "--steps", 4, "-o", here / "page.html")
    result = call("report", classifier, *options)
    assert result.exit_code == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"{classifier.name}, gradcam, 24 images"
    assert "FAILED" not in result.stdout
    page = (here / "page.html").read_text()
    assert page.count("<img") == 8
    assert "completeness with libra" in page
    result = call("report", classifier, *options, "--limit", "sensitivity=0", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    (libra,) = [check for check in found["checks"] if check["check"] == "libra"]
    assert libra["passed"]
    assert 0 <= libra["value"] < 1e-5
    assert [check["check"] for check in found["checks"] if check["passed"] is False] == ["sensitivity"]
    assert "unknown check 'sens'" in refused(call("report", classifier, *options, "--limit", "sens=0"))
    for wrong in (["--limit", "sensitivity"], ["-o", "page.txt"]):
        refused(call("report", classifier, *options, *wrong), 2)


def test_drift(call, classifier, photos, here):
    pytest.importorskip("pyarrow")
    batch = ("batch", classifier, photos, "--preprocess", PREPROCESS, "-o")
    for name, rest in (("npz", ["--format", "npz"]), ("parquet", []), ("other", ["--format", "npz", "--target", "0"])):
        result = call(*batch, here / name, *rest)
        assert result.exit_code == 0, result.stderr
    same = call("drift", "npz", "parquet")
    assert same.exit_code == 0, same.stdout + same.stderr
    assert same.stdout.startswith("0 of 2 classes drifted")
    result = call("drift", "npz", "other", "--json", "-o", "page.html")
    found = json.loads(result.stdout)
    assert result.exit_code == found["drifted"]
    assert found["skipped"] == {"class 2": "12 and 0 heatmaps; both runs need 8"}
    assert "Have the heatmaps drifted?" in (here / "page.html").read_text()
    assert "holds no results of batch" in refused(call("drift", "npz", "photos"))
    refused(call("drift", "npz", "parquet", "-o", "page.txt"), 2)
