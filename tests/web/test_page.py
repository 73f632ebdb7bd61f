"""The page as a person uses it, in a real browser: every tab, on a desk and on a phone, and by keyboard."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autoencode.web import tabs
from autoencode.web.security import Allowance
from autoencode.web.workspace import open_workspace

from .conftest import Served, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

DESK, PHONE = (1280, 860), (390, 844)
TABS = [tab.name for tab in tabs.TABS]

axe_core = pytest.importorskip("axe_playwright_python.base")
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module", params=[DESK, PHONE], ids=["desk", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, served: Served) -> Iterator[Page]:
    """The page, opened by the address that is printed; it stays open from test to test."""
    width, height = request.param
    context = browser.new_context(
        viewport={"width": width, "height": height}, has_touch=width < 500, accept_downloads=True
    )
    with watched(context.new_page(), served) as opened:
        opened.goto(served.entrance)
        yield opened
        context.close()


@contextlib.contextmanager
def watched(page: Page, served: Served) -> Iterator[Page]:
    """Require that the console shows no error, and that nothing is requested from elsewhere."""
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    elsewhere: list[str] = []
    # The browser reports the status of a skipped file, too; any other error is a fault of the page.
    page.on(
        "console",
        lambda message: (
            message.type == "error"
            and not re.search("422|429", message.text)
            and complaints.append(f"{message.text} {message.location.get('url')}")
        ),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    own = f"http://127.0.0.1:{served.port}/"
    page.on("request", lambda sent: sent.url.startswith((own, "blob:")) or elsewhere.append(sent.url))
    yield page
    assert not complaints
    assert not elsewhere


def go(page: Page, tab: str) -> None:
    if page.is_visible("dialog"):  # left open by a test that failed
        page.keyboard.press("Escape")
    page.click(f"#to-{tab}")
    page.wait_for_selector(f"#tab-{tab}:not([hidden]) h1")


def until(page: Page, predicate: str, arg: object = None) -> None:
    """Wait until something holds; playwright's own wait needs `eval`, which the page does not allow."""
    for _ in range(1200):
        if page.evaluate(predicate, arg):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"still not: {predicate} ({arg})")


def source(page: Page, selector: str) -> str:
    """What a picture shows, once it shows something."""
    until(page, "s => document.querySelector(s)?.naturalWidth > 0", selector)
    return str(page.get_attribute(selector, "src"))


def saved(page: Page, selector: str) -> bytes:
    with page.expect_download() as download:
        page.click(selector)
    return Path(download.value.path()).read_bytes()


def focused(page: Page) -> str:
    """The text of the focused element."""
    return str(page.evaluate("document.activeElement.textContent"))


def slide(page: Page, selector: str, value: float) -> None:
    page.eval_on_selector(
        selector, "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})) }", value
    )


def drop(page: Page, path: Path, name: str) -> None:
    page.evaluate(
        """([content, name]) => {
            const held = new DataTransfer();
            held.items.add(new File([new Uint8Array(content)], name, {type: 'image/png'}));
            dispatchEvent(Object.assign(new Event('drop', {cancelable: true}), {dataTransfer: held}));
        }""",
        [list(path.read_bytes()), name],
    )


def test_the_key_is_gone_from_the_address(page: Page) -> None:
    page.wait_for_selector("#tabs a")
    assert "token" not in page.url
    page.reload()
    until(page, "document.querySelector('#name').textContent === 'run'")


def test_the_overview_shows_curves_and_health(page: Page) -> None:
    go(page, "overview")
    page.wait_for_selector(".card .value")
    assert "dB" in page.inner_text(".cards")
    chart = page.get_attribute(".chart svg", "aria-label") or ""
    assert chart.startswith("Loss by epoch: training from")
    assert page.locator(".mosaic .picture").count() == 48
    page.wait_for_selector(".groups .picture")
    assert page.inner_text(".groups h3 >> nth=0").startswith("Best")
    until(page, "document.querySelector('.verdict').textContent.includes('PCA of 8 components')")
    assert page.evaluate(
        """[...document.querySelectorAll('.chart')].every((chart) => {
            const left = (element) => element.getBoundingClientRect().left;
            return [...chart.querySelectorAll('.tick')].every((tick) => left(tick) > left(chart));
        })"""
    )


def test_search_goes_on_from_image_to_image_and_saves_a_table(page: Page, photos: Path) -> None:
    go(page, "search")
    page.set_input_files("#tab-search input[type=file]", sorted(photos.rglob("*.png"))[4])
    until(page, "document.querySelector('.asked h2')?.textContent.endsWith('.png')")
    first = page.locator("#tab-search .grid .picture").first
    until(page, "document.querySelector('#tab-search .caption')?.textContent.startsWith('1.000')")
    before, name = (
        page.url,
        (first.get_attribute("title") or "").removesuffix(": search from this image").split("/")[-1],
    )
    first.press("Enter")
    page.wait_for_url(lambda url: url != before)
    until(page, "name => document.activeElement.textContent === name", name)
    until(page, "name => document.querySelector('#announced').textContent === `24 nearest of ${name}.`", name)
    assert focused(page) == name
    page.select_option("#tab-search select >> nth=0", "8")
    until(page, "document.querySelectorAll('#tab-search .grid .picture').length === 8")
    page.select_option("#tab-search select >> nth=1", "l2")
    page.wait_for_selector("text=0 means identical")
    assert saved(page, "text=Save CSV").decode().startswith("path,score,percentile,label\n")


def test_an_image_is_dropped_or_pasted_anywhere(page: Page, photos: Path) -> None:
    go(page, "search")
    content = list(sorted(photos.rglob("*.png"))[9].read_bytes())
    for kind, key in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        before = page.url
        page.evaluate(
            """([kind, key, content]) => {
                const held = new DataTransfer();
                held.items.add(new File([new Uint8Array(content)], `${kind}.png`, {type: 'image/png'}));
                dispatchEvent(Object.assign(new Event(kind, {cancelable: true}), {[key]: held}));
            }""",
            [kind, key, content],
        )
        page.wait_for_url(lambda url, before=before: url != before)
        until(page, "name => document.querySelector('.asked h2')?.textContent === name", f"{kind}.png")


