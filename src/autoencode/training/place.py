"""Which of several processes this one is, as torchrun, `--workers` or `--ray` says in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from autoencode.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """This process among those that train one model.

    Attributes:
        rank: its number, from 0; process 0 is the one that writes and reports.
        count: how many there are, on all machines.
        local_rank: its number on this machine, from 0.
        restarts: how often all of them were started again after one was lost.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def first(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that reports: process 0, or one that is alone."""
    return "WORLD_SIZE" not in environment or environment.get("RANK", "0") == "0"


def own_place(environment: Mapping[str, str] = os.environ) -> Place:
    """Read this process's place; without WORLD_SIZE it is alone.

    Raises:
        ConfigError: a variable is missing, is no number, or does not fit the others.
    """
    if "WORLD_SIZE" not in environment:
        return Place()
    count = _number(environment, "WORLD_SIZE", least=1)
    restarts = _number(environment, "TORCHELASTIC_RESTART_COUNT", least=0, default="0")
    if count == 1:
        return Place(restarts=restarts)
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]:
        raise ConfigError(
            f"WORLD_SIZE is {count}, and {' and '.join(missing)} not set. Start the processes with torchrun "
            "or train --workers, which set them all; or unset WORLD_SIZE to train in one process."
        )
    rank = _number(environment, "RANK", least=0)
    if rank >= count:
        raise ConfigError(f"RANK is {rank} and WORLD_SIZE {count}: ranks go from 0 to {count - 1}.")
    local_rank = _number(environment, "LOCAL_RANK", least=0, default="0")
    return Place(rank, count, local_rank, restarts)


def _number(environment: Mapping[str, str], name: str, least: int, default: str = "") -> int:
    text = environment.get(name, default)
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name} is {text!r} in the environment; it must be a whole number from {least}.")
    return int(text)
