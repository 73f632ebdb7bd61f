"""New images: codes drawn from a prior and decoded, and a walk through the prior as an animation.

Shapes: N images, D code size, F frames. Codes are (N, D), pixels (N, H, W, 3) in 0..255.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.atomic import check_output, claim_folder, make_folder, write_json
from autoencode.configuration import DecoderName
from autoencode.data.loader import batches, random_seed
from autoencode.data.preprocessing import WRITABLE, save_image
from autoencode.errors import ConfigError, MissingExtraError, check_choice
from autoencode.figures import check_frames, image_grid, png, save_frames
from autoencode.metrics.images import kernel_inception_distance
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder
from autoencode.models.backbones import BACKBONE, BATCH
from autoencode.models.model_file import as_model
from autoencode.models.priors import GaussianMixture, Prior, StandardNormal
from autoencode.pixels import to_float, to_pixels

if TYPE_CHECKING:
    from collections.abc import Callable

    from autoencode.configuration import PriorName
    from autoencode.data.pack import Pack, Progress


GRID_NAME, SETTINGS_NAME, IMAGES_NAME = "grid.png", "samples.json", "images"
GRID_IMAGES = 256  # more would be too small to look at

WALK_FRAMES, FRAMES_PER_SECOND = 120, 20
FRAMES_PER_TURN = 40  # a walk then shows another image about every second

# Samples this many times as far from held-out images as reconstructions are do not look like them. It is 1.3
# for faces and 1.8 for digits; 2.3 for flowers and 4.1 for emoji, whose samples are smears (docs/results.md).
MOST_TIMES_AS_FAR = 2.0
LIKENESS = "times_as_far"  # in the provenance of a model
# The least distance that reconstructions count as: any samples are many times as far as very good ones.
_LEAST_DISTANCE = 0.45
_LIKENESS_IMAGES, _LEAST_LIKENESS_IMAGES = 200, 20  # seconds, and enough to tell 1.5 from 3

# The most codes, and numbers in them, that a mixture is fitted to: enough for 20 components of 256
# dimensions, and 80 MB in fp64.
FITTED_CODES, FITTED_VALUES = 20_000, 10_240_000


@dataclass(frozen=True)
class Samples:
    """Generated images.

    Attributes:
        pixels: (N, H, W, 3) in 0..255.
        codes: (N, D) float32, decoded to `pixels`.
        prior: the prior they were drawn from, "mixture" or "normal".
        note: a sentence if the model has not learned enough to generate from that prior; see `likeness`.
    """

    pixels: NDArray[np.uint8]
    codes: Tensor
    prior: PriorName
    note: str | None = None

    def _repr_png_(self) -> bytes:
        return png(image_grid(self.pixels[:GRID_IMAGES]))


def generate(
    model: Autoencoder | str | Path,
    count: int = 64,
    out: str | Path | None = None,
    *,
    prior: PriorName | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    decoder: DecoderName = "sharp",
) -> Samples:
    """Draw new images.

    Args:
        model: from `load_model`, or its path.
        count: N, at least 1.
        out: a folder for a grid of the first 256, for each image as a PNG file and for the settings; made
            here. None writes nothing.
        prior: "normal" is N(0, I), the prior in the training of a VAE; "mixture" is that of the model file.
            The default is the mixture if the file has one.
        temperature: factor on the standard deviation of the prior, at least 0 (Kingma & Dhariwal 2018,
            section 6). Below 1, images are more alike and have fewer flaws.
        seed: the same seed gives the same images.
        decoder: "faithful" for the decoder of the lower squared error, in a model that also has a sharp one.

    Raises:
        ModelFileError: there is no usable model at the path.
        ConfigError: the model has no such prior, there is no such decoder, or a number is out of range.
        OutputError: `out` is not empty and holds no earlier samples, or cannot be written.
    """
    model = as_model(model)
    if count < 1:
        raise ConfigError(f"The number of images is {count}; it must be at least 1.")
    name, chosen = _chosen(model, prior, temperature)
    check_choice("decoder", decoder, get_args(DecoderName))
    folder = None if out is None else Path(out)
    if folder is not None:
        claim_folder(folder, SETTINGS_NAME, "samples")
    codes = chosen.sample(count, temperature, _generator("generate", seed))
    note = smear_note(name, float(model.provenance.get(LIKENESS, {}).get(name, 0)))
    made = Samples(to_pixels(model.decode(codes, decoder)), codes, name, note)
    if folder is not None:
        used = decoder if model.sharp_decoder is not None else "faithful"
        settings = {"model": model.digest, "temperature": temperature, "seed": seed, "decoder": used}
        _write(folder, made, settings)
    return made


def vary(
    model: Autoencoder | str | Path,
    code: Tensor,
    count: int = 8,
    *,
    amount: float = 0.3,
    prior: PriorName | None = None,
    seed: int = 0,
) -> Samples:
    """Draw images around a code, with codes as likely under the prior as that code.

    Args:
        model: from `load_model`, or its path.
        code: (D,), of a sample or of an image.
        count: N, at least 1.
        amount: distance, from 0 (the same image) to 1 (unrelated images).
        prior: as for `generate`.
        seed: the same seed gives the same images.

    Raises:
        ModelFileError: there is no usable model at the path.
        ConfigError: as for `generate`.
    """
    model = as_model(model)
    if count < 1 or not 0 <= amount <= 1:
        raise ConfigError(
            f"Variations need a count of at least 1 and an amount in 0..1, not {count}, {amount}."
        )
    name, chosen = _chosen(model, prior, 1.0)
    codes = chosen.near(code, count, amount, _generator("vary", seed))
    return Samples(to_pixels(model.decode(codes)), codes, name)


class PriorKind(NamedTuple):
    """A prior that models can have.

    Attributes:
        label: its name in tables of results.
        of: returns the prior of a model; None if the model has none of this kind.
        missing: the error in that case: the reason, and what to do.
    """

    label: str
    of: Callable[[Autoencoder], Prior | None]
    missing: str


# The first that a model has is its default.
PRIORS: dict[PriorName, PriorKind] = {
    "mixture": PriorKind(
        "the mixture",
        lambda model: model.prior,
        "This model has no mixture to generate from. To fit one, give its `autoencode train` command "
        "again with --resume, or call autoencode.fit_prior(model, pack) and save the model.",
    ),
    "normal": PriorKind(
        "N(0, I)",
        lambda model: StandardNormal(model.config.code_size) if model.is_vae else None,
        "Only the codes of a VAE are trained towards N(0, I); this model is a plain autoencoder. "
        "Generate from its mixture: --prior mixture.",
    ),
}


def priors(model: Autoencoder) -> list[PriorName]:
    """Return the priors that a model can generate from, its default first; none for a bare autoencoder."""
    return [name for name, kind in PRIORS.items() if kind.of(model) is not None]


def walk(
    model: Autoencoder | str | Path,
    out: str | Path | None = None,
    *,
    frames: int = WALK_FRAMES,
    prior: PriorName | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    decoder: DecoderName = "sharp",
) -> Samples:
    """Go through the prior on a smooth closed path; each frame is distributed as a sample of N(0, I).

    In a mixture the path moves from component to component; frames between two are not samples of it.

    Args:
        model: from `load_model`, or its path.
        out: a .gif or .webp file for a looping animation, or another image file for a strip.
        frames: F, at least 1.
        prior, temperature, decoder: as for `generate`.
        seed: the same seed gives the same path.

    Raises:
        ModelFileError: there is no usable model at the path.
        ConfigError: as for `generate`; or `out` does not end in an image extension, or exists and is not
            an image.
        OutputError: `out` cannot be written; an earlier file is unchanged.
    """
    model = as_model(model)
    if frames < 1:
        raise ConfigError(f"The number of frames is {frames}; it must be at least 1.")
    name, chosen = _chosen(model, prior, temperature)
    if out is not None:
        check_output(Path(out), WRITABLE)
        check_frames(Path(out), frames, model.preprocessing.height, model.preprocessing.width)
    turns = max(1, round(frames / FRAMES_PER_TURN))
    codes = chosen.path(frames, turns, temperature, _generator("walk", seed))
    made = Samples(to_pixels(model.decode(codes, decoder)), codes, name)
    if out is not None:
        save_frames(Path(out), made.pixels, FRAMES_PER_SECOND)
    return made


def fit_prior(
    model: Autoencoder, pack: Pack, *, seed: int = 0, progress: Progress | None = None
) -> GaussianMixture:
    """Fit a mixture to the codes of training images and make it the prior of the model.

    `save_model(path, model, model.provenance)` keeps it. The same model, pack and seed give the same
    mixture. How like real images samples are is kept in the provenance, so that `generate` can warn; see
    `likeness`.

    Args:
        model: from `load_model`; its `prior` is set.
        pack: the images it was trained on; at most 20,000 of the training split are used, or of the whole
            pack if that split is empty.
        seed: of the choice of images and of all random numbers.
        progress: called with (images encoded, images in total).

    Raises:
        ConfigError: the images of the pack have another size than the model's, or a code is not finite.
    """
    most = min(FITTED_CODES, max(1, FITTED_VALUES // model.config.code_size))
    chosen = np.random.default_rng(random_seed("prior", seed)).permutation(pack.training_rows())[:most]
    generator = _generator("prior", seed)
    codes: list[Tensor] = []
    for images in batches(pack, chosen, INFERENCE_BATCH, progress=progress):
        posterior = model.encode_distribution(images)
        # Drawn from the posterior: the decoder was trained on such codes, and a mixture of them describes
        # held-out codes better than a mixture of the means (by 0.8 nats per code, on 9,000 faces).
        codes.append(posterior.sample(torch.randn(posterior.mean.shape, generator=generator)))
    model.prior = GaussianMixture.fit(torch.cat(codes), seed)
    with contextlib.suppress(MissingExtraError):  # without the network nobody can say
        model.provenance[LIKENESS] = likeness(model, pack)
    return model.prior


def likeness(model: Autoencoder, pack: Pack) -> dict[PriorName, float]:
    """Return the distance of samples from held-out images over that of reconstructions, by prior.

    Distances are kernel distances of the descriptors of EfficientNet-Lite0, as in KID, of 200 images each.
    Reconstructions count as 0.45 away at least.

    Args:
        model: from `load_model`, with its prior.
        pack: the images it was trained on; empty if it holds too few others to say.

    Raises:
        MissingExtraError: the weights of EfficientNet-Lite0 are not installed.
    """
    held_out = pack.held_out()
    rows = np.unique(held_out.rows)[:_LIKENESS_IMAGES]
    if held_out.split == "train" or len(rows) < _LEAST_LIKENESS_IMAGES:
        return {}
    images = to_float(pack.pixels(pack.reading_order(rows)))
    real = _described(images)
    restored = kernel_inception_distance(real, _described(model.reconstruct(images))).value
    found = {}
    for name in priors(model):
        drawn = to_float(generate(model, len(rows), prior=name).pixels)
        apart = kernel_inception_distance(real, _described(drawn)).value
        found[name] = apart / max(restored, _LEAST_DISTANCE)
    return found


def smear_note(prior: PriorName, times_as_far: float) -> str | None:
    """Return one sentence if samples of a prior are too far from real images, else None."""
    if times_as_far <= MOST_TIMES_AS_FAR:
        return None
    return (
        f"The model has not learned enough to generate from {PRIORS[prior].label}: its samples are "
        f"{times_as_far:.1f} times as far from held-out images as good reconstructions are. More images, or "
        "images that are more alike, help."
    )


def _described(images: Tensor) -> NDArray[np.float32]:
    """Return the descriptors (N, F) of images, of such a length that the kernel sees their cosines."""
    found = np.concatenate([BACKBONE.descriptors(part) for part in torch.split(images, BATCH)])
    return found * np.float32(math.sqrt(found.shape[1]))


def _chosen(model: Autoencoder, name: PriorName | None, temperature: float) -> tuple[PriorName, Prior]:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"The temperature is {temperature}; it must be a number of at least 0.")
    wanted = next(iter(priors(model) or PRIORS)) if name is None else name
    check_choice("prior", wanted, PRIORS)
    prior = PRIORS[wanted].of(model)
    if prior is None:
        raise ConfigError(PRIORS[wanted].missing)
    return wanted, prior


def _generator(purpose: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(random_seed(purpose, seed))


def _write(folder: Path, made: Samples, settings: dict[str, object]) -> None:
    make_folder(folder / IMAGES_NAME)
    # First: see `claim_folder`.
    write_json(folder / SETTINGS_NAME, {"count": len(made.pixels), "prior": made.prior, **settings})
    digits = max(4, len(str(len(made.pixels) - 1)))
    names = [f"sample-{index:0{digits}}.png" for index in range(len(made.pixels))]
    for name, pixels in zip(names, made.pixels, strict=True):
        save_image(folder / IMAGES_NAME / name, pixels)
    for earlier in (folder / IMAGES_NAME).glob("sample-*.png"):
        if earlier.name not in set(names):
            earlier.unlink()
    save_image(folder / GRID_NAME, image_grid(made.pixels[:GRID_IMAGES]))
