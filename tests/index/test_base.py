"""Searching an index: files, images and codes, and what is no longer where it was."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import holds

from autoencode import (
    Autoencoder,
    ConfigError,
    ImageFolderError,
    Index,
    ModelConfig,
    ModelFileError,
    Neighbours,
    PackError,
    Preprocessing,
    Run,
    build_index,
    load_model,
    open_index,
    pack_folder,
    save_model,
)
from autoencode.data.preprocessing import read_image
from autoencode.index.sheet import neighbours_sheet
from autoencode.pixels import to_float


@pytest.fixture(scope="module")
def index(trained: Run, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Do not change it."""
    return build_index(
        photos, tmp_path_factory.mktemp("search") / "i", trained.folder, embedding="code", distance="l2"
    )


def test_files_images_and_codes_find_the_same_as_brute_force(
    index: Index, trained: Run, photos: Path
) -> None:
    paths = sorted(photos.rglob("*.png"))
    model = load_model(trained.model_path)
    images = model.read(paths[:3])
    codes = model.encode(images)
    distances = np.linalg.norm(codes.numpy()[:, None] - model.encode(model.read(paths)).numpy(), axis=2)
    by_code = index.search(codes, 6).results
    by_image = index.search(images, 6).results
    by_file = index.search(paths[:3], 5).results
    for number, line in enumerate(distances):
        order = np.argsort(line, kind="stable")[:6]
        for found in (by_code[number].found, by_image[number].found):
            assert [near.path for near in found] == [paths[place] for place in order]
            np.testing.assert_allclose([near.score for near in found], line[order], atol=1e-3)
        assert by_file[number].query == paths[number]
        # A file is not its own neighbour.
        assert [near.path for near in by_file[number].found] == [paths[place] for place in order[1:]]
        assert by_file[number].found[0].label == by_file[number].found[0].path.parent.name


def test_a_copy_of_an_indexed_file_finds_it_first(index: Index, photos: Path, tmp_path: Path) -> None:
    path = next(photos.rglob("*.png"))
    copy = shutil.copy(path, tmp_path / "copy.png")
    (found,) = index.search(copy, 1).results
    assert found.found[0].path == path
    assert found.found[0].score == pytest.approx(0, abs=1e-4)


def test_copies_of_a_query_are_neighbours_and_the_query_is_not(
    trained: Run, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos / "coast", tmp_path / "coast")
    original = sorted((tmp_path / "coast").iterdir())[0]
    copy = Path(shutil.copy(original, tmp_path / "coast" / "copy.png"))
    (found,) = (
        build_index(tmp_path / "coast", tmp_path / "i", trained.folder, embedding="code")
        .search(copy, 100)
        .results
    )
    assert found.found[0].path == original
    assert found.found[0].score == pytest.approx(1, abs=1e-6)
    assert copy not in {near.path for near in found.found}
    assert len(found.found) == 16


def test_folders_are_searched_for_queries_and_more_than_all_is_all(index: Index, photos: Path) -> None:
    found = index.search([photos / "coast", photos / "night"], k=1000).results
    assert len(found) == 32
    assert {len(near.found) for near in found} == {47}
    assert len(index.search(np.zeros((1, 8)), k=1000).results[0].found) == 48


