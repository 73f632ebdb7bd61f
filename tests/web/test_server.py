"""What each tab asks for, against what the applications return."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import shlex
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from starlette.testclient import TestClient

from autoencode import (
    ModelFileError,
    Run,
    generate,
    heat_maps,
    load_model,
    open_pack,
    pack_folder,
    train,
)
from autoencode.atomic import exclusive
from autoencode.data.corruptions import CORRUPTIONS, parse_corruptions
from autoencode.data.pack import StageProgress
from autoencode.morphing import between, in_square
from autoencode.outliers.measurements import coloured
from autoencode.pixels import to_float, to_pixels
from autoencode.projection import GROUP_IMAGES, code_map, effect_sizes
from autoencode.training.run import METRICS_NAME, RUN_NAME, append_metrics, read_run
from autoencode.web import map as maps
from autoencode.web import morph, outliers
from autoencode.web.pictures import Collection
from autoencode.web.security import JSON_BYTES
from autoencode.web.selections import chosen_positions
from autoencode.web.server import STATIC
from autoencode.web.tabs import TABS, Tab
from autoencode.web.workspace import Workspace

from .conftest import Served, client_of, finished, wait_for

OpenPage = Callable[..., TestClient]


def pixels(response: object) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB"))  # type: ignore[attr-defined]


def test_the_page_says_what_it_works_on(client: TestClient, workspace: Workspace) -> None:
    found = client.get("/api/workspace").json()
    assert found["kind"] == "variational autoencoder"
    assert (found["height"], found["width"], found["code_size"]) == (32, 32, 8)
    assert found["images"] == found["index"]["images"] == 48
    assert set(found["priors"]) == {"normal", "mixture"}
    offered = [text for text, _ in found["corruptions"]]
    assert {corruption.name for corruption in parse_corruptions(offered)} == set(CORRUPTIONS)


def test_pictures_are_those_of_the_folder(client: TestClient, workspace: Workspace, photos: Path) -> None:
    for picture in client.get("/api/pictures?count=5").json():
        alone = client.get(f"/api/pictures/{picture['id']}").json()
        assert alone == {**picture, "decision": None, "tags": []}
        expected = to_pixels(workspace.model.read(photos / picture["name"]))[0]
        np.testing.assert_array_equal(pixels(client.get(f"/images/{picture['id']}")), expected)


def test_a_picture_has_its_reconstruction_and_its_difference(
    client: TestClient, workspace: Workspace
) -> None:
    images = to_float(workspace.pixels("i3")[None])
    restored = to_pixels(workspace.model.reconstruct(images))[0].astype(int)
    shown = pixels(client.get("/images/i3/reconstruction")).astype(int)
    assert np.abs(shown - restored).max() <= 1
    heat = coloured(heat_maps(workspace.model, images))[0]
    np.testing.assert_array_equal(pixels(client.get("/images/i3/difference")), heat)


def test_a_sheet_holds_its_tiles_in_order(client: TestClient, workspace: Workspace) -> None:
    places = list(range(20))
    sheet = pixels(client.get(f"/sheets/i?positions={','.join(map(str, places))}&side=32"))
    assert sheet.shape == (64, 16 * 32, 3)
    np.testing.assert_array_equal(sheet[32:, 32 : 2 * 32], workspace.pixels("i17"))


def test_search_finds_what_the_index_finds(client: TestClient, workspace: Workspace) -> None:
    assert workspace.index is not None
    entry = workspace.index.entries[5]
    expected = workspace.index.search(workspace.index.folder / entry.path, 6).results[0].found
    found = client.get("/api/search?picture=i5&k=6").json()
    assert found["query"]["name"] == entry.path
    assert [near["name"] for near in found["neighbours"]] == [
        near.path.relative_to(workspace.index.folder).as_posix() for near in expected
    ]
    np.testing.assert_allclose(
        [near["score"] for near in found["neighbours"]], [near.score for near in expected], atol=1e-4
    )
    table = list(csv.DictReader(io.StringIO(client.get("/api/search.csv?picture=i5&k=6").text)))
    assert [row["path"] for row in table] == [str(near.path) for near in expected]


def test_search_compares_in_the_way_asked_for(client: TestClient, workspace: Workspace) -> None:
    assert workspace.index is not None
    codes = workspace.index.codes[[entry.row for entry in workspace.index.entries]]
    found = client.get("/api/search?picture=i0&k=3&distance=l2").json()
    distances = np.sort(np.linalg.norm(codes[1:] - codes[0], axis=1))[:3]
    np.testing.assert_allclose([near["score"] for near in found["neighbours"]], distances, rtol=1e-4)
    assert not found["similarity"]


def test_an_upload_finds_the_image_it_is_a_copy_of(client: TestClient, photos: Path) -> None:
    path = sorted(photos.rglob("*.png"))[7]
    picture = client.post("/api/uploads", content=path.read_bytes()).json()
    [first, *_] = client.get(f"/api/search?picture={picture['id']}").json()["neighbours"]
    assert photos / first["name"] == path
    assert first["score"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("interpolation", ["linear", "spherical"])
def test_a_frame_is_the_mixture_at_its_place(
    client: TestClient, workspace: Workspace, interpolation: str
) -> None:
    model = workspace.model
    three, four = workspace.codes(["i1", "i2", "i3"]), workspace.codes(["i1", "i2", "i3", "i4"])
    for address, code in (
        ("pictures=i1,i2,i3&x=0.75", between(three, 1.5, interpolation)),  # type: ignore[arg-type]
        ("pictures=i1,i2,i3,i4&x=0.25&y=1", in_square(four, 0.25, 1, interpolation)),  # type: ignore[arg-type]
    ):
        shown = pixels(client.get(f"/api/morph/frame?{address}&interpolation={interpolation}"))
        np.testing.assert_array_equal(shown, to_pixels(model.decode(code[None]))[0])


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_goes_through_all_pictures(client: TestClient, workspace: Workspace, kind: str) -> None:
    address = f"/api/morph/animation?pictures=i1,i2,i3&kind={kind}"
    while (answer := client.get(address)).status_code == 202:
        assert answer.json()["state"] in ("waiting", "running", "done")
    with Image.open(io.BytesIO(answer.content)) as made:
        assert made.format == kind.upper()
    seen: list[tuple[str, int, int]] = []
    codes = workspace.codes(["i1", "i2", "i3"])
    frames = morph._loop(workspace, codes, "linear", lambda *at: seen.append(at))
    assert seen[:2] == [("decoding frames", done, len(frames)) for done in (0, morph.CHUNK_FRAMES)]
    ends = to_pixels(workspace.model.decode(codes))
    leg = morph.LEG_FRAMES - 1
    np.testing.assert_array_equal(frames[[0, leg, 2 * leg]], ends)
    assert len(frames) == 3 * leg  # back at the first picture, which begins the next round


def test_an_animation_is_given_up_and_the_oldest_are_forgotten(workspace: Workspace) -> None:
    animations = workspace.animations
    begun, go_on = threading.Event(), threading.Event()

    def endless(report: StageProgress) -> bytes:
        begun.set()
        while True:
            report("writing frames", 1, 2)
            go_on.wait(0.01)

    job = animations.job("one", endless)
    assert job.result() is None
    begun.wait(5)
    animations.forget("one")
    others = [animations.job(name, lambda _: b"made") for name in range(5)]
    for other in others[-4:]:
        wait_for(other.result)
    assert animations.job(4, endless) is others[4]
    assert animations.job(0, endless) is not others[0]


@pytest.mark.parametrize("pictures", ["i1", "i1,i2,i3,i4,i5", ""])
def test_a_morph_is_of_two_to_four(client: TestClient, pictures: str) -> None:
    answer = client.get(f"/api/morph/frame?pictures={pictures}")
    assert (answer.status_code, answer.json()["error"]) == (422, "A morph needs two to four pictures.")


def test_samples_are_those_of_generate_and_can_be_searched_for_varied_and_morphed(
    client: TestClient, workspace: Workspace
) -> None:
    made = client.post(
        "/api/generate", json={"count": 3, "seed": 4, "temperature": 0.5, "prior": "normal"}
    ).json()
    expected = generate(workspace.model, 3, prior="normal", temperature=0.5, seed=4)
    first, second, _ = made["pictures"]
    np.testing.assert_array_equal(pixels(client.get(f"/images/{second['id']}")), expected.pixels[1])
    assert len(client.get(f"/api/search?picture={first['id']}&k=4").json()["neighbours"]) == 4
    assert client.get(f"/api/morph/frame?pictures={first['id']},i1").status_code == 200
    same = client.post("/api/vary", json={"picture": first["id"], "count": 2, "amount": 0}).json()["pictures"]
    difference = pixels(client.get(f"/images/{same[0]['id']}")).astype(int) - expected.pixels[0]
    assert np.abs(difference).max() <= 1


def test_what_is_out_of_range_is_rejected_in_words(client: TestClient) -> None:
    for body in ({"count": 100_000}, {"temperature": -1}, {"prior": "none"}, {"seed": "x"}):
        answer = client.post("/api/generate", json=body)
        assert answer.status_code == 422
        assert "cannot be used" in answer.json()["error"]


def test_restoring_says_how_close_the_pictures_it_shows_are(client: TestClient, workspace: Workspace) -> None:
    for corrupt in ("clipped-noise:0.2", "blur:2,clipped-noise:0.2"):
        asked = f"picture=i2&corrupt={corrupt}"
        quality = client.get(f"/api/restore?{asked}").json()
        shown = [
            pixels(client.get(f"/api/restore/{side}?{asked}")) for side in ("corrupted", "reconstructed")
        ]
        clean = workspace.pixels("i2")
        before = peak_signal_noise_ratio(clean, shown[0])
        assert quality["corrupted_psnr_db"] == pytest.approx(before, abs=0.05)
        assert quality["psnr_db"] == pytest.approx(peak_signal_noise_ratio(clean, shown[1]), abs=0.05)
        similarity = structural_similarity(
            clean, shown[1], channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert quality["ssim"] == pytest.approx(similarity, abs=0.01)
    against = client.get("/api/restore?picture=i2&clean=i2").json()
    assert against["corrupted_psnr_db"] is None  # equal: no finite number
    for wrong in ("/api/restore?picture=i2&corrupt=melt:1", "/api/restore/other?picture=i2"):
        assert client.get(wrong).status_code == 422


def test_all_corruptions_of_a_chain_are_applied_in_their_order(client: TestClient) -> None:
    chain, first = (
        pixels(client.get(f"/api/restore/corrupted?picture=i2&corrupt={one}"))
        for one in ("blur:2,mask:0.25", "blur:2")
    )
    hidden = (chain == 128).all(2)
    assert 0.15 < hidden.mean() < 0.35
    np.testing.assert_array_equal(chain[~hidden], first[~hidden])


def test_outliers_come_most_anomalous_first_with_the_number_a_rate_flags(
    client: TestClient, workspace: Workspace
) -> None:
    found = finished(client, "/api/outliers?limit=200")
    queue = found["queue"]
    assert len(queue) == 48
    scores = [row["score"] for row in queue]
    assert scores == sorted(scores, reverse=True)
    for rate in (0.2, 0.5):
        answer = client.get(f"/api/outliers?rate={rate}&limit=200").json()
        flagged = sum(row["p_value"] <= answer["rate"] for row in answer["queue"])
        assert answer["flagged"] == flagged
    part = client.get("/api/outliers?offset=10&limit=5").json()["queue"]
    assert [row["id"] for row in part] == [row["id"] for row in queue[10:15]]


def test_decisions_survive_a_restart_can_be_undone_and_taken_along(
    client: TestClient,
    open_page: OpenPage,
    run_folder: Path,
    index_folder: Path,
    photos: Path,
) -> None:
    queue = finished(client, "/api/outliers")["queue"]
    first, second, third = (row["id"] for row in queue[:3])
    for name, decision in ((first, "drop"), (second, "keep"), (third, "drop")):
        client.post("/api/decisions", json={"picture": name, "decision": decision})
    assert client.post("/api/decisions/undo").json()["undone"] == queue[2]["name"]
    again = open_page(run_folder, index_folder)
    rows = finished(again, "/api/outliers")["queue"]
    assert [row["decision"] for row in rows[:4]] == ["drop", "keep", None, None]
    assert again.get("/api/decisions/drop.txt").text == f"{photos / queue[0]['name']}\n"
    table = list(csv.DictReader(io.StringIO(again.get("/api/outliers.csv").text)))
    assert [row["decision"] for row in table[:3]] == ["drop", "keep", ""]
    assert table[0]["path"] == str(photos / queue[0]["name"])


def test_the_queue_says_what_is_the_first_that_is_undecided(client: TestClient) -> None:
    queue = finished(client, "/api/outliers")["queue"]
    assert client.get("/api/outliers").json()["undecided"] == 0
    for row in (queue[0], queue[1], queue[3]):
        client.post("/api/decisions", json={"picture": row["id"], "decision": "keep"})
    assert client.get("/api/outliers?offset=7").json()["undecided"] == 2
    for row in queue:
        client.post("/api/decisions", json={"picture": row["id"], "decision": "drop"})
    assert client.get("/api/outliers").json()["undecided"] is None


def test_only_images_under_review_are_decided_about(client: TestClient) -> None:
    made = client.post("/api/generate", json={"count": 1}).json()["pictures"][0]
    answer = client.post("/api/decisions", json={"picture": made["id"], "decision": "drop"})
    assert answer.status_code == 404


def test_the_map_has_every_image_where_its_code_lies(client: TestClient, workspace: Workspace) -> None:
    about = finished(client, "/api/map")
    content = client.get("/api/map/points").content
    count = about["images"]
    assert len(content) == 17 * count
    assert workspace.review is not None
    codes = workspace.codes([f"i{place}" for place in range(count)]).numpy()
    x = np.frombuffer(content, "<f4", count)
    np.testing.assert_allclose(x, code_map(workspace.model, codes).plane[:, 0], rtol=1e-4, atol=1e-4)
    labels = np.frombuffer(content, "<i2", count, offset=12 * count)
    splits = np.frombuffer(content, "i1", count, offset=14 * count)
    for place in range(count):
        entry = workspace.review.entry(place)
        assert about["labels"][labels[place]] == entry.label
        assert about["splits"][splits[place]] == entry.split


def test_the_map_names_groups_by_a_picture_of_each_and_the_label_of_most(
    client: TestClient, workspace: Workspace
) -> None:
    groups: list[dict[str, Any]] = finished(client, "/api/map")["groups"]  # type: ignore[assignment]
    content = client.get("/api/map/points").content
    count = len(content) // 17
    members = np.frombuffer(content, "i1", count, offset=16 * count)
    assert len(groups) == count // GROUP_IMAGES
    assert workspace.review is not None
    labels = np.array([entry.label for entry in workspace.review.pack.entries])
    for number, group in enumerate(groups):
        inside = labels[members == number]
        assert len(inside) == group["images"]
        assert members[group["position"]] == number
        assert group["picture"]["id"] == f"i{group['position']}"
        most = max(set(inside), key=inside.tolist().count)
        assert group["label"] == (most if 2 * (inside == most).sum() > len(inside) else None)


def test_the_map_knows_which_images_have_copies(client: TestClient) -> None:
    finished(client, "/api/map")

    def copies() -> list[int]:
        content = client.get("/api/map/points").content
        return np.frombuffer(content, "i1", len(content) // 17, offset=15 * (len(content) // 17)).tolist()  # type: ignore[no-any-return]

    assert set(copies()) == {-1}
    assert "copies" not in client.get("/api/map").json()["known"]
    found = finished(client, "/api/duplicates?limit=200")
    assert "copies" in client.get("/api/map").json()["known"]
    of_groups = {file["id"] for group in found["groups"] for file in group}  # type: ignore[attr-defined]
    assert {f"i{place}" for place, has in enumerate(copies()) if has} == of_groups


def test_the_map_waits_for_no_scoring(
    client: TestClient, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    ranking = outliers.ranking_job(workspace, outliers.MODEL)
    monkeypatch.setattr(ranking, "_work", lambda report: go_on.wait(30))
    assert client.get("/api/outliers").status_code == 202
    wait_for(lambda: ranking.state == "running")
    finished(client, "/api/map")
    assert ranking.state == "running"
    go_on.set()


def test_the_map_by_neighbours_has_a_place_for_every_image(served: Served) -> None:
    pytest.importorskip("umap", reason="needs umap-learn, of the extra map")
    client = client_of(served.workspace)  # whose map the browser shows, too: it takes a while
    about = finished(client, "/api/map?layout=umap")
    assert about["explained"] is None
    places = np.frombuffer(client.get("/api/map/points?layout=umap").content, "<f4", 2 * about["images"])
    assert len(set(places)) > about["images"]
    assert client.get("/api/map?layout=tsne").status_code == 422


def test_laying_out_by_neighbours_holds_up_no_other_work_and_is_given_up_at_once(
    client: TestClient, workspace: Workspace
) -> None:
    pytest.importorskip("umap", reason="needs umap-learn, of the extra map")
    job = maps.map_job(workspace, "umap")
    while client.get("/api/map?layout=umap").json()["stage"] != "finding neighbours":
        time.sleep(0.01)
    finished(client, "/api/outliers")
    assert client.get("/api/map?layout=umap").json()["state"] == "running"
    [child] = multiprocessing.active_children()
    begun = time.monotonic()
    assert client.post("/api/map/cancel?layout=umap").status_code == 200
    child.join(5)
    assert time.monotonic() - begun < 2
    assert job.state == "waiting"


def test_a_map_that_needs_what_is_not_installed_says_how(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    while (answer := client.get("/api/map?layout=umap")).status_code == 202:
        time.sleep(0.01)
    assert answer.status_code == 409
    assert "[map]'" in answer.json()["error"]


def test_chosen_images_become_a_list_of_files(client: TestClient, workspace: Workspace, photos: Path) -> None:
    assert workspace.review is not None
    bits = bytes([0b1010, 0, 0b10000000, 0, 0, 0])  # 1, 3 and 23 of 48
    made = client.post("/api/selections", content=bits).json()
    assert made["images"] == 3
    assert client.get(f"/api/selections/{made['selection']}").content == bits
    listed = client.get(f"/api/selections/{made['selection']}/txt").text
    chosen = [Path(workspace.review.entry(place).path) for place in (1, 3, 23)]
    in_order = sorted(chosen)  # that of the grid, by name
    assert listed == "".join(f"{photos / path}\n" for path in in_order)
    assert (
        "A selection of 48 images takes one bit per image"
        in client.post("/api/selections", content=bits[1:]).json()["error"]
    )
    assert client.get("/api/selections/0000/txt").status_code == 404
    names = client.post("/api/map/chosen", json={"positions": [3, 1]}).json()
    assert [picture["id"] for picture in names] == ["i3", "i1"]
    assert client.post("/api/map/chosen", json={"positions": [48]}).status_code == 404


def test_any_number_of_points_can_be_chosen(
    client: TestClient, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three quarters of 400,000 images, as places: more than a request may carry."""
    count = 400_000
    assert workspace.review is not None
    chosen = np.random.default_rng(0).random(count) < 0.75
    assert len(json.dumps(np.flatnonzero(chosen).tolist())) > JSON_BYTES
    monkeypatch.setattr(Collection, "__len__", lambda _: count)
    content = np.packbits(chosen, bitorder="little").tobytes()
    made = client.post("/api/selections", content=content).json()
    assert made["images"] == chosen.sum()
    np.testing.assert_array_equal(chosen_positions(workspace, made["selection"]), np.flatnonzero(chosen))


