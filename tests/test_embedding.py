"""Embeddings by their registry, which of them is chosen, and what a reduction keeps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.decomposition import PCA

from autoencode import (
    Autoencoder,
    ConfigError,
    ModelConfig,
    Preprocessing,
    pack_folder,
)
from autoencode.configuration import Embedding
from autoencode.embedding import (
    BF16_CODES,
    EMBEDDINGS,
    PRETRAINED_KINDS,
    REDUCED_SIZE,
    find_encoder,
    fit_reduction,
    pretrained_for,
)
from autoencode.models.backbones import BACKBONE, resized


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


def pictures(folder: Path, *shorter: int) -> list[Path]:
    """Write black pictures, a fifth longer than wide."""
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(len(shorter))]
    for path, side in zip(paths, shorter, strict=True):
        Image.new("L", (side, side * 6 // 5)).save(path)
    return paths


@pytest.mark.parametrize(
    ("shorter", "kind"),
    [
        ((32, 32), "pretrained"),
        ((175, 175), "pretrained"),
        ((176, 176), "pretrained-224"),
        ((64, 300, 300), "pretrained-224"),
        ((64, 64, 900), "pretrained"),
    ],
)
def test_larger_images_are_described_at_224_pixels(
    shorter: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    paths = pictures(tmp_path / "in", *shorter)
    assert pretrained_for(paths) == kind
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    assert pretrained_for([*paths, broken]) == kind
    assert pretrained_for([broken]) == "pretrained"
    side = find_encoder(kind).preprocessing.height
    assert side == (224 if kind.endswith("224") else 128)


def test_of_very_many_larger_images_the_packed_ones_would_fill_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = pictures(tmp_path / "in", 300, 300, 300)
    monkeypatch.setattr("autoencode.embedding._MOST_LARGE", 3)
    assert pretrained_for(paths) == "pretrained-224"
    assert pretrained_for([*paths, paths[0]]) == "pretrained"


def test_a_pack_is_judged_by_its_files_or_by_its_pixels_where_they_are_gone(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 300, 300)
    small = pack_folder(tmp_path / "in", tmp_path / "small", Preprocessing(32, 32))
    large = pack_folder(tmp_path / "in", tmp_path / "large", Preprocessing(192, 192))
    assert pretrained_for(small) == pretrained_for(large) == "pretrained-224"
    shutil.rmtree(tmp_path / "in")
    assert (pretrained_for(small), pretrained_for(large)) == ("pretrained", "pretrained-224")


def test_both_sizes_are_the_same_network_at_two_sizes(images: torch.Tensor) -> None:
    small, large = (find_encoder(kind) for kind in PRETRAINED_KINDS)
    assert small.size == large.size and small.digest != large.digest
    enlarged = resized(images, (224, 224))
    np.testing.assert_array_equal(large.encode(images), large.encode(enlarged))
    maps = BACKBONE.feature_maps(enlarged, (10, 14, 16))
    parts = [
        F.normalize(F.adaptive_avg_pool2d(one.float(), side).flatten(1))
        for one, side in zip(maps, (4, 4, 1), strict=True)
    ]
    np.testing.assert_allclose(large.encode(images), torch.cat(parts, 1).numpy() / 3**0.5, atol=1e-6)


def test_another_embedding_is_rejected() -> None:
    with pytest.raises(
        ConfigError,
        match=r"Unknown embedding 'clip'. Choose pretrained, pretrained-224, code, code-bf16 or FILE.onnx.",
    ):
        find_encoder("clip")


def test_every_embedding_can_be_chosen() -> None:
    assert {*get_args(Embedding), BF16_CODES, *PRETRAINED_KINDS} == {*EMBEDDINGS}


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
    scores = expected.transform(vectors) / np.sqrt(variances + variances.mean())
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
    assert reduction.matrix.shape == (600, 100)  # a direction for four images
    assert (reduction.images, reduction.is_outgrown(799), reduction.is_outgrown(800)) == (400, False, True)


def test_other_images_of_the_kind_are_no_nearer_to_a_small_folder_than_its_own_are() -> None:
    generator = np.random.default_rng(3)
    scales = np.arange(1, 801) ** -0.5  # directions of falling variance, as features of photographs have
    vectors = (generator.standard_normal((400, 800)) * scales + 0.1).astype(np.float32)
    own, others = vectors[:200], vectors[200:]
    reduction = fit_reduction(own)
    inside, outside = reduction(own), reduction(others)
    among = inside @ inside.T
    np.fill_diagonal(among, -1)
    nearest, nearest_of_others = among.max(1), (outside @ inside.T).max(1)
    # 50 if they were as near; with a direction for each image it is 99
    assert 40 < 100 * (nearest <= nearest_of_others[:, None]).mean() < 85


@pytest.mark.parametrize("vectors", [np.eye(8, 600), np.ones((300, 600))])
def test_few_or_equal_images_are_rotated_at_random_which_keeps_angles(vectors: np.ndarray) -> None:
    reduction = fit_reduction(vectors.astype(np.float32))
    assert reduction.matrix.shape == (600, REDUCED_SIZE)
    pairs = np.random.default_rng(2).standard_normal((40, 600)).astype(np.float32)
    pairs /= np.linalg.norm(pairs, axis=1, keepdims=True)
    found = reduction(pairs)
    np.testing.assert_allclose(found @ found.T, pairs @ pairs.T, atol=0.35)
    assert not reduction(np.zeros((1, 600), np.float32)).any()
