"""Who may talk to the page: every rule from outside, by HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient
from uvicorn import Config

from autoencode.web import security
from autoencode.web.security import JSON_BYTES, Allowance, Server, Trust
from autoencode.web.server import make_app
from autoencode.web.workspace import Workspace

from .conftest import ADDRESS, Served

READS = [
    "/api/workspace",
    "/api/map/points",
    "/images/i0",
    "/static/main.js",
    "/api/outliers.csv",
    "/sheets/i?positions=0",
]
WRITES = ["/api/uploads", "/api/generate", "/api/decisions", "/api/decisions/undo", "/api/map/chosen"]


@pytest.fixture
def trust() -> Trust:
    return Trust()


@pytest.fixture
def stranger(workspace: Workspace, trust: Trust) -> TestClient:
    """One who has nothing."""
    return TestClient(make_app(workspace, trust), base_url=ADDRESS)


@pytest.fixture
def guest(stranger: TestClient, trust: Trust) -> TestClient:
    """A browser that came in by the address with the token, and has the cookie now."""
    assert stranger.get("/", params={"token": trust.token}).status_code == 200
    return stranger


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "10.0.0.7"]
)
def test_a_foreign_host_is_rejected_even_with_the_token(client: TestClient, host: str) -> None:
    assert client.get("/api/workspace", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9999", "[::1]:8765", "LOCALHOST"])
def test_names_of_this_machine_are_known(client: TestClient, host: str) -> None:
    assert client.get("/api/workspace", headers={"Host": host}).status_code == 200


def test_a_page_for_others_knows_addresses_and_its_own_name_but_no_foreign_one() -> None:
    trust = Trust(is_remote=True)
    assert trust.knows_host("192.168.1.5:8765")
    assert trust.knows_host("[fe80::1]:8765")
    assert trust.knows_host(socket.gethostname())
    assert not trust.knows_host("evil.example:8765")


@pytest.mark.parametrize("path", ["/", *READS])
def test_nothing_is_read_without_the_token(stranger: TestClient, path: str) -> None:
    assert stranger.get(path).status_code == 401
    assert stranger.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert stranger.get(path, params={"token": "wrong"}).status_code == 401
    if path != "/":
        assert stranger.get(path).json()["error"].startswith("The token is missing")
        before = {"Cookie": f"{Trust().cookie}=of-an-earlier-start"}
        assert "was started again" in stranger.get(path, headers=before).json()["error"]


@pytest.mark.parametrize("path", WRITES)
def test_nothing_is_written_without_the_token(stranger: TestClient, path: str) -> None:
    assert stranger.post(path, content=b"{}", headers={"Origin": ADDRESS}).status_code == 401


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1:8765", None]
)
@pytest.mark.parametrize("path", WRITES)
def test_a_browser_writes_from_this_page_alone(guest: TestClient, path: str, origin: str | None) -> None:
    headers = {} if origin is None else {"Origin": origin}
    assert guest.post(path, content=b"{}", headers=headers).status_code == 403


def test_a_browser_with_the_cookie_reads_and_writes(guest: TestClient) -> None:
    assert guest.get("/api/workspace").status_code == 200
    answer = guest.post("/api/generate", json={"count": 1}, headers={"Origin": ADDRESS})
    assert answer.status_code == 200


def test_the_token_opens_the_entrance_alone_and_becomes_a_strict_cookie(
    stranger: TestClient, trust: Trust
) -> None:
    assert stranger.get("/api/workspace", params={"token": trust.token}).status_code == 401
    cookie = stranger.get("/", params={"token": trust.token}).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie


def test_two_launches_have_two_tokens_and_two_cookies() -> None:
    one, other = Trust(), Trust()
    assert one.token != other.token
    assert one.cookie != other.cookie


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/images/i0", "/nothing"])
def test_headers_keep_everything_on_this_page(guest: TestClient, path: str) -> None:
    headers = guest.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_pages_about_the_interface_are_not_there(guest: TestClient) -> None:
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert guest.get(path).status_code == 404


def test_bodies_have_a_stated_length_within_their_cap(client: TestClient) -> None:
    assert client.post("/api/uploads", content=bytes(50 * 1024**2)).status_code == 413
    assert client.post("/api/generate", content=b" " * (JSON_BYTES + 1)).status_code == 413
    assert client.post("/api/generate", content=iter([b"{}"])).status_code == 411
    chunked = {"Content-Length": "5", "Transfer-Encoding": "chunked"}
    assert client.post("/api/uploads", content=bytes(5), headers=chunked).status_code == 411


def upload_scope(trust: Trust) -> dict[str, Any]:
    """Return an upload as the server passes it on."""
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {trust.token}".encode())]
    return {
        **{"type": "http", "method": "POST", "path": "/api/uploads", "query_string": b"", "scheme": "http"},
        **{"headers": [*headers, (b"content-length", b"9")], "raw_path": b"/api/uploads", "root_path": ""},
    }


def test_a_window_that_closes_while_it_sends_a_picture_is_no_fault(
    workspace: Workspace, trust: Trust
) -> None:
    sent = []

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    app, scope = make_app(workspace, trust), upload_scope(trust)
    with ThreadPoolExecutor() as threads:  # in this one, the browser's driver may have a loop of its own
        threads.submit(lambda: asyncio.run(app(scope, receive, send))).result()
    assert sent[0]["status"] == 499


def test_a_page_that_ends_while_a_picture_is_sent_answers_without_a_traceback(
    workspace: Workspace, trust: Trust
) -> None:
    sent = []

    async def receive() -> dict[str, str]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def ended() -> None:
        task = asyncio.create_task(make_app(workspace, trust)(upload_scope(trust), receive, send))
        await asyncio.sleep(0.1)
        task.cancel()
        await task

    with ThreadPoolExecutor() as threads:
        threads.submit(lambda: asyncio.run(ended())).result()
    assert sent[0]["status"] == 503


def request(
    served: Served, method: str, target: str, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Send a target as it is, which clients that tidy addresses do not."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    token = {"Authorization": f"Bearer {served.trust.token}"}
    try:
        connection.request(method, target, headers={**token, **(headers or {})})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


@pytest.mark.parametrize(
    "target",
    [
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static/..%252fserver.py",
        "/static/%2e%2e%5cserver.py",
        "/images/../../../../etc/passwd",
        "/images/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/images/%00",
        "/images/i0%2f..%2f..%2fstatic%2fmain.js",
        "/images/-1",
        "/images/i-1",
        "/images/i99999",
        "/images/i%C2%B2",
        "//etc/passwd",
    ],
)
def test_no_address_leads_out_of_the_page(served: Served, target: str) -> None:
    status, text = request(served, "GET", target)
    assert status == 404
    assert json.loads(text)["error"]
    assert "root:" not in text
    assert "import" not in text


def test_a_link_in_the_folder_is_no_address_and_what_is_no_image_behind_it_is_not_shown(
    served: Served, photos: str
) -> None:
    for target in (
        "/images/passwd.png",
        f"/images/{photos}",
        "/sheets/i?positions=../0",
        "/sheets/x?positions=0",
        f"/sheets/i?positions={'9' * 5000}",
    ):
        status, text = request(served, "GET", target)
        assert status in (404, 422)
        assert "root:" not in text


def test_a_real_server_keeps_to_the_rules_too(served: Served) -> None:
    assert request(served, "GET", "/api/workspace", {"Host": "evil.example"})[0] == 400
    assert request(served, "GET", "/api/workspace", {"Authorization": ""})[0] == 401
    assert request(served, "POST", "/api/generate", {"Origin": "http://evil.example"})[0] == 403
    assert request(served, "POST", "/api/uploads", {"Content-Length": str(50 * 1024**2)})[0] == 413
    assert request(served, "GET", "/api/workspace")[0] == 200


def test_an_allowance_comes_back_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(security.time, "monotonic", lambda: now)
    allowance = Allowance(2, 0.5)
    assert [allowance.take() for _ in range(3)] == [0, 0, 2.0]
    now = 102.0
    assert [allowance.take(), allowance.take()] == [0, 2.0]


def test_a_body_that_is_not_json_is_called_that_and_an_unknown_address_is_not(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    for body in (b"\xff\xfe", b"{", b"[" * 100_000):
        answer = client.post("/api/generate", content=body, headers=headers)
        assert answer.status_code in (400, 422)
        assert "JSON" in answer.json()["error"]
    assert client.get("/nowhere").json()["error"] == "There is nothing at this address."


def test_a_person_who_types_an_unknown_address_gets_a_page_that_leads_back(client: TestClient) -> None:
    answer = client.get("/nothing", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "There is nothing at this address" in answer.text
    assert '<a href="/">' in answer.text
    assert "nothing.png" not in client.get("/nothing.png", headers={"Accept": "text/html"}).text


def test_a_second_ctrl_c_does_not_cut_the_end_short() -> None:
    server = Server(Config(lambda: None))  # type: ignore[arg-type]
    for _ in range(3):
        server.handle_exit(signal.SIGINT, None)
    assert server.should_exit
    # uvicorn would cancel its own end, and print where it was.
    assert not server.force_exit
