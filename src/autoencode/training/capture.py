"""A training step recorded as a CUDA graph, and replayed: the GPU then never waits for Python.

A step of a small network is two hundred kernels of a few microseconds, and Python takes longer to start one
than the GPU to run it. A graph starts them all at once, and computes what they compute, to the bit. What
differs from step to step must be in tensors that stay where they are: images, noise, the weight of the KL and
the learning rate. Random numbers are drawn before the graph, so it holds none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

# Steps before the recording: cuDNN chooses its kernels, and the optimiser makes its moments.
WARM_UP_STEPS = 3

Work = Callable[[Sequence[Tensor]], Tensor]


class Graph(Protocol):
    """What can record work once, without doing it, and repeat it."""

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Record the work and return the tensor that its result will be in."""

    def replay(self) -> None:
        """Do the work."""


class CapturedStep:
    """Work that is recorded after a few calls, and replayed from then on.

    Args:
        work: computes tensors from inputs and changes others, such as weights, in place. It must not read a
            value, and must do the same at every call.
        device: a GPU of CUDA.
        graph: makes the recording; another one in tests.
    """

    def __init__(self, work: Work, device: torch.device, graph: Callable[[], Graph] | None = None) -> None:
        self._work, self._device = work, device
        self._graph: Graph = (graph or CudaGraph)()
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._result: Tensor | None = None

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """Do the work on inputs of the shapes of all calls before; return its result."""
        self._calls += 1
        if self._calls <= WARM_UP_STEPS:
            return _on_another_stream(lambda: self._work(inputs), self._device)
        if self._result is None:
            self._inputs = [one.clone() for one in inputs]  # keeps the memory format
            self._result = self._graph.record(lambda: self._work(self._inputs))
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        # A copy, as the next replay writes the same memory.
        return self._result.clone()


class CudaGraph:
    """A CUDA graph."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Record the work; see `Graph`."""
        # Other threads, such as the one that reads images, may allocate memory meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            return work()

    def replay(self) -> None:
        """Do the work; see `Graph`."""
        self._graph.replay()


def _on_another_stream(work: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Do work where the recording will: nothing may then be left over from the default stream."""
    if device.type != "cuda":
        return work()
    other = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream(device)
    other.wait_stream(current)
    with torch.cuda.stream(other):
        result = work()
    current.wait_stream(other)
    result.record_stream(current)
    return result
