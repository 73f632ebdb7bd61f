"""The commands that make pages: report and paper write one, app serves one to the browser."""

from __future__ import annotations

import contextlib
import html
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from autoencode.atomic import write_bytes
from autoencode.cli import options
from autoencode.cli.options import MaxPixels, Resize, Size, add_command
from autoencode.cli.progress import counting, duration, said_when_stopped, say, show_result, stages, training
from autoencode.errors import ConfigError, MissingExtraError, OutputError

# Pages of several runs may be open at once: each takes the next port.
DEFAULT_PORT, PORTS_TRIED = 8765, 20
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
REMOTE_NOTE = (
    "Anyone who can reach this machine and has the address with its token can use the page and see your "
    "images. The connection is not encrypted: use it on a network you trust, or through ssh -L instead."
)

# A log line of each request would hold the token. A long answer must not delay the end by more than a second.
_SERVER: dict[str, Any] = {
    "access_log": False,
    "log_level": "warning",
    "server_header": False,
    "timeout_graceful_shutdown": 1,
}


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
) -> None:
    """Write the report of a run: settings, curves, reconstructions, samples, outliers, numbers."""
    from autoencode.report import write_report

    with stages() as progress:
        page = write_report(run, progress=progress)
    say(f"report: {page}")
    show_result({"report": page})


