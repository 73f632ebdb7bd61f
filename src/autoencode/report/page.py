"""One HTML page with its figures, tables and texts inside, which opens from disk without a network.

Measurements are formatted from the form of `Evaluation.to_json`, so that those read from a file look like new
ones.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoencode.atomic import write_bytes
from autoencode.errors import ConfigError
from autoencode.evaluation.quality import collapse_warning, gap_in_words
from autoencode.evaluation.sets import SETS
from autoencode.metrics.images import MEASURES
from autoencode.models.backbones import BACKBONE

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Figure:
    """A picture with a caption.

    Attributes:
        png: content of the PNG file.
        caption: what the picture shows and what to look at, in sentences.
        title: a few words before the caption, such as "Figure 4"; also what a screen reader says first.
    """

    png: bytes
    caption: str
    title: str

    @property
    def source(self) -> str:
        """The picture as a data URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"

    @property
    def width_px(self) -> int:
        """Width of the picture."""
        return self._size[0]

    @property
    def height_px(self) -> int:
        """Height of the picture."""
        return self._size[1]

    # The page states sizes, so that it does not jump as pictures are decoded.
    @functools.cached_property
    def _size(self) -> tuple[int, int]:
        with Image.open(io.BytesIO(self.png)) as image:
            return image.size


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first column names the row.

    Attributes:
        headings: headings of the columns.
        rows: as many cells each as there are headings.
        caption: a sentence under the table.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.headings) for row in self.rows):
            raise ConfigError(f"Every row of a table needs {len(self.headings)} cells, one per heading.")


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Command:
    """A command line to copy into a terminal."""

    text: str


Block = Figure | Table | Text | Command


@dataclass(frozen=True)
class Section:
    """A heading with its blocks."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Name of the link target."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower()).strip("-")


def figure_of(pixels: NDArray[np.uint8], title: str, caption: str) -> Figure:
    """Return pixels (H, W, 3) in 0..255 as a figure."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")  # optimize: nine times the time for one percent
    return Figure(stream.getvalue(), caption, title)


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML; every text is escaped.

    Args:
        title: the heading, and the name of the window.
        lead: a paragraph under the heading.
        sections: in order; each gets an entry in the table of contents.
    """
    from jinja2 import Environment, StrictUndefined

    # Captions and file names are a stranger's text: all of it is escaped, and a missing value is an error.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["kind"] = lambda block: type(block).__name__
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, lead=lead, sections=sections)


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page atomically.

    Raises:
        OutputError: the page cannot be written; an earlier page is unchanged.
    """
    # A file name may hold any bytes; those that are not text become question marks.
    write_bytes(path, render(title, lead, sections).encode("utf-8", "replace"))


Measured = Mapping[str, Any]


def number(found: Measured | None, digits: int) -> str:
    """Return an estimate with its 95 % interval, or a dash."""
    if found is None:
        return "–"
    if found["interval"] is None:
        return f"{found['value']:.{digits}f}"  # one image has no spread, and so no interval
    low, high = found["interval"]
    return f"{found['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def kid(found: Measured, of: str) -> Measured | None:
    """Return the KID (EfficientNet-Lite0) of a set of images, or None if it was not measured."""
    likeness = ((found["sets"] or {}).get(of) or {"by": {}})["by"].get(BACKBONE.name)
    return None if likeness is None else likeness["kid"]


def evaluation_blocks(found: Measured) -> list[Block]:
    """Return the measurements of `evaluate`, with PCA of the same size beside the model, and the notes."""
    blocks: list[Block] = [_evaluation_table(found), *(Text(note) for note in found["notes"])]
    if (code := found["code"]) and (warning := collapse_warning(code["active_units"], found["code_size"])):
        blocks.append(Text(f"Warning: {warning}"))
    return blocks


def _evaluation_table(found: Measured) -> Table:
    columns = {"model": found["reconstruction"]}
    if found["sharp"] is not None:
        columns["its sharp decoder"] = found["sharp"]
    if found["pca"] is not None:
        columns[f"PCA, {found['pca_components']} components"] = found["pca"]
    rows = [
        (
            f"{measure.label}: {measure.meaning}",
            *(number(quality[field], measure.digits) for quality in columns.values()),
        )
        for field, measure in MEASURES.items()
    ]
    of_model: list[tuple[str, str]] = []
    if (code := found["code"]) is not None:  # a plain autoencoder has no KL, and no bound
        of_model += [
            ("bits per dimension, at most", number(code["bits_per_dimension"], 3)),
            ("KL, nats per image", number(code["kl_nats"], 1)),
            ("active code dimensions", f"{code['active_units']} of {found['code_size']}"),
            ("prior gap", gap_in_words(code["prior_gap_nats"])),
        ]
    # Sets of images have a row each, that of PCA too.
    of_model += [
        (f"KID ({judge}) of {SETS.get(name, name)}", number(likeness["kid"], 3))
        for name, one in (found["sets"] or {}).items()
        for judge, likeness in one["by"].items()
    ]
    rows += [(*row, *("–" for _ in list(columns)[1:])) for row in of_model]
    caption = f"On {found['images']:,} {found['split']} images, with 95 % intervals."
    if found["pca"] is not None:
        caption += f" PCA was fitted to {found['pca_images']:,} training images."
    return Table(("measure", *columns), rows, caption)
