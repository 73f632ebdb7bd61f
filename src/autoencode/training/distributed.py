"""Several processes train one model: equal weights, a local batch each, gradients summed over all of them.

torch.distributed carries everything: gradients on a GPU through NCCL, everything on a CPU and the small
values that steer the loop (sums of losses, whether to stop) through gloo. Three parts are ours:

- Gradients are summed in one all-reduce after the backward pass. DistributedDataParallel overlaps the two but
  averages over processes, so a batch that does not divide evenly, or leaves a process without images, would
  have to be weighted around it. One sum is the exact mean over the batch.
- Batch normalisation over the images of all processes: torch's SyncBatchNorm has no CPU version, and its
  mean over processes assumes that each has images.
- The processes part only after the last has read what it needs, and an error that ends one of them is raised
  in the others with its message: torch only reports a lost connection.

Shapes: B images of this process, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from autoencode.errors import AutoencodeError, ConfigError, RunError, restored
from autoencode.training.process import Ranks

Value = TypeVar("Value")

_FAILURE = "failure"
JOINING = timedelta(minutes=5)  # how long the processes look for each other
# A process that is lost is noticed by its closed connection; process 0 may pack a large folder meanwhile.
WAITING = timedelta(days=7)
REPORTING_S = 2  # how long the error message of a lost process may take to arrive
LEAVING_S = 30  # how long process 0, which holds the store, waits for the others to leave

_joins = itertools.count()


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them; a single process sends nothing.

    Every process must call every method, in the same order.

    Raises:
        AutoencodeError: another process failed (raised by any method); the message is that of its error.
    """

    ranks: Ranks = field(default_factory=Ranks)
    # The key-value store of all processes; Any, because torch exports its type only in some builds.
    store: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Processes:
        """Return itself: the copy of a model belongs to the same processes."""
        return self

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.ranks.world_size

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes and reports."""
        return self.ranks.is_first

    def device(self, name: str) -> str:
        """Return the device of this process: with CUDA, the GPU of its local rank.

        Raises:
            ConfigError: `name` is a device that several processes cannot share.
        """
        if self.world_size == 1 or name == "cpu":
            return name
        if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
            return f"cuda:{self.ranks.local_rank}"
        if name == "auto":
            return "cpu"
        raise ConfigError(f"Several processes cannot share the device {name!r}. Use auto, cpu or cuda.")

    def total(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place, and return it."""
        if self.world_size > 1:
            self._together(lambda: dist.all_reduce(values))
        return values

    def any_true(self, decision: bool) -> bool:
        """Whether `decision` is true in any process."""
        return bool(self.total(torch.tensor(int(decision))))

    def gather(self, value: Value) -> list[Value]:
        """Return the value of every process, in the order of their ranks."""
        values: list[Value] = [value] * self.world_size
        if self.world_size > 1:
            self._together(lambda: dist.all_gather_object(values, value))
        return values

    def wait(self) -> None:
        """Return once every process has called this."""
        self.gather(None)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of process 0 to every process, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                self._together(lambda tensor=tensor: dist.broadcast(tensor, 0))  # type: ignore[misc]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of the parameters over the processes, in place."""
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        summed = self.total(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(summed, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _together(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as err:
            raise _failure(self.store) from err


ALONE = Processes()


def synchronous(processes: Processes, values: Tensor) -> Tensor:
    """Sum values over the processes; the backward pass sums their gradients likewise."""
    summed: Tensor = _Sum.apply(values, processes)  # type: ignore[no-untyped-call]
    return summed


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes  # type: ignore[attr-defined]
        return processes.total(values.clone())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        processes: Processes = ctx.processes  # type: ignore[attr-defined]
        return processes.total(gradients[0].clone()), None


@contextlib.contextmanager
def process_group(ranks: Ranks) -> Iterator[Processes]:
    """Join the process group of a run, if there are several processes, and leave it at the end.

    An AutoencodeError that ends one process is raised in the others as well.

    Raises:
        RunError: the processes did not find each other.
    """
    if ranks.world_size == 1:
        yield Processes(ranks)
        return
    join_id = f"autoencode/{ranks.restarts}/{next(_joins)}"
    try:
        address = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        store = PrefixStore(join_id, _common_store(ranks, *address))
        # NCCL cannot sum CPU tensors, and gloo is slow on GPUs.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=WAITING
        )
    except (RuntimeError, ValueError) as err:
        raise RunError(
            f"The {ranks.world_size} processes did not meet: {str(err).splitlines()[0].rstrip('.')}. "
            "If the port is taken, give another one (torchrun --master-port)."
        ) from err
    processes, patience_s = Processes(ranks, store), REPORTING_S
    try:
        yield processes
        processes.wait()
        patience_s = LEAVING_S
    except AutoencodeError as err:
        with contextlib.suppress(RuntimeError):  # process 0, which keeps the store, may be the one lost
            store.set(_FAILURE, json.dumps([type(err).__name__, str(err)]))
        raise
    finally:
        dist.destroy_process_group()
        _leave(store, ranks, patience_s)


@functools.cache
def _common_store(ranks: Ranks, _host: str, _port: str) -> Any:  # noqa: ANN401 - see Processes.store
    """The key-value store at an address, kept open so that no later join finds it closing."""
    return next(rendezvous("env://", timeout=JOINING))[0]


def _leave(store: Any, ranks: Ranks, patience_s: float) -> None:  # noqa: ANN401 - see Processes.store
    """Sign off; process 0, whose end may close the store, waits until the others have signed off."""
    with contextlib.suppress(RuntimeError):
        store.set(f"left/{ranks.rank}", "")
        if ranks.is_first:
            _has(store, [f"left/{rank}" for rank in range(ranks.world_size)], patience_s)


def _has(store: Any, keys: list[str], patience_s: float) -> bool:  # noqa: ANN401 - see Processes.store
    """Whether the store has all `keys` within that time."""
    # Polled, because the store's own `wait` writes to stderr when it times out.
    deadline = time.monotonic() + patience_s
    while not store.check(keys):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _failure(store: Any) -> AutoencodeError:  # noqa: ANN401 - see Processes.store
    """The error that ended another process, with its message if it left one."""
    with contextlib.suppress(RuntimeError, ValueError):
        if _has(store, [_FAILURE], REPORTING_S):
            name, message = json.loads(store.get(_FAILURE))
            return restored(name, message)
    return RunError(
        "Another process of this run has ended. The state of the last checkpoint is kept: run it again "
        "with --resume."
    )


class SharedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the whole batch, whose images are spread over processes.

    Args:
        original: the layer to replace; its parameters and buffers become those of this one.
        processes: the processes that hold the other images.

    Attributes:
        counted: whether the images of this process count in the batch (see `LocalBatch`).
    """

    def __init__(self, original: nn.BatchNorm2d, processes: Processes) -> None:
        super().__init__(original.num_features, original.eps, original.momentum)
        self.weight, self.bias = original.weight, original.bias
        self.load_state_dict(original.state_dict())
        self.processes, self.counted = processes, True

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        if not self.training:
            return super().forward(features)
        # Two passes: the difference of a sum of squares and a squared sum would cancel in fp32.
        values = features.float()
        number = values.new_tensor([values[:, 0].numel()])
        sums = synchronous(self.processes, self.counted * torch.cat([values.sum((0, 2, 3)), number]))
        number = sums[-1].detach()
        mean = sums[:-1] / number
        centred = values - mean[:, None, None]
        squares = synchronous(self.processes, self.counted * centred.square().sum((0, 2, 3)))
        variance = squares / number
        self._follow(mean.detach(), squares.detach() / (number - 1))
        factors = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * factors[:, None, None] + self.bias[:, None, None]).to(features.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics with those of this batch."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


def share_batch_norms(module: nn.Module, processes: Processes) -> None:
    """Replace every batch normalisation in `module` by one over all processes, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, SharedBatchNorm(child, processes))
        else:
            share_batch_norms(child, processes)


def set_counted(module: nn.Module, counted: bool) -> None:
    """Set whether the next images count in the batch or stand in for an empty local batch."""
    for child in module.modules():
        if isinstance(child, SharedBatchNorm):
            child.counted = counted
