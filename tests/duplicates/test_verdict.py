"""The verdict on registered pairs, whose agreement is given."""

import numpy as np
import pytest

from autoencode.duplicates.agreement import Agreement
from autoencode.duplicates.verdict import judge
from autoencode.duplicates.verification import Match

UPRIGHT = np.eye(2, 3, dtype=np.float32)


def pair(number: int, agreement: Agreement, map_: np.ndarray = UPRIGHT) -> Match:
    return Match(2 * number, 2 * number + 1, map_.astype(np.float32), agreement)


@pytest.mark.parametrize(("drawings", "copies"), [(False, [0, 1, 2]), (True, [1, 2])])
def test_a_part_that_was_cut_out_and_edited_is_no_copy_among_drawings_that_share_parts(
    drawings: bool, copies: list[int]
) -> None:
    """The face of a judge is that of a person, enlarged; what was edited or cut out alone is a copy."""
    edit = (0.3, 0.4, 0.7, 0.7)
    part = 1.3 * UPRIGHT + np.array([[0, 0, 0.28], [0, 0, 0.28]])
    matches = [
        pair(0, Agreement(0.95, 0.94, 0.61, 40, differs=edit), part),
        pair(1, Agreement(0.95, 0.94, 1, 40, differs=edit)),
        pair(2, Agreement(0.95, 0.94, 0.61, 40), part),
    ]
    # Different images, fewer the more they agree.
    alike = [0.755] * 3 + [0.655] * 9 if drawings else []
    matches += [pair(3 + number, Agreement(value, 0.6, 1, 40)) for number, value in enumerate(alike)]
    verdict = judge(matches, np.full((2 * len(matches), 2), 64))
    assert sorted(match.first // 2 for match in verdict.copies) == copies
    assert [match.first // 2 for match in verdict.possible] == ([0] if drawings else [])
