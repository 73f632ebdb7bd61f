"""Training on a Ray cluster: Ray Train starts the processes, and starts them again when one is lost.

Each process sets the environment variables of torchrun and calls `train`; nothing about training is here. The
state of a run is in its folder, on a disk that all nodes share. Two parts are ours:

- Ray Train's trainer without a backend, not TorchTrainer: that one makes a process group of its own, without
  the store through which the error of a lost process reaches the others (`distributed`).
- Progress goes through an actor, the `Mailbox`: `ray.train.report` waits for all processes at every step, and
  has no way to ask the processes to stop after the current step.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from autoencode.cluster import Cluster, Node, brief, joined_cluster
from autoencode.data.manifest import SETTINGS_NAME
from autoencode.data.pack import local_folder
from autoencode.errors import AutoencodeError, ConfigError, RunError, restored
from autoencode.models.model_file import MODEL_NAME
from autoencode.storage import is_url
from autoencode.training.callbacks import Callback, calling, telling_the_end
from autoencode.training.process import interrupt, interrupts, own_ranks
from autoencode.training.run import is_run, read_metrics, read_run
from autoencode.training.train import Run, train

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.training.progress import TrainProgress

RESTARTS = 3
REPORTING_S = 0.2  # between two messages about steps: a step may take less time than a message
POLL_S = 0.2
# One start was not enough: a process killed at the wrong moment makes the next start fail, too.
STARTS, STARTING_S = 3, 20  # seconds that the cluster may take at each to make room for the processes
_STOPPED = "stopped"


class Resources(NamedTuple):
    """Resources of a cluster that a run takes: `workers` processes, each with `cpus`, and a GPU or none."""

    workers: int
    cpus: int
    gpu: bool


def train_on_ray(
    address: str,
    source: str | Path,
    out: str | Path,
    *,
    workers: int | None = None,
    device: str = "auto",
    progress: Callable[[TrainProgress], None] | None = None,
    callbacks: Sequence[Callback] = (),
    packing_progress: Progress | None = None,
    restarting: Callable[[int], None] | None = None,
    **settings: Any,  # noqa: ANN401
) -> Run:
    """Train as `train` does, in processes on the nodes of a Ray cluster.

    The package, `source` and `out` must be the same on every node: on a shared disk, or for a pack also in
    storage. When a process is lost, all of them continue from the last checkpoint, at most three times.

    Args:
        address: the cluster's address; this machine must be one of its nodes. See `joined_cluster`.
        source, out: see `train`.
        workers: number of processes. By default one for each GPU or, in a cluster without GPUs, for each
            node. The CPUs are divided among them.
        device: "auto" takes GPUs if the cluster has some, "cuda" requires them, "cpu" takes none.
        progress, callbacks, packing_progress: see `train`; called in this process.
        restarting: called with the number of restarts so far, when all begin again.
        **settings: the other arguments of `train`.

    Raises:
        RunError: no cluster answers, a node does not see `source` or `out`, or too many processes were lost.
        ConfigError: the cluster has too few GPUs or CPUs for that many processes.
        MissingExtraError: the optional part `ray` is not installed.
        KeyboardInterrupt: on Ctrl-C, after the state was saved; on a second one, at once.
        AutoencodeError: `train` raised it.
    """
    if own_ranks().world_size > 1:
        raise ConfigError("Ray starts the processes itself: start this one alone, without torchrun.")
    out = Path(out).absolute()
    if not is_url(source):
        source = Path(source).absolute()
    with joined_cluster(address, "Training on a cluster") as cluster:
        assert cluster is not None
        resources = resources_for(workers, cluster.nodes, device)
        cluster.check_shared(out.parent)
        if is_url(source):
            cluster.check_reads(str(source), SETTINGS_NAME)
        arguments = settings | {"source": str(source), "out": str(out), "device": device}
        told = calling(progress, callbacks) if progress or callbacks else None
        called = {"progress": told, "packing": packing_progress, "restarts": restarting}
        given = {kind: callback for kind, callback in called.items() if callback is not None}
        with telling_the_end(callbacks, lambda: _run_in(out) if is_run(out) else None):
            _fit(cluster, resources, arguments, given)
        return _run_in(out)


def _run_in(out: Path) -> Run:
    return Run(out, out / MODEL_NAME, local_folder(read_run(out).pack), read_metrics(out))


def resources_for(workers: int | None, nodes: list[Node], device: str = "auto") -> Resources:
    """Divide the nodes of a cluster among processes.

    Raises:
        ConfigError: there are fewer GPUs or CPUs than processes.
    """
    gpus = sum(node.gpus for node in nodes)
    if device != "cpu" and gpus:
        resources, kind, available = Resources(workers or gpus, 1, gpu=True), "GPU", gpus
    else:
        count = workers or len(nodes)
        most = max((node.cpus for node in nodes), default=0)
        # The most CPUs for each that leave room for all of them: a process does not span nodes.
        fitting = [cpus for cpus in range(1, most + 1) if sum(n.cpus // cpus for n in nodes) >= count]
        resources = Resources(count, max(fitting, default=1), gpu=False)
        kind, available = "CPU", sum(n.cpus for n in nodes)
    if resources.workers > available:
        raise ConfigError(
            f"{resources.workers} processes need a {kind} each, and the cluster has {available}. "
            "Ask for fewer."
        )
    return resources


def _fit(
    cluster: Cluster,
    resources: Resources,
    arguments: dict[str, Any],
    callbacks: dict[str, Callable[..., None]],
) -> None:
    """Train, and call the callbacks with the messages of the first process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On this node: messages of a mailbox on another one would be lost with that node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()
    config = {"mailbox": mailbox, "arguments": arguments}
    with _fitting(resources, config) as (thread, results), interrupts() as interrupted:
        is_last = False
        while not is_last:
            thread.join(POLL_S)
            is_last = not thread.is_alive()
            try:
                cluster.check_head()
                if interrupted.is_set():
                    cluster.result(mailbox.stop.remote())
                messages = cluster.result(mailbox.take.remote())
            except ray.exceptions.RayError as err:
                raise RunError(f"The cluster at {cluster.address} is gone: {brief(err)}") from err
            for kind, *content in messages:
                if kind in callbacks:
                    callbacks[kind](*content)
    [result] = results
    if isinstance(result, BaseException):
        raise _explained(result, resources, cluster) from result
    if result == _STOPPED:
        raise KeyboardInterrupt
    if result is not None:
        raise restored(*result)


