"""A restorer is a model that maps damaged images of any size to better ones in one pass, without a code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencode.models.image_model import ImageModel, Output
from autoencode.models.networks import Halves

if TYPE_CHECKING:
    from autoencode.data.preprocessing import Preprocessing
    from autoencode.models.networks import ModelConfig


class Restorer(ImageModel):
    """A network that restores images of any size, with the settings of its training.

    Args:
        config: settings of the network, of kind "restorer".
        preprocessing: how its training images were read. It restores images of any size.
    """

    def __init__(self, config: ModelConfig, preprocessing: Preprocessing) -> None:
        super().__init__(config, preprocessing)
        net = self.network.build(config, preprocessing.height, preprocessing.width)
        assert not isinstance(net, Halves)  # `ModelConfig` rejects a network of another kind of model
        self.net = net

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Output:
        """Restore images (B, 3, H, W), differentiable and not clipped; `noise` is not used."""
        height, width = images.shape[-2:]
        return Output(images + self.net(self._padded(images)).float()[..., :height, :width], None)

    @torch.inference_mode()
    def restore(self, images: Tensor) -> Tensor:
        """Return images with less of the damage that the model was trained to remove.

        Args:
            images: (B, 3, H, W) float, mostly in [0, 1], any size and device.

        Returns:
            (B, 3, H, W) float32 in [0, 1] on the device of the model.
        """
        device = next(self.parameters()).device
        placed = images.to(device, torch.float32, memory_format=torch.channels_last)
        return self(placed).images.clamp(0, 1)  # type: ignore[no-any-return]

    def _padded(self, images: Tensor) -> Tensor:
        """Repeat the last row and column until each side is a multiple of the network's factor."""
        height, width = images.shape[-2:]
        below, beside = -height % self.net.factor, -width % self.net.factor
        return F.pad(images, (0, beside, 0, below), mode="replicate") if below or beside else images
