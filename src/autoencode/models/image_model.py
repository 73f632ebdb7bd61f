"""The base of every trained model: its settings, preprocessing, origin, and a forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from autoencode.models.networks import NETWORKS

if TYPE_CHECKING:
    from autoencode.data.preprocessing import Preprocessing
    from autoencode.models.networks import ModelConfig


class Posterior(NamedTuple):
    """q(code | image): `mean` (B, D), and `log_variance` (B, D) or None for a plain code."""

    mean: Tensor
    log_variance: Tensor | None

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + exp(log_variance / 2) * noise, given standard normal noise (B, D): codes (B, D).

        This is the reparameterisation of Kingma & Welling 2014. A plain code is the mean itself.
        """
        if self.log_variance is None:
            return self.mean
        return self.mean + torch.exp(0.5 * self.log_variance) * noise


class Output(NamedTuple):
    """One forward pass: `images` (B, 3, H, W), and the posterior of their codes; None without codes."""

    images: Tensor
    posterior: Posterior | None


class ImageModel(nn.Module):
    """A network that returns images like those it is given, with what is needed to train, save and load it.

    Args:
        config: settings of the network.
        preprocessing: how its training images were read.

    Attributes:
        network: the entry of `NETWORKS` it is built from.
        sigma2: variance of the Gaussian likelihood around a decoded value, a scalar buffer (VAE only).
        provenance: origin of the weights, as saved in the model file; empty before that.
        digest: sha256 of the model file it was loaded from; "" for none.
    """

    sigma2: Tensor

    def __init__(self, config: ModelConfig, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.config = config
        self.preprocessing = preprocessing
        self.provenance: dict[str, Any] = {}
        self.digest = ""
        self.network = NETWORKS[config.network]

    def __repr__(self) -> str:
        """Return what it is in a line; torch's listing of the layers is `repr` of each of its modules."""
        size, config = self.preprocessing, self.config
        kind = {"vae": "variational autoencoder"}.get(config.kind, config.kind)
        code = "" if config.kind == "restorer" else f", code of {config.code_size}"
        weights = sum(weight.numel() for weight in self.parameters())
        images = self.provenance.get("images", {}).get("train")
        trained = f", trained on {images:,} images" if isinstance(images, int) else ""
        return f"<{kind}: images of {size.height}x{size.width}{code}, {weights:,} weights{trained}>"

    @property
    def is_vae(self) -> bool:
        """Whether a code is a Gaussian with mean and variance."""
        return self.config.kind == "vae"

    @property
    def training_corruptions(self) -> tuple[str, ...]:
        """The corruptions it was trained to undo; none for a model that was never trained here."""
        return tuple(self.provenance.get("train", {}).get("corrupt", ()))

    @property
    def starting_loss(self) -> float:
        """Size of the objective where training starts."""
        return 1.0

    @property
    def least_batch(self) -> int:
        """Images a step needs at least."""
        return 1

    @property
    def values_per_image(self) -> int:
        """Number of values of an image, over which its likelihood is summed: 3 * H * W."""
        return 3 * self.preprocessing.height * self.preprocessing.width

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return all parameters as groups of a torch optimiser, by how it should treat them.

        Each group has "scale", a factor on the learning rate, and may have settings of its own.
        """
        return [{"params": list(self.parameters()), "scale": 1.0}]

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Output:
        """Pass images (B, 3, H, W) in [0, 1] through the model, differentiable.

        Args:
            images: (B, 3, H, W) in [0, 1].
            noise: (B, D) standard normal to draw a code with; None for none.
        """
        raise NotImplementedError