def test_an_address_that_is_dropped_is_not_fetched_and_says_what_to_do(page: Page) -> None:
    page.evaluate(
        """() => {
            const held = new DataTransfer();
            held.setData('text/uri-list', 'http://127.0.0.1:9/picture.png');
            dispatchEvent(Object.assign(new Event('drop', {cancelable: true}), {dataTransfer: held}));
        }"""
    )
    until(page, "document.querySelector('#status').textContent.includes('drop the file here')")


def test_an_image_dropped_on_the_samples_is_varied(page: Page, photos: Path) -> None:
    go(page, "generate")
    page.wait_for_selector("#tab-generate .grid .picture")
    drop(page, sorted(photos.rglob("*.png"))[9], "given.png")
    page.wait_for_selector("text=Variations of given.png")
    page.reload()
    page.wait_for_selector("text=Variations of given.png")
    page.click("[aria-label=Variations] >> text=Done")
    until(page, "!location.hash.includes('vary')")


def test_a_file_that_is_no_image_is_skipped_in_words(page: Page, tmp_path: Path) -> None:
    go(page, "search")
    (tmp_path / "text.png").write_text("no image")
    with page.expect_response("**/api/uploads") as answer:
        page.set_input_files("#tab-search input[type=file]", tmp_path / "text.png")
    assert answer.value.status == 422
    until(page, "document.querySelector('#status').textContent.includes('text.png: Not an image')")


def test_the_morph_redraws_as_it_moves_and_only_for_the_newest_place(page: Page) -> None:
    go(page, "morph")
    before = source(page, ".result")
    asked: list[str] = []
    page.on("request", lambda sent: "/morph/frame" in sent.url and asked.append(sent.url))
    page.evaluate(
        """() => {
            const slider = document.querySelector('.between-ends .x');
            for (let i = 0; i <= 200; i++) {
                slider.value = i / 200;
                slider.dispatchEvent(new Event('input', {bubbles: true}));
            }
        }"""
    )
    until(page, "old => document.querySelector('.result').alt.endsWith('at 100 %')", before)
    until(page, "old => document.querySelector('.result').src !== old", before)
    assert 1 <= len(asked) <= 3  # the first place, perhaps one between, and the last
    assert "x=1.0000" in asked[-1]
    assert saved(page, "#tab-morph >> text=Save PNG").startswith(b"\x89PNG")
    assert saved(page, "#tab-morph >> text=Save GIF").startswith(b"GIF8")


def test_an_animation_reports_progress_and_can_be_cancelled(page: Page) -> None:
    go(page, "morph")
    at = {"state": "running", "stage": "writing frames", "done": 3, "total": 46, "error": ""}
    page.route("**/api/morph/animation?*", lambda route: route.fulfill(status=202, json=at))
    page.locator("#tab-morph >> text=Save WebP").press("Enter")
    page.wait_for_selector("#tab-morph .progress >> text=writing frames: 3 of 46")
    with page.expect_request("**/api/morph/animation/cancel?*kind=webp"):
        page.press("#tab-morph .progress .cancel", "Enter")
    assert page.locator("#tab-morph .progress").count() == 0
    assert focused(page) == "Save WebP"
    page.unroute("**/api/morph/animation?*")


def test_four_pictures_make_a_square_and_a_fifth_is_rejected(page: Page) -> None:
    go(page, "morph")
    for count in (3, 4, 4):
        before = [image.get_attribute("alt") for image in page.locator(".slots img").all()]
        page.click("#tab-morph >> text=Pick one of yours")
        page.click("dialog .picture >> nth=0")
        until(page, "n => document.querySelectorAll('.slots li').length === n", count)
    assert [image.get_attribute("alt") for image in page.locator(".slots img").all()] == before
    assert "4 pictures at most" in page.inner_text("#status")
    before = source(page, ".result")
    pad = page.locator(".pad")
    pad.scroll_into_view_if_needed()  # on a phone
    box = pad.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    until(page, "document.querySelector('.result').alt.includes('90 % across, 10 % down')")
    assert source(page, ".result") != before
    names = [image.get_attribute("alt") for image in page.locator(".slots img").all()]
    page.press(".slots .remove >> nth=2", "Enter")
    assert page.evaluate("document.activeElement.ariaLabel") == f"Remove {names[3]}"
    assert page.inner_text("#announced") == f"{names[2]} removed. 3 left."
    page.keyboard.press("Enter")  # the last: the one before it is next
    assert page.evaluate("document.activeElement.ariaLabel") == f"Remove {names[1]}"
    assert page.locator(".between-ends").count() == 1


def test_a_sample_shows_its_neighbours_is_varied_and_morphed(page: Page) -> None:
    go(page, "generate")
    page.wait_for_selector("#tab-generate .grid .picture")
    before = source(page, "#tab-generate .grid .picture img")
    page.click("text=Draw new samples")
    until(
        page, "old => document.querySelector('#tab-generate .grid img').getAttribute('src') !== old", before
    )
    page.click("#tab-generate .grid .picture >> nth=2")
    page.wait_for_selector("dialog .near .picture")
    page.click("dialog >> text=Reconstruction")
    assert "/reconstruction" in source(page, "dialog .frame img")
    page.click("dialog >> text=Vary")
    page.wait_for_selector("[aria-label=Variations] .grid .picture")
    page.click("[aria-label=Variations] .grid .picture >> nth=0")
    # Until its neighbours are there the window is still being drawn: a press on a button can come to nothing.
    page.wait_for_selector("dialog .near .picture")
    assert saved(page, "dialog >> text=Save PNG").startswith(b"\x89PNG")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog')")


def test_restoring_has_a_line_between_before_and_after(page: Page, photos: Path) -> None:
    go(page, "restore")
    page.wait_for_selector("#tab-restore .restore-whole >> text=Save the restored file")
    page.select_option("#tab-restore label:has-text('Restored') select >> visible=true", "code")
    page.wait_for_selector(".restore .comparison")
    assert page.is_hidden("#tab-restore .restore-whole")
    page.get_by_label("Damage").select_option("gaussian:0.3")
    page.wait_for_selector("text=PSNR before")
    slide(page, ".restore .comparison input", 80)
    upper = page.eval_on_selector(".restore .comparison .upper", "e => e.style.clipPath")
    assert upper == "inset(0px 20% 0px 0px)"
    page.click("summary >> text=Compare with a clean version")
    page.set_input_files("#tab-restore details input[type=file]", sorted(photos.rglob("*.png"))[0])
    page.wait_for_selector("text=Compare with itself again")


