"""The summary line of the gradient checks over the ONNX node cases."""

from __future__ import annotations

from collections import Counter


def pytest_terminal_summary(terminalreporter):
    """Print how many (case, output, input) were judged, over all workers."""
    verdicts = Counter()
    missing = set()
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for key, value in report.user_properties:
            if key == "corpus":
                verdicts.update(value)
            elif key == "corpus: no rule yet":
                missing.add(value)
    if verdicts:
        terminalreporter.section("gradient checks over the ONNX node cases")
        for verdict, count in verdicts.most_common():
            terminalreporter.line(f"{count:6d}  {verdict}")
        terminalreporter.line(f"{sum(verdicts.values()):6d}  in all")
        if missing:
            terminalreporter.line(f"no rule yet: {', '.join(sorted(missing))}")
