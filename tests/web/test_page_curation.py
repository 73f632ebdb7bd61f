"""What a person does with pictures in a browser: selects, tags and keeps them, and chooses among copies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from tests.duplicates.pictures import texture

from autoencode import build_index
from autoencode.web import missing
from autoencode.web.workspace import open_workspace

from .conftest import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytest.importorskip("axe_playwright_python.base")
from .test_page import PHONE, go, until, watched


@pytest.fixture(scope="module")
def page(
    browser: Browser, run_folder: Path, index_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """A page on a phone, the narrowest window, whose pictures nobody else has decided about."""
    width, height = PHONE
    context = browser.new_context(
        viewport={"width": width, "height": height}, has_touch=True, accept_downloads=True
    )
    undecided = shutil.ignore_patterns("*.jsonl", "page-results")
    run = shutil.copytree(run_folder, tmp_path_factory.mktemp("curation") / "run", ignore=undecided)
    with (
        serving(open_workspace(Path(run), index_folder)) as served,
        watched(context.new_page(), served) as opened,
    ):
        opened.goto(served.entrance)
        yield opened
        context.close()


def test_the_bar_is_in_nobodys_way_and_keeps_no_tag_for_others(page: Page) -> None:
    go(page, "browse")
    tile = "#tab-browse .grid .picture"
    page.click(f"{tile} >> nth=0", modifiers=["Control"])
    until(page, "sessionStorage.getItem('selection')")  # the server has it
    page.reload()
    page.wait_for_selector(".selection-bar >> text=1 selected")
    box = page.locator(".selection-bar").bounding_box()
    assert box is not None
    assert box["height"] < 70  # one row, also on a phone
    go(page, "restore")
    assert page.is_hidden(".selection-bar")
    go(page, "browse")
    page.fill(".selection-bar input", "copy")
    page.click(".selection-bar >> text=/^Tag$/")
    until(page, "document.querySelector('#status').textContent.startsWith('1 tagged')")
    assert page.input_value(".selection-bar input") == "copy"  # it can be taken back
    with page.expect_download() as download:
        page.click(".selection-bar >> text=CSV")
    assert download.value.suggested_filename == "photos-copy.csv"
    page.click(f"{tile} >> nth=1", modifiers=["Control"])
    assert page.input_value(".selection-bar input") == ""
    page.click(".selection-bar >> text=Undo")
    until(page, "document.querySelector('#status').textContent.startsWith('Undone')")
    page.click(".selection-bar >> text=Clear")
    until(page, "!document.querySelector('#tab-browse .marks .mark')")


def test_files_that_are_gone_are_counted_and_marked(
    browser: Browser, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missing, "SECONDS", 0)
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    index = build_index(folder, tmp_path / "index").path
    for path in sorted(folder.rglob("*.png"))[:3]:
        path.unlink()
    context = browser.new_context()
    with serving(open_workspace(index), tmp_path) as served, watched(context.new_page(), served) as page:
        page.goto(served.entrance)
        page.wait_for_selector("#tabs a")
        assert page.locator("#to-morph.lacking, #to-search.lacking").count() == 1  # without a model
        page.click(".verdict >> text=3 files are not there any more.")
        until(page, "document.querySelectorAll('#tab-browse .mark.gone').length === 3")
        assert page.locator("#tab-browse .caption").first.inner_text().startswith("coast/")
        page.click("text=Select all")
        page.click(".selection-bar >> text=List")
        until(page, "document.querySelector('#status').textContent.startsWith('All 3 files are gone')")
        context.close()


def test_copies_are_chosen_singly_and_what_stays_is_up_to_the_person(
    browser: Browser, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        texture(number).save(folder / f"{number}.png")
    shutil.copy(folder / "0.png", folder / "again.png")
    texture(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    index = build_index(folder, tmp_path / "index").path
    context = browser.new_context()
    with serving(open_workspace(index), tmp_path) as served, watched(context.new_page(), served) as page:
        page.goto(served.entrance)
        go(page, "duplicates")
        groups, said = (
            ".copy-group",
            "text => document.querySelector('#tab-duplicates .verdict')?.textContent.includes(text)",
        )
        until(page, said, "2 groups: 2 of 6 files could go")
        stays = page.locator(f"{groups} >> nth=0 >> .stays .name").inner_text()
        page.click(f"{groups} >> nth=0 >> text=Keep this one")
        until(page, "name => document.querySelector('.copy-group .stays .name').textContent !== name", stays)
        page.click(f"{groups} >> nth=1 >> text=Keep both")
        until(page, said, "2 groups: 1 of 6 files could go")
        page.reload()
        until(page, said, "2 groups: 1 of 6 files could go")
        assert page.locator(f"{groups} >> nth=0 >> .stays .name").inner_text() != stays
        page.click(f"{groups} >> nth=1 >> text=Keep both")
        until(page, said, "2 groups: 2 of 6 files could go")
        page.click(f"{groups} .picture >> nth=1", modifiers=["Control"])
        page.focus(f"{groups} .picture >> nth=2")
        page.keyboard.press("Space")
        page.wait_for_selector(".selection-bar >> text=2 selected")
        page.keyboard.press("Escape")
        until(page, "document.querySelector('.selection-bar').hidden")
        found = page.request.get(f"http://127.0.0.1:{served.port}/api/duplicates/identical").json()
        assert [[file["name"] for file in group] for group in found["groups"]] == [["0.png", "again.png"]]
        context.close()


TILE = "#tab-browse .grid .picture"


def open_first(page: Page) -> None:
    """Open the window of the first picture in Browse."""
    go(page, "browse")
    until(page, "s => document.querySelectorAll(s).length === 48", TILE)
    page.press(f"{TILE} >> nth=0", "Enter")
    page.wait_for_selector("dialog.viewer .curation")


def test_a_picture_is_tagged_kept_and_selected_in_its_window(page: Page) -> None:
    open_first(page)
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("dialog.viewer >> text=2 of 48")
    page.keyboard.press("Space")
    page.wait_for_selector(".curation >> text=✓ Selected")
    page.keyboard.press("d")
    until(page, "document.querySelector('.curation .drop').ariaPressed === 'true'")
    page.keyboard.press("t")
    page.keyboard.type("seen")
    page.keyboard.press("Enter")
    page.wait_for_selector(".chips >> text=seen")
    until(page, "document.querySelectorAll('#tab-browse .mark.drop').length === 1")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog')")
    until(page, "document.activeElement.matches('#tab-browse .picture.chosen')")  # the last one seen
    page.press(f"{TILE} >> nth=1", "Enter")
    page.click(".chips >> text=seen")
    until(page, "!document.querySelector('.chips .chip')")
    for chips, dropped in ((1, 1), (0, 1), (0, 0)):  # the tag given again, taken, and the decision
        page.click(".curation >> text=Undo")
        until(page, "n => document.querySelectorAll('.chips .chip').length === n", chips)
        until(page, "n => document.querySelectorAll('#tab-browse .mark.drop').length === n", dropped)
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog')")
    page.click(".selection-bar >> text=Clear")


def test_a_picture_keeps_the_keyboard_when_the_list_is_renewed_late(page: Page) -> None:
    open_first(page)
    held: list[Route] = []
    page.route("**/api/browse?*", lambda route: held.append(route))
    page.keyboard.press("d")
    until(page, "document.querySelector('.curation .drop').ariaPressed === 'true'")
    page.keyboard.press("Escape")
    until(page, "document.activeElement.matches('#tab-browse .picture')")
    for request in held:
        request.continue_()
    until(page, "document.querySelector('#tab-browse .mark.drop')")
    assert page.evaluate("document.activeElement === document.querySelector('#tab-browse .picture')")
    page.unroute("**/api/browse?*")
    page.press(f"{TILE} >> nth=0", "Enter")
    page.click(".curation >> text=Undo")
    until(page, "!document.querySelector('#tab-browse .mark.drop')")
    page.keyboard.press("Escape")
