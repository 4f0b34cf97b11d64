"""Start a worker: `python start.py NAME FOLDER`.

A file of its own because the other Python runs it by path, without this package.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

__all__ = ["main"]

_PACKAGE = "onnx_gradcam_workers"


def main() -> None:
    """Import the workers as a package of their own and run the one named `sys.argv[1]`."""
    here = Path(__file__).resolve().parent
    # Python puts this folder first, where its modules could shadow others.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, here / "__init__.py", submodule_search_locations=[str(here)]
    )
    assert spec is not None  # noqa: S101 - the file exists
    assert spec.loader is not None  # noqa: S101
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)
    work = importlib.import_module(f"{_PACKAGE}.{sys.argv[1]}").work
    importlib.import_module(f"{_PACKAGE}.conversation").serve(work, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
