"""Join a Ray cluster, give it work, and leave it. The user starts and stops it; this package never does.

Work goes to the nodes as tasks of Ray Core. Ray Data took 2 s longer for an index of 2,000 images, and sends
an error of a node back as the text of a traceback.

Ray runs what it is sent and unpickles what it gets: whoever reaches a cluster may run anything on it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from autoencode.errors import (
    VERSION,
    AutoencodeError,
    ConfigError,
    MissingExtraError,
    OutputError,
    RunError,
    StorageError,
)

if TYPE_CHECKING:
    from ray import ObjectRef

Item = TypeVar("Item")
Result = TypeVar("Result")

# Tasks that a CPU may have waiting: results are passed on in order, so that while one task is slow the others
# go on only as far as this.
TASKS_A_CPU = 4
ANSWERING_S = 10  # how long the address may take to accept a connection
RETRIES = 3
JOINING_S = 30  # and to let this process join; without a limit Ray would try for minutes
LOOKING_S = 120  # how long every node may take to start a first process
# Ray ends a process that has had no head node for 60 s, without a message and before anything is cleaned up.
# So many failed connections, of 5 s at most and 5 s apart, come before that; one may be a restart.
HEAD_TRIES, HEAD_TRY_S = 3, 5
# Nothing of Ray's is to be sent anywhere, or to be written between the lines of our own.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class _Head:
    """Watches the head node of the cluster that this process has joined."""

    def __init__(self) -> None:
        self._missed, self._next = 0, 0.0

    def is_gone(self) -> bool:
        """Return whether the last few connections to the head node failed."""
        import ray

        if time.monotonic() >= self._next:
            try:
                _connect(ray.get_runtime_context().gcs_address, HEAD_TRY_S)
                self._missed = 0
            except OSError:
                self._missed += 1
            self._next = time.monotonic() + HEAD_TRY_S
        return self._missed >= HEAD_TRIES


class Node(NamedTuple):
    """A machine of a cluster: its Ray `name`, its `host`, and the CPUs and GPUs it offers."""

    name: str
    host: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Cluster:
    """A cluster this process has joined.

    Attributes:
        address: as it was asked for.
    """

    address: str
    _head: _Head = field(default_factory=_Head, init=False, repr=False, compare=False)

    @property
    def nodes(self) -> list[Node]:
        """The nodes that are there now and offer CPUs or GPUs."""
        import ray

        found = [
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                int(node["Resources"].get("CPU", 0)),
                int(node["Resources"].get("GPU", 0)),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]
        return [node for node in found if node.cpus]

    def check_shared(self, folder: Path) -> None:
        """Reject a folder on a disk that not every node sees; it is made where it is missing.

        Raises:
            RunError: a node sees another folder of that name, or none.
            OutputError: it cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".seen-by-all-") as mark:
                self.check_sees(folder, Path(mark.name))
        except OSError as err:
            raise OutputError(f"Could not write to {folder}: {err.strerror or err}.") from err

    def check_sees(self, folder: Path, file: Path) -> None:
        """Reject a folder on a disk that not every node sees, going by a file in it.

        Raises:
            RunError: a node does not see the file.
        """
        for node, is_there in self._asked(os.path.exists, str(file)):
            if not is_there:
                raise RunError(
                    f"The node {node.host} of the cluster does not see {folder}. Put it on a disk that all "
                    "nodes share."
                )

    def check_reads(self, url: str, name: str) -> None:
        """Reject a folder in storage that not every node can read, going by the file `name` in it.

        Raises:
            StorageError: a node has no credentials for it, or does not reach it.
        """

        def failure_there(url: str) -> str | None:
            from autoencode.errors import AutoencodeError
            from autoencode.storage import RemoteFolder

            try:
                RemoteFolder(url).stamp(name)
            except AutoencodeError as err:
                return str(err)
            return None

        for node, failure in self._asked(failure_there, url):
            if failure:
                raise StorageError(
                    f"The node {node.host} of the cluster cannot read {url}. {failure} On a node, they are "
                    "those of its `ray start`."
                )

    def check_package(self) -> None:
        """Reject nodes without this version of the package.

        Raises:
            RunError: there is one, or no node at all.
        """
        if not self.nodes:
            raise RunError(f"No node of the cluster at {self.address} offers a CPU.")

        def version_there(_: None) -> str | None:  # in here, it is sent whole: a node may lack this module
            try:
                from autoencode.errors import VERSION
            except ImportError:
                return None
            return VERSION

        for node, version in self._asked(version_there, None):
            if version != VERSION:
                has = f"autoencode {version}" if version else "no package autoencode"
                raise RunError(
                    f"The node {node.host} of the cluster has {has}, and this machine {VERSION}. Install the "
                    "same on every node, and start its Ray there."
                )

    def check_head(self) -> None:
        """Raise an error if the head node is gone; cheap enough to be called often.

        Raises:
            RunError: the head node has not accepted a connection for some 15 s.
        """
        if self._head.is_gone():
            raise RunError(f"The head node of the cluster at {self.address} is gone.")

    def result(self, reference: ObjectRef[Any]) -> Any:  # noqa: ANN401
        """Wait for the result of a task or of a method of an actor, and return it.

        Raises:
            RunError: the head node is gone.
        """
        import ray

        while not ray.wait([reference], timeout=HEAD_TRY_S)[0]:
            self.check_head()
        return ray.get(reference)

    def run(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Call a function on items in processes of the nodes, one for each CPU.

        Items that were with a process or node that is lost go to others, three times at most.

        Args:
            function: sent to each process once, which keeps it.
            items: taken from the iterator as the nodes need them.

        Yields:
            The results, in the order of the items.

        Raises:
            AutoencodeError: the function raised it.
            RunError: the function raised another error, or the cluster failed.
        """
        import ray

        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_called)
        held = [ray.put(function)]  # in a list, which Ray passes on as it is: it would fetch a bare reference
        most = TASKS_A_CPU * sum(node.cpus for node in self.nodes)
        waiting: deque[ObjectRef[Any]] = deque()
        try:
            for item in items:
                waiting.append(task.remote(held, item))
                if len(waiting) >= most:
                    yield self.result(waiting.popleft())
            while waiting:
                yield self.result(waiting.popleft())
        except ray.exceptions.RayError as err:
            cause = getattr(err, "cause", None)  # of an error that the function raised
            if isinstance(cause, AutoencodeError):
                raise cause from err
            failed = f"{type(cause).__name__}: {cause}" if cause else brief(err)
            raise RunError(f"The cluster could not do the work: {failed}") from err
        finally:
            for reference in waiting:
                ray.cancel(reference)

    def _asked(self, question: Any, argument: object) -> Iterator[tuple[Node, Any]]:  # noqa: ANN401
        """Call a function on each node; gives each with its answer."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = ray.remote(num_cpus=0, max_retries=0)(question)
        nodes = self.nodes
        answers: list[ObjectRef[Any]] = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.name, soft=False)).remote(
                argument
            )
            for node in nodes
        ]
        for node, answer in zip(nodes, answers, strict=True):
            try:
                yield node, ray.get(answer, timeout=LOOKING_S)
            except ray.exceptions.RayError as err:
                raise RunError(f"The node {node.host} of the cluster does not answer: {brief(err)}") from err


