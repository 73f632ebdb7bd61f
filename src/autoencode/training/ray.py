"""Training on a Ray cluster: Ray Train starts the processes that torchrun starts elsewhere, again if lost.

Each of its workers sets what torchrun sets and calls `train`; nothing about training is here. The state of a
run is in its folder, on a disk that all nodes share, and Ray Train keeps none of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from autoencode.cluster import Cluster, Node, brief, joined_cluster
from autoencode.data.manifest import SETTINGS_NAME
from autoencode.data.pack import local_folder
from autoencode.errors import AutoencodeError, ConfigError, RunError, restored
from autoencode.models.model_file import MODEL_NAME
from autoencode.storage import is_url
from autoencode.training.process import interrupt, interrupts, own_ranks
from autoencode.training.run import read_metrics, read_run
from autoencode.training.train import Run, train

if TYPE_CHECKING:
    from autoencode.training.progress import Progress

RESTARTS = 3
TELLING_S = 0.2  # between two messages about steps
POLL_S = 0.2
STARTING_S = 20  # how long the cluster may take to make room for the processes, each of so many times:
STARTS = 3
_STOPPED = "stopped"


class Room(NamedTuple):
    """What a run takes of a cluster: `workers` processes, each with `cpus`, and a GPU or none."""

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
    progress: Callable[[Progress], None] | None = None,
    packing_progress: Callable[[int, int], None] | None = None,
    restarting: Callable[[int], None] | None = None,
    **settings: Any,  # noqa: ANN401
) -> Run:
    """Train as `train` does, in processes on the nodes of a Ray cluster.

    The package, `source` and `out` must be the same on every node: a disk that all share, or for a pack also
    storage. Where a process is lost, all of them go on from the last checkpoint, at most three times.

    Args:
        address: of the cluster; this machine must be a node of it. See `joined_cluster`.
        source, out: see `train`.
        workers: processes. By default one for each GPU or, in a cluster without, for each node. The CPUs are
            divided among them.
        device: "auto" takes GPUs where the cluster has some, "cuda" insists on them, "cpu" takes none.
        progress, packing_progress: see `train`; called in this process.
        restarting: called with the number of restarts so far, when all begin again.
        **settings: all else that `train` takes.

    Raises:
        RunError: no cluster answers, a node does not see what it must, or too many processes were lost.
        ConfigError: the cluster has no room for so many.
        MissingExtraError: the optional part `ray` is not installed.
        KeyboardInterrupt: on Ctrl-C, after the state was saved; on a second one, at once.
        AutoencodeError: what `train` raises.
    """
    if own_ranks().world_size > 1:
        raise ConfigError("Ray starts the processes itself: start this one alone, without torchrun.")
    out = Path(out).absolute()
    if not is_url(source):
        source = Path(source).absolute()
    with joined_cluster(address, "Training on a cluster") as cluster:
        assert cluster is not None
        room = room_for(workers, cluster.nodes, device)
        cluster.check_shared(out.parent)
        if is_url(source):
            cluster.check_reads(str(source), SETTINGS_NAME)
        asked = settings | {"source": str(source), "out": str(out), "device": device}
        told = {"progress": progress, "packing": packing_progress, "restarts": restarting}
        _fit(cluster, room, asked, {kind: show for kind, show in told.items() if show is not None})
        return Run(out, out / MODEL_NAME, local_folder(read_run(out).pack), read_metrics(out))


def room_for(workers: int | None, nodes: list[Node], device: str = "auto") -> Room:
    """Divide the nodes of a cluster among processes.

    Raises:
        ConfigError: there are fewer GPUs or CPUs than processes.
    """
    gpus = sum(node.gpus for node in nodes)
    if device != "cpu" and gpus:
        room, kind, has = Room(workers or gpus, 1, gpu=True), "GPU", gpus
    else:
        count = workers or len(nodes)
        most = max((node.cpus for node in nodes), default=0)
        # As many each as still leave room for all of them: a process does not span nodes.
        fitting = [cpus for cpus in range(1, most + 1) if sum(n.cpus // cpus for n in nodes) >= count]
        room, kind, has = Room(count, max(fitting, default=1), gpu=False), "CPU", sum(n.cpus for n in nodes)
    if room.workers > has:
        raise ConfigError(
            f"{room.workers} processes need a {kind} each, and the cluster has {has}. Ask for fewer."
        )
    return room


def _fit(cluster: Cluster, room: Room, asked: dict[str, Any], told: dict[str, Callable[..., None]]) -> None:
    """Train, and pass on what the first process tells meanwhile."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(num_cpus=0)(Desk).options(scheduling_strategy=here).remote()
    with _fitting(room, {"desk": desk, "settings": asked}) as (thread, results), interrupts() as interrupted:
        is_last = False
        while not is_last:
            thread.join(POLL_S)
            is_last = not thread.is_alive()
            try:
                if interrupted.is_set():
                    ray.get(desk.stop.remote())
                messages = ray.get(desk.take.remote())
            except ray.exceptions.RayError as err:
                raise RunError(f"The cluster at {cluster.address} is gone: {brief(err)}") from err
            for kind, *what in messages:
                if kind in told:
                    told[kind](*what)
    [result] = results
    if isinstance(result, BaseException):
        raise _explained(result, room, cluster) from result
    if result == _STOPPED:
        raise KeyboardInterrupt
    if result is not None:
        raise restored(*result)


