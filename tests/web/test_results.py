"""What was computed for the page is there at once after a restart, unless what it depends on has changed."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from autoencode import build_index, fit_normal, inspect_images
from autoencode.models.model_file import write_tensors
from autoencode.outliers.find import Box
from autoencode.web import duplicates, inspection, outliers, overview
from autoencode.web.results import FORMAT_VERSION, KIND, PLAIN, Form, Results, key_of, state_of

from .conftest import finished

Opening = Callable[..., TestClient]

PLACE = inspection.Place((64, 32), Box(8, 32, 8, 16))


@pytest.fixture
def kept(tmp_path: Path) -> Results:
    return Results(tmp_path / "page-results")


def never(*_: object) -> object:
    raise AssertionError("the work was done again")


def work() -> object:
    return "done again"


def known_of(page: TestClient) -> dict[str, int | None]:
    known: dict[str, int | None] = page.get("/api/overview").json()["known"]
    return known


def test_a_result_is_kept_for_its_key_alone(kept: Results) -> None:
    assert kept.kept("one", "key", PLAIN, lambda: {"a": [1, 2]}) == {"a": [1, 2]}
    assert kept.kept("one", "key", PLAIN, never) == {"a": [1, 2]}
    assert kept.kept("one", "another key", PLAIN, work) == "done again"
    assert kept.kept("another", "key", PLAIN, work) == "done again"


def test_a_result_is_for_its_owner_alone(kept: Results, tmp_path: Path) -> None:
    kept.kept("one", "key", PLAIN, work)
    file = tmp_path / "page-results" / "one.safetensors"
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)  # others may have had it in their hands since
    assert kept.known("one", "key", PLAIN) is None
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert kept.known("one", "key", PLAIN) is None


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_damaged_result_is_worked_out_again(kept: Results, tmp_path: Path, place: int) -> None:
    kept.kept("one", "key", PLAIN, lambda: "a result")
    file = tmp_path / "page-results" / "one.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert kept.kept("one", "key", PLAIN, work) == "done again"
    assert kept.kept("one", "key", PLAIN, never) == "done again"


def test_a_folder_that_cannot_be_written_keeps_nothing_and_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "page-results").write_bytes(b"a file where the folder would be")
    assert Results(tmp_path / "page-results").kept("one", "key", PLAIN, work) == "done again"


def test_a_key_depends_on_each_part_and_on_the_files(tmp_path: Path) -> None:
    file, missing = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"1")
    os.utime(file, ns=(1, 1))
    before = state_of([file, missing])
    assert state_of([file, missing]) == before
    assert state_of([missing, file]) != before
    os.utime(file, ns=(1, 2))
    assert state_of([file, missing]) != before
    assert len({key_of("a", "b"), key_of("ab"), key_of("b", "a"), key_of("a", "b", "")}) == 4


def test_scores_and_heat_maps_survive_a_restart_and_not_a_change_of_a_file(
    open_page: Opening, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    index = build_index(folder, tmp_path / "index").path
    page = open_page(None, index)
    queue = finished(page, "/api/outliers?by=all")
    name = queue["queue"][0]["id"]  # type: ignore[index]
    heat = page.get(f"/images/{name}/heat?by=all").content
    assert known_of(page)["unusual"] == queue["standing_out"]["images"]  # type: ignore[index]
    with monkeypatch.context() as patched:
        patched.setattr("autoencode.web.outliers.inspect_pack", never)
        again = open_page(None, index)
        # The overview says so before anyone opens the tab.
        assert known_of(again) == known_of(page)
        assert finished(again, "/api/outliers?by=all") == queue
        assert again.get(f"/images/{name}/heat?by=all").content == heat
    changed = next(folder.rglob("*.png"))
    os.utime(changed, ns=(0, 0))
    assert known_of(open_page(None, index))["unusual"] is None


def test_the_page_gives_the_scores_of_the_command_and_leaves_the_normal_ones_out(
    open_page: Opening, photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    label = sorted(path.name for path in folder.iterdir() if path.is_dir())[0]
    (folder / label / "0-broken.png").write_bytes(b"no image")  # of which the command is told, too
    page = open_page(None, build_index(folder, tmp_path / "index").path)
    found = inspect_images(fit_normal(folder / label), folder)
    expected = {one.path.relative_to(folder).as_posix(): one for one in found.images}
    by = f"by=label:{label}"
    finished(page, f"/api/outliers?{by}")
    every = page.get(f"/api/outliers?{by}&normal=true&limit=200").json()
    scores = {row["name"]: row["score"] for row in every["queue"]}
    assert scores == pytest.approx({name: one.score for name, one in expected.items()}, rel=1e-3)
    assert every["rate"] == found.fpr
    assert every["flagged"] == len(found.flagged)
    # Who looks for defects does not look through the good ones that they are compared with.
    others = page.get(f"/api/outliers?{by}&limit=200").json()
    good = {name for name in scores if name.startswith(f"{label}/")}
    assert {row["name"] for row in others["queue"]} == scores.keys() - good
    assert (others["images"], others["left_out"]) == (len(scores) - len(good), len(good))
    assert sum(others["histogram"]["counts"]) == others["images"]
    bits = np.frombuffer(page.get(f"/api/outliers/flagged?{by}&threshold=-1e9").content, np.uint8)
    assert np.unpackbits(bits).sum() == others["images"]
    rows = list(csv.DictReader(io.StringIO(page.get(f"/api/outliers.csv?{by}").text)))
    assert list(rows[0]) == ["path", "name", "score", "p_value", "left", "top", "width", "height", "decision"]
    for row in rows:
        box = expected[row["name"]].box
        assert [row[side] for side in ("left", "top", "width", "height")] == [*map(str, box or [""] * 4)]


def test_among_all_pictures_the_line_begins_at_a_twentieth_of_them() -> None:
    for images, flagged in ((20, 1), (48, 3), (100, 5), (1000, 50)):
        # Of images that are compared with each other, each counts among those as high as itself.
        p_values = (np.arange(images) + 2) / (images + 1)
        ranking = inspection._ranked("patches", -p_values, p_values, images, np.zeros(0))
        assert ranking.flagged(outliers.default_rate(outliers.ALL, ranking)) == flagged


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scores", np.inf),
        ("scores", np.nan),
        ("p_values", 0.0),
        ("p_values", 1.5),
        ("heats", None),
        ("shown", -1),
        ("shown", "flat"),
        ("heats", "missing"),
        ("places", 2),
        ("places", -1),
    ],
)
def test_forged_scores_are_ignored(
    kept: Results, tmp_path: Path, name: str, value: float | str | None
) -> None:
    heat = np.ones((2, 3), np.float16)
    ranking = inspection._ranked("patches", np.array([1.0, 2.0]), np.array([0.5, 0.1]), 9, np.zeros(0))
    form, found = inspection.form_of(2), inspection.Inspected(ranking, {1: heat}, {1: PLACE})
    kept.kept("one", "key", form, lambda: found)
    arrays, content = form.save(found)
    forged = {key: torch.from_numpy(np.array(one)) for key, one in arrays.items()}
    if value is None:
        forged[name] = forged[name][:-2]
    elif value == "flat":
        forged[name] = forged[name].ravel()
    elif value == "missing":
        del forged[name]
    else:
        forged[name].view(-1)[0] = value
    assert kept.known("one", "key", form) is not None
    # With a digest that is right: what someone would make on purpose.
    write_tensors(
        tmp_path / "page-results" / "one.safetensors", KIND, FORMAT_VERSION, forged, {**content, "key": "key"}
    )
    assert kept.known("one", "key", form) is None


def test_copies_survive_a_restart(
    open_page: Opening, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    first = sorted(folder.rglob("*.png"))[0]
    shutil.copy(first, first.with_name("zz.png"))
    index = build_index(folder, tmp_path / "index").path
    page = open_page(None, index)
    assert page.get("/api/duplicates/known").json() == {"known": False}
    found = finished(page, "/api/duplicates")
    assert found["total"]
    monkeypatch.setattr(duplicates, "find_duplicates", never)
    again = open_page(None, index)
    assert again.get("/api/duplicates/known").json() == {"known": True}
    assert again.get("/api/duplicates").json() == found
    assert known_of(again)["copies"] == found["total"]
    first.unlink()
    assert open_page(None, index).get("/api/duplicates/known").json() == {"known": False}


def test_a_folder_that_vanished_is_said_where_it_shows(
    open_page: Opening, photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    page = open_page(None, build_index(folder, tmp_path / "index").path)
    assert page.get("/api/browse").json()["problem"] is None
    assert page.get("/api/overview").json()["problem"] is None
    folder.rename(tmp_path / "elsewhere")
    for address in ("/api/browse", "/api/overview"):
        assert "photos is not there" in page.get(address).json()["problem"]
    needs = page.get("/api/workspace").json()["needs"]
    for name in ("inspection", "duplicates"):
        assert "photos is not there. Put it back, then load the page again." in needs[name]["error"]
    picture = page.get("/api/browse").json()["pictures"][0]
    assert page.get(f"/images/{picture['id']}/original").status_code == 200  # as it was packed
    assert "is gone" in page.get(f"/api/pictures/{picture['id']}/file").json()["problem"]


def test_copies_of_other_files_are_ignored(kept: Results, photos: Path, tmp_path: Path) -> None:
    paths = [photos / "a.png", photos / "b.png"]
    files = tuple(
        duplicates.DuplicateFile(path, 1, 2, 3, 4.5, 2, True, ("cropped",), paths[0], (0.0, 0.1, 0.5, 1.0))
        for path in paths
    )
    found = duplicates.Duplicates(
        [duplicates.DuplicateGroup(files)], [], 2, 0.5, None, 0.1, [(paths[0], "why")], [(paths[1], paths[0])]
    )
    kept.kept("copies", "key", duplicates.form_of(paths), lambda: found)
    assert kept.known("copies", "key", duplicates.form_of(paths)) == found
    assert kept.known("copies", "key", duplicates.form_of(paths[:1])) is None


@pytest.mark.parametrize(
    ("forged", "form"),
    [
        ("text", overview._NUMBERS),
        ([1, 2], overview._NUMBERS),
        ({"best": [[3, 0.1]], "median": [], "worst": []}, overview.form_of_examples(3)),
        ({"best": [[-1, 0.1]], "median": [], "worst": []}, overview.form_of_examples(3)),
        ({"best": [7], "median": [], "worst": []}, overview.form_of_examples(3)),
        ({"best": []}, overview.form_of_examples(3)),
        ({"groups": [[]], "possible": [], "images": 2, "threshold": 0.5, "copies_agree": None,
          "different_agree": 0.1, "skipped": [], "links": []}, duplicates.form_of([])),
        ({"groups": [], "possible": [], "images": 10**400, "threshold": 10**400, "copies_agree": None,
          "different_agree": 0.1, "skipped": [], "links": []}, duplicates.form_of([])),
    ],
)  # fmt: skip
def test_forged_measurements_and_copies_are_ignored(
    kept: Results, forged: object, form: Form[object]
) -> None:
    kept.kept("one", "key", PLAIN, lambda: forged)
    assert kept.known("one", "key", PLAIN) == forged
    assert kept.known("one", "key", form) is None


def test_the_model_is_measured_once(
    open_page: Opening, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("page-results"))
    asked = ("/api/health", "/api/examples", "/api/verdict", "/api/outliers")
    page = open_page(run)
    before = [finished(page, address) for address in asked]
    for name in ("quick_evaluation", "reconstruction_errors", "evaluate"):
        monkeypatch.setattr(f"autoencode.web.overview.{name}", never)
    monkeypatch.setattr("autoencode.web.outliers.rank_pack", never)
    again = open_page(run)
    assert [finished(again, address) for address in asked] == before
    # Trained anew, it is another model.
    os.utime(run / "model.safetensors", ns=(1, 1))
    with pytest.raises(AssertionError, match="the work was done again"):
        finished(open_page(run), "/api/examples")


def test_a_heat_map_has_the_shape_of_its_image_and_a_box_around_the_place() -> None:
    hot = np.full((4, 4), 0.5, np.float16)
    hot[2, 1] = 1.6
    drawn = inspection.overlay(hot, PLACE)
    assert drawn.shape == (800, 400, 4)
    assert drawn[500, 150, 3] > 160  # in the hot patch
    assert not drawn[:300, 250:, 3].any()
    assert drawn[400:600, 96:100, 3].min() == 255  # left of the box
