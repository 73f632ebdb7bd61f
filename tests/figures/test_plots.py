import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoencode.errors import ConfigError, OutputError
from autoencode.figures.plots import (
    DOTS_PER_INCH,
    confusion_figure,
    confusion_matrix,
    curves_figure,
    histogram,
    histogram_figure,
    loss_curves,
)


def plain_run(epochs: int) -> list[dict[str, Any]]:
    """Records of an autoencoder whose validation loss is least at epoch 7, or at the last before that."""
    return [
        {
            "epoch": epoch,
            "step": 70 * epoch,
            "train_loss": 0.05 / epoch,
            "val_loss": 0.01 + (epoch - 7) ** 2 / 1e4,
            "val_mse": 0.01 + (epoch - 7) ** 2 / 1e4,
            "images_per_second": 900.0,
        }
        for epoch in range(1, epochs + 1)
    ]


def variational_run(epochs: int) -> list[dict[str, Any]]:
    return [
        record
        | {
            "val_mse": 0.02,
            "train_reconstruction": -100.0 * record["epoch"],
            "val_reconstruction": -90.0 * record["epoch"],
            "train_kl": 20.0,
            "val_kl": 21.0,
            "beta": record["epoch"] / epochs,
            "sigma2": 0.5 ** record["epoch"],
            "active_units": 12,
            "learning_rate": 1e-3,
        }
        for record in plain_run(epochs)
    ]


def quantities(records: list[dict[str, Any]]) -> list[str]:
    return [axes.get_ylabel() for axes in curves_figure(records, "run").axes]


def curve(records: list[dict[str, Any]], panel: int, label: str) -> tuple[list[float], list[float]]:
    (line,) = [
        line
        for line in curves_figure(records, "run").axes[panel].lines
        if str(line.get_label()).startswith(label)
    ]
    return list(line.get_xdata()), list(line.get_ydata())


@pytest.mark.parametrize("epochs", [1, 10, 500])
def test_loss_curves_are_a_valid_png_of_the_size_asked_for(epochs: int, tmp_path: Path) -> None:
    loss_curves(plain_run(epochs), tmp_path / "curves.png", "run")
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == (round(5.6 * DOTS_PER_INCH), round(4.0 * DOTS_PER_INCH))
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_every_recorded_quantity_has_a_panel_and_no_other() -> None:
    assert quantities(plain_run(3)) == ["loss"]
    assert quantities(variational_run(3)) == [
        "loss",
        "validation mean squared error",
        "reconstruction term",
        "KL divergence (nats)",
        "active code dimensions",
        "weight of the KL, β",
        "observation variance, σ²",
        "learning rate",
    ]


def test_the_mean_squared_error_has_a_panel_only_where_it_is_not_the_loss() -> None:
    records = plain_run(4)
    assert quantities([record | {"val_mse": 2 * record["val_mse"]} for record in records]) == [
        "loss",
        "validation mean squared error",
    ]


def test_curves_hold_the_recorded_numbers_and_mark_the_best_epoch() -> None:
    records = plain_run(10)
    assert curve(records, 0, "training") == (
        list(range(1, 11)),
        [record["train_loss"] for record in records],
    )
    assert curve(records, 0, "validation")[1] == [record["val_loss"] for record in records]
    assert curve(records, 0, "best: 0.01, epoch 7") == ([7], [0.01])


def test_what_is_missing_or_not_finite_leaves_a_gap() -> None:
    records = plain_run(4)
    records[1]["val_loss"] = None
    records[2]["val_loss"] = math.inf
    del records[3]["train_loss"]
    np.testing.assert_array_equal(np.isnan(curve(records, 0, "validation")[1]), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(curve(records, 0, "training")[1]), [False, False, False, True])


def test_an_axis_is_logarithmic_where_errors_span_more_than_a_decade() -> None:
    def scales(records: list[dict[str, Any]]) -> list[str]:
        return [axes.get_yscale() for axes in curves_figure(records, "run").axes]

    def losses(*values: float) -> list[dict[str, Any]]:
        return [{"epoch": epoch, "train_loss": value} for epoch, value in enumerate(values, start=1)]

    assert scales(losses(0.1, 0.02)) == ["linear"]
    assert scales(losses(0.1, 0.009)) == ["log"]
    assert scales(losses(100.0, -3.0)) == ["linear"]
    by_quantity = dict(zip(quantities(variational_run(20)), scales(variational_run(20)), strict=True))
    assert by_quantity["observation variance, σ²"] == "log"
    assert by_quantity["weight of the KL, β"] == "linear"