@contextlib.contextmanager
def _fitting(room: Room, asked: dict[str, Any]) -> Iterator[tuple[threading.Thread, list[Any]]]:
    """Let Ray Train do it in a thread; gives it, and the list that will hold what came of it."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(STARTING_S)
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # a process that would announce what we notice
    results: list[Any] = []

    with tempfile.TemporaryDirectory(
        prefix="autoencode-ray-", ignore_cleanup_errors=True
    ) as notes:  # Ray Train's own, read by nobody

        def fit() -> None:
            try:
                trainer = DataParallelTrainer(
                    work,
                    train_loop_config=asked,
                    scaling_config=ScalingConfig(
                        num_workers=room.workers,
                        use_gpu=room.gpu,
                        resources_per_worker={"CPU": room.cpus} | ({"GPU": 1} if room.gpu else {}),
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

        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        yield thread, results


def _explained(err: BaseException, room: Room, cluster: Cluster) -> AutoencodeError:
    """What ended Ray Train, in our words."""
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
        return RunError(f"Ray Train could not start {room.workers} processes: {brief(cause)} {kept}.")
    needs = f"{room.cpus} CPUs{' and a GPU' if room.gpu else ''}"
    return RunError(
        f"The cluster had no room within {STARTS * STARTING_S} s for {room.workers} processes with {needs} "
        f"each. It has now {offers}; a node may have left, or others use it. {kept}, or with other --workers."
    )


class Desk:
    """Where the first process leaves what it has to tell, and hears whether it is to stop; a Ray actor."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, ...]] = []
        self.starts, self.stopping = 0, False

    def start(self) -> int:
        """Note that the processes start; return how often they did before."""
        if self.starts:
            self.messages.append(("restarts", self.starts))
        self.starts += 1
        return self.starts - 1

    def tell(self, *message: Any) -> bool:  # noqa: ANN401
        """Leave a message; return whether to stop."""
        self.messages.append(message)
        return self.stopping

    def take(self) -> list[tuple[Any, ...]]:
        """Return what was left since the last time."""
        taken, self.messages = self.messages, []
        return taken

    def stop(self) -> None:
        """Let the processes stop with their state saved."""
        self.stopping = True


class Teller:
    """Tells the desk how far the first process is, without waiting for it."""

    def __init__(self, desk: Any) -> None:  # noqa: ANN401
        self.desk, self.reply, self.next = desk, None, 0.0

    def tell(self, *message: Any, due: bool) -> bool:  # noqa: ANN401
        """Leave a message if it is `due` or some time has passed; return whether to stop, as last heard."""
        import ray

        if not due and time.monotonic() < self.next:
            return False
        self.next = time.monotonic() + TELLING_S
        stop = bool(self.reply and ray.wait([self.reply], timeout=0)[0] and ray.get(self.reply))
        self.reply = self.desk.tell.remote(*message)
        return stop

    def wait(self) -> None:
        """Return once the last message has arrived."""
        import ray

        if self.reply:
            ray.get(self.reply)

    def progress(self, at: Progress) -> None:
        """Tell of a step; stop after the one at work where that is asked for."""
        due = at.record is not None or at.warning is not None
        if self.tell("progress", at, due=due):
            interrupt()

    def packing(self, done: int, total: int) -> None:
        """Tell of files packed; stop at once where that is asked for."""
        if self.tell("packing", done, total, due=done == total):
            raise KeyboardInterrupt


def work(asked: dict[str, Any]) -> tuple[str, str] | str | None:
    """Train in this process of Ray Train.

    An error of ours would only come back, and is not for Ray Train to try again; it is returned in parts.

    Args:
        asked: the "desk", and the "settings" of `train`.
    """
    import ray
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    context, meeting = get_context(), None
    if context.get_world_rank() == 0:
        restarts: int = ray.get(asked["desk"].start.remote())
        host = ray.util.get_node_ip_address()
        meeting = {"MASTER_ADDR": host, "MASTER_PORT": _free_port(host)}
        meeting["TORCHELASTIC_RESTART_COUNT"] = str(restarts)
    os.environ.update(cast("dict[str, str]", broadcast_from_rank_zero(meeting)))
    os.environ["WORLD_SIZE"] = str(context.get_world_size())
    os.environ["RANK"] = str(context.get_world_rank())
    os.environ["LOCAL_RANK"] = "0"  # of several GPUs, Ray lets each process see its own alone
    teller = Teller(asked["desk"])
    try:
        train(**asked["settings"], progress=teller.progress, packing_progress=teller.packing)
        teller.wait()
    except AutoencodeError as err:
        return type(err).__name__, str(err)
    except KeyboardInterrupt:
        return _STOPPED
    return None


def _free_port(host: str) -> str:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        return str(free.getsockname()[1])
