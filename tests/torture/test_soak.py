"""How a soak tells what leaks from what is made once."""

from __future__ import annotations

import pytest
from torture.soak import GROWTH_MB, growth_mb


@pytest.mark.parametrize("rounds", [4, 100])
def test_what_grows_in_every_round_is_found(rounds: int) -> None:
    leak = 1.01 * GROWTH_MB / (rounds - 2)  # of the steps but one
    assert growth_mb([600 + leak * number for number in range(rounds)]) >= GROWTH_MB


@pytest.mark.parametrize("memory", [[681, 682, 726, 726], [681, 726, 726, 727], [700, 690, 710], [600]])
def test_one_step_is_not_a_leak(memory: list[float]) -> None:
    assert growth_mb(memory) < GROWTH_MB
