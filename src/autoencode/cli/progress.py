"""The output of commands: lines, errors, skipped files, and the progress of long work.

Progress is a bar on a terminal; elsewhere it is one line per epoch or per half minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.text import Text

from autoencode.errors import ImageError

if TYPE_CHECKING:
    from autoencode.data.pack import Progress, StageProgress
    from autoencode.training.progress import TrainProgress


# Paths are printed as they are: brackets and colons in them mean nothing.
console = Console(highlight=False, markup=False, emoji=False)
# For notes beside results, so that a program that reads the results need not distinguish them.
notes = Console(stderr=True, highlight=False, markup=False, emoji=False)

LINE_EVERY = 30.0  # seconds between lines where there is no terminal


def say(text: str, *, err: bool = False) -> None:
    """Print a line, never wrapped: paths in it can be copied, and programs read it."""
    (notes if err else console).print(text, soft_wrap=True)


def warn(text: str) -> None:
    """Print a line that stands out, about work that continues."""
    console.print(Text.assemble(("warning:", "yellow"), f" {text}"), soft_wrap=True)


def one_line(text: object) -> str:
    """Return text, such as a path, on one line: tabs, line breaks and bytes that are no text as escapes."""
    # A line break in the name of a file would forge a second line of output.
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(text)
    )


def counted(number: int, noun: str) -> str:
    """Return "1 image", "2 images", "1,000 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class _Rate(ProgressColumn):
    """Images per second, over the last moments."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/s", style="dim")


@contextmanager
def _bars(*columns: ProgressColumn) -> Iterator[Bars]:
    """Bars that appear when they are started, at the first report: several may be prepared at once."""
    bars = Bars(*columns, console=console, disable=not console.is_terminal, transient=True)
    try:
        yield bars
    finally:
        bars.stop()


@contextmanager
def counting(description: str) -> Iterator[Progress]:
    """Show a bar, with a rate and the time left, for work that reports (images done, images in all).

    Without a terminal it is a line on stderr every half minute, and one at the end of such long work.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeLeft())
    with _bars(*columns) as bars:
        task = bars.add_task(description, total=None)
        lines = _Lines(description)

        def show(done: int, total: int) -> None:
            if not console.is_terminal:
                lines.show(done, total)
            bars.start()
            bars.update(task, completed=done, total=total)
            # Bars of two stages would overwrite each other: the next begins where this one is gone.
            if done == total:
                bars.stop()

        yield show


class _Lines:
    """Prints the progress of some work, one line per half minute."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.started = self.said = 0.0
        self.first = 0  # a resumed work reports images that were done before: they are no part of its rate

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self.started:
            self.started, self.said, self.first = now, now, done
        # Work that was over before its first line needs no last one.
        is_long = self.said > self.started
        if now - self.said < LINE_EVERY and not (done == total and is_long):
            return
        self.said = now
        rate = (done - self.first) / (now - self.started)
        line = f"{self.description}: {done:,} of {total:,}, {rate:,.0f} images/s"
        if rate and done < total:
            line += f", {duration((total - done) / rate)} left"
        notes.print(line, soft_wrap=True)


@contextmanager
def stages() -> Iterator[StageProgress]:
    """Show a bar for each stage of work that reports (stage, images done, images in all)."""
    with ExitStack() as bars:
        shown: dict[str, Progress] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                shown[stage] = bars.enter_context(counting(stage))
            shown[stage](done, total)

        yield show


@contextmanager
def training() -> Iterator[Callable[[TrainProgress], None]]:
    """Show a bar for the epochs and one for the steps of this epoch, and a line for each epoch done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with _bars(*columns) as bars:
        epochs = bars.add_task("epochs", total=None, note="")
        steps = bars.add_task("steps", total=None, note="")

        def show(at: TrainProgress) -> None:
            bars.start()
            # An epoch counts when its validation is done, which is when there is a record of it.
            done = at.epoch - (at.record is None)
            left = f"{duration(at.seconds_left)} left"
            bars.update(epochs, completed=done, total=at.epochs, note=left)
            rate = f"loss {at.loss:.5g}  {at.images_per_second:,.0f} images/s"
            bars.update(steps, completed=at.step, total=at.steps, note=rate)
            if at.record is not None:
                console.print(_epoch_line(at), soft_wrap=not console.is_terminal)
            if at.warning is not None:
                warn(at.warning)

        yield show


def _epoch_line(at: TrainProgress) -> str:
    record = at.record or {}
    parts = [f"epoch {at.epoch}/{at.epochs}", f"loss {record['train_loss']:.5g}"]
    parts.append(f"validation loss {record['val_loss']:.5g}, mse {record['val_mse']:.5f}")
    if "val_kl" in record:
        parts.append(f"kl {record['val_kl']:.1f} nats, {record['active_units']:.0f} active, ")
        parts[-1] += f"beta {record['beta']:.2f}, sigma2 {record['sigma2']:.4g}"
    parts.append(f"{record['images_per_second']:,.0f} images/s")
    parts.append(f"{duration(at.seconds_left)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Return seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


SHOWN = 5  # a folder of videos would otherwise push the results off the screen

Skipped = Sequence[tuple[Path, str]]


def show_skipped(skipped: Skipped, *, err: bool = False) -> None:
    """Print the first few files with their reasons, and how many more there are."""
    from autoencode.data.folders import by_type

    types, others = by_type(skipped)
    for path, reason in others[:SHOWN]:
        say(one_line(f"skipped {path}: {reason}"), err=err)
    if len(others) > SHOWN:
        say(f"skipped {len(others) - SHOWN:,} more", err=err)
    if types:
        say(f"skipped {types}", err=err)


def fail_if_named(skipped: Skipped, given: Collection[Path]) -> None:
    """Fail when a file that was asked for by name could not be used; a file found in a folder may be skipped.

    Args:
        skipped: the files that could not be used, with the reason.
        given: the files and folders that were asked for.

    Raises:
        ImageError: one of them was given by name.
    """
    named = [f"{path}: {reason}" for path, reason in skipped if path in given]
    if named:
        raise ImageError(
            f"{counted(len(named), 'file')} asked for by name could not be used. {'; '.join(named)}."
        )
