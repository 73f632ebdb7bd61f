"""The figures of the local page in the documents, drawn anew by a browser.

    python benchmarks/app_figures.py RUN INDEX --out docs/figures

Each is what an address of the page shows, in a window of 1280x800 pixels; the one of the README has four of
them. Look at them before they are committed. Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from app_load import started

WINDOW, WIDTH = {"width": 1280, "height": 800}, 1024
TILE, GAP = (640, 400), 8  # of the figure of the README
FLAGS = ["--no-sandbox", "--disable-gpu"]
PATIENCE = 600_000  # milliseconds: the first outlier scores of a run


def _select_three(page: Page) -> None:
    for place in (2, 3, 8):
        page.click(f"#tab-browse .grid .picture >> nth={place}", modifiers=["Control"])


def _nothing(_: Page) -> None:
    pass


def _clear(page: Page) -> None:
    page.click(".selection-bar >> text=Clear")


class Figure(NamedTuple):
    """A figure: its name, the address after "#", what is there once it is drawn, and what to do before."""

    name: str
    address: str
    drawn: str
    prepare: Callable[[Page], None] = _nothing
    is_dark: bool = False
    after: Callable[[Page], None] = _nothing


FIGURES = (
    # First, as the overview counts what stands out once it is known.
    Figure("app-outliers", "outliers?by=model", ".review .near .picture"),
    Figure("overview", "overview", ".groups .picture >> nth=11"),
    Figure("app-map", "map?layout=umap&colour=group", "text=Similar pictures lie together"),
    Figure(
        "app-browse", "browse", "#tab-browse .grid .picture >> nth=20", prepare=_select_three, after=_clear
    ),
    Figure("app-search", "search?picture=i300", "#tab-search .grid .picture", is_dark=True),
    Figure("app-morph", "morph?pictures=i3,i12,i40,i77&x=0.35&y=0.4", ".pad .dot"),
    Figure("app-sliders", "sliders?picture=i12&at=0.8,-1&along=0&across=1", ".square-of-steps"),
)
README = ("overview", "app-map", "app-browse", "app-search")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("index")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--chromium", help="the browser; the default is that of playwright")
    asked = parser.parse_args()
    process, port, token = started(asked.run, asked.index)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=asked.chromium, args=FLAGS)
            page = browser.new_page(viewport=WINDOW)  # type: ignore[arg-type]
            page.set_default_timeout(PATIENCE)
            page.goto(f"http://127.0.0.1:{port}/?token={token}")
            shots = {figure.name: _shot(page, figure) for figure in FIGURES}
            browser.close()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
    for name, shot in shots.items():
        if name.startswith("app-"):
            height = round(shot.height * WIDTH / shot.width)
            _save(asked.out / f"{name}.webp", shot.resize((WIDTH, height), Image.Resampling.LANCZOS))
    together = Image.new("RGB", (2 * TILE[0] + GAP, 2 * TILE[1] + GAP), "white")
    for place, name in enumerate(README):
        tile = shots[name].resize(TILE, Image.Resampling.LANCZOS)
        together.paste(tile, (place % 2 * (TILE[0] + GAP), place // 2 * (TILE[1] + GAP)))
    _save(asked.out / "app.webp", together)


def _shot(page: Page, figure: Figure) -> Image.Image:
    page.emulate_media(color_scheme="dark" if figure.is_dark else "light")
    page.evaluate("hash => { location.hash = hash; }", figure.address)
    page.wait_for_selector(figure.drawn)
    figure.prepare(page)
    page.mouse.move(1, 1)  # over no picture
    page.wait_for_load_state("networkidle")
    page.evaluate("document.querySelector('#status').classList.remove('shown')")
    page.wait_for_timeout(1500)  # what glides has arrived
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    figure.after(page)
    return shot


def _save(path: Path, picture: Image.Image) -> None:
    picture.save(path, "WEBP", quality=82, method=6)
    print(f"{path}: {picture.width}x{picture.height}, {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
