"""Pictures added to the page: accepted within limits, held in memory, shown encoded anew."""

from __future__ import annotations

import asyncio
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

from autoencode.pixels import to_float, to_pixels
from autoencode.web.pictures import NAMED_BYTES, Held, KeptCodes, Kind, Shelf
from autoencode.web.security import Allowance
from autoencode.web.workspace import GoneError, Workspace

from .conftest import in_a_loop


def png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def flat_png(width: int, height: int) -> bytes:
    """A valid grey PNG of zeros, made without its pixels in memory: 1000 times smaller than they are."""
    packer, row = zlib.compressobj(9), bytes(width + 1)
    content = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def held(value: int = 0, kind: Kind = "upload") -> Held:
    return Held(np.full((4, 4, 3), value, np.uint8), torch.tensor([value, -value]).float(), "one", kind)


def test_an_image_comes_back_as_the_model_sees_it(
    client: TestClient, workspace: Workspace, photos: Path
) -> None:
    path = sorted(photos.rglob("*.png"))[0]
    answer = client.post("/api/uploads", content=path.read_bytes(), headers={"X-Name": "a%20b.png"})
    assert answer.status_code == 200
    picture = answer.json()
    assert (picture["name"], picture["kind"]) == ("a b.png", "upload")
    shown = np.asarray(Image.open(io.BytesIO(client.get(f"/images/{picture['id']}").content)))
    expected = (workspace.model.read(path)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(shown, expected)
    torch.testing.assert_close(
        workspace.code(picture["id"]), workspace.model.encode(workspace.model.read(path))[0]
    )


def test_what_is_shown_is_encoded_anew_without_what_else_was_in_the_file(client: TestClient) -> None:
    notes = PngInfo()
    notes.add_text("Secret", "hidden-in-the-file")
    content = png(Image.new("RGB", (40, 40), "red"), pnginfo=notes) + b"<script>hidden-behind-it</script>"
    picture = client.post("/api/uploads", content=content).json()
    for part in ("", "/reconstruction", "/difference"):
        shown = client.get(f"/images/{picture['id']}{part}")
        assert shown.headers["content-type"] == "image/png"
        assert b"hidden" not in shown.content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"no image at all", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (png(Image.new("RGB", (40, 40)))[:60], "cannot be decoded"),
    ],
)
def test_what_is_no_image_is_rejected_with_the_reason(
    client: TestClient, content: bytes, reason: str
) -> None:
    answer = client.post("/api/uploads", content=content)
    assert answer.status_code == 422
    assert reason in answer.json()["error"].lower()


def test_a_file_of_many_pixels_is_rejected_by_its_header(client: TestClient) -> None:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10)))
    answer = client.post("/api/uploads", content=content)
    assert answer.status_code == 422
    assert "30,000x30,000 pixels are more than the limit" in answer.json()["error"]


def test_a_decompression_bomb_is_rejected_and_the_page_goes_on(client: TestClient) -> None:
    bomb = flat_png(12_000, 6_000)  # 72 million pixels
    assert len(bomb) < 200_000
    assert "pixels are more than" in client.post("/api/uploads", content=bomb).json()["error"]
    text = zlib.compress(bytes(200 * 1024**2))
    notes = chunk(b"zTXt", b"Comment\0\0" + text)
    whole = png(Image.new("RGB", (8, 8)))
    client.post("/api/uploads", content=whole[:33] + notes + whole[33:])
    assert client.post("/api/uploads", content=whole).status_code == 200


def test_uploads_have_a_rate(client: TestClient) -> None:
    state = client.app.state  # type: ignore[attr-defined]
    state.uploads.allowance = Allowance(2, 0.001)
    content = png(Image.new("RGB", (8, 8)))
    assert [client.post("/api/uploads", content=content).status_code for _ in range(3)] == [200, 200, 429]
    assert int(client.post("/api/uploads", content=content).headers["retry-after"]) > 0
    state.uploads.allowance = Allowance(1, 1)  # back within a second, which even a slow machine does not take
    state.uploads.allowance.take()
    rejected = client.post("/api/uploads", content=content)
    assert (rejected.status_code, rejected.headers["retry-after"]) == (429, "1")


def room_for(count: int) -> Shelf:
    return Shelf(4, 4, 2, count * (4 * 4 * 3 + 2 * 4 + NAMED_BYTES))


def test_the_longest_unused_picture_goes_first() -> None:
    store = room_for(2)
    first, second = store.put(held(1)), store.put(held(2))
    assert store.get(first) is not None
    third = store.put(held(3))
    assert store.get(second) is None
    for name, value in ((first, 1), (third, 3)):
        found = store.get(name)
        assert found is not None
        assert (found.pixels == value).all()
        assert found.code.tolist() == [value, -value]


def test_no_number_of_samples_pushes_out_an_upload_or_a_sample_in_use(workspace: Workspace) -> None:
    workspace.uploads, workspace.samples = room_for(3), room_for(3)
    upload, used, unused = (
        workspace.hold(held(value, kind))["id"]
        for value, kind in ((1, "upload"), (2, "sample"), (3, "sample"))  # type: ignore[arg-type]
    )
    assert workspace.code(used).tolist() == [2, -2]
    for value in range(10):
        workspace.hold(held(value, "sample"))
    with pytest.raises(GoneError):
        workspace.find(unused)
    assert [workspace.pixels(name)[0, 0, 0] for name in (upload, used)] == [1, 2]
    assert workspace.describe(used)["kind"] == "sample"
    assert workspace.samples.get(used) is None


