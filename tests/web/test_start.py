"""From nothing: folders under one folder only, one command at a time, and what it made opened in the page."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from autoencode import build_index, pack_folder
from autoencode.web.commands import index_of
from autoencode.web.security import Trust
from autoencode.web.server import make_app
from autoencode.web.start import KEYBOARD, SAMPLE_GAP, SAMPLE_SIDE, SAMPLED, last_line
from autoencode.web.workspace import Workspace

from .conftest import ADDRESS, wait_for


@pytest.fixture
def home(tmp_path: Path, photos: Path) -> Path:
    (tmp_path / "home" / "inner").mkdir(parents=True)
    (tmp_path / "home" / "photos").symlink_to(photos)  # leads out
    for number, path in enumerate(sorted(photos.rglob("*.png"))[:12]):
        (tmp_path / "home" / "inner" / f"{number}.png").write_bytes(path.read_bytes())
    (tmp_path / "home" / "inner" / "notes.txt").write_text("no picture")
    return tmp_path / "home"


@pytest.fixture
def client(home: Path) -> Iterator[TestClient]:
    trust = Trust()
    app = make_app(Workspace(), trust, home)
    headers = {"Authorization": f"Bearer {trust.token}"}
    with TestClient(app, base_url=ADDRESS, headers=headers) as opened:
        yield opened


def test_a_page_of_nothing_says_what_each_tab_needs_and_can_be_filled(client: TestClient) -> None:
    about = client.get("/api/workspace").json()
    assert (about["images"], about["kind"], about["name"]) == (0, None, "autoencode")
    assert {"browse", "map", "search", "morph", "outliers", "duplicates"} <= about["needs"].keys()
    assert "start" not in about["needs"]
    assert client.get("/api/pictures").json() == []
    assert client.get("/api/browse").status_code == 409


def test_folders_and_the_number_of_images_are_shown(client: TestClient) -> None:
    found = client.get("/api/start").json()
    assert (found["folder"], found["folders"]) == ("", ["inner", "photos"])
    inner = client.get("/api/start?folder=inner").json()
    assert (inner["images"], inner["is_all"], inner["made"]) == (12, True, [])


def test_our_own_results_are_no_folders_of_images_and_are_not_counted(
    client: TestClient, home: Path, run_folder: Path, index_folder: Path
) -> None:
    shutil.copytree(run_folder, home / "runs" / "mine")
    pack_folder(home / "inner", home / "inner-32.pack", size=32)
    shutil.copytree(index_folder, home / "indexed")
    (home / "runs" / "mine" / "figure.png").write_bytes((home / "inner" / "0.png").read_bytes())
    found = client.get("/api/start").json()
    assert (found["folders"], found["images"]) == (["inner", "photos", "runs"], 12)
    runs = client.get("/api/start?folder=runs").json()
    assert (runs["folders"], runs["images"]) == ([], 0)
    assert {one["path"] for one in found["made"]} == {"runs/mine", "indexed"}


@pytest.mark.parametrize(
    "folder", ["..", "/etc", "inner/../..", "photos", "inner/0.png", "no", "a\0b", "x" * 3000]
)
def test_nothing_outside_the_folder_is_listed_trained_on_or_opened(client: TestClient, folder: str) -> None:
    for answer in (
        client.get("/api/start", params={"folder": folder}),
        client.get("/api/start/sample", params={"folder": folder}),
        client.post("/api/start/index", json={"folder": folder}),
        client.post("/api/start/train", json={"folder": folder}),
        client.post("/api/start/open", json={"folder": folder}),
    ):
        assert answer.status_code == 422, answer.json()
    assert client.get("/api/start/work").json() == {"kind": None}


def test_a_picture_that_never_was_is_not_called_forgotten(client: TestClient) -> None:
    assert "not among those" in client.get("/api/pictures/i99999").json()["error"]
    assert "no longer in memory" in client.get("/api/pictures/uAbCdEfGh").json()["error"]


def test_a_folder_shows_some_of_its_images_and_none_from_elsewhere(client: TestClient, home: Path) -> None:
    def width() -> int:
        answer = client.get("/api/start/sample?folder=inner")
        assert answer.status_code == 200, answer.text
        return Image.open(io.BytesIO(answer.content)).width

    assert width() == SAMPLED * (SAMPLE_SIDE + SAMPLE_GAP) - SAMPLE_GAP
    for path in sorted((home / "inner").glob("*.png"))[3:]:
        path.unlink()
    (home / "inner" / "broken.png").write_bytes(b"no image")
    (home / "inner" / "elsewhere.png").symlink_to(next((home / "photos").resolve().rglob("*.png")))
    assert width() == 3 * SAMPLE_SIDE + 2 * SAMPLE_GAP


def test_a_page_for_other_machines_starts_nothing() -> None:
    trust = Trust(is_remote=True)
    with TestClient(
        make_app(Workspace(), trust), base_url=ADDRESS, headers={"Authorization": f"Bearer {trust.token}"}
    ) as client:
        assert client.get("/api/start").status_code == 409
        for what in ("index", "train", "open"):
            assert client.post(f"/api/start/{what}", json={"folder": ""}).status_code == 409


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Stopping: the model is fitted; Ctrl-C again skips it.", "Stopping: the model is fitted."),
        ("Stopped. runs/a keeps its state: run it again with --resume.", "Stopped. runs/a keeps its state."),
        ("packing: 12 of 40, 3 images/s", "packing: 12 of 40, 3 images/s"),
    ],
)
def test_the_log_in_the_page_speaks_of_no_keyboard(line: str, shown: str) -> None:
    assert KEYBOARD.sub("", line) == shown


def test_the_end_of_a_log_is_how_it_ended_and_not_what_to_type() -> None:
    lines = [
        "report: /r/report.html",
        "model:  /r/m",
        "quality: held-out PSNR 22.5 dB",
        "next:   autoencode x",
    ]
    assert last_line(lines) == "quality: held-out PSNR 22.5 dB"
    assert last_line([*lines, "Stopped. r keeps its state: run it again with --resume."]).startswith(
        "Stopped."
    )
    assert last_line(["epoch 1/4  loss 1", ""]) == "epoch 1/4  loss 1"
    assert last_line([]) == ""


def test_a_folder_that_has_an_index_gets_no_second_one_and_keeps_its_tags(
    client: TestClient, home: Path
) -> None:
    assert client.get("/api/start?folder=inner").json()["index"] is None
    build_index((home / "inner").resolve(), home / "indexes" / "inner")
    client.post("/api/start/open", json={"folder": "indexes/inner"})
    name = client.post("/api/selections", content=bytes([255, 15])).json()["selection"]
    client.post("/api/tags", json={"selection": name, "tag": "mine"})
    client.post("/api/selections/decisions", json={"selection": name, "decision": "drop"})
    (home / "inner" / "0.png").unlink()
    (home / "inner" / "new.png").write_bytes(next((home / "photos").rglob("*47.png")).read_bytes())
    (home / "indexes" / "else").mkdir()  # no index
    assert client.get("/api/start?folder=inner").json()["index"] == "indexes/inner"
    client.post("/api/start/index", json={"folder": "inner"})
    wait_for(lambda: not client.get("/api/start/work").json()["running"], seconds=60)
    again = client.get("/api/start/work").json()
    assert (again["out"], again["updates"]) == ("indexes/inner", True)
    assert again["changes"] == {"encoded": 1, "kept": 11, "removed": 1}
    client.post("/api/start/open", json={"folder": "indexes/inner"})
    pictures = client.get("/api/browse").json()["pictures"]
    about = {(one["name"], *one["tags"], one["decision"]) for one in pictures}
    assert about == {*((f"{number}.png", "mine", "drop") for number in range(1, 12)), ("new.png", None)}


def test_an_index_that_was_stopped_is_gone_on_with(tmp_path: Path, photos: Path) -> None:
    pack_folder(photos, tmp_path / "indexes" / "photos" / "pack", size=32)
    assert index_of(tmp_path, photos.resolve()) == (tmp_path / "indexes" / "photos", str(photos))
    assert index_of(tmp_path, tmp_path) is None


def test_an_index_made_in_the_page_is_opened_in_the_page(client: TestClient) -> None:
    begun = client.post("/api/start/index", json={"folder": "inner"}).json()
    assert (begun["kind"], begun["running"], begun["out"]) == ("index", True, "indexes/inner")
    assert client.post("/api/start/index", json={"folder": "inner"}).status_code == 422  # one at a time
    # A process that loads torch: several seconds where all cores have other work.
    wait_for(lambda: not client.get("/api/start/work").json()["running"], seconds=60)
    state = client.get("/api/start/work").json()
    assert (state["ready"], state["failed"]) == (True, False), state
    assert [one["path"] for one in client.get("/api/start").json()["made"]] == ["indexes/inner"]
    assert client.post("/api/start/open", json={"folder": "indexes/inner"}).json() == {"name": "inner"}
    about = client.get("/api/workspace").json()
    assert (about["images"], about["kind"]) == (12, None)
    assert "search" not in about["needs"]
    assert len(client.get("/api/search?picture=i3&k=4").json()["neighbours"]) == 4
    assert client.get("/api/morph/frame?pictures=i1,i2").status_code == 422  # there is no model
