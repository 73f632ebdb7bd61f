"""Networks a model can be built with, and the settings that choose one.

A network is one entry of `NETWORKS`. The command line, errors, training and the page of a run ask the entry,
or the halves it builds; no other module compares names of networks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from autoencode.configuration import Kind, check_fields
from autoencode.errors import ConfigError, check_choice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

    from autoencode.models.autoencoder import Autoencoder
    from autoencode.models.convolutions import ImageDecoder, LinearEncoder


@dataclass(frozen=True)
class ModelConfig:
    """Settings of a network, apart from the image size (see `Preprocessing`).

    Args:
        kind: "autoencoder" (a plain code), "vae" (a Gaussian code with mean and variance) or "restorer" (no
            code: images in, better images of the same size out).
        code_size: D, dimensions of a code; at least 1.
        network: the encoder and the decoder, by name.
        widths: channels of each level, shallow to deep. Each level halves the image; the first of a
            residual network quarters it.
        batch_norm: batch normalisation after each convolution of both halves.

    Raises:
        ConfigError: a field has another type, or a value outside its range.
    """

    kind: Kind = "autoencoder"
    code_size: int = 256
    network: str = field(default="paper", metadata={"entries": lambda: _networks()})
    widths: tuple[int, ...] = (32, 64, 128, 256)
    batch_norm: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("network", self.network, NETWORKS)
        if self.code_size < 1:
            raise ConfigError(f"The code size is {self.code_size}; it must be at least 1.")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"Widths {self.widths} cannot be used: give one or more positive numbers.")
        if NETWORKS[self.network].restores != (self.kind == "restorer"):
            raise ConfigError(
                f"The network {self.network} is not for kind {self.kind}. A restorer is trained by --preset "
                "restore, and an autoencoder or a VAE has another network."
            )
        if self.kind == "restorer" and self.batch_norm:
            raise ConfigError(
                "A restorer has no batch normalisation: it would tie its result to other images."
            )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelConfig:
        """Rebuild from `to_json`.

        Raises:
            ConfigError: a field has another type, or a value outside its range.
        """
        return cls(**values)


class Halves(NamedTuple):
    """The modules a network is made of.

    Attributes:
        encoder: images (B, 3, H, W) to flat features (B, channels * h * w) of the deepest grid (h, w).
        decoder: codes (B, D) to images (B, 3, H, W).
        linear: images to a term of the mean of the code, (B, D); None for no such term.
    """

    encoder: nn.Module
    decoder: ImageDecoder
    linear: LinearEncoder | None


class RestoringNetwork(Protocol):
    """The module of a restorer: images (B, 3, H, W) to what is to be added to them, of the same shape.

    Attributes:
        factor: the module is given heights and widths that are multiples of this many pixels. Its results do
            not change when an image is moved by as many.
        reach: pixels that the value of a pixel depends on, in each direction.
    """

    factor: int
    reach: int

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to what is to be added to them."""
        ...


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        summary: its idea in a few words, for help and for the page of a run.
        first_level: factor by which the first level divides each side of an image; the others halve it.
        patch_px: side of the squares of pixels that the first convolution takes as channels.
        normalises_deepest: whether batch normalisation works on the deepest grid, which may be a single value
            a channel. Otherwise the last halving comes after it.
        linear_rate: factor on the learning rate of the linear path; such weights do not decay either.
        build: settings, height and width in pixels to the halves of an autoencoder, or to the module of a
            restorer, drawn from torch's random numbers.
        restores: whether it is the network of a restorer; `build` then returns a `RestoringNetwork`.
        start: sets the weights of a new model on the CPU from batches of training images, before the first
            step; None leaves the random weights.
    """

    summary: str
    first_level: int
    patch_px: int
    normalises_deepest: bool
    linear_rate: float
    build: Callable[[ModelConfig, int, int], Halves | RestoringNetwork]
    restores: bool = False
    start: Callable[[Autoencoder, Iterable[Tensor]], None] | None = None

    def grid(self, widths: tuple[int, ...], height: int, width: int) -> tuple[int, int]:
        """Return (h, w) of the deepest level, for images of (height, width) pixels.

        Raises:
            ConfigError: a side cannot be divided as often as there are widths.
        """
        factor = self.first_level * 2 ** (len(widths) - 1)
        if height % factor or width % factor:
            raise ConfigError(
                f"Images of {height}x{width} cannot be halved as often as {','.join(map(str, widths))} asks "
                f"for. Use fewer widths, or a size that is a multiple of {factor}."
            )
        return height // factor, width // factor


# The command line lists the networks in its help, which has to be there before torch could be imported.
# Hence the imports within the functions that build one.


def _paper(config: ModelConfig, height: int, width: int) -> Halves:
    from autoencode.models.convolutions import Decoder, Encoder

    grid = NETWORKS["paper"].grid(config.widths, height, width)
    encoder = Encoder(config.widths, config.batch_norm)
    return Halves(encoder, Decoder(config.code_size, config.widths, grid, config.batch_norm), None)


def _residual(config: ModelConfig, height: int, width: int) -> Halves:
    from autoencode.models.convolutions import LinearEncoder, ResidualDecoder, ResidualEncoder

    encoder = ResidualEncoder(config.widths, config.batch_norm)
    decoder = ResidualDecoder(config.code_size, config.widths, height, width, config.batch_norm)
    return Halves(encoder, decoder, LinearEncoder(config.code_size, height, width))


def _gated(config: ModelConfig, height: int, width: int) -> RestoringNetwork:
    from autoencode.models.gated import GatedUNet

    return GatedUNet(config.widths)


def _start_at_pca(model: Autoencoder, images: Iterable[Tensor]) -> None:
    from autoencode.models.pca import start_at_pca

    start_at_pca(model, images)


NETWORKS: dict[str, Network] = {
    "paper": Network(
        summary="the paper's convolutions",
        first_level=2,
        patch_px=1,
        normalises_deepest=False,
        linear_rate=1.0,
        build=_paper,
    ),
    "residual": Network(
        summary="starts as PCA, learns what convolutions add",
        first_level=4,
        patch_px=4,
        normalises_deepest=True,
        # The linear path starts where it should end; at the full rate it would be thrown away (docs/log.md).
        linear_rate=0.03,
        build=_residual,
        start=_start_at_pca,
    ),
    "gated": Network(
        summary="a U-Net of gated blocks, for images of any size",
        first_level=2,
        patch_px=2,
        normalises_deepest=False,
        linear_rate=1.0,
        build=_gated,
        restores=True,
    ),
}


def _networks() -> list[str]:
    return [f'"{name}" ({network.summary})' for name, network in NETWORKS.items()]
