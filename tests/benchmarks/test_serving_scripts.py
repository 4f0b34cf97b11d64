"""The serving benchmarks run, at sizes too small to measure speed."""

from __future__ import annotations

import importlib
import importlib.util
import re

import pytest

pytestmark = pytest.mark.serve


@pytest.fixture(autouse=True)
def installed():
    for package in ("uvicorn", "tritonclient"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def test_both_models_are_measured_on_every_way_in(capsys):
    importlib.import_module("serving").main(["--network", "squeezenet1_1", "--seconds", "0.3", "--rounds", "1"])
    text = capsys.readouterr().out
    rows = re.findall(
        r"^\| (gRPC|REST), .* \| [\d.]+ \(p99 [\d.]+\) \| [\d.]+ \(p99 [\d.]+\) \| \d+ \| \d+ \|$", text, re.MULTILINE
    )
    assert rows == ["gRPC", "gRPC", "REST", "REST", "REST"]
    assert re.search(r"^\| in process \| [\d.]+ ", text, re.MULTILINE)


def test_the_soak_counts_its_requests_and_says_what_memory_did(repository, capsys, monkeypatch):
    soak = importlib.import_module("soak")
    monkeypatch.setattr(soak, "GROWTH", 9.0)  # so short a run says nothing about growth
    soak.main([str(repository / "models" / "shapes.onnx"), "--requests", "1200", "--clients", "2"])
    said = r"^(\d+) requests .*, none lost; (\d+) MB after the first 1000, (\d+) MB at the end"
    counted = re.search(said, capsys.readouterr().out, re.MULTILINE)
    assert counted is not None
    assert all(int(number) > 0 for number in counted.groups())


def test_a_soak_that_grows_fails(repository, monkeypatch):
    soak = importlib.import_module("soak")
    monkeypatch.setattr(soak, "watch", lambda *_: [100.0] * 10 + [106.0] * 10)
    with pytest.raises(SystemExit, match="memory grew by more than 5%"):
        soak.main([str(repository / "models" / "shapes.onnx"), "--clients", "1"])
