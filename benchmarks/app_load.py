"""Many people at the local page at once: latency, errors and memory of `autoencode app`.

    python benchmarks/app_load.py RUN INDEX --clients 50 --seconds 60 --pause 0.5

Each client asks, waits for the answer, pauses as a person does, and asks again: in turn for the neighbours of
an image, for a frame of a morph (ten between the same two images) and for a picture. Memory is that of the
server alone, each second, without the pages of the pack that it maps, as the system can take them back.
"""

from __future__ import annotations

import argparse
import http.client
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

MOVES = 30  # requests, a third of them for a morph, between the same two pictures
COMMAND = [sys.executable, "-c", "from autoencode.cli.main import main; main()", "app"]


def started(run: str, index: str) -> tuple[subprocess.Popen[str], int, str]:
    """Start the page; return it, its port and its token."""
    process = subprocess.Popen(
        [*COMMAND, run, "--index", index, "--no-browser", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    found = re.search(r"127\.0\.0\.1:(\d+)/\?token=(\S+)", process.stdout.readline())
    assert found is not None
    return process, int(found[1]), found[2]


def own_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


class Clients:
    """People at the page, each a thread with a connection of its own."""

    def __init__(self, port: int, token: str, images: int, pause: float) -> None:
        self.port, self.images, self.pause = port, images, pause
        self.headers = {"Authorization": f"Bearer {token}"}
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.errors: Counter[str] = Counter()
        self.end = 0.0

    def run(self, count: int, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._one, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _one(self, number: int) -> None:
        chosen = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        time.sleep(chosen.random() * self.pause)
        turn = number
        while time.monotonic() < self.end:
            kind, target = self._asked(number, turn, chosen)
            begun = time.perf_counter()
            try:
                connection.request("GET", target, headers=self.headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.errors[f"{kind}: {answer.status}"] += 1
            except OSError as err:
                self.errors[f"{kind}: {type(err).__name__}"] += 1
                connection.close()
            self.seconds[kind].append(time.perf_counter() - begun)
            time.sleep(self.pause * (0.5 + chosen.random()))
            turn += 1

    def _asked(self, number: int, turn: int, chosen: random.Random) -> tuple[str, str]:
        one = chosen.randrange(self.images)
        if turn % 3 == 0:
            return "search", f"/api/search?picture=i{one}&k=24"
        if turn % 3 == 1:
            # The slider is moved some times before the pictures change.
            pair = random.Random(f"{number} {turn // MOVES}")
            ends = ",".join(f"i{pair.randrange(self.images)}" for _ in range(2))
            return "morph", f"/api/morph/frame?pictures={ends}&x={chosen.random():.3f}"
        return "picture", f"/images/i{one}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("index")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pause", type=float, default=0.5)
    asked = parser.parse_args()
    from autoencode import open_index

    images = len(open_index(asked.index))
    process, port, token = started(asked.run, asked.index)
    memory: list[float] = []
    clients = Clients(port, token, images, asked.pause)
    try:
        Clients(port, token, images, 0).run(2, 2)  # so that everything made at its first use exists
        watched = threading.Event()

        def watch() -> None:
            while not watched.wait(1):
                memory.append(own_mb(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        clients.run(asked.clients, asked.seconds)
        watched.set()
        watcher.join()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
    report(clients, asked.seconds, memory)


def report(clients: Clients, seconds: float, memory: list[float]) -> None:
    everything = [value for values in clients.seconds.values() for value in values]
    rate = len(everything) / seconds
    print(f"{len(everything):,} requests, {rate:.0f}/s; errors: {dict(clients.errors)}")
    for kind, values in [*sorted(clients.seconds.items()), ("all", everything)]:
        quantiles = statistics.quantiles(values, n=100)
        print(f"{kind:8} median {1e3 * quantiles[49]:5.0f} ms, 95 % within {1e3 * quantiles[94]:5.0f} ms")
    quarters = [statistics.mean(part) for part in np.array_split(np.array(memory), 4)]
    print(f"memory by quarter of the time: {', '.join(f'{mb:.0f}' for mb in quarters)} MB")


if __name__ == "__main__":
    main()
