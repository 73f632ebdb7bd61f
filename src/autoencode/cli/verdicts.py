"""What is printed of verdicts on images: the first ones, the rule, how sure it is, and where work stopped."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from autoencode.cli.progress import counted, one_line, said_when_stopped, say, show_skipped, warn

if TYPE_CHECKING:
    from autoencode.outliers.find import Outliers, Verdict
    from autoencode.outliers.ground_truth import Agreement

SHOWN = 10  # the most anomalous, outliers or not; the table has all


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Say what is written when Ctrl-C ends the work; pressed again meanwhile, it does not cut that short.

    Raises:
        Exit: with the code of Ctrl-C.
    """
    is_main = threading.current_thread() is threading.main_thread()

    def stop(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, stop) if is_main else None
    try:
        with said_when_stopped(lambda: "nothing was written."):
            yield
    finally:
        if is_main and signal.getsignal(signal.SIGINT) is stop:  # else the program is about to end
            signal.signal(signal.SIGINT, previous)


def line_of(one: Verdict) -> str:
    """Return the score, the p-value, the file and the place of a verdict."""
    where = "" if one.box is None else "  at {},{} {}x{}".format(*one.box)
    return f"{one.score:8.2f}  p {one.p_value:.3g}  {one.path}{where}"


def marked(one: Verdict) -> str:
    """Return the same after a mark that says whether the image is an outlier."""
    return f"{'OUTLIER' if one.outlier else 'normal':7}{line_of(one)}"


def show_verdicts(found: Outliers, by: str, calibrated_on: str) -> None:
    """Print the most anomalous images, what they are judged by, and how sure it is."""
    show_skipped(found.skipped)
    for note in found.notes:
        say(one_line(f"note: {note}"))
    # Also those that are no outliers: the order is better than the verdict.
    for one in found.images[:SHOWN]:
        say(one_line(marked(one)))
    flagged = len(found.flagged)
    if len(found.images) > SHOWN:
        also = f", {flagged - SHOWN:,} of them outliers" if flagged > SHOWN else ""
        say(f"and {counted(len(found.images) - SHOWN, 'more image')}{also}")
    say(f"outliers: {flagged} of {counted(len(found.images), 'image')}, by {by}")
    if found.unread:
        say(f"unread:   {counted(len(found.unread), 'image')} could not be judged")
    say(f"rule:     {_rule(found, calibrated_on)}")
    if found.validation_fpr is not None:
        _show_validation(found)
    if found.agreement is not None:
        _show_agreement(found, found.agreement)
    warn_of_passing(found.passing)


def _show_validation(found: Outliers) -> None:
    from autoencode.outliers.conformal import in_percent

    assert found.validation_fpr is not None
    # Measured on images that calibrated nothing, so that one need not believe the rule.
    rate, (low, high), images = found.validation_fpr
    say(
        f"measured: {in_percent(rate)} of {images} validation images flagged, "
        f"95 % interval {in_percent(low)} to {in_percent(high)}"
    )
    if found.fpr is not None and low > found.fpr:
        warn("More validation images are flagged than stated: the test images are too few, or differ.")


def warn_of_passing(names: tuple[str, ...]) -> None:
    """Print the test pictures that would be called normal."""
    for name in names:
        warn(f"An image that is {name} would be called normal.")


def _rule(found: Outliers, calibrated_on: str) -> str:
    from autoencode.outliers.conformal import DEFAULT_FPR, images_needed, in_percent
    from autoencode.outliers.find import PAPER_NOTE

    if found.fpr is None or found.fpr_bound is None:
        return PAPER_NOTE
    images = len(found.calibration)
    text = (
        f"on average at most {in_percent(found.fpr)} of normal images are called outliers, calibrated on "
        f"{images:,} {calibrated_on}. By chance it may be more with just these, but with 99 % confidence at "
        f"most {in_percent(found.fpr_bound)}"
    )
    # Somebody who expects the default has to see that the images are too few for it, and by how much.
    if images < images_needed(DEFAULT_FPR):
        text += f". A rate of {100 * DEFAULT_FPR:g} % takes {images_needed(DEFAULT_FPR)} or more such images"
    return text


def _show_agreement(found: Outliers, agreement: Agreement) -> None:
    from autoencode.outliers.conformal import in_percent

    for name, line in zip(("masks:   ", "verdicts:"), agreement.in_words(), strict=True):
        say(f"{name} {line}")
    if agreement.good and agreement.false_positives / agreement.good > (bound := found.fpr_bound or 1.0):
        warn(
            f"{agreement.false_positives} of {agreement.good} images without a defect were called outliers, "
            f"more than the {in_percent(bound)} stated: they are not like the normal images given."
        )
