"""Vectors go to other programs with path, label and split; a model can be loaded to be trained."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from autoencode import ConfigError, Run, embed, load_model


@pytest.mark.parametrize("ending", [".csv", ".npz", ".parquet"])
def test_every_format_holds_the_codes_of_the_model(
    ending: str, trained: Run, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"codes{ending}"
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    found = embed(photos, trained.folder, out)
    model = load_model(trained.model_path)
    expected = model.encode(found.paths).numpy()
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
    assert found.labels == [path.parent.name for path in found.paths]
    if ending == ".csv":
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        vectors = np.array([[float(row[f"v{n}"]) for n in range(8)] for row in rows])
        labels = [row["label"] for row in rows]
    elif ending == ".npz":
        content = np.load(out)
        vectors, labels = content["vector"], content["label"].tolist()
    else:
        import pandas

        frame = pandas.read_parquet(out)
        vectors, labels = np.stack(frame["vector"].tolist()), frame["label"].tolist()
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert labels == found.labels


def test_arrays_have_vectors_too_and_another_ending_is_named(trained: Run, tmp_path: Path) -> None:
    images = np.zeros((3, 20, 20, 3), np.uint8)
    assert embed(images, trained.folder).vectors.shape == (3, 8)
    with pytest.raises(ConfigError, match=r"ends in \.parquet, \.npz or \.csv"):
        embed(images, trained.folder, tmp_path / "codes.xlsx")


def test_a_head_trains_the_encoder_of_a_model_loaded_to_be_trained(trained: Run) -> None:
    images = torch.rand(4, 3, 32, 32)
    frozen = load_model(trained.folder)
    assert not frozen.posterior(images).mean.requires_grad
    model = load_model(trained.folder, trainable=True)
    head = torch.nn.Linear(8, 2)
    before = model.to_mean.weight.detach().clone()
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=1.0)
    head(model.posterior(images).mean).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.to_mean.weight, before)
