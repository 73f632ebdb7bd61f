"""Where a training step of the paper's network spends its time on this CPU, layer by layer.

    python benchmarks/layer_speed.py [--side 128] [--batch 128] [--precision bf16 fp32]

A layer is a convolution with the pooling, bias and ReLU that follow it. Each is timed alone, forward and
backward, in memory that stays warm; what is reported is the median, and the multiplications and additions of
the convolution alone per second, also as a share of this machine's own peak: the fastest of several square
convolutions and matrix products, measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

from autoencode.training.process import keep_freed_memory
from train_speed import machine

keep_freed_memory()  # before torch, as `train` does

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from autoencode import Autoencoder, Preprocessing  # noqa: E402
from autoencode.training.presets import settings  # noqa: E402

WARM_UP, ROUNDS = 3, 7


def seconds(function: Callable[[], object]) -> float:
    """Median time of a call, after some that are not counted."""
    times = []
    for _ in range(WARM_UP + ROUNDS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times[WARM_UP:])


def peak(dtype: torch.dtype, batch: int) -> float:
    """The most operations a second that any of several convolutions and products reaches, forward."""
    rates = []
    for channels, side in ((64, 64), (128, 32), (256, 16), (512, 8)):
        images = torch.randn(batch, channels, side, side).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3).to(dtype, memory_format=torch.channels_last)
        operations = 2 * 9 * channels**2 * side**2 * batch
        rates.append(operations / seconds(lambda i=images, w=weight: nn.functional.conv2d(i, w, padding=1)))
    for size in (2048, 4096):
        left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        rates.append(2 * size**3 / seconds(lambda a=left, b=right: a @ b))
    return max(rates)


def layers(half: nn.Sequential) -> Iterator[nn.Sequential]:
    """Split a half of the network before each convolution."""
    group: list[nn.Module] = []
    for module in half:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and group:
            yield nn.Sequential(*group)
            group = []
        group.append(module)
    yield nn.Sequential(*group)


def operations(layer: nn.Sequential, entering: Tensor) -> float:
    """Multiplications and additions of the convolutions and linear maps of a layer, forward."""
    total, features = 0.0, entering
    with torch.no_grad():
        for module in layer:
            grid = features
            features = module(features)
            if isinstance(module, nn.Conv2d):
                total += 2 * module.weight.numel() * features[:, 0].numel()
            elif isinstance(module, nn.ConvTranspose2d):
                total += 2 * module.weight.numel() * grid[:, 0].numel()
            elif isinstance(module, nn.Linear):
                total += 2 * module.weight.numel() * len(grid)
    return total


def measure(layer: nn.Sequential, entering: Tensor, bf16: bool) -> tuple[float, float, Tensor]:
    """Seconds forward and backward, and what leaves the layer."""

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return layer(entering + 0 if isinstance(layer[0], nn.ReLU) else entering)

    def both() -> None:
        forward().backward(gradient)
        layer.zero_grad()

    leaving = forward()
    gradient = torch.randn_like(leaving)
    ahead = seconds(forward)
    return ahead, seconds(both) - ahead, leaving.detach()


def table(side: int, batch: int, bf16: bool) -> str:
    config, _ = settings("paper-ae")
    model = Autoencoder(config, Preprocessing(side, side)).to(memory_format=torch.channels_last)
    most = peak(torch.bfloat16 if bf16 else torch.float32, batch)
    features = torch.rand(batch, 3, side, side).to(memory_format=torch.channels_last)
    parts = list(layers(model.encoder.layers))
    code = nn.Sequential(nn.Flatten(1), model.to_mean, model.decoder.expand)
    expanded = nn.Sequential(nn.Unflatten(1, model.decoder.grid), model.decoder.layers[0])
    parts += [nn.Sequential(*code, *expanded), *list(layers(model.decoder.layers[1:]))]
    rows, total, worked = [], 0.0, 0.0
    for index, layer in enumerate(parts):
        entering = features.contiguous(memory_format=torch.channels_last) if features.ndim == 4 else features
        entering = entering.requires_grad_(index > 0)
        ahead, back, features = measure(layer, entering, bf16)
        # Backward is twice forward; the first layer has no gradient of its input to compute.
        work = operations(layer, entering.detach().float()) * (3 if index else 2)
        rate = work / (ahead + back)
        name = next(m for m in layer if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear))
        rows.append(
            f"| {type(name).__name__} {name.weight.shape[1]} x {name.weight.shape[0]} | {1e3 * ahead:.1f} "
            f"| {1e3 * back:.1f} | {rate / 1e9:.0f} | {rate / most:.2f} |"
        )
        total, worked = total + ahead + back, worked + work
    precision, rate = "bf16" if bf16 else "fp32", worked / total
    return "\n".join(
        [
            f"{precision}, {side}x{side}, batch {batch}; this machine's peak: {most / 1e9:.0f} GFLOP/s",
            "",
            "| layer (inputs x outputs) | forward ms | backward ms | GFLOP/s | of the peak |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            f"| all | {1e3 * total:.0f} in all | | {rate / 1e9:.0f} | {rate / most:.2f} |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(machine())
    for precision in arguments.precision:
        print("\n" + table(arguments.side, arguments.batch, precision == "bf16"))


if __name__ == "__main__":
    main()
