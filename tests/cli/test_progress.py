"""Whole lines without a terminal, bars that come and go on one; what is said of skipped files."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tests.cli.conftest import Command

from autoencode import TrainProgress
from autoencode.cli import progress
from autoencode.cli.progress import fail_if_named, show_skipped
from autoencode.errors import ImageError

RECORD = {
    **{"epoch": 1, "step": 5, "train_loss": 0.123456789, "val_loss": 0.2, "val_mse": 0.05},
    **{"val_kl": 12.34, "active_units": 9, "beta": 0.5, "sigma2": 0.012345, "images_per_second": 12345.6},
}


def report(step: int, record: dict[str, float] | None = None, seconds_left: float = 65.0) -> TrainProgress:
    return TrainProgress(1, 2, step, 5, 0.12, 12345.6, seconds_left, record)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is printed to something that is no terminal."""
    file = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=file, width=40, highlight=False))
    yield file


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is printed to a terminal of 100 columns."""
    file = io.StringIO()
    console = Console(file=file, width=100, height=20, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "console", console)
    yield file


def test_an_epoch_is_one_line_however_narrow_the_output(written: io.StringIO) -> None:
    with progress.training() as show:
        for step in range(1, 5):
            show(report(step))
        assert written.getvalue() == ""
        show(report(5, RECORD))
    assert written.getvalue() == (
        "epoch 1/2  loss 0.12346  validation loss 0.2, mse 0.05000  "
        "kl 12.3 nats, 9 active, beta 0.50, sigma2 0.01235  12,346 images/s  1:05 left\n"
    )


def test_the_time_of_a_run_is_said_once_its_first_epochs_were_timed(written: io.StringIO) -> None:
    with progress.training() as show:
        for epoch in range(1, 5):
            record = RECORD | {"epoch": epoch}
            show(TrainProgress(epoch, 4, 5, 5, 0.12, 12345.6, 125.0 - 30 * epoch, record))
    lines = written.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "epoch", "time:", "epoch", "epoch"]
    left = "at most 1:05 until the last epoch ends"
    assert lines[2] == f"time:   {left}; Ctrl-C stops and keeps what was learned"


def test_of_many_epochs_some_are_lines(written: io.StringIO) -> None:
    with progress.training() as show:
        for epoch in range(1, 201):
            show(TrainProgress(epoch, 200, 5, 5, 0.12, 12345.6, 0.0, RECORD | {"epoch": epoch}))
    lines = written.getvalue().splitlines()
    numbers = [int(line.split()[1].partition("/")[0]) for line in lines if line.startswith("epoch")]
    assert numbers == [1, *range(10, 201, 10)]
    assert not any(line.startswith("time:") for line in lines)  # it is over in no time


def test_epochs_of_the_sharp_decoder_are_counted_apart(written: io.StringIO) -> None:
    sharp = {"epoch": 3, "train_perceptual": 1.0, "val_perceptual": 1.5, "val_sharp_mse": 0.1}
    sharp |= {"val_faithful_perceptual": 1.75}
    with progress.training() as show:
        show(TrainProgress(2, 2, 5, 5, 0.1, 99.0, 9.0, RECORD | {"epoch": 2}))
        for epoch in (1, 2):
            record = RECORD | sharp
            show(TrainProgress(epoch, 2, 5, 5, 0.1, 99.0, 60.0, record, phase="sharp decoder"))
    lines = [line.split("  ")[0] for line in written.getvalue().splitlines()]
    assert lines == ["epoch 2/2", "sharp decoder, epoch 1/2", "sharp decoder, epoch 2/2"]
    assert "validation 1.5000 (faithful 1.7500), mse 0.10000" in written.getvalue()


def test_an_autoencoder_has_no_kl_to_report(written: io.StringIO) -> None:
    names = ("epoch", "step", "train_loss", "val_loss", "val_mse", "images_per_second")
    with progress.training() as show:
        show(report(5, {name: RECORD[name] for name in names}))
    assert "kl" not in written.getvalue()
    assert written.getvalue().count("\n") == 1


def test_a_line_is_printed_while_a_single_image_takes_long(
    written: io.StringIO, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    with progress.counting("restoring") as show:
        show(0, 2)
        said, until = "", time.monotonic() + 60
        while "restoring: 0 of 2, the next has taken 0:00 so far" not in said and time.monotonic() < until:
            time.sleep(0.02)
            said += capfd.readouterr().err
    assert "restoring: 0 of 2, the next has taken 0:00 so far" in said


def test_counting_writes_nothing_where_nobody_looks(written: io.StringIO) -> None:
    with progress.counting("packing") as show:
        show(0, 10)
        show(10, 10)
    assert written.getvalue() == ""


def test_long_work_says_now_and_then_how_far_it_is(
    written: io.StringIO, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.counting("encoding") as show:
        for done, now in ((100, 1000.0), (400, 1029.0), (700, 1030.0), (1300, 1060.0), (2000, 1065.0)):  # noqa: B007
            show(done, 2000)
    assert capsys.readouterr().err == (
        "encoding: 700 of 2,000, 20 images/s, 1:05 left\n"
        "encoding: 1,300 of 2,000, 20 images/s, 0:35 left\n"
        "encoding: 2,000 of 2,000, 29 images/s\n"
    )
    assert written.getvalue() == ""


def test_bars_appear_with_the_first_report_and_go_when_the_work_is_done(shown: io.StringIO) -> None:
    with progress.counting("packing") as count, progress.training() as show:
        assert shown.getvalue() == ""
        count(3, 10)
        assert "packing" in shown.getvalue()
        assert "epochs" not in shown.getvalue()
        count(10, 10)
        shown.truncate(0)
        for step in range(1, 5):
            show(report(step))
        show(report(5, RECORD))
    text = shown.getvalue()
    assert "packing" not in text
    assert "loss 0.12" in text
    assert "12,346 images/s" in text
    assert "epoch 1/2" in text


def test_bars_go_when_the_work_fails(shown: io.StringIO) -> None:
    with pytest.raises(ZeroDivisionError), progress.counting("packing") as count:
        count(1, 2)
        raise ZeroDivisionError
    assert shown.getvalue().endswith("\x1b[2K")  # the line is cleared
    assert progress.console._live_stack == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.6, "1:00:00"), (90061, "25:01:01")],
)
def test_durations_are_written_as_clocks_do(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_a_warning_is_a_line_of_its_own(written: io.StringIO) -> None:
    with progress.training() as show:
        show(dataclasses.replace(report(5, RECORD), warning="Try [this]."))
    assert written.getvalue().splitlines()[1:] == ["warning: Try [this]."]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (1234, "1,234 files")]
)
def test_what_is_counted_is_in_the_plural_but_for_one(number: int, text: str) -> None:
    assert progress.counted(number, "file") == text


def test_what_would_break_a_line_is_escaped_and_letters_of_any_script_are_not() -> None:
    assert progress.one_line(Path("日本 a/new\nline\t.png")) == r"日本 a/new\nline\t.png"
    assert progress.one_line(os.fsdecode(b"\xff.png")) == r"\udcff.png"


def test_the_first_few_are_listed_and_the_rest_counted(capsys: pytest.CaptureFixture[str]) -> None:
    show_skipped([(Path(f"{number}.png"), "no image") for number in range(1007)])
    lines = capsys.readouterr().out.splitlines()
    first = [f"skipped {number}.png: no image" for number in range(5)]
    assert lines == [*first, "skipped 1,002 more: --json lists them all"]
    show_skipped([(Path("a.png"), "no image")] * 6, table=Path("restored.csv"))
    assert capsys.readouterr().out.endswith("skipped 1 more: restored.csv lists them all\n")


def test_a_file_given_by_name_is_an_error_and_one_in_a_folder_is_not() -> None:
    skipped = [(Path("in/a.png"), "no image"), (Path("b.png"), "empty"), (Path("c.png"), "cut")]
    fail_if_named(skipped, [Path("in")])
    with pytest.raises(
        ImageError, match=r"^2 files asked for by name could not be used. b.png: empty; c.png: cut.$"
    ):
        fail_if_named(skipped, [Path("in"), Path("b.png"), Path("c.png")])


def test_hidden_images_and_links_that_lead_out_are_told_in_one_line_each(
    autoencode: Command, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(photos / "coast", folder / "coast")
    (folder / "elsewhere").symlink_to(photos / "forest")
    (folder / ".thumbnails").mkdir()
    shutil.copy(next((folder / "coast").iterdir()), folder / ".hidden.png")
    told = f"note: a link leads out of {folder} and is followed: elsewhere -> "
    result = autoencode("pack", folder, "--out", tmp_path / "pack", "--size", 16)
    assert result.code == 0
    assert result.err.count(told) == 1
    assert "skipped 1 file: 1 hidden; 1 hidden folder\n" in result.out
    result = autoencode("restore", folder, "--out", tmp_path / "restored", "--json")
    assert result.err.count(told) == 1
    assert {"path": str(folder / ".thumbnails"), "reason": "a hidden folder"} in json.loads(result.out)[
        "skipped"
    ]
