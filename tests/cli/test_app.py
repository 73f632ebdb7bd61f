"""The command app: what it rejects, and that it serves."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from typer.testing import CliRunner

from autoencode import ConfigError, MissingExtraError, OutputError, Run
from autoencode.cli.main import app
from autoencode.cli.report_paper_app import listen


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
        with urllib.request.urlopen(address[0].removeprefix("page: "), timeout=20) as answer:
            assert b"autoencode" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address[1], timeout=20)
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert address[2] not in errors
    assert "Traceback" not in errors
