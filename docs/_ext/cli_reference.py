"""The directive `cli-reference`: every command of a Typer app, with an anchor for each option.

It reads the commands themselves: Typer carries a Click of its own, whose classes the plugins for Click refuse.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import typer.main
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

__all__ = ["anchor", "commands", "setup"]


def commands(app: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command of an app and the words that call it, groups before their commands."""

    def below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield words, command
        for child, inner in getattr(command, "commands", {}).items():
            yield from below(f"{words} {child}", inner)

    return below(name, typer.main.get_command(app))


def anchor(words: str, parameter: Any | None = None) -> str:
    """The anchor of a command, or of one of its options: `onnx-gradcam-explain-box-rank`."""
    parts = words.split() if parameter is None else [*words.split(), parameter.name.strip("_").replace("_", "-")]
    return "-".join(parts)


def _prose(text: str) -> list[str]:
    """A help text as Markdown: `Examples:` and its indented lines become a block of commands."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text.replace("\b", "").replace("\f", ""))):
        first, *rest = paragraph.strip("\n").splitlines() or [""]
        if rest and all(line.startswith("  ") for line in rest):
            lines += [first, "", "```bash", *textwrap.dedent("\n".join(rest)).splitlines(), "```", ""]
        else:
            lines += [first, *rest, ""]
    return lines


def _metavar(parameter: Any) -> str:
    """What stands for the value of an option or argument."""
    return str(parameter.metavar or parameter.name.upper()) + ("..." if parameter.nargs == -1 else "")


def _values(parameter: Any) -> list[str]:
    """What may be given, and what is taken if nothing is."""
    lowest, highest = (getattr(parameter, end, None) for end in ("min", "max"))
    default = getattr(parameter.default, "value", parameter.default)
    limits = [f"At least {lowest}."] * (lowest is not None) + [f"At most {highest}."] * (highest is not None)
    shown = getattr(parameter, "show_default", False) and not parameter.is_flag and default not in (None, (), [], "")
    return [*limits, *([f"Default: `{default}`."] if shown else [])]


def _option(words: str, parameter: Any) -> list[str]:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    value = "" if parameter.is_flag else _metavar(parameter)
    text = " ".join([*(parameter.help or "").split(), *_values(parameter)])
    return [f"({anchor(words, parameter)})=", "", names + (f" `{value}`" if value else ""), f": {text}", ""]


def _section(words: str, command: Any) -> list[str]:
    depth = "#" * min(1 + len(words.split()), 3)
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    options = [parameter for parameter in shown if parameter.param_type_name == "option"]
    usage = [words, *(["[OPTIONS]"] if options else []), *map(_metavar, arguments)]
    usage += ["COMMAND"] if getattr(command, "commands", None) else []
    lines = [f"({anchor(words)})=", f"{depth} {words}", "", *_prose(command.help or "")]
    lines += ["```text", " ".join(usage), "```", ""]
    for argument in arguments:
        lines += [f"`{_metavar(argument)}`", f": {' '.join((argument.help or '').split())}", ""]
    for panel in dict.fromkeys(map(_panel, options)):
        lines += [f"**{panel}**", ""]
        for option in options:
            lines += _option(words, option) if _panel(option) == panel else []
    return lines


def _panel(option: Any) -> str:
    return getattr(option, "rich_help_panel", None) or "Options"


class CliReference(SphinxDirective):
    """`{cli-reference} module:app`, with the name of the program as its content."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The sections of all commands."""
        module, _, name = self.arguments[0].partition(":")
        app = getattr(importlib.import_module(module), name)
        lines = [line for words, command in commands(app, self.content[0]) for line in _section(words, command)]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("cli-reference", CliReference)
    return {"parallel_read_safe": True}
