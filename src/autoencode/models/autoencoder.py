"""An autoencoder: images to codes and back. The code is plain, or a Gaussian (a VAE).

Shapes: B batch, H height, W width, D code size. Images are (B, 3, H, W) in [0, 1], codes (B, D).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from autoencode.configuration import DecoderName
from autoencode.data.sources import read_batches
from autoencode.errors import ConfigError, check_choice
from autoencode.models.detail import parts_of_detail
from autoencode.models.image_model import ImageModel, Output, Posterior
from autoencode.models.networks import Halves, ModelConfig
from autoencode.pixels import to_float

if TYPE_CHECKING:
    from autoencode.data.preprocessing import Limits, Preprocessing
    from autoencode.models.convolutions import ImageDecoder
    from autoencode.models.priors import GaussianMixture
    from autoencode.vectors import Vectors

INFERENCE_BATCH = 128  # images read at a time, to be encoded or decoded: small enough for any memory

# Values of the widest layer that are computed at once on a CPU, 16 MB: more do not stay in its cache. The
# paper's network encodes eight images of 128x128 at a time twice as fast as 128 (docs/performance.md).
CPU_LAYER_VALUES = 2**22

# fp32 sums cannot use a variance outside these bounds; within them exp() stays finite.
LOG_VARIANCE_RANGE = (-20.0, 10.0)


class Kept(NamedTuple):
    """Tensors and JSON that another part of the package keeps in the file of a model, and alone can read."""

    tensors: Mapping[str, Tensor]
    content: Mapping[str, Any]


class Autoencoder(ImageModel):
    """Encoder and decoder with the preprocessing their images need.

    Args:
        config: settings of the network.
        preprocessing: the size of its images, and how a file becomes one.

    Raises:
        ConfigError: the image size cannot be halved once for each level.

    Attributes:
        decoder: codes to images with the least squared error.
        sharp_decoder: the decoder trained on features of a pretrained network, or None; see
            `autoencode.training.perceptual`. As much of its detail is drawn as its `detail` says.
        prior: the mixture fitted to the codes of its training images, or None; see `fit_prior`.
        reference: the normal images of its training, by which it judges others where those are not, or None;
            see `fit_reference`.
    """

    def __init__(self, config: ModelConfig, preprocessing: Preprocessing) -> None:
        super().__init__(config, preprocessing)
        self.prior: GaussianMixture | None = None
        self.sharp_decoder: ImageDecoder | None = None
        self.reference: Kept | None = None
        self._grid = self.network.grid(config.widths, preprocessing.height, preprocessing.width)
        features = config.widths[-1] * self._grid[0] * self._grid[1]
        self.to_mean = nn.Linear(features, config.code_size)
        halves = self.network.build(config, preprocessing.height, preprocessing.width)
        assert isinstance(halves, Halves)  # `ModelConfig` rejects a network of another kind of model
        self.encoder, self.decoder, self.linear = halves
        if self.linear is not None:
            # The mean of the code starts as the linear map alone.
            nn.init.zeros_(self.to_mean.weight)
            nn.init.zeros_(self.to_mean.bias)
        if config.kind == "vae":
            self.to_log_variance = nn.Linear(features, config.code_size)
            self.register_buffer("sigma2", torch.tensor(1.0))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return all parameters as groups of a torch optimiser, by how it should treat them.

        Each group has "scale", a factor on the learning rate, and may have settings of its own.
        """
        linear: nn.Module | None = None
        if self.linear is not None and self.decoder.linear is not None:
            linear = nn.ModuleList([self.linear, self.decoder.linear])
        return self.groups_of(self, linear)

    def groups_of(self, module: nn.Module, linear: nn.Module | None) -> list[dict[str, Any]]:
        """Return the parameters of a part of this model as groups; see `parameter_groups`.

        Args:
            module: the part.
            linear: those of its linear path, which take smaller steps; None for none.
        """
        slow = [] if linear is None else list(linear.parameters())
        chosen = {id(parameter) for parameter in slow}
        others = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
        groups: list[dict[str, Any]] = [{"params": others, "scale": 1.0}]
        if slow:
            groups.append({"params": slow, "scale": self.network.linear_rate, "weight_decay": 0.0})
        return groups

    @property
    def starting_loss(self) -> float:
        """Size of the objective where training starts: the error of PCA, or about 1 (VAE)."""
        return 1.0 if self.is_vae else self.decoder.starting_mse

    @property
    def least_batch(self) -> int:
        """Images a step needs at least: batch normalisation has no variance over a single value."""
        single = self.network.normalises_deepest and self._grid == (1, 1)
        return 2 if self.config.batch_norm and single else 1

    def posterior(self, images: Tensor) -> Posterior:
        """Return the distribution of the code given images (B, 3, H, W) in [0, 1]; differentiable."""
        features = self.encoder(images)
        # The heads stay in fp32 under autocast: the KL sums exp() of their outputs.
        with torch.autocast(images.device.type, enabled=False):
            features = features.float()
            mean = self.to_mean(features)
            if self.linear is not None:
                mean = mean + self.linear(images.float())
            log_variance = self.to_log_variance(features).clamp(*LOG_VARIANCE_RANGE) if self.is_vae else None
        return Posterior(mean, log_variance)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Output:
        """Encode and decode, differentiable.

        Args:
            images: (B, 3, H, W) in [0, 1].
            noise: (B, D) standard normal to draw the code with, or None to decode the mean.
        """
        posterior = self.posterior(images)
        codes = posterior.mean if noise is None else posterior.sample(noise)
        return Output(self.decoder(codes), posterior)

    @torch.inference_mode()
    def encode(self, images: Any) -> Tensor:  # noqa: ANN401 - whatever `read` takes
        """Return codes of images; for a VAE the posterior means.

        Args:
            images: (B, 3, H, W) float in [0, 1], any device; or whatever `read` takes.

        Returns:
            (B, D) float32 on the CPU.

        Raises:
            ConfigError: the images have another shape or type than those of the training.
            ImageError: an image that is read cannot be used; the message names it and the reason.
        """
        return self.encode_distribution(images).mean

    @torch.inference_mode()
    def encode_at_once(self, images: Tensor) -> Tensor:
        """Encode in one pass, so that hooks on layers get all images at once; otherwise as `encode`."""
        self._check_images(images)
        return self.posterior(self._placed(images)).mean.float().cpu()

    @torch.inference_mode()
    def encode_distribution(self, images: Any) -> Posterior:  # noqa: ANN401
        """Return means and log-variances of the codes of images; arguments and errors as `encode`."""
        # Networks need not handle an empty batch: pixel_unshuffle returns it in its old shape.
        parts = [
            self.posterior(self._placed(part))
            for batch in self._batches(images)
            for part in self._split(batch)
        ]
        if not parts:
            empty = torch.zeros(0, self.config.code_size)
            return Posterior(empty, empty if self.is_vae else None)
        log_variances = [part.log_variance for part in parts if part.log_variance is not None]
        return Posterior(
            torch.cat([part.mean for part in parts]).float().cpu(),
            torch.cat(log_variances).float().cpu() if log_variances else None,
        )

    @torch.inference_mode()
    def decode(self, codes: Tensor, decoder: DecoderName = "sharp") -> Tensor:
        """Return images of codes.

        Args:
            codes: (B, D) float, any device.
            decoder: "sharp", for the eye, where the model has such a decoder; or "faithful", with the least
                squared error.

        Returns:
            (B, 3, H, W) float32 in [0, 1] on the CPU.

        Raises:
            ConfigError: the codes have another number of dimensions than those of the model, or there is no
                such decoder.
        """
        check_choice("decoder", decoder, get_args(DecoderName))
        if codes.ndim != 2 or codes.shape[1] != self.config.code_size:
            raise ConfigError(f"Codes must be (B, {self.config.code_size}); these are {tuple(codes.shape)}.")
        parts = [
            self.images_of(part.to(self._device, torch.float32), decoder).clamp(0, 1).cpu()
            for part in self._split(codes)
        ]
        height, width = self.preprocessing.height, self.preprocessing.width
        return torch.cat(parts) if parts else torch.zeros(0, 3, height, width)

    def images_of(self, codes: Tensor, decoder: DecoderName) -> Tensor:
        """Return float32 images (B, 3, H, W) of codes (B, D), which may leave [0, 1]; see `decode`."""
        second = None if decoder == "faithful" else self.sharp_decoder
        if second is None:
            return self.decoder(codes).float()  # type: ignore[no-any-return]
        sharp: Tensor = second(codes).float()
        if second.detail is None:
            return sharp
        # Values beyond black and white are not seen, and would be taken for detail: emoji are mostly white.
        faithful: Tensor = self.decoder(codes).float().clamp(0, 1)
        fine, coarse = parts_of_detail(faithful, sharp.clamp(0, 1))
        return faithful + second.detail[0] * fine + second.detail[1] * coarse

    def reconstruct(self, images: Any, decoder: DecoderName = "sharp") -> Tensor:  # noqa: ANN401
        """Return `decode(encode(images), decoder)`: (B, 3, H, W) in [0, 1]; arguments and errors as both."""
        batches = [self.decode(self.encode(batch), decoder) for batch in self._batches(images)]
        return torch.cat(batches) if batches else self.decode(torch.zeros(0, self.config.code_size))

    def _batches(self, images: Any) -> Iterator[Tensor]:  # noqa: ANN401
        # Four dimensions of floats are a batch that is ready, and of another size a mistake: a silent resize
        # would hide it. Anything else is read as the training images were, a part at a time.
        if isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point():
            self._check_images(images)
            yield images
        else:
            yield from map(to_float, read_batches(images, INFERENCE_BATCH, self.preprocessing))

    def read(self, images: Any, limits: Limits | None = None) -> Tensor:  # noqa: ANN401
        """Read images the way the training images were read.

        Args:
            images: a folder, image files, a table or list of them, arrays, tensors, Pillow images, contents
                of files, or a dataset: arrays are uint8, or floats in [0, 1], as (H, W), (H, W, C), (C, H, W)
                or a batch. Files come in the order given, and those of a folder in that of their names.
            limits: the largest file and image to accept; the default is `Limits()`.

        Returns:
            (B, 3, H, W) float32 in [0, 1].

        Raises:
            ImageError: an image cannot be used; the message names it and the reason.
            ImageFolderError: a folder is missing or has no image.
            ConfigError: something is given that no image can be made of.
        """
        size = self.preprocessing
        parts = list(map(to_float, read_batches(images, INFERENCE_BATCH, size, limits)))
        return torch.cat(parts) if parts else torch.zeros(0, 3, size.height, size.width)

    def embed(self, images: Any, out: str | Path | None = None) -> Vectors:  # noqa: ANN401
        """Return the codes of images with the path, label and split of each; see `autoencode.embed`.

        Unlike `encode`, it takes a folder whose files cannot all be used: those are listed with the reason.

        Args:
            images: whatever `read` takes.
            out: a table to write, .parquet, .npz or .csv; None writes none.
        """
        # Imported by its name, because `models` must not import `vectors`.
        found: Vectors = resolve_name("autoencode.vectors:embed")(images, self, out)
        return found

    def check_preprocessing(
        self, preprocessing: Preprocessing, pack: str | Path, advice: str = "Give the pack it was trained on."
    ) -> None:
        """Reject a pack whose images were not read the way the images of this model are.

        Args:
            preprocessing: how the images of the pack were read.
            pack: path of the pack, for the message.
            advice: a sentence on what to give instead.

        Raises:
            ConfigError: the two differ; the message says how.
        """
        if different := preprocessing.differences(self.preprocessing):
            raise ConfigError(f"The pack {pack} was made with {different} as the model needs. {advice}")

    def note_of(self, fingerprint: str) -> str | None:
        """Return a warning about a pack that is not the one of the training, by its fingerprint, or None."""
        if self.provenance.get("data", fingerprint) == fingerprint:
            return None
        return (
            "These are not the images the model was trained on: those held out may be among those it has "
            "seen, and these serve as the normal images."
        )

    @property
    def _device(self) -> torch.device:
        return self.to_mean.weight.device

    def _split(self, values: Tensor) -> Sequence[Tensor]:
        """Split images or codes into as many as go through the network at once; nothing into nothing."""
        if not len(values):
            return ()
        if self._device.type != "cpu":
            return torch.split(values, INFERENCE_BATCH)
        size = self.preprocessing
        widest = self.config.widths[0] * size.height * size.width // self.network.patch_px**2
        return torch.split(values, max(1, min(INFERENCE_BATCH, CPU_LAYER_VALUES // widest)))

    def _placed(self, images: Tensor) -> Tensor:
        return images.to(self._device, torch.float32, memory_format=torch.channels_last)

    def _check_images(self, images: Tensor) -> None:
        expected = (3, self.preprocessing.height, self.preprocessing.width)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected or not images.is_floating_point():
            raise ConfigError(
                f"Images must be float (B, {', '.join(map(str, expected))}) in [0, 1]; "
                f"these are {images.dtype} {tuple(images.shape)}. Autoencoder.read() makes them from files."
            )
