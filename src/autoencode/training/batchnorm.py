"""Batch normalisation over the images of all processes; torch's own SyncBatchNorm has no CPU version.

Shapes: B images of this process, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoencode.training.processes import Processes, synchronous


class SharedBatchNorm(nn.BatchNorm2d):
    """As `nn.BatchNorm2d` of the whole batch, whose images are spread over processes.

    The mean is summed first and the squared distances from it second: their sums would cancel in fp32.

    Args:
        original: the layer to stand for; its parameters and buffers become those of this one.
        processes: who has the other images.

    Attributes:
        counted: whether the images of this process are of the batch (see `shares.Share`).
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
