"""The fastest way a machine has is chosen by what it has, and can be overruled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoencode import ConfigError
from autoencode.training import runtime
from autoencode.training.runtime import Runtime, choose_runtime


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_bf16_is_chosen_where_the_processor_multiplies_it(
    avx512: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_runtime("cpu").bf16 is (avx512 or amx)
    assert choose_runtime("cpu", "fp32").bf16 is False
    assert choose_runtime("cpu", "bf16").bf16 is True


def test_a_gpu_is_chosen_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert runtime._device("auto").type == expected


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "nonsense:1", ""])
def test_a_device_that_is_not_here_is_rejected_in_one_line(device: str) -> None:
    with pytest.raises(ConfigError, match=r"There is no device|Cannot use the device") as caught:
        choose_runtime(device)
    assert repr(device) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 90  # and not all that torch knows of devices


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_distinguished_from_other_errors(error: Exception, expected: bool) -> None:
    assert runtime.is_out_of_memory(error) is expected


def test_the_allocator_of_torch_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert runtime.is_out_of_memory(caught.value)


def test_an_unknown_precision_is_rejected() -> None:
    with pytest.raises(ConfigError, match="Choose auto, fp32 or bf16"):
        choose_runtime("cpu", "fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize("channels_last", [True, False])
def test_models_and_images_are_placed_in_the_memory_format(channels_last: bool) -> None:
    chosen = choose_runtime("cpu", "fp32", channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = nn.Conv2d(3, 4, 3)
    chosen.model_to_device(model)
    assert model.weight.is_contiguous(memory_format=layout)
    assert chosen.to_device(torch.rand(2, 3, 8, 8)).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("bf16", [True, False])
def test_convolutions_multiply_in_the_precision_asked_for(bf16: bool) -> None:
    chosen = Runtime(torch.device("cpu"), bf16, True)
    with chosen.autocast():
        result = nn.Conv2d(3, 4, 3)(torch.rand(1, 3, 8, 8))
    assert result.dtype == (torch.bfloat16 if bf16 else torch.float32)


def test_a_runtime_says_what_it_is() -> None:
    assert str(Runtime(torch.device("cpu"), True, True)) == "cpu, bf16, channels last"
    assert str(Runtime(torch.device("cpu"), False, False)) == "cpu, fp32, channels first"
