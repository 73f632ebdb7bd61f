"""Embeddings by their registry; functions of images give the same, here and on a cluster that loses nodes."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from tests.clusters import LocalCluster
from torch import Tensor

from autoencode import (
    Autoencoder,
    ConfigError,
    ImageFolderError,
    Limits,
    ModelConfig,
    Pack,
    Preprocessing,
    Run,
    open_index,
)
from autoencode.configuration import Embedding
from autoencode.data.loader import batch_slices, batches
from autoencode.embedding import (
    BF16_CODES,
    EMBEDDINGS,
    REDUCED_SIZE,
    find_encoder,
    fit_reduction,
    map_files,
    map_pack,
)
from autoencode.index.memory import INDEX_NAME
from autoencode.models.backbones import BACKBONE
from autoencode.pixels import to_float


def build(seed: int, side: int = 32) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(ModelConfig(code_size=6, widths=(4, 8)), Preprocessing(side, side)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_codes_are_those_of_the_model(images: torch.Tensor) -> None:
    model = build(0)
    model.digest = "abc"
    encoder = find_encoder("code", model)
    assert (encoder.kind, encoder.size, encoder.digest) == ("code", 6, "abc")
    np.testing.assert_array_equal(encoder.encode(images), model.encode(images).numpy())


def test_auto_is_pretrained_with_a_model_and_without() -> None:
    assert find_encoder("auto", build(0)).kind == "pretrained"
    assert find_encoder("auto").kind == find_encoder().kind == "pretrained"


def test_pretrained_vectors_are_the_descriptors_of_the_backbone(images: torch.Tensor) -> None:
    encoder = find_encoder("pretrained")
    assert (encoder.size, encoder.digest) == (BACKBONE.size, BACKBONE.digest)
    np.testing.assert_array_equal(encoder.encode(images), BACKBONE.descriptors(images))


def test_another_embedding_is_rejected() -> None:
    with pytest.raises(
        ConfigError, match=r"Unknown embedding 'clip'. Choose pretrained, code, code-bf16 or FILE.onnx."
    ):
        find_encoder("clip")


def test_every_embedding_can_be_chosen() -> None:
    assert sorted([*get_args(Embedding), BF16_CODES]) == sorted(EMBEDDINGS)


def test_codes_in_bf16_are_near_those_in_fp32_and_are_not_taken_for_them(images: torch.Tensor) -> None:
    model = build(0)
    model.digest = "a" * 64
    exact, rounded = find_encoder("code", model), find_encoder(BF16_CODES, model)
    codes, found = exact.encode(images), rounded.encode(images)
    assert not np.array_equal(codes, found)
    assert np.linalg.norm(found - codes) < 0.02 * np.linalg.norm(codes)
    np.testing.assert_array_equal(found, rounded.encode(images))
    assert rounded.digest not in ("", exact.digest)
    assert find_encoder(BF16_CODES, build(0)).digest == ""  # of a model that was never saved


def test_a_reduction_is_a_partly_whitened_principal_component_analysis() -> None:
    generator = np.random.default_rng(0)
    scales = np.geomspace(1, 0.01, 20)
    vectors = (generator.standard_normal((500, 20)) * scales + 3).astype(np.float32)
    reduction = fit_reduction(vectors)
    expected = PCA(whiten=False).fit(vectors)
    variances = expected.singular_values_**2 / len(vectors)
    scores = expected.transform(vectors) / np.sqrt(variances + variances.mean() / 2)
    scores /= np.linalg.norm(scores, axis=1, keepdims=True)
    found = reduction(vectors)
    assert found.dtype == np.float32
    found /= np.linalg.norm(found, axis=1, keepdims=True)  # shorter where an image is far from the others
    np.testing.assert_allclose(found @ found.T, scores @ scores.T, atol=1e-3)  # directions have no sign


def test_what_is_beyond_the_folder_is_short() -> None:
    generator = np.random.default_rng(3)
    centre, other = np.linalg.qr(generator.standard_normal((40, 2)))[0].T
    folder = (centre + 0.02 * generator.standard_normal((300, 40))).astype(np.float32)
    reduction = fit_reduction(folder)
    new = (centre + 0.02 * generator.standard_normal((300, 40))).astype(np.float32)
    lengths = np.linalg.norm(reduction(new), axis=1)
    assert (lengths > 0.999).mean() > 0.98
    foreign = (other + 0.02 * generator.standard_normal((5, 40))).astype(np.float32)
    assert np.linalg.norm(reduction(foreign), axis=1).max() < 0.5 * lengths.min()


def test_many_dimensions_are_reduced_to_those_that_matter() -> None:
    generator = np.random.default_rng(1)
    hidden = generator.standard_normal((400, 5)).astype(np.float32)
    vectors = hidden @ generator.standard_normal((5, 600)).astype(np.float32)
    vectors += 0.01 * generator.standard_normal(vectors.shape).astype(np.float32)
    reduction = fit_reduction(vectors)
    assert reduction.matrix.shape == (600, REDUCED_SIZE)
    assert (reduction.images, reduction.is_outgrown(799), reduction.is_outgrown(800)) == (400, False, True)


@pytest.mark.parametrize("vectors", [np.eye(8, 600), np.ones((300, 600))])
def test_few_or_equal_images_are_rotated_at_random_which_keeps_angles(vectors: np.ndarray) -> None:
    reduction = fit_reduction(vectors.astype(np.float32))
    assert reduction.matrix.shape == (600, REDUCED_SIZE)
    pairs = np.random.default_rng(2).standard_normal((40, 600)).astype(np.float32)
    pairs /= np.linalg.norm(pairs, axis=1, keepdims=True)
    found = reduction(pairs)
    np.testing.assert_allclose(found @ found.T, pairs @ pairs.T, atol=0.35)
    assert not reduction(np.zeros((1, 600), np.float32)).any()


def means(images: Tensor) -> NDArray[np.float64]:
    return images.double().mean((1, 2, 3)).numpy()


@pytest.mark.parametrize("images", range(12))
def test_slices_are_the_batches_that_a_pack_is_read_in(images: int, tiny_pack: Pack) -> None:
    rows = tiny_pack.rows()[:images]
    read = [len(batch) for batch in batches(tiny_pack, rows, 4)]
    parts = [rows[part] for part in batch_slices(images, 4)]
    assert [len(part) for part in parts] == read
    assert np.array_equal(np.concatenate([rows[:0], *parts]), rows)


def test_rows_of_a_pack_go_through_in_the_order_given(tiny_pack: Pack) -> None:
    rows = tiny_pack.rows()[::-1].copy()
    made = [part["mean"] for part in map_pack(lambda x: {"mean": means(x)}, tiny_pack, rows, 5)]
    assert len(made) > 1
    assert np.array_equal(np.concatenate(made), means(to_float(tiny_pack.pixels(rows))))


def test_files_that_cannot_be_read_are_passed_over_with_the_reason(
    photos: Path, tiny_pack: Pack, tmp_path: Path
) -> None:
    paths = sorted(path for path in photos.rglob("*") if path.is_file())[:5]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    mixed = [paths[0], broken, *paths[1:]]
    skipped: list[tuple[Path, str]] = []
    arguments = (2, tiny_pack.preprocessing, Limits(), skipped)
    read, values = zip(*map_files(means, mixed, *arguments), strict=True)
    assert [path for part in read for path in part] == paths
    assert len(np.concatenate(values)) == len(paths)
    assert [path for path, _ in skipped] == [broken]
    with pytest.raises(ImageFolderError, match="No image could be used, of 1 given"):
        list(map_files(means, [broken], *arguments))


def verb(*arguments: object) -> str:
    """Run a command that must succeed and say nothing on stderr; return what it says."""
    command = [sys.executable, "-m", "autoencode", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.scale
def test_an_index_made_on_a_cluster_is_that_made_here(
    ray_cluster: LocalCluster, trained: Run, photos: Path, tmp_path: Path
) -> None:
    said = verb(
        "index",
        photos,
        "--model",
        trained.folder,
        "--embedding",
        "code",
        "--out",
        tmp_path / "there",
        "--ray",
        ray_cluster.address,
    )
    assert "ray" not in said.lower() and "48" in said
    verb("index", photos, "--model", trained.folder, "--embedding", "code", "--out", tmp_path / "here")
    assert len(open_index(tmp_path / "there")) == 48
    assert (tmp_path / "there" / INDEX_NAME).read_bytes() == (tmp_path / "here" / INDEX_NAME).read_bytes()


@pytest.mark.scale
def test_outliers_found_on_a_cluster_are_those_found_here(
    ray_cluster: LocalCluster, trained: Run, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    tables = []
    for name, options in (("there", ["--ray", ray_cluster.address]), ("here", [])):
        shutil.copytree(trained.folder, tmp_path / name)
        table = tmp_path / f"{name}.csv"
        pack = ["--pack", trained.pack_path]
        said = verb("outliers", tmp_path / name, tmp_path / "photos", "--out", table, *pack, *options)
        assert "broken.png" in said
        tables.append(list(csv.reader(table.read_text().splitlines())))
    assert tables[0] == tables[1] and len(tables[0]) == 1 + 48


KILLED = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from autoencode import AutoencodeError, open_pack
from autoencode.embedding import REDUCED_SIZE, find_encoder, fit_reduction, map_pack
from autoencode.data.loader import batches
from autoencode.cluster import joined_cluster

address, place, marks = sys.argv[1], sys.argv[2], Path(sys.argv[3])
pack = open_pack(place)
rows = np.tile(pack.rows()[::-1], 4)

def mean(images):
    time.sleep(0.1)
    if (marks / "begun").exists() and not (marks / "killed").exists():
        (marks / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"mean": images.double().mean((1, 2, 3)).numpy()}

class Other:
    location, fingerprint = pack.location, "another"

with joined_cluster(address, "") as cluster:
    made = []
    for part in map_pack(mean, pack, rows, 5, cluster):
        made.append(part["mean"])
        (marks / "begun").touch()
    assert (marks / "killed").exists()
    (marks / "begun").unlink()
    here = [mean(images)["mean"] for images in batches(pack, rows, 5)]
    assert np.array_equal(np.concatenate(made), np.concatenate(here))
    for function, images in ((mean, Other), (lambda images: {}["none"], pack)):
        try:
            list(map_pack(function, images, rows, 5, cluster))
        except AutoencodeError as err:
            print(type(err).__name__, err)
"""


@pytest.mark.scale
def test_what_a_killed_process_had_is_done_again_and_another_pack_is_rejected(
    ray_cluster: LocalCluster, tiny_pack: Pack, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, ray_cluster.address, str(tiny_pack.path), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    assert ended.stdout == (
        f"PackError A node of the cluster sees other images in {tiny_pack.path}. "
        "Give all nodes the same pack.\n"
        "RunError The cluster could not do the work: KeyError: 'none'\n"
    )
