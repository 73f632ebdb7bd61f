"""An evaluation as a whole: what it is of, that it repeats itself, and what it says it left out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from autoencode import (
    ConfigError,
    ImageFolderError,
    MissingExtraError,
    Pack,
    Preprocessing,
    Run,
    evaluate,
    find_outliers,
    fit_reference,
    load_model,
    open_pack,
    pack_folder,
)
from autoencode import evaluation as application
from autoencode.evaluation.sets import JUDGES
from autoencode.models.backbones import BACKBONE
from autoencode.models.judge import JUDGE
from autoencode.pixels import to_float

KEYS = {"value", "interval", "count"}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of each channel instead of the pretrained networks, which take long."""
    for judge in JUDGES:
        monkeypatch.setattr(judge, "pooled", lambda pixels: pixels.mean(axis=(1, 2), dtype=np.float32) / 255)
    monkeypatch.setattr(application, "LEAST_KID_IMAGES", 3)


def test_a_plain_autoencoder_is_measured_beside_pca_of_the_same_code_size(
    trained: Run, tiny_pack: Pack
) -> None:
    found = evaluate(load_model(trained.model_path), tiny_pack)
    test, train = (
        to_float(tiny_pack.pixels(tiny_pack.rows(split))).flatten(1).numpy() for split in ("test", "train")
    )
    best = PCA(8, svd_solver="full").fit(train)
    restored = best.inverse_transform(best.transform(test)).clip(0, 1)
    assert (found.split, found.images, found.code_size) == ("test", len(test), 8)
    assert (found.pca_components, found.pca_images) == (8, len(train))
    assert found.pca is not None
    assert found.pca.mse is not None
    assert found.pca.mse.value == pytest.approx(((restored - test) ** 2).mean(), rel=0.01)
    assert found.reconstruction.mse is not None
    assert found.error_saved == 1 - found.reconstruction.mse.value / found.pca.mse.value
    assert found.code is None
    assert found.corrupted is None
    assert found.sets is not None
    assert set(found.sets) == {"training_images", "reconstructions", "pca_reconstructions"}
    assert all(set(one.by) == {"EfficientNet-Lite0", "open_nsfw"} for one in found.sets.values())
    assert all(one.memorised is None for one in found.sets.values())
    assert [note for note in found.notes if "mixture" in note]


def test_a_sample_is_measured_where_one_is_asked_for(trained: Run, tiny_pack: Pack) -> None:
    model = load_model(trained.model_path)
    found = evaluate(model, tiny_pack, most_images=3, kid=False)
    images = to_float(tiny_pack.pixels(tiny_pack.rows("test")[:3]))
    assert (found.images, found.pca_images) == (3, 12)
    assert found.reconstruction.mse is not None
    assert found.reconstruction.mse.value == pytest.approx(
        float((model.reconstruct(images) - images).square().mean()), rel=1e-5
    )


