"""Who sends slowly ends alone: no head, body or file of theirs holds up the pictures of others."""

from __future__ import annotations

import http.client
import io
import re
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from autoencode.cli import report_paper_app
from autoencode.web import security
from autoencode.web.workspace import open_workspace

from .conftest import Served, serving, wait_for


@pytest.fixture
def page(run_folder: Path, index_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A page that waits half a second where it would wait ten."""
    monkeypatch.setattr(security, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(security, "BODY_SECONDS", 0.5)
    with serving(open_workspace(run_folder, index_folder)) as page:
        yield page


def sent(page: Served, content: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", page.port), timeout=10)
    connection.sendall(content)
    return connection


def upload(page: Served, length: int) -> bytes:
    return (
        f"POST /api/uploads HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nAuthorization: Bearer "
        f"{page.trust.token}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def ends(connection: socket.socket) -> bytes:
    """Return what came until the other side ended the connection."""
    parts = []
    with connection:
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
    return b"".join(parts)


def status(page: Served, address: str = "/images/i0") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    connection.request("GET", address, headers={"Authorization": f"Bearer {page.trust.token}"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


@pytest.mark.parametrize(
    "head", [b"", b"GET / HTTP/1.1\r\nHost: loc", b"GET / HTTP/1.1\r\nHost: localhost\r\n"]
)
def test_half_heads_are_ended(head: bytes, page: Served) -> None:
    waiting = [sent(page, head) for _ in range(50)]
    assert status(page) == 200
    started = time.monotonic()
    assert [ends(one) for one in waiting] == [b""] * 50
    assert time.monotonic() - started < 5


def assert_ended_under_drops(connection: socket.socket) -> None:
    """Send a byte every 20 ms for 4 s, and require that the page ends the connection meanwhile."""
    with pytest.raises(OSError):
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(0.02)
    connection.close()


def test_a_head_that_comes_drop_by_drop_is_ended(page: Served) -> None:
    assert_ended_under_drops(sent(page, b"GET / HTTP/1.1\r\nX: "))


def test_a_second_head_on_a_connection_has_a_limit_too(page: Served) -> None:
    token = f"Authorization: Bearer {page.trust.token}\r\n"
    head = f"GET /images/i0 HTTP/1.1\r\nHost: localhost\r\n{token}\r\n".encode()
    connection = sent(page, head)
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert_ended_under_drops(connection)


def test_a_body_that_does_not_come_is_not_waited_for(page: Served) -> None:
    waiting = [sent(page, upload(page, 1000) + b"some") for _ in range(10)]
    assert status(page) == 200
    assert all(ends(one).startswith(b"HTTP/1.1 499") for one in waiting)


def test_a_body_that_comes_drop_by_drop_is_ended(page: Served) -> None:
    connection = sent(page, upload(page, 1000))
    with pytest.raises(OSError):
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(0.02)
    connection.close()
    wait_for(lambda: page.app.state.uploads._count == 0)


def test_a_large_body_has_the_time_that_it_needs(page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "BODY_BYTES_PER_SECOND", 1000)
    connection = sent(page, upload(page, 3000) + bytes(1000))
    time.sleep(1)
    connection.sendall(bytes(2000))
    assert connection.recv(100).startswith(b"HTTP/1.1 422")  # whole, and no image
    connection.close()


def test_connections_beyond_the_most_are_not_taken(page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "MOST_CONNECTIONS", 5)
    waiting = [sent(page, b"") for _ in range(20)]
    started = time.monotonic()
    assert [ends(one) for one in waiting] == [b""] * 20
    assert time.monotonic() - started < 5
    assert status(page) == 200


def test_pictures_come_while_files_are_decoded_and_more_files_are_told_to_wait(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def slow(_: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        release.wait(20)
        shape = page.workspace.model.preprocessing
        return np.zeros((shape.height, shape.width, 3), np.uint8)

    monkeypatch.setattr(page.workspace.decoder, "decode", slow)
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    content = file.getvalue()
    request = upload(page, len(content)) + content
    uploads = [sent(page, request) for _ in range(security.UPLOADS_IN_WORK)]
    wait_for(lambda: page.app.state.uploads._count == security.UPLOADS_IN_WORK)
    started = time.monotonic()
    assert [status(page) for _ in range(5)] == [200] * 5
    assert time.monotonic() - started < 2
    with sent(page, request) as one:
        assert one.recv(100).startswith(b"HTTP/1.1 429")
    release.set()
    assert all(one.recv(100).startswith(b"HTTP/1.1 200") for one in uploads)
    for one in uploads:
        one.close()


def test_a_browser_is_started_with_a_private_file_and_not_with_the_token(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    found: list[tuple[int, int, str]] = []

    def serve(_: object, sockets: list[socket.socket]) -> None:
        sockets[0].close()
        wait_for(lambda: opened)
        page = Path(opened[0].removeprefix("file://"))
        folder = page.parent.stat().st_mode
        found.append((stat.S_IMODE(folder), stat.S_IMODE(page.stat().st_mode), page.read_text()))

    monkeypatch.setattr(report_paper_app.webbrowser, "open", opened.append)
    monkeypatch.setattr(uvicorn.Server, "run", serve)
    report_paper_app.app(run_folder, port=0)
    [address] = re.findall(r"http://\S+", "".join(capsys.readouterr()))
    [(of_folder, of_file, text)] = found
    assert (of_folder, of_file) == (0o700, 0o600)
    assert f'content="0; url={address}"' in text
    assert "token" not in opened[0]
    assert not Path(opened[0].removeprefix("file://")).exists()
