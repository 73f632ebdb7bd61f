"""Several processes that train one model: equal weights, a local batch each, gradients summed.

Gradients are summed in one all-reduce of all of them after the backward pass. DistributedDataParallel would
send the first while the last are computed, but it takes their mean over the processes: a batch that does not
divide evenly, or leaves a process without images, has to be weighted around it, and batch normalisation
brings collectives of its own in between. One sum is the mean over the batch as it stands.

Small things that steer the loop (sums of losses, whether to stop) travel on the CPU through gloo, gradients
on a GPU through NCCL.

Batch normalisation over the images of all processes; torch's own SyncBatchNorm has no CPU version.

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
from autoencode.training.process import Place

Value = TypeVar("Value")

_FAILURE = "failure"
MEETING = timedelta(minutes=5)  # how long the processes look for each other
# A process that is lost is noticed by its closed connection; process 0 may pack a large folder meanwhile.
WAITING = timedelta(days=7)
REPORTING_S = 2  # how long a lost process's own words may take to arrive
PARTING_S = 30  # how long process 0, which keeps the store, waits for the others to leave it

_meetings = itertools.count()


@dataclass(frozen=True)
class Processes:
    """All the processes of a run, seen from one of them; alone, nothing is sent.

    Every method must be called by all of them, in the same order.

    Raises:
        AutoencodeError: of any method: another process has failed, for the reason it gave.
    """

    place: Place = field(default_factory=Place)
    store: Any = (
        None  # what the processes keep in common; torch exports the type only where it was built with it
    )

    def __deepcopy__(self, memo: dict[int, Any]) -> Processes:
        """Return itself: a copy of a model is spread over the same processes."""
        return self

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.place.first

    def device(self, name: str) -> str:
        """Return the device of this process where `name` may mean several: one GPU each.

        Raises:
            ConfigError: a kind of device that several processes cannot use.
        """
        if self.place.count == 1 or name == "cpu":
            return name
        if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
            return f"cuda:{self.place.local_rank}"
        if name == "auto":
            return "cpu"
        raise ConfigError(f"Several processes cannot share the device {name!r}. Use auto, cpu or cuda.")

    def total(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place, and return it."""
        if self.place.count > 1:
            self._together(lambda: dist.all_reduce(values))
        return values

    def any(self, decision: bool) -> bool:
        """Whether any process has decided so."""
        return bool(self.total(torch.tensor(int(decision))))

    def gather(self, value: Value) -> list[Value]:
        """Return the value of every process, in the order of their ranks."""
        values: list[Value] = [value] * self.place.count
        if self.place.count > 1:
            self._together(lambda: dist.all_gather_object(values, value))
        return values

    def wait(self) -> None:
        """Return once every process has come here."""
        self.gather(None)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values of process 0, in place."""
        if self.place.count > 1:
            for tensor in tensors:
                self._together(lambda tensor=tensor: dist.broadcast(tensor, 0))  # type: ignore[misc]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of the parameters over the processes, in place."""
        if self.place.count == 1:
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
    """Sum values over the processes; the gradient is summed as well."""
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
def joined(place: Place) -> Iterator[Processes]:
    """Meet the other processes, if there are any, and part in the end.

    An error of ours that ends one of them is passed on: process 0 raises it, too.

    Raises:
        RunError: the processes do not find each other.
    """
    if place.count == 1:
        yield Processes(place)
        return
    meeting = f"autoencode/{place.restarts}/{next(_meetings)}"
    try:
        address = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        store = PrefixStore(meeting, _common_store(place, *address))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=store, rank=place.rank, world_size=place.count, timeout=WAITING
        )
    except (RuntimeError, ValueError) as err:
        raise RunError(
            f"The {place.count} processes did not meet: {str(err).splitlines()[0].rstrip('.')}. If the port "
            "is taken, give another one (torchrun --master-port)."
        ) from err
    processes, patience_s = Processes(place, store), REPORTING_S
    try:
        yield processes
        processes.wait()
        patience_s = PARTING_S
    except AutoencodeError as err:
        with contextlib.suppress(RuntimeError):  # process 0, which keeps the store, may be the one lost
            store.set(_FAILURE, json.dumps([type(err).__name__, str(err)]))
        raise
    finally:
        dist.destroy_process_group()
        _leave(store, place, patience_s)


@functools.cache
def _common_store(place: Place, _host: str, _port: str) -> Any:  # noqa: ANN401 - see Processes.store
    """The store of all processes at that address, kept: no one can meet the end of it in a later meeting."""
    return next(rendezvous("env://", timeout=MEETING))[0]


def _leave(store: Any, place: Place, patience_s: float) -> None:  # noqa: ANN401 - see Processes.store
    """Sign off; the first process, with which the store may end, waits for the others to do so."""
    with contextlib.suppress(RuntimeError):
        store.set(f"left/{place.rank}", "")
        if place.first:
            _has(store, [f"left/{rank}" for rank in range(place.count)], patience_s)


def _has(store: Any, keys: list[str], patience_s: float) -> bool:  # noqa: ANN401 - see Processes.store
    """Whether the store has all `keys` within that time; its own `wait` writes to stderr when it has not."""
    deadline = time.monotonic() + patience_s
    while not store.check(keys):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _failure(store: Any) -> AutoencodeError:  # noqa: ANN401 - see Processes.store
    """What ended another process: its own words, if it had any."""
    with contextlib.suppress(RuntimeError, ValueError):
        if _has(store, [_FAILURE], REPORTING_S):
            name, message = json.loads(store.get(_FAILURE))
            return restored(name, message)
    return RunError(
        "Another process of this run has ended. The state of the last checkpoint is kept: run it again "
        "with --resume."
    )


class SharedBatchNorm(nn.BatchNorm2d):
    """As `nn.BatchNorm2d` of the whole batch, whose images are spread over processes.

    The mean is summed first and the squared distances from it second: their sums would cancel in fp32.

    Args:
        original: the layer to stand for; its parameters and buffers become those of this one.
        processes: who has the other images.

    Attributes:
        counted: whether the images of this process are of the batch (see `loader.LocalBatch`).
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
        """Move the running statistics towards those of this batch."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


def share_batch_norms(module: nn.Module, processes: Processes) -> None:
    """Let every batch normalisation in `module` see the images of all processes, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, SharedBatchNorm(child, processes))
        else:
            share_batch_norms(child, processes)


def count_images(module: nn.Module, counted: bool) -> None:
    """Say whether the images that come next are of the batch, or stand in for none."""
    for child in module.modules():
        if isinstance(child, SharedBatchNorm):
            child.counted = counted
