"""What more time would bring: carried on where a curve falls, nothing where it does not."""

import numpy as np
import pytest

from graftline.pipeline.searching.result import outlook_of
from graftline.search.outlook import Outlook, look_ahead
from graftline.training.results import MONITOR, FitHistory, kept_epoch

SECONDS = np.arange(1, 21) * 30.0


def test_a_curve_over_the_logarithm_of_time_is_carried_on_exactly() -> None:
    losses = 1.0 - 0.1 * np.log(SECONDS)
    outlook = look_ahead(SECONDS, losses, 600.0)
    assert isinstance(outlook, Outlook)
    expected = 1.0 - 0.1 * np.log(1200.0)
    assert (outlook.log_loss, outlook.low, outlook.high) == pytest.approx((expected,) * 3, abs=1e-6)
    assert outlook.sentence == (
        f"Another 10 minutes would likely lower the validation log loss from {losses[-1]:.3f} to {expected:.3f} "
        f"({expected:.3f} to {expected:.3f})."
    )


def test_a_rough_curve_has_a_wide_interval_that_ends_at_what_is_reached() -> None:
    losses = 1.0 - 0.1 * np.log(SECONDS) + np.random.default_rng(0).normal(0, 0.03, 20)
    losses[-1] = losses.min() - 0.001
    outlook = look_ahead(SECONDS, losses, 1800.0)
    assert isinstance(outlook, Outlook)
    assert 0.0 <= outlook.low < outlook.log_loss <= outlook.high <= losses.min()


def test_a_flat_end_would_bring_little() -> None:
    losses = np.concatenate([np.linspace(1.0, 0.5, 10), 0.5 - 1e-4 * np.arange(10)])
    outlook = look_ahead(SECONDS, losses, 1800.0)
    assert isinstance(outlook, Outlook)
    assert "would likely bring little" in outlook.sentence


def test_nothing_is_promised_where_the_loss_rises_or_epochs_are_few() -> None:
    rising = np.concatenate([np.linspace(1.0, 0.5, 10), np.linspace(0.51, 0.9, 10)])
    assert look_ahead(SECONDS, rising, 1800.0) == (
        "Another 30 minutes of the same training would likely bring nothing: its validation log loss, 0.500, has not "
        "fallen for the last 10 of 20 epochs."
    )
    assert look_ahead(SECONDS[:2], [1.0, 0.5], 1800.0) == "What more time would bring cannot be told from 2 epochs."
    falling = 1.0 - 0.1 * np.log(SECONDS)
    assert look_ahead(SECONDS / 10, falling, 1800.0) == (
        "What another 30 minutes would bring cannot be told from a training of 60 s."
    )


def test_only_the_last_phase_is_carried_on_and_only_below_what_is_reached() -> None:
    """Epochs of a head take a tenth of a second, those of the whole network that begins anew after it half a minute."""

    def phase(losses: np.ndarray, seconds: float) -> FitHistory:
        epochs = [{MONITOR: loss, "epoch": float(number)} for number, loss in enumerate(losses)]
        return FitHistory(epochs, kept_epoch(epochs, len(epochs)), seconds, 1)

    head, whole = phase(np.linspace(0.6, 0.31, 30), 3.0), phase(1.0 - 0.1 * np.log(SECONDS), 600.0)
    outlook = outlook_of([head, whole])
    alone = look_ahead(SECONDS, 1.0 - 0.1 * np.log(SECONDS), 1800.0, before=0.31)
    assert isinstance(outlook, Outlook)
    assert outlook == alone
    assert outlook.log_loss == pytest.approx(1.0 - 0.1 * np.log(2400.0))
    assert "from 0.310 to 0.222" in outlook.sentence
    sure = outlook_of([phase(np.linspace(0.6, 0.2, 30), 3.0), whole])
    assert isinstance(sure, Outlook)
    assert (sure.log_loss, "would likely bring little" in sure.sentence) == (0.2, True)
    early = np.r_[0.25, np.linspace(0.6, 0.31, 29)]  # 0.25 lies in the first half, which is not kept
    lucky = outlook_of([phase(early, 600.0)])
    assert isinstance(lucky, Outlook)
    assert "from 0.310 to" in lucky.sentence
    assert outlook_of([]) == "What more time would bring cannot be told from 0 epochs."
