"""A small VAE, an index of its images and the page about both."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from autoencode import Run, build_index, fit_prior, load_model, open_pack, save_model
from autoencode.web.security import Connection, Trust
from autoencode.web.server import make_app
from autoencode.web.workspace import Workspace, open_workspace

Result = TypeVar("Result")

ADDRESS = "http://127.0.0.1:8765"


class Served(NamedTuple):
    """A page that listens at a port."""

    port: int
    trust: Trust
    workspace: Workspace
    app: FastAPI

    @property
    def entrance(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={self.trust.token}"


@pytest.fixture(scope="session")
def run_folder(trained_vae: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to write decisions into, whose model has both priors."""
    folder = Path(shutil.copytree(trained_vae.folder, tmp_path_factory.mktemp("page") / "run"))
    model = load_model(folder)
    fit_prior(model, open_pack(trained_vae.pack_path))
    save_model(folder / trained_vae.model_path.name, model, model.provenance)
    return folder


@pytest.fixture(scope="session")
def index_folder(run_folder: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(photos, tmp_path_factory.mktemp("page") / "index", run_folder, embedding="code").path


@pytest.fixture
def workspace(run_folder: Path, index_folder: Path) -> Iterator[Workspace]:
    (run_folder / "decisions.jsonl").unlink(missing_ok=True)
    shutil.rmtree(run_folder / "page-results", ignore_errors=True)
    opened = open_workspace(run_folder, index_folder)
    yield opened
    opened.close()


@pytest.fixture
def client(workspace: Workspace) -> TestClient:
    """One who has the token."""
    return client_of(workspace)


@pytest.fixture
def open_page() -> Iterator[Callable[..., TestClient]]:
    """Open further pages; they are closed with the test."""
    opened: list[Workspace] = []

    def opening(*args: Path, **kwargs: Path) -> TestClient:
        opened.append(open_workspace(*args, **kwargs))
        return client_of(opened[-1])

    yield opening
    for workspace in opened:
        workspace.close()


def client_of(workspace: Workspace) -> TestClient:
    trust = Trust()
    headers = {"Authorization": f"Bearer {trust.token}"}
    return TestClient(make_app(workspace, trust), base_url=ADDRESS, headers=headers)


@pytest.fixture(scope="session")
def served(run_folder: Path, index_folder: Path) -> Iterator[Served]:
    """The page, listening at a free port."""
    with serving(open_workspace(run_folder, index_folder)) as page:
        yield page


@contextlib.contextmanager
def serving(workspace: Workspace, root: Path | None = None) -> Iterator[Served]:
    """Let a page listen at a free port; under `root` it opens folders."""
    trust = Trust()
    listening = socket.create_server(("127.0.0.1", 0))
    app = make_app(workspace, trust, root)
    config = uvicorn.Config(app, http=Connection, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield Served(listening.getsockname()[1], trust, workspace, app)
    server.should_exit = True
    thread.join()
    listening.close()


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("the condition did not become true")


def in_a_loop(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in a thread, as a browser of other tests may have left a loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def finished(client: TestClient, address: str) -> dict[str, object]:
    """Ask until the work behind an address is done."""
    for _ in range(2400):
        response = client.get(address)
        if response.status_code != 202:
            assert response.status_code == 200, response.text
            found: dict[str, object] = response.json()
            return found
        assert response.json()["state"] in ("waiting", "running", "done")
        time.sleep(0.05)
    raise AssertionError(f"{address} takes too long")