def test_restoring_shows_the_amount_and_single_pixels_where_they_are_large(page: Page) -> None:
    go(page, "restore")
    page.wait_for_selector("#tab-restore .restore-whole >> text=Save the restored file")
    slide(page, "#tab-restore label:has-text('Amount') input >> visible=true", 0.5)
    assert page.inner_text("#tab-restore label:has-text('Amount') output >> visible=true") == "50 %"
    page.wait_for_selector("#tab-restore .comparison.large .upper")
    for _ in range(6):
        page.click("#tab-restore [aria-label='Zoom in'] >> visible=true")
    page.wait_for_selector("#tab-restore .comparison.large .upper.pixelated")


def test_the_address_of_restoring_keeps_the_window_over_it_and_names_what_it_cannot_use(page: Page) -> None:
    go(page, "restore")
    page.evaluate("location.hash = '#restore?picture=i2&open=i3'")
    page.wait_for_selector("dialog.viewer")
    page.wait_for_selector("#tab-restore .restore-whole >> text=Save the restored file")
    assert page.evaluate("location.hash") == "#restore?picture=i2&open=i3"
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog')")
    page.evaluate("location.hash = '#restore?by=bad'")
    page.wait_for_selector("text=“by=bad” in the address means nothing here")
    assert page.is_visible("#tab-restore .restore-whole")


def test_outliers_are_decided_by_keys_and_undone(page: Page, run_folder: Path) -> None:
    go(page, "outliers")
    page.wait_for_selector(".review .sides img")
    first = page.inner_text(".review h2")
    page.keyboard.press("h")
    assert page.is_visible(".sides .heat")
    assert "most, in this image" in page.inner_text(".sides")
    page.keyboard.press("h")
    assert page.is_hidden(".heat")
    assert page.is_hidden(".sides .heat-legend")
    page.keyboard.press("d")
    second = page.inner_text(".review h2")  # there at once, whatever the disk does
    assert second != first
    page.keyboard.press("k")
    until(page, "document.querySelector('.counts').textContent.startsWith('1 kept, 1 dropped')")
    log = [json.loads(line) for line in (run_folder / "decisions.jsonl").read_text().splitlines()]
    assert [(Path(line["path"]).name, line["decision"]) for line in log[-2:]] == [
        (first, "drop"),
        (second, "keep"),
    ]
    assert saved(page, "text=List of dropped files").decode().strip().endswith(f"/{first}")
    for name in (second, first):
        page.keyboard.press("u")
        until(page, "old => document.querySelector('.review h2').textContent === old", name)
    until(page, "document.querySelector('.counts').textContent.startsWith('0 kept, 0 dropped')")
    before = page.inner_text(".threshold p")
    page.focus(".threshold input")
    page.keyboard.press("End")
    until(page, "old => document.querySelector('.threshold p').textContent !== old", before)
    assert "Flags 1 of 48 pictures" in page.inner_text(".threshold p")
    assert "threshold=" in page.url
    page.click("text=Select the flagged")
    until(page, "document.querySelector('.selection-bar strong').textContent === '1 selected'")
    page.click(".selection-bar >> text=Clear")
    page.reload()
    page.wait_for_selector("text=Flags 1 of 48 pictures")
    page.focus(".threshold input")
    page.keyboard.press("d")  # letters are the queue's while the slider has the keyboard
    until(page, "document.querySelector('.counts').textContent.startsWith('0 kept, 1 dropped')")
    undo(page, first)
    page.locator(".threshold input").blur()


def undo(page: Page, name: str) -> None:
    """Take back the last decision, which was about an image of that name, and wait until that is shown."""
    page.keyboard.press("u")
    until(page, "document.querySelector('.counts').textContent.startsWith('0 kept, 0 dropped')")
    # It is shown after it is counted; what comes too late would be in the way of the next test.
    until(page, "name => document.querySelector('.review h2').textContent === name", name)


def test_a_key_held_down_decides_about_one_image(page: Page) -> None:
    go(page, "outliers")
    page.wait_for_selector(".review h2")
    first, at = page.inner_text(".review h2"), page.inner_text(".facts").split()[0]
    for _ in range(4):
        page.keyboard.down("d")
    page.keyboard.up("d")
    until(page, "document.querySelector('.counts').textContent.startsWith('0 kept, 1 dropped')")
    assert int(page.inner_text(".facts").split()[0]) == int(at) + 1
    undo(page, first)


def test_the_buttons_of_the_review_keep_the_keyboard(page: Page) -> None:
    go(page, "outliers")
    page.wait_for_selector(".review h2")
    until(page, "document.querySelector('.counts').textContent.startsWith('0 kept, 0 dropped')")
    decided = []
    for text, times in (("Next", 2), ("Back", 1), ("Keep", 2), ("Drop", 1)):
        button = page.locator(f".decide button:has-text('{text}')")
        button.focus()
        for _ in range(times):
            before = page.inner_text(".review h2")
            decided += [before] if text in ("Keep", "Drop") else []
            page.keyboard.press("Enter")
            until(page, "old => document.querySelector('.review h2').textContent !== old", before)
            assert focused(page).startswith(text)
            assert f": {page.inner_text('.review h2')}, score" in page.inner_text("#announced")
    until(page, "document.querySelector('.counts').textContent.startsWith('2 kept, 1 dropped')")
    page.locator(".decide button:has-text('Undo')").focus()
    for left in ("2 kept, 0", "1 kept, 0", "0 kept, 0"):
        page.keyboard.press("Enter")
        until(page, "t => document.querySelector('.counts').textContent.startsWith(t)", left)
        # It is shown after it is counted; what comes too late would be in the way of the next test.
        until(page, "name => document.querySelector('.review h2').textContent === name", decided.pop())
    assert focused(page).startswith("Undo")


def test_what_another_browser_decides_is_seen_once_one_looks_again(page: Page, served: Served) -> None:
    go(page, "outliers")
    page.wait_for_selector(".review h2")
    name = page.inner_text(".review h2")
    review = served.workspace.review
    assert review is not None
    entry = next(entry for entry in review.pack.entries if Path(entry.path).name == name)
    served.workspace.decisions.decide(review.pack, entry, "drop")
    go(page, "overview")
    go(page, "outliers")
    until(page, "document.querySelector('.counts').textContent.startsWith('0 kept, 1 dropped')")
    until(page, "document.querySelector('.decide .drop').ariaPressed === 'true'")
    page.keyboard.press("u")
    until(page, "document.querySelector('.decide .drop').ariaPressed === 'false'")


