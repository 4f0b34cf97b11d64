"""The reported ratio is the ratio of the times."""

import importlib

import pytest


def test_each_side_runs_once_a_round_and_the_order_turns():
    alternate = importlib.import_module("measure").alternate
    calls = []
    alternate(lambda: calls.append("a"), lambda: calls.append("b"), lambda: calls.append("c"), runs=4, warmup=0)
    assert "".join(calls) == "abccbaabccba"


def test_the_ratio_is_that_of_the_times(monkeypatch):
    measure = importlib.import_module("measure")
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def takes(seconds):
        def run():
            now[0] += seconds

        return run

    half, double = measure.alternate(takes(2.0), takes(1.0), takes(4.0), runs=5)
    assert (half.median, half.quartiles, half.floor) == (0.5, (0.5, 0.5), 0.5)
    assert double.median == 2.0
    assert str(double) == "2.000 (2.000 to 2.000)"


def test_one_slow_run_does_not_move_the_figure(monkeypatch):
    measure = importlib.import_module("measure")
    now, left = [0.0], [9]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def plain():
        now[0] += 1.0

    def once_disturbed():
        left[0] -= 1
        now[0] += 100.0 if left[0] == 3 else 1.1

    (ratio,) = measure.alternate(plain, once_disturbed, runs=7)
    assert ratio.median == pytest.approx(1.1)
    assert ratio.floor == pytest.approx(1.1)


def test_a_table_is_markdown_and_keeps_bars_out_of_cells():
    table = importlib.import_module("measure").table
    assert table(["a", "b"], [[1, "x|y"]]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"


def test_the_machine_names_its_cores_and_only_what_is_installed():
    machine = importlib.import_module("measure").machine
    text = machine("onnx", "no-such-package")
    assert "cores" in text
    assert "onnx " in text
    assert "no-such-package" not in text
