"""Colours of the map against what is behind them, light and dark."""

from __future__ import annotations

import re

import numpy as np
import pytest

from autoencode.web.server import STATIC

SHEET, MAP = (STATIC / "app.css").read_text(), (STATIC / "colours.js").read_text()
PART = {"light": 0, "dark": 1}  # of light-dark() in the sheet


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def colours(name: str, scheme: str) -> list[str]:
    found = re.search(rf"const {name} = \{{.*?{scheme}: \[(.*?)\]", MAP, re.DOTALL)
    assert found is not None
    return re.findall(r"#[0-9a-f]{6}", found[1])


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("behind", ["surface", "page"])
def test_every_colour_of_the_map_has_a_contrast_of_three(scheme: str, behind: str) -> None:
    [both] = re.findall(rf"--{behind}: light-dark\((#\w{{6}}), (#\w{{6}})\);", SHEET)
    background = both[PART[scheme]]
    groups, scale = colours("LISTS", scheme), colours("SCALES", scheme)
    none = re.findall(r'const NONE = "(#\w{6})"', MAP)
    assert (len(set(groups)), len(scale)) == (12, 6)
    assert min(contrast(colour, background) for colour in [*groups, *scale, *none]) >= 3
