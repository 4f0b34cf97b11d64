"""The measuring scripts are run as files, so their folder has to be where Python looks for them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def scripts(repository, monkeypatch):
    """Make the scripts importable by their bare names, as they import each other."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