def test_windows_know_each_others_decisions_and_begin_at_what_is_left(page: Page) -> None:
    go(page, "outliers")
    page.wait_for_selector(".review h2")
    page.click(".strip button >> nth=0")
    counts = "t => document.querySelector('.counts').textContent.startsWith(t)"
    for number in range(1, 6):
        page.keyboard.press("k")
        until(page, counts, f"{number} kept, 0")
    other = page.context.new_page()
    # Parts of four, so that what is decided does not fit into the first.
    other.route(
        "**/api/outliers?*",
        lambda route: route.continue_(url=route.request.url.replace("limit=50", "limit=4")),
    )
    other.goto(page.url)
    other.wait_for_selector(".review h2")
    assert other.inner_text(".review .facts").startswith("6 of 48")
    assert other.locator(".strip .keep").count() == 2
    for place in (5, 4, 3, 2, 1, 1):  # the fourth is the first that is there
        other.keyboard.press("p")
        until(other, f"document.querySelector('.review .facts').textContent.startsWith('{place} of')")
    assert other.locator(".strip .keep").count() == 5
    assert other.locator(".strip [aria-current]").count() == 1
    page.keyboard.press("d")
    until(other, counts, "5 kept, 1 dropped")
    until(other, "document.querySelectorAll('.strip .drop').length === 1")
    for left in ("5 kept, 0", "4 kept, 0", "3 kept, 0", "2 kept, 0", "1 kept, 0", "0 kept, 0"):
        other.keyboard.press("u")
        until(page, counts, left)
    until(page, "document.querySelectorAll('.strip .keep').length === 0")
    other.close()


