"""What a test tells beyond its scores: on which images the model is worse, and whether it beats an earlier one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.console import say
from graftline.data.version import DatasetVersion
from graftline.evaluation.evaluation import Evaluation, EvaluationResult
from graftline.pipeline.evaluating.earlier_model import EarlierModel, compare_with_earlier
from graftline.pipeline.evaluating.slices import SliceReport, write_known_slices
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True)
class BeyondScores:
    """What a training's report and its ``result.json`` have of the test, beside the scores.

    Attributes:
        slices: on which images the model is worse; None where there is nothing to divide them by.
        earlier: the model that it would replace; None where there is none.
    """

    slices: SliceReport | None = None
    earlier: EarlierModel | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what goes into ``result.json``."""
        slices = {} if self.slices is None else {"worse_slices": self.slices.flagged}
        return slices if self.earlier is None else {**slices, "compared_with": self.earlier.to_json()}


def look_beyond(
    result: EvaluationResult | None,
    version: DatasetVersion,
    directory: Path,
    evaluation: Evaluation,
    tracking: Tracking,
) -> BeyondScores:
    """Find that out from what is known already, say it, and write it beside the predictions; nothing without a test.

    A model that is not registered, such as a member of an ensemble, is to replace none, and is compared with none.
    """
    if result is None:
        return BeyondScores()
    tested = result.predictions
    earlier = None
    if tracking.register:
        earlier = compare_with_earlier(tested, version, tracking, evaluation.resamples, evaluation.seed)
    if earlier is not None:
        say(earlier.sentence)
    return BeyondScores(write_known_slices(tested, version, directory), earlier)