def test_the_health_is_measured_on_held_out_images(client: TestClient) -> None:
    found = finished(client, "/api/health")
    assert found["split"] == "test"
    names = [row["name"] for row in found["findings"]]
    assert names == ["PSNR dB", "SSIM", "Sharpness ratio", "Active dimensions", "Prior gap"]


def test_a_sample_is_compared_with_the_images_by_code_where_there_is_no_index(
    open_page: Callable[..., TestClient], run_folder: Path
) -> None:
    page = open_page(run_folder)
    assert "search" in page.get("/api/workspace").json()["needs"]
    sample = page.post("/api/generate", json={"count": 1, "seed": 3}).json()["pictures"][0]["id"]
    model, pack = load_model(run_folder), open_pack(read_run(run_folder).pack)
    codes = model.encode(to_float(pack.pixels(pack.rows()))).numpy()
    assert isinstance(finished(page, f"/api/generate/nearest?picture={sample}&k=1")["neighbours"], list)
    # A variation by nothing has the code of its picture: that is the nearest.
    same = page.post("/api/vary", json={"picture": "t5", "count": 1, "amount": 0}).json()["pictures"][0]["id"]
    nearest = finished(page, f"/api/generate/nearest?picture={same}&k=4")["neighbours"]
    effect = effect_sizes(model, codes)
    expected = np.argsort((((codes - codes[5]) * effect) ** 2).sum(1), kind="stable")[:4]
    assert [one["id"] for one in nearest] == [f"t{at}" for at in expected]  # type: ignore[attr-defined]
    assert nearest[0]["id"] == "t5"  # type: ignore[index]


