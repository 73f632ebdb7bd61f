"""The page of the paper, from one folder of images: figures, verdicts claim by claim, and numbers.

DIR/index.html         the page, one file that needs no other
DIR/figures/*.png      its figures
DIR/results.json       its numbers
DIR/runs/, measured/   the models and measurements behind them, kept and used again
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoencode.atomic import make_folder, write_bytes, write_json
from autoencode.errors import VERSION, install_command
from autoencode.paper.claims import Claim, judge_claims
from autoencode.paper.figures import draw_figures
from autoencode.report.page import Block, Figure, Section, Table, Text, kid, number, write_page

if TYPE_CHECKING:
    from autoencode.paper.results import Results

PAGE_NAME, RESULTS_NAME, FIGURES_NAME = "index.html", "results.json", "figures"
FORMAT_VERSION = 2  # of results.json; raised when a name in it changes, for scripts that compare studies


def write_paper(results: Results) -> Path:
    """Write the figures, the numbers and the page of a study; return the path of the page.

    Raises:
        OutputError: a file cannot be written; the file before it is unchanged.
    """
    out = results.plan.out
    drawn, judged = draw_figures(results), judge_claims(results)
    make_folder(out / FIGURES_NAME)
    files = {f"figure-{int(figure.title.removeprefix('Figure ')):02}.png": figure.png for figure in drawn}
    for name, png in files.items():
        write_bytes(out / FIGURES_NAME / name, png)
    for path in (out / FIGURES_NAME).glob("figure-??.png"):
        if path.name not in files:  # left by a study of other experiments
            path.unlink()
    # The page comes last: whoever sees it finds the figures and numbers it speaks of.
    write_json(out / RESULTS_NAME, _as_json(results, judged))
    page = out / PAGE_NAME
    write_page(
        page,
        "A Comprehensive Study of Autoencoders, on your images",
        _lead(results),
        _sections(results, drawn, judged),
    )
    return page


def _lead(results: Results) -> str:
    plan, pack = results.plan, results.pack
    size = f"{pack.preprocessing.height}x{pack.preprocessing.width}"
    splits = ", ".join(f"{len(pack.rows(split)):,} {split}" for split in ("train", "validation", "test"))
    return (
        f"The experiments of Kovenko and Bogach (2020) on {len(pack):,} images of {size} ({splits}), with "
        f"{plan.budget:g} of the paper's epochs and seed {plan.seed}. One seed each: intervals are over "
        "images, not over trainings."
    )


def _sections(results: Results, drawn: Sequence[Figure], judged: Sequence[Claim]) -> list[Section]:
    verdicts = Table(
        ("claim of the paper", "where", "this run measured", "verdict"),
        [(claim.text, claim.where, claim.measured, claim.verdict) for claim in judged],
        "A claim is undecided where the 95 % intervals overlap or a model has not learned enough.",
    )
    sections = [
        Section("What holds", [verdicts]),
        Section("Data and autoencoder", _numbered(drawn, range(1, 9))),
        Section("Denoising", [*_numbered(drawn, range(9, 11)), *_denoising(results)]),
        Section("Variational autoencoder", _numbered(drawn, range(11, 16))),
        Section("Outliers", _numbered(drawn, range(16, 17))),
        Section("Every model in numbers", _tables(results)),
    ]
    # With --only most figures have no models.
    return [section for section in sections if section.blocks]


def _numbered(drawn: Sequence[Figure], wanted: range) -> list[Block]:
    return [figure for figure in drawn if int(figure.title.removeprefix("Figure ")) in wanted]


def _tables(results: Results) -> list[Block]:
    blocks: list[Block] = [_experiments(results), _quality(results)]
    if results.measured and all(found["sets"] is None for found in results.measured.values()):
        blocks.append(Text(f"KID was not measured. Install it: {install_command('')}, and run again."))
    # A model that diverged is a result, and must not be missing without a word.
    failed = [(one.experiment.name, one.failure) for one in results.trained if one.failure]
    if failed:
        blocks.append(Table(("experiment", "reason for no model"), failed))
    return blocks


def _denoising(results: Results) -> list[Block]:
    """Return the paper's denoisers beside a median filter and a network with skips."""
    rows = []
    for name, other, figure in (("denoise", "restore-noise", 9), ("dropout", "restore-dropout", 10)):
        if name not in results.measured:
            continue
        found = results.measured[name]
        before, after = found["corrupted"]["psnr_db"], found["reconstruction"]["psnr_db"]
        restored = number(results.restored[other], 2) if other in results.restored else "was not run"
        filtered = results.median_filter[name]
        rows.append((f"Figure {figure}", *(number(one, 2) for one in (before, filtered, after)), restored))
    headings = ("damage", "corrupted", "median filter", "the paper's network", "with skips and no code")
    caption = "PSNR in dB on held-out images, with 95 % intervals. A code holds a sketch of an image."
    return [Table(headings, rows, caption)] if rows else []


def _experiments(results: Results) -> Table:
    rows = []
    for one in results.trained:
        config = results.plan.settings(one.experiment).train
        warmup = f"{config.kl_warmup} + " if config.kl_warmup else ""
        # Marked, so that no result of ours is taken for one of the paper.
        whose = "paper" if one.experiment.paper else "added"
        rows.append((one.experiment.name, whose, one.experiment.shows, f"{warmup}{config.epochs}"))
    return Table(("experiment", "source", "purpose", "epochs"), rows)


def _quality(results: Results) -> Table:
    headings = (
        "model",
        "test MSE",
        "PCA's",
        "bits per dimension",
        "KL",
        "active",
        "KID, N(0, I)",
        "KID, mixture",
    )
    # Samples of both priors: for the paper's VAE after 20 epochs the mixture takes KID from 0.54 to 0.37.
    rows = []
    for name, found in results.measured.items():
        code = found["code"] or {}
        rows.append(
            (
                name,
                number(found["reconstruction"]["mse"], 5),
                number(found["pca"]["mse"], 5),
                number(code.get("bits_per_dimension"), 3),
                number(code.get("kl_nats"), 1),
                f"{code['active_units']} of {found['code_size']}" if code else "–",
                number(kid(found, "samples_normal"), 3),
                number(kid(found, "samples_mixture"), 3),
            )
        )
    caption = (
        "On held-out images, with 95 % intervals; denoising models see corrupted images, and so does PCA."
    )
    return Table(headings, rows, caption)


def _as_json(results: Results, judged: Sequence[Claim]) -> dict[str, Any]:
    plan = results.plan
    return {
        "format": FORMAT_VERSION,
        "autoencode": VERSION,
        "pack": results.pack.fingerprint,
        "budget": plan.budget,
        "seed": plan.seed,
        "mean_image": results.mean_image,
        "experiments": {
            one.experiment.name: {
                "shows": one.experiment.shows,
                # With the budget applied: numbers of other epochs cannot be compared.
                "settings": plan.settings(one.experiment).train.to_json(),
                "model": None if one.failure else results.digest(one.experiment.name),
                "failure": one.failure,
                "evaluation": results.measured.get(one.experiment.name),
                "restored_psnr_db": results.restored.get(one.experiment.name),
            }
            for one in results.trained
        },
        "claims": [dataclasses.asdict(claim) for claim in judged],
    }
