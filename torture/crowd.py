"""Fifty visitors who look at pictures while others upload what is slow to decode, or send without end.

The page is a process of its own, used over its port; what is measured is how long a picture takes to come.
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from autoencode.index import build_index
from autoencode.training.train import train
from torture.commands import TINY, make_images
from torture.outcome import Outcome
from torture.seeds import png, zeros
from torture.visitor import Visitor

VISITORS, SLOW_UPLOADERS, HALF_HEADS, SLOW_BODIES = 50, 8, 150, 20
MOST_MS = 500  # for 95 of 100 pictures
PAUSE_SECONDS = 1.0  # between the pictures of one visitor


def attack(cases: int, seed: int, folder: Path) -> Outcome:
    """Look at pictures for so many seconds, beside slow uploads, and then beside half heads and slow bodies.

    Args:
        cases: seconds, of each half.
        seed: of the choice of pictures.
        folder: to work in.
    """
    outcome = Outcome()
    images = make_images(folder / "images", 24)
    train(images, folder / "run", size=16, epochs=1, kind="vae", keep_memory=False, **TINY)
    build_index(images, folder / "index", folder / "run", embedding="code")
    visitor = Visitor(folder / "run", folder / "index", seed)
    # Within the limits of an upload in pixels, and seconds of work.
    slow = png(7900, 7900, 16, 6, zeros(7900 * (7900 * 8 + 1)))
    try:
        for name, attackers in (
            ("slow uploads", [lambda: _upload(visitor, slow)] * SLOW_UPLOADERS),
            (
                "slow senders",
                [lambda: _drip(visitor)] * SLOW_BODIES + [lambda: _half_head(visitor)] * HALF_HEADS,
            ),
        ):
            times, failed = _seen(visitor, attackers, cases, seed)
            outcome.cases += len(times)
            outcome.check(not failed, f"{name}: {len(failed)} requests failed: {failed[:1]}")
            p95 = float(np.quantile(times, 0.95)) * 1000
            outcome.check(p95 < MOST_MS, f"{name}: 95 of 100 pictures within {p95:.0f} ms")
            outcome.notes.append(
                f"{name}: median {np.median(times) * 1000:.0f} ms, 95 of 100 within {p95:.0f} ms"
            )
        # All of them are ended by now, or soon.
        time.sleep(15)
        files = visitor.open_files()
        outcome.check(files < 60, f"{files} open files of the page")
    finally:
        visitor.leave()
    return outcome


def _seen(
    visitor: Visitor, attackers: list[Callable[[], None]], seconds: float, seed: int
) -> tuple[list[float], list[str]]:
    """Return the seconds that each picture took, and what failed."""
    end, times, failed = time.monotonic() + seconds, list[float](), list[str]()

    def attacking(attacker: Callable[[], None]) -> None:
        while time.monotonic() < end:
            try:
                attacker()
            except OSError:  # ended by the page, as it should be
                time.sleep(0.1)

    def looking(number: int) -> None:
        generator = random.Random(f"{seed} {number}")
        time.sleep(generator.uniform(0, PAUSE_SECONDS))
        connection = http.client.HTTPConnection("127.0.0.1", visitor.port, timeout=60)
        while time.monotonic() < end:
            started = time.monotonic()
            try:
                connection.request("GET", f"/images/i{generator.randrange(24)}", headers=visitor.headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    failed.append(str(answer.status))
            except (OSError, http.client.HTTPException) as err:
                failed.append(repr(err))
                connection.close()
            times.append(time.monotonic() - started)
            time.sleep(generator.uniform(0.5, 1.5) * PAUSE_SECONDS)
        connection.close()

    threads = [threading.Thread(target=attacking, args=(one,), daemon=True) for one in attackers]
    threads += [threading.Thread(target=looking, args=(number,)) for number in range(VISITORS)]
    for thread in threads:
        thread.start()
    for thread in threads[len(attackers) :]:
        thread.join()
    return times, failed


def _upload(visitor: Visitor, content: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", visitor.port, timeout=60)
    try:
        connection.request("POST", "/api/uploads", content, visitor.headers)
        if connection.getresponse().status == 429:
            time.sleep(1)
    finally:
        connection.close()


def _drip(visitor: Visitor) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in visitor.headers.items())
    start = (
        f"POST /api/uploads HTTP/1.1\r\nHost: 127.0.0.1:{visitor.port}\r\n{head}Content-Length: 99999\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", visitor.port), timeout=30) as connection:
        connection.sendall(start.encode())
        for _ in range(60):
            connection.sendall(b"x")
            time.sleep(1)


def _half_head(visitor: Visitor) -> None:
    with socket.create_connection(("127.0.0.1", visitor.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
        connection.recv(100)  # until the page ends it
