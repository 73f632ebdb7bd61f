"""The page as a person uses it, in a real browser: every tab, on a desk and on a phone, and by keyboard."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autoencode.interfaces.web.uploads import Allowance

from .conftest import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

DESK, PHONE = (1280, 860), (390, 844)
TABS = ("overview", "search", "morph", "generate", "restore", "outliers", "map")

axe_core = pytest.importorskip("axe_playwright_python.base")
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module", params=[DESK, PHONE], ids=["desk", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, served: Served) -> Iterator[Page]:
    """The page, opened by the address that is printed; it stays open from test to test."""
    width, height = request.param
    context = browser.new_context(
        viewport={"width": width, "height": height}, has_touch=width < 500, accept_downloads=True
    )
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    complaints: list[str] = []
    elsewhere: list[str] = []
    # A refused file is told of by the browser, too; any other complaint is a fault of the page.
    opened.on(
        "console",
        lambda message: (
            message.type == "error"
            and not re.search("422|429", message.text)
            and complaints.append(message.text)
        ),
    )
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    own = f"http://127.0.0.1:{served.port}/"
    opened.on("request", lambda sent: sent.url.startswith((own, "blob:")) or elsewhere.append(sent.url))
    opened.goto(served.entrance)
    yield opened
    context.close()
    assert not complaints
    assert not elsewhere


def go(page: Page, tab: str) -> None:
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


def slide(page: Page, selector: str, value: float) -> None:
    page.eval_on_selector(
        selector, "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})) }", value
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
    assert page.locator(".pairs .picture").count() == 8


def test_search_goes_on_from_image_to_image_and_saves_a_table(page: Page, photos: Path) -> None:
    go(page, "search")
    page.set_input_files("#tab-search input[type=file]", sorted(photos.rglob("*.png"))[4])
    until(page, "document.querySelector('.asked h2')?.textContent.endsWith('.png')")
    first = page.locator("#tab-search .grid .picture").first
    until(page, "document.querySelector('#tab-search .caption')?.textContent === '1.000'")
    before = page.url
    first.click()
    page.wait_for_url(lambda url: url != before)
    page.select_option("#tab-search select >> nth=0", "8")
    until(page, "document.querySelectorAll('#tab-search .grid .picture').length === 8")
    page.select_option("#tab-search select >> nth=1", "l2")
    page.wait_for_selector("text=0 is the same")
    assert saved(page, "text=Save CSV").decode().startswith("path,score,label\n")


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
        until(page, "name => document.querySelector('.asked h2').textContent === name", f"{kind}.png")


def test_a_file_that_is_no_image_is_refused_in_words(page: Page, tmp_path: Path) -> None:
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


def test_four_pictures_make_a_square(page: Page) -> None:
    go(page, "morph")
    for count in (3, 4):
        page.click("#tab-morph >> text=Pick one of yours")
        page.click("dialog .picture >> nth=0")
        until(page, "n => document.querySelectorAll('.slots li').length === n", count)
    before = source(page, ".result")
    box = page.locator(".pad").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    until(page, "document.querySelector('.result').alt.includes('90 % across, 10 % down')")
    assert source(page, ".result") != before
    page.click(".slots .remove >> nth=0")
    page.click(".slots .remove >> nth=0")
    assert page.locator(".between-ends").count() == 1


def test_a_sample_shows_its_neighbours_is_varied_and_morphed(page: Page) -> None:
    go(page, "generate")
    page.wait_for_selector("#tab-generate .grid .picture")
    before = source(page, "#tab-generate .grid .picture img")
    page.click("text=Draw others")
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
    assert saved(page, "dialog >> text=Save PNG").startswith(b"\x89PNG")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog')")


def test_restoring_has_a_line_between_before_and_after(page: Page, photos: Path) -> None:
    go(page, "restore")
    page.wait_for_selector(".comparison")
    page.select_option("#tab-restore select", "gaussian:0.3")
    page.wait_for_selector("text=PSNR before")
    slide(page, ".comparison input", 80)
    assert page.eval_on_selector(".comparison .upper", "e => e.style.clipPath") == "inset(0px 20% 0px 0px)"
    page.click("summary >> text=Compare with a clean version")
    page.set_input_files("#tab-restore details input[type=file]", sorted(photos.rglob("*.png"))[0])
    page.wait_for_selector("text=Compare with itself again")


def test_outliers_are_decided_by_keys_and_undone(page: Page, run_folder: Path) -> None:
    go(page, "outliers")
    page.wait_for_selector(".review .sides img")
    first = page.inner_text(".review h2")
    page.keyboard.press("h")
    assert page.is_visible(".heat")
    page.keyboard.press("h")
    assert page.is_hidden(".heat")
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
    assert "At most 50.00 %" in page.inner_text(".threshold p")
    page.locator(".threshold input").blur()


def test_the_map_moves_by_keyboard_and_lists_what_is_drawn_around(page: Page, photos: Path) -> None:
    go(page, "map")
    page.wait_for_selector(".map-stage canvas")
    page.get_by_label("Colour by").select_option("score")
    page.wait_for_selector(".scale")
    page.get_by_label("Colour by").select_option("label")
    assert page.inner_text(".legend").split() == ["coast", "forest", "night"]
    page.locator(".map-stage").scroll_into_view_if_needed()
    page.click("text=Draw around some")
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
    files = saved(page, "text=Save the list of files").decode().splitlines()
    assert len(files) == chosen
    assert all(Path(path).is_relative_to(photos) and Path(path).is_file() for path in files)
    page.click("text=Clear")
    page.focus(".map-stage canvas")
    for key in ("+", "+", "+", "ArrowLeft", "ArrowRight", "0"):
        page.keyboard.press(key)
    page.click("text=Choose what is seen")
    page.wait_for_selector(".chosen .picture")
    page.click(".chosen .picture >> nth=0")
    page.wait_for_selector("dialog .near .picture")
    page.keyboard.press("Escape")


def test_the_map_by_neighbours_comes_when_it_is_done(page: Page) -> None:
    pytest.importorskip("umap", reason="needs umap-learn, of the extra map")
    go(page, "map")
    page.get_by_label("Lay out by").select_option("umap")
    page.wait_for_selector("text=Images that are alike lie together", timeout=120_000)
    page.get_by_label("Lay out by").select_option("pca")
    page.wait_for_selector("text=of the variance of the codes")


@pytest.mark.parametrize("address", ["main", "toString", "nothing"])
def test_an_address_that_names_no_tab_shows_the_first(page: Page, served: Served, address: str) -> None:
    page.goto("about:blank")
    page.goto(f"http://127.0.0.1:{served.port}/#{address}")
    page.wait_for_selector("#tab-overview:not([hidden]) h1")


@pytest.mark.parametrize("tab", TABS)
def test_nothing_is_wider_than_the_window_and_axe_finds_no_serious_fault(page: Page, tab: str) -> None:
    go(page, tab)
    page.wait_for_load_state("load")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.evaluate(axe_core.AXE_SCRIPT)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")
    serious = [
        f"{fault['id']}: {fault['help']}: {[node['html'] for node in fault['nodes'][:3]]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert not serious


def test_the_tabs_are_reached_and_opened_by_keyboard(page: Page) -> None:
    fresh = page.context.new_page()
    fresh.goto(page.url.split("#")[0])
    fresh.wait_for_selector("#tabs a")
    fresh.keyboard.press("Tab")
    assert fresh.evaluate("document.activeElement.textContent") == "Skip to the content"
    for _ in range(3):
        fresh.keyboard.press("Tab")
    assert fresh.evaluate("document.activeElement.textContent") == "Morph"
    fresh.keyboard.press("Enter")
    fresh.wait_for_selector("#tab-morph:not([hidden])")
    fresh.close()


@pytest.mark.parametrize("tab", ["search", "restore", "morph"])
def test_what_is_given_while_the_first_pictures_come_stays(
    page: Page, served: Served, tab: str, photos: Path, tmp_path: Path
) -> None:
    given = [tmp_path / f"given-{number}.png" for number in range(4 if tab == "morph" else 1)]
    for path, photo in zip(given, sorted(photos.rglob("*.png")), strict=False):
        path.write_bytes(photo.read_bytes())
    shown = {"search": ".asked h2", "restore": ".restore h2", "morph": ".slots"}[tab]
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
    with page.expect_request("**/api/run/events"):
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
    with page.expect_request("**/api/generate", timeout=5000) as asked:
        page.fill(seed, "1000000000")
        page.press(seed, "Enter")
    assert asked.value.post_data_json["seed"] == int(page.input_value(seed)) == 999_999
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
    until(page, "document.querySelector('#status').textContent === 'notes.txt is no image.'")
    until(page, "document.querySelector('.asked h2')?.textContent === 'untyped.ppm'")


def test_uploads_beyond_the_allowance_wait_their_turn(page: Page, served: Served, photos: Path) -> None:
    go(page, "search")
    served.workspace.allowance = Allowance(1, 1)
    page.set_input_files("#tab-search input[type=file]", min(photos.rglob("*.png")))
    until(page, "document.querySelector('#status').textContent === 'Image read.'")
    with page.expect_response(lambda answer: answer.status == 429):
        page.set_input_files("#tab-search input[type=file]", min(photos.rglob("*.png")))
    until(page, "document.querySelector('#status').textContent === 'Image read.'")
    served.workspace.allowance = Allowance()


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
