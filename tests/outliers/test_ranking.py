"""The ranking of a pack, against scoring its files one by one."""

from __future__ import annotations

import numpy as np
import pytest

from autoencode import ConfigError, Pack, Run, find_outliers, fit_reference, load_model, pack_folder
from autoencode.outliers.review import Ranking, rank_pack


@pytest.fixture(scope="module")
def ranking(trained: Run, tiny_pack: Pack) -> Ranking:
    model = load_model(trained.model_path)
    return rank_pack(model, tiny_pack, fit_reference(model, tiny_pack))


def test_it_agrees_with_finding_outliers_among_the_files(
    ranking: Ranking, trained: Run, tiny_pack: Pack
) -> None:
    model = load_model(trained.model_path)
    reference = fit_reference(model, tiny_pack)
    found = find_outliers(model, tiny_pack.folder, reference, fpr=0.5)
    paths = [tiny_pack.folder / entry.path for entry in tiny_pack.entries]
    expected = {finding.path: finding.score for finding in found.findings}
    np.testing.assert_allclose(ranking.scores, [expected[path] for path in paths], rtol=1e-4)
    assert (np.diff(ranking.scores[ranking.order]) <= 0).all()
    assert ranking.flagged(0.5) == sum(finding.outlier for finding in found.findings)
    assert found.measured_rate == ranking.measured(0.5)


def test_no_rate_is_kept_to_that_cannot_be_promised(ranking: Ranking) -> None:
    smallest = ranking.smallest_rate
    assert smallest == 1 / (ranking.calibration_images + 1)
    ranking.flagged(smallest)
    with pytest.raises(ConfigError, match="needs"):
        ranking.flagged(smallest / 2)


def test_progress_reaches_its_end_and_another_size_is_rejected(
    trained: Run, tiny_pack: Pack, tmp_path: object
) -> None:
    model = load_model(trained.model_path)
    seen: list[tuple[int, int]] = []
    rank_pack(model, tiny_pack, fit_reference(model, tiny_pack), lambda *at: seen.append(at))
    assert seen[-1] == (48, 48)
    other = pack_folder(tiny_pack.folder, f"{tmp_path}/other.pack", size=48)
    with pytest.raises(ConfigError, match="Give the pack it was trained on"):
        rank_pack(model, other, fit_reference(model, tiny_pack))
