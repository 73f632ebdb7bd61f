"""Pictures restored in the page at their full size, as the library restores them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from starlette.testclient import TestClient
from tests.data.pictures import picture
from tests.restoration.test_restoration import restorer

from autoencode import Run, load_restorer, restore_picture
from autoencode.models.model_file import save_model
from autoencode.web.originals import UPLOAD_SIDE

from .conftest import finished


@pytest.fixture
def client(tmp_path: Path, open_page: Callable[..., TestClient]) -> TestClient:
    save_model(tmp_path / "restorer.safetensors", restorer(), {})
    return open_page(tmp_path / "restorer.safetensors")


def upload(client: TestClient, content: bytes, name: str = "wide.png") -> str:
    answer = client.post("/api/uploads", content=content, headers={"x-name": name})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_an_upload_is_restored_at_its_full_size_and_as_the_library_does(client: TestClient) -> None:
    file = io.BytesIO()
    Image.fromarray(picture(24, UPLOAD_SIDE + 500)).save(file, "PNG")
    asked = f"picture={upload(client, file.getvalue())}&amount=0.5"
    found = finished(client, f"/api/restore/whole?{asked}")
    assert (found["width"], found["height"]) == (UPLOAD_SIDE + 500, 24)
    answer = client.get(f"/api/restore/whole/file?{asked}")
    assert "restored-wide.png" in answer.headers["content-disposition"]
    restored = np.asarray(Image.open(io.BytesIO(answer.content)))
    np.testing.assert_array_equal(
        restored, restore_picture(restorer(), file.getvalue(), amount=0.5).after.levels
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_stage_has_the_proportions_of_the_upright_picture(orientation: int, client: TestClient) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(20, 30)).save(file, "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file))
    asked = f"picture={upload(client, file.getvalue(), 'turned.jpg')}"
    found = finished(client, f"/api/restore/whole?{asked}")
    assert (found["width"], found["height"]) == upright.size
    for side in ("before", "after"):
        shown = client.get(f"/api/restore/whole/{side}?{asked}").content
        assert Image.open(io.BytesIO(shown)).size == upright.size


def test_what_is_shown_of_an_upload_is_smaller_and_never_the_file_given(client: TestClient) -> None:
    file = io.BytesIO()
    Image.fromarray(picture(24, UPLOAD_SIDE + 500)).save(file, "PNG")
    given = file.getvalue() + b"what else the file holds"
    shown = client.get(f"/images/{upload(client, given)}/original?side=5120").content
    assert b"what else" not in shown
    assert Image.open(io.BytesIO(shown)).width == UPLOAD_SIDE


def test_an_upload_that_lost_its_full_size_says_so(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    Image.fromarray(picture(24, 30)).save(file, "PNG")
    name = upload(client, file.getvalue())
    shelf = client.app.state.workspace.uploads  # type: ignore[attr-defined]
    monkeypatch.setattr(shelf, "_file_room", 1)  # beside what is held now
    upload(client, file.getvalue())
    deadline = time.monotonic() + 60
    answer = client.get(f"/api/restore/whole?picture={name}")
    while answer.status_code == 202 and time.monotonic() < deadline:
        time.sleep(0.02)
        answer = client.get(f"/api/restore/whole?picture={name}")
    assert answer.status_code == 409
    assert "Add it again" in answer.json()["error"]


def test_a_page_with_another_model_or_none_restores_by_the_bundled_restorer(
    open_page: Callable[..., TestClient], trained: Run
) -> None:
    file = io.BytesIO()
    Image.fromarray(picture(40, 60)).save(file, "PNG")
    expected = restore_picture(load_restorer(), file.getvalue()).after.levels
    for client in (open_page(trained.folder), open_page()):
        asked = f"picture={upload(client, file.getvalue())}"
        finished(client, f"/api/restore/whole?{asked}")
        answer = client.get(f"/api/restore/whole/file?{asked}")
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), expected)


def test_a_model_trained_to_enlarge_enlarges_in_the_page_and_another_does_not(
    tmp_path: Path, open_page: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoencode.web.restore._MOST_PIXELS", 90 * 72)
    file = io.BytesIO()
    Image.fromarray(picture(24, 30)).save(file, "PNG")
    trained = {"train": {"corrupt": ["gaussian:0.1/downscale:2-3", "blur:1"]}}
    save_model(tmp_path / "enlarges.safetensors", restorer(), trained)
    client = open_page(tmp_path / "enlarges.safetensors")
    assert client.get("/api/workspace").json()["scales"] == [2, 3]
    asked = f"picture={upload(client, file.getvalue())}&scale=3"
    found = finished(client, f"/api/restore/whole?{asked}")
    assert (found["width"], found["height"]) == (90, 72)
    shown = client.get(f"/api/restore/whole/file?{asked}").content
    assert Image.open(io.BytesIO(shown)).size == (90, 72)
    save_model(tmp_path / "same.safetensors", restorer(), {})
    other = open_page(tmp_path / "same.safetensors")
    assert other.get("/api/workspace").json()["scales"] == []
