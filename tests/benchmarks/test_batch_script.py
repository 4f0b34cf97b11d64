"""The batch benchmark runs, at sizes too small to measure speed."""

from __future__ import annotations

import importlib
import re


def test_both_sides_are_measured_in_turns(capsys):
    script = importlib.import_module("batch")
    options = [
        "--network",
        "squeezenet1_1",
        "--images",
        "24",
        "--different",
        "5",
        "--block",
        "8",
        "--batch-size",
        "2",
    ]
    script.main([*options, "--formats", "npz"])
    text = capsys.readouterr().out
    (row,) = re.findall(r"^\| npz \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \(.*\) \| 3 \|$", text, re.MULTILINE)
    assert all(float(number) > 0 for number in row)
