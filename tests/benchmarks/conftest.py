"""The benchmark scripts are run as files and import each other, so their folder must be on the import path."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def scripts(repository, monkeypatch):
    """Make the scripts importable by their names."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
