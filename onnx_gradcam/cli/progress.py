"""A progress bar for long work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["progress", "stages"]


@contextlib.contextmanager
def progress(what: str, count: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr while several things are worked on at a terminal; call what it gives after each."""
    if count < 2 or not _at_a_terminal():
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Lines on stdout are lifted above the bar only where both end up on the same terminal.
    together = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=together) as bar:
        task = bar.add_task(what, total=count)
        yield lambda: bar.advance(task)


@contextlib.contextmanager
def stages(*names: str) -> Iterator[Callable[[], None]]:
    """A bar on stderr over unlike pieces of work, at a terminal; call what it gives when the next one begins."""
    if not _at_a_terminal():
        yield lambda: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(names[0], total=len(names))
        left = iter(names[1:])
        yield lambda: bar.update(task, advance=1, description=next(left, names[-1]))


def _at_a_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
