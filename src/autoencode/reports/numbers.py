"""Measurements as text: with their intervals, in words a reader of a page knows.

They are taken as `Evaluation.to_json` gives them, so that kept ones read like new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoencode.applications.codehealth import gap_in_words
from autoencode.applications.quality import KID_SETS
from autoencode.reports.page import Table

Measured = Mapping[str, Any]


def number(found: Measured | None, digits: int) -> str:
    """Return an estimate with its 95 % interval, or a dash."""
    if found is None:
        return "–"
    if found["interval"] is None:
        return f"{found['value']:.{digits}f}"
    low, high = found["interval"]
    return f"{found['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def kid(found: Measured, of: str) -> Measured | None:
    """Return a kernel distance of an evaluation, or None where it has none."""
    return (found["kid"] or {}).get(of)


def evaluation_table(found: Measured) -> Table:
    """Everything `evaluate` found, PCA of the same size beside the model."""
    model, pca = found["reconstruction"], found["pca"]
    rows = [
        (name, number(model[key], digits), number(pca[key], digits))
        for name, key, digits in (
            ("mean squared error", "mse", 5),
            ("PSNR, dB", "psnr_db", 2),
            ("SSIM", "ssim", 3),
            ("sharpness ratio", "sharpness", 3),
        )
    ]
    if (code := found["code"]) is not None:
        rows += [
            ("bits a dimension, at most", number(code["bits_per_dimension"], 3), "–"),
            ("KL, nats an image", number(code["kl_nats"], 1), "–"),
            ("active code values", f"{code['active_units']} of {found['code_size']}", "–"),
            ("distance of all codes from the prior", gap_in_words(code["prior_gap_nats"]), "–"),
        ]
    rows += [
        (f"KID of {KID_SETS.get(name, name)}", number(value, 3), "–")
        for name, value in (found["kid"] or {}).items()
    ]
    caption = (
        f"On {found['images']:,} {found['split']} images, with 95 % intervals. PCA was fitted to "
        f"{found['pca_images']:,} training images."
    )
    return Table(("measure", "model", f"PCA, {found['pca_components']} values"), rows, caption)
