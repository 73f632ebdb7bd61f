"""Codes in bf16 are indexed where the neighbours of images stay the same, and a query is encoded alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from autoencode import ConfigError, Run, build_index, load_model, open_index
from autoencode.embedding import BF16_CODES, find_encoder
from autoencode.index import request
from autoencode.index.neighbours import fit_vector_space
from autoencode.index.request import same_neighbours


def test_an_index_in_bf16_says_so_and_encodes_queries_alike(
    trained: Run, photos: Path, tmp_path: Path
) -> None:
    build_index(photos, tmp_path / "i", trained.folder, embedding=BF16_CODES)
    index = open_index(tmp_path / "i")
    assert index.embedding == BF16_CODES
    model = load_model(trained.model_path)
    image = index.pack.folder / index.entries[7].path
    wanted = find_encoder(BF16_CODES, model).encode(model.read(image))[0]
    np.testing.assert_allclose(index.codes[index.entries[7].row], wanted, rtol=0.02, atol=1e-3)
    copy = tmp_path / "copy.png"
    shutil.copy(image, copy)  # an indexed file is not its own neighbour
    [found] = index.search([copy], k=1).results
    assert found.found[0].path == image
    assert found.found[0].score > 0.9999
    # Updated, it stays what it is.
    assert build_index(photos, tmp_path / "i").embedding == BF16_CODES


def test_codes_in_bf16_with_other_neighbours_are_rejected(
    trained: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "_LEAST_COMPARED", 10)
    monkeypatch.setattr(request, "_AGREEMENT", 1.01)
    with pytest.raises(ConfigError, match=r"keep \d+\.\d% of the 10 nearest of 48 images.*--embedding code"):
        build_index(photos, tmp_path / "i", trained.folder, embedding=BF16_CODES)
    assert not (tmp_path / "i" / "index.safetensors").exists()


@pytest.mark.parametrize("distance", ["whitened", "cosine", "l2"])
def test_neighbours_are_those_of_a_brute_force(distance: str) -> None:
    generator = np.random.default_rng(0)
    exact = generator.standard_normal((60, 6)).astype(np.float32)
    found = exact + 0.3 * generator.standard_normal((60, 6)).astype(np.float32)
    space = fit_vector_space(exact, distance)  # type: ignore[arg-type]
    neighbours = []
    for codes in (exact, found):
        vectors = space.vectors(codes)
        # Vectors of equal lengths are as near by their distance as by their angle.
        nearest = NearestNeighbors(n_neighbors=11).fit(vectors).kneighbors(vectors)[1]
        neighbours.append([set(row) - {index} for index, row in enumerate(nearest)])
    shares = [len(one & other) / 10 for one, other in zip(*neighbours, strict=True)]
    assert 0.2 < np.mean(shares) < 0.95
    assert same_neighbours(space, exact, found) == pytest.approx(np.mean(shares))
    assert same_neighbours(space, exact, exact) == 1