@contextlib.contextmanager
def _fitting(resources: Resources, config: dict[str, Any]) -> Iterator[tuple[threading.Thread, list[Any]]]:
    """Run Ray Train in a thread; yield the thread, and a list that holds its result or error at the end."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(STARTING_S)
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    # The watcher is another process, and would announce only what the health check finds as well.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    results: list[Any] = []

    # Ray Train insists on a folder for its own notes, which nobody reads.
    with tempfile.TemporaryDirectory(prefix="autoencode-ray-", ignore_cleanup_errors=True) as notes:

        def fit() -> None:
            try:
                trainer = DataParallelTrainer(
                    work,
                    train_loop_config=config,
                    scaling_config=ScalingConfig(
                        num_workers=resources.workers,
                        use_gpu=resources.gpu,
                        resources_per_worker={"CPU": resources.cpus} | ({"GPU": 1} if resources.gpu else {}),
                    ),
                    run_config=RunConfig(
                        name="run",
                        storage_path=notes,
                        failure_config=FailureConfig(
                            max_failures=RESTARTS, controller_failure_limit=STARTS - 1
                        ),
                        logging_config=LoggingConfig(log_level="CRITICAL"),
                    ),
                )
                results.append(trainer.fit().return_value)
            except BaseException as err:
                results.append(err)

        # In a thread, because `fit` returns only at the end, and this thread has to pass messages on.
        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        yield thread, results


def _explained(err: BaseException, resources: Resources, cluster: Cluster) -> AutoencodeError:
    """Return the error that ended Ray Train as one of ours, with advice."""
    from ray.train import WorkerGroupError

    kept = "The state of the last checkpoint is kept: run it again with --resume"
    if isinstance(err, WorkerGroupError):
        rank, cause = next(iter(err.worker_failures.items()))
        return RunError(
            f"Processes were lost {RESTARTS + 1} times, last process {rank}: {brief(cause)} {kept}."
        )
    nodes = cluster.nodes
    offers = f"nodes: {len(nodes)}, CPUs: {sum(n.cpus for n in nodes)}, GPUs: {sum(n.gpus for n in nodes)}"
    cause = getattr(err, "controller_failure", err)
    if "Timeout" not in type(cause).__name__:
        return RunError(f"Ray Train could not start {resources.workers} processes: {brief(cause)} {kept}.")
    needs = f"{resources.cpus} CPUs{' and a GPU' if resources.gpu else ''}"
    return RunError(
        f"The cluster had no room within {STARTS * STARTING_S} s for {resources.workers} processes with "
        f"{needs} each. It has now {offers}; a node may have left, or others use it. {kept}, or with other "
        "--workers."
    )


class Mailbox:
    """Messages from the first process to the driver, and the driver's request to stop; a Ray actor."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, ...]] = []
        self.starts, self.stopping = 0, False

    def start(self) -> int:
        """Count a start of all processes; return the number of starts before it."""
        if self.starts:
            self.messages.append(("restarts", self.starts))
        self.starts += 1
        return self.starts - 1

    def put(self, *message: Any) -> bool:  # noqa: ANN401
        """Add a message; return whether the processes are to stop."""
        self.messages.append(message)
        return self.stopping

    def take(self) -> list[tuple[Any, ...]]:
        """Return the messages since the last call."""
        taken, self.messages = self.messages, []
        return taken

    def stop(self) -> None:
        """Ask the processes to save their state and stop."""
        self.stopping = True


