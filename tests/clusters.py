"""A Ray cluster of nodes on this machine, for tests; its processes have a mark in their environment."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MARK = "AUTOENCODE_TEST_CLUSTER"
# Each node of one CPU, which is what two cores allow; torch's threads are then one, as Ray sets them.
NODE = ["--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats"]


@dataclass
class LocalCluster:
    """The nodes, each started in a folder of its own, which their processes work in."""

    folder: Path
    port: int
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start_node(self, *, first: bool = False) -> str:
        """Start a node and return its mark, by which its processes are found."""
        mark = f"{self.mark}-{uuid.uuid4().hex}"
        where = ["--address", self.address]
        if first:
            where = ["--head", "--port", str(self.port), "--temp-dir", str(self.folder / "s")]
            where += ["--include-dashboard", "false"]
        (self.folder / mark).mkdir()
        ray = Path(sys.executable).with_name("ray")
        environment = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        command = [str(ray), "start", *where, *NODE, "--node-ip-address", "127.0.0.1"]
        started = subprocess.run(
            command, env=environment, cwd=self.folder / mark, capture_output=True, text=True, timeout=120
        )
        assert started.returncode == 0, started.stdout + started.stderr
        return mark

    def processes(self, mark: str = "", title: str = "") -> list[int]:
        """The processes of a node, or of all, whose command line begins with `title`."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with contextlib.suppress(OSError):
                    environment = (folder / "environ").read_bytes()
                    command = (folder / "cmdline").read_bytes()
                    if f"{MARK}={mark or self.mark}".encode() in environment and command.startswith(
                        title.encode()
                    ):
                        found.append(int(folder.name))
        return sorted(found)

    def kill(self, mark: str = "") -> None:
        """Kill a node, or all."""
        deadline = time.monotonic() + 30
        while (found := self.processes(mark)) and time.monotonic() < deadline:
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)


@contextlib.contextmanager
def local_cluster(nodes: int = 2) -> Iterator[LocalCluster]:
    """Start nodes, and leave no process of them behind."""
    # Sockets are in here, whose paths may have no more than about 100 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ae", dir="/tmp"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        cluster = LocalCluster(folder, free.getsockname()[1])
    try:
        for number in range(nodes):
            cluster.start_node(first=number == 0)
        yield cluster
    finally:
        cluster.kill()
        shutil.rmtree(folder, ignore_errors=True)