def test_the_same_model_and_pack_give_the_same_json(trained_vae: Run, tiny_pack: Pack) -> None:
    stages: dict[str, tuple[int, int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        assert stages.get(stage, (0, total))[0] < done <= total
        stages[stage] = (done, total)

    first = evaluate(load_model(trained_vae.model_path), tiny_pack, progress=progress)
    again = evaluate(load_model(trained_vae.model_path), open_pack(tiny_pack.path))
    text = json.dumps(first.to_json(), allow_nan=False)
    assert text == json.dumps(again.to_json(), allow_nan=False)
    assert set(json.loads(text)["reconstruction"]["psnr_db"]) == KEYS
    assert all(done == total for done, total in stages.values())
    assert list(stages) == [
        *("fitting PCA", "comparing reconstructions", "measuring the code", "measuring KID"),
        "looking for copies",
    ]
    assert first.code is not None
    assert first.sets is not None
    assert first.sets["samples_normal"].memorised is not None


def test_a_denoiser_is_measured_at_its_task(trained: Run, tiny_pack: Pack) -> None:
    model = load_model(trained.model_path)
    model.provenance["train"]["corrupt"] = ["gaussian:0.2"]
    found = evaluate(model, tiny_pack)
    assert found.corruptions == ("gaussian:0.2",)
    assert found.corrupted is not None
    assert found.corrupted.psnr_db is not None
    assert found.corrupted.psnr_db.value == pytest.approx(-20 * np.log10(0.2), abs=0.3)


def test_images_of_another_folder_are_distinguished_as_well_as_their_scores_say(
    trained: Run, tiny_pack: Pack, tmp_path: Path
) -> None:
    noise = tmp_path / "noise"
    noise.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(noise / f"{number}.png")
    (noise / "broken.png").write_bytes(b"no picture")
    model = load_model(trained.model_path)
    found = evaluate(model, tiny_pack, ood=noise)
    assert found.detection is not None
    assert (found.detection.folder, found.detection.images) == (str(noise), 6)
    assert f"1 files of {noise} could not be used." in found.notes
    reference = fit_reference(model, tiny_pack)
    scores = [image.score for image in find_outliers(model, noise, reference).images]
    normal = reference.calibration[found.detection.score]
    labels = [0] * len(normal) + [1] * len(scores)
    assert found.detection.auroc.value == roc_auc_score(labels, [*normal, *scores])
    with pytest.raises(ImageFolderError, match="does not exist"):
        evaluate(model, tiny_pack, ood=tmp_path / "nowhere")


def test_labels_are_found_again_by_codes_and_by_pixels(
    trained: Run, tiny_size: Preprocessing, tmp_path: Path
) -> None:
    # Bright and dark pictures: any encoder distinguishes them.
    generator = np.random.default_rng(0)
    for number in range(120):
        label, level = ("dark", 20) if number % 2 else ("light", 200)
        path = tmp_path / "photos" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(level, level + 40, (32, 32, 3), np.uint8)).save(path)
    pack = pack_folder(tmp_path / "photos", tmp_path / "pack", tiny_size, workers=1)
    found = evaluate(load_model(trained.model_path), pack).labels
    assert found is not None
    assert list(found) == ["codes", "pixels"]
    assert all(quality.images == len(pack.rows("test")) for quality in found.values())
    test = to_float(pack.pixels(pack.rows("test"))).flatten(1).numpy()
    names = np.array([entry.label for entry in pack.entries if entry.split == "test"])
    nearest = NearestNeighbors(n_neighbors=2).fit(test).kneighbors(test, return_distance=False)[:, 1]
    assert found["pixels"].recall_at_1.value == (names[nearest] == names).mean()
    assert found["codes"].mean_average_precision.value > 0.9


def test_copies_count_once_and_what_stands_in_for_test_images_is_said(
    trained: Run, tiny_size: Preprocessing, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    for name in "abc":
        picture.save(tmp_path / "photos" / f"{name}.png")
    pack = pack_folder(tmp_path / "photos", tmp_path / "pack", tiny_size, workers=1)
    found = evaluate(load_model(trained.model_path), pack)
    assert (found.images, found.pca, found.pca_images) == (1, None, 0)
    assert found.split == pack.held_out().split
    assert found.reconstruction.psnr_db is not None
    assert found.reconstruction.psnr_db.interval is None
    assert found.sets is None
    notes = "\n".join(found.notes)
    assert ("has no test images" in notes) == (found.split != "test")
    assert "trained on all, also on these" not in notes  # it was trained on others
    assert "PCA is left out" in notes
    assert "KID is left out: it takes 3 images, and there are 1" in notes
    assert "not the images the model was trained on" in found.notes[0]
    assert found.error_saved is None
    if found.split == "test":  # as all of so few images can be
        model = load_model(trained.model_path)
        model.provenance["data"] = pack.fingerprint
        own = evaluate(model, pack)
        assert own.pca_images == 1
        assert "trained on all, also on these" in own.notes[0]


def test_a_network_that_is_not_installed_is_left_out_and_said(
    trained: Run, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(pixels: object) -> None:
        raise MissingExtraError("", "Pretrained features")

    monkeypatch.setattr(JUDGE, "pooled", missing)
    found = evaluate(load_model(trained.model_path), tiny_pack)
    assert found.sets is not None
    assert all(set(one.by) == {"EfficientNet-Lite0"} for one in found.sets.values())
    assert [note for note in found.notes if "Install it: pip install" in note] == [
        note for note in found.notes if note.startswith("Pretrained features")
    ]
    monkeypatch.setattr(BACKBONE, "pooled", missing)
    assert evaluate(load_model(trained.model_path), tiny_pack).sets is None


def test_images_of_another_size_are_rejected(trained: Run, photos: Path, tmp_path: Path) -> None:
    pack = pack_folder(photos, tmp_path / "pack", Preprocessing(16, 16), workers=1)
    with pytest.raises(ConfigError, match="Give the pack it was trained on"):
        evaluate(load_model(trained.model_path), pack)