class Reporter:
    """Sends the progress of the first process to the mailbox, without waiting for it."""

    def __init__(self, mailbox: Any) -> None:  # noqa: ANN401
        self.mailbox, self.reply, self.next = mailbox, None, 0.0

    def progress(self, at: TrainProgress) -> None:
        """Report a step; if the driver asks for it, stop after the current step."""
        is_due = at.record is not None or at.warning is not None
        if self._send("progress", at, is_due=is_due):
            interrupt()

    def packing(self, done: int, total: int) -> None:
        """Report packed files; stop at once if the driver asks for it."""
        if self._send("packing", done, total, is_due=done == total):
            raise KeyboardInterrupt

    def wait(self) -> None:
        """Return once the last message has arrived."""
        import ray

        if self.reply:
            ray.get(self.reply)

    def _send(self, *message: Any, is_due: bool) -> bool:  # noqa: ANN401
        """Send a message if it is due or some time has passed; return whether to stop, by the last reply."""
        import ray

        if not is_due and time.monotonic() < self.next:
            return False
        self.next = time.monotonic() + REPORTING_S
        stop = bool(self.reply and ray.wait([self.reply], timeout=0)[0] and ray.get(self.reply))
        self.reply = self.mailbox.put.remote(*message)
        return stop


def work(config: dict[str, Any]) -> tuple[str, str] | str | None:
    """Train in this process of Ray Train.

    Args:
        config: the "mailbox", and the "arguments" of `train`.

    Returns:
        None; `_STOPPED` after Ctrl-C; or the name and message of an AutoencodeError. It is returned and not
        raised, because Ray Train would start the processes again, and the error would come again.
    """
    import ray
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    context, variables = get_context(), None
    if context.get_world_rank() == 0:
        restarts: int = ray.get(config["mailbox"].start.remote())
        host = ray.util.get_node_ip_address()
        variables = {"MASTER_ADDR": host, "MASTER_PORT": _free_port(host)}
        variables["TORCHELASTIC_RESTART_COUNT"] = str(restarts)
    os.environ.update(cast("dict[str, str]", broadcast_from_rank_zero(variables)))
    os.environ["WORLD_SIZE"] = str(context.get_world_size())
    os.environ["RANK"] = str(context.get_world_rank())
    os.environ["LOCAL_RANK"] = "0"  # on a node with several GPUs, Ray shows each process only its own
    reporter = Reporter(config["mailbox"])
    try:
        train(**config["arguments"], progress=reporter.progress, packing_progress=reporter.packing)
        reporter.wait()
    except AutoencodeError as err:
        return type(err).__name__, str(err)
    except KeyboardInterrupt:
        return _STOPPED
    return None


def _free_port(host: str) -> str:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        return str(free.getsockname()[1])
