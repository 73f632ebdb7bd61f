"""Record a training step as a CUDA graph and replay it, so that the GPU never waits for Python.

A step of a small network is two hundred kernels of a few microseconds, and Python takes longer to start one
than the GPU to run it. A graph starts them all at once, and computes what they compute, to the bit. What
differs from step to step must be in tensors that stay where they are: images, noise, the weight of the KL and
the learning rate. Random numbers are drawn before the graph, so it holds none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

# Steps before the recording: cuDNN chooses its kernels, and the optimiser makes its moments.
WARM_UP_STEPS = 3

Work = Callable[[Sequence[Tensor]], Tensor]


class Graph(Protocol):
    """An object that records work once, without doing it, and repeats it."""

    def apart(self, work: Callable[[], Tensor]) -> Tensor:
        """Do work where the recording will be made, so that nothing is left over from elsewhere."""

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Record the work and return the tensor that its result will be in."""

    def replay(self) -> None:
        """Do the work."""


class CapturedStep:
    """Work that is recorded after a few calls, and replayed from then on; never, if recording fails.

    Args:
        work: computes tensors from inputs and changes others, such as weights, in place. It must not read a
            value, and must do the same at every call.
        graph: makes the recording.
    """

    def __init__(self, work: Work, graph: Graph) -> None:
        self._work, self._graph = work, graph
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._result: Tensor | None = None

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """Do the work on inputs of the shapes of all calls before; return its result."""
        self._calls += 1
        if self._calls <= WARM_UP_STEPS:
            return self._graph.apart(lambda: self._work(inputs))
        if self._calls == WARM_UP_STEPS + 1:
            self._inputs = [one.clone() for one in inputs]  # keeps the memory format
            self._record()
        if self._result is None:
            return self._work(inputs)
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        # A copy, as the next replay writes the same memory.
        return self._result.clone()

    def _record(self) -> None:
        try:
            self._result = self._graph.record(lambda: self._work(self._inputs))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as err:
            # Nothing was done yet, so that steps can be taken as before.
            reason = str(err).splitlines()[0]
            message = f"This GPU cannot record a training step ({reason}). Each is started by Python: slower."
            warnings.warn(message, RuntimeWarning, stacklevel=2)


class CudaGraph:
    """A CUDA graph, made on a stream of its own; see `Graph`.

    Args:
        device: a GPU of CUDA, which need not be the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(device):
            self._graph = torch.cuda.CUDAGraph()

    def apart(self, work: Callable[[], Tensor]) -> Tensor:
        """Do work on that stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        result.record_stream(current)
        return result

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Record work on that stream."""
        # Other threads, such as the one that reads images, may allocate memory meanwhile.
        mode = "thread_local"
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode=mode),
        ):
            return work()

    def replay(self) -> None:
        """Do the work on the current stream."""
        with torch.cuda.device(self._device):
            self._graph.replay()