def paper(
    folder: Annotated[Path, typer.Argument(help="Images; sub-folders are searched too.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the page, its figures, numbers and models. Run again to go on after a stop. "
            "Default: results/paper-NAME."
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="full for the paper's own epochs, or a fraction of them, such as 0.05.")
    ] = "full",
    limit: Annotated[
        int | None, typer.Option(help="Use at most this many images, chosen at random.", min=2)
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="An experiment, or a group: ae, denoise, vae-sigma, vae-warmup, best. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    size: Size = None,
    resize_mode: Resize = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Run the experiments of the paper on a folder of images, and draw its figures from the results."""
    from autoencode.data.preprocessing import Preprocessing
    from autoencode.paper.experiments import chosen_experiments
    from autoencode.paper.page import write_paper
    from autoencode.paper.results import measure_all, seconds_to_measure
    from autoencode.paper.study import (
        Plan,
        open_study,
        seconds_needed,
        train_all,
        writing,
    )
    from autoencode.training.process import stopped_by_sigterm

    out = options.out_or_default(out, "paper", folder, continues=True)
    # Both are checked before the images are packed.
    experiments, share = chosen_experiments(only or ()), parse_budget(budget)
    preprocessing = Preprocessing(**options.preprocessing(size, resize_mode, None))
    # A cluster stops a job by SIGTERM: the state is kept, as with Ctrl-C.
    kept = "experiments that are trained are kept; run the same command again to go on."
    with said_when_stopped(lambda: kept), stopped_by_sigterm(), writing(out, folder):
        with counting("packing") as progress:
            pack = open_study(
                folder,
                out,
                preprocessing,
                limit,
                seed,
                limits=options.limits(max_pixels),
                progress=progress,
            )
        plan = Plan(out, pack, experiments, share, seed).with_finished()
        to_train, to_measure = seconds_needed(plan), seconds_to_measure(plan)
        say(
            f"{len(plan.experiments)} experiments, {len(pack):,} images: about "
            f"{duration(to_train + to_measure)}, of which {duration(to_train)} to train and "
            f"{duration(to_measure)} to measure"
        )
        with training() as show:
            trained = train_all(
                plan,
                progress=lambda _, at: show(at),
                started=lambda experiment: say(f"{experiment.name}: {experiment.shows}"),
            )
        with stages() as progress_of_stage:
            results = measure_all(plan, trained, progress_of_stage)
            page = write_paper(results)
    say(f"page: {page}")
    show_result({"page": page})


def app(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="A run folder, a model file, or an index, which needs no model. Default: chosen in the page."
        ),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            help="An index made without a model or with this one, to search in; its images are those shown."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images to review. Default: the index's, or the run's.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Default: 8765, or the next free port.", min=0, max=65535)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let other machines connect; needed for any other --host.")
    ] = False,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Use a model in the browser: search, morph, generate, restore, review outliers, see the map."""
    # A second option, as an address copied from somewhere must not be enough to open the page to others.
    if host not in _LOOPBACK and not allow_remote:
        raise ConfigError(f"--host {host} lets other machines connect. Add --allow-remote. {REMOTE_NOTE}")
    try:
        import uvicorn

        from autoencode.web.security import Connection, Server, Trust
        from autoencode.web.server import make_app
        from autoencode.web.workspace import open_workspace
    except ModuleNotFoundError as err:
        # Any other module that is missing is a mistake of ours, and no extra would help.
        if err.name not in ("fastapi", "uvicorn", "starlette"):
            raise
        raise MissingExtraError("web", "The page") from err
    with listen(host, port) as listening:  # before packing, which may take minutes
        with counting("packing") as progress:
            workspace = open_workspace(run, index, images, progress)
        trust = Trust(is_remote=allow_remote)
        address = f"http://{_in_address(host)}:{listening.getsockname()[1]}/?token={trust.token}"
        if allow_remote:
            say(REMOTE_NOTE)
        say(f"page: {address}")
        show_result({"page": address})
        sys.stdout.flush()  # a program that reads it waits for it
        say("Stop with Ctrl-C, which deletes the images that were uploaded to the page.")
        server = Server(
            uvicorn.Config(
                make_app(workspace, trust, None if allow_remote else Path()), http=Connection, **_SERVER
            )
        )
        with contextlib.nullcontext() if no_browser else _entrance(address) as entrance:
            if entrance is not None:
                # A moment later, when the server below answers.
                threading.Timer(0.5, webbrowser.open, [entrance.as_uri()]).start()
            # Ctrl-C is the way to stop the server, and no error, also when it is pressed again until all has
            # ended: the server listens for it while it runs, and nothing does before and afterwards.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            server.run(sockets=[listening])


@contextlib.contextmanager
def _entrance(address: str) -> Iterator[Path]:
    """Write a page that leads to the address, for this user alone, until the context is left.

    The address holds the token, and every user of the machine can read what a browser is started with.
    """
    with tempfile.TemporaryDirectory(prefix="autoencode-page-") as folder:
        entrance = Path(folder) / "page.html"
        target = html.escape(address)
        text = f'<meta http-equiv="refresh" content="0; url={target}"><a href="{target}">the page</a>'
        write_bytes(entrance, f"<!doctype html><title>autoencode</title>{text}\n".encode())
        yield entrance


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens at a port; with None, at the first free port from 8765 on.

    Raises:
        OutputError: the port is taken, or this machine does not have the address.
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
        # Connections inherit this option. Without it the body of each answer, written after its head, waits
        # 40 ms until the browser has acknowledged the head.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    raise OutputError(f"Could not listen at {host}, port {tried[-1]}: {problem}. Choose another --port.")


def _in_address(host: str) -> str:
    """Return a host as it stands in a URL; for all addresses at once, the name of this machine."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    add_command(program, report, "autoencode report runs/photos", keeps_memory=True)
    add_command(
        program,
        paper,
        "autoencode paper photos --budget 0.05 --limit 2000 --out paper",
        "autoencode paper photos --only ae --only denoise --out paper",
        keeps_memory=True,
    )
    add_command(
        program,
        app,
        "autoencode app",
        "autoencode app runs/photos",
        "autoencode app photos.index",
        "autoencode app runs/photos --index indexes/photos --port 9000",
    )


def parse_budget(text: str) -> float:
    """Read "full" or a share of the paper's epochs.

    Raises:
        ConfigError: the text is neither "full" nor a number.
    """
    try:
        return 1.0 if text == "full" else float(text)
    except ValueError as err:
        raise ConfigError(f"The budget is {text!r}; it must be full, or a number such as 0.05.") from err