def test_a_model_alone_morphs_generates_and_restores_and_says_what_the_rest_needs(
    open_page: OpenPage, trained_vae: Run, tmp_path: Path, photos: Path
) -> None:
    alone = Path(shutil.copy(trained_vae.model_path, tmp_path / "alone.safetensors"))
    client = open_page(alone)
    content = [path.read_bytes() for path in sorted(photos.rglob("*.png"))[:2]]
    one, other = (client.post("/api/uploads", content=c).json()["id"] for c in content)
    assert client.get(f"/api/morph/frame?pictures={one},{other}&x=0.5").status_code == 200
    assert client.post("/api/generate", json={"count": 2}).status_code == 200
    assert client.get(f"/api/restore?picture={one}").status_code == 200
    assert client.get("/api/overview").json()["settings"]
    assert client.get("/api/pictures").json() == []
    needs = client.get("/api/workspace").json()["needs"]
    asked = {"search": f"search?picture={one}", "outliers": "outliers", "map": "map", "health": "health"}
    for name, address in asked.items():
        answer = client.get(f"/api/{address}")
        assert answer.status_code == 409
        assert answer.json() == needs[name]
        assert all(line.startswith("autoencode ") for line in answer.json()["commands"])
    assert "generate" not in needs


def test_other_images_are_reviewed_by_what_the_training_showed(
    open_page: OpenPage, trained: Run, tmp_path: Path, photos: Path
) -> None:
    run = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    others = tmp_path / "others"
    others.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(others / f"noise-{number}.png")
    shutil.copy(sorted(photos.rglob("*.png"))[0], others / "ordinary.png")
    client = open_page(run, images=others)
    queue = finished(client, "/api/outliers")["queue"]
    assert queue[-1]["name"] == "ordinary.png"
    assert finished(client, "/api/map")["images"] == 4