def test_points_are_marked_in_a_short_run_only() -> None:
    assert curves_figure(plain_run(1), "run").axes[0].lines[0].get_marker() == "o"
    assert curves_figure(plain_run(500), "run").axes[0].lines[0].get_marker() == ""


def test_nothing_to_draw_is_said_and_leaves_no_file(tmp_path: Path) -> None:
    for records in ([], [{"epoch": 1, "train_loss": math.nan}]):
        with pytest.raises(ConfigError, match="nothing to draw"):
            loss_curves(records, tmp_path / "curves.png", "run")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        loss_curves(plain_run(2), tmp_path / "file" / "curves.png", "run")


def test_titles_with_dollars_or_letters_the_font_lacks_are_drawn_without_a_warning(tmp_path: Path) -> None:
    loss_curves(plain_run(2), tmp_path / "curves.png", r"$\frac$ 日本")
    scores = {"$a$b$": np.array([1.0, 2.0])}
    histogram(scores, 1.5, tmp_path / "scores.png", title="$x^$", score_name="$y^$")
    assert (tmp_path / "scores.png").stat().st_size > 0


def test_figures_leave_pyplot_alone(tmp_path: Path) -> None:
    loss_curves(plain_run(2), tmp_path / "curves.png", "run")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_the_bars_of_every_group_add_up_to_a_hundred_percent_and_the_share_above_is_told() -> None:
    generator = np.random.default_rng(0)
    scores = {"normal": generator.normal(0, 1, 1000), "outliers": generator.normal(4, 1, 40)}
    axes = histogram_figure(scores, 2.0, "title", "score").axes[0]
    outlines = {str(patch.get_label()): patch.get_data() for patch in axes.patches if not patch.get_fill()}
    above = (scores["normal"] > 2).mean()
    assert next(iter(outlines)) == f"normal: 1,000 images, {above:.1%} above"
    for values, edges, _ in outlines.values():
        assert values.sum() == pytest.approx(100)
        assert edges[0] <= scores["normal"].min()
        assert edges[-1] >= scores["outliers"].max()
    assert axes.lines[0].get_xdata() == [2.0, 2.0]
    assert axes.get_xscale() == "linear"


def test_scores_that_span_more_than_a_decade_get_a_logarithmic_axis_and_lose_no_score() -> None:
    scores = np.geomspace(0.00123, 0.9, 777)
    axes = histogram_figure({"all": scores}, None, "title", "score").axes[0]
    assert axes.get_xscale() == "log"
    assert axes.patches[0].get_data().values.sum() == pytest.approx(100)
    assert not axes.lines


def test_equal_scores_and_a_threshold_far_away_are_drawn(tmp_path: Path) -> None:
    histogram({"one": np.array([0.5])}, None, tmp_path / "one.png", title="t", score_name="s")
    histogram({"all": np.full(9, 0.5)}, 100.0, tmp_path / "far.png", title="t", score_name="s")
    with Image.open(tmp_path / "far.png") as picture:
        assert picture.size == (round(6.4 * DOTS_PER_INCH), round(4.0 * DOTS_PER_INCH))


@pytest.mark.parametrize("scores", [{}, {"a": np.array([])}, {"a": np.array([1.0, math.nan])}])
def test_a_histogram_rejects_scores_that_are_missing_or_not_finite(
    scores: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        histogram(scores, None, tmp_path / "scores.png", title="t", score_name="s")


def test_a_confusion_matrix_counts_in_rows_of_true_classes_and_colours_shares(tmp_path: Path) -> None:
    counts = np.array([[30, 10], [0, 4]])
    names = ["rose", "a name of very many letters that has to be cut $"]
    axes = confusion_figure(counts, names, "34 of 44").axes[0]
    assert [text.get_text() for text in axes.texts] == ["30", "10", "4"]
    assert [text.get_position() for text in axes.texts] == [(0, 0), (1, 0), (1, 1)]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), [[0.75, 0.25], [0, 1]])
    assert axes.get_yticklabels()[1].get_text().endswith("…")
    confusion_matrix(counts, names, tmp_path / "confusion.png", title="34 of 44")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.format == "PNG"


def test_counts_of_other_classes_make_no_confusion_matrix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 classes cannot have shape"):
        confusion_matrix(np.zeros((2, 2), int), ["a", "b", "c"], tmp_path / "c.png", title="")
    many = [f"class {number}" for number in range(60)]
    confusion_matrix(np.eye(60, dtype=int), many, tmp_path / "c.png", title="many")
    assert (tmp_path / "c.png").exists()
