"""Clean images -> corrupted images, which a model learns to undo (the loss is always against the clean ones).

A corruption is an entry of `CORRUPTIONS`, from which the command line, errors, the reference and the web page
are made. It is a function of the images, an amount and random numbers. The random numbers follow from a seed
that `loader.random_seed` derives from (seed, step), so that a corruption can be repeated.

An amount can be a range, from which each image draws its own: "gaussian:0-0.5". Corruptions with "/" between
them are alternatives, of which each image draws one: "gaussian:0-0.5/jpeg:5-50".

Shapes: B batch, H height, W width. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from autoencode.data import damage
from autoencode.data.damage import Draws
from autoencode.errors import ConfigError

# Help lists the corruptions and must not wait for torch: functions that need more of it than the methods of a
# tensor import it themselves.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch
    from torch import Tensor

    from autoencode.data.damage import Amount
    from autoencode.data.loader import LocalBatch


@dataclass(frozen=True)
class Range:
    """Amounts from `low` to `high`.

    Args:
        low, high: the limits.
        has_low, has_high: whether a limit itself is one of the amounts.
        is_whole: whether they are whole numbers.
    """

    low: float
    high: float
    has_low: bool = True
    has_high: bool = True
    is_whole: bool = False

    def __contains__(self, amount: float) -> bool:
        """Whether an amount can be used; a NaN cannot."""
        above = self.low <= amount if self.has_low else self.low < amount
        below = amount <= self.high if self.has_high else amount < self.high
        return above and below and (amount % 1 == 0 or not self.is_whole)

    def __str__(self) -> str:
        """Return it in words that follow the name of an amount."""
        low, high = (f"{one:g}".replace("e+0", "e") for one in (self.low, self.high))
        if self.is_whole:
            return f"a whole number from {low}" + ("" if math.isinf(self.high) else f" to {high}")
        above, below = "at least" if self.has_low else "above", "at most" if self.has_high else "below"
        return f"{above} {low} and {below} {high}"


class CorruptionKind(NamedTuple):
    """What a corruption does, and by which amounts.

    Attributes:
        parameter: name of its amount in errors.
        amounts: those that can be used.
        summary: its effect, as words that follow its name and an amount.
        page_choices: amounts that the web page offers, each with a few words; the last one is the example.
        apply: makes corrupted images, a new tensor, from images (B, 3, H, W), an amount or amounts (B,), and
            random numbers.
        identity_amount: the amount that changes nothing, with which a range may begin; None for none.
        in_training_only: whether it is left out when a model is evaluated.
        largest: greatest amount for images of (height, width) pixels, if it depends on them.
    """

    parameter: str
    amounts: Range
    summary: str
    page_choices: Sequence[tuple[float, str]]
    apply: Callable[[Tensor, Amount, Draws], Tensor]
    identity_amount: float | None = 0
    in_training_only: bool = False
    largest: Callable[[int, int], float] = lambda height, width: math.inf


CORRUPTIONS: dict[str, CorruptionKind] = {
    "gaussian": CorruptionKind(
        parameter="STANDARD_DEVIATION",
        amounts=Range(0, 10, has_low=False),  # ten times the range of pixels: an image is lost long before
        summary="adds noise of that standard deviation; the result is not clipped to [0, 1]",
        page_choices=[(0.1, "add a little noise"), (0.3, "add much noise")],
        apply=damage.gaussian,
    ),
    "clipped-noise": CorruptionKind(
        parameter="STANDARD_DEVIATION",
        amounts=Range(0, 1, has_low=False),
        summary="adds noise of that standard deviation as files of 8 bits hold it: cut off at black or white",
        page_choices=[(0.1, "add a little noise and save it"), (0.3, "add much noise and save it")],
        apply=damage.clipped_noise,
    ),
    "camera-noise": CorruptionKind(
        parameter="STANDARD_DEVIATION",
        amounts=Range(0, 1, has_low=False),
        summary="adds noise of that standard deviation as photographs have it: softened, and saved as JPEG",
        page_choices=[(0.05, "add the noise of a phone at night")],
        apply=damage.camera_noise,
    ),
    "poisson": CorruptionKind(
        parameter="PHOTONS",
        amounts=Range(1, 1e6),
        summary="adds the noise of counted photons, so many expected at white: the fewer, the more noise",
        page_choices=[(100, "take it in dim light"), (20, "take it in the dark")],
        apply=damage.poisson,
        identity_amount=None,
    ),
    "salt-and-pepper": CorruptionKind(
        parameter="FRACTION",
        amounts=Range(0, 1, has_low=False, has_high=False),
        summary="sets that fraction of the values, or in every other image of the pixels, to 0 or 1",
        page_choices=[(0.1, "lose 10 % of its pixels")],
        apply=damage.salt_and_pepper,
    ),
    "blur": CorruptionKind(
        parameter="STANDARD_DEVIATION",
        amounts=Range(0, 20, has_low=False),
        summary="convolves with a Gaussian of that standard deviation in pixels; in 8 bits",
        page_choices=[(1, "blur it a little"), (2, "blur it")],
        apply=damage.blur,
    ),
    "dropout": CorruptionKind(
        parameter="RATE",
        amounts=Range(0, 1, has_low=False, has_high=False),
        summary="sets that fraction of the values to 0 and rescales the rest, in training only",
        page_choices=[(0.3, "lose 30 % of its values")],
        apply=damage.dropout,
        in_training_only=True,
    ),
    "rotate": CorruptionKind(
        parameter="DEGREES",
        amounts=Range(0, 180, has_low=False),
        summary="turns by a random angle of up to that many degrees either way; borders are reflected",
        page_choices=[(15, "turn it by up to 15°")],
        apply=damage.rotate,
    ),
    "downscale": CorruptionKind(
        parameter="FACTOR",
        amounts=Range(2, math.inf, is_whole=True),
        summary="averages squares of that side in pixels and enlarges again, for super-resolution; in 8 bits",
        page_choices=[(2, "make it half as large"), (4, "make it a quarter as large")],
        apply=damage.downscale,
        identity_amount=1,
        largest=min,
    ),
    "mask": CorruptionKind(
        parameter="FRACTION",
        amounts=Range(0, 1, has_low=False, has_high=False),
        summary="fills a random rectangle of that fraction of the image with grey (0.5), for inpainting",
        page_choices=[(0.25, "hide a quarter of it")],
        apply=damage.mask,
    ),
    "jpeg": CorruptionKind(
        parameter="QUALITY",
        amounts=Range(1, 95, is_whole=True),
        summary="compresses as a JPEG file of that quality does, which shows in blocks of 8x8 pixels",
        page_choices=[(10, "compress it hard")],
        apply=damage.jpeg,
        identity_amount=None,
    ),
}


@dataclass(frozen=True)
class Corruption:
    """A corruption by one amount, or by amounts that are drawn from a range.

    Args:
        name: a name in `CORRUPTIONS`.
        amount: its number, such as a standard deviation; the least of a range.
        most: the greatest of a range, from which each image draws its amount uniformly; None for no range.

    Raises:
        ConfigError: there is no corruption of that name, or an amount is out of range.
    """

    name: str
    amount: float
    most: float | None = None

    def __post_init__(self) -> None:
        kind = CORRUPTIONS.get(self.name)
        amounts = [self.amount] if self.most is None else [self.most, self.amount]
        # The least of a range is a limit that is not drawn, except of whole numbers.
        if kind is not None and self.most is not None and self.amount == kind.identity_amount:
            amounts.pop()
        if kind is None or any(one not in kind.amounts for one in amounts):
            raise _unusable(str(self), self.name)
        if self.most is not None and not self.amount < self.most:
            raise ConfigError(f"Cannot corrupt by {self}: the least of a range comes first.")

    def __str__(self) -> str:
        return f"{self.name}:{self.amount:g}" + ("" if self.most is None else f"-{self.most:g}")

    def drawn(self, draws: Draws) -> Amount:
        """Return its amount, or (B,) amounts drawn from its range."""
        if self.most is None:
            return self.amount
        if CORRUPTIONS[self.name].amounts.is_whole:
            return self.amount + (draws.uniform() * (self.most - self.amount + 1)).floor()
        return self.most - draws.uniform() * (self.most - self.amount)


@dataclass(frozen=True)
class OneOf:
    """Corruptions of which each image draws one.

    Args:
        alternatives: equally likely; at least one.
    """

    alternatives: tuple[Corruption, ...]

    def __str__(self) -> str:
        return "/".join(map(str, self.alternatives))


CorruptionStep = Corruption | OneOf


def example(name: str) -> str:
    """Return a corruption as it is written, with an amount of visible effect: "gaussian:0.3"."""
    return f"{name}:{CORRUPTIONS[name].page_choices[-1][0]:g}"


# Amounts are positive, so that a minus is that of a range or of an exponent.
_NUMBER = r"[0-9.]+(?:[eE][+-]?[0-9]+)?"
_AMOUNT = re.compile(rf"({_NUMBER})(?:-({_NUMBER}))?")


def parse_corruptions(texts: Iterable[str]) -> tuple[CorruptionStep, ...]:
    """Read corruptions as the command line gives them: `["gaussian:0-0.3/poisson:10-100", "rotate:15"]`.

    Raises:
        ConfigError: a text is not NAME:AMOUNT or NAME:LEAST-MOST, there is no such corruption, or an amount
            is out of range.
    """
    steps: list[CorruptionStep] = []
    for text in texts:
        alternatives = tuple(_parsed(one) for one in text.split("/"))
        steps.append(alternatives[0] if len(alternatives) == 1 else OneOf(alternatives))
    return tuple(steps)


def _parsed(text: str) -> Corruption:
    name, _, amount = text.partition(":")
    try:
        if (match := _AMOUNT.fullmatch(amount.strip())) is None:
            raise ValueError(amount)
        least, most = float(match[1]), None if match[2] is None else float(match[2])
    except ValueError as err:
        raise _unusable(text, name) from err
    return Corruption(name, least, most)


def alternatives_of(step: CorruptionStep) -> tuple[Corruption, ...]:
    """Return the corruptions of which each image gets one."""
    return step.alternatives if isinstance(step, OneOf) else (step,)


def check_size(corruptions: Iterable[CorruptionStep], height: int, width: int) -> None:
    """Reject corruptions too strong for images of (height, width) pixels.

    Raises:
        ConfigError: an amount is too large for the images, such as a factor that leaves less than one pixel.
    """
    for corruption in (one for step in corruptions for one in alternatives_of(step)):
        kind = CORRUPTIONS[corruption.name]
        largest = kind.largest(height, width)
        if (corruption.amount if corruption.most is None else corruption.most) > largest:
            raise ConfigError(
                f"Cannot corrupt by {corruption}: for images of {height}x{width} the {kind.parameter} is at "
                f"most {largest:g}."
            )


def _unusable(text: str, name: str) -> ConfigError:
    names = [name] if name in CORRUPTIONS else list(CORRUPTIONS)
    choices = [
        f"{name}:{CORRUPTIONS[name].parameter}, {CORRUPTIONS[name].amounts}, for instance {example(name)}"
        for name in names
    ]
    return ConfigError(f"Cannot corrupt by {text}. Use {'; '.join(choices)}.")


def corrupt(
    images: Tensor,
    corruptions: Sequence[CorruptionStep],
    generator: torch.Generator,
    *,
    training: bool,
    local: LocalBatch | None = None,
) -> Tensor:
    """Apply corruptions in the order given.

    Args:
        images: (B, 3, H, W) in [0, 1]; not changed.
        corruptions: none returns the images themselves.
        generator: the source of randomness, on the device of the images.
        training: False leaves out dropout, as a dropout layer does at evaluation.
        local: the part of a batch that the images are; None for all of it.

    Returns:
        (B, 3, H, W); noise is not clipped to [0, 1].
    """
    draws = Draws(images, generator, local)
    for step in corruptions:
        if isinstance(step, OneOf):
            images = _one_each(images, step.alternatives, draws, training=training)
        else:
            images = _applied(images, step, draws, training=training)
    return images


def _applied(images: Tensor, corruption: Corruption, draws: Draws, *, training: bool) -> Tensor:
    kind = CORRUPTIONS[corruption.name]
    if kind.in_training_only and not training:
        return images
    return kind.apply(images, corruption.drawn(draws), draws)


def _one_each(images: Tensor, alternatives: Sequence[Corruption], draws: Draws, *, training: bool) -> Tensor:
    import torch

    found = torch.empty_like(images)
    choice = (draws.uniform() * len(alternatives)).floor()
    for index, corruption in enumerate(alternatives):
        # Each has random numbers of its own: a process none of whose images drew it need not draw them.
        own = draws.apart()
        if len(chosen := (choice == index).nonzero()[:, 0]):
            found[chosen] = _applied(images[chosen], corruption, own.only(chosen), training=training)
    return found
