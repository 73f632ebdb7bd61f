"""The fastest correct way to compute on this machine: device, precision, memory format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoencode.configuration import Precision
from autoencode.data.loader import DeviceImages
from autoencode.errors import ConfigError, check_choice
from autoencode.metrics.latents import in_fp64
from autoencode.models.backbones import multiplies_bf16
from autoencode.models.model_file import build_model
from autoencode.training.capture import CapturedStep, CudaGraph, Work
from autoencode.training.run import holds_state

if TYPE_CHECKING:
    from autoencode.data.pack import Pack
    from autoencode.data.preprocessing import Preprocessing
    from autoencode.models.image_model import ImageModel
    from autoencode.models.networks import ModelConfig
    from autoencode.training.run import RunSettings

DEVICES = "auto, cpu, cuda, cuda:1 or mps"
# Reading a value of a GPU leaves it idle for a moment; a diverged run is noticed so many steps late.
STEPS_BETWEEN_LOOKS = 32
ROOM_FOR_IMAGES = 0.4  # of the free memory of a GPU; the rest is for the computation
_MOST_WEIGHTS = 2**40  # bytes
# Bytes from which memory runs out for the weights, their gradients and moments rather than for the images.
_MANY_WEIGHTS = 2**30


@dataclass(frozen=True)
class Runtime:
    """Where and how tensors are computed.

    Attributes:
        device: where the model and its batches live.
        bf16: whether convolutions multiply in bfloat16; weights, losses and code heads stay in fp32.
        channels_last: whether images lie in memory with channels innermost.
    """

    device: torch.device
    bf16: bool
    channels_last: bool

    def autocast(self) -> torch.autocast:
        """Context in which the forward pass runs."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def model_to_device(self, model: nn.Module) -> None:
        """Move a model to the device, in place."""
        model.to(memory_format=self._memory_format)  # type: ignore[call-overload]
        model.to(self.device)

    def to_device(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W) on the device."""
        return images.to(self.device, non_blocking=True, memory_format=self._memory_format)

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """Context in which a GPU computes the same bits each time, as far as its kernels do.

        cuDNN then takes only kernels that always sum in one order, and chooses them without timing them.
        Networks avoid operations of PyTorch whose order of summation varies, such as the gradient of
        bilinear `F.interpolate`.
        """
        chosen = torch.backends.cudnn
        before = chosen.deterministic, chosen.benchmark
        chosen.deterministic, chosen.benchmark = True, False
        try:
            yield
        finally:
            chosen.deterministic, chosen.benchmark = before

    @property
    def runs_ahead(self) -> bool:
        """Whether Python goes on while the device computes, so that reading a value waits for it: CUDA."""
        return self.device.type == "cuda"

    @property
    def steps_between_looks(self) -> int:
        """Steps after which a loss is read, to report it and to see whether it is finite."""
        return STEPS_BETWEEN_LOOKS if self.runs_ahead else 1

    def zeros(self, count: int) -> Tensor:
        """Return zeros (count,) float64, where sums of what `in_fp64` returns are kept."""
        return in_fp64(torch.zeros(count, device=self.device))

    def images_of(self, pack: Pack, rows: NDArray[np.int64]) -> DeviceImages | None:
        """Return the images of a pack on the GPU; None where batches are made on the CPU.

        Args:
            pack: the pack.
            rows: (N,) that will be asked for.
        """
        if not self.runs_ahead:
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        return DeviceImages(pack, rows, self.device, round(ROOM_FOR_IMAGES * free))

    def captured(self, work: Work) -> CapturedStep | None:
        """Return work that is recorded and replayed; None where that is not possible."""
        return CapturedStep(work, CudaGraph(self.device)) if self.runs_ahead else None

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        precision = "bf16" if self.bf16 else "fp32"
        return f"{name}, {precision}, {'channels last' if self.channels_last else 'channels first'}"


def choose_runtime(
    device: str = "auto", precision: Precision = "auto", channels_last: bool = True
) -> Runtime:
    """Choose the fastest correct device, precision and memory format of this machine.

    Args:
        device: "auto" (a GPU where there is one), or a torch device such as "cpu", "cuda:1", "mps".
        precision: "auto" (bf16 where the hardware multiplies it), "fp32" or "bf16".
        channels_last: whether images lie in memory with channels innermost.

    Raises:
        ConfigError: this machine has no such device, or the precision is unknown.
    """
    check_choice("precision", precision, get_args(Precision))
    chosen = _device(device)
    bf16 = precision == "bf16" or (precision == "auto" and multiplies_bf16(chosen))
    return Runtime(chosen, bf16, channels_last)


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as err:  # its message lists some thirty kinds of device that torch has names for
        raise ConfigError(f"There is no device {name!r}. Use {DEVICES}.") from err
    # Only an allocation shows whether this build of torch and this machine have the device.
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as err:
        raise ConfigError(f"Cannot use the device {name!r}: this machine, or its torch, has none.") from err
    return device


def is_out_of_memory(err: BaseException) -> bool:
    """Whether an error means that a buffer did not fit, in memory or on a GPU."""
    if isinstance(err, MemoryError | torch.OutOfMemoryError):
        return True
    # On a CPU torch reports it only in the message: "DefaultCPUAllocator: can't allocate memory".
    text = str(err).lower()
    return isinstance(err, RuntimeError) and ("allocate memory" in text or "out of memory" in text)


def without_memory(model: ModelConfig, preprocessing: Preprocessing) -> ImageModel:
    """Build a network without memory or random numbers, to ask how large it is.

    Raises:
        ConfigError: the network has more than 1 TiB of weights, or cannot have images of that size.
    """
    try:
        with torch.device("meta"):
            built = build_model(model, preprocessing)
        size = _weight_bytes(built)
    except (RuntimeError, TypeError):  # a number of weights beyond 64 bits, of which torch has either error
        size = None
    if size is None or size > _MOST_WEIGHTS:
        raise ConfigError(
            f"code_size {model.code_size} and widths {','.join(map(str, model.widths))} make a network of "
            "more than 1 TiB of weights. Use smaller ones."
        )
    return built


def _weight_bytes(model: nn.Module) -> int:
    return sum(weight.nbytes for weight in model.state_dict().values())


@contextmanager
def within_memory(out: Path, run: RunSettings) -> Iterator[None]:
    """Turn any error for lack of memory into a ConfigError that says what to change.

    Args:
        out: the run folder.
        run: the settings of the run.

    Raises:
        ConfigError: torch or Python ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as err:
        if not is_out_of_memory(err):
            raise
        weights = _weight_bytes(without_memory(run.model, run.preprocessing))
        size = f"{run.preprocessing.height}x{run.preprocessing.width}"
        kept = f" The last checkpoint is kept in {out}." if holds_state(out) else ""
        if weights > _MANY_WEIGHTS:
            raise ConfigError(
                f"There is not enough memory to train {weights / 2**30:,.1f} GiB of weights. Start again"
                f"{' in a new folder' if kept else ''} with a smaller code_size (it was "
                f"{run.model.code_size}) or smaller widths.{kept}"
            ) from err
        raise ConfigError(
            f"There is not enough memory for batches of {run.train.batch_size} images of {size}. "
            f"{'Continue with --resume' if kept else 'Start again with'} --set accumulate=4, or start again"
            f"{' in a new folder' if kept else ''} with a smaller batch_size or --size.{kept}"
        ) from err
