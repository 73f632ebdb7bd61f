"""What the environment says of a process, and what it must not say."""

from __future__ import annotations

import pytest

from autoencode.errors import ConfigError
from autoencode.training.process import Ranks, is_first, own_ranks

TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def test_a_process_is_alone_unless_it_is_told_otherwise() -> None:
    assert own_ranks({}) == own_ranks({"WORLD_SIZE": "1"}) == Ranks(0, 1, 0, 0)
    assert is_first({}) and is_first({"RANK": "3"})


def test_a_process_reads_what_torchrun_says() -> None:
    assert own_ranks(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "2"}) == Ranks(3, 4, 1, 2)
    assert own_ranks({"WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "2"}) == Ranks(0, 1, 0, 2)
    assert not is_first(TORCHRUN)
    assert is_first(TORCHRUN | {"RANK": "0"})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT not set"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({"WORLD_SIZE": "0"}, "whole number from 1"),
        (TORCHRUN | {"RANK": "4"}, "ranks go from 0 to 3"),
        (TORCHRUN | {"RANK": "-1"}, "RANK is '-1'"),
    ],
)
def test_an_environment_that_makes_no_sense_is_rejected(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        own_ranks(environment)
