"""The output of commands: results, lines, errors, skipped files, and the progress of long work.

Progress is a bar on a terminal; elsewhere it is one line per epoch or per half minute. With --json the
result alone is on stdout, as JSON, and everything else on stderr; with --quiet only results and errors are
printed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.text import Text

from autoencode.errors import ImageError
from autoencode.training.process import is_first

if TYPE_CHECKING:
    from autoencode.data.pack import Progress, StageProgress
    from autoencode.training.progress import TrainProgress


# Paths are printed as they are: brackets and colons in them mean nothing.
console = Console(highlight=False, markup=False, emoji=False)
# For notes beside results, so that a program that reads the results need not distinguish them.
notes = Console(stderr=True, highlight=False, markup=False, emoji=False)

STOPPED = 130  # exit code after Ctrl-C: 128 and the number of the signal, as shells report it

# Seconds between lines where there is no terminal. The page shows the last line, and asks for more of them.
LINE_EVERY = float(os.environ.get("AUTOENCODE_LINE_SECONDS") or 30)


# Epochs that are lines, at most; and how many are timed before the time left is said, if it is more seconds.
_EPOCH_LINES, _TIMED_EPOCHS, _WORTH_SAYING = 20, 2, 10


# Whether the result of the command is printed as JSON, and has been: one for the process, as the consoles.
_as_json = _is_shown = False


@contextmanager
def output(*, as_json: bool, quiet: bool) -> Iterator[None]:
    """Set what a command prints: see the module."""
    global _as_json
    before = _as_json, console.stderr, console.quiet, notes.quiet
    _as_json, console.stderr, console.quiet, notes.quiet = as_json, as_json, quiet, quiet
    try:
        yield
    finally:
        _as_json, console.stderr, console.quiet, notes.quiet = before


@contextmanager
def said_when_stopped(words: Callable[[], str]) -> Iterator[None]:
    """End the command where Ctrl-C stops its work, with a line that says what is there and how to go on.

    These are the words of the exception, if it has any, which knows best.
    """
    try:
        yield
    except KeyboardInterrupt as err:
        if is_first():  # of several processes that train one model
            say(f"stopped: {f'{err}.' if err.args else words()}", err=True)
        raise typer.Exit(STOPPED) from None


def show_result(value: object) -> None:
    """Print the result of a command with --json: what the library returned, or a mapping; see `plain`."""
    global _is_shown
    if _as_json:
        json.dump(plain(value), sys.stdout, indent=2, allow_nan=False)
        sys.stdout.write("\n")
        _is_shown = True


def begin() -> None:
    """Begin a command; nothing of it has been printed yet."""
    global _is_shown
    _is_shown = False


def show_error(message: str, code: int) -> None:
    """Print an error as JSON, for a command line with --json, unless its result has been printed."""
    if not _is_shown:
        json.dump({"error": message, "exit_code": code}, sys.stdout, indent=2)
        sys.stdout.write("\n")


def show_lines(lines: Iterable[str]) -> None:
    """Print a result that is text itself: as it is, also with --quiet, but not beside JSON."""
    if not _as_json:
        # Not by rich, which wraps lines and expands tabs: a program or a file may be what reads them.
        sys.stdout.writelines(f"{line}\n" for line in lines)


def plain(value: Any) -> Any:  # noqa: ANN401
    """Return a value as JSON can hold it.

    The fields of a dataclass are those of the mapping that it becomes. Pixels, maps and all other arrays of
    two or more dimensions are left out, as the commands write them to files. Numbers that are not finite are
    null.
    """
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    if dataclasses.is_dataclass(value):
        named: Mapping[str, Any] = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return plain(named)
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items() if getattr(one, "ndim", 0) < 2}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | bool | None):
        return value
    if isinstance(value, Path):
        return str(value)
    match value:
        case (Path() as path, str() as reason):  # a file that was skipped
            return {"path": str(path), "reason": reason}
    return [plain(one) for one in value]


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
    lines = _Lines(description)
    with _bars(*columns) as bars, lines.repeated():
        task = bars.add_task(description, total=None)

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
        self.started = self.said = self.reported = 0.0
        self.latest = 0, 0
        self.first = 0  # a resumed work reports images that were done before: they are no part of its rate

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self.started:
            self.started, self.said, self.first = now, now, done
        self.reported, self.latest = now, (done, total)
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
    def repeated(self) -> Iterator[None]:
        """Also print a line while nothing is reported: a single large image can take minutes."""
        if console.is_terminal:
            yield
            return
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(min(1.0, LINE_EVERY / 2)):
                done, total = self.latest
                if done < total and time.monotonic() - self.said >= LINE_EVERY:
                    self.said = time.monotonic()
                    since = duration(self.said - self.reported)
                    line = f"{self.description}: {done:,} of {total:,}, the next has taken {since} so far"
                    notes.print(line, soft_wrap=True)

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


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
            description = f"epochs, {at.phase}" if at.phase else "epochs"
            bars.update(epochs, description=description, completed=done, total=at.epochs, note=left)
            rate = f"loss {at.loss:.5g}  {at.images_per_second:,.0f} images/s"
            bars.update(steps, completed=at.step, total=at.steps, note=rate)
            # Hundreds of epochs, as small folders have, would push away what is said before them.
            every = -(-at.epochs // _EPOCH_LINES)
            if at.record is not None and (at.epoch == 1 or at.epoch % every == 0 or at.epoch == at.epochs):
                console.print(_epoch_line(at), soft_wrap=not console.is_terminal)
            # The first epoch warms up, and says less of the others.
            is_timed = at.record is not None and at.epoch == _TIMED_EPOCHS and not at.phase
            if is_timed and at.seconds_left >= _WORTH_SAYING:
                left = f"at most {duration(at.seconds_left)} until the last epoch ends"
                say(f"time:   {left}; Ctrl-C stops and keeps what was learned")
            if at.warning is not None:
                warn(at.warning)

        yield show


def _epoch_line(at: TrainProgress) -> str:
    record = at.record or {}
    parts = [f"{at.phase + ', ' if at.phase else ''}epoch {at.epoch}/{at.epochs}"]
    if "val_perceptual" in record:
        parts.append(f"perceptual distance {record['train_perceptual']:.4f}")
        both = f"{record['val_perceptual']:.4f} (faithful {record['val_faithful_perceptual']:.4f})"
        parts.append(f"validation {both}, mse {record['val_sharp_mse']:.5f}")
    else:
        parts.append(f"loss {record['train_loss']:.5g}")
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


def show_skipped(skipped: Skipped, *, err: bool = False, table: Path | None = None) -> None:
    """Print the first few files with their reasons, and how many more there are and what lists them.

    Args:
        skipped: the files, each with the reason.
        err: whether to print on stderr.
        table: a file that lists all of them; by default --json does.
    """
    from autoencode.data.folders import by_type

    types, others = by_type(skipped)
    for path, reason in others[:SHOWN]:
        say(one_line(f"skipped {path}: {reason}"), err=err)
    if len(others) > SHOWN:
        say(one_line(f"skipped {len(others) - SHOWN:,} more: {table or '--json'} lists them all"), err=err)
    if types:
        say(f"skipped {types}", err=err)


def show_remarks(given: Iterable[str | Path]) -> None:
    """Print what is not used of the files of a folder or list, such as further pages; nothing for a pack."""
    from autoencode.data.manifest import is_pack
    from autoencode.data.sources import expanded
    from autoencode.data.survey import remarks
    from autoencode.storage import is_url

    paths = [Path(one) for one in given if not is_url(one) and not is_pack(Path(one))]
    for remark in remarks(expanded(paths)) if paths else ():
        say(f"note: {remark}")


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
