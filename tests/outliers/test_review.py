"""Decisions are read back as they were made; the ranking of a pack, against scoring its files."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autoencode import (
    ConfigError,
    OutputError,
    Pack,
    Run,
    find_outliers,
    fit_reference,
    load_model,
    pack_folder,
)
from autoencode.outliers.find import Box
from autoencode.outliers.review import (
    Decisions,
    Ranking,
    decided_files,
    decisions_table,
    file_list,
    rank_pack,
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "decisions.jsonl"


def standing(decisions: Decisions, pack: Pack) -> list[str | None]:
    return [decisions.of(pack, entry) for entry in pack.entries[:4]]


def test_what_was_decided_is_read_back(tiny_pack: Pack, log: Path) -> None:
    decisions = Decisions(log)
    assert not log.exists()
    decisions.decide(tiny_pack, tiny_pack.entries[0], "drop")
    decisions.decide(tiny_pack, tiny_pack.entries[1], "keep")
    decisions.decide(tiny_pack, tiny_pack.entries[0], "keep")
    decisions.decide(tiny_pack, tiny_pack.entries[2], "drop")
    assert (
        standing(Decisions(log), tiny_pack)
        == standing(decisions, tiny_pack)
        == ["keep", "keep", "drop", None]
    )
    assert Decisions(log).counts(tiny_pack) == {"keep": 2, "drop": 1}


def test_undoing_goes_back_one_by_one_also_after_a_restart(tiny_pack: Pack, log: Path) -> None:
    decisions = Decisions(log)
    for decision in ("drop", "keep"):
        decisions.decide(tiny_pack, tiny_pack.entries[0], decision)
    decisions.decide(tiny_pack, tiny_pack.entries[1], "drop")
    path = tiny_pack.entries[1].path
    assert decisions.undo(tiny_pack) == [path]
    again = Decisions(log)
    assert standing(again, tiny_pack)[:2] == ["keep", None]
    again.undo(tiny_pack)
    assert standing(again, tiny_pack)[0] == "drop"
    again.undo(tiny_pack)
    assert standing(Decisions(log), tiny_pack)[0] is None
    assert Decisions(log).undo(tiny_pack) == []


def test_a_decision_about_several_images_is_one_step_that_leaves_the_rest(tiny_pack: Pack, log: Path) -> None:
    decisions, entries = Decisions(log), tiny_pack.entries
    decisions.decide(tiny_pack, entries[0], "keep")
    decisions.decide(tiny_pack, entries[1], "drop")
    assert decisions.last_at(tiny_pack) > 0
    assert decisions.decide_all(tiny_pack, [entries[k] for k in (0, 1, 2, 2)], "drop") == 2
    assert decisions.decide_all(tiny_pack, [entries[0]], "drop") == 0  # nothing to undo
    decisions.decide(tiny_pack, entries[3], "keep")
    again = Decisions(log)
    assert standing(again, tiny_pack) == ["drop", "drop", "drop", "keep"]
    assert again.undo(tiny_pack) == [entries[3].path]
    assert again.undo(tiny_pack) == [entries[0].path, entries[2].path]
    assert standing(Decisions(log), tiny_pack) == standing(again, tiny_pack) == ["keep", "drop", None, None]
    again.decide_all(tiny_pack, [entries[2]], "keep")
    again.undo(tiny_pack)
    assert [len(Decisions(log).undo(tiny_pack)) for _ in range(3)] == [1, 1, 0]
    assert Decisions(log).last_at(tiny_pack) == 0


def test_each_change_has_a_larger_revision_and_replaced_decisions_are_counted(
    tiny_pack: Pack, log: Path
) -> None:
    decisions, entries = Decisions(log), tiny_pack.entries
    seen = [decisions.revision]
    for change in (
        lambda: decisions.decide(tiny_pack, entries[0], "keep"),
        lambda: decisions.decide_all(tiny_pack, entries[1:3], "drop"),
        lambda: decisions.undo(tiny_pack),
        lambda: decisions.undo(tiny_pack),
    ):
        change()
        seen.append(decisions.revision)
    assert seen == sorted(set(seen))
    log.unlink()  # someone began a new log: an older answer must not stand for it
    decisions.decide(tiny_pack, entries[0], "keep")
    assert decisions.revision > seen[-1]
    decisions.decide(tiny_pack, entries[1], "drop")
    assert decisions.opposed(tiny_pack, [entries[0], entries[0], entries[1], entries[2]], "drop") == 1


def test_the_table_has_the_box_and_of_a_pack_without_a_model_no_split(
    ranking: Ranking, tiny_pack: Pack, log: Path
) -> None:
    first = int(ranking.order[0])
    content = decisions_table(Decisions(log), tiny_pack, ranking, {first: Box(1, 2, 3, 4)}, has_splits=False)
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert list(rows[0]) == ["path", "name", "score", "p_value", "left", "top", "width", "height", "decision"]
    assert [rows[0][side] for side in ("left", "top", "width", "height")] == ["1", "2", "3", "4"]
    assert (rows[0]["name"], rows[1]["left"]) == (tiny_pack.entries[first].path, "")
    assert "split" in decisions_table(Decisions(log), tiny_pack, ranking).decode().splitlines()[0]


def test_a_line_cut_short_by_a_crash_costs_that_decision_alone(tiny_pack: Pack, log: Path) -> None:
    decisions = Decisions(log)
    for entry in tiny_pack.entries[:2]:
        decisions.decide(tiny_pack, entry, "drop")
    log.write_bytes(log.read_bytes()[:-20])
    again = Decisions(log)
    assert standing(again, tiny_pack) == ["drop", None, None, None]
    again.decide(tiny_pack, tiny_pack.entries[3], "keep")
    assert standing(Decisions(log), tiny_pack) == ["drop", None, None, "keep"]


def test_another_damage_is_an_error_that_names_the_line(tiny_pack: Pack, log: Path) -> None:
    decisions = Decisions(log)
    for entry in tiny_pack.entries[:2]:
        decisions.decide(tiny_pack, entry, "drop")
    first, second = log.read_text().splitlines()
    log.write_text(f"{first[:-5]}\n{second}\n")
    with pytest.raises(OutputError, match="Line 1 of"):
        Decisions(log)
    log.write_bytes(f"{first}\n".encode() + b"\xff" + f"{second}\n".encode())
    with pytest.raises(OutputError, match="Line 2 of"):
        Decisions(log)


def test_only_keep_and_drop_are_decisions(tiny_pack: Pack, log: Path) -> None:
    with pytest.raises(ConfigError, match="Choose keep or drop"):
        Decisions(log).decide(tiny_pack, tiny_pack.entries[0], "burn")  # type: ignore[arg-type]
    assert not log.exists()


def test_lists_hold_the_files(tiny_pack: Pack, log: Path) -> None:
    decisions = Decisions(log)
    decisions.decide(tiny_pack, tiny_pack.entries[2], "drop")
    path = tiny_pack.folder / tiny_pack.entries[2].path
    assert path.is_file()
    assert decided_files(decisions, tiny_pack, "drop").decode() == f"{path}\n"
    assert decided_files(decisions, tiny_pack, "keep") == b""
    assert file_list(tiny_pack, [tiny_pack.entries[2]]).decode() == f"{path}\n"


def test_two_that_write_one_log_know_of_each_other(tiny_pack: Pack, log: Path) -> None:
    one, other = Decisions(log), Decisions(log)
    for place in range(3):
        one.decide(tiny_pack, tiny_pack.entries[place], "drop")
    assert other.undo(tiny_pack) == [tiny_pack.entries[2].path]
    other.decide(tiny_pack, tiny_pack.entries[3], "keep")
    for _ in range(3):
        one.undo(tiny_pack)
    assert one.undo(tiny_pack) == []
    assert standing(Decisions(log), tiny_pack) == standing(one, tiny_pack) == [None] * 4


def test_a_path_with_a_line_break_is_in_no_list(tiny_pack: Pack) -> None:
    broken = dataclasses.replace(tiny_pack.entries[0], path="a\n/etc/passwd")
    assert file_list(tiny_pack, [broken, tiny_pack.entries[1]]).decode().splitlines() == [
        str(tiny_pack.folder / tiny_pack.entries[1].path)
    ]


def test_decisions_about_another_folder_are_neither_counted_nor_undone(tiny_pack: Pack, log: Path) -> None:
    decisions = Decisions(log)
    elsewhere = SimpleNamespace(folder=Path("elsewhere"))
    decisions.decide(tiny_pack, tiny_pack.entries[0], "drop")
    decisions.decide(elsewhere, tiny_pack.entries[1], "keep")  # type: ignore[arg-type]
    assert decisions.counts(tiny_pack) == {"keep": 0, "drop": 1}
    assert decisions.undo(tiny_pack) == [tiny_pack.entries[0].path]
    assert decisions.undo(tiny_pack) == []
    assert Decisions(log).undo(elsewhere) == [tiny_pack.entries[1].path]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ranking(trained: Run, tiny_pack: Pack) -> Ranking:
    model = load_model(trained.model_path)
    return rank_pack(model, tiny_pack, fit_reference(model, tiny_pack))


def test_a_ranking_agrees_with_find_outliers_among_the_files(
    ranking: Ranking, trained: Run, tiny_pack: Pack
) -> None:
    model = load_model(trained.model_path)
    reference = fit_reference(model, tiny_pack)
    found = find_outliers(model, tiny_pack.folder, reference, fpr=0.5)
    paths = [tiny_pack.folder / entry.path for entry in tiny_pack.entries]
    expected = {image.path: image.score for image in found.images}
    np.testing.assert_allclose(ranking.scores, [expected[path] for path in paths], rtol=1e-4)
    assert (np.diff(ranking.scores[ranking.order]) <= 0).all()
    assert ranking.flagged(0.5) == sum(image.outlier for image in found.images)
    assert found.validation_fpr == ranking.validation_fpr(0.5)


def ranked(scores: np.ndarray) -> Ranking:
    order = np.argsort(-scores, kind="stable")
    return Ranking("test", scores, np.full(len(scores), 0.5), order, len(scores), np.zeros(0))


def test_the_number_that_stands_out_is_of_the_scores_and_no_share_of_the_folder() -> None:
    rng = np.random.default_rng(0)
    ordinary = rng.normal(0, 1, 2000)
    # Half of one is expected beyond the criterion in each folder, however large.
    counts = [ranked(rng.normal(0, 1, size)).standing_out for size in (200, 2000) for _ in range(100)]
    assert 0.3 < np.mean(counts) < 0.9
    assert ranked(np.concatenate([ordinary, rng.normal(9, 1, 30)])).standing_out in (30, 31, 32)
    scaled = ranked(np.concatenate([7 + 3 * ordinary, [1e6]]))  # in any unit
    assert scaled.standing_out == ranked(np.concatenate([ordinary, [1e6]])).standing_out


@pytest.mark.parametrize("scores", [np.zeros(0), np.zeros(12), np.ones(1)])
def test_nothing_stands_out_where_all_are_alike(scores: np.ndarray) -> None:
    assert ranked(scores).standing_out == 0


def test_one_that_differs_from_equal_ones_stands_out() -> None:
    assert ranked(np.array([*np.zeros(50), 3.0])).standing_out == 1


def test_no_rate_is_kept_to_that_cannot_be_promised(ranking: Ranking) -> None:
    smallest = ranking.smallest_fpr
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
