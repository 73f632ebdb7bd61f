"""A visitor of the local page: starts a server, asks what a browser would, and bounds the memory it holds."""

from __future__ import annotations

import http.client
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from autoencode.web.pictures import NAMED_BYTES
from torture.processes import open_files, resident_mb

_COMMAND = [sys.executable, "-c", "from autoencode.cli.main import main; main()", "app"]
_SECONDS = 60

SAMPLES = 24  # drawn at once


class Visitor:
    """Starts `autoencode app` and uses it.

    Args:
        run: a run folder.
        index: an index by its model.
        seed: of the choice of images.

    Attributes:
        port, headers: where the page listens, and what lets a request in.
        epochs_seen: lines of metrics that the overview has shown.
        held_mb: memory that the server may hold for the pictures added and drawn so far.
    """

    def __init__(self, run: Path, index: Path, seed: int) -> None:
        command = [*_COMMAND, str(run), "--index", str(index), "--no-browser", "--port", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        found = re.search(r"127\.0\.0\.1:(\d+)/\?token=(\S+)", self._process.stdout.readline())
        if found is None:
            raise RuntimeError("The page did not start.")
        self.port, self.headers = int(found[1]), {"Authorization": f"Bearer {found[2]}"}
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_SECONDS)
        self._random = random.Random(seed)
        about = json.loads(self._get("/api/workspace"))
        self._images: int = about["images"]
        self._picture_bytes = about["height"] * about["width"] * 3 + about["code_size"] * 4 + NAMED_BYTES
        self._known, self.epochs_seen, self.held_mb = "", 0, 0.0

    def look_around(self, image: Path) -> None:
        """Do what each tab does, once: with images of the index, an upload, and samples."""
        self._connection.close()  # the page ends one that is idle for some seconds
        self._overview()
        one, other = (f"i{self._random.randrange(self._images)}" for _ in range(2))
        given = json.loads(self._ask("POST", "/api/uploads", image.read_bytes()))["id"]
        samples = self._post("/api/generate", {"count": SAMPLES, "seed": self._random.randrange(10**6)})
        self.held_mb += (1 + SAMPLES) * self._picture_bytes / 1024**2
        sample = samples["pictures"][0]["id"]
        for picture in (one, given, sample):
            self._get(f"/api/search?picture={picture}&k=8")
            self._get(f"/images/{picture}")
            self._get(f"/images/{picture}/difference")
        for step in range(5):
            self._get(f"/api/morph/frame?pictures={one},{other},{given},{sample}&x={step / 4}&y=0.5")
        self._get(f"/sheets/i?positions={','.join(map(str, range(min(self._images, 24))))}")
        self._get(f"/api/restore?picture={given}&corrupt=gaussian:0.1")
        self._get(f"/api/morph/animation?pictures={one},{sample}")
        self._get("/api/outliers?limit=20")
        self._get("/api/map")
        self._post("/api/decisions", {"picture": one, "decision": "keep"})
        self._post("/api/decisions/undo", {})

    def memory_mb(self) -> float:
        """Memory of the server."""
        return resident_mb(self._process.pid)

    def open_files(self) -> int:
        """Files and connections that the server has open."""
        return open_files(self._process.pid)

    def leave(self) -> None:
        """End the server."""
        self._connection.close()
        self._process.terminate()
        self._process.communicate(timeout=_SECONDS)

    def _overview(self) -> None:
        content = self._get(f"/api/run/state?known={self._known}")
        if content:
            state = json.loads(content)
            self._known, self.epochs_seen = state["tag"], len(state["records"])

    def _get(self, address: str) -> bytes:
        return self._ask("GET", address)

    def _post(self, address: str, value: object) -> Any:  # noqa: ANN401 - what JSON can hold
        return json.loads(self._ask("POST", address, json.dumps(value).encode()))

    def _ask(self, method: str, address: str, body: bytes | None = None) -> bytes:
        """Send a request, again while the job behind it is not done."""
        kind = {} if address == "/api/uploads" else {"Content-Type": "application/json"}
        while True:
            self._connection.request(method, address, body, {**self.headers, **kind})
            answer = self._connection.getresponse()
            content = answer.read()
            if answer.status not in (202, 429):
                break
            time.sleep(0.05)
        if answer.status not in (200, 204):
            raise RuntimeError(f"{method} {address}: {answer.status} {content.decode(errors='replace')}")
        return content
