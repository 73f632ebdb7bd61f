"""Sets of images compared with the held-out ones as sets: whether they look alike, not one by one.

Shapes: B batch, H height, W width, N images, D code size. Pixels are (N, H, W, 3) in 0..255.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from autoencode.data.loader import batches, random_seed
from autoencode.errors import MissingExtraError
from autoencode.evaluation.quality import BATCH, Advance, HeldOutImages, Restore
from autoencode.generation import PRIORS, generate, smear_note
from autoencode.index.neighbours import fit_vector_space
from autoencode.metrics.images import detail, kernel_inception_distance, manifold_shares
from autoencode.metrics.statistics import Estimate, auroc_estimate, estimate, wilson_interval
from autoencode.models.backbones import BACKBONE
from autoencode.models.judge import JUDGE
from autoencode.pixels import to_float, to_pixels

if TYPE_CHECKING:
    from autoencode.configuration import PriorName
    from autoencode.models.autoencoder import Autoencoder

Pixels = NDArray[np.uint8]

SHARP = "_sharp"  # ends the name of a set that the sharp decoder made

# The sets by their name in an evaluation.
SETS = {
    "training_images": "training images (floor)",
    "pca_reconstructions": "reconstructions of PCA",
    **{
        f"{name}{ending}": f"{label}{words}"
        for name, label in {
            "reconstructions": "reconstructions",
            **{f"samples_{name}": f"samples from {kind.label}" for name, kind in PRIORS.items()},
        }.items()
        for ending, words in (("", ""), (SHARP, ", sharp decoder"))
    },
}

# The least KID that reconstructions count as: any samples are many times as far as very good ones
# (docs/results.md).
_LEAST_KID = 0.1

NEIGHBOURS = 3  # as Kynkäänniemi et al. 2019 choose


class Judge(Protocol):
    """A frozen network that KID is measured by; see `EfficientNetLite0.pooled`."""

    name: str

    def pooled(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return features (N, F) of pixels."""


# The first trains sharp decoders, the second nothing here.
JUDGES: tuple[Judge, ...] = (BACKBONE, JUDGE)


@dataclass(frozen=True)
class Likeness:
    """How like the held-out images a set of images is, by one network.

    Attributes:
        kid: kernel distance of the features; 0 for images of the same kind, up to the luck of the draw.
        precision: share of the set that lies among the held-out images; see `manifold_shares`.
        recall: share of the held-out images that lie among the set.
    """

    kid: Estimate
    precision: Estimate
    recall: Estimate


@dataclass(frozen=True)
class SetQuality:
    """How like the held-out images a set of images is.

    Attributes:
        by: its likeness by the name of each network that judges.
        sharpness: median variance of the Laplacian, as a multiple of that of the held-out images.
        memorised: of samples, how often one is nearer to its nearest training image than the reconstruction
            of a held-out image is to its own, by the angle of whitened codes: at most 0.5 if they are no
            nearer, 1 if samples are copies. None of other sets, or where the model was trained on all images.
    """

    by: dict[str, Likeness]
    sharpness: Estimate | None
    memorised: Estimate | None


def set_qualities(
    model: Autoencoder,
    images: HeldOutImages,
    training: NDArray[np.int64] | None,
    restorers: Mapping[str, Restore],
    priors: Sequence[PriorName],
    notes: list[str],
    counter: Callable[[str, int], Advance],
) -> dict[str, SetQuality] | None:
    """Compare several sets of images, all of one size, with the held-out ones.

    Args:
        model: draws the samples.
        images: the held-out images.
        training: training images of the pack, at least as many; None if these are the held-out ones, too.
        restorers: functions that reconstruct images, by the name of the set.
        priors: the priors of the model to draw samples from.
        notes: gets a sentence on each network that is not installed.
        counter: returns a function to be called with numbers of images done, given the stage and the total.

    Returns:
        The sets by name; None if no network is installed.
    """
    count = len(images.rows)
    real, sets = _sets(model, images, training, restorers, priors)
    by = _likenesses(real, sets, notes, counter("measuring KID", (1 + len(sets)) * count * len(JUDGES)))
    if sets and not any(by.values()):
        return None
    memorised: dict[str, Estimate] = {}
    if training is not None and priors:
        made = (1 + len(priors)) * len(_endings(model)) * count
        advance = counter("looking for copies", len(training) + made)
        memorised = _memorised(model, images, training, sets, priors, advance)
    usual = float(np.median(detail(to_float(real)).numpy()))
    return {
        name: SetQuality(
            by[name],
            estimate(detail(to_float(pixels)).double().numpy() / usual, np.median) if usual else None,
            memorised.get(name),
        )
        for name, pixels in sets.items()
    }


