"""Generated pages are up to date, and the links of all pages resolve."""

from __future__ import annotations

import importlib.util
import re

import onnx
import pytest


@pytest.fixture(scope="module")
def generator(repository):
    spec = importlib.util.spec_from_file_location("generate_docs", repository / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["operators.md", "methods.md", "presets.md"])
def test_generated_pages_are_current(generator, repository, name):
    page = (repository / "docs" / name).read_text(encoding="utf-8")
    version = re.search(r"schemas of onnx ([\d.]+);", page)
    if version and version.group(1) != onnx.__version__:
        pytest.skip(f"the page was written for onnx {version.group(1)}, installed is {onnx.__version__}")
    assert page == generator.PAGES[name](), "run `python docs/generate.py`"


def test_links_resolve(repository):
    pages = [repository / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
        (repository / "docs").rglob("*.md")
    )
    broken = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert not broken