def test_reviewing_the_training_folder_as_it_is_now_leaves_the_pack_of_the_training_alone(
    open_page: OpenPage, tmp_path: Path, photos: Path
) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    tiny = {"size": 32, "widths": (4, 8), "code_size": 8, "epochs": 1}
    run = train(folder, tmp_path / "runs" / "run", **tiny)
    before = open_pack(run.pack_path).fingerprint
    Image.new("RGB", (40, 40), "red").save(folder / "new.png")
    client = open_page(run.folder, images=folder)
    assert finished(client, "/api/map")["images"] == 49
    assert client.get("/api/health").status_code != 409
    assert open_pack(run.pack_path).fingerprint == before


def test_work_that_fails_says_why(client: TestClient, workspace: Workspace) -> None:
    assert workspace.training is not None
    workspace.training = pack_folder(
        workspace.training.folder, workspace.folder / "other.pack", size=48
    )  # another size than the model's
    for _ in range(200):
        answer = client.get("/api/outliers")
        if answer.status_code != 202:
            break
    assert answer.status_code == 409
    assert "48" in answer.json()["error"]
    shutil.rmtree(workspace.folder / "other.pack")


def test_a_model_without_a_prior_says_what_gives_it_one(
    trained: Run, open_page: OpenPage, photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    client = open_page(folder)
    with exclusive(folder, "busy", RuntimeError):
        answer = client.post("/api/generate", json={})
        assert (answer.status_code, answer.json()["commands"]) == (409, [f"autoencode app {folder}"])
        assert "Training is still running" in answer.json()["error"]
    after = client.post("/api/generate", json={}).json()
    assert after["commands"] == [f"autoencode train {photos} --out {folder} --resume"]


def test_training_is_followed_line_by_line(run_folder: Path, open_page: OpenPage, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (folder / METRICS_NAME).unlink()
    client, known, seen = open_page(folder), "", []
    with exclusive(folder, "busy", RuntimeError):
        for epoch in (1, 2):
            state = client.get(f"/api/run/state?known={known}").json()
            known = state["tag"]
            seen.append(state)
            assert client.get(f"/api/run/state?known={known}").status_code == 204
            append_metrics(folder, {"epoch": epoch, "step": epoch, "seconds": 10.0, "val_loss": 1 / epoch})
        seen.append(client.get(f"/api/run/state?known={known}").json())
    assert [[record["epoch"] for record in state["records"]] for state in seen] == [[], [1], [1, 2]]
    assert [state["training"] for state in seen] == [True] * 3
    assert seen[0]["seconds_left"] is None
    assert 5 <= seen[1]["seconds_left"] <= 10
    after = client.get(f"/api/run/state?known={known}").json()
    assert (after["training"], after["seconds_left"]) == (False, None)
    train = read_run(folder).train
    assert (after["epochs"], after["all_epochs"]) == (train.total_epochs, train.all_epochs)


def test_the_page_goes_on_while_the_model_works(served: Served) -> None:
    workspace, begun, end = served.workspace, threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        end.wait(60)

    workspace._modelling.submit(slow)
    assert begun.wait(60)
    try:
        request = urllib.request.Request(
            f"http://127.0.0.1:{served.port}/images/i0",
            headers={"Authorization": f"Bearer {served.trust.token}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200
    finally:
        end.set()


def test_every_file_of_the_page_is_named_by_another_and_asks_for_nothing_elsewhere() -> None:
    names = {path.name for path in STATIC.iterdir()}
    texts = {name: (STATIC / name).read_text() for name in names}
    scripts = {f"{tab.name}.js" for tab in TABS}
    assert scripts < names
    for name in names - {"index.html"} - scripts:
        assert any(
            f'"/static/{name}"' in text or f'"./{name}"' in text
            for other, text in texts.items()
            if other != name
        ), name
    for name, text in texts.items():
        assert "https://" not in text, name
        assert text.replace("http://www.w3.org/2000/svg", "").count("http://") == 0, name
    page = texts["index.html"]
    assert "<script>" not in page
    assert "<style" not in page
    assert " style=" not in page


def test_a_folder_whose_name_is_not_utf_8_is_shown_like_any_other(
    run_folder: Path, open_page: OpenPage, photos: Path, tmp_path: Path
) -> None:
    try:
        shutil.copytree(photos, tmp_path / "photos" / os.fsdecode(b"f\xe9te"))
    except OSError:
        pytest.skip("this file system takes no such name")
    client = open_page(run_folder, images=tmp_path / "photos")
    labels = {picture["label"] for picture in client.get("/api/pictures?count=5").json()}
    assert labels == {"f\N{REPLACEMENT CHARACTER}te"}
    assert {picture["label"] for picture in client.get("/api/overview").json()["mosaic"]} == labels
    assert finished(client, "/api/map")["labels"] == list(labels)
    [row] = finished(client, "/api/outliers?limit=1")["queue"]
    client.post("/api/decisions", json={"picture": row["id"], "decision": "drop"})
    assert client.post("/api/decisions/undo").json()["undone"] == row["name"]


def test_a_folder_without_a_model_says_what_to_do(
    trained_vae: Run, open_page: OpenPage, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match="is not a run folder"):
        open_page(tmp_path)
    shutil.copy(trained_vae.folder / RUN_NAME, tmp_path)
    with pytest.raises(ModelFileError, match="stopped before the end of its first epoch"):
        open_page(tmp_path)
    with (
        exclusive(tmp_path, "busy", OSError),
        pytest.raises(ModelFileError, match="Wait, then open it again"),
    ):
        open_page(tmp_path)


def test_a_command_holds_paths_as_a_shell_reads_them(
    run_folder: Path, open_page: OpenPage, tmp_path: Path
) -> None:
    folder = tmp_path / "my run; $(date)"
    shutil.copytree(run_folder, folder)
    commands = open_page(folder).get("/api/search?picture=none").json()["commands"]
    index, app = map(shlex.split, commands)
    assert index[:2] == ["autoencode", "index"]
    assert app == ["autoencode", "app", str(folder), "--index", "index"]


@pytest.mark.parametrize("tab", TABS)
def test_a_tab_is_a_line_a_module_and_a_script(tab: Tab, client: TestClient) -> None:
    """Nothing else lists the tabs: the page takes them from the server."""
    assert tab.module.router.routes
    assert "export function mount(" in (STATIC / f"{tab.name}.js").read_text()
    assert tab._asdict() in client.get("/api/workspace").json()["tabs"]
    listing = [path for path in STATIC.iterdir() if f"/{tab.name}.js" in path.read_text()]
    assert not listing, f"{listing} names a tab"