def sampling_note(sets: Mapping[str, SetQuality], prior: PriorName) -> str | None:
    """Return one sentence if samples of a prior are much further from real images than reconstructions."""
    # The samples are those of the decoder that `generate` uses.
    ending = SHARP if f"reconstructions{SHARP}" in sets else ""
    samples, restored = (
        list(sets[f"{name}{ending}"].by.values())[-1].kid for name in (f"samples_{prior}", "reconstructions")
    )
    # A multiple of an uncertain distance is meaningless, unless that is below the least one for certain.
    if restored.interval is None or (restored.interval.low <= 0 and restored.interval.high > _LEAST_KID):
        return None
    return smear_note(prior, samples.value / max(restored.value, _LEAST_KID))


def _sets(
    model: Autoencoder,
    images: HeldOutImages,
    training: NDArray[np.int64] | None,
    restorers: Mapping[str, Restore],
    priors: Sequence[PriorName],
) -> tuple[Pixels, dict[str, Pixels]]:
    """Return the held-out images and the sets, each of as many; 1,000 images of 128x128 are 49 MB."""
    # KID of sets of one size: its estimate has no bias, but its variance depends on the size.
    count, found = len(images.rows), {}
    if training is not None:
        found["training_images"] = images.pack.pixels(training[:count])
    for name, restore in restorers.items():
        found[name] = np.concatenate([to_pixels(restore(seen)) for _, seen in images.pairs()])
    for prior in priors:
        codes = generate(model, count, prior=prior, seed=random_seed("evaluate", 0)).codes
        for ending in _endings(model):
            decoded = model.decode(codes, "sharp" if ending else "faithful")
            found[f"samples_{prior}{ending}"] = to_pixels(decoded)
    return images.pack.pixels(images.rows), found


def _likenesses(
    real: Pixels, sets: Mapping[str, Pixels], notes: list[str], advance: Advance
) -> dict[str, dict[str, Likeness]]:
    found: dict[str, dict[str, Likeness]] = {name: {} for name in sets}
    for judge in JUDGES:
        try:
            reference = _features(judge, real, advance)
            for name, pixels in sets.items():
                found[name][judge.name] = _likeness(reference, _features(judge, pixels, advance))
        except MissingExtraError as err:
            notes.append(f"{err}")
            advance((1 + len(sets)) * len(real))
    return found


def _features(judge: Judge, pixels: Pixels, advance: Advance) -> NDArray[np.float32]:
    parts = []
    for start in range(0, len(pixels), BATCH):
        parts.append(judge.pooled(pixels[start : start + BATCH]))
        advance(len(parts[-1]))
    return np.concatenate(parts)


def _likeness(reference: NDArray[np.float32], features: NDArray[np.float32]) -> Likeness:
    distance, count = kernel_inception_distance(reference, features), len(features)
    inside = manifold_shares(reference, features, min(NEIGHBOURS, count - 1))
    shares = [
        Estimate(number / of, wilson_interval(number, of), of)
        for number, of in zip(inside, (count, len(reference)), strict=True)
    ]
    return Likeness(Estimate(distance.value, distance.interval, count), *shares)


def _memorised(
    model: Autoencoder,
    images: HeldOutImages,
    training: NDArray[np.int64],
    sets: Mapping[str, Pixels],
    priors: Sequence[PriorName],
    advance: Advance,
) -> dict[str, Estimate]:
    """Compare the distances of samples and of held-out images from their nearest training images."""
    parts = []
    for batch in batches(images.pack, training, BATCH):
        parts.append(model.encode(batch).numpy())
        advance(len(batch))
    codes = np.concatenate(parts)
    space = fit_vector_space(codes, "whitened")  # as a search compares them
    known = space.vectors(codes)

    def nearest(pixels: Pixels) -> NDArray[np.float32]:
        """Similarity (N,) of each image to the most similar training image."""
        # Images of both decoders are encoded again: the blur of a decoder moves codes as well.
        found = space.vectors(model.encode(to_float(pixels)).numpy())
        advance(len(pixels))
        return np.concatenate([(found[i : i + BATCH] @ known.T).max(1) for i in range(0, len(found), BATCH)])

    usual = {ending: nearest(sets[f"reconstructions{ending}"]) for ending in _endings(model)}
    return {
        f"samples_{prior}{ending}": auroc_estimate(similar, nearest(sets[f"samples_{prior}{ending}"]))
        for ending, similar in usual.items()
        for prior in priors
    }


def _endings(model: Autoencoder) -> tuple[str, ...]:
    """Endings of the names of the sets that the decoders of a model make."""
    return ("",) if model.sharp_decoder is None else ("", SHARP)
