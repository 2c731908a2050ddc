"""Compare: runs and models by what they gave for the same test images, which MLflow has: no network is run."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from graftline.errors import UserError
from graftline.evaluation.bootstrap import require_resampling
from graftline.evaluation.comparison import Comparison, Metric, compare, format_difference
from graftline.evaluation.metrics import HEADLINES
from graftline.execution import Accelerator
from graftline.pipeline.evaluating.contender import CommonTest, find_contender, with_own_names
from graftline.pipeline.runs.choice import A_TEST, choose_runs, newest_against_champion
from graftline.pipeline.stage import StageResult
from graftline.report.tables import print_comparison
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class CompareResult(StageResult):
    """What the stage ``compare`` found.

    Attributes:
        comparison: each model beside the first.
        figure: the picture of it, a PNG file.
    """

    comparison: Comparison
    figure: Path


@dataclass(frozen=True)
class Compare:
    """The stage ``compare`` (Hydra target of conf/compare.yaml).

    Attributes:
        tracking: where the runs are.
        runs: what is compared with the first of them; None: the newest model with the champion.
        metric: the score that decides.
        resamples: how many give an interval.
        seed: of the resampling.
        accelerator: where a bundle is run whose run was tested on other images.
    """

    tracking: Tracking
    runs: Sequence[str] | None = None
    metric: Metric = "accuracy"
    resamples: int = 1000
    seed: int = 0
    accelerator: Accelerator = "auto"

    def __post_init__(self) -> None:
        require_resampling("Compare", self.resamples, self.seed)

    def run(self, directory: Path) -> CompareResult:
        """Compare, print the table and draw it."""
        from graftline.report.comparison_figure import comparison_figure  # matplotlib takes a second
        from graftline.report.style import save

        chosen = choose_runs(self.runs, self.tracking, A_TEST) if self.runs else newest_against_champion(self.tracking)
        if len(chosen.references) < 2:
            found = f"to {chosen.references[0]} alone: name another one" if chosen.references else "to none: name two"
            raise UserError(f"A comparison needs two models, and Compare.runs leads {found}.")
        contenders = with_own_names([find_contender(one, self.tracking) for one in chosen.references])
        by_name = {one.name: one for one in contenders}
        assert len(by_name) == len(contenders), "each has a name of its own"
        models = CommonTest(by_name, contenders[chosen.tested], self.tracking, self.accelerator)
        comparison = compare(models, self.metric, self.resamples, self.seed)
        print_comparison(comparison)
        figure = save(comparison_figure(comparison), directory / "comparison.png")
        return CompareResult(
            facts={"test_digest": comparison.split_digest, **asdict(comparison), "notes": comparison.notes},
            metrics={
                f"{self.metric}_difference/{row.name}": asdict(row.differences[self.metric]) for row in comparison.rows
            },
            table=[("verdict", _verdict(comparison)), ("picture", os.path.relpath(figure))],
            comparison=comparison,
            figure=figure,
        )


def _verdict(comparison: Comparison) -> str:
    """Return the outcome in a part of a sentence."""
    metric, reference = comparison.metric, comparison.reference.name
    if len(comparison.rows) == 1:
        (row,) = comparison.rows
        difference = format_difference(metric, row.differences[metric])
        return f"{row.name}: {row.verdict} ({HEADLINES[metric]} {difference} against {reference})"
    verdicts = [row.verdict for row in comparison.rows]
    better, worse = verdicts.count("better"), verdicts.count("worse")
    neither = len(verdicts) - better - worse
    return f"{better} better, {worse} worse than {reference}, {neither} without a difference shown"