def test_the_map_moves_by_keyboard_and_lists_what_is_drawn_around(page: Page, photos: Path) -> None:
    go(page, "map")
    page.wait_for_selector(".map-stage canvas")
    page.get_by_label("Colour by").select_option("score")
    page.wait_for_selector(".scale")
    page.get_by_label("Colour by").select_option("label")
    assert page.inner_text(".legend").split() == ["coast", "forest", "night"]
    page.get_by_label("Colour by").select_option("group")
    pictures = page.locator(".legend .similar img")
    assert pictures.count() == 2  # of 48 images
    number = page.locator(".legend .similar .group >> nth=0").inner_text().split()[-1]
    page.press(".legend .similar .group >> nth=0", "Enter")
    page.wait_for_selector(f".chosen >> text={number} images selected")
    page.click(".chosen >> text=Clear")
    page.get_by_label("Colour by").select_option("label")
    page.locator(".map-stage").scroll_into_view_if_needed()
    page.click("#tab-map >> text=Draw around some")
    box = page.locator(".map-stage canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 24, box["y"] + 24)
    page.mouse.down()
    for across, down in ((0.99, 0.01), (0.99, 0.99), (0.01, 0.99), (0.01, 0.01)):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
    page.mouse.up()
    page.wait_for_selector(".chosen h2")
    chosen = int(re.findall(r"\d+", page.inner_text(".chosen h2"))[0])
    assert 30 <= chosen <= 48
    files = saved(page, ".selection-bar >> text=List").decode().splitlines()
    assert len(files) == chosen
    assert all(Path(path).is_relative_to(photos) and Path(path).is_file() for path in files)
    page.click("text=Clear")
    page.focus(".map-stage canvas")
    for key in ("+", "+", "+", "ArrowLeft", "ArrowRight", "0"):
        page.keyboard.press(key)
    page.click("text=Select what is visible")
    page.wait_for_selector(".chosen .picture")
    page.click(".chosen .picture >> nth=0")
    page.wait_for_selector("dialog .near .picture")
    page.keyboard.press("Escape")


def test_images_of_the_map_are_chosen_by_keyboard(page: Page) -> None:
    go(page, "map")
    canvas = page.locator(".map-stage canvas")
    canvas.focus()
    page.keyboard.press("0")
    page.keyboard.press("Shift+ArrowRight")
    until(page, "document.querySelector('#announced').textContent.endsWith('images in the rectangle.')")
    few = int(page.inner_text("#announced").split()[0])
    for _ in range(60):
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
    until(page, "document.querySelector('#announced').textContent === '48 images in the rectangle.'")
    assert few < 48
    page.keyboard.press("ArrowRight")  # the map moves under it
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_selector(".chosen >> text=48 images selected")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Escape")  # the rectangle, not the selection
    assert page.is_visible(".chosen >> text=48 images selected")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('.chosen h2')")
    page.press(".legend button >> text=forest", "Enter")
    page.wait_for_selector(".chosen >> text=16 images selected")
    assert focused(page) == "forest"
    page.press("text=Clear", "Enter")
    assert page.evaluate("document.activeElement.matches('.map-stage canvas')")


@pytest.mark.parametrize(
    ("tab", "asked", "content"),
    [("outliers", "**/api/outliers?*", ".review h2"), ("map", "**/api/map?*", ".map-stage canvas")],
)
def test_a_tab_that_failed_is_tried_again(page: Page, tab: str, asked: str, content: str) -> None:
    other = page.context.new_page()
    other.route(asked, lambda route: route.fulfill(status=422, json={"error": "Not now."}))
    other.goto(page.url)
    go(other, tab)
    other.wait_for_selector(f"#tab-{tab} .notice >> text=Not now.")
    assert not other.locator(content).count()
    other.unroute(asked)
    other.click(f"#tab-{tab} >> text=Try again")
    other.wait_for_selector(content)
    assert not other.locator(f"#tab-{tab} .notice").count()
    other.close()


def test_laying_out_anew_can_be_given_up(page: Page) -> None:
    go(page, "map")
    at = {"state": "running", "stage": "finding neighbours", "done": 0, "total": 0, "error": ""}
    page.route("**/api/map?layout=umap", lambda route: route.fulfill(status=202, json=at))
    page.get_by_label("Lay out by").select_option("umap")
    page.wait_for_selector(".waits .progress >> text=finding neighbours")
    # Beside the control that asked for it, not below the pictures.
    assert page.evaluate(
        "() => document.querySelector('.waits').previousElementSibling.matches('.map-tools')"
    )
    with page.expect_request("**/api/map/cancel?layout=umap"):
        page.press(".waits .cancel", "Enter")
    assert page.get_by_label("Lay out by").input_value() == "pca"
    assert page.locator(".waits .progress").count() == 0
    page.unroute("**/api/map?layout=umap")


def test_the_map_by_neighbours_comes_when_it_is_done(page: Page) -> None:
    pytest.importorskip("umap", reason="needs umap-learn, of the extra map")
    go(page, "map")
    page.get_by_label("Lay out by").select_option("umap")
    page.wait_for_selector("text=Similar pictures lie together", timeout=120_000)
    page.get_by_label("Lay out by").select_option("pca")
    page.wait_for_selector("text=% of all differences")


def test_pictures_are_found_selected_tagged_and_shown_by_their_address(page: Page) -> None:
    go(page, "browse")
    tiles = "#tab-browse .grid .picture"
    until(page, "s => document.querySelectorAll(s).length === 48", tiles)
    page.fill("#tab-browse input[type=search]", "forest")
    until(page, "s => document.querySelectorAll(s).length === 16", tiles)
    assert page.url.endswith("#browse?text=forest")
    page.focus(f"{tiles} >> nth=0")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+Space")
    until(page, "document.querySelector('.selection-bar strong').textContent === '3 selected'")
    page.fill(".selection-bar input", "stray")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#tab-browse .marks .mark').length === 3")
    page.locator("#tab-browse [data-name=tag]").select_option("stray")
    until(page, "s => document.querySelectorAll(s).length === 3", tiles)
    other = page.context.new_page()
    other.goto(page.url)  # the same pictures, in another window
    until(other, "s => document.querySelectorAll(s).length === 3", tiles)
    other.close()
    page.click(".selection-bar >> text=Drop")
    until(page, "document.querySelectorAll('#tab-browse .marks .mark.drop').length === 3")
    page.click(".selection-bar >> text=Undo")  # all three at once
    until(page, "document.querySelectorAll('#tab-browse .marks .mark').length === 3")
    page.click(".selection-bar >> text=Undo")
    page.wait_for_selector("#tab-browse .end >> text=No picture")
    page.click("#tab-browse .end >> text=Clear the filters")
    until(page, "s => document.querySelectorAll(s).length === 48", tiles)
    page.click(".selection-bar >> text=Clear")
    page.goto(page.url.split("#")[0] + "#browse?sort=name&text=")
    page.reload()
    page.wait_for_selector(tiles)
    page.keyboard.press("Control+a")
    until(page, "document.querySelector('.selection-bar strong').textContent === '48 selected'")
    assert saved(page, ".selection-bar >> text=Zip").startswith(b"PK")
    page.keyboard.press("Escape")
    until(page, "document.querySelector('.selection-bar').hidden")


def test_two_copies_lie_exactly_over_each_other(page: Page) -> None:
    go(page, "duplicates")
    page.evaluate(
        """async () => {
            const { compare } = await import('/static/duplicates.js');
            compare({ id: 'i1', name: 'one' }, { id: 'i2', name: 'other' });
        }"""
    )
    until(page, "[...document.querySelectorAll('.stack img')].every(one => one.naturalWidth)")
    lower, upper = (page.locator(".stack img").nth(k).bounding_box() for k in (0, 1))
    assert lower == upper
    assert lower is not None
    shape = page.locator(".stack img").nth(0).evaluate("one => one.naturalWidth / one.naturalHeight")
    assert lower["width"] / lower["height"] == pytest.approx(shape, rel=0.01)
    page.keyboard.press("Escape")


def test_a_picture_fills_the_window_and_the_arrows_lead_on(page: Page, photos: Path) -> None:
    go(page, "browse")
    page.wait_for_selector("#tab-browse .grid .picture")
    page.press("#tab-browse .grid .picture >> nth=0", "Enter")
    page.wait_for_selector("dialog.viewer .path code")
    path = Path(page.inner_text("dialog.viewer .path code"))
    assert path.is_relative_to(photos)
    assert "pixels" in page.inner_text("dialog.viewer dl")
    box = page.locator("dialog.viewer").bounding_box()
    assert box is not None
    assert box["width"] == page.viewport_size["width"]  # type: ignore[index]
    for key, place in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        page.keyboard.press(key)
        until(page, "n => document.querySelector('.position').textContent.startsWith(`${n} of`)", place)
    width = "document.querySelector('dialog.viewer .frame img').getBoundingClientRect().width"
    until(page, f"{width} > 10 && !document.querySelector('dialog.viewer .frame.waiting')")
    before = page.evaluate(width)
    page.keyboard.press("+")
    assert page.evaluate(width) > 1.4 * before
    page.keyboard.press("0")
    assert page.evaluate(width) == before
    page.keyboard.press("m")
    until(page, "!document.querySelector('dialog.viewer .frame img').src.includes('original')")
    page.keyboard.press("m")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog')")


def test_back_closes_the_window_of_a_picture_and_nothing_else(page: Page) -> None:
    go(page, "browse")
    page.fill("#tab-browse input[type=search]", "forest")
    tile = "#tab-browse .grid .picture >> nth=0"
    until(page, "document.querySelectorAll('#tab-browse .grid .picture').length === 16")
    behind, entries = page.url, page.evaluate("history.length")
    page.press(tile, "Enter")
    page.wait_for_selector("dialog.viewer")
    page.evaluate("history.back()")
    until(page, "!document.querySelector('dialog')")
    assert page.url == behind
    assert page.is_visible("#tab-browse")
    for _ in range(3):  # closed by itself, it leaves no entry that Back would go through
        page.press(tile, "Enter")
        page.wait_for_selector("dialog.viewer")
        page.keyboard.press("Escape")
        until(page, "!document.querySelector('dialog') && history.state === null")
    assert page.evaluate("history.length") <= entries + 1
    page.press(tile, "Enter")
    page.click("dialog.viewer >> text=Find similar")
    page.wait_for_selector("#tab-search:not([hidden])")
    page.evaluate("history.back()")
    page.wait_for_selector("#tab-browse:not([hidden])")
    assert page.url == behind
    page.fill("#tab-browse input[type=search]", "")


def test_a_reload_opens_the_window_again_and_back_closes_it(page: Page) -> None:
    go(page, "browse")
    until(page, "document.querySelectorAll('#tab-browse .grid .picture').length === 48")
    behind = page.url
    page.press("#tab-browse .grid .picture >> nth=3", "Enter")
    page.wait_for_selector("dialog.viewer >> text=4 of 48")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("dialog.viewer >> text=5 of 48")
    name = page.inner_text("#viewer-title")
    shown = page.get_attribute("#tab-browse .grid .picture >> nth=4", "data-picture")
    until(page, "shown => location.hash.endsWith('open=' + shown)", shown)
    page.reload()
    page.wait_for_selector("dialog.viewer >> text=5 of 48")  # with its place in the grid
    assert page.inner_text("#viewer-title") == name
    address = page.url
    page.evaluate("history.back()")
    until(page, "!document.querySelector('dialog')")
    assert page.url == behind
    page.evaluate("history.forward()")
    page.wait_for_selector("dialog.viewer >> text=5 of 48")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog')")
    other = page.context.new_page()  # from a bookmark: no page behind it to go back to
    other.goto(address)
    other.wait_for_selector("dialog.viewer >> text=5 of 48")
    other.keyboard.press("Escape")
    until(other, "!document.querySelector('dialog')")
    assert other.url == behind
    other.close()


def test_the_selection_survives_a_reload(page: Page) -> None:
    go(page, "browse")
    tile = "#tab-browse .grid .picture"
    page.click(f"{tile} >> nth=2", modifiers=["Control"])
    with page.expect_response("**/api/selections"):
        page.click(f"{tile} >> nth=5", modifiers=["Shift"])
    until(page, "sessionStorage.getItem('selection')")
    page.wait_for_timeout(1000)  # that may be of the first picture alone
    chosen = "[...document.querySelectorAll('#tab-browse .chosen')].map((one) => one.dataset.picture).join()"
    before = page.evaluate(chosen)
    page.reload()
    until(page, f"before => {chosen} === before", before)
    assert page.inner_text(".selection-bar strong") == "4 selected"
    page.click(".selection-bar >> text=Clear")
    until(page, "!sessionStorage.getItem('selection')")
    page.reload()
    page.wait_for_selector(tile)
    assert page.is_hidden(".selection-bar")


def test_while_some_are_selected_a_press_selects_and_the_arrows_open(page: Page) -> None:
    go(page, "browse")
    tile = "#tab-browse .grid .picture"
    page.click(f"{tile} >> nth=1")
    page.wait_for_selector("dialog.viewer >> text=2 of 48")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog')")
    page.click(f"{tile} >> nth=1", modifiers=["Control"])
    page.click(f"{tile} >> nth=0")
    page.wait_for_selector(".selection-bar >> text=2 selected")
    page.hover(f"{tile} >> nth=3")
    page.click(f"{tile} >> nth=3 >> .look")
    page.wait_for_selector("dialog.viewer >> text=4 of 48")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog')")
    page.click(".selection-bar >> text=Clear")


def test_an_archive_that_lacks_files_says_so(page: Page) -> None:
    go(page, "browse")
    page.click("#tab-browse .grid .picture >> nth=0", modifiers=["Control"])
    page.route("**/api/selections/*/files", lambda route: route.fulfill(json={"files": 3, "missing": 1}))
    assert saved(page, ".selection-bar >> text=Zip").startswith(b"PK")
    until(page, "document.querySelector('#status').textContent.startsWith('1 file of 3 is gone')")
    page.unroute("**/api/selections/*/files")
    page.click(".selection-bar >> text=Clear")


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("browse?sort=bad&split=test", "sort=bad"),
        ("map?layout=bad", "layout=bad"),
        ("search?k=1000", "k=1000"),
        ("duplicates?keep=none", "keep=none"),
        ("outliers?by=nobody", "by=nobody"),
        ("sliders?at=x", "at=x"),
        ("morph?x=7", "x=7"),
        ("generate?seed=-1", "seed=-1"),
        ("nowhere", "no tab “nowhere”"),
    ],
)
def test_what_an_address_asks_for_and_there_is_not_is_named_and_left_out(
    page: Page, served: Served, address: str, named: str
) -> None:
    page.goto("about:blank")
    page.goto(f"http://127.0.0.1:{served.port}/#{address}")
    until(page, "named => document.querySelector('#status')?.textContent.includes(named)", named)
    assert not page.locator("section:not([hidden]) .grid .notice").count()
    until(page, "named => !location.hash.includes(named)", named)


