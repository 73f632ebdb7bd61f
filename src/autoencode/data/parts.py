"""One of several parts in which machines pack a folder at once; no two write the same file.

Part i of n has the files whose path has a digest of i modulo n, and the shards whose number is i modulo n.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from autoencode.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        index: from 0, below `count`.
        count: parts in all; 1 is the whole.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read "2/4", the second of four.

        Raises:
            ConfigError: it is something else.
        """
        number, separator, count = text.partition("/")
        if not (separator and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ConfigError(f"{text!r} is no part of a whole: give 1/4 for the first of four.")
        return cls(int(number) - 1, int(count))

    def has(self, shard: int) -> bool:
        """Whether a shard of that number is of this part."""
        return shard % self.count == self.index

    def takes(self, path: str) -> bool:
        """Whether a file of that path is of this part."""
        if self.count == 1:
            return True
        digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index

    def first_after(self, shard: int) -> int:
        """Return the lowest number of a shard of this part above `shard`, which may be -1."""
        return shard + 1 + (self.index - shard - 1) % self.count

    def __str__(self) -> str:
        return f"{self.index + 1}-of-{self.count}"


WHOLE = Part()
