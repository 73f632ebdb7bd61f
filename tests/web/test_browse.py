"""Browsing: filters, tags that last, and what a selection becomes."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from starlette.testclient import TestClient

from autoencode import build_index
from autoencode.data.entries import Entry, packed_entry
from autoencode.errors import ConfigError, OutputError
from autoencode.web import missing, selections
from autoencode.web.archive import zipped
from autoencode.web.tags import TAGS_NAME, Tags
from autoencode.web.workspace import Workspace

from .conftest import finished


@pytest.fixture(autouse=True)
def no_tags(run_folder: Path) -> None:
    (run_folder / TAGS_NAME).unlink(missing_ok=True)


def names(client: TestClient, query: str = "") -> list[str]:
    return [picture["name"] for picture in client.get(f"/api/browse?limit=500&{query}").json()["pictures"]]


def selection_of(client: TestClient, positions: list[int]) -> str:
    bits = np.zeros(48, np.uint8)
    bits[positions] = 1
    answer = client.post("/api/selections", content=np.packbits(bits, bitorder="little").tobytes())
    return str(answer.json()["selection"])


def entry(path: str) -> Entry:
    return packed_entry(path, 1, 1, f"{abs(hash(path)):064x}"[:64], 0)


def test_images_are_found_by_every_word_label_and_part(client: TestClient, workspace: Workspace) -> None:
    assert workspace.review is not None
    entries = list(workspace.review.pack.entries)
    assert names(client) == sorted(entry.path for entry in entries)
    assert names(client, "text=FOREST 1") == sorted(
        entry.path for entry in entries if "forest" in entry.path and "1" in entry.path
    )
    assert names(client, "label=coast&split=train") == sorted(
        entry.path for entry in entries if entry.label == "coast" and entry.split == "train"
    )
    assert names(client, "split=none") == []


def test_a_star_stands_for_any_letters_of_a_name_or_path(client: TestClient) -> None:
    every = names(client)
    assert names(client, "text=*.png") == every
    assert names(client, "text=forest/*7.PNG") == [one for one in every if re.match("forest/.*7.png", one)]
    assert names(client, "text=*.jpg") == []
    assert names(client, "text=*[0]*") == []  # a bracket is one


def test_images_are_sorted_by_file_score_or_at_random(client: TestClient, workspace: Workspace) -> None:
    assert workspace.review is not None
    sizes = {entry.path: entry.size for entry in workspace.review.pack.entries}
    by_size = [sizes[name] for name in names(client, "sort=size&down=true")]
    assert by_size == sorted(sizes.values(), reverse=True)
    assert sorted(names(client, "sort=shuffled")) == names(client) != names(client, "sort=shuffled")
    ranked = [row["name"] for row in finished(client, "/api/outliers?limit=200")["queue"]]
    assert names(client, "sort=score&down=true")[:5] == ranked[:5]


def test_the_most_unusual_are_found(client: TestClient, workspace: Workspace) -> None:
    assert len(names(client, "unusual=0.05")) == len(names(client))  # no score is known yet
    finished(client, "/api/outliers?limit=1")
    assert workspace.ranking is not None
    scores = workspace.ranking.scores
    least = np.sort(scores)[::-1][math.ceil(0.1 * len(scores)) - 1]
    found = client.get("/api/browse?limit=500&unusual=0.1&sort=score&down=true").json()["pictures"]
    assert [one["score"] for one in found] == sorted(scores[scores >= least], reverse=True)


def test_all_that_is_found_can_be_selected_and_shown_again(client: TestClient) -> None:
    bits = client.get("/api/browse/positions?label=night").content
    selection = client.post("/api/selections", content=bits).json()
    assert selection["images"] == 16
    assert names(client, f"selection={selection['selection']}") == names(client, "label=night")
    part = client.get(f"/api/browse?selection={selection['selection']}&offset=14").json()
    assert (part["total"], len(part["pictures"])) == (16, 2)


def test_tags_survive_a_restart_and_are_undone(
    client: TestClient, open_page: Callable[..., TestClient], run_folder: Path, index_folder: Path
) -> None:
    one, two = selection_of(client, [1, 2]), selection_of(client, [2, 3])
    assert client.post("/api/tags", json={"selection": one, "tag": " stray "}).json()["changed"] == 2
    assert client.post("/api/tags", json={"selection": two, "tag": "stray"}).json()["changed"] == 1
    again = open_page(run_folder, index_folder)
    assert len(names(again, "tag=stray")) == 3
    two_again = selection_of(again, [2, 3])
    # Only what the second change added is taken back.
    assert again.post("/api/undo").json() == {"undone": "stray", "decided": 0, "tags": {"stray": 2}}
    assert (
        again.post("/api/tags", json={"selection": two_again, "tag": "stray", "on": False}).json()["changed"]
        == 1
    )
    assert len(names(again, "tag=stray")) == 1
    assert len(names(again, "tag=-")) == 47
    # The first window takes in what the second wrote before it writes.
    assert client.post("/api/tags", json={"selection": one, "tag": "stray"}).json()["tags"] == {"stray": 2}
    for _ in range(3):
        client.post("/api/undo")
    assert client.post("/api/undo").json() == {"undone": None, "decided": 0, "tags": {}}


def test_a_tag_is_short_and_readable_and_belongs_to_one_content(tmp_path: Path) -> None:
    tags = Tags(tmp_path / "tags.jsonl")
    for tag in ("", "  ", "a" * 61, "line\nbreak"):
        with pytest.raises(ConfigError, match="1 to 60 printable"):
            tags.set(tag, [entry("a.png")], is_on=True)
    assert not (tmp_path / "tags.jsonl").exists()
    tags.set("good", [entry("a.png")], is_on=True)
    other = packed_entry("a.png", 1, 1, "0" * 64, 0)
    assert (tags.of(entry("a.png")), tags.of(other)) == (["good"], [])


def test_a_log_cut_short_loses_that_line_alone_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tags.jsonl"
    Tags(path).set("good", [entry("a.png")], is_on=True)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    tags = Tags(path)
    assert tags.counts() == {"good": 1}
    tags.set("bad", [entry("a.png")], is_on=True)
    assert Tags(path).of(entry("a.png")) == ["bad", "good"]
    for line in (b"[]\n", b'{"undo": true}\n', b'{"tag": 1}\n', b"\xff\n"):
        path.write_bytes(line)
        with pytest.raises(OutputError, match=r"Line 1 of .* is damaged"):
            Tags(path)


def test_the_flagged_are_those_from_the_threshold_on(client: TestClient) -> None:
    finished(client, "/api/outliers")
    first = client.get("/api/outliers?limit=5").json()["queue"]
    query = f"by=model&threshold={first[3]['score']}"
    bits = np.frombuffer(client.get(f"/api/outliers/flagged?{query}").content, np.uint8)
    flagged = np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()
    assert {f"i{at}" for at in flagged} == {one["id"] for one in first[:4]}


def test_decisions_are_made_about_a_selection(client: TestClient, workspace: Workspace) -> None:
    selection = selection_of(client, [0, 5, 7])
    answer = client.post("/api/selections/decisions", json={"selection": selection, "decision": "drop"})
    assert answer.json() == {"counts": {"keep": 0, "drop": 3}, "changed": 3, "replaced": 0}
    # How many decisions it replaces is said: a drop of the flagged would take back a "keep" without a word.
    kept = {"selection": selection_of(client, [5, 6]), "decision": "keep"}
    answer = client.post("/api/selections/decisions", json=kept).json()
    assert (answer["changed"], answer["replaced"]) == (2, 1)
    client.post("/api/undo")
    assert len(names(client, "decision=drop")) == 3
    assert len(names(client, "decision=none")) == 45
    undone = client.post("/api/decisions/undo").json()
    assert (undone["images"], undone["counts"]["drop"]) == (3, 0)


def test_the_last_change_is_taken_back_of_tags_and_of_decisions(client: TestClient) -> None:
    one, all_three = selection_of(client, [1]), selection_of(client, [1, 2, 3])
    client.post("/api/decisions", json={"picture": "i1", "decision": "keep"})
    client.post("/api/tags", json={"selection": one, "tag": "odd"})
    client.post("/api/selections/decisions", json={"selection": all_three, "decision": "drop"})
    undone = [client.post("/api/undo").json() for _ in range(4)]
    assert [(one["undone"], one["decided"]) for one in undone] == [
        (None, 3),
        ("odd", 0),
        (None, 1),
        (None, 0),
    ]
    assert len(names(client, "decision=none")) == 48


def test_a_selection_becomes_a_table_and_an_archive(
    client: TestClient, workspace: Workspace, photos: Path
) -> None:
    selection = selection_of(client, [3, 9])
    client.post("/api/tags", json={"selection": selection, "tag": "=1+1"})
    rows = list(csv.DictReader(io.StringIO(client.get(f"/api/selections/{selection}/csv").text)))
    assert workspace.review is not None
    entries = [workspace.review.entry(position) for position in (3, 9)]
    assert [row["path"] for row in rows] == [str(photos / one.path) for one in entries]
    assert rows[0]["tags"] == "'=1+1"  # not a formula
    answer = client.get(f"/api/selections/{selection}/zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [one.path for one in entries]
        assert archive.read(entries[0].path) == (photos / entries[0].path).read_bytes()


def test_a_selection_is_listed_in_the_order_of_the_grid(client: TestClient, photos: Path) -> None:
    finished(client, "/api/outliers?limit=1")
    selection = selection_of(client, [2, 3, 11, 30, 47])
    for order in ("sort=name", "sort=name&down=true", "sort=score&down=true", "sort=shuffled"):
        shown = names(client, f"selection={selection}&{order}")
        lines = client.get(f"/api/selections/{selection}/txt?{order}").text.splitlines()
        assert lines == [str(photos / name) for name in shown]
        rows = list(csv.DictReader(io.StringIO(client.get(f"/api/selections/{selection}/csv?{order}").text)))
        assert [row["path"] for row in rows] == lines
        content = io.BytesIO(client.get(f"/api/selections/{selection}/zip?{order}").content)
        assert zipfile.ZipFile(content).namelist() == shown
    assert client.get(f"/api/selections/{selection}/txt?sort=bad").status_code == 422


def test_a_table_has_no_parts_before_a_training(
    client: TestClient, open_page: Callable[..., TestClient], index_folder: Path
) -> None:
    def columns(page: TestClient) -> list[str]:
        return page.get(f"/api/selections/{selection_of(page, [4])}/csv").text.splitlines()[0].split(",")

    assert columns(client) == ["path", "label", "split", "score", "decision", "tags"]
    assert columns(open_page(None, index_folder)) == ["path", "label", "score", "decision", "tags"]


def test_files_of_a_selection_that_are_gone_are_counted(
    open_page: Callable[..., TestClient],
    run_folder: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    index = build_index(folder, tmp_path / "index", run_folder, embedding="code").path
    page = open_page(run_folder, index)
    selection = selection_of(page, [0, 1, 2])
    assert page.get(f"/api/selections/{selection}/files").json() == {"files": 3, "missing": 0}
    first = page.get(f"/api/selections/{selection}/txt").text.splitlines()[0]
    lines = page.get(f"/api/selections/{selection}/txt").text.splitlines()
    assert "gone" not in page.get(f"/api/selections/{selection}/csv").text.splitlines()[0]
    assert page.get("/api/overview").json()["missing"] == 0
    Path(first).unlink()
    assert page.get(f"/api/selections/{selection}/files").json() == {"files": 3, "missing": 1}
    assert page.get(f"/api/selections/{selection}/txt").text.splitlines() == lines[1:]
    rows = list(csv.DictReader(io.StringIO(page.get(f"/api/selections/{selection}/csv").text)))
    assert [row["gone"] for row in rows] == ["yes", "", ""]
    monkeypatch.setattr(missing, "SECONDS", 0)
    assert page.get("/api/overview").json()["missing"] == 1
    [gone] = page.get("/api/browse?gone=true").json()["pictures"]
    assert (gone["gone"], str(folder / gone["name"])) == (True, first)
    folder.rename(tmp_path / "elsewhere")  # not lost: the folder as a whole is not there
    assert page.get("/api/overview").json()["missing"] == 0
    assert page.get(f"/api/selections/{selection}/txt").text.splitlines() == lines


def test_what_is_saved_is_named_by_its_folder_and_what_it_was_found_by(client: TestClient) -> None:
    selection = selection_of(client, [3, 9])

    def named(kind: str, of: str) -> str:
        headers = client.get(f"/api/selections/{selection}/{kind}", params={"of": of}).headers
        return unquote(headers["content-disposition"].partition("''")[2])

    folder = client.get("/api/workspace").json()["folder"]
    assert named("txt", "") == f"{folder}-selected.txt"
    assert named("csv", "größer/als: 5") == f"{folder}-größer-als-5.csv"
    assert named("zip", "../..") == f"{folder}.zip"


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("/abs/a.png", "abs/a.png"),
        ("a/./b/../c.png", "a/b/c.png"),
        ("C:\\windows\\a.png", "C__windows_a.png"),
        ("a\x00b\n.png", "a_b_.png"),
        ("...", "unnamed"),
        ("dots. /x.png", "dots/x.png"),
    ],
)
def test_no_name_in_an_archive_leads_out_of_the_folder_it_is_unpacked_in(
    name: str, inside: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    content = b"".join(zipped([(name, tmp_path / "file")]))
    assert zipfile.ZipFile(io.BytesIO(content)).namelist() == [inside]


def test_an_archive_says_what_is_missing_and_keeps_files_of_one_name(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    os.utime(tmp_path / "a.png", (0, 0))  # before the first date that a zip file knows
    files = [
        ("x.png", tmp_path / "a.png"),
        ("X.png", tmp_path / "b.png"),
        ("gone.png", tmp_path / "gone.png"),
    ]
    with zipfile.ZipFile(io.BytesIO(b"".join(zipped(files)))) as archive:
        assert archive.namelist() == ["x.png", "X-2.png", "missing.txt"]
        assert archive.getinfo("x.png").date_time[0] == 1980
        assert archive.read("missing.txt").startswith(b"gone.png: cannot be read")


def test_the_oldest_selections_are_forgotten(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selections, "SELECTION_BYTES", 10 * 6)  # ten of 48 bits
    first = selection_of(client, [0])
    for position in range(1, 10):
        selection_of(client, [position])
    assert client.get(f"/api/selections/{first}").status_code == 200
    selection_of(client, [1, 2])
    answer = client.get(f"/api/selections/{first}/txt")
    assert answer.status_code == 404
    assert "Select the images again" in answer.json()["error"]