def test_sliders_a_morph_samples_and_neighbours_come_back_from_their_address(
    page: Page, served: Served
) -> None:
    def at(hash_: str) -> None:
        page.goto("about:blank")
        page.goto(f"http://127.0.0.1:{served.port}/#{hash_}")

    at("sliders?picture=i3&at=0%2C1.5&along=1&across=2")
    until(page, "document.querySelectorAll('.slider-list input')[1]?.value === '1.5'")
    slide(page, ".slider-list input >> nth=0", -2)
    page.dispatch_event(".slider-list input >> nth=0", "change")
    until(page, "decodeURIComponent(location.hash).includes('at=-2,1.5')")
    page.reload()
    until(page, "document.querySelectorAll('.slider-list input')[0]?.value === '-2'")
    assert page.locator(".slider-list input >> nth=1").input_value() == "1.5"

    at("morph?pictures=i4%2Ci9%2Ci2&x=0.2&interpolation=spherical")
    until(page, "document.querySelectorAll('.slots li').length === 3")
    assert page.locator("#tab-morph .x").input_value() == "0.2"
    assert page.get_by_label("Interpolation").input_value() == "spherical"
    page.click(".slots .remove >> nth=1")
    until(page, "decodeURIComponent(location.hash).includes('pictures=i4,i2&')")

    at("generate?seed=77&temperature=0.5&count=12")
    until(page, "document.querySelectorAll('#tab-generate .grid .picture').length === 12")
    assert page.locator("#tab-generate input[type=number]").input_value() == "77"
    shown = page.get_attribute("#tab-generate .grid img >> nth=0", "alt")
    assert shown == "sample 77-1"

    at("search?picture=i7&k=8&distance=l2")
    until(page, "document.querySelectorAll('#tab-search .grid .picture').length === 8")
    page.wait_for_selector("text=0 means identical")
    assert "k=8" in page.url
    assert "distance=l2" in page.url