def test_unreadable_queries_are_named_and_the_others_answered(
    index: Index, photos: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = next(photos.rglob("*.png"))
    found = index.search([broken, good, tmp_path / "none.png"], 2)
    assert [near.query for near in found.results] == [good]
    assert [path.name for path, _ in found.skipped] == ["broken.png", "none.png"]
    assert "No such file" in found.skipped[1][1]
    with pytest.raises(
        ImageFolderError, match=r"No image could be used, of 1 given. .*broken.png: not an image"
    ):
        index.search(broken)
    with pytest.raises(ImageFolderError, match="No image was given"):
        index.search([])


def test_queries_that_are_no_images_and_no_codes_are_rejected(index: Index) -> None:
    for wrong in (np.zeros((2, 7)), np.full((1, 8), np.nan), np.zeros(8)):
        with pytest.raises(ConfigError, match=r"finite codes \(Q, 8\)"):
            index.search(wrong)
    with pytest.raises(ConfigError, match="Images must be float"):
        index.search(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ConfigError, match="neighbours is 0"):
        index.search(np.zeros((1, 8)), k=0)
    assert index.search(np.zeros((0, 8))).results == []


def test_images_deleted_since_are_marked(trained: Run, photos: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(photos / "coast", tmp_path / "coast"))
    index = build_index(folder, tmp_path / "i", trained.folder, embedding="code")
    gone = sorted(folder.iterdir())[3]
    gone.unlink()
    (found,) = index.search(np.zeros((1, 8)), 100).results
    assert [near.path for near in found.found if near.is_gone] == [gone]


def test_an_index_moved_with_its_model_and_images_still_works(
    trained: Run, photos: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(photos / "coast", here / "coast")
    shutil.copy(trained.model_path, here / "model.safetensors")
    build_index(here / "coast", here / "i", here / "model.safetensors", embedding="code")
    there = here.rename(tmp_path / "there")
    query = next((there / "coast").iterdir())
    (found,) = open_index(there / "i").search(query, 3).results
    assert all(near.path.parent == there / "coast" and not near.is_gone for near in found.found)


def test_a_model_that_is_gone_or_changed_is_named(trained: Run, photos: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(trained.model_path, tmp_path / "model.safetensors"))
    build_index(photos, tmp_path / "i", model, embedding="code")
    query = next(photos.rglob("*.png"))
    model.unlink()
    with pytest.raises(ModelFileError, match=r"The model of .* is not at .*model.safetensors. Give the mod"):
        open_index(tmp_path / "i").search(query)
    assert len(open_index(tmp_path / "i", trained.folder).search(query, 3).results[0].found) == 3
    assert open_index(tmp_path / "i").search(np.ones((1, 8)), 3).results  # codes need no model
    torch.manual_seed(0)
    save_model(model, Autoencoder(ModelConfig(code_size=8, widths=(4, 8)), Preprocessing(32, 32)), {})
    with pytest.raises(ModelFileError, match="has changed since"):
        open_index(tmp_path / "i").search(query)


def test_neighbours_say_where_in_the_index_they_are(index: Index, photos: Path) -> None:
    (found,) = index.search(np.zeros((1, 8)), 48).results
    assert sorted(near.position for near in found.found) == list(range(48))
    for near in found.found:
        assert index.folder / index.entries[near.position].path == near.path


def test_the_pack_of_an_index_holds_its_images_in_its_order(index: Index, trained: Run) -> None:
    assert [entry.path for entry in index.pack.entries] == [entry.path for entry in index.entries]
    codes = load_model(trained.model_path).encode(to_float(index.pack.pixels(index.pack.rows()[:5]))).numpy()
    np.testing.assert_allclose(codes, index.codes[[entry.row for entry in index.entries[:5]]], atol=1e-4)


def test_a_pack_that_has_changed_is_not_that_of_the_index(trained: Run, photos: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(photos / "coast", tmp_path / "coast"))
    pack = pack_folder(folder, tmp_path / "coast.pack", size=32)
    build_index(pack.path, tmp_path / "i", trained.folder, embedding="code")
    next(folder.iterdir()).unlink()
    pack_folder(folder, tmp_path / "coast.pack", size=32)
    with pytest.raises(PackError, match=r"are not those that .* was made from"):
        _ = open_index(tmp_path / "i").pack


@pytest.mark.parametrize("distance", ["cosine", "whitened", "l2"])
def test_an_index_compared_in_another_way_finds_what_one_made_so_finds(
    index: Index, trained: Run, photos: Path, tmp_path: Path, distance: str
) -> None:
    made = build_index(photos, tmp_path / "i", trained.folder, embedding="code", distance=distance)  # type: ignore[arg-type]
    queries = index.codes[:3] + 0.01
    other = index.with_distance(distance)  # type: ignore[arg-type]
    for one, two in zip(made.search(queries).results, other.search(queries).results, strict=True):
        assert [near.path for near in one.found] == [near.path for near in two.found]
        np.testing.assert_allclose([n.score for n in one.found], [n.score for n in two.found], atol=1e-6)


def test_a_sheet_shows_the_query_its_neighbours_and_what_is_gone(
    trained: Run, photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photos / "coast", tmp_path / "coast"))
    index = build_index(folder, tmp_path / "i", trained.folder, embedding="code")
    paths = sorted(folder.iterdir())
    (found,) = index.search(paths[0], 3).results
    shown = [
        read_image(path, index.preprocessing) for path in (paths[0], *(near.path for near in found.found))
    ]
    found.found[1].path.unlink()
    sheet = neighbours_sheet([found], index.preprocessing)
    tiles = [picture.repeat(4, 0).repeat(4, 1) for picture in shown]
    assert [holds(sheet, tile) for tile in tiles] == [True, True, False, True]
    assert holds(sheet, np.full((128, 128, 3), 224, np.uint8))
    assert len(neighbours_sheet([found, found], index.preprocessing)) == 2 * len(sheet)


def test_a_sheet_without_a_result_is_an_error(index: Index) -> None:
    with pytest.raises(ConfigError, match="no result to draw"):
        neighbours_sheet([Neighbours(None, ())], index.preprocessing)
