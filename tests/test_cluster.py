"""Addresses without a Ray cluster, and clusters that this machine cannot use, are rejected at once."""

from __future__ import annotations

import builtins
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoencode import cluster, errors
from autoencode.cluster import Cluster, Node, brief, joined_cluster
from autoencode.errors import (
    AutoencodeError,
    ConfigError,
    MissingExtraError,
    RunError,
    StorageError,
    restored,
)


@pytest.fixture
def listening() -> Iterator[str]:
    """The address of something that accepts connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_without_an_address_nothing_is_joined() -> None:
    with joined_cluster(None, "Nothing") as joined:
        assert joined is None


@pytest.mark.parametrize("address", ["", "here", "host:", "host:0", "host:70000", "ray://host:10001", ":1"])
def test_text_that_is_no_address_is_rejected(address: str) -> None:
    with pytest.raises(ConfigError, match="no address of a Ray cluster"), joined_cluster(address, "Nothing"):
        pass


def test_an_address_where_nothing_listens_is_rejected_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(RunError, match=f"No Ray cluster answers at {address}: Connection refused"):
            joined_cluster(address, "Nothing").__enter__()


def test_a_missing_ray_is_named_with_the_command_that_installs_it(
    listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "ray":
            monkeypatch.delitem(sys.modules, name)
    imported = builtins.__import__

    def importing(name: str, *arguments: object) -> object:
        if name.partition(".")[0] == "ray":
            raise ImportError(name)
        return imported(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", importing)
    for name in cluster.QUIET:  # what is set stays set in this process: put it back
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    with pytest.raises(MissingExtraError, match=r"^Training there: .*pip install .*\[ray\]"):
        joined_cluster(listening, "Training there").__enter__()


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_every_error_of_ours_crosses_to_another_process_as_itself(kind: type[Exception]) -> None:
    if not issubclass(kind, AutoencodeError):
        return
    for copy in (restored(kind.__name__, "what happened"), pickle.loads(pickle.dumps(kind("a", "b")))):
        assert type(copy) is kind
    assert str(restored(kind.__name__, "what happened")) == "what happened"
    assert str(pickle.loads(pickle.dumps(kind("a", "b")))) == str(kind("a", "b"))


@pytest.mark.parametrize("name", ["NoSuchError", "restored", "Path", "ValueError"])
def test_a_name_that_is_no_error_of_ours_becomes_the_base_of_all(name: str) -> None:
    """It came over a socket."""
    error = restored(name, "what happened")
    assert type(error) is AutoencodeError
    assert str(error) == "what happened"


def test_the_first_line_with_text_of_a_long_message_is_kept() -> None:
    assert brief(ValueError("\n\n  It broke:\n  and more")) == "It broke."
    assert brief(ValueError()) == "ValueError."


class Answers(Cluster):
    """A cluster of two nodes with the answers given."""

    def __init__(self, *answers: object) -> None:
        super().__init__("there:1")
        object.__setattr__(self, "answers", answers)

    @property
    def nodes(self) -> list[Node]:
        return [Node("a", "10.0.0.1", 1, 0), Node("b", "10.0.0.2", 1, 0)][: len(self.answers)]  # type: ignore[attr-defined]

    def _asked(self, question: object, argument: object) -> Iterator[tuple[Node, Any]]:
        return iter(zip(self.nodes, self.answers, strict=True))  # type: ignore[attr-defined]


def test_nodes_without_the_package_its_version_or_the_disk_are_named(tmp_path: Path) -> None:
    version = cluster.VERSION
    Answers(version, version).check_package()
    with pytest.raises(RunError, match=r"node 10\.0\.0\.2 of the cluster has no package autoencode"):
        Answers(version, None).check_package()
    with pytest.raises(RunError, match=r"node 10\.0\.0\.1 of the cluster has autoencode 0\.0\.0, and this"):
        Answers("0.0.0", version).check_package()
    with pytest.raises(RunError, match="No node of the cluster at there:1 offers a CPU"):
        Answers().check_package()
    Answers(True, True).check_shared(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(RunError, match=r"node 10\.0\.0\.2 of the cluster does not see .*new"):
        Answers(True, False).check_shared(tmp_path / "new")
    Answers(None, None).check_reads("s3://bucket/pack", "pack.json")
    with pytest.raises(
        StorageError, match=r"node 10\.0\.0\.2 .* cannot read s3://bucket/pack\. No cred.* `ray start`"
    ):
        Answers(None, "No credentials.").check_reads("s3://bucket/pack", "pack.json")


@pytest.mark.scale
def test_a_server_that_is_not_ray_is_rejected_within_a_minute_and_in_one_line(
    listening: str, tmp_path: Path
) -> None:
    pytest.importorskip("ray.train", reason="the optional part `ray` is not installed")
    command = [sys.executable, "-m", "autoencode", "train", str(tmp_path), "--out", str(tmp_path / "run")]
    start = time.monotonic()
    ended = subprocess.run([*command, "--ray", listening], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"error: What answers at {listening} is no Ray cluster, or did not let this machine join in 30 s.\n"
    )
    assert time.monotonic() - start < 60