def test_the_window_of_a_picture_leads_through_all_and_leaves_the_grid_alone(page: Page) -> None:
    go(page, "browse")
    page.route(
        "**/api/browse?*limit=200*",
        lambda route: route.continue_(url=route.request.url.replace("limit=200", "limit=12")),
    )
    page.fill("#tab-browse [type=search]", "png")
    until(page, "document.querySelectorAll('#tab-browse .grid .picture').length % 48 >= 12")
    loaded = page.locator("#tab-browse .grid .picture").count()
    page.press(f"#tab-browse .grid .picture >> nth={loaded - 1}", "Enter")
    page.wait_for_selector(f"text={loaded} of 48")
    page.keyboard.press("ArrowRight")  # to one that is not loaded yet
    page.wait_for_selector(f"text={loaded + 1} of 48")
    page.click("dialog.viewer .near .picture >> nth=2")
    page.wait_for_selector("text=3 of 12")
    page.keyboard.press("Escape")
    page.unroute("**/api/browse?*limit=200*")
    page.click("#tab-browse .grid .picture >> nth=0", modifiers=["Control"])
    page.click("#tab-browse .grid .picture >> nth=12", modifiers=["Shift"])
    page.wait_for_selector("text=13 selected")
    page.keyboard.press("Escape")
    page.fill("#tab-browse [type=search]", "")


def test_the_keys_are_listed_and_the_colours_chosen(page: Page) -> None:
    go(page, "browse")
    page.keyboard.press("?")
    page.wait_for_selector("dialog >> text=find by name")
    page.keyboard.press("Escape")
    shade = "getComputedStyle(document.body).backgroundColor"
    system = page.evaluate(shade)
    page.click("[aria-label^=Colours]")  # dark, where the system is light
    assert page.evaluate(shade) != system
    page.reload()
    page.wait_for_selector("#tabs a")
    assert page.evaluate(shade) != system
    page.click("[aria-label^=Colours]")  # light
    assert page.evaluate(shade) == system
    page.click("[aria-label^=Colours]")  # as the system
    assert page.evaluate(shade) == system


@pytest.mark.parametrize("address", ["main", "toString", "nothing"])
def test_an_address_that_names_no_tab_shows_the_first(page: Page, served: Served, address: str) -> None:
    page.goto("about:blank")
    page.goto(f"http://127.0.0.1:{served.port}/#{address}")
    page.wait_for_selector("#tab-overview:not([hidden]) h1")


@pytest.mark.parametrize("tab", TABS)
def test_nothing_is_wider_than_the_window_and_axe_finds_no_fault(page: Page, tab: str) -> None:
    go(page, tab)
    page.wait_for_load_state("load")
    page.evaluate("document.querySelector('#status').classList.remove('shown')")  # fading, it has no contrast
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.evaluate(axe_core.AXE_SCRIPT)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        found = page.evaluate("axe.run({resultTypes: ['violations']})")
        assert not [
            f"{fault['id']}: {fault['help']}: {[node['html'] for node in fault['nodes'][:3]]}"
            for fault in found["violations"]
        ], scheme
    page.emulate_media(color_scheme="light", reduced_motion="no-preference")


def test_the_tabs_are_reached_and_opened_by_keyboard(page: Page) -> None:
    fresh = page.context.new_page()
    fresh.goto(page.url.split("#")[0])
    fresh.wait_for_selector("#tabs a")
    fresh.keyboard.press("Tab")
    assert fresh.evaluate("document.activeElement.textContent") == "Skip to the content"
    for _ in range(3):
        fresh.keyboard.press("Tab")
    assert fresh.evaluate("document.activeElement.textContent") == "Map"
    fresh.keyboard.press("Enter")
    fresh.wait_for_selector("#tab-map:not([hidden])")
    fresh.close()


@pytest.mark.parametrize("tab", ["search", "restore", "morph"])
def test_what_is_given_while_the_first_pictures_come_stays(
    page: Page, served: Served, tab: str, photos: Path, tmp_path: Path
) -> None:
    given = [tmp_path / f"given-{number}.png" for number in range(4 if tab == "morph" else 1)]
    for path, photo in zip(given, sorted(photos.rglob("*.png")), strict=False):
        path.write_bytes(photo.read_bytes())
    shown = {"search": ".asked h2", "restore": ".restore-whole h2", "morph": ".slots"}[tab]
    late: list[Route] = []
    page.goto("about:blank")
    page.route("**/api/pictures?*", lambda route: late.append(route))
    page.goto(f"http://127.0.0.1:{served.port}/#{tab}")
    with page.expect_request("**/api/pictures?*"):
        page.reload()
    page.set_input_files(f"#tab-{tab} input[type=file]", given)
    names = """s => [...document.querySelectorAll(s)].flatMap((e) =>
        e.matches('ol') ? [...e.querySelectorAll('img')].map((i) => i.alt) : [e.textContent])"""
    until(page, f"s => ({names})(s).length > 0", f"#tab-{tab} {shown}")
    for route in late:
        with contextlib.suppress(playwright.Error):  # the page has stopped asking
            route.continue_()
    page.wait_for_timeout(300)
    page.unroute("**/api/pictures?*")
    assert page.evaluate(names, f"#tab-{tab} {shown}") == [path.name for path in given]


def test_a_hidden_page_listens_to_no_run(page: Page) -> None:
    hide = """hidden => {
        Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
        document.dispatchEvent(new Event('visibilitychange'));
    }"""
    go(page, "overview")
    page.locator(".chart summary").first.click()
    page.evaluate(hide, True)
    asked: list[str] = []
    page.on("request", lambda sent: "/api/run/state" in sent.url and asked.append(sent.url))
    page.wait_for_timeout(1300)
    assert not asked
    with page.expect_request("**/api/run/state?*"):
        page.evaluate(hide, False)
    page.wait_for_timeout(300)
    assert page.locator(".chart details").first.get_attribute("open") is not None


def test_quick_keys_wait_for_the_next_part_of_the_queue(page: Page) -> None:
    """The queue comes in parts of four, each late; every key is about the image after the last one."""
    decided: list[str] = []

    def shorter(route: Route) -> None:
        page.wait_for_timeout(100)
        route.continue_(url=route.request.url.replace("limit=50", "limit=4"))

    def press(key: str, times: int) -> None:
        page.evaluate(
            """([key, times]) => {
                for (let i = 0; i < times; i++)
                    document.body.dispatchEvent(new KeyboardEvent('keydown', { bubbles: true, key }));
            }""",
            [key, times],
        )

    page.route("**/api/outliers?*", shorter)
    page.on(
        "request",
        lambda sent: sent.url.endswith("/api/decisions") and decided.append(sent.post_data_json["picture"]),
    )
    go(page, "overview")
    page.reload()
    go(page, "outliers")
    page.wait_for_selector(".review h2")
    press("k", 11)
    until(page, "document.querySelector('.review .facts')?.textContent.startsWith('12 of')")
    until(page, "document.querySelector('.counts').textContent.startsWith('11 kept')")
    page.unroute("**/api/outliers?*")
    assert len(set(decided)) == 11
    assert page.locator(".strip .keep").count() == 11
    for _ in range(11):
        with page.expect_response("**/undo"):
            press("u", 1)


