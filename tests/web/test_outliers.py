"""The queue of Outliers in a real browser: windows that decide at once, and files that are gone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .test_page import go, page, until  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route


def test_two_windows_that_decide_at_once_end_with_what_is_written(page: Page) -> None:  # noqa: F811
    go(page, "outliers")
    page.click(".strip button >> nth=0")
    name = page.inner_text(".review h2")
    other = page.context.new_page()
    held: list[Route] = []
    other.route("**/api/decisions", lambda route: held.append(route))
    asked: list[str] = []
    other.on("request", lambda sent: asked.append(f"{sent.method} {sent.url}"))
    other.goto(page.url)
    other.wait_for_selector(".review h2")
    until(other, "name => document.querySelector('.review h2').textContent === name", name)
    other.keyboard.press("k")  # shown there, and on its way
    until(other, "old => document.querySelector('.review h2').textContent !== old", name)
    for _ in range(1200):
        if held:
            break
        other.wait_for_timeout(50)
    assert held, asked
    page.keyboard.press("d")
    until(page, "document.querySelector('.counts').textContent.startsWith('0 kept, 1 dropped')")
    other.wait_for_timeout(300)  # the other window has heard of it
    held[0].continue_()
    for window in (page, other):
        until(window, "document.querySelector('.counts').textContent.startsWith('1 kept, 0 dropped')")
        until(window, "document.querySelector('.strip button').classList.contains('keep')")
        assert not window.locator(".strip .drop").count()
    other.close()
    for left in ("0 kept, 1", "0 kept, 0"):
        page.keyboard.press("u")
        until(page, "t => document.querySelector('.counts').textContent.startsWith(t)", left)
    until(page, "name => document.querySelector('.review h2').textContent === name", name)


def test_a_file_that_is_gone_is_said_in_the_queue_and_a_message_goes_with_its_tab(
    page: Page,  # noqa: F811
    photos: Path,
) -> None:
    go(page, "outliers")
    page.click(".strip button >> nth=1")
    path = next(photos.rglob(page.inner_text(".review h2")))
    path.rename(path.with_suffix(".away"))
    try:
        page.click(".strip button >> nth=0")
        page.click(".strip button >> nth=1")
        page.wait_for_selector(".review >> text=The file is gone")
    finally:
        path.with_suffix(".away").rename(path)
    page.click(".strip button >> nth=0")
    until(page, "!document.querySelector('.review .notice')")
    page.click("text=Select the flagged")
    page.wait_for_selector(".status.shown")
    page.click(".selection-bar >> text=Clear")
    page.wait_for_timeout(600)
    go(page, "browse")
    assert not page.locator(".status.shown").count()
