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


class CorruptionKind(NamedTuple):
    """One way to corrupt images.

    Attributes:
        parameter: name of its amount in errors.
        allowed: the amounts that can be used, as words that follow the parameter.
        allows: whether an amount can be used; never called with a NaN.
        summary: its effect, as words that follow its name and an amount.
        offers: amounts that the web page offers, each with a few words; the last one is the example.
        apply: makes corrupted images, a new tensor, from images (B, 3, H, W), an amount or amounts (B,), and
            random numbers.
        harmless: the amount that changes nothing, with which a range may begin; None for none.
        in_whole_numbers: whether amounts are whole numbers.
        in_training_only: whether it is left out when a model is evaluated.
        largest: greatest amount for images of (height, width) pixels, if it depends on them.
    """

    parameter: str
    allowed: str
    allows: Callable[[float], bool]
    summary: str
    offers: Sequence[tuple[float, str]]
    apply: Callable[[Tensor, Amount, Draws], Tensor]
    harmless: float | None = 0
    in_whole_numbers: bool = False
    in_training_only: bool = False
    largest: Callable[[int, int], float] = lambda height, width: math.inf


CORRUPTIONS: dict[str, CorruptionKind] = {
    "gaussian": CorruptionKind(
        "STANDARD_DEVIATION",
        "above 0 and at most 10",  # ten times the range of pixels: an image is lost in noise long before
        lambda amount: 0 < amount <= 10,
        "adds noise of that standard deviation; the result is not clipped to [0, 1]",
        [(0.1, "add a little noise"), (0.3, "add much noise")],
        damage.gaussian,
    ),
    "clipped-noise": CorruptionKind(
        "STANDARD_DEVIATION",
        "above 0 and at most 1",
        lambda amount: 0 < amount <= 1,
        "adds noise of that standard deviation as files of 8 bits hold it: cut off at black and white",
        [(0.1, "add a little noise and save it"), (0.3, "add much noise and save it")],
        damage.clipped_noise,
    ),
    "camera-noise": CorruptionKind(
        "STANDARD_DEVIATION",
        "above 0 and at most 1",
        lambda amount: 0 < amount <= 1,
        "adds noise of that standard deviation as photographs have it: softened, and saved as JPEG",
        [(0.05, "add the noise of a phone at night")],
        damage.camera_noise,
    ),
    "poisson": CorruptionKind(
        "PHOTONS",
        "at least 1 and at most 1e6",
        lambda amount: 1 <= amount <= 1e6,
        "draws the photons of each value, so many for white: shot noise, the stronger the fewer they are",
        [(100, "take it in dim light"), (20, "take it in the dark")],
        damage.poisson,
        harmless=None,
    ),
    "salt-and-pepper": CorruptionKind(
        "SHARE",
        "above 0 and below 1",
        lambda amount: 0 < amount < 1,
        "sets that share of the values, or in every other image of the pixels, to 0 or 1",
        [(0.1, "lose 10 % of its pixels")],
        damage.salt_and_pepper,
    ),
    "blur": CorruptionKind(
        "STANDARD_DEVIATION",
        "above 0 and at most 20",
        lambda amount: 0 < amount <= 20,
        "convolves with a Gaussian of that standard deviation in pixels",
        [(1, "blur it a little"), (2, "blur it")],
        damage.blur,
    ),
    "dropout": CorruptionKind(
        "RATE",
        "above 0 and below 1",
        lambda amount: 0 < amount < 1,
        "sets that fraction of the values to 0 and rescales the rest, in training only",
        [(0.3, "lose 30 % of its values")],
        damage.dropout,
        in_training_only=True,
    ),
    "rotate": CorruptionKind(
        "DEGREES",
        "above 0 and at most 180",
        lambda amount: 0 < amount <= 180,
        "turns by a random angle of up to that many degrees either way; borders are reflected",
        [(15, "turn it by up to 15°")],
        damage.rotate,
    ),
    "downscale": CorruptionKind(
        "FACTOR",
        "a whole number from 2",
        lambda amount: amount >= 2 and amount % 1 == 0,
        "averages squares of that side in pixels and enlarges again, for super-resolution",
        [(2, "make it half as large"), (4, "make it a quarter as large")],
        damage.downscale,
        harmless=1,
        in_whole_numbers=True,
        largest=min,
    ),
    "mask": CorruptionKind(
        "SHARE",
        "above 0 and below 1",
        lambda amount: 0 < amount < 1,
        "fills a random rectangle of that share of the image's area with grey (0.5), for inpainting",
        [(0.25, "hide a quarter of it")],
        damage.mask,
    ),
    "jpeg": CorruptionKind(
        "QUALITY",
        "a whole number from 1 to 95",
        lambda amount: 1 <= amount <= 95 and amount % 1 == 0,
        "compresses as a JPEG file of that quality does, which shows in blocks of 8x8 pixels",
        [(10, "compress it hard")],
        damage.jpeg,
        harmless=None,
        in_whole_numbers=True,
    ),
}


@dataclass(frozen=True)
class Corruption:
    """One way to corrupt images, with an amount or a range of them.

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
        if kind is not None and self.most is not None and self.amount == kind.harmless:
            amounts.pop()
        if kind is None or any(math.isnan(one) or not kind.allows(one) for one in amounts):
            raise _unusable(str(self), self.name)
        if self.most is not None and not self.amount < self.most:
            raise ConfigError(f"Cannot corrupt by {self}: the least of a range comes first.")

    def __str__(self) -> str:
        return f"{self.name}:{self.amount:g}" + ("" if self.most is None else f"-{self.most:g}")

    def drawn(self, draws: Draws) -> Amount:
        """Return its amount, or (B,) amounts drawn from its range."""
        if self.most is None:
            return self.amount
        if CORRUPTIONS[self.name].in_whole_numbers:
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


Step = Corruption | OneOf


def example(name: str) -> str:
    """Return a corruption as it is written, with an amount of visible effect: "gaussian:0.3"."""
    return f"{name}:{CORRUPTIONS[name].offers[-1][0]:g}"


# Amounts are positive, so that a minus is that of a range or of an exponent.
_NUMBER = r"[0-9.]+(?:[eE][+-]?[0-9]+)?"
_AMOUNT = re.compile(rf"({_NUMBER})(?:-({_NUMBER}))?")


def parse_corruptions(texts: Iterable[str]) -> tuple[Step, ...]:
    """Read corruptions as the command line gives them: `["gaussian:0-0.3/poisson:10-100", "rotate:15"]`.

    Raises:
        ConfigError: a text is not NAME:AMOUNT or NAME:LEAST-MOST, there is no such corruption, or an amount
            is out of range.
    """
    steps: list[Step] = []
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


def _alternatives(step: Step) -> tuple[Corruption, ...]:
    return step.alternatives if isinstance(step, OneOf) else (step,)


def check_size(corruptions: Iterable[Step], height: int, width: int) -> None:
    """Reject corruptions too strong for images of (height, width) pixels.

    Raises:
        ConfigError: an amount is too large for the images, such as a factor that leaves less than one pixel.
    """
    for corruption in (one for step in corruptions for one in _alternatives(step)):
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
        f"{name}:{CORRUPTIONS[name].parameter}, {CORRUPTIONS[name].allowed}, for instance {example(name)}"
        for name in names
    ]
    return ConfigError(f"Cannot corrupt by {text}. Use {'; '.join(choices)}.")


def corrupt(
    images: Tensor,
    corruptions: Sequence[Step],
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
