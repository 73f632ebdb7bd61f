"""Classes from folders, a split that no autoencoder has crossed, and probes against those of scikit-learn."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from autoencode import ConfigError, ImageFolderError, Pack, Preprocessing, Run, open_pack
from autoencode.transfer_learning.probe import (
    FOLDS,
    STRENGTHS,
    Floats,
    Labels,
    choose_strength,
    fit_probe,
    labelled_images,
    some_of_each,
)


def clusters(count: int, features: int, classes: int, spread: float = 1.5) -> tuple[Floats, Labels]:
    generator = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = generator.normal(size=(classes, features))
    values = centres[labels] + spread * generator.normal(size=(count, features))
    return (values * generator.uniform(0.1, 10, features) + 3).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("features", [5, 90], ids=["narrow", "wider than there are images"])
def test_probabilities_are_those_of_scikit_learn(classes: int, features: int) -> None:
    values, labels = clusters(60, features, classes)
    probe = fit_probe(values, labels, 0.1)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=5000))
    reference.fit(values, labels)
    expected = reference.predict_proba(values)
    np.testing.assert_allclose(probe.probabilities(values), expected, atol=5e-3)
    assert (probe.predict(values) == reference.predict(values)).all()


def test_the_strength_is_the_one_that_cross_validates_best() -> None:
    values, labels = clusters(120, 6, 3, spread=2.5)
    fitted = choose_strength(values, labels, seed=1)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=1)
    standard = StandardScaler().fit_transform(values)
    scores = {
        strength: cross_val_score(
            LogisticRegression(C=strength, max_iter=300), standard, labels, cv=folds
        ).mean()
        for strength in STRENGTHS
    }
    assert scores[fitted.strength] == pytest.approx(max(scores.values()), abs=0.01)
    assert fitted.accuracy == pytest.approx(scores[fitted.strength], abs=0.01)


def test_a_feature_that_never_varies_and_two_images_of_a_class_do_no_harm() -> None:
    values, labels = clusters(6, 4, 3)
    values[:, 2] = 7
    probe = fit_probe(values, labels, choose_strength(values, labels).strength)
    assert np.isfinite(probe.probabilities(values)).all()
    np.testing.assert_allclose(probe.probabilities(values).sum(axis=1), 1)


def test_many_images_are_chosen_on_a_part_that_keeps_rare_classes() -> None:
    values, labels = clusters(5000, 3, 2)
    labels[:] = 0
    labels[-3:] = 1
    values[-3:] += 100
    assert choose_strength(values, labels).accuracy == 1


def test_some_of_each_class_are_chosen_by_seed() -> None:
    labels = np.array([0] * 30 + [1] * 5 + [2] * 2)
    chosen = some_of_each(labels, lambda _: 10, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [10, 5, 2]
    assert (np.diff(chosen) > 0).all()
    assert chosen.tolist() == some_of_each(labels, lambda _: 10, seed=3).tolist()
    assert chosen.tolist() != some_of_each(labels, lambda _: 10, seed=4).tolist()


def test_images_that_are_all_the_same_are_given_the_commonest_class() -> None:
    features = np.full((6, 20), 0.5, np.float32)
    labels = np.array([0, 1, 1, 0, 1, 1])
    probe = fit_probe(features, labels, choose_strength(features, labels).strength)
    assert np.isfinite(probe.probabilities(features)).all()
    assert probe.predict(features).tolist() == [1] * 6


def contents(pack: Pack, rows: np.ndarray) -> set[bytes]:  # type: ignore[type-arg]
    return {pixels.tobytes() for pixels in pack.pixels(rows)}


def test_classes_are_the_sub_folders_and_a_quarter_is_held_out(
    photos: Path, tiny_pack: Pack, tiny_size: Preprocessing
) -> None:
    with labelled_images(photos, tiny_size) as data:
        assert data.classes == ("coast", "forest", "night")
        assert len(data.rows) == 48
        assert np.bincount(data.labels).tolist() == [16, 16, 16]
        expected = {pixels.tobytes() for pixels in tiny_pack.pixels(tiny_pack.rows("train"))}
        assert contents(data.pack, data.rows[data.learned]) == expected
        temporary = data.pack.path
    assert not temporary.exists()


def test_nothing_held_out_was_seen_when_the_autoencoder_was_trained(
    trained: Run, photos: Path, tiny_size: Preprocessing, tmp_path: Path
) -> None:
    """Renamed, sorted into other folders, among other images: the split follows the content of a file."""
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        target = tmp_path / "mine" / path.parent.name.upper() / f"renamed-{99 - number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for number in range(12):
        colour = (20 * number, 10, 200)
        Image.new("RGB", (30, 30), colour).save(tmp_path / "mine" / "COAST" / f"new-{number}.png")
    trained_on = open_pack(trained.pack_path)
    seen = contents(trained_on, trained_on.rows("train"))
    everything = contents(trained_on, trained_on.rows())
    with labelled_images(tmp_path / "mine", tiny_size) as data:
        held_out = contents(data.pack, data.rows[~data.learned])
    assert held_out & everything  # there is something to leak
    assert not held_out & seen


def test_a_pack_is_taken_as_it_is_and_one_of_another_size_is_rejected(
    tiny_pack: Pack, tiny_size: Preprocessing
) -> None:
    with labelled_images(tiny_pack.path, tiny_size) as data:
        assert data.pack.path == tiny_pack.path
    assert tiny_pack.path.exists()
    with (
        pytest.raises(ConfigError, match=r"height 32, not 16.*Give the folder of images"),
        labelled_images(tiny_pack.path, Preprocessing(16, 16)),
    ):
        pass


def test_copies_count_once_and_not_at_all_where_they_contradict(
    photos: Path, tiny_size: Preprocessing, tmp_path: Path
) -> None:
    folder = tmp_path / "labelled"
    shutil.copytree(photos, folder)
    first, second, third = sorted((folder / "coast").iterdir())[:3]
    shutil.copy(first, folder / "coast" / "again.png")
    shutil.copy(second, folder / "forest" / "contradiction.png")
    shutil.copy(third, folder / "astray.png")  # a copy outside takes the class of the one inside
    Image.new("RGB", (9, 9)).save(folder / "unlabelled.png")
    (folder / "coast" / "broken.png").write_bytes(b"no image")
    with labelled_images(folder, tiny_size) as data:
        assert np.bincount(data.labels).tolist() == [15, 16, 16]
        assert len(set(data.rows.tolist())) == len(data.rows)
        assert [entry.path for entry in data.skipped] == ["coast/broken.png"]
    assert any("1 image left out: without a sub-folder" in note for note in data.notes)
    assert any("in two classes" in note for note in data.notes)


def one_class(folder: Path) -> None:
    shutil.rmtree(folder / "coast")
    shutil.rmtree(folder / "night")


def one_image(folder: Path) -> None:
    for path in sorted((folder / "night").iterdir())[1:]:
        path.unlink()


def no_folders(folder: Path) -> None:
    for path in list(folder.rglob("*.png")):
        path.rename(folder / path.name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (one_class, "has one class, forest"),
        (one_image, "The class night in .* has 1 image, . of them to learn from"),
        (no_folders, "has no sub-folders with images"),
    ],
)
def test_what_cannot_be_learned_from_is_one_clear_line(
    photos: Path, tiny_size: Preprocessing, tmp_path: Path, spoil: object, message: str
) -> None:
    folder = tmp_path / "labelled"
    shutil.copytree(photos, folder)
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(ImageFolderError, match=message) as caught, labelled_images(folder, tiny_size):
        pass
    assert "\n" not in str(caught.value)