_kept: dict[str, Any] = {}  # in a process of a node: the function it was given last, by its reference


def _called(held: list[ObjectRef[Any]], item: Any) -> Any:  # noqa: ANN401
    """Call the function behind the reference `held`; a model in it is unpickled once, not for each item."""
    import ray

    [reference] = held
    key = reference.hex()
    if key not in _kept:
        _kept.clear()
        _kept[key] = ray.get(reference)
    return _kept[key](item)


@contextlib.contextmanager
def joined_cluster(address: str | None, purpose: str) -> Iterator[Cluster | None]:
    """Join the cluster at an address, such as "10.0.0.1:6379", and leave it in the end.

    This machine must be a node of it; "auto" is the cluster it is a node of. One that this process has
    joined already is used, and not left. Without an address there is none, and nothing is done.

    Raises:
        ConfigError: what is given is no such address.
        MissingExtraError: the optional part `ray` is not installed.
        RunError: no cluster answers there, or it cannot be used from here.
    """
    if address is None:
        yield None
        return
    _check_answers(address)
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.train
    except ImportError as err:
        raise MissingExtraError("ray", purpose) from err
    if ray.is_initialized():
        yield Cluster(address)
        return
    try:
        _join(address)
        cluster = Cluster(address)
        cluster.check_package()
        yield cluster
    finally:
        ray.shutdown()


def brief(err: BaseException) -> str:
    """Return the first line of a message of Ray's that says something."""
    lines = [line.strip() for line in str(err).splitlines()]
    return next((line for line in lines if line), type(err).__name__).rstrip(".:") + "."


def _check_answers(address: str) -> None:
    """Reject an address that is none of a cluster, or that nothing listens at."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
        raise ConfigError(
            f"{address!r} is no address of a Ray cluster. Give HOST:PORT as `ray start` said it, or auto, "
            "on a machine that is a node of it."
        )
    try:
        _connect(address, ANSWERING_S)
    except OSError as err:
        raise RunError(
            f"No Ray cluster answers at {address}: {err.strerror or err}. Start one with `ray start --head` "
            "and give the address it says."
        ) from err


def _connect(address: str, seconds: float) -> None:
    """Raise OSError unless HOST:PORT accepts a connection within so many seconds."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), seconds).close()


def _join(address: str) -> None:
    """Join, in a thread: one that gets no answer must not keep us, and signals are ours to handle."""
    import ray

    failures: list[BaseException] = []

    def join() -> None:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
        except BaseException as err:
            failures.append(err)

    # Reports of lost processes are printed among our lines even with log_to_driver=False. Ray 2.60 has no
    # public option against that: its driver always starts the listener that prints them with this function.
    with contextlib.suppress(AttributeError):
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    thread = threading.Thread(target=join, daemon=True)
    # The processes of Ray import from this working directory before all else, so it is not the user's.
    with contextlib.chdir("/"), _silenced_stderr():
        thread.start()
        thread.join(JOINING_S)
    if thread.is_alive():
        raise RunError(
            f"What answers at {address} is no Ray cluster, or did not let this machine join in {JOINING_S} s."
        )
    if failures:
        text = " ".join(str(failures[0]).split())
        raise RunError(f"Could not join the Ray cluster at {address}: {text}") from failures[0]


@contextlib.contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Let nothing be written to the error stream, by compiled code neither."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
