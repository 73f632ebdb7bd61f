"""The page: self-contained, escaped, accessible."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoencode import ConfigError
from autoencode.metrics.images import MEASURES
from autoencode.report.page import (
    Command,
    Section,
    Table,
    Text,
    evaluation_blocks,
    figure_of,
    render,
    write_page,
)


class Outline(HTMLParser):
    """The images, links, targets and scripts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.scripts += tag == "script"
        if tag == "img":
            self.images.append(values)
        self.addresses += [value for key, value in attrs if key in ("src", "href") and value]
        if values.get("id"):
            self.ids.add(values["id"])


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    return found


def test_nothing_is_loaded_from_elsewhere_and_every_link_leads_somewhere(pixels: np.ndarray) -> None:
    sections = [
        Section("First part", [figure_of(pixels, "Figure 1", "Noise.")]),
        Section("Second", [Text("x")]),
    ]
    found = outline(render("Page", "lead", sections))
    assert found.scripts == 0
    for address in found.addresses:
        assert address.startswith(("data:", "#"))
    assert {address[1:] for address in found.addresses if address.startswith("#")} == found.ids


def test_a_figure_is_the_picture_with_its_size_and_a_text_for_those_who_cannot_see_it(
    pixels: np.ndarray,
) -> None:
    [image] = outline(
        render("P", "l", [Section("S", [figure_of(pixels, "Figure 3", "What is seen.")])])
    ).images
    content = base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(content)) as opened:
        np.testing.assert_array_equal(np.asarray(opened), pixels)
    assert (image["width"], image["height"]) == ("30", "20")
    assert image["alt"] == "Figure 3: What is seen."


def test_texts_are_escaped_wherever_they_stand(pixels: np.ndarray) -> None:
    evil = '"><script>alert(1)</script>&'
    blocks = [Text(evil), Command(evil), Table((evil,), [(evil,)], evil), figure_of(pixels, evil, evil)]
    html = render(evil, evil, [Section(evil, blocks)])
    assert "<script" not in html
    assert outline(html).scripts == 0
    assert html.count("&lt;script&gt;") >= 10


def test_a_table_has_headings_for_columns_and_rows() -> None:
    html = render("P", "l", [Section("S", [Table(("a", "b"), [("row", "1")])])])
    assert re.search(r'<th scope="col">a</th><th scope="col">b</th>', html)
    assert '<th scope="row">row</th><td>1</td>' in html


def test_rows_that_do_not_fit_their_headings_are_rejected() -> None:
    with pytest.raises(ConfigError, match="2 cells"):
        Table(("a", "b"), [("only one",)])


def test_a_name_of_any_bytes_can_be_shown(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "run \udcff", "lead", [])
    assert "run ?" in (tmp_path / "page.html").read_text(encoding="utf-8")


def measured(active: int) -> dict[str, Any]:
    quality = {name: {"value": 0.5, "interval": None} for name in MEASURES}
    code = {"bits_per_dimension": None, "kl_nats": None, "active_units": active, "prior_gap_nats": None}
    counts = {"images": 1, "split": "test", "pca_images": 4, "pca_components": 3, "code_size": 256}
    return {
        **counts,
        "reconstruction": quality,
        "sharp": None,
        "pca": quality,
        "code": code,
        "sets": None,
        "notes": ("A.", "B."),
    }


def test_measurements_come_with_their_notes_and_a_warning_only_if_the_code_has_collapsed() -> None:
    table, *texts = evaluation_blocks(measured(active=3))
    assert isinstance(table, Table)
    assert ("active code dimensions", "3 of 256", "–") in table.rows
    assert texts[:2] == [Text("A."), Text("B.")]
    assert isinstance(texts[2], Text)
    assert texts[2].text.startswith("Warning: 3 of 256 code dimensions carry information")
    assert evaluation_blocks(measured(active=256))[1:] == [Text("A."), Text("B.")]
    assert evaluation_blocks({**measured(active=3), "code": None})[1:] == [Text("A."), Text("B.")]
