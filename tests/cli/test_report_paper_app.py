"""The commands report, paper and app: what they write, what they reject, and that the page is served."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from autoencode import evaluation as application
from autoencode.cli.main import app
from autoencode.models.backbones import BACKBONE
from autoencode.paper import experiments as paper_experiments

if TYPE_CHECKING:
    from playwright.sync_api import Browser

import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request

from autoencode import ConfigError, MissingExtraError, OutputError, Run
from autoencode.cli.report_paper_app import listen


def autoencode(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def fast() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            BACKBONE, "pooled", lambda pixels: pixels.mean(axis=(1, 2), dtype=np.float32) / 255
        )
        monkeypatch.setattr(application, "LEAST_KID_IMAGES", 3)
        tiny = {"widths": (4, 8), "code_size": 8}
        without_code = {"widths": (4, 8)}
        small = (
            replace(one, overrides={**one.overrides, **(without_code if one.preset == "restore" else tiny)})
            for one in paper_experiments.EXPERIMENTS
        )
        monkeypatch.setattr(paper_experiments, "EXPERIMENTS", tuple(small))
        yield


@pytest.fixture(scope="module")
def whole(fast: None, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a whole study, and what the command that made it printed."""
    out = tmp_path_factory.mktemp("study") / "paper"
    return out, study(photos, out)


def study(photos: Path, out: Path) -> Result:
    return autoencode("paper", photos, "--out", out, "--size", 32, "--budget", 0.001)


def seconds(text: str) -> int:
    """Undo `duration`."""
    return sum(int(part) * 60**place for place, part in enumerate(reversed(text.split(":"))))


def test_the_whole_paper_comes_out_of_one_command(whole: tuple[Path, Result], photos: Path) -> None:
    out, result = whole
    assert result.exit_code == 0, result.output
    assert "15 experiments, 48 images: about" in result.output
    said = re.search(r"about ([\d:]+), of which ([\d:]+) to train and ([\d:]+) to measure\n", result.output)
    assert said
    whole_time, training, measuring = (seconds(text) for text in said.groups())
    assert whole_time == pytest.approx(training + measuring, abs=1)
    drawn = sorted(path.name for path in (out / "figures").iterdir())
    assert drawn == [f"figure-{number:02}.png" for number in range(1, 17)]
    written = json.loads((out / "results.json").read_text())
    assert len(written["experiments"]) == 15
    assert {claim["verdict"] for claim in written["claims"]} <= {"holds", "does not hold", "is undecided"}
    page = (out / "index.html").read_text(encoding="utf-8")
    for number in range(1, 17):
        assert f"<b>Figure {number}.</b>" in page
    before = (out / "results.json").read_bytes()
    again = study(photos, out)
    assert again.exit_code == 0, again.output
    assert "epoch 1/" not in again.output
    assert (out / "results.json").read_bytes() == before


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["paper", "report"])
def test_a_page_opens_from_the_disk_whole_and_alone(
    whole: tuple[Path, Result], browser: Browser, name: str, width: int
) -> None:
    path = whole[0] / "index.html"
    if name == "report":
        path = whole[0] / "runs" / "best-vae" / "report.html"
        assert autoencode("report", path.parent).exit_code == 0
    page = browser.new_page(viewport={"width": width, "height": 800})
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    broken = "() => [...document.images].filter(one => !one.complete || !one.naturalWidth).length"
    images = page.locator("img").count()
    assert images >= (16 if name == "paper" else 5)
    assert page.evaluate(broken) == 0
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert not complaints
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    # Only what scrolls by itself, such as a wide table, may be wider than the window.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


@pytest.mark.usefixtures("fast")
def test_a_part_of_the_paper_says_what_was_not_run(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "paper"
    result = autoencode("paper", photos, "--out", out, "--size", 32, "--budget", 0.001, "--only", "dropout")
    assert result.exit_code == 0, result.output
    written = json.loads((out / "results.json").read_text())
    assert list(written["experiments"]) == ["dropout"]
    assert "was not run" in {claim["verdict"] for claim in written["claims"]}
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["figure-01.png", "figure-10.png"]
    (out / "figures" / "figure-12.png").touch()  # of settings that have changed
    again = autoencode("paper", photos, "--out", out, "--size", 32, "--budget", 0.001, "--only", "best-vae")
    assert again.exit_code == 0, again.output
    both = json.loads((out / "results.json").read_text())
    assert list(both["experiments"]) == ["dropout", "best-vae"]
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["figure-01.png", "figure-10.png"]
    assert both["experiments"]["dropout"] == written["experiments"]["dropout"]
    assert both["mean_image"] == written["mean_image"]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["autoencode.paper.study.fit_prior", "autoencode.paper.results.evaluate"])
def test_a_signal_outside_of_training_stops_it_and_loses_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, number: signal.Signals
) -> None:
    command = (
        "paper",
        photos,
        "--out",
        tmp_path / "paper",
        "--size",
        32,
        "--budget",
        0.001,
        "--only",
        "denoise",
    )
    # Started in the background of a shell, Python leaves SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(stage, lambda *_, **__: os.kill(os.getpid(), number))
            stopped = autoencode(*command)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.exit_code == 130
    assert not list(tmp_path.rglob("*.partial"))
    assert not (tmp_path / "paper" / "index.html").exists()
    again = autoencode(*command)
    assert again.exit_code == 0, again.output
    assert "ae: " not in again.output  # trained already


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--budget", "some"), "budget is 'some'"), (("--only", "gan"), "no experiment 'gan'")],
)
def test_settings_that_cannot_be_are_rejected_before_anything_is_written(
    photos: Path, tmp_path: Path, options: tuple[str, str], message: str
) -> None:
    result = autoencode("paper", photos, "--out", tmp_path / "paper", *options)
    assert result.exit_code != 0
    assert message in str(result.exception)
    assert not (tmp_path / "paper").exists()


def test_other_machines_are_let_in_only_where_that_is_said(trained: Run) -> None:
    result = CliRunner().invoke(app, ["app", str(trained.folder), "--host", "0.0.0.0", "--no-browser"])
    assert isinstance(result.exception, ConfigError)
    assert "--allow-remote" in str(result.exception)
    assert "see your images" in str(result.exception)


def test_without_the_optional_part_its_install_command_is_named(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = CliRunner().invoke(app, ["app", str(trained.folder), "--no-browser"])
    assert isinstance(result.exception, MissingExtraError)
    assert "[web]'" in str(result.exception)


def test_a_port_that_is_taken_is_an_error_and_the_default_moves_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OutputError, match=f"port {port}.*Choose another --port"):
            listen("127.0.0.1", port)
    with listen("127.0.0.1", None) as one, listen("127.0.0.1", None) as other:
        assert one.getsockname()[1] < other.getsockname()[1]


def test_an_answer_does_not_wait_until_its_head_is_confirmed() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        taken, _ = listening.accept()
        with taken:
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_it_prints_an_address_that_works_and_stops_at_ctrl_c(trained: Run) -> None:
    command = [sys.executable, "-c", "from autoencode.cli.main import main; main()"]
    process = subprocess.Popen(
        [*command, "app", str(trained.folder), "--no-browser", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        address = re.search(r"page: (http://127\.0\.0\.1:\d+/)\?token=(\S+)", process.stdout.readline())
        assert address is not None
        with urllib.request.urlopen(address[0].removeprefix("page: "), timeout=60) as answer:
            assert b"autoencode" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address[1], timeout=60)
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert address[2] not in errors
    assert "Traceback" not in errors
