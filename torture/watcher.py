"""A watched folder: `autoencode outliers --watch` in a process of its own, and the files that come to it."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

from autoencode.outliers.normal import fit_normal
from torture.commands import make_images
from torture.processes import open_files, resident_mb
from torture.seeds import picture

# A damaged file is reported when it has not changed for a second, instead of for half a minute in each round.
_PROGRAM = (
    "from autoencode.outliers.inspection import watch_images; from autoencode.cli.main import main; "
    "watch_images.__kwdefaults__['patience_s'] = 1.0; main()"
)
_COMMAND = [sys.executable, "-c", _PROGRAM, "outliers"]
_SECONDS = 180  # a look a second, two looks for each file, on a machine that has other work
_KEPT = 12  # files in the folder: a camera's folder is cleared, too
_NORMAL = 10  # images, the fewest that are accepted


class Watcher:
    """Starts `autoencode outliers --watch` and sends it files.

    Args:
        folder: to work in.

    Attributes:
        missed: files that came and did not get exactly one line of the table in time.
    """

    def __init__(self, folder: Path) -> None:
        normal = folder / "normal.safetensors"
        fit_normal(make_images(folder / "normal", _NORMAL)).save(normal)
        self._camera, self._table, self._count = folder / "camera", folder / "watched.csv", 0
        self._sent: list[Path] = []
        self.missed: list[str] = []
        self._camera.mkdir()
        command = [str(normal), "--watch", str(self._camera), "--out", str(self._table), "--quiet"]
        self._process = subprocess.Popen([*_COMMAND, *command], stdout=subprocess.DEVNULL)

    def send(self) -> None:
        """Let an image, a damaged one and a text come."""
        self._sent = [
            self._camera / f"{self._count:05}{ending}" for ending in (".png", " cut.png", " text.png")
        ]
        picture(24, 24, seed=self._count).save(self._sent[0])
        self._sent[1].write_bytes(self._sent[0].read_bytes()[:60])
        self._sent[2].write_text("no image")
        self._count += 1

    def wait(self) -> None:
        """Wait until each file that was sent has its line; then take old files away."""
        end = time.monotonic() + _SECONDS
        while (lines := self._lines()).count(0) and time.monotonic() < end:
            time.sleep(0.2)
        self.missed += [path.name for path, count in zip(self._sent, lines, strict=True) if count != 1]
        for path in sorted(self._camera.iterdir())[:-_KEPT]:
            path.unlink()

    def memory_mb(self) -> float:
        """Memory of the process that watches."""
        return resident_mb(self._process.pid)

    def open_files(self) -> int:
        """Files that it has open."""
        return open_files(self._process.pid)

    def leave(self) -> None:
        """End it as a user does who does not wait."""
        self._process.kill()
        self._process.wait(_SECONDS)

    def _lines(self) -> list[int]:
        """Return how many lines of the table each file has that was sent."""
        if self._process.poll() is not None:
            raise RuntimeError(f"The watching ended with code {self._process.returncode}.")
        if not self._table.exists():
            return [0] * len(self._sent)
        with self._table.open(newline="") as file:
            names = [row[0] for row in csv.reader(file) if row]
        return [names.count(str(path)) for path in self._sent]
