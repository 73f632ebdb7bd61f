"""The command that serves the local page: app. Heavy imports are inside, as in `cli`."""

from __future__ import annotations

import contextlib
import socket
import threading
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from autoencode.cli.options import Model
from autoencode.cli.progress import console, counting
from autoencode.errors import ConfigError, MissingExtraError, OutputError

DEFAULT_PORT, PORTS_TRIED = 8765, 20
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
REMOTE_NOTE = (
    "Anyone who can reach this machine and has the address with its key can use the page and see your "
    "images. What is sent is not encrypted: use it on a network you trust, or through ssh -L instead."
)

# A line for each request would hold the key; an answer that takes long does not hold up the end.
_SERVER: dict[str, Any] = {
    "access_log": False,
    "log_level": "warning",
    "server_header": False,
    "timeout_graceful_shutdown": 1,
}


def app(
    run: Model,
    index: Annotated[
        Path | None, typer.Option(help="An index made with this model: search, and the images to look at.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images to review. Default: the index's, or the run's.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Default: 8765, or the next that is free.", min=0, max=65535)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let other machines connect; needed for any other --host.")
    ] = False,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Use a model in the browser: search, morph, generate, restore, review outliers, see the map."""
    if host not in _LOOPBACK and not allow_remote:
        raise ConfigError(f"--host {host} lets other machines connect. Add --allow-remote. {REMOTE_NOTE}")
    try:
        import uvicorn

        from autoencode.web.security import Trust
        from autoencode.web.server import make_app
        from autoencode.web.workspace import open_workspace
    except ModuleNotFoundError as err:
        if err.name not in ("fastapi", "uvicorn", "starlette"):
            raise
        raise MissingExtraError("web", "The page") from err
    listening = listen(host, port)
    with counting("packing") as progress:
        workspace = open_workspace(run, index, images, progress)
    trust = Trust(is_remote=allow_remote)
    address = f"http://{_in_address(host)}:{listening.getsockname()[1]}/?token={trust.token}"
    if allow_remote:
        console.print(REMOTE_NOTE, soft_wrap=True)
    console.print(f"page: {address}", soft_wrap=True)
    console.print("Stop with Ctrl-C; pictures given to the page are gone then.")
    if not no_browser:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    server = uvicorn.Server(uvicorn.Config(make_app(workspace, trust), **_SERVER))
    with contextlib.suppress(KeyboardInterrupt):  # how one stops it
        server.run(sockets=[listening])


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens at a port, or at the first free one from 8765 on.

    Raises:
        OutputError: the port is taken, or there is no such address here.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    tried = range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED) if port is None else [port]
    problem = ""
    for number in tried:
        try:
            listening = socket.create_server((host, number), family=family)
        except OSError as err:
            problem = err.strerror or str(err)
            continue
        # What connects to it inherits this. Otherwise the body of each answer, written after its head, waits
        # until the browser has confirmed the head, for 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    raise OutputError(f"Could not listen at {host}, port {tried[-1]}: {problem}. Choose another --port.")


def _in_address(host: str) -> str:
    """A host as a browser takes it; for all addresses at once, this machine's name."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def add_to(app_: typer.Typer) -> None:
    """Make the command of this module a command of the program."""
    app_.command()(app)
