"""Arrays, tensors, Pillow images, bytes and datasets are images by stated rules."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import blobs

from autoencode import (
    AutoencodeError,
    ConfigError,
    Pack,
    Run,
    find_outliers,
    load_model,
    open_pack,
    pack_folder,
    reconstruct,
    train,
)
from autoencode.data.memory import given_images

PIXELS = blobs(5, 32, 32)


def encoded(pixels: Any, kind: str = "PNG") -> bytes:  # noqa: ANN401
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


SINGLE = {
    "bytes": encoded(PIXELS),
    "Pillow": Image.fromarray(PIXELS),
    "HWC": PIXELS,
    "CHW": PIXELS.transpose(2, 0, 1),
    "float": PIXELS / 255,
    "float32": (PIXELS / 255).astype(np.float32),
    "tensor": torch.from_numpy(PIXELS),
    "tensor CHW": torch.from_numpy(PIXELS.transpose(2, 0, 1) / 255),
    "int64": PIXELS.astype(np.int64),
    "list": [PIXELS],
    "batch": PIXELS[None],
    "batch CHW": torch.from_numpy(PIXELS.transpose(2, 0, 1)[None] / 255),
    "dataset": torch.utils.data.TensorDataset(torch.from_numpy(PIXELS[None]), torch.tensor([3])),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_a_picture_is_read_the_same_however_it_is_given(kind: str, trained: Run) -> None:
    model = load_model(trained.model_path)
    expected = model.read(Image.fromarray(PIXELS))
    assert torch.equal((model.read(SINGLE[kind]) * 255).round(), (expected * 255).round())
    torch.testing.assert_close(model.encode(SINGLE[kind]), model.encode(expected), rtol=1e-4, atol=1e-4)
    assert model.reconstruct(SINGLE[kind]).shape == (1, 3, 32, 32)


def test_grey_masks_and_batches_of_grey_are_images() -> None:
    grey = PIXELS[..., 0]
    (one,) = given_images(grey)
    assert np.array_equal(np.asarray(one.image), grey)
    (mask,) = given_images(grey > 100)
    assert np.array_equal(np.asarray(mask.image), (grey > 100) * np.uint8(255))
    assert [np.asarray(given.image)[0, 0] for given in given_images(np.stack([grey, grey + 1]))] == [
        grey[0, 0],
        grey[0, 0] + 1,
    ]


def test_which_side_is_the_channels_is_decided_as_stated() -> None:
    both = np.zeros((3, 5, 3), np.uint8)
    both[0, 1, 2] = 9
    (array,) = given_images(both)
    assert np.array_equal(np.asarray(array.image), both)
    (tensor,) = given_images(torch.from_numpy(both))
    assert np.array_equal(np.asarray(tensor.image), both.transpose(1, 2, 0))


def test_a_hugging_face_dataset_gives_its_images_and_the_names_of_its_labels(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    content = {"photo": [Image.fromarray(blobs(n, 20, 20)) for n in range(4)], "label": [0, 1, 0, 1]}
    pack = pack_folder(datasets.Dataset.from_dict(content, features=features), tmp_path / "p", size=32)
    assert [entry.label for entry in sorted(pack.entries, key=lambda entry: entry.path)] == list("abab")
    with pytest.raises(ConfigError, match="no column of images; its columns: x"):
        list(given_images(datasets.Dataset.from_dict({"x": [1]})))


def test_arrays_are_packed_trained_on_and_judged(tmp_path: Path, trained: Run, tiny_pack: Pack) -> None:
    images = np.stack([blobs(number, 32, 32) for number in range(12)])
    run = train(images, tmp_path / "run", widths=(4, 8), epochs=1)
    pack = pack_folder(images, run.pack_path)  # the same images are the same pack
    assert len(pack) == 12
    assert {image.tobytes() for image in pack.pixels(pack.rows())} == {image.tobytes() for image in images}
    found = find_outliers(trained.model_path, images, tiny_pack)
    assert sorted(image.path.name for image in found.images) == [f"{n:06}.png" for n in range(12)]
    made = reconstruct(trained.model_path, Image.fromarray(images[0]), tmp_path / "out")
    assert len(made.results) == 1


# Five images of 12 bits; the second and third are so dark that alone they would be taken for 8 bits.
BRIGHTEST = np.array([4095, 250, 90, 3000, 2000])
DEEP = (np.linspace(0, 1, 32 * 32).reshape(32, 32) * BRIGHTEST[:, None, None]).astype(np.uint16)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Path]]:
    """A model that was trained on arrays of 12 bits, and the same images as TIFF files."""
    folder = tmp_path_factory.mktemp("deep")
    images = np.concatenate([np.roll(DEEP, shift, axis=2) for shift in (0, 5, 11)])
    paths = [folder / f"{number}.tif" for number in range(len(DEEP))]
    for path, values in zip(paths, DEEP, strict=True):
        Image.fromarray(values).save(path)
    return train(images, folder / "run", widths=(4, 8), epochs=1), paths


def test_arrays_of_more_than_8_bits_train_with_one_range_over_all(deep: tuple[Run, list[Path]]) -> None:
    pack = open_pack(deep[0].pack_path)
    assert pack.preprocessing.value_range == (0, 4095)
    found = {image[..., 0].tobytes() for image in pack.pixels(pack.rows())}
    expected = (DEEP * (255 / 4095)).round().astype(np.uint8)
    assert found >= {image.tobytes() for image in expected}


@pytest.mark.parametrize(
    "given",
    [DEEP, list(DEEP), DEEP[..., None], DEEP.astype(">u2"), torch.from_numpy(DEEP)],
    ids=["batch", "list", "one channel", "big endian", "tensor"],
)
def test_an_array_of_16_bits_is_read_like_its_file(given: Any, deep: tuple[Run, list[Path]]) -> None:  # noqa: ANN401
    run, paths = deep
    model = load_model(run.model_path)
    expected = model.read(paths)
    assert [round(image.max().item() * 255) for image in expected] == [255, 16, 6, 187, 125]
    assert torch.equal(model.read(given), expected)
    assert torch.equal(model.read(np.asarray(Image.open(paths[1]))), expected[1:2])
    made = reconstruct(run.model_path, given, run.folder / "out")  # by way of files
    of_files = reconstruct(run.model_path, paths, run.folder / "out of files")
    assert [one.psnr_db for one in made.results] == [one.psnr_db for one in of_files.results]


@pytest.mark.parametrize("most", [0, 200, 255, 256, 4095, 65535])
def test_an_array_of_16_bits_is_refused_by_a_model_without_a_range(
    most: int, trained: Run, tmp_path: Path
) -> None:
    given = np.full((32, 32), most, np.uint16)
    reason = (
        r"is an array of uint16, for which no range of values is known: scale it to uint8 in 0..255 or floats"
    )
    for use in (
        load_model(trained.model_path).encode,
        lambda one: reconstruct(trained.model_path, one, tmp_path),
    ):
        with pytest.raises(AutoencodeError, match=reason) as caught:
            use(given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 3, 4, 5, 6)), r"shape \(2, 3, 4, 5, 6\) is no image"),
        (np.zeros((4, 32, 32, 7)), r"shape \(4, 32, 32, 7\) is no image"),
        (np.full((8, 8), 300), r"values from 300 to 300. Scale it"),
        (np.full((8, 8), np.nan), r"array of float64 has values that are not numbers"),
        (np.array([[0.5, np.nan]], np.float32), r"array of float32 has values that are not numbers"),
        (np.array([[0.5, np.inf]]), r"values from 0.5 to inf. Scale it"),
        (np.full((8, 8, 3), 4095, np.uint16), r"array of uint16 with colours is no image. Scale it: uint8"),
        (np.zeros((2, 8, 8, 3), np.uint16), r"array of uint16 with colours"),
        (np.array([["a"]]), r"array of <U1 is no image"),
        (np.zeros((0, 8), np.uint8), r"has no pixels"),
        (3, r"A int is no source|An int is no source"),
        ([(PIXELS, 1, 2)], r"is a tuple of 3. Give images"),
    ],
)
def test_what_is_no_image_is_named_with_what_would_do(given: object, message: str, trained: Run) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(trained.model_path).encode(given)
    assert "\n" not in str(caught.value)