def test_a_sample_that_is_worked_with_is_in_use(client: TestClient, workspace: Workspace) -> None:
    [sample, other] = client.post("/api/generate", json={"count": 2}).json()["pictures"]
    assert client.get(f"/images/{sample['id']}").status_code == 200
    assert client.get(f"/api/morph/frame?pictures={other['id']},i0").status_code == 200
    assert sample["id"] in workspace.samples._slots
    assert other["id"] in workspace.uploads._slots


def test_a_sample_is_found_at_the_moment_it_becomes_one_in_use(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.uploads, workspace.samples = room_for(2), room_for(2)
    sample, get = workspace.hold(held(4, "sample"))["id"], Shelf.get
    asked: list[str] = []

    def moving(shelf: Shelf, name: str) -> Held | None:
        found = get(shelf, name)
        asked.append(name)
        if len(asked) == 1:  # another request works with it right after the first of the two was asked
            workspace.uploads.put(held(4, "sample"), name)
            workspace.samples.remove(name)
        return found

    monkeypatch.setattr(Shelf, "get", moving)
    assert (workspace.pixels(sample) == 4).all()


def test_a_sample_moved_by_two_requests_takes_one_place() -> None:
    store = room_for(2)
    other = store.put(held(1))
    for _ in range(2):
        store.put(held(2, "sample"), "sample")
    assert store.get(other) is not None
    store.remove("sample")
    assert store.put(held(3))
    assert store.get(other) is not None


def test_what_is_held_is_a_copy() -> None:
    store, picture = room_for(1), held(7)
    name = store.put(picture)
    picture.pixels[:] = 0
    found = store.get(name)
    assert found is not None
    assert (found.pixels == 7).all()
    store.put(held(9))
    assert (found.pixels == 7).all()


# In a process of its own: one in which other tests have freed gigabytes takes no more from the system.
MEASURED = """
import os
from pathlib import Path

import numpy as np
import torch

from autoencode.web.pictures import Held, Shelf


def resident_mb() -> float:
    status = Path("/proc/self/statm").read_text()
    return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024**2


before = resident_mb()
store = Shelf(64, 64, 128, 400 * 1024**2)
print(resident_mb() - before)
pixels, code = np.ones((64, 64, 3), np.uint8), torch.ones(128)
for _ in range(4000):  # 51 MB, between arrays that come and go
    passing = torch.ones(200_000)
    store.put(Held(pixels * 2, code * passing[0], "one", "sample"))
print(resident_mb() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reports no resident memory")
def test_memory_is_taken_for_what_is_held_and_not_for_what_could_be() -> None:
    ended = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    empty, full = map(float, ended.stdout.split())
    assert empty < 20
    assert 40 < full < 75


def test_ids_say_nothing_and_are_not_guessed() -> None:
    store = room_for(50)
    names = {store.put(held()) for _ in range(50)}
    assert len(names) == 50
    assert min(map(len, names)) > 12


def test_a_picture_that_is_gone_says_so(client: TestClient) -> None:
    answer = client.get("/images/unever-was")
    assert answer.status_code == 404
    assert "Add it again" in answer.json()["error"]


def test_no_upload_touches_the_disk(client: TestClient, run_folder: Path, index_folder: Path) -> None:
    before = {path for folder in (run_folder, index_folder) for path in folder.rglob("*")}
    client.post("/api/uploads", content=png(Image.new("RGB", (8, 8), "green")))
    assert {path for folder in (run_folder, index_folder) for path in folder.rglob("*")} == before


def test_codes_are_kept_while_a_morph_moves_and_the_longest_unused_give_way() -> None:
    encoded: list[list[str]] = []

    def encode(names: Sequence[str]) -> torch.Tensor:
        encoded.append(list(names))
        return torch.tensor([[float(name), 1.0] for name in names])

    kept = KeptCodes(encode, 2, count=2)
    np.testing.assert_array_equal(kept.of(["3", "4", "3"]), [[3, 1], [4, 1], [3, 1]])
    kept.of(["3"])
    np.testing.assert_array_equal(kept.of(["5", "3"]), [[5, 1], [3, 1]])
    np.testing.assert_array_equal(kept.of(["6", "7", "8"]), [[6, 1], [7, 1], [8, 1]])  # more than it keeps
    kept.of(["8"])
    np.testing.assert_array_equal(kept.of(["4"]), [[4, 1]])
    assert encoded == [["3", "4"], ["5"], ["6", "7", "8"], ["4"]]


def test_a_frame_of_a_morph_is_of_the_codes_of_its_pictures(client: TestClient, workspace: Workspace) -> None:
    response = client.get("/api/morph/frame?pictures=t0,t1&x=0.25")
    frame = np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB"), np.int16)
    images = to_float(np.stack([workspace.pixels(name) for name in ("t0", "t1")]))
    first, second = workspace.model.encode(images)
    decoded = to_pixels(workspace.model.decode((0.75 * first + 0.25 * second)[None]))[0]
    assert np.abs(frame - decoded).max() <= 1  # by a batch of another size, in the last bit


def test_a_picture_that_is_gone_does_not_spoil_the_frames_asked_for_with_it(workspace: Workspace) -> None:
    async def ask() -> list[object]:
        names = (["t0", "t1"], ["t0", "u-gone"], ["t1"])
        return list(await asyncio.gather(*map(workspace.encoding, names), return_exceptions=True))

    first, gone, alone = in_a_loop(ask())
    assert isinstance(gone, GoneError)
    assert isinstance(first, torch.Tensor)
    assert isinstance(alone, torch.Tensor)
    torch.testing.assert_close(first[1], alone[0])
