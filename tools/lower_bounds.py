"""Print the lowest minor versions that a pyproject.toml allows, one requirement a line, for the CI to install.

    python tools/lower_bounds.py pyproject.toml dev > lower.txt

The extras named after the file are included. Tools that are not run with the lowest versions (mypy, ruff) are left out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_TOOLS = {"mypy", "ruff"}
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)>=(?P<version>[0-9.]+)[^;]*(?P<marker>;.*)?")
_TEXT = re.compile(r'"([^"]*)"')


def lower_bounds(text: str, extras: list[str]) -> list[str]:
    """The requirements of the lists `dependencies` and `extras`; Python 3.10 has no reader of TOML."""
    lines = []
    for name in ("dependencies", *extras):
        entries = re.search(rf"^{name} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
        if entries is None:
            sys.exit(f"there is no list {name!r}")
        for entry in _TEXT.findall(entries[1]):
            requirement = _REQUIREMENT.fullmatch(entry)
            if requirement is None:
                sys.exit(f"{entry!r} has no lower bound")
            if requirement["name"] not in _TOOLS:
                lines.append(f"{requirement['name']}~={_full(requirement['version'])}{requirement['marker'] or ''}")
    return lines


def _full(version: str) -> str:
    """A version in three parts, so that ~= leaves only the last one free."""
    return ".".join([*version.split("."), "0", "0"][:3])


if __name__ == "__main__":
    print("\n".join(lower_bounds(Path(sys.argv[1]).read_text("utf-8"), sys.argv[2:])))
