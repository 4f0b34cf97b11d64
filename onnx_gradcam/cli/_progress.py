"""A progress bar for long work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Bars", "bars", "progress", "rate", "stages"]


class Bars:
    """A bar on stderr over several things, and below it one over the runs that the present thing takes.

    Args:
        what: what is done with the things.
        count: how many there are; a single one has no bar of its own.
    """

    def __init__(self, what: str, count: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # Lines on stdout are lifted above the bars only where both end up on the same terminal.
        together = sys.stdout.isatty()
        self._shown = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=together)
        self._things = self._shown.add_task(what, total=count, visible=count > 1)
        self._runs = self._shown.add_task("running the model", visible=False)
        if count > 1:
            self._shown.start()

    def advance(self) -> None:
        """One more thing is done."""
        self._shown.advance(self._things)

    def within(self, done: int, total: int) -> None:
        """So many runs of the present thing are done."""
        self._shown.start()
        if self._shown.tasks[self._runs].completed >= done:
            self._shown.reset(self._runs)
        self._shown.update(self._runs, completed=done, total=total, visible=done < total)

    def close(self) -> None:
        """Take the bars away."""
        self._shown.stop()


@contextlib.contextmanager
def bars(what: str, count: int) -> Iterator[Bars | None]:
    """Bars while things are worked on; nothing where there is no terminal to show them on."""
    if not _at_a_terminal():
        yield None
        return
    with contextlib.closing(Bars(what, count)) as shown:
        yield shown


@contextlib.contextmanager
def progress(what: str, count: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr while several things are worked on at a terminal; call what it gives after each."""
    with bars(what, count) as shown:
        yield (lambda: None) if shown is None else shown.advance


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


@contextlib.contextmanager
def rate(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr with the number a second, at a terminal; call what it gives with how many are done.

    Args:
        what: is done.
    """
    if not _at_a_terminal():
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=60) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.3g}/s")


def _at_a_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
