"""A recorded step does what the step does, with a graph that repeats it on a CPU in place of a GPU's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from autoencode.training.capture import WARM_UP_STEPS, CapturedStep


class Repeated:
    """Repeats work as a CUDA graph does: recording does nothing, and the result stays in one place."""

    def apart(self, work: Callable[[], Tensor]) -> Tensor:
        return work()

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        self.work, self.result = work, torch.full((4,), torch.nan, dtype=torch.float64)
        return self.result

    def replay(self) -> None:
        self.result.copy_(self.work())


def test_a_step_is_taken_once_a_call_and_its_results_stay_as_they_were() -> None:
    seen: list[tuple[int, ...]] = []

    def work(inputs: Sequence[Tensor]) -> Tensor:
        seen.append(tuple(one.data_ptr() for one in inputs))
        return torch.stack([inputs[0].sum(), inputs[1].sum(), inputs[0][0], inputs[1][0]]).double()

    step = CapturedStep(work, Repeated())
    calls = [(torch.rand(3), torch.rand(2)) for _ in range(WARM_UP_STEPS + 4)]
    found = [step(call) for call in calls]
    for (one, other), result in zip(calls, found, strict=True):
        assert torch.equal(result, torch.stack([one.sum(), other.sum(), one[0], other[0]]).double())
    assert len(seen) == len(calls)
    # What is recorded reads the same memory at every replay, which is not that of a caller.
    assert len(set(seen[WARM_UP_STEPS:])) == 1
    assert not set(seen[-1]) & {one.data_ptr() for call in calls for one in call}


def test_inputs_keep_their_memory_format() -> None:
    images = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)

    def work(inputs: Sequence[Tensor]) -> Tensor:
        assert inputs[0].is_contiguous(memory_format=torch.channels_last)
        return torch.zeros(4, dtype=torch.float64)

    step = CapturedStep(work, Repeated())
    for _ in range(WARM_UP_STEPS + 1):
        step([images])


def test_a_step_that_cannot_be_recorded_is_taken_all_the_same() -> None:
    class Broken(Repeated):
        def record(self, work: Callable[[], Tensor]) -> Tensor:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    seen: list[float] = []

    def work(inputs: Sequence[Tensor]) -> Tensor:
        seen.append(float(inputs[0]))
        return inputs[0].double()

    step = CapturedStep(work, Broken())
    calls = [torch.tensor(float(number)) for number in range(WARM_UP_STEPS + 3)]
    with pytest.warns(RuntimeWarning, match=r"cannot record .*\(operation not permitted") as warned:
        assert [float(step([call])) for call in calls] == seen == list(map(float, calls))
    assert len(warned) == 1