def test_the_seed_that_is_shown_is_used_and_variations_come_into_view(page: Page) -> None:
    go(page, "generate")
    seed = "#tab-generate input[type=number]"
    with page.expect_request("**/api/generate") as asked:
        page.fill(seed, "1000000000")
        page.press(seed, "Enter")
    assert asked.value.post_data_json["seed"] == int(page.input_value(seed)) == 999_999
    # A press on a picture that others replace before it is released is a click on none.
    page.wait_for_selector("#tab-generate [aria-busy=true]", state="detached")
    page.locator("#tab-generate .grid .picture").last.click()
    page.click("dialog >> text=Vary")
    page.wait_for_selector("section[aria-label=Variations] .grid .picture")
    place = page.eval_on_selector("section[aria-label=Variations]", "e => e.getBoundingClientRect().top")
    assert 0 <= place < page.viewport_size["height"] / 2  # type: ignore[index]


def test_what_is_dropped_and_no_image_is_named_and_the_rest_is_taken(page: Page, photos: Path) -> None:
    go(page, "search")
    content = list(min(photos.rglob("*.png")).read_bytes())
    page.evaluate(
        """content => {
            const held = new DataTransfer();
            held.items.add(new File(['words'], 'notes.txt', {type: 'text/plain'}));
            held.items.add(new File([new Uint8Array(content)], 'untyped.ppm'));
            dispatchEvent(Object.assign(new Event('drop', {cancelable: true}), {dataTransfer: held}));
        }""",
        content,
    )
    until(page, "document.querySelector('#status').textContent === 'notes.txt is not an image.'")
    until(page, "document.querySelector('.asked h2')?.textContent === 'untyped.ppm'")


def test_uploads_beyond_the_allowance_wait_their_turn(page: Page, served: Served, photos: Path) -> None:
    go(page, "search")
    served.app.state.uploads.allowance = Allowance(1, 1)
    page.set_input_files("#tab-search input[type=file]", min(photos.rglob("*.png")))
    until(page, "document.querySelector('#status').textContent === 'Image read.'")
    with page.expect_response(lambda answer: answer.status == 429):
        page.set_input_files("#tab-search input[type=file]", min(photos.rglob("*.png")))
    until(page, "document.querySelector('#status').textContent === 'Image read.'")
    served.app.state.uploads.allowance = Allowance()


def test_a_command_is_selected_where_there_is_no_clipboard(page: Page) -> None:
    go(page, "overview")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })")
    page.locator(".command button").first.click()
    text = page.locator(".command code").first.inner_text()
    until(page, "text => getSelection().toString() === text", text)


def test_saving_a_picture_that_is_gone_says_so(page: Page) -> None:
    go(page, "search")
    page.wait_for_selector(".asked .query")
    page.click(".asked .query")
    page.route("**/images/*", lambda route: route.fulfill(status=422, json={"error": "It is gone."}))
    page.click("dialog >> text=Save PNG")
    page.wait_for_selector("dialog .notice >> text=It is gone.")
    page.unroute("**/images/*")
    page.click("dialog .close")


def test_a_tab_that_is_opened_from_a_window_gets_the_keyboard(page: Page) -> None:
    go(page, "search")
    page.wait_for_selector(".asked .query")
    page.press(".asked .query", "Enter")
    page.press("dialog >> text=Restore", "Enter")
    page.wait_for_selector("#tab-restore:not([hidden]) h1")
    assert focused(page) == "Restore"


def test_seven_windows_on_the_overview_leave_room_for_an_eighth(browser: Browser, served: Served) -> None:
    """A browser opens six connections to one host."""
    context = browser.new_context()
    pages = [context.new_page() for _ in range(8)]
    pages[0].goto(served.entrance)
    for page in pages[1:]:
        page.goto(f"http://127.0.0.1:{served.port}/")
    for page in pages:
        page.wait_for_selector(".chart svg")
        page.wait_for_selector(".mosaic .picture")
    context.close()


def test_a_tab_without_its_model_leads_to_the_tab_that_makes_one(browser: Browser, photos: Path) -> None:
    context = browser.new_context()
    with serving(open_workspace(), photos) as served, watched(context.new_page(), served) as page:
        page.goto(served.entrance)
        page.wait_for_selector("#tabs a")
        for tab in ("morph", "sliders", "generate", "search", "map", "browse"):
            go(page, tab)
            page.click(f"#tab-{tab} .notice >> text=choose the folder here")
            page.wait_for_selector("#tab-start:not([hidden]) h1")
        context.close()


@pytest.mark.parametrize("has_index", [False, True], ids=["alone", "with an index"])
def test_a_model_without_its_run_shows_what_to_do_and_asks_for_nothing_that_cannot_be(
    browser: Browser, run_folder: Path, index_folder: Path, photos: Path, tmp_path: Path, has_index: bool
) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes((run_folder / model.name).read_bytes())
    lacking = {"overview", "start"}
    if not has_index:
        lacking |= {"browse", "duplicates", "map", "outliers", "search", "sliders"}
    context = browser.new_context()
    with (
        serving(open_workspace(model, index_folder if has_index else None)) as served,
        watched(context.new_page(), served) as page,
    ):
        page.goto(served.entrance)
        page.wait_for_selector("#tabs a")
        for tab in TABS:
            go(page, tab)
            page.wait_for_load_state("networkidle")
            assert (page.locator(f"#tab-{tab} .notice .command").count() > 0) == (tab in lacking), tab
        go(page, "overview")
        drop(page, sorted(photos.rglob("*.png"))[9], "given.png")
        taking = "search" if has_index else "restore"
        page.wait_for_selector(f"#tab-{taking}:not([hidden]) h2 >> text=given.png")
        context.close()
