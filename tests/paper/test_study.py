"""Experiments are comparable at any budget; a study keeps, continues or trains anew each of its runs."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoencode import Pack, Preprocessing, RunError, load_model
from autoencode.paper.study import (
    Experiment,
    Plan,
    open_study,
    seconds_needed,
    train_all,
    writing,
)
from autoencode.training.progress import TrainProgress
from autoencode.training.run import read_run

TINY = {"widths": (4, 8), "code_size": 8, "batch_size": 8}
EXPERIMENTS = (
    Experiment("plain", "paper-ae", "", TINY),
    Experiment("gaussian", "paper-vae", "", {**TINY, "epochs": 10}),
    Experiment("last", "paper-ae", "", {**TINY, "corrupt": ("gaussian:0.3",)}),
)


class Death(BaseException):
    """Stands in for a kill: nothing catches it, nothing is written after it."""


def plan(out: Path, pack: Pack, **changes: Any) -> Plan:  # noqa: ANN401
    return replace(Plan(out, pack, EXPERIMENTS, 0.2, 0), **changes)


def digests(out: Path) -> list[str]:
    return [load_model(out / "runs" / experiment.name).digest for experiment in EXPERIMENTS]


def die_in_the_second(experiment: Experiment, at: TrainProgress) -> None:
    if experiment.name == "gaussian" and at.epoch == 2:
        raise Death


@pytest.fixture(scope="module")
def uninterrupted(tiny_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    train_all(plan(out, tiny_pack))
    return out


def test_killed_in_the_second_experiment_only_the_rest_is_computed_and_the_models_are_the_same(
    tiny_pack: Pack, uninterrupted: Path, tmp_path: Path
) -> None:
    with pytest.raises(Death):
        train_all(plan(tmp_path, tiny_pack), die_in_the_second)
    epochs: list[tuple[str, int]] = []
    begun: list[str] = []
    train_all(
        plan(tmp_path, tiny_pack),
        lambda experiment, at: epochs.append((experiment.name, at.epoch)) if at.record else None,
        lambda experiment: begun.append(experiment.name),
    )
    assert begun == ["gaussian", "last"]
    assert epochs == [("gaussian", 2), ("last", 1), ("last", 2)]
    assert digests(tmp_path) == digests(uninterrupted)


def test_finished_experiments_are_not_trained_again(tiny_pack: Pack, uninterrupted: Path) -> None:
    before = digests(uninterrupted)
    begun: list[Experiment] = []
    assert seconds_needed(plan(uninterrupted, tiny_pack)) == 0
    trained = train_all(plan(uninterrupted, tiny_pack), None, begun.append)
    assert not begun
    assert [one.failure for one in trained] == [None] * 3
    assert digests(uninterrupted) == before


def test_only_an_experiment_with_changed_settings_is_trained_again(tiny_pack: Pack, tmp_path: Path) -> None:
    train_all(plan(tmp_path, tiny_pack))
    before = digests(tmp_path)
    changed = (*EXPERIMENTS[:2], Experiment("last", "paper-ae", "", {**TINY, "corrupt": ("rotate:15",)}))
    begun: list[str] = []
    train_all(
        plan(tmp_path, tiny_pack, experiments=changed), None, lambda experiment: begun.append(experiment.name)
    )
    assert begun == ["last"]
    after = digests(tmp_path)
    assert after[:2] == before[:2]
    assert after[2] != before[2]


def test_a_model_that_diverges_is_noted_and_stops_no_other(tiny_pack: Pack, tmp_path: Path) -> None:
    wild = Experiment("wild", "paper-ae", "", {**TINY, "learning_rate": 1e30})
    trained = train_all(plan(tmp_path, tiny_pack, experiments=(wild, EXPERIMENTS[0])))
    assert "no longer finite" in (trained[0].failure or "")
    assert trained[1].failure is None


def test_every_model_can_generate(uninterrupted: Path) -> None:
    for experiment in EXPERIMENTS:
        assert load_model(uninterrupted / "runs" / experiment.name).prior is not None


def test_the_time_needed_is_measured(tiny_pack: Pack, tmp_path: Path) -> None:
    assert 0 < seconds_needed(plan(tmp_path, tiny_pack)) < 600
    assert not (tmp_path / "runs").exists()
    # The second phase of a run is counted, and of a finished run it is no epoch too many.
    sharp = Experiment("sharp", "best", "", {**TINY, "perceptual": 0.5})
    with_phase, without = (
        plan(tmp_path, tiny_pack, experiments=[replace(sharp, overrides={**TINY, "perceptual": share})])
        for share in (0.5, 0.0)
    )
    assert seconds_needed(with_phase) > 2 * seconds_needed(without)


def test_a_finished_run_with_a_second_phase_stays_on_the_page(tiny_pack: Pack, tmp_path: Path) -> None:
    sharp = Experiment("best", "best", "", {**TINY, "perceptual": 0.5})
    train_all(plan(tmp_path, tiny_pack, experiments=[sharp]))
    made = plan(tmp_path, tiny_pack, experiments=[sharp])
    assert made.epochs_done(sharp) == made.settings(sharp).train.all_epochs == 3
    assert seconds_needed(made) == 0


def test_a_limit_takes_the_same_images_each_time_and_keeps_their_labels(photos: Path, tmp_path: Path) -> None:
    size = Preprocessing(32, 32)
    first = open_study(photos, tmp_path / "a", size, 12, 0)
    again = open_study(photos, tmp_path / "b", size, 12, 0)
    other = open_study(photos, tmp_path / "c", size, 12, 1)
    assert len(first) == len(again) == 12
    np.testing.assert_array_equal(first.pixels(first.rows()), again.pixels(again.rows()))
    assert {entry.path for entry in first.entries} != {entry.path for entry in other.entries}
    assert set(first.labels) <= {"coast", "forest", "night"}
    assert len(open_study(photos, tmp_path / "a", size, 20, 0)) == 20


def test_some_images_of_another_folder_do_not_replace_a_study(photos: Path, tmp_path: Path) -> None:
    size, other = Preprocessing(32, 32), Path(shutil.copytree(photos, tmp_path / "other"))
    kept = open_study(photos, tmp_path / "study", size, 12, 0).fingerprint
    links = sorted((tmp_path / "study" / "limited").rglob("*.png"))
    with pytest.raises(RunError, match=f"study of other images, such as {photos}.*not of {other}"):
        open_study(other, tmp_path / "study", size, 12, 0)
    assert sorted((tmp_path / "study" / "limited").rglob("*.png")) == links
    assert open_study(photos, tmp_path / "study", size, 12, 0).fingerprint == kept


def test_some_images_and_all_of_them_are_not_one_study(photos: Path, tmp_path: Path) -> None:
    size = Preprocessing(32, 32)
    some = open_study(photos, tmp_path / "some", size, 12, 0).fingerprint
    every = open_study(photos, tmp_path / "all", size, None, 0).fingerprint
    with pytest.raises(RunError, match=r"some is a study of some images .*Add --limit"):
        open_study(photos, tmp_path / "some", size, None, 0)
    with pytest.raises(RunError, match=rf"all is a study of all images of {photos}\. Leave --limit out"):
        open_study(photos, tmp_path / "all", size, 12, 0)
    assert not (tmp_path / "all" / "limited").exists()
    assert open_study(photos, tmp_path / "some", size, 12, 0).fingerprint == some
    assert open_study(photos, tmp_path / "all", size, None, 0).fingerprint == every


@pytest.mark.parametrize("original_stays", [False, True])
def test_a_study_that_was_moved_is_continued_where_it_is(
    photos: Path, tmp_path: Path, original_stays: bool
) -> None:
    size, old, new = Preprocessing(32, 32), tmp_path / "old", tmp_path / "new"
    with pytest.raises(Death):
        train_all(plan(old, open_study(photos, old, size, 20, 0)), die_in_the_second)
    shutil.copytree(old, new, symlinks=True)
    if not original_stays:
        shutil.rmtree(old)
    moved = open_study(photos, new, size, 20, 0)
    epochs: list[tuple[str, int]] = []
    train_all(plan(new, moved), lambda one, at: epochs.append((one.name, at.epoch)) if at.record else None)
    assert epochs == [("gaussian", 2), ("last", 1), ("last", 2)]
    assert moved.folder == new / "limited"
    assert {read_run(new / "runs" / one.name).pack for one in EXPERIMENTS} == {str(new / "images.pack")}


def test_another_limit_trains_the_models_again(photos: Path, tmp_path: Path) -> None:
    size = Preprocessing(32, 32)
    one = (EXPERIMENTS[0],)
    train_all(plan(tmp_path, open_study(photos, tmp_path, size, 16, 0), experiments=one))
    begun: list[Experiment] = []
    train_all(plan(tmp_path, open_study(photos, tmp_path, size, 20, 0), experiments=one), None, begun.append)
    assert begun == list(one)
    train_all(plan(tmp_path, open_study(photos, tmp_path, size, 20, 0), experiments=one), None, begun.append)
    assert begun == list(one)


def test_a_folder_of_something_else_is_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="not empty and not a study"):
        open_study(photos, tmp_path, Preprocessing(32, 32), None, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_study_has_one_writer_that_clears_what_a_killed_one_left(photos: Path, tmp_path: Path) -> None:
    open_study(photos, tmp_path, Preprocessing(32, 32), None, 0)
    (tmp_path / "measured").mkdir()
    left = [tmp_path / "index.html.7.partial", tmp_path / "measured" / "ae.json.7.partial"]
    for path in left:
        path.touch()
    with writing(tmp_path):
        assert not any(path.exists() for path in left)
        with pytest.raises(RunError, match="Another process is writing"), writing(tmp_path):
            pytest.fail("two writers")


def test_a_study_is_not_begun_in_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    for other in (tmp_path, tmp_path / "letter.txt"):
        with pytest.raises(RunError, match="Choose another --out"), writing(other):
            pytest.fail("begun")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with writing(tmp_path / "new"):
        pass
    with writing(tmp_path / "new"):  # a killed run may have left no more than its lock
        pass
