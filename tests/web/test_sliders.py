"""Sliders against the codes that they move."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from autoencode.pixels import to_pixels
from autoencode.web.sliders import REACH, STEPS
from autoencode.web.workspace import Workspace

from .conftest import finished


def shown(client: TestClient, address: str) -> np.ndarray:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))


def decoded(workspace: Workspace, code: np.ndarray) -> np.ndarray:
    return np.asarray(to_pixels(workspace.model.decode(torch.from_numpy(code)[None].float()))[0])


def test_a_slider_of_a_label_leads_from_the_others_to_it(client: TestClient, workspace: Workspace) -> None:
    names = finished(client, "/api/sliders")["names"]
    assert names[-3:] == ["more coast", "more forest", "more night"]  # type: ignore[index]
    assert workspace.review is not None
    codes = workspace.codes([f"i{at}" for at in range(48)]).numpy()
    is_night = np.array([workspace.review.entry(at).label == "night" for at in range(48)])
    step = codes[is_night].mean(0) - codes[~is_night].mean(0)
    np.testing.assert_array_equal(
        shown(client, "/api/sliders/frame?picture=i5"), decoded(workspace, codes[5])
    )
    at = ",".join(["0"] * (len(names) - 1) + ["0.5"])  # type: ignore[arg-type]
    moved = shown(client, f"/api/sliders/frame?picture=i5&at={at}").astype(int)
    assert np.abs(moved - decoded(workspace, codes[5] + 0.5 * step)).max() <= 1


def test_the_leading_directions_change_the_image_most(client: TestClient, workspace: Workspace) -> None:
    finished(client, "/api/sliders")
    still = shown(client, "/api/sliders/frame?picture=i5").astype(int)
    changes = [
        np.square(shown(client, f"/api/sliders/frame?picture=i5&at={'0,' * k}1").astype(int) - still).mean()
        for k in (0, 7)
    ]
    assert changes[0] > changes[1]


def test_a_selection_is_a_direction_and_a_strip_has_its_steps(
    client: TestClient, workspace: Workspace
) -> None:
    names = finished(client, "/api/sliders")["names"]
    bits = np.packbits(np.arange(48) < 5, bitorder="little").tobytes()
    selection = client.post("/api/selections", content=bits).json()["selection"]
    along = len(names)  # type: ignore[arg-type]
    strip = shown(client, f"/api/sliders/strip?picture=i5&along={along}&selection={selection}")
    assert strip.shape == (32, STEPS * 32, 3)
    every = client.post("/api/selections", content=b"\xff" * 6).json()["selection"]
    answer = client.get(f"/api/sliders/frame?picture=i5&at=1&selection={every}")
    assert (answer.status_code, "not all of them" in answer.text) == (422, True)


def test_a_grid_has_one_direction_to_the_right_and_one_downwards(client: TestClient) -> None:
    finished(client, "/api/sliders")
    square = shown(client, "/api/sliders/strip?picture=i5&along=2&across=0&at=0.5,1")
    assert square.shape == (STEPS * 32, STEPS * 32, 3)
    for row, column in ((0, 0), (1, 5), (6, 2)):
        down, right = np.linspace(-REACH, REACH, STEPS)[[row, column]]
        frame = shown(client, f"/api/sliders/frame?picture=i5&at={down},1,{right}").astype(int)
        tile = square[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        assert np.abs(tile - frame).max() <= 1
    assert client.get("/api/sliders/strip?picture=i5&along=2&across=2").status_code == 422


@pytest.mark.parametrize("at", ["x", "1e9", "nan", "inf", ",".join(["0"] * 40), f"{2 * REACH + 1}"])
def test_positions_beyond_a_slider_are_rejected_in_words(client: TestClient, at: str) -> None:
    finished(client, "/api/sliders")
    answer = client.get(f"/api/sliders/frame?picture=i5&at={at}")
    assert answer.status_code == 422
    assert client.get("/api/sliders/strip?picture=i5&along=99").status_code == 422
