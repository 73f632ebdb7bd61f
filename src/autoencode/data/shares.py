"""What each of several processes takes of a batch: together all of it, in its order, each image once."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple


class Share(NamedTuple):
    """The part of a batch that one process computes.

    Attributes:
        first: its first image, as a position in the batch.
        end: one past its last image.
        whole: images in the batch.
        counted: images it answers for: all of its own, or none where a small batch left it nothing. Then it
            computes the first image of the batch with weight 0, so that every process takes every step.
    """

    first: int
    end: int
    whole: int
    counted: int

    @property
    def part(self) -> slice:
        """The positions of its images in the batch."""
        return slice(self.first, self.end)

    @property
    def weight(self) -> float:
        """What its mean counts in the mean over the batch."""
        return self.counted / self.whole

    def pieces(self, count: int) -> list[Share]:
        """Divide it into at most so many, evenly but for one image, to be computed one after the other."""
        if not self.counted:
            return [self]
        count = min(count, self.counted)
        ends = [self.first + self.counted * number // count for number in range(count + 1)]
        return [Share(first, end, self.whole, end - first) for first, end in pairwise(ends)]


def share_of(whole: int, rank: int, count: int) -> Share:
    """Return what process `rank` of `count` takes of a batch of `whole` images, evenly but for one image."""
    first, end = whole * rank // count, whole * (rank + 1) // count
    return Share(first, end, whole, end - first) if first < end else Share(0, 1, whole, 0)
